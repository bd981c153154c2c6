"""What an index holds beyond what an audit declares, so that a report can say whether its verdict hangs on those settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from semlens_audit.evidence import LayerEvidence
from semlens_audit.plan import AuditPlan, MeasurementSettings

__all__ = ["FirstReferences", "fewer", "indexed", "slots"]

_CUT = ("reference_ids", "activations", "boxes")
_LATE = ("embeddings", "relevance", "conservation", "null_embeddings", "residuals", "null_residuals")


def slots(settings: MeasurementSettings) -> int:
    """Reference samples that an index keeps of each component: four thirds of the declared number m, rounded up."""
    return -(-4 * settings.reference_samples // 3)


def fewer(settings: MeasurementSettings) -> int:
    """Two thirds of the declared number of reference samples, rounded to the nearest whole number, at least 2."""
    return max(2, (4 * settings.reference_samples + 3) // 6)


def indexed(plan: AuditPlan) -> AuditPlan:
    """The plan that an index is built for: all `slots`, and the layers that findings are only compared with."""
    audit = plan.audit
    settings = audit.measurement.model_copy(update={"reference_samples": slots(audit.measurement)})
    layers = (*audit.layers, *audit.sensitivity.layers)
    return plan.model_copy(update={"audit": audit.model_copy(update={"measurement": settings, "layers": layers})})


class FirstReferences(LayerEvidence):
    """A layer's evidence with the first reference samples of each component only; large arrays are read when first asked for.

    Parameters
    ----------
    source
        The layer with at least `m` places for reference samples.
    m
        Places to keep.

    Raises
    ------
    ValueError
        If the source has fewer places.
    """

    def __init__(self, source: LayerEvidence, m: int) -> None:
        if not 1 <= m <= source.reference_ids.shape[1]:
            raise ValueError(f"{m} of {source.reference_ids.shape[1]} reference samples")
        values: dict[str, Any] = {
            field.name: getattr(source, field.name) for field in fields(LayerEvidence) if field.name not in _LATE
        }
        values.update({name: np.ascontiguousarray(values[name][:, :m]) for name in _CUT})
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_source", source)

    @property
    def embeddings(self) -> np.ndarray:  # type: ignore[override]
        """(K, m, d) float32; see `LayerEvidence`. A view of the source's, which is not held twice."""
        source: LayerEvidence = self._source  # type: ignore[attr-defined]
        return source.embeddings[:, : self.reference_ids.shape[1]]

    @property
    def residuals(self) -> np.ndarray | None:  # type: ignore[override]
        """(K, m, d) float32 or None; see `LayerEvidence`."""
        every: np.ndarray | None = self._source.residuals  # type: ignore[attr-defined]
        return None if every is None else every[:, : self.reference_ids.shape[1]]

    @property
    def null_residuals(self) -> np.ndarray | None:  # type: ignore[override]
        """(M, d) float32 or None; see `LayerEvidence`."""
        return self._source.null_residuals  # type: ignore[attr-defined, no-any-return]

    def relevance_blocks(self, classes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Relevance of one class for each sample; see `LayerEvidence.relevance_blocks`."""
        return self._source.relevance_blocks(classes)  # type: ignore[attr-defined, no-any-return]

    @property
    def relevance(self) -> np.ndarray:  # type: ignore[override]
        """(N, C, K) float32; see `LayerEvidence`."""
        return self._source.relevance  # type: ignore[attr-defined, no-any-return]

    @property
    def conservation(self) -> np.ndarray:  # type: ignore[override]
        """(N, C) float32; see `LayerEvidence`."""
        return self._source.conservation  # type: ignore[attr-defined, no-any-return]

    @property
    def null_embeddings(self) -> np.ndarray:  # type: ignore[override]
        """(M, d) float32; see `LayerEvidence`."""
        return self._source.null_embeddings  # type: ignore[attr-defined, no-any-return]
