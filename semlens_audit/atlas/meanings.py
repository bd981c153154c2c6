"""What the components of a layer of an open index mean, see `semlens_audit.meanings`, with few enough draws to be looked at."""

from __future__ import annotations

from semlens_audit.atlas.opening import Atlas
from semlens_audit.draws import draw_units
from semlens_audit.meanings import LayerMeanings, recentred
from semlens_audit.plan import AuditPlan
from semlens_audit.units import UnitWeights

__all__ = ["DRAWS", "Meanings", "draw_weights", "recentred"]

DRAWS = 200
"""Most draws of the bootstrap; an audit that declares fewer gets no more."""


def draw_weights(plan: AuditPlan) -> UnitWeights:
    """Bootstrap weights of an audit's units: the first `DRAWS` of those that its checks use."""
    settings = plan.audit.measurement
    limited = settings.model_copy(update={"bootstrap": min(settings.bootstrap, DRAWS)})
    return draw_units(plan.model_copy(update={"audit": plan.audit.model_copy(update={"measurement": limited})}))


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
