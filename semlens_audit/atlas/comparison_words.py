"""What a comparison says in sentences and in cells of tables, on a terminal as on a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from semlens_audit.atlas.compared import ConceptShare, LayerComparison, SetSimilarity, Side, Single, State
from semlens_audit.component_changes import LayerChanges
from semlens_audit.measured import Interval, Measurement
from semlens_audit.wording import count, format_number, join

__all__ = [
    "STATE_WORDS", "between", "by_change", "cosine", "ordered", "percent", "points", "sentences", "side_name", "similarity_rows",
    "state_rows",
]  # fmt: skip

STATE_WORDS: dict[State, str] = {
    "matched": "matched",
    "shifted": "counted for another concept: similar, and paired",
    "shared": "shared: the same is there, paired with another",
    "lost": "lost",
    "learned": "learned",
    "open": "open",
}


def side_name(found: LayerComparison | LayerChanges, side: Side) -> str:
    """``phantom-clean``, or the layer where both sides are of one audit; both where audits differ and layers too."""
    own = found.first if side == "first" else found.second
    if found.first.audit == found.second.audit:
        return own.layer if found.first.layer != found.second.layer else f"{own.audit} ({side})"
    return own.audit if found.first.layer == found.second.layer else f"{own.audit} {own.layer}"


def percent(value: float | None) -> str:
    """``12.3 %``; a dash where there is none."""
    return "–" if value is None else f"{format_number(100 * value, 1)} %"


def points(measurement: Measurement | None) -> str:
    """``+12.3 (10.1 to 14.0)`` percentage points."""
    if measurement is None or measurement.value is None or measurement.interval is None:
        return "–"
    low, value, high = (100 * one for one in (measurement.interval.low, measurement.value, measurement.interval.high))
    return f"{format_number(value, 1, sign=True)} ({format_number(low, 1, sign=True)} to {format_number(high, 1, sign=True)})"


def between(measurement: Measurement | None) -> str:
    """``12.3 % (10.1–14.0)``."""
    if measurement is None or measurement.value is None or measurement.interval is None:
        return "–"
    low, high = (format_number(100 * one, 1) for one in (measurement.interval.low, measurement.interval.high))
    return f"{percent(measurement.value)} ({low}–{high})"


def cosine(value: float | None, spread: Interval | None) -> str:
    """``0.87 (0.80 to 0.91)``; a dash where it is not measured."""
    if value is None or spread is None:
        return "–"
    return f"{format_number(value, 2)} ({format_number(spread.low, 2)} to {format_number(spread.high, 2)})"


def sentences(found: LayerComparison) -> list[str]:
    """What a reader has to know first."""
    said = _moved(found)
    for state in ("learned", "lost"):
        said += _apart(found, state)
    for side in ("first", "second"):
        own = found.first if side == "first" else found.second
        parts = [
            f"{row.components:,} {STATE_WORDS[row.state].partition(':')[0]}"
            for row in found.shares
            if row.side == side and row.components
        ]
        alive = f"Of the {count(own.known, 'component')} of {own.layer} in {own.audit} that have reference samples"
        if own.known:
            said.append(f"{alive}, {join(parts)}{f'; {own.dead:,} more are never active' if own.dead else ''}.")
        else:
            said.append(f"{own.layer} in {own.audit} has no component with reference samples: nothing in it can be compared.")
    changed = sum(pair.changed for pair in found.pairs)
    if found.class_name is not None and found.pairs:
        amount = f"{changed:,}" if changed else "None"
        said.append(f"{amount} of {count(len(found.pairs), 'pair')} changed in relevance for {found.class_name} by more than noise.")
    if changed:
        said[-1] += " Between networks that were trained apart, shares of single components differ as a matter of course."
    return said


def _moved(found: LayerComparison) -> list[str]:
    if found.class_name is None or not found.concept_shares:
        return []
    changed = sorted((row for row in found.concept_shares if row.changed), key=lambda row: -abs(row.change.value or 0.0))
    if not changed:
        return [f"No concept gained or lost relevance for {found.class_name} by more than noise."]
    parts = [
        f"{_spoken(row.concept) or 'what is unexplained'} from {percent(row.first.value)} to {percent(row.second.value)}"
        for row in changed[:4]
    ]
    more = f"; {count(len(changed) - 4, 'concept')} less" if len(changed) > 4 else ""
    return [f"Relevance for {found.class_name} moved: {join(parts)}{more}."]


def _apart(found: LayerComparison, state: State) -> list[str]:
    members = [single for single in found.singles if single.state == state]
    if not members:
        return []
    meant = Counter(single.concept for single in members if single.concept is not None).most_common(3)
    row = next(row for row in found.shares if row.state == state)
    relevance = f" with {percent(row.share.value)} of the relevance for {found.class_name}" if row.share is not None else ""
    where = side_name(found, "second" if state == "learned" else "first")
    parts = [f"{'all' if number == len(members) > 1 else f'{number:,}'} counted for {_spoken(name)}" for name, number in meant]
    concepts = f": {join(parts)}" if meant else ""
    return [f"Only {where} has {count(len(members), f'{state} component')}{relevance}{concepts}."]


def _spoken(concept: str | None) -> str:
    """A concept's id as words of a sentence."""
    return (concept or "").replace("_", " ")


def similarity_rows(found: LayerComparison | LayerChanges) -> list[tuple[str, ...]]:
    """Cells: direction, seen from, weighting, value with interval, the wider interval, chance."""
    return [_similarity(found, row) for row in found.similarities]


def _similarity(found: LayerComparison | LayerChanges, row: SetSimilarity) -> tuple[str, ...]:
    other: Side = "second" if row.of == "first" else "first"
    value = row.measurement
    return (
        f"{side_name(found, row.of)} in {side_name(found, other)}",
        "as published" if row.origin == "none" else "from the centre",
        "each the same" if row.weighting is None else f"by relevance for {row.weighting}",
        value.not_measured or cosine(value.value, value.interval),
        "–" if row.population is None else f"{format_number(row.population.low, 2)} to {format_number(row.population.high, 2)}",
        "–" if row.chance is None else format_number(row.chance, 2),
    )


def state_rows(found: LayerComparison | LayerChanges) -> list[tuple[str, ...]]:
    """Cells: side, state, components, share of relevance."""
    return [(side_name(found, row.side), STATE_WORDS[row.state], f"{row.components:,}", between(row.share)) for row in found.shares]


def by_change(found: LayerComparison | LayerChanges) -> list[ConceptShare]:
    """Concepts whose relevance moved beyond noise first, the largest change first."""
    return sorted(found.concept_shares, key=lambda row: (not row.changed, -abs(row.change.value or 0.0)))


def ordered(singles: Sequence[Single]) -> list[Single]:
    """Most relevant first."""
    return sorted(singles, key=lambda one: (-(one.share or 0.0), one.side, one.component))
