"""The contrastive crops of components as people see them: whose they are, where, and what they show.

A reference sample's contrastive crop is the random crop most like its own of those samples that drive the component below average, see
`semlens_audit.contrast`; the contrastive embedding takes away what the two share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semlens_audit.contrast import NONE
from semlens_audit.data import DataSet
from semlens_audit.images import read_image
from semlens_audit.plan import Preprocessing
from semlens_audit.store import Store
from semlens_audit.subject import make_view
from semlens_audit.thumbnails import crop_thumbnail

__all__ = ["LookAlike", "LookAlikes"]


@dataclass(frozen=True)
class LookAlike:
    """The contrastive crop of one reference sample.

    Parameters
    ----------
    sample
        Path relative to the data's root.
    box
        x0, y0, x1, y1 in pixels of the network's input, x1 and y1 exclusive.
    """

    sample: str
    box: tuple[int, int, int, int]


class LookAlikes:
    """The contrastive crops of an audit's components.

    Parameters
    ----------
    store
        Open for as long as this is used.
    keys
        Stage -> key in the store; ``contrast:LAYER`` and ``null:LAYER`` are looked at.
    data
        The samples that random crops were taken from.
    preprocessing
        How the network sees them.
    """

    def __init__(self, store: Store, keys: dict[str, str], data: DataSet, preprocessing: Preprocessing) -> None:
        self._store, self._keys, self._data, self._preprocessing = store, keys, data, preprocessing
        self._layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, layer: str, component: int) -> dict[int, LookAlike]:
        """Rank of a reference sample -> its contrastive crop; ranks without one are left out."""
        found, crops = self._layer(layer)
        start, end = np.searchsorted(found[:, 0], [component, component + 1])
        out = {}
        for _, rank, position in found[start:end].tolist():
            sample, x0, y0, x1, y1 = crops[position].tolist()
            out[rank] = LookAlike(self._data.samples[sample].path, (x0, y0, x1, y1))
        return out

    def _layer(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) component, rank and position of a layer's contrastive crops, and (M, 5) sample and box of its random crops."""
        if layer not in self._layers:
            found = self._store.arrays(
                "SELECT component, rank, contrast FROM contrast WHERE stage = ? AND contrast <> ? ORDER BY component, rank",
                (self._keys[f"contrast:{layer}"], NONE),
            )
            crops = self._store.arrays(
                "SELECT sample, x0, y0, x1, y1 FROM null_region WHERE stage = ? ORDER BY position", (self._keys[f"null:{layer}"],)
            )
            columns = (found.values(), crops.values())
            self._layers[layer] = tuple(np.stack([one.astype(np.int64) for one in each], axis=1) for each in columns)  # type: ignore[assignment]
        return self._layers[layer]

    def picture(self, one: LookAlike) -> bytes:
        """JPEG of a contrastive crop, as large as those of reference samples.

        Raises
        ------
        DataError
            The sample cannot be read any longer.
        """
        return crop_thumbnail(make_view(read_image(self._data.root / one.sample), self._preprocessing), one.box)
