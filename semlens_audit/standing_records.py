"""How often the instrument is wrong, as far as that is known: parts of `semlens_audit.records.AuditRecord`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from semlens_audit.frozen import Frozen

__all__ = ["UNQUALIFIED", "Identity", "RateRecord", "StandingRecord"]


class Identity(Frozen):
    """Name and content digest of something the audit rests on."""

    name: str
    sha256: str
    detail: dict[str, Any] = Field(default_factory=dict)


class RateRecord(Frozen):
    """One operating characteristic of the instrument, with its interval or the reason why there is none."""

    name: str
    """See `semlens_audit.qualification.rates`."""
    label: str
    """In words, for a reader."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = Field(default=0.95, gt=0, lt=1)
    n: int = Field(ge=0)
    """Pairs of model and artefact that it rests on."""
    models: int = Field(ge=0)
    """Models that those pairs come from; pairs of one model are not independent."""
    method: str
    """How the interval was obtained."""
    not_measured: str | None = None

    @model_validator(mode="after")
    def _measured_or_reason(self) -> RateRecord:
        if (self.value is None) == (self.not_measured is None):
            raise ValueError("a rate has either a value or a reason for its absence")
        return self


UNQUALIFIED = (
    "The error rates of this instrument have not been qualified on a population of models with known reliance; the verdict rests "
    "on the intervals alone."
)
"""What an audit says that stands on no qualification."""


class StandingRecord(Frozen):
    """The qualification that an audit stands on, or why it stands on none."""

    qualification: Identity | None = None
    """File and digest; none: no qualification was found."""
    rates: tuple[RateRecord, ...] = ()
    """That apply to this audit: empty where anything differs from what was qualified."""
    differences: tuple[str, ...] = ()
    """What differs from the qualified instrument, one clause each."""
    statement: str
    """In one or two sentences, for a reader."""
