"""What the pages of a report show: documented values made from an `AuditRecord`, and from nothing else.

A template prints the fields of these values and decides nothing; every field is used by a template (a test holds it so).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semlens_audit.digest import digest
from semlens_audit.figures import Domain, Figure, Palette, Point, Segment, axis, interval_line, scatter, stacked
from semlens_audit.records import AuditRecord, ClassLayer, ComponentRecord, EffectRecord, Finding, Measurement, State
from semlens_audit.wording import (
    GLYPHS,
    KINDS,
    ROLES,
    STATES,
    count,
    format_criterion,
    format_date,
    format_measured,
    format_value,
    join,
    shorten,
)

__all__ = ["Page", "make_page"]

_SUMMARY_ROWS = 8
_SHOWN_COMPONENTS = 4
_SHOWN_REFERENCES = 6
_SHOWN_UNEXPLAINED = 4
_PLOTTED = 600
_ORDER: dict[State, int] = {"not_satisfied": 0, "not_measured": 1, "inconclusive": 2, "satisfied": 3}
_WEIGHT = {"critical": 0, "major": 1, "minor": 2}


@dataclass(frozen=True)
class Badge:
    """A state as glyph, word and (by the style sheet) colour."""

    state: State
    glyph: str
    word: str


@dataclass(frozen=True)
class Fact:
    """A term and what is said of it."""

    term: str
    text: str
    mono: bool = False
    """Set in the typeface of digests and commands."""


@dataclass(frozen=True)
class FindingRow:
    """One finding in a table."""

    anchor: str
    """Of the place that shows it in detail."""
    badge: Badge
    check: str
    statement: str
    where: str
    """Class and layer."""
    measured: str
    criterion: str
    samples: str
    figure: Figure
    severity: str
    rationale: str


@dataclass(frozen=True)
class FindingTable:
    """Findings of one unit, under one axis."""

    caption: str
    axis: Figure
    rows: tuple[FindingRow, ...]


@dataclass(frozen=True)
class ReferenceView:
    """One reference sample of a component."""

    crop: str
    """``data:`` URI."""
    overlay: str
    """``data:`` URI."""
    crop_alt: str
    overlay_alt: str
    activation: str
    sample: str


@dataclass(frozen=True)
class ComponentView:
    """One component with its evidence."""

    anchor: str
    title: str
    share: str
    concept: str
    role: str
    """Role of the concept for the class, or ``unexplained``."""
    facts: tuple[Fact, ...]
    references: tuple[ReferenceView, ...]


@dataclass(frozen=True)
class Pointer:
    """A component whose pictures stand elsewhere in the report, or nowhere."""

    anchor: str | None
    title: str
    text: str


@dataclass(frozen=True)
class FindingView:
    """One finding in full."""

    anchor: str
    badge: Badge
    check: str
    statement: str
    explanation: str
    facts: tuple[Fact, ...]
    figure: Figure
    components: tuple[ComponentView, ...]
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class EffectRow:
    """Both lines of evidence for one class and concept."""

    class_name: str
    concept: str
    role: str
    role_words: str
    reliances: tuple[str, ...]
    """Per layer, in the order of `Lines.layers`."""
    effect: str
    figure: Figure
    presence: str
    source: str


@dataclass(frozen=True)
class ConceptRow:
    """Reliance of a class on one concept in one layer."""

    concept: str
    role: str
    role_words: str
    measured: str
    figure: Figure
    components: str


@dataclass(frozen=True)
class LegendEntry:
    """A part of a stacked bar in words."""

    role: str
    label: str
    measured: str


@dataclass(frozen=True)
class Coverage:
    """How one class's relevance in one layer divides."""

    title: str
    bar: Figure
    legend: tuple[LegendEntry, ...]
    axis: Figure
    rows: tuple[ConceptRow, ...]
    plot: Figure
    plot_caption: str
    unexplained: tuple[ComponentView, ...]
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class Table:
    """A plain table."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    """Columns of numbers, set flush right."""
    mono: tuple[int, ...] = ()
    """Columns of digests."""


@dataclass(frozen=True)
class VerdictBox:
    """The first thing a reader sees."""

    badge: Badge
    headline: str
    counts: str
    exit_code: str


@dataclass(frozen=True)
class Summary:
    """Page one, which stands alone."""

    verdict: VerdictBox
    audited: str
    asked: str
    how: str
    sure: str
    rows: tuple[FindingRow, ...]
    rows_caption: str
    more: str
    agreement: tuple[str, ...]
    responsible: tuple[tuple[str, str, str], ...]
    """Name, role, organisation."""


@dataclass(frozen=True)
class Lines:
    """The two lines of evidence side by side."""

    agreement: tuple[str, ...]
    layers: tuple[str, ...]
    axis: Figure
    rows: tuple[EffectRow, ...]


@dataclass(frozen=True)
class Identities:
    """What exactly was audited."""

    subject: tuple[Fact, ...]
    digests: Table


@dataclass(frozen=True)
class Method:
    """How it was measured and how far the instrument can be trusted."""

    facts: tuple[Fact, ...]
    foundation: tuple[Fact, ...]
    validity: Table
    layers: Table
    calibrations: tuple[Table, ...]
    level: str
    significance: str
    probe: str
    false_discovery_rate: str
    reference_samples: str
    bootstrap: str


@dataclass(frozen=True)
class Concepts:
    """What was declared, and the sentences that go with it."""

    purpose: str
    intended: str
    table: Table


@dataclass(frozen=True)
class Passed:
    """Checks that are satisfied."""

    findings: tuple[FindingView, ...]


@dataclass(frozen=True)
class DataPage:
    """The test data."""

    facts: tuple[Fact, ...]
    counts: Table
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Reproduction:
    """Where it ran and how to run it again."""

    command: str
    facts: tuple[Fact, ...]
    packages: Table
    stages: Table


@dataclass(frozen=True)
class Section:
    """A numbered section of the report."""

    number: int
    anchor: str
    title: str
    template: str
    body: object
    """The value its template prints."""


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    created: str
    created_iso: str
    tool: str
    digest: str
    """SHA-256 of the record's canonical JSON."""
    digest_short: str
    verdict: Badge
    authors: str
    summary: Summary
    sections: tuple[Section, ...]
    inline_figures: bool


def badge(state: State) -> Badge:
    """The badge of a state."""
    return Badge(state, GLYPHS[state], STATES[state])


class _Maker:
    """Makes the parts of a page; remembers which components already stand in the report with their pictures."""

    def __init__(self, record: AuditRecord, palette: Palette) -> None:
        self.record = record
        self.palette = palette
        self.labels = {concept.id: concept.label for concept in record.concepts}
        self.shown: dict[tuple[str, int], str] = {}
        self.domains = {
            unit: Domain.over(unit, [v for f in record.findings for v in self._extent(f) if f.measurement.unit == unit])
            for unit in ("share", "logits", "cosine")
        }

    @staticmethod
    def _extent(finding: Finding) -> Iterable[float]:
        interval = finding.measurement.interval
        return [finding.criterion.threshold, *([interval.low, interval.high] if interval else [])]

    def role(self, concept: str | None, class_name: str) -> str:
        """Role of a concept for a class; ``unexplained`` for none."""
        if concept is None:
            return "unexplained"
        declared = self.record.concept(concept)
        return declared.roles.get(class_name, declared.role)

    # findings

    def where(self, finding: Finding) -> str:
        """Class and layer of a finding."""
        return f"{finding.class_name}, {finding.layer}" if finding.layer else finding.class_name

    def measured_alt(self, finding: Finding) -> str:
        """A finding's figure in words."""
        criterion = format_criterion(finding.criterion, finding.measurement.unit)
        if finding.measurement.value is None:
            return f"{STATES[finding.state]}; criterion {criterion}."
        return f"{STATES[finding.state]}: {format_measured(finding.measurement, finding.criterion)} against {criterion}."

    def row(self, number: int, finding: Finding, labelled: bool = False) -> FindingRow:
        """One line of a findings table."""
        unit = finding.measurement.unit
        return FindingRow(
            anchor=f"finding-{number}", badge=badge(finding.state), check=finding.check, statement=finding.statement,
            where=self.where(finding), measured=format_measured(finding.measurement, finding.criterion),
            criterion=format_criterion(finding.criterion, unit), samples=f"n = {finding.measurement.n:,}",
            figure=interval_line(
                finding.measurement, finding.state, finding.criterion, self.domains[unit], self.palette, self.measured_alt(finding),
                width=220 if labelled else 240, labelled=labelled),
            severity=finding.severity, rationale=finding.rationale,
        )

    def numbered(self) -> list[tuple[int, Finding]]:
        """Findings with their numbers, in the record's order."""
        return list(enumerate(self.record.findings, start=1))

    def ranked(self) -> list[tuple[int, Finding]]:
        """Findings, those that need attention first, the severe ones before the others."""
        return sorted(self.numbered(), key=lambda pair: (_ORDER[pair[1].state], _WEIGHT[pair[1].severity], pair[0]))

    def matrix(self) -> tuple[FindingTable, ...]:
        """All findings, one table a unit."""
        captions = {
            "share": "Mechanistic line of evidence: share of the class's relevance in the layer",
            "logits": "Behavioural line of evidence: change of the class margin when the concept is present, in logits",
            "cosine": "Clarity of the components: mean similarity among a component's reference crops, −1 to 1",
        }
        tables = []
        for unit, caption in captions.items():
            rows = tuple(self.row(number, f) for number, f in self.numbered() if f.measurement.unit == unit)
            if rows:
                tables.append(FindingTable(caption, axis(self.domains[unit], self.palette, 240), rows))
        return tuple(tables)

    # components

    def component_facts(self, component: ComponentRecord) -> tuple[Fact, ...]:
        """Alignment, z, clarity and direction of a component."""
        facts = []
        name = component.assigned or component.best
        if name is not None and name in component.alignment:
            label = self.labels[name] if component.assigned else f"nearest: {self.labels[name]}"
            facts.append(Fact("Alignment", f"{component.alignment[name]:.2f} ({label})"))
            facts.append(Fact("z", f"{component.z[name]:.1f}".replace("-", "−")))
        facts.append(Fact("Clarity", "not measured" if component.clarity is None else f"{component.clarity:.2f}"))
        direction = "speaks for the class" if component.signed > 0.2 else "speaks against it" if component.signed < -0.2 else "both ways"
        facts.append(Fact("Direction", f"{direction} ({component.signed:+.2f})".replace("-", "−")))
        return tuple(facts)

    def title(self, layer: str, component: int) -> str:
        """Name of a component."""
        return f"Component {component} of {layer}"

    def share(self, component: ComponentRecord) -> str:
        """Share of relevance in words."""
        if component.interval is None:
            return format_value("share", component.share, 1)
        measurement = Measurement(quantity="share", unit="share", value=component.share, interval=component.interval, n=0)
        return format_measured(measurement)

    def view(self, part: ClassLayer, component: ComponentRecord) -> ComponentView:
        """A component with its pictures; from now on others point here."""
        anchor = f"component-{len(self.shown) + 1}"
        self.shown[(part.layer, component.component)] = anchor
        title = self.title(part.layer, component.component)
        concept = self.labels[component.assigned] if component.assigned else "no declared concept"
        references = tuple(
            ReferenceView(
                crop=self.image(reference.crop), overlay=self.image(reference.overlay),
                crop_alt=f"Crop of {reference.sample}: what drives component {component.component}.",
                overlay_alt=f"{reference.sample} with the heatmap of component {component.component} and the crop's frame.",
                activation=f"{reference.activation:.2f}".replace("-", "−"), sample=reference.sample,
            )
            for reference in component.references[:_SHOWN_REFERENCES]
        )
        return ComponentView(
            anchor=anchor, title=title, share=self.share(component), concept=concept, role=self.role(component.assigned, part.class_name),
            facts=self.component_facts(component), references=references,
        )

    def image(self, key: str) -> str:
        """An image of the record as ``data:`` URI."""
        return f"data:image/jpeg;base64,{self.record.images[key]}"

    def components(
        self, part: ClassLayer, chosen: Sequence[ComponentRecord], limit: int
    ) -> tuple[tuple[ComponentView, ...], tuple[Pointer, ...]]:
        """Views of the first `limit` of `chosen` that have pictures and were not shown; pointers to the others."""
        views: list[ComponentView] = []
        pointers: list[Pointer] = []
        for component in chosen:
            known = self.shown.get((part.layer, component.component))
            if known is None and component.references and len(views) + len(pointers) < limit:
                views.append(self.view(part, component))
            else:
                concept = self.labels[component.assigned] if component.assigned else "no declared concept"
                pointers.append(Pointer(known, self.title(part.layer, component.component), f"{concept}, {self.share(component)}"))
        return tuple(views), tuple(pointers)

    def part(self, class_name: str, layer: str | None) -> ClassLayer | None:
        """The class's relevance in the layer."""
        return next((p for p in self.record.class_layers if (p.class_name, p.layer) == (class_name, layer)), None)

    def finding(self, number: int, finding: Finding) -> FindingView:
        """One finding in full, with the components that carry it."""
        unit = finding.measurement.unit
        facts = [
            Fact("Where", self.where(finding)),
            Fact("Quantity", KINDS[finding.kind]),
            Fact("Criterion", format_criterion(finding.criterion, unit)),
            Fact("Measured", f"{format_measured(finding.measurement, finding.criterion)}, n = {finding.measurement.n:,}"),
            Fact("Why this criterion", finding.rationale),
            Fact("Severity", finding.severity),
        ]
        if finding.concepts:
            facts.insert(1, Fact("Concepts", join([self.labels[name] for name in finding.concepts])))
        part = self.part(finding.class_name, finding.layer)
        views: tuple[ComponentView, ...] = ()
        pointers: tuple[Pointer, ...] = ()
        if part is not None:
            table = {component.component: component for component in part.components}
            views, pointers = self.components(part, [table[i] for i in finding.components if i in table], _SHOWN_COMPONENTS)
        return FindingView(
            anchor=f"finding-{number}", badge=badge(finding.state), check=finding.check, statement=finding.statement,
            explanation=finding.explanation, facts=tuple(facts),
            figure=interval_line(
                finding.measurement, finding.state, finding.criterion, self.domains[unit], self.palette, self.measured_alt(finding),
                width=420, labelled=True),
            components=views, pointers=pointers,
        )

    # the two lines of evidence

    def lines(self) -> Lines:
        """Reliance and behavioural effect of every concept, side by side."""
        layers = tuple(layer.layer for layer in self.record.layers)
        values = [v for e in self.record.effects if e.effect.interval for v in (e.effect.interval.low, e.effect.interval.high)]
        domain = Domain.over("logits", values)
        rows = tuple(self.effect_row(effect, layers, domain) for effect in self.record.effects)
        return Lines(self.record.verdict.agreement, layers, axis(domain, self.palette, 220), rows)

    def effect_row(self, effect: EffectRecord, layers: tuple[str, ...], domain: Domain) -> EffectRow:
        """One concept in the table of both lines."""
        reliances = []
        for layer in layers:
            part = self.part(effect.class_name, layer)
            reliances.append(format_measured(part.concepts[effect.concept]) if part and effect.concept in part.concepts else DASH)
        state = next((f.state for f in self.record.findings if f.line == "behavioural" and f.concepts == (effect.concept,)
                      and f.class_name == effect.class_name), None)
        role = self.role(effect.concept, effect.class_name)
        measured = format_measured(effect.effect)
        cells = [
            f"{name}: {present:,} with, {effect.presence.absent.get(name, 0):,} without"
            for name, present in effect.presence.present.items()
        ]
        source = effect.presence.source
        if effect.presence.separability is not None:
            source += f", separability {effect.presence.separability:.2f}"
        return EffectRow(
            class_name=effect.class_name, concept=self.labels[effect.concept], role=role, role_words=ROLES[role],  # type: ignore[index]
            reliances=tuple(reliances), effect=measured if effect.effect.value is not None else f"not measured: {effect.effect.not_measured}",
            figure=interval_line(effect.effect, state, None, domain, self.palette,
                                 f"{self.labels[effect.concept]}: {measured}.", width=220),
            presence="; ".join(cells), source=source,
        )

    # coverage

    def coverage(self, part: ClassLayer) -> Coverage:
        """Where the relevance of a class in a layer goes."""
        names = {"valid": "Valid concepts", "spurious": "Spurious concepts", "neutral": "Neutral concepts", "unexplained": "Unexplained"}
        segments, legend = [], []
        for role, label in names.items():
            measurement: Measurement = getattr(part, role)
            legend.append(LegendEntry(role, label, format_measured(measurement)))
            if measurement.value is not None:
                segments.append(Segment(role, measurement.value, format_value("share", measurement.value)))
        title = f"{part.class_name}, {part.layer}"
        sentence = "; ".join(f"{entry.label}: {entry.measured}" for entry in legend)
        domain = Domain(0.0, 1.0, "share")
        carried = {name: sum(c.assigned == name for c in part.components) for name in part.concepts}
        ordered = sorted(part.concepts.items(), key=lambda item: -(item[1].value or 0.0))
        rows = []
        for name, measurement in ordered:
            role = self.role(name, part.class_name)
            text = format_measured(measurement)
            rows.append(ConceptRow(
                concept=self.labels[name], role=role, role_words=ROLES[role], measured=text,  # type: ignore[index]
                figure=interval_line(measurement, None, None, domain, self.palette, f"{self.labels[name]}: {text}.", 240, bar=role),
                components=str(carried[name]),
            ))
        free = [component for component in part.components if component.assigned is None and component.references]
        views, pointers = self.components(part, free[:_SHOWN_UNEXPLAINED], _SHOWN_UNEXPLAINED)
        plotted = part.components[:_PLOTTED]
        plot = scatter(
            self.points(part, plotted), self.record.settings.significance, self.palette,
            f"Scatter plot of {len(plotted)} components of {part.layer} for {part.class_name}.")
        caption = (
            f"Each disc is a component of {part.layer}; its area is its share of the relevance for {part.class_name}, its colour the role of "
            f"the concept it is assigned to. Dashed: least significant z, {self.record.settings.significance:g}. "
            + (f"The {len(plotted)} most relevant of {len(part.components):,} components are drawn." if len(plotted) < len(part.components) else "")
        )
        return Coverage(
            title=title, bar=stacked(segments, self.palette, f"{title}: {sentence}."), legend=tuple(legend), axis=axis(domain, self.palette, 240),
            rows=tuple(rows), plot=plot, plot_caption=caption.strip(), unexplained=views, pointers=pointers,
        )

    def points(self, part: ClassLayer, components: Sequence[ComponentRecord]) -> list[Point]:
        """Components as points: best z among valid, best z among spurious concepts."""
        roles = {concept.id: self.role(concept.id, part.class_name) for concept in self.record.concepts}
        points = []
        for component in components:
            best = {
                role: max((z for name, z in component.z.items() if roles.get(name) == role), default=0.0) for role in ("valid", "spurious")
            }
            label = f"{component.component}" + (f" {self.labels[component.assigned].lower()}" if component.assigned else "")
            points.append(Point(best["valid"], best["spurious"], component.share, self.role(component.assigned, part.class_name), label))
        return points


DASH = "–"
_FAMILIES = (("share", "Mechanistic"), ("logits", "Behavioural"), ("cosine", "Clarity"))


def _summary(maker: _Maker) -> Summary:
    record = maker.record
    verdict = record.verdict
    total = len(record.findings)
    parts = [
        f"{number}{chr(160)}{word}" for number, word in (
            (verdict.not_satisfied, "not satisfied"), (verdict.not_measured, "not measured"), (verdict.inconclusive, "inconclusive"),
            (verdict.satisfied, "satisfied")) if number
    ]
    ranked = maker.ranked()
    shown = ranked[:_SUMMARY_ROWS]
    open_ones = [pair for pair in ranked if pair[1].state != "satisfied"]
    if open_ones:
        shown = open_ones[:_SUMMARY_ROWS]
    more = len(ranked) - len(shown)
    data, subject = record.data, record.subject
    classes = list(dict.fromkeys(f.class_name for f in record.findings))
    name = f"{subject.name} {subject.version}" if subject.version else subject.name
    accuracy = f" It predicts the right class on {format_value('share', subject.accuracy, 1)} of them." if subject.accuracy is not None else ""
    level = format_value("share", record.settings.confidence)
    per_class = join([f"{number:,} of {label}" for label, number in data.per_class.items()]) if len(data.per_class) <= 8 else \
        f"{len(data.per_class):,} classes"
    return Summary(
        verdict=VerdictBox(
            badge(verdict.state), verdict.headline, f"{count(total, 'result')}: " + join(parts), str(int(verdict.exit_code))),
        audited=f"{name} ({subject.architecture}, {subject.parameters:,} parameters) on {count(data.samples, 'image')} ({per_class}).{accuracy}",
        asked=f"{record.spec.detail.get('title', record.spec.name)}: whether decisions for {join(classes)} rest on what they may rest on. "
              f"{count(len({f.check for f in record.findings}), 'check')} with acceptance criteria set beforehand, in "
              f"{count(len(record.layers), 'layer')}.",
        how="Inside the network, every component (neuron) was given a meaning by the image regions that drive it most, and the share of each "
            "decision that flows through components of each meaning was measured. From outside, it was measured how far the decision moves when "
            "a concept is present.",
        sure=f"Every number carries a {level} confidence interval. A check is satisfied only if the whole interval lies on the accepted side of its "
             "criterion, not satisfied only if the whole interval lies beyond it, and otherwise inconclusive.",
        rows=tuple(maker.row(number, finding, labelled=True) for number, finding in shown),
        rows_caption="What needs attention" if open_ones else "Results, the severest checks first",
        more=f"{count(more, 'further result')} in section “Results”." if more else "",
        agreement=verdict.agreement, responsible=tuple((r.name, r.role, r.organisation or "") for r in record.responsible),
    )


def _identities(record: AuditRecord) -> Identities:
    subject = record.subject
    preprocessing = ", ".join(f"{key} {value}" for key, value in subject.preprocessing.items() if value is not None)
    rows = (
        ("Weights of the audited model", subject.name, subject.weights_sha256),
        ("Test data (manifest of paths, contents, labels)", record.data.source, record.data.sha256),
        ("Foundation model", record.foundation_model.name, record.foundation_model.sha256),
        ("Spec", record.spec.name, record.spec.sha256),
        ("Audit file", record.audit.name, record.audit.sha256),
    )
    return Identities(
        subject=(
            Fact("Model", subject.name), Fact("Version", subject.version or "not stated"), Fact("Architecture", subject.architecture),
            Fact("Source", subject.source), Fact("Parameters", f"{subject.parameters:,}"), Fact("Input", preprocessing),
            Fact("Classes", ", ".join(subject.classes[:20]) + (f" and {len(subject.classes) - 20:,} more" if len(subject.classes) > 20 else "")),
        ),
        digests=Table("Content digests (SHA-256) of everything the audit rests on", ("What", "Name", "SHA-256"), rows, mono=(2,)),
    )


def _concepts(record: AuditRecord) -> Concepts:
    rows = []
    for concept in record.concepts:
        role = ROLES[concept.role] + "".join(f"; for {name}: {ROLES[other]}" for name, other in concept.roles.items())
        defined = "; ".join(concept.descriptions)
        if concept.examples:
            defined += ("; " if defined else "") + count(concept.examples, "example image")
        rows.append((concept.label, role, defined, concept.hazard or DASH, concept.source or DASH))
    return Concepts(
        purpose=record.purpose, intended=record.subject.intended_purpose or "not stated",
        table=Table("Concepts declared in the spec", ("Concept", "Role", "Defined by", "Hazard", "Source"), tuple(rows)),
    )


def _method(record: AuditRecord) -> Method:
    settings, model = record.settings, record.foundation_model
    validity = tuple(
        (concept.label, "not known" if concept.presence_auroc is None else f"{concept.presence_auroc:.2f}") for concept in record.concepts
    )
    layers = tuple(
        (layer.layer, f"{layer.components:,}", f"{layer.dead:,}", layer.attribution, DASH if layer.conservation is None else f"{layer.conservation:.2f}",
         format_measured(layer.clarity)) for layer in record.layers
    )
    names = {concept.id: concept.label for concept in record.concepts}
    calibrations = tuple(
        Table(f"Calibration in {layer.layer}: alignment of random reference sets", ("Concept", "Mean", "Standard deviation"),
              tuple((names[r.concept], f"{r.null_mean:.3f}".replace("-", "−"), f"{r.null_deviation:.3f}") for r in layer.calibration), numeric=(1, 2))
        for layer in record.layers if layer.calibration
    )
    return Method(
        facts=tuple(Fact(name.replace("_", " ").capitalize(), str(value)) for name, value in settings.model_dump().items()) + (Fact("Seed", str(record.seed)),),
        foundation=(
            Fact("Foundation model", model.name), Fact("Source", model.source), Fact("Embedding", f"{model.dimension:,} dimensions"),
            Fact("Understands", "text and images" if model.text else "images only: concepts are defined by example images"),
            Fact("What it can and cannot tell", model.statement),
        ),
        validity=Table("Validity of the foundation model: how well it tells images with a concept from those without (area under the ROC curve; 0.5 is "
                       "chance, 1 is perfect)", ("Concept", "AUROC"), validity, numeric=(1,)),
        layers=Table("Audited layers", ("Layer", "Components", "Never active", "Attribution", "Conservation", "Clarity"), layers, numeric=(1, 2, 4)),
        calibrations=calibrations, level=format_value("share", settings.confidence), significance=f"{settings.significance:g}",
        probe=settings.probe, false_discovery_rate=format_value("share", settings.false_discovery_rate),
        reference_samples=str(settings.reference_samples), bootstrap=f"{settings.bootstrap:,}",
    )


def _data(record: AuditRecord) -> DataPage:
    data = record.data
    facts = [Fact("Source", data.source), Fact("Images", f"{data.samples:,}")]
    if data.description:
        facts.append(Fact("Description", data.description))
    facts.append(Fact("Known attributes", ", ".join(data.attributes) or "none: presence of concepts is judged by the foundation model"))
    rows = tuple((name, f"{number:,}", format_value("share", number / max(data.samples, 1), 1)) for name, number in data.per_class.items())
    return DataPage(tuple(facts), Table("Images per class", ("Class", "Images", "Share"), rows, numeric=(1, 2)), data.skipped)


def _crosswalk(maker: _Maker) -> Table:
    rows: dict[tuple[str, str], list[State]] = {}
    for finding in maker.record.findings:
        for control in finding.supports:
            rows.setdefault((control, finding.check), []).append(finding.state)
    return Table(
        "Checks and what they support evidence for", ("Control", "Check", "Results"),
        tuple(
            (control, check, join([f"{GLYPHS[s]} {STATES[s].lower()}" for s in dict.fromkeys(sorted(states, key=lambda s: _ORDER[s]))]))
            for (control, check), states in sorted(rows.items())
        ),
    )


def _reproduction(record: AuditRecord) -> Reproduction:
    environment, tool = record.environment, record.tool
    return Reproduction(
        command=record.command,
        facts=(
            Fact("Tool", f"{tool.name} {tool.version}" + (f", revision {tool.revision}" if tool.revision else "")),
            Fact("Python", environment.python), Fact("Platform", environment.platform), Fact("Threads", str(environment.threads)),
            Fact("Seed", str(record.seed)), Fact("Record written", format_date(record.created)),
        ),
        packages=Table("Packages", ("Package", "Version"), tuple(sorted(environment.packages.items()))),
        stages=Table("Stages read from the store, by content key", ("Stage", "Key"), tuple(record.stages.items()), mono=(1,)),
    )


GLOSSARY: tuple[Fact, ...] = (
    Fact("Acceptance criterion", "The bound that a measured quantity must keep, set in the spec together with the reason for it."),
    Fact("Alignment", "Cosine similarity between a component's embedding and a concept's probe, −1 to 1; only meaningful against its calibration (z)."),
    Fact("Behavioural effect", "How far the class margin moves, in logits, between images with and without a concept, the class being held fixed."),
    Fact("Clarity", "How alike a component's reference crops are: their mean pairwise cosine similarity. Low clarity means a component of several meanings."),
    Fact("Class margin", "The model's score (logit) for a class, against the scores of all others. A margin of 0 is a probability of 50 %; a shift of 1 logit moves "
         "50 % to 73 %, a shift of 3 logits moves it to 95 %."),
    Fact("Component", "A unit of a layer: a channel of a convolutional network or a neuron."),
    Fact("Confidence interval", "The range that the method would let cover the true value in the stated share of repetitions."),
    Fact("Foundation model", "A model trained on many images (and texts) that gives crops and concepts a common, comparable meaning."),
    Fact("Inconclusive", "The interval reaches over the criterion: the data do not decide the question. This is not a pass."),
    Fact("Layer", "A stage of the network; later layers hold more abstract components."),
    Fact("Not measured", "The quantity could not be determined; the reason is stated. This is not a pass."),
    Fact("Probe", "The vector a concept is looked for with: from descriptions, from example images, or both."),
    Fact("Reference samples", "The images of the test data that activate a component most, cropped to what drives it."),
    Fact("Relevance", "The part of a decision that flows through a component, by layer-wise relevance propagation or activation × gradient."),
    Fact("Reliance", "The share of a class's relevance in a layer that flows through components assigned to a concept."),
    Fact("Spurious concept", "Something in the picture that a decision must not rest on."),
    Fact("Unexplained relevance", "The share that flows through components assigned to no declared concept."),
    Fact("Valid concept", "Something in the picture that a decision may rest on."),
    Fact("z", "How many standard deviations an alignment lies above that of random reference sets."),
)


@dataclass(frozen=True)
class Attachments:
    """What goes with the report."""

    record_digest: str
    images: str
    schema_version: str


def _sections(maker: _Maker) -> tuple[Section, ...]:
    """All sections that have content, in order."""
    record = maker.record
    attention = tuple(maker.finding(number, f) for number, f in maker.ranked() if f.state != "satisfied")
    plan: list[tuple[str, str, object]] = [
        ("limitations", "Limitations: what this audit does not show", record.limitations),
        ("system", "Intended purpose and what was asked", _concepts(record)),
        ("identity", "Identity of what was audited", _identities(record)),
        ("results", "Results", maker.matrix()),
        ("attention", "What needs attention, with evidence", attention),
        ("lines", "Two lines of evidence", maker.lines() if record.effects else None),
        ("coverage", "Coverage: what the decisions rest on", tuple(maker.coverage(part) for part in record.class_layers)),
        ("method", "Method, validity and calibration", _method(record)),
        ("passed", "Satisfied checks and their evidence", Passed(tuple(maker.finding(n, f) for n, f in maker.numbered() if f.state == "satisfied"))),
        ("data", "Test data", _data(record)),
        ("crosswalk", "Crosswalk to standards and regulations", _crosswalk(maker) if any(f.supports for f in record.findings) else None),
        ("reproduction", "Environment and reproduction", _reproduction(record)),
        ("glossary", "Glossary", GLOSSARY),
        ("attachments", "Record and digests", Attachments(digest(record.model_dump(mode="json")), count(len(record.images), "image"), record.schema_version)),
    ]
    if not any(f.state == "satisfied" for f in record.findings):
        plan = [entry for entry in plan if entry[0] != "passed"]
    present = [entry for entry in plan if entry[2] not in (None, ())]
    return tuple(Section(i, name, title, f"{name}.html.j2", body) for i, (name, title, body) in enumerate(present, start=1))


def make_page(record: AuditRecord, palette: Palette) -> Page:
    """Everything a report of `record` shows.

    Parameters
    ----------
    record
        What was found.
    palette
        Colours of the medium the report is for.
    """
    maker = _Maker(record, palette)
    sections = _sections(maker)
    whole = digest(record.model_dump(mode="json"))
    return Page(
        title=record.title, subtitle="Audit of what a vision model has learned", created=format_date(record.created), created_iso=record.created,
        tool=f"{record.tool.name} {record.tool.version}", digest=whole, digest_short=shorten(whole), verdict=badge(record.verdict.state),
        authors=join([person.name for person in record.responsible]), summary=_summary(maker), sections=sections, inline_figures=palette.inline,
    )
