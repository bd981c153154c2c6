"""What the components of a layer of an open index mean, see `semlens_audit.meanings`."""

from __future__ import annotations

from semlens_audit.atlas.opening import Atlas
from semlens_audit.interpretability import DRAWS, draw_weights
from semlens_audit.meanings import LayerMeanings, recentred
from semlens_audit.units import UnitWeights

__all__ = ["DRAWS", "Meanings", "draw_weights", "recentred"]

class Meanings(LayerMeanings):
    """Concept embeddings of one layer's components of an open index.

    Parameters
    ----------
    atlas
        Open index.
    layer
        One of the audit's layers.
    weights
        Of the audit's independent units; where two layers of the same data are compared, the same for both.
    """

    def __init__(self, atlas: Atlas, layer: str, weights: UnitWeights) -> None:
        super().__init__(atlas.layers[layer], atlas.evidence.units, weights)
