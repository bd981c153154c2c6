"""One measured number: value, interval, sample size, or the reason why there is none; and the states of a finding."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from semlens_audit.frozen import Frozen

__all__ = ["Interval", "Measurement", "Share", "State"]

State = Literal["satisfied", "not_satisfied", "inconclusive", "not_measured"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Interval(Frozen):
    """A two-sided confidence interval."""

    low: float
    high: float
    level: float = Field(gt=0, lt=1)
    """Nominal coverage, e.g. 0.95."""
    method: str
    """How it was obtained, e.g. ``bootstrap over samples and reference samples, 1000 draws``."""
    nested: tuple[tuple[float, float, float], ...] = ()
    """Level, low and high of the intervals at other levels, widest first; p-values follow from them. Only where a check asks."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return written if self.nested else {name: value for name, value in written.items() if name != "nested"}

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"interval upside down: {self.low} > {self.high}")
        return self


class Measurement(Frozen):
    """One number with unit, interval and sample size, or the reason why there is none."""

    quantity: str
    """Name of the quantity: ``reliance``, ``behavioural effect``, ``clarity``, ``polysemanticity``, ``redundancy``."""
    unit: Literal["share", "logits", "cosine", "difference"]
    """share: of the class's relevance in the layer, 0 to 1. logits: change of the class margin. cosine: -1 to 1; of polysemanticity,
    1 minus a cosine, 0 to 1. difference: between two shares of samples, -1 to 1."""
    value: float | None = None
    interval: Interval | None = None
    n: int = Field(ge=0)
    """Samples it rests on."""
    not_measured: str | None = None
    """Reason in one sentence, where `value` is none."""

    @model_validator(mode="after")
    def _measured_or_reason(self) -> Measurement:
        if (self.value is None) == (self.not_measured is None):
            raise ValueError("a measurement has either a value or a reason for its absence")
        if self.value is not None and self.interval is None:
            raise ValueError("a measured value needs an interval")
        return self
