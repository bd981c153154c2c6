"""What the pages of a report show: plain values that a template prints without deciding anything.

`semlens_audit.compose` makes them from an `AuditRecord`. Every field is used by a template; a test holds it so.
"""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.facets import Filters, Marks
from semlens_audit.figures import Figure
from semlens_audit.records import State

__all__ = [
    "Badge",
    "CheckRow",
    "CheckTable",
    "CheckView",
    "ClassCoverage",
    "ComponentView",
    "ConceptRow",
    "DataPage",
    "EffectRow",
    "EvidenceGroup",
    "Fact",
    "GateBox",
    "Identities",
    "LegendEntry",
    "Lines",
    "Method",
    "Page",
    "Pointer",
    "ReferenceView",
    "Reproduction",
    "ResultRow",
    "Section",
    "Summary",
    "System",
    "Table",
    "VerdictBox",
]


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
class ResultRow:
    """One measurement of a check: in one layer, or for one concept."""

    badge: Badge
    label: str
    measured: str
    samples: str
    figure: Figure
    explanation: str
    release: str
    """What it means for the release, as ``waived``; empty without a gate, or where it means nothing."""
    marks: Marks


@dataclass(frozen=True)
class CheckRow:
    """A check in a table, with its results under it."""

    anchor: str
    """Of the place that shows the check in full."""
    check: str
    statement: str
    criterion: str
    severity: str
    class_name: str
    rationale: str
    """Reason for the criterion; empty where `same_reason` is set."""
    same_reason: tuple[str, str] | None
    """Anchor and name of an earlier check of the table that has the same reason."""
    results: tuple[ResultRow, ...]
    hidden: str
    """What is said of results that the table leaves out; empty if it leaves out none."""


@dataclass(frozen=True)
class CheckTable:
    """Checks whose quantity has one unit, under one axis."""

    caption: str
    axis: Figure
    checks: tuple[CheckRow, ...]


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
    contrastive: str | None = None
    """``data:`` URI of its contrastive crop."""
    contrastive_alt: str = ""
    contrastive_sample: str = ""


@dataclass(frozen=True)
class ComponentView:
    """One component with its evidence."""

    anchor: str
    title: str
    share: str
    concept: str
    role: str
    """Role of the concept for the class, or ``unexplained``."""
    facts: str
    references: tuple[ReferenceView, ...]


@dataclass(frozen=True)
class Pointer:
    """A component whose pictures stand elsewhere in the report (`anchor`), or nowhere."""

    anchor: str | None
    title: str
    text: str


@dataclass(frozen=True)
class EvidenceGroup:
    """Components of one layer that carry a check's result."""

    layer: str
    title: str
    components: tuple[ComponentView, ...]
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class CheckView:
    """A check in full."""

    anchor: str
    badge: Badge
    check: str
    statement: str
    axis: Figure
    results: tuple[ResultRow, ...]
    facts: tuple[Fact, ...]
    evidence: tuple[EvidenceGroup, ...]


@dataclass(frozen=True)
class GateBox:
    """What the gate decided on the release."""

    outcome: str
    """As `GateRecord.outcome`, for the style sheet."""
    glyph: str
    word: str
    sentence: str
    policy: str
    """The rules it was decided by."""


@dataclass(frozen=True)
class VerdictBox:
    """The first thing a reader sees."""

    badge: Badge
    headline: str
    counts: str
    exit_code: str
    """The process's, and what it means."""
    gate: GateBox | None


@dataclass(frozen=True)
class Summary:
    """Page one, which stands alone."""

    verdict: VerdictBox
    facts: tuple[Fact, ...]
    checks: tuple[CheckRow, ...]
    caption: str
    more: str
    responsible: tuple[tuple[str, str, str], ...]
    """Name, role, organisation."""
    signatures: str
    """Where signatures are found."""


@dataclass(frozen=True)
class EffectRow:
    """Both lines of evidence for one class and concept."""

    class_name: str
    concept: str
    role: str
    role_words: str
    reliances: tuple[str, ...]
    """Per layer, in the order of `Lines.layers`."""
    source: str
    """Who says which image holds the concept."""
    effect: str
    reason: str
    """Why there is no effect; empty if there is one."""
    figure: Figure


@dataclass(frozen=True)
class Lines:
    """The two lines of evidence side by side."""

    agreement: tuple[str, ...]
    layers: tuple[str, ...]
    axis: Figure
    rows: tuple[EffectRow, ...]
    presence: Table


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
class ClassCoverage:
    """How one class's relevance in one layer divides."""

    title: str
    bar: Figure
    legend: tuple[LegendEntry, ...]
    axis: Figure
    rows: tuple[ConceptRow, ...]
    plot: Figure
    plot_caption: str
    unexplained: EvidenceGroup


@dataclass(frozen=True)
class System:
    """What the model is for, and what was declared about it."""

    intended: str
    purpose: str
    concepts: Table


@dataclass(frozen=True)
class Identities:
    """What exactly was audited."""

    subject: tuple[Fact, ...]
    digests: Table


@dataclass(frozen=True)
class Method:
    """How it was measured and how far the instrument can be trusted."""

    reference_samples: str
    selection: str
    """What makes an image one of them."""
    heatmap: str
    """Where in an image a component is driven from."""
    relevance: str
    """What gives the relevance."""
    embedding: str
    """What of the crops' embeddings stands for the component."""
    probe: str
    significance: str
    false_discovery_rate: str
    level: str
    intervals: tuple[str, ...]
    """How the intervals were obtained."""
    foundation: tuple[Fact, ...]
    validity: Table
    layers: Table
    settings: tuple[Fact, ...]


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
    """The value, or the tuple of values, that its template prints."""


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    kicker: str
    created: str
    created_iso: str
    tool: str
    digest_short: str
    """First digits of the SHA-256 of the record's canonical JSON."""
    verdict: Badge
    authors: str
    running: str
    """Verdict and gate, at the foot of every page."""
    summary: Summary
    filters: Filters | None
    sections: tuple[Section, ...]
