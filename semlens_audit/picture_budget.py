"""What the pictures of a record may weigh: a report carries each twice, on its pages and in the attached record.

A report is to stay below 5 MB for 500 reference samples with a crop and an overlay each. Few pictures stay as they are; many are
compressed more strongly, all alike, and never made smaller in pixels: on paper they are 15 mm wide and more, and stay judgeable.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from semlens_audit.digest import digest_bytes
from semlens_audit.records import ClassLayer, ComponentRecord, DataPresence, ReferenceImage

__all__ = ["BUDGET", "QUALITIES", "compressed", "within_budget"]

BUDGET = 1_900_000
"""Most bytes of all JPEG files of a record together, as long as `QUALITIES` reach it."""

QUALITIES = (65, 55, 45, 35)
"""JPEG qualities that are tried in turn; at 35, lesions, hairs and ruler marks of 112 pixels' width are still told apart."""


def within_budget(
    places: Sequence[ClassLayer], presence: Sequence[DataPresence], images: Mapping[str, str], budget: int = BUDGET
) -> tuple[tuple[ClassLayer, ...], tuple[DataPresence, ...], dict[str, str]]:
    """The same evidence with pictures that weigh at most `budget` bytes, or as little as the least quality makes them.

    Parameters
    ----------
    places, presence
        What refers to pictures by their keys.
    images
        SHA-256 of each JPEG -> base64.
    budget
        Bytes of all JPEG files together.

    Returns
    -------
    places, presence, images
        As given where `images` keep the budget, else with other pictures under other keys, sorted.
    """
    keys, lighter = compressed(images, budget)
    if not keys:
        return tuple(places), tuple(presence), dict(sorted(images.items()))

    def component(item: ComponentRecord) -> ComponentRecord:
        references = tuple(map(reference, item.references))
        return item.model_copy(update={"references": references}) if references else item

    def reference(item: ReferenceImage) -> ReferenceImage:
        update: dict[str, Any] = {"crop": keys[item.crop], "overlay": keys[item.overlay]}
        if item.contrastive is not None:
            update["contrastive"] = item.contrastive.model_copy(update={"crop": keys[item.contrastive.crop]})
        return item.model_copy(update=update)

    def shown(item: DataPresence) -> DataPresence:
        pictures = tuple(p.model_copy(update={"image": keys[p.image]}) if p.image is not None else p for p in item.pictures)
        return item.model_copy(update={"pictures": pictures})

    return (
        tuple(place.model_copy(update={"components": tuple(map(component, place.components))}) for place in places),
        tuple(map(shown, presence)),
        lighter,
    )


def compressed(images: Mapping[str, str], budget: int = BUDGET) -> tuple[dict[str, str], dict[str, str]]:
    """Pictures compressed until they keep `budget`.

    Returns
    -------
    keys
        Old key -> new key; empty where `images` keep the budget as they are.
    images
        New key -> base64, sorted.
    """
    files = {key: base64.b64decode(text) for key, text in images.items()}
    if sum(map(len, files.values())) <= budget:
        return {}, dict(images)
    lighter: dict[str, bytes] = {}
    for quality in QUALITIES:
        lighter = {key: _again(data, quality) for key, data in files.items()}
        if sum(map(len, lighter.values())) <= budget:
            break
    keys = {key: digest_bytes(data) for key, data in lighter.items()}
    return keys, dict(sorted((digest_bytes(data), base64.b64encode(data).decode("ascii")) for data in lighter.values()))


def _again(data: bytes, quality: int) -> bytes:
    """A JPEG at another quality; as it is where that does not make it smaller."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(stream, "JPEG", quality=quality, optimize=True, subsampling=2)
    return min(stream.getvalue(), data, key=len)
