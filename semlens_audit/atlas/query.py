"""What is looked for in an index: a text, an image, a component, or several of them together, without what is not meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from semlens_audit.atlas.cards import component_named
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.query_images import as_jpeg
from semlens_audit.errors import UsageError
from semlens_audit.image_parts import image_part
from semlens_audit.scores import unit

__all__ = ["Directions", "Query"]

_NOTHING_LEFT = 1e-3
"""Part of a query's length that has to be left when what is not meant is taken away."""


@dataclass(frozen=True)
class Query:
    """What to look for; at least one of `text`, `image` and `like`.

    Parameters
    ----------
    text
        In plain words.
    image
        Image file.
    box
        Part of the image, x0, y0, x1, y1 in pixels of it; ``None``: all of it.
    like
        Component of the audit's own index, ``LAYER:COMPONENT``.
    without, without_image
        What is not meant, in words and as an image.
    weight
        How much the text counts beside image and component, which count 1 each.
    """

    text: str | None = None
    image: Path | None = None
    box: tuple[int, int, int, int] | None = None
    like: str | None = None
    without: str | None = None
    without_image: Path | None = None
    weight: float = 1.0

    def check(self) -> None:
        """Refuse a query that looks for nothing.

        Raises
        ------
        UsageError
            ``no-query``, ``box-without-image``, ``weight-without-text``.
        """
        if self.text is None and self.image is None and self.like is None:
            raise UsageError(
                "no-query",
                "Search needs a text, an image or a component to look for.",
                'Write e.g. search AUDIT.yaml "a ruler", or --image FILE, or --like LAYER:COMPONENT.',
            )
        if self.box is not None and self.image is None:
            raise UsageError("box-without-image", "A box is a part of an image, and there is none.", "Add --image FILE.")
        if not 0 < self.weight < float("inf"):
            raise UsageError("bad-weight", f"The weight {self.weight:g} is not above 0.", "Write e.g. --weight 2.")
        if self.weight != 1 and (self.text is None or (self.image is None and self.like is None)):
            raise UsageError(
                "weight-without-text",
                "A weight says how much a text counts beside an image or a component.",
                "Add what is missing, or leave the weight out.",
            )

    @property
    def words(self) -> str:
        """The query in one line, e.g. ``"ruler", like layer3:12, without "skin"``."""
        parts = [f"\u201c{self.text}\u201d"] if self.text is not None else []
        if self.image is not None:
            parts.append(f"the image {self.image.name}" + (f" within {self.box}" if self.box else ""))
        if self.like is not None:
            parts.append(f"component {self.like}")
        found = " and ".join(parts)
        unwanted = [f"\u201c{self.without}\u201d"] if self.without is not None else []
        unwanted += [f"the image {self.without_image.name}"] if self.without_image is not None else []
        return found + (f", without {' and '.join(unwanted)}" if unwanted else "")


class Directions:
    """A query as directions in the foundation model's space.

    A text is a displacement: the mean difference of its prompts to those of the empty text (SemanticLens, arXiv 2501.05398). So is an
    image, from the centre of a layer's random crops to its embedding, and a component, from that centre to its concept embedding.
    Displacements can be added although texts and images lie in different cones of the space of a CLIP, because what sets the cones
    apart is in neither of them. Each is scaled to length 1 and they are added; the sum is compared with the displacements of
    components. A text alone is compared with concept embeddings as they are, as the audit aligns them with concepts.

    What is not meant is projected out: the direction keeps what is orthogonal to it.

    Parameters
    ----------
    atlas
        The opened index.
    query
        What to look for.
    embed
        Gives the (d,) embedding of an image by the foundation model.
    probe
        Gives the (d,) probe of a text.
    """

    def __init__(
        self, atlas: Atlas, query: Query, embed: Callable[[Image.Image], np.ndarray], probe: Callable[[str], np.ndarray]
    ) -> None:
        query.check()
        self.query = query
        self.excluded: tuple[str, int] | None = component_named(atlas, query.like) if query.like is not None else None
        """Layer and component that is looked for, which is no answer itself."""
        self.picture: bytes | None = None
        """JPEG of the image that is looked for, to be shown."""
        image = image_part(query.image, query.box) if query.image is not None else None
        unwanted = image_part(query.without_image, None) if query.without_image is not None else None
        self._text = query.weight * unit(probe(query.text)) if query.text is not None else None
        self._without = probe(query.without) if query.without is not None else None
        self._image = embed(image) if image is not None else None
        self._without_image = embed(unwanted) if unwanted is not None else None
        self._like = unit(_meaning(atlas, *self.excluded)) if self.excluded is not None else None
        if image is not None:
            self.picture = as_jpeg(image)

    @property
    def centred(self) -> bool:
        """Whether concept embeddings are to be seen from the centre of their layer's random crops."""
        return self._image is not None or self._like is not None

    @property
    def only_text(self) -> bool:
        """Whether a text alone is looked for."""
        return not self.centred and self._without_image is None

    @property
    def of_layer(self) -> bool:
        """Whether the direction depends on the layer."""
        return self._image is not None or self._without_image is not None

    def towards(self, centre: np.ndarray | None) -> np.ndarray:
        """(d,) direction for a layer.

        Parameters
        ----------
        centre
            (d,) mean embedding of the layer's random crops; needed where the direction is `of_layer`.

        Raises
        ------
        UsageError
            ``nothing-left``: what is not meant is all that was meant.
        """
        parts = [part for part in (self._text, self._like) if part is not None]
        if self._image is not None:
            assert centre is not None
            parts.append(unit(self._image - centre))
        direction = np.sum(parts, axis=0)
        unwanted = [self._without] if self._without is not None else []
        if self._without_image is not None:
            assert centre is not None
            unwanted.append(self._without_image - centre)
        if not unwanted:
            return np.asarray(direction)
        basis, _ = np.linalg.qr(unit(np.stack(unwanted)).T)
        left = direction - basis @ (basis.T @ direction)
        if np.linalg.norm(left) < _NOTHING_LEFT * np.linalg.norm(direction):
            raise UsageError(
                "nothing-left",
                f"Nothing is left of {self.query.words}: for the foundation model both are the same.",
                "Leave out what is not meant, or word it differently.",
            )
        return np.asarray(left)


def _meaning(atlas: Atlas, layer: str, component: int) -> np.ndarray:
    """(d,) concept embedding of a component, seen from the centre of its layer's random crops."""
    rows = atlas.store.arrays(
        "SELECT component, centred FROM meaning WHERE stage = ? AND component = ?", (atlas.keys[f"null:{layer}"], component)
    )
    return np.asarray(rows["centred"][0], dtype=np.float64)
