"""What changed since the last release: the findings of one record held against those of an earlier one.

A pure function of two records: no clock, no file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semlens_audit.change_words import CHANGE_WORDS, GRAVITY
from semlens_audit.checks import LINES, Quantity
from semlens_audit.comparable import criterion_changed, obstacle, refusal, remarks, signed
from semlens_audit.difference import correlation, difference, difference_of_sizes, influence_values
from semlens_audit.errors import ExitCode, IntegrityError
from semlens_audit.measured import Measurement
from semlens_audit.multiplicity import p_value
from semlens_audit.record_file import record_digest
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.release_records import BaselineRecord, ChangeEntry, ChangeLabel, ChangeRecord, InfluenceRecord
from semlens_audit.statistics import holm
from semlens_audit.wording import STATES, capital, count, format_date, join

__all__ = ["compare", "exit_code"]


def compare(old: AuditRecord, new: AuditRecord, *, level: float = 0.95) -> ChangeRecord:
    """Label each finding by what became of it since `old`.

    What decides the label is, in this order:

    1. *Added, removed*: only one record has the finding (`Finding.id`: check and layer, or check and concept).
    2. *Not comparable*: a value is missing, or the quantity or its criterion is another one, see
       `semlens_audit.comparable.obstacle`. Where only the criterion differs, the difference is given all the same.
    3. *New, fixed*: satisfied then and not satisfied now, or the reverse. A release hangs on states, so a change of state is never
       explained away as noise; whether the value itself moved by more than noise is said beside it. A change from or to
       "inconclusive" is none of these two: nothing had been concluded.
    4. *Worsened, improved*: the difference is beyond noise, away from the criterion or towards it (above or below the
       old value for a criterion "at most", the reverse for "at least").
    5. *Within noise*: it is not.

    Noise is judged by the interval of the difference, new minus old. Where both audits saw the same samples, it is paired: what both
    estimates owe to the same samples cancels (`semlens_audit.influence`, `semlens_audit.difference`); elsewhere they are taken as
    independent, which is cautious where samples are in common. Where the size of an effect is held against a criterion, sizes
    are compared (`semlens_audit.difference.difference_of_sizes`).

    The more findings are compared, the more differ by chance. P-values of all comparable findings are therefore adjusted together by
    Holm's method, which is valid under any dependence: with probability at least `level`, no finding whose true value did not
    change is called worsened or improved. The intervals shown are of the single difference.

    Parameters
    ----------
    old
        The baseline.
    new
        The record that is compared.
    level
        Confidence level, in (0, 1).

    Returns
    -------
    ChangeRecord
        Entries in the order of the new record's findings, then those that only the baseline has. With `ChangeRecord.refused` and no
        entry where spec or foundation model is another one.

    Raises
    ------
    IntegrityError
        ``invalid-influences``, ``invalid-measurement``: a record holds numbers that cannot be.
    """
    baseline = BaselineRecord(
        record_sha256=record_digest(old),
        created=old.created,
        subject=old.subject.name,
        version=old.subject.version,
        weights_sha256=old.subject.weights_sha256,
        data_sha256=old.data.sha256,
        tool=f"{old.tool.name} {old.tool.version}",
    )
    reason = refusal(old, new)
    if reason is not None:
        return ChangeRecord(baseline=baseline, refused=reason, level=level, sentence=f"Nothing is compared. {reason}")
    earlier = {finding.id: finding for finding in old.findings}
    later = {finding.id for finding in new.findings}
    influences = _Influences(old, new)
    entries = [_entry(old, new, earlier.get(finding.id), finding, influences, level) for finding in new.findings]
    entries = _labelled(entries, new, level)
    entries += [_removed(finding) for finding in old.findings if finding.id not in later]
    return ChangeRecord(
        baseline=baseline, entries=tuple(entries), level=level, sentence=_gist(entries, baseline, remarks(old, new))
    )


def exit_code(change: ChangeRecord) -> ExitCode:
    """What a comparison by itself asks for.

    Returns
    -------
    ExitCode
        2 where nothing could be compared. 1 where something is new or worsened. 3 where something that the baseline had measured
        is not comparable or no longer checked: nothing then shows that it is no worse. 0 otherwise.
    """
    if change.refused is not None:
        return ExitCode.USAGE
    labels = {entry.label for entry in change.entries}
    if labels & {"new", "worsened"}:
        return ExitCode.NOT_SATISFIED
    lost = [
        entry
        for entry in change.entries
        if entry.label in ("not_comparable", "removed") and entry.old is not None and entry.old.value is not None
    ]
    return ExitCode.INCONCLUSIVE if lost else ExitCode.SATISFIED


class _Influences:
    """How the values of two records go together."""

    def __init__(self, old: AuditRecord, new: AuditRecord) -> None:
        self._old, self._new = ({one.quantity: one for one in record.influences} for record in (old, new))

    def correlation(self, before: Finding, after: Finding) -> float | None:
        """Correlation of both estimates; None where they do not rest on the same samples, or nothing is known of it."""
        first, second = self._old.get(_key(before)), self._new.get(_key(after))
        if first is None or second is None or (first.basis, first.basis_sha256) != (second.basis, second.basis_sha256):
            return None
        one, other = _values(first), _values(second)
        if len(one) != len(other):
            raise _damaged(f"influences on {first.quantity} differ in number between records that name the same samples")
        return correlation(one, other)


def _key(finding: Finding) -> str:
    absolute = finding.kind in LINES and finding.criterion.operator == "at_most"
    return Quantity(finding.kind, finding.class_name, finding.layer, finding.concepts, absolute).key


def _values(record: InfluenceRecord) -> np.ndarray:
    try:
        return influence_values(record)
    except ValueError as error:
        raise _damaged(str(error)) from error


def _damaged(what: str, slug: str = "invalid-influences") -> IntegrityError:
    return IntegrityError(slug, f"The records cannot be compared: {what}.", "Take the files as `run` wrote them.")


def _entry(
    old: AuditRecord, new: AuditRecord, before: Finding | None, after: Finding, influences: _Influences, level: float
) -> ChangeEntry:
    """One finding with its difference, not yet labelled by it."""
    now = {"finding": after.id, "after": after.state, "new": _plain(after.measurement)}
    if before is None:
        return ChangeEntry(
            **now, label="added", sentence=f"The baseline has no such result; {STATES[after.state].lower()} now."
        )
    both = {**now, "before": before.state, "old": _plain(before.measurement)}
    reason = obstacle(old, new, before, after)
    if reason is not None:
        return ChangeEntry(**both, label="not_comparable", sentence=f"Not comparable: {reason.rstrip('.')}.")
    rho = influences.correlation(before, after)
    first, second = signed(old, before), signed(new, after)
    sizes = after.kind in LINES and after.criterion.operator == "at_most"
    try:
        apart = (difference_of_sizes if sizes else difference)(first, second, rho or 0.0, level)
    except ValueError as error:
        raise _damaged(f"{after.id} holds numbers that cannot be", "invalid-measurement") from error
    both |= {"difference": apart, "paired": rho is not None}
    reason = criterion_changed(before, after)
    if reason is not None:
        both["difference"] = _plain(apart)
        return ChangeEntry(**both, label="not_comparable", sentence=f"States are not comparable: {reason}.")
    return ChangeEntry(**both, label="within_noise")


def _plain(measurement: Measurement) -> Measurement:
    """The same without the intervals at other levels, which stand in the records themselves."""
    if measurement.interval is None:
        return measurement
    return measurement.model_copy(update={"interval": measurement.interval.model_copy(update={"nested": ()})})


def _labelled(entries: Sequence[ChangeEntry], new: AuditRecord, level: float) -> list[ChangeEntry]:
    """Entries with the label that their difference asks for, all of them being taken together."""
    places = [place for place, entry in enumerate(entries) if entry.label == "within_noise"]
    differences = [entries[place].difference for place in places]
    single = np.array([p_value(one, 0.0) for one in differences if one is not None], dtype=np.float64)
    adjusted = holm(single)
    out = list(entries)
    for place, alone, together in zip(places, single.tolist(), adjusted.tolist(), strict=True):
        out[place] = _decided(entries[place], new.findings[place], alone, together, len(places), level)
    return out


def _decided(entry: ChangeEntry, finding: Finding, alone: float, together: float, family: int, level: float) -> ChangeEntry:
    apart = entry.difference
    if apart is None or apart.value is None:
        raise ValueError(f"{entry.finding} has no difference to label")
    worse = apart.value > 0 if finding.criterion.operator == "at_most" else apart.value < 0
    allowed = 1.0 - level + 1e-12  # rounding of 1 - 0.95 must not decide
    beyond = together <= allowed
    if entry.before == "satisfied" and entry.after == "not_satisfied":
        label: ChangeLabel = "new"
    elif entry.before == "not_satisfied" and entry.after == "satisfied":
        label = "fixed"
    elif beyond:
        label = "worsened" if worse else "improved"
    else:
        label = "within_noise"
    return entry.model_copy(
        update={
            "label": label,
            "difference": _plain(apart),
            "p_value": float(f"{alone:.3g}"),
            "adjusted_p": float(f"{together:.3g}"),
            "sentence": _sentence(entry, alone, together, family, allowed),
        }
    )


def _sentence(entry: ChangeEntry, alone: float, together: float, family: int, allowed: float) -> str:
    """Whether the state changed, whether the value moved by more than noise, and what that rests on."""
    if entry.before is None or entry.after is None:
        raise ValueError(f"{entry.finding} has no states to compare")
    was, now = STATES[entry.before].lower(), STATES[entry.after].lower()
    states = f"From {was} to {now}" if was != now else f"{capital(now)} as before"
    chance = f"p {_shown(together)}" + (f", adjusted for {count(family, 'comparison')}" if family > 1 else "")
    if together <= allowed:
        noise = f"; the difference is beyond noise ({chance})"
    elif alone <= allowed:
        noise = f"; the difference is within noise ({chance}), though alone it would not be (p {_shown(alone)})"
    else:
        noise = f"{', but' if was != now else ';'} the difference is within noise ({chance})"
    return f"{states}{noise}; {'paired on the same samples' if entry.paired else 'taken as independent'}."


def _shown(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _removed(finding: Finding) -> ChangeEntry:
    return ChangeEntry(
        finding=finding.id,
        label="removed",
        before=finding.state,
        old=_plain(finding.measurement),
        sentence=f"The baseline has this result ({STATES[finding.state].lower()}), this audit has not.",
    )


def _gist(entries: Sequence[ChangeEntry], baseline: BaselineRecord, said: Sequence[str]) -> str:
    named = " ".join(part for part in (baseline.subject, baseline.version) if part)
    held = {label: sum(entry.label == label for entry in entries) for label in GRAVITY}
    parts = [f"{number} {CHANGE_WORDS[label]}" for label, number in held.items() if number]
    first = f"Since {named}, audited {format_date(baseline.created)}: {join(parts) or 'no result on either side'}."
    return " ".join([first, *said])
