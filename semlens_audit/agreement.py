"""Two records of the same audit, held against each other: identical to the bit, within a stated tolerance, or different.

Tolerance is a part of each interval's half-width. At the default of 5 %, an estimate that moves by as much lowers the coverage of
a 95 % interval from 95.0 % to 94.9 % (normal approximation: a shift of 0.05 × 1.96 standard errors), which is less than any reader
could act on; an interval that no sampling moves, as the draws are seeded, has no other reason to differ than arithmetic in another
order. On the same machine, with the same number of threads, everything is expected to be identical.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from semlens_audit.errors import ExitCode
from semlens_audit.frozen import Frozen
from semlens_audit.measured import Measurement, State
from semlens_audit.records import AuditRecord

__all__ = ["TOLERANCE", "Agreement", "Compared", "Match", "agree", "measurements"]

TOLERANCE = 0.05
"""Default tolerance, as a part of an interval's half-width."""

Match = Literal["identical", "within_tolerance", "differs"]

_CIRCUMSTANCES = frozenset(
    {
        "schema_version", "tool", "created", "title", "audit", "spec", "responsible", "limitations", "environment", "command",
        "qualification", "stages", "documents", "catalogues", "lock", "waivers", "gate", "change",
    }
)  # fmt: skip
"""Fields of a record on which nothing measured depends, or that say when, where and by what it was made."""
_MEASUREMENT = frozenset({"quantity", "unit", "n", "value", "interval"})
_INFLUENCE = frozenset({"quantity", "length", "values"})
_NOISE = 1e-5
"""Sums in another order, as another number of threads makes them, differ by less than this, relatively."""


class Compared(Frozen):
    """One measurement of a record against the same one of another."""

    what: str
    """Which, in words."""
    match: Match
    before: float | None = None
    after: float | None = None
    deviation: float | None = None
    """Largest difference of the value and both ends of the interval, as a part of the half-width; none where that cannot be said."""
    reason: str = ""
    """Why it differs, where it does."""


class Agreement(Frozen):
    """What a repetition came to."""

    tolerance: float = Field(ge=0)
    compared: tuple[Compared, ...]
    states: tuple[tuple[str, State | None, State | None], ...]
    """`Finding.id`, state before and after, of every finding whose states are not the same."""
    verdict: tuple[State, State]
    """Before and after."""
    fields: tuple[str, ...]
    """Fields of the record that hold something else, beyond the numbers compared."""
    environment: tuple[str, ...]
    """What differs between the two machines, one clause each."""

    @property
    def same_environment(self) -> bool:
        """Whether tool, packages and machine are the same, so that every bit is expected to be."""
        return not self.environment

    def number(self, match: Match) -> int:
        """How many measurements match in that way."""
        return sum(one.match == match for one in self.compared)

    @property
    def reproduced(self) -> bool:
        """Whether every measurement is identical or within tolerance, and every state and the verdict are the same.

        Where the same tool and packages on the same kind of machine gave every measurement to the bit, everything else has to be the
        same too.
        """
        agreed = not self.number("differs") and not self.states and self.verdict[0] == self.verdict[1]
        exact = self.same_environment and self.number("identical") == len(self.compared)
        return agreed and bool(self.compared) and not (exact and self.fields)

    @property
    def exit_code(self) -> ExitCode:
        """0 where it was reproduced, else 6."""
        return ExitCode.SATISFIED if self.reproduced else ExitCode.INTEGRITY


def measurements(record: AuditRecord) -> Iterator[tuple[str, Measurement]]:
    """Every measurement of a record, with what it is of."""
    for finding in record.findings:
        yield f"finding {finding.id}", finding.measurement
    for layer in record.layers:
        yield f"clarity, {layer.layer}", layer.clarity
    for place in record.class_layers:
        where = f"{place.class_name}, {place.layer}"
        for concept, value in place.concepts.items():
            yield f"reliance on {concept}, {where}", value
        for part in ("valid", "spurious", "neutral", "unexplained"):
            yield f"{part} relevance, {where}", getattr(place, part)
    for effect in record.effects:
        yield f"behavioural effect of {effect.concept}, {effect.class_name} ({effect.presence.source})", effect.effect
    for pair in record.pair_effects:
        yield f"pair effect of {pair.concept}, {pair.class_name}", pair.effect
    for entry in record.presence_in_data:
        for group in entry.subgroups:
            yield f"presence of {entry.concept}, {group.class_name}", group.difference
            yield f"subgroup gap of {entry.concept}, {group.class_name}", group.gap
    for one in record.interventions:
        for ablation in one.ablations:
            where = f"{one.concept} switched off ({ablation.method}), {one.class_name}, {one.layer}"
            for part in ("mediated", "margin", "accuracy", "flips", "contrast"):
                yield f"{part}: {where}", getattr(ablation, part)


def agree(old: AuditRecord, new: AuditRecord, tolerance: float = TOLERANCE) -> Agreement:
    """Hold a repeated audit against the record of the first.

    Parameters
    ----------
    old, new
        The record, and that of the repetition.
    tolerance
        Largest deviation of a value, or of an end of its interval, as a part of the half-width of the interval of `old`.
    """
    states_old = {finding.id: finding.state for finding in old.findings}
    states_new = {finding.id: finding.state for finding in new.findings}
    return Agreement(
        tolerance=tolerance,
        compared=tuple(_compared(_numbered(old), _numbered(new), tolerance)),
        states=tuple(
            (name, states_old.get(name), states_new.get(name))
            for name in dict.fromkeys([*states_old, *states_new])
            if states_old.get(name) != states_new.get(name)
        ),
        verdict=(old.verdict.state, new.verdict.state),
        fields=_fields(old, new),
        environment=_environment(old, new),
    )


def _numbered(record: AuditRecord) -> dict[str, Measurement]:
    """What -> measurement; a name that occurs again gets a number."""
    found: dict[str, Measurement] = {}
    for what, value in measurements(record):
        name, number = what, 2
        while name in found:
            name, number = f"{what} ({number})", number + 1
        found[name] = value
    return found


def _compared(old: Mapping[str, Measurement], new: Mapping[str, Measurement], tolerance: float) -> Iterator[Compared]:
    for what, before in old.items():
        after = new.get(what)
        if after is None:
            yield Compared(what=what, match="differs", before=before.value, reason="the repetition has no such measurement")
        else:
            yield _one(what, before, after, tolerance)
    for what, after in new.items():
        if what not in old:
            yield Compared(what=what, match="differs", after=after.value, reason="the record has no such measurement")


def _one(what: str, before: Measurement, after: Measurement, tolerance: float) -> Compared:
    def compared(match: Match, reason: str = "", deviation: float | None = None) -> Compared:
        return Compared(
            what=what, match=match, before=before.value, after=after.value, reason=reason, deviation=deviation
        )

    if before == after:
        return compared("identical", deviation=None if before.value is None else 0.0)
    if before.value is None or after.value is None:
        if before.value is after.value:
            return compared("differs", f"not measured for another reason: {after.not_measured}")
        missing = "was not measured before" if before.value is None else f"is not measured: {after.not_measured}"
        return compared("differs", missing)
    if (before.quantity, before.unit, before.n) != (after.quantity, after.unit, after.n):
        return compared("differs", f"it rests on {after.n:,} samples instead of {before.n:,}, or is another quantity")
    ours, theirs = before.interval, after.interval
    if ours is None or theirs is None or (ours.level, ours.method) != (theirs.level, theirs.method):
        return compared("differs", "its interval was obtained in another way")
    apart = max(abs(after.value - before.value), abs(theirs.low - ours.low), abs(theirs.high - ours.high))
    half = (ours.high - ours.low) / 2
    if apart == 0:
        return compared("differs", "its intervals of other levels differ", 0.0)
    if half == 0:
        return compared("differs", "its interval has no width, and it is not identical")
    deviation = apart / half
    if deviation <= tolerance:
        return compared("within_tolerance", deviation=deviation)
    return compared("differs", f"by {100 * deviation:.3g} % of the interval's half-width", deviation)


def _content(record: AuditRecord) -> dict[str, Any]:
    """What was measured and decided, and what shows it."""
    whole: dict[str, Any] = record.model_dump(mode="json", by_alias=True)
    return {name: value for name, value in whole.items() if name not in _CIRCUMSTANCES}


def _fields(old: AuditRecord, new: AuditRecord) -> tuple[str, ...]:
    before, after = _content(old), _content(new)
    return tuple(name for name in before if not _alike(before[name], after[name]))


def _alike(old: Any, new: Any) -> bool:
    """Whether two JSON values are the same, but for the last digits of numbers, and for measurements, which are compared by themselves."""
    if isinstance(old, dict) and isinstance(new, dict):
        if _MEASUREMENT.issubset(old) and _MEASUREMENT.issubset(new):
            return True
        if _INFLUENCE.issubset(old) and _INFLUENCE.issubset(new):
            old, new = _unpacked(old), _unpacked(new)
        return old.keys() == new.keys() and all(_alike(value, new[name]) for name, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_alike, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=_NOISE, abs_tol=_NOISE)
    return type(old) is type(new) and bool(old == new)


def _unpacked(influence: dict[str, Any]) -> dict[str, Any]:
    """An influence with its packed numbers as a list."""
    try:
        packed = np.frombuffer(base64.b64decode(influence["values"], validate=True), dtype="<f4")
    except (TypeError, ValueError):
        return influence
    return {**influence, "values": packed.astype(float).tolist()}


def _environment(old: AuditRecord, new: AuditRecord) -> tuple[str, ...]:
    found = []
    pairs = {
        "tool": (f"{old.tool.name} {old.tool.version}", f"{new.tool.name} {new.tool.version}"),
        "revision": (old.tool.revision or "none", new.tool.revision or "none"),
        "Python": (old.environment.python, new.environment.python),
        "platform": (old.environment.platform, new.environment.platform),
    }
    packages = dict.fromkeys([*old.environment.packages, *new.environment.packages])
    for name in packages:
        pairs[name] = (old.environment.packages.get(name, "not listed"), new.environment.packages.get(name, "not listed"))
    for name, (before, after) in pairs.items():
        if before != after:
            found.append(f"{name}: {before} then, {after} now")
    keys = sorted(name for name in {*old.stages, *new.stages} if old.stages.get(name) != new.stages.get(name))
    if keys:
        shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        found.append(f"code or settings of these stages: {shown}")
    return tuple(found)
