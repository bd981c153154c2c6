"""What the test data show, whatever the model makes of it: presence by class, accuracy by presence, pairs, and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from semlens_audit.evidence_pages import role_of
from semlens_audit.figures import Domain, Figure, Palette, axis, interval_line
from semlens_audit.pages import Table
from semlens_audit.records import AuditRecord, DataPicture, DataPresence, Finding, Measurement, Proportion, SubgroupRecord
from semlens_audit.wording import DASH, ROLE_WORDS, capital, count, format_estimate, format_measured, join

__all__ = ["DataShow", "PairRow", "PictureGroup", "PictureView", "PresenceRow", "data_show"]

_WIDTH = 170
_CLASSES = 10


@dataclass(frozen=True)
class PresenceRow:
    """One concept and one audited class: two groups of images, and how far they differ."""

    concept: str
    class_name: str
    """Empty where only one class is audited."""
    role: str
    role_words: str
    source: str
    """Who says which image holds the concept."""
    first: str
    second: str
    difference: str
    reason: str
    """Why there is no difference; empty if there is one."""
    figure: Figure


@dataclass(frozen=True)
class PairRow:
    """Counterfactual pairs of one concept."""

    concept: str
    class_name: str
    role: str
    role_words: str
    pairs: str
    turned: str
    """How many decisions turn to the class and from it."""
    effect: str
    reason: str
    figure: Figure


@dataclass(frozen=True)
class PictureView:
    """A test image."""

    image: str
    """``data:`` URI."""
    alt: str
    sample: str
    taken: str
    """What the model takes it for, where that is not its label; empty otherwise."""


@dataclass(frozen=True)
class PictureGroup:
    """Images of one class, or of all classes that are not audited, that hold one concept."""

    title: str
    pictures: tuple[PictureView, ...]


@dataclass(frozen=True)
class DataShow:
    """The section; tables without rows are left out."""

    tied: tuple[str, ...]
    class_words: str
    """The audited class, or ``the class`` where there are several."""
    difference_axis: Figure
    presence: tuple[PresenceRow, ...]
    gap_axis: Figure
    gaps: tuple[PresenceRow, ...]
    others: Table | None
    """What the concept does to the false alarms of each class."""
    by_class: Table | None
    pair_axis: Figure
    pairs: tuple[PairRow, ...]
    pictures: tuple[PictureGroup, ...]


def data_show(record: AuditRecord, palette: Palette) -> DataShow:
    """The section on the data of a record that holds `AuditRecord.presence_in_data` or `AuditRecord.pair_effects`."""
    parts = [(entry, part) for entry in record.presence_in_data for part in entry.subgroups]
    differences, gaps = _domain([part.difference for _, part in parts]), _domain([part.gap for _, part in parts])
    pairs = Domain.over("logits", _ends([entry.effect for entry in record.pair_effects]))
    return DataShow(
        tied=tuple(_tied(record)),
        class_words=_single(record) or "the class",
        difference_axis=axis(differences, palette, _WIDTH),
        presence=tuple(
            _row(record, palette, "concept_presence", (entry, part), (part.inside, part.outside), part.difference, differences)
            for entry, part in parts
        ),
        gap_axis=axis(gaps, palette, _WIDTH),
        gaps=tuple(
            _row(record, palette, "subgroup_gap", (entry, part), (part.recall_with, part.recall_without), part.gap, gaps)
            for entry, part in parts
        ),
        others=_others(record),
        by_class=_by_class(record),
        pair_axis=axis(pairs, palette, _WIDTH),
        pairs=tuple(_pairs(record, palette, pairs)),
        pictures=tuple(_pictures(record)),
    )


def _single(record: AuditRecord) -> str:
    """The audited class where there is only one, else empty."""
    names = {part.class_name for entry in record.presence_in_data for part in entry.subgroups}
    names |= {entry.class_name for entry in record.pair_effects}
    return names.pop() if len(names) == 1 else ""


def _ends(measurements: Sequence[Measurement]) -> list[float]:
    return [end for one in measurements if one.interval for end in (one.interval.low, one.interval.high)]


def _domain(measurements: Sequence[Measurement]) -> Domain:
    return Domain.over("difference", _ends(measurements))


def _share(part: Proportion) -> str:
    """``95 % (93–97 %) of 480``."""
    if part.interval is None:
        return "no image"
    return f"{format_estimate('share', part.hits / part.n, part.interval)} of {part.n:,}"


def _finding(record: AuditRecord, kind: str, class_name: str, concept: str) -> Finding | None:
    return next(
        (f for f in record.findings if f.kind == kind and f.class_name == class_name and f.concepts == (concept,)), None
    )


def _tied(record: AuditRecord) -> Iterator[str]:
    for entry in record.presence_in_data:
        if entry.entangled:
            label = record.concept(entry.concept).label
            yield (
                f"{capital(label)} goes with {join(entry.entangled)}: in these data its effect can hardly be told from the "
                "class's own."
            )


def _row(
    record: AuditRecord,
    palette: Palette,
    kind: str,
    where: tuple[DataPresence, SubgroupRecord],
    groups: tuple[Proportion, Proportion],
    measurement: Measurement,
    domain: Domain,
) -> PresenceRow:
    entry, part = where
    label, role = capital(record.concept(entry.concept).label), role_of(record, entry.concept, part.class_name)
    finding, measured = _finding(record, kind, part.class_name, entry.concept), format_measured(measurement)
    known = entry.not_measured is None
    return PresenceRow(
        concept=label,
        class_name="" if _single(record) else part.class_name,
        role=role,
        role_words=ROLE_WORDS[role],
        source=entry.source,
        first=_share(groups[0]) if known else DASH,
        second=_share(groups[1]) if known else DASH,
        difference=measured,
        reason=measurement.not_measured or "",
        figure=interval_line(
            measurement, finding.state if finding else None, None, domain, palette, f"{label}: {measured}.", _WIDTH
        ),
    )


def _others(record: AuditRecord) -> Table | None:
    rows = tuple(
        (capital(record.concept(entry.concept).label), part.class_name, _share(part.false_with), _share(part.false_without))
        for entry in record.presence_in_data
        if entry.not_measured is None
        for part in entry.subgroups
    )
    if not rows:
        return None
    head = ("Concept", "Class", "With the concept", "Without it")
    return Table("Images of all other classes that the model takes for the class", head, rows, numeric=(2, 3))


def _by_class(record: AuditRecord) -> Table | None:
    """Presence in every class, where there are more than the audited one and one other."""
    names = list(dict.fromkeys(name for entry in record.presence_in_data for name in entry.by_class))
    if not 2 < len(names) <= _CLASSES:
        return None
    rows = tuple(
        (
            capital(record.concept(entry.concept).label),
            *(_share(entry.by_class[name]) if name in entry.by_class else DASH for name in names),
        )
        for entry in record.presence_in_data
        if entry.not_measured is None
    )
    return Table("Images that hold each concept, by class", ("Concept", *names), rows) if rows else None


def _pairs(record: AuditRecord, palette: Palette, domain: Domain) -> Iterator[PairRow]:
    for entry in record.pair_effects:
        label, role = capital(record.concept(entry.concept).label), role_of(record, entry.concept, entry.class_name)
        finding, measured = _finding(record, "pair_effect", entry.class_name, entry.concept), format_measured(entry.effect)
        yield PairRow(
            concept=label,
            class_name="" if _single(record) else entry.class_name,
            role=role,
            role_words=ROLE_WORDS[role],
            pairs=f"{entry.pairs:,}",
            turned=f"{entry.towards:,} to it, {entry.away:,} from it",
            effect=measured,
            reason=entry.effect.not_measured or "",
            figure=interval_line(
                entry.effect, finding.state if finding else None, None, domain, palette, f"{label}: {measured}.", _WIDTH
            ),
        )


def _pictures(record: AuditRecord) -> Iterator[PictureGroup]:
    for entry in record.presence_in_data:
        label, names = capital(record.concept(entry.concept).label), {part.class_name for part in entry.subgroups}
        groups: dict[str, list[DataPicture]] = {}
        for shown in entry.pictures:
            if shown.image is not None:
                groups.setdefault(shown.group, []).append(shown)
        for name, pictures in groups.items():
            others = {shown.label for shown in pictures}
            # The only class that is not audited is called by its name.
            named = name if name in names or len(entry.by_class) > len(names) + 1 else join(sorted(others))
            title, held = f"{label}, {named}", _held(entry, name)
            if held > len(pictures):
                title += f": {len(pictures):,} of {count(held, 'image')}"
            yield PictureGroup(title, tuple(_view(record, label, shown) for shown in pictures))


def _held(entry: DataPresence, name: str) -> int:
    """How many images the pictures of a group are taken from."""
    inside = {part.class_name: part.inside.hits for part in entry.subgroups}
    return inside.get(name, sum(part.hits for part in entry.by_class.values()) - sum(inside.values()))


def _view(record: AuditRecord, label: str, shown: DataPicture) -> PictureView:
    return PictureView(
        image=f"data:image/jpeg;base64,{record.images[shown.image or '']}",
        alt=f"{shown.sample}, {shown.label}, with {label.lower()}.",
        sample=shown.sample,
        taken="" if shown.predicted == shown.label else f"taken for {shown.predicted}",
    )
