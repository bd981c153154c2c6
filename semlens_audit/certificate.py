"""The qualification of the instrument as a value: what was tested, how, and how often the verdict was right.

The content of ``qualification.json``. Light: read with every audit, so that its record can say which error rates apply.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semlens_audit.bounded import JsonLimits, LimitError, read_bytes, read_json
from semlens_audit.digest import digest
from semlens_audit.errors import IntegrityError, UsageError
from semlens_audit.records import FoundationRecord, RateRecord, State, ToolRecord

__all__ = [
    "ALL",
    "SCHEMA_VERSION",
    "Estimate",
    "Group",
    "MemberRecord",
    "Pair",
    "Part",
    "Qualification",
    "Repeat",
    "WorldRecord",
    "read_qualification",
]

SCHEMA_VERSION = "1.0"
ALL = "all"
"""Stands for every world, every architecture, both parts."""

Part = Literal["development", "held_back"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Value):
    """A number with its 95 % interval, or the reason why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = Field(default=0, ge=0)
    """Scenes or samples it rests on."""
    not_measured: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Estimate:
        if (self.value is None) == (self.not_measured is None):
            raise ValueError("an estimate has either a value or a reason for its absence")
        if (self.value is None) != (self.low is None) or (self.value is None) != (self.high is None):
            raise ValueError("an estimate has an interval exactly where it has a value")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"interval upside down: {self.low} > {self.high}")
        return self

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


class Pair(_Value):
    """One model and one artefact: what is true, and what the audit said."""

    member: str
    world: str
    architecture: str
    part: Part
    artefact: str
    tied: float | None = None
    """How often the artefact came with the audited class in the training data; none: in a quarter of both classes."""
    true_effect: Estimate
    """Mean change of the margin of the audited class when the artefact is switched on for the same scenes, logits."""
    accuracy_change: Estimate
    """Mean change of the share of right decisions on the same scenes, -1 to 1."""
    share: Estimate
    """Mechanistic line: share of the class's relevance in the layer, the largest over audited layers."""
    effect: Estimate
    """Behavioural line: change of the class margin with the artefact's presence, logits, signed."""
    findings: dict[str, State]
    """check (with its layer) -> state, of all checks on this artefact alone."""
    confirmation: str | None = None
    """What intervention said of the mechanistic finding, where it was asked."""

    @property
    def flagged(self) -> bool:
        """Whether any finding on this artefact is not satisfied."""
        return "not_satisfied" in self.findings.values()

    @property
    def passed(self) -> bool:
        """Whether there are findings and all of them are satisfied."""
        return bool(self.findings) and set(self.findings.values()) == {"satisfied"}


class Repeat(_Value):
    """One finding in two audits of the same model: the second on other test data, with other seeds."""

    member: str
    world: str
    architecture: str
    part: Part
    finding: str
    first: State
    second: State


class MemberRecord(_Value):
    """One audited model of the qualification."""

    name: str
    world: str
    architecture: str
    part: Part
    tied: dict[str, float] = Field(default_factory=dict)
    weights_sha256: str
    accuracy: float
    """Share of right decisions on scenes in which no artefact goes with a class."""
    verdict: State
    shipped: bool = False
    """Whether its weights come with the tool instead of having been trained for this qualification."""


class WorldRecord(_Value):
    """One rendered world."""

    name: str
    title: str
    spec: str
    spec_sha256: str
    audited_class: str
    artefacts: tuple[str, ...]
    criteria: dict[str, float]
    """kind of check -> threshold that all its checks on single artefacts share."""
    foundation_model: FoundationRecord
    data_source: str
    samples: int
    """Test samples of each audit."""
    multiplicity: str
    """Correction that the spec asks for."""


class Group(_Value):
    """Operating characteristics over a part of the pairs."""

    part: Part | Literal["all"]
    world: str
    architecture: str
    pairs: int
    models: int
    rates: tuple[RateRecord, ...]

    def rate(self, name: str) -> RateRecord:
        """The rate of that name; KeyError if there is none."""
        for rate in self.rates:
            if rate.name == name:
                return rate
        raise KeyError(name)


class Qualification(_Value):
    """Everything that a qualification report shows, and what audits compare themselves with."""

    schema_version: str = SCHEMA_VERSION
    tool: ToolRecord
    created: str
    """UTC, ISO 8601."""
    command: str
    quick: bool
    """Whether it is the quick part: few models, trained briefly."""
    code: dict[str, str]
    """module -> digest of its code without comments and docstrings, of all modules that measure and decide."""
    settings: dict[str, Any]
    """Measurement settings that every audit shared."""
    attributions: dict[str, str]
    """family of architectures -> attribution it was qualified with."""
    layers: dict[str, tuple[str, ...]]
    """family of architectures -> audited layers."""
    parameters: dict[str, Any]
    """Of the campaign: training images, scenes of the truth, and so on."""
    worlds: tuple[WorldRecord, ...]
    members: tuple[MemberRecord, ...]
    pairs: tuple[Pair, ...]
    repeats: tuple[Repeat, ...] = ()
    groups: tuple[Group, ...]
    environment: dict[str, str] = Field(default_factory=dict)

    def group(self, part: str = "held_back", world: str = ALL, architecture: str = ALL) -> Group | None:
        """The group of that name, or ``None`` where it has no pair."""
        wanted = (part, world, architecture)
        return next((group for group in self.groups if (group.part, group.world, group.architecture) == wanted), None)

    @property
    def sha256(self) -> str:
        """Digest of the canonical JSON."""
        return digest(self.model_dump(mode="json"))


_LIMITS = JsonLimits(size=32_000_000, values=1_000_000)


class _Version(BaseModel):
    schema_version: str


def read_qualification(path: Path) -> Qualification:
    """Read ``qualification.json``.

    Raises
    ------
    UsageError
        ``no-qualification``: there is no such file; ``qualification-version``: it was written under another schema version.
    IntegrityError
        ``invalid-qualification``: it is no valid qualification.
    """
    hint = "Give the qualification.json that `semlens-audit qualify` wrote."
    try:
        data = read_bytes(path, _LIMITS.size)
        text = data.decode("utf-8")
    except (OSError, LimitError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error if isinstance(error, LimitError) else "it is not UTF-8"
        raise UsageError("no-qualification", f"The qualification cannot be read: {why}.", hint, file=str(path)) from error
    try:
        read_json(data, _LIMITS)
    except LimitError as error:
        raise IntegrityError("invalid-qualification", f"No valid qualification: {error}.", hint, file=str(path)) from error
    try:
        version = _Version.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise UsageError(
                "qualification-version",
                f"The qualification is of schema version {version}, not {SCHEMA_VERSION}.",
                "Qualify again with this version of semlens-audit.",
                file=str(path),
            )
        return Qualification.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        said = ": ".join(part for part in ("No valid qualification", ".".join(map(str, first["loc"])), first["msg"]) if part)
        raise IntegrityError("invalid-qualification", f"{said}.", hint, file=str(path)) from error
