"""Pictures for whoever proposes words: the crops that drive a component, and its contrastive crops, in grids of three by three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from semlens_audit.atlas.image_boxes import image_box
from semlens_audit.atlas.opening import Atlas
from semlens_audit.images import read_image

__all__ = ["MOST", "ComponentGrids", "component_grids", "draw_grid", "shown_references"]

MOST = 9
"""Crops on a grid."""

_SIDE = 3
_TILE = 224
_GAP = 8


@dataclass(frozen=True)
class ComponentGrids:
    """What a component is shown by.

    Parameters
    ----------
    positive
        Its first reference samples' crops; RGB, ``3 * 224 + 4 * 8 = 704`` pixels a side, free places white.
    contrastive
        The contrastive crop of each, at the same place; ``None`` where concept embeddings are means of crops alone, and where none of
        the crops shown has one.
    """

    positive: Image.Image
    contrastive: Image.Image | None


def shown_references(references: int) -> int:
    """How many of so many reference samples are shown: at most `MOST` and at most half, since the others are what words are tested on."""
    return min(MOST, references // 2)


def component_grids(atlas: Atlas, layer: str, component: int) -> ComponentGrids | None:
    """The grids of a component of the audit's own index; ``None`` for one without reference samples.

    Crops are cut from the image files, whose pixels may be finer than those of the network's input.

    Raises
    ------
    DataError
        A sample cannot be read any longer.
    """
    source, paths = atlas.layers[layer], atlas.evidence.paths
    ids = source.reference_ids[component, : shown_references(source.reference_ids.shape[1])]
    ranks = np.flatnonzero(ids >= 0).tolist()
    if not ranks:
        return None
    crops = [_crop(atlas, paths[int(ids[rank])], source.boxes[component, rank].tolist()) for rank in ranks]
    alike = {} if atlas.look_alikes is None else atlas.look_alikes.of(layer, component)
    contrasts = [_crop(atlas, alike[rank].sample, alike[rank].box) if rank in alike else None for rank in ranks]
    return ComponentGrids(draw_grid(crops), draw_grid(contrasts) if any(contrasts) else None)


def draw_grid(tiles: Sequence[Image.Image | None]) -> Image.Image:
    """Up to nine pictures as one, row by row: each as large as its place allows and in its middle; without one, the place stays white."""
    if len(tiles) > MOST:
        raise ValueError(f"{len(tiles)} pictures do not fit on a grid of {MOST}")
    side = _SIDE * _TILE + (_SIDE + 1) * _GAP
    grid = Image.new("RGB", (side, side), (255, 255, 255))
    for place, tile in enumerate(tiles):
        if tile is None:
            continue
        scale = _TILE / max(tile.size)
        width, height = (max(1, round(edge * scale)) for edge in tile.size)
        row, column = divmod(place, _SIDE)
        left = _GAP + column * (_TILE + _GAP) + (_TILE - width) // 2
        top = _GAP + row * (_TILE + _GAP) + (_TILE - height) // 2
        grid.paste(tile.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    return grid


def _crop(atlas: Atlas, sample: str, box: Sequence[int]) -> Image.Image:
    image = read_image(atlas.data.root / sample)
    x0, y0, x1, y1 = (int(edge) for edge in box)
    part = image_box((x0, y0, x1, y1), image.size, atlas.plan.audit.subject.preprocessing)
    return image if part is None else image.crop(part)
