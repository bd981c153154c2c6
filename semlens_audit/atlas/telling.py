"""Which components of a comparison tell most, and the pictures of these."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semlens_audit.atlas.compared import Comparison, LayerComparison, Pair, Portrait, Side, Single
from semlens_audit.atlas.comparison_words import ordered
from semlens_audit.component_changes import MOST_SHOWN, PortraitReference
from semlens_audit.digest import digest_bytes

if TYPE_CHECKING:
    from semlens_audit.atlas.opening import Atlas

__all__ = ["REFERENCES", "Telling", "kinds", "shown", "telling", "with_portraits"]

REFERENCES = 3
"""Reference samples of a component that have a picture."""


@dataclass(frozen=True)
class Telling:
    """Components without a partner and pairs, of each kind all that there are, those that tell most first.

    Parameters
    ----------
    learned, lost
        The most relevant first.
    became
        Pairs counted for another concept; the most relevant on the second side first.
    moved
        Other pairs that changed in relevance beyond noise; the largest change first.
    same
        All other pairs; the most relevant on the second side first.
    """

    learned: tuple[Single, ...]
    lost: tuple[Single, ...]
    became: tuple[Pair, ...]
    moved: tuple[Pair, ...]
    same: tuple[Pair, ...]


def kinds(found: LayerComparison) -> Telling:
    """Sort what was found by what it tells."""
    kept = [pair for pair in found.pairs if not pair.shifted]
    return Telling(
        learned=tuple(ordered([one for one in found.singles if one.state == "learned"])),
        lost=tuple(ordered([one for one in found.singles if one.state == "lost"])),
        became=tuple(sorted((pair for pair in found.pairs if pair.shifted), key=lambda pair: -(pair.second_share or 0.0))),
        moved=tuple(
            sorted((pair for pair in kept if pair.changed), key=lambda pair: -abs((pair.change and pair.change.value) or 0.0))
        ),
        same=tuple(sorted((pair for pair in kept if not pair.changed), key=lambda pair: -(pair.second_share or 0.0))),
    )


def telling(found: LayerComparison, most: int = MOST_SHOWN) -> Telling:
    """The first few of each kind but the last, of which there is nothing to tell."""
    every = kinds(found)
    return Telling(every.learned[:most], every.lost[:most], every.became[:most], every.moved[:most], ())


def shown(one: Telling, layers: tuple[str, str]) -> Iterator[tuple[Side, str, int]]:
    """Side, layer and component of all that is in `one`, in that order; `layers` are the first side's and the second's."""
    for single in (*one.learned, *one.lost):
        yield single.side, layers[single.side == "second"], single.component
    for pair in (*one.became, *one.moved):
        yield "first", layers[0], pair.first
        yield "second", layers[1], pair.second


def with_portraits(first: Atlas, second: Atlas, found: Comparison) -> Comparison:
    """The comparison with the crops of the components that tell most.

    Parameters
    ----------
    first, second
        The open indexes that it is of.
    """
    wanted = dict.fromkeys(
        place for layer in found.layers for place in shown(telling(layer), (layer.first.layer, layer.second.layer))
    )
    images: dict[str, str] = {}
    portraits = []
    for side, layer, component in wanted:
        atlas = first if side == "first" else second
        source = atlas.layers[layer]
        references = []
        for rank in range(min(REFERENCES, source.reference_ids.shape[1])):
            sample = int(source.reference_ids[component, rank])
            if sample < 0:
                break
            crop = atlas.thumbnail(layer, component, rank)[0]
            key = digest_bytes(crop)
            images[key] = base64.b64encode(crop).decode("ascii")
            activation = float(source.activations[component, rank])
            references.append(PortraitReference(sample=atlas.evidence.paths[sample], activation=activation, image=key))
        portraits.append(Portrait(side=side, layer=layer, component=component, references=tuple(references)))
    return found.model_copy(update={"portraits": tuple(portraits), "images": dict(sorted(images.items()))})
