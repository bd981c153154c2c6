"""What switching components off showed: parts of `semlens_audit.records.AuditRecord`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from semlens_audit.frozen import Frozen
from semlens_audit.measured import Measurement

__all__ = ["AblationRecord", "ConfirmationRecord", "ConfirmationState", "ControlRecord", "InterventionRecord"]


class ControlRecord(Frozen):
    """Random sets of components that an ablation is compared with."""

    kind: Literal["matched", "complement", "none"]
    """matched: random sets of components not assigned to the concept, as relevant as the concept's. complement: the concept's
    components hold more relevance than all others together, so all others are the control and their effect is scaled up to equal
    relevance. none: no other component carries relevance."""
    sets: int = Field(default=0, ge=0)
    """Different sets."""
    share: float | None = None
    """Mean share of the class's relevance that a set holds."""
    error: float | None = None
    """Mean size of the difference to the concept's share, as a part of it."""
    size: float | None = None
    """Mean number of components of a set."""


class AblationRecord(Frozen):
    """What changes when the components of one concept are switched off, by one method, compared with the control sets."""

    method: Literal["mean", "resampling"]
    mediated: Measurement
    """Effect of the concept on the class margin that flows through the components: on samples that hold it against those that do
    not, margin of the whole network minus margin with the components switched off, in logits."""
    margin: Measurement
    """Mean change of the class margin over samples of all classes, in logits."""
    accuracy: Measurement
    """Change of accuracy."""
    flips: Measurement
    """Share of predictions that change, among samples that hold the concept."""
    contrast: Measurement
    """Size of the mediated effect minus the mean size of the control sets', in logits."""
    control_mediated: tuple[float, ...] = ()
    """Mediated effect of each control set, in logits."""
    control_margin: tuple[float, ...] = ()
    control_accuracy: tuple[float, ...] = ()
    control_flips: tuple[float, ...] = ()


ConfirmationState = Literal["confirmed", "not_confirmed", "not_used", "not_tested"]


class InterventionRecord(Frozen):
    """One concept's components in one layer, switched off: whether decisions for one class rely on the concept through them."""

    class_name: str
    layer: str
    concept: str
    components: tuple[int, ...]
    """Those assigned to the concept, in order."""
    share: float
    """Of the class's relevance in the layer that they hold."""
    samples: int
    """Test samples on which they were switched off."""
    holding: int
    """Of these, samples that hold the concept."""
    source: Literal["foundation model", "attributes"] | None = None
    """Who says which sample holds it."""
    controls: ControlRecord = ControlRecord(kind="none")
    ablations: tuple[AblationRecord, ...] = ()
    state: ConfirmationState = "not_tested"
    sentence: str = ""
    """What was concluded and why, or why not."""


class ConfirmationRecord(Frozen):
    """What switching components off says of a finding."""

    state: ConfirmationState
    sentence: str
