"""Labels on a page and on the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from semlens_audit.atlas.candidates import Candidates
from semlens_audit.atlas.cards import ComponentCard, card
from semlens_audit.atlas.labelling import LabelledRow, Labelling
from semlens_audit.atlas.labels import Label
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.pages import longest_share, render_page, sources
from semlens_audit.pages import Fact
from semlens_audit.terminal import Text
from semlens_audit.wording import count, format_number, format_share, shorten

__all__ = ["NO_LABEL", "format_p", "label_note", "label_page", "print_labels"]

NO_LABEL = "no label fits"
"""What stands in the place of a label where chance would explain the nearest word."""


@dataclass(frozen=True)
class _RowView:
    """One component in the page's table."""

    card: ComponentCard
    label: str | None
    others: str
    z: str
    p: str
    relevance: str


def format_p(p: float) -> str:
    """``0.031``, or ``<0.001``."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.9995 else "1"


def label_note(labels: tuple[Label, ...] | list[Label], words: int) -> str:
    """How sure a component's label is, in a sentence; for one without a label, why.

    Parameters
    ----------
    labels
        As `semlens_audit.atlas.labels.label_components` gives them for one component.
    words
        Words of the vocabulary.
    """
    if not labels:
        return "No label: never active on the data, or with fewer than two independent reference samples."
    best, others = labels[0], [f"{one.word} (z {format_number(one.z, 1)})" for one in labels[1:] if one.significant]
    if not best.significant:
        return (
            f"No label fits: the nearest of {count(words, 'word')}, “{best.word}”, stands out no more (z {format_number(best.z, 1)}) "
            f"than the nearest of random crops may (p {format_p(best.p)})."
        )
    also = f" Also beyond chance: {', '.join(others)}." if others else ""
    return f"z {format_number(best.z, 1)}, p {format_p(best.p)} among {count(words, 'word')}.{also}"


def label_page(atlas: Atlas, found: Labelling) -> str:
    """Labels as one offline HTML file: a table of the components, and a card for each.

    Parameters
    ----------
    atlas
        The opened index.
    found
        The labels.
    """
    layers = [(one, tuple(_view(atlas, found, each) for each in one.rows)) for one in found.layers]
    return render_page(
        "atlas/labels.html.j2",
        f"What components of {atlas.plan.audit.subject.name} stand for",
        {
            "found": found,
            "layers": tuple(layers),
            "no_label": NO_LABEL,
            "longest": longest_share(each.card for _, views in layers for each in views),
            "selection": atlas.plan.audit.measurement.selection,
        },
        sources=(
            *sources(atlas),
            Fact("Vocabulary", f"{found.vocabulary}: {count(found.words, 'word')}, digest {shorten(found.sha256)}"),
            *_generated(found.candidates),
        ),
    )


def _generated(candidates: Candidates | None) -> tuple[Fact, ...]:
    if candidates is None:
        return ()
    asked = f"asked for words for {count(len(candidates.proposals), 'component')}"
    return (Fact("Candidates", f"{candidates.title}, {asked}, each shown by its first {candidates.shown} reference samples"),)


def _view(atlas: Atlas, found: Labelling, each: LabelledRow) -> _RowView:
    row, best = each.row, each.best
    shown = card(
        atlas, row.layer, row.component, label=NO_LABEL if best is None else best.word, label_note=label_note(each.labels, found.words)
    )
    proposed = None if found.candidates is None else found.candidates.words_of(row.layer, row.component)
    if proposed is not None:
        shown = shown.stating(("proposed", ", ".join(proposed) or "no word"))
    first = each.labels[0] if each.labels else None
    return _RowView(
        shown,
        None if best is None else best.word,
        _others(each.labels, best),
        "–" if first is None else format_number(first.z, 1),
        "–" if first is None else format_p(first.p),
        f"{100 * row.share[found.class_name]:.1f}\u00a0%",
    )


def _others(labels: tuple[Label, ...], best: Label | None) -> str:
    """Further words beyond chance; of a component without a label the nearest word."""
    if best is None:
        return f"nearest: {labels[0].word}" if labels else "–"
    return ", ".join(one.word for one in labels[1:] if one.significant) or "–"


def print_labels(found: Labelling, files: tuple[str, ...] = (), console: Console | None = None) -> None:
    """Print labels as a table, then how many components have one, then the files written.

    Parameters
    ----------
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("component", justify="right", no_wrap=True)
    table.add_column("label", overflow="fold")
    for name in ("z", "p", "relevance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("other words", overflow="fold")
    for one in found.layers:
        for each in one.rows:
            first = each.labels[0] if each.labels else None
            shown = Text(NO_LABEL if each.best is None else each.best.word, style="dim" if each.best is None else "")
            numbers = ["–", "–"] if first is None else [format_number(first.z, 1), format_p(first.p)]
            rest = each.labels if each.best is None else each.labels[1:]
            others = ", ".join(f"{word.word}{'' if word.significant else '?'}" for word in rest) or "–"
            share = format_share(each.row.share[found.class_name])
            table.add_row(Text(one.layer), Text(str(each.row.component)), shown, *map(Text, [*numbers, share, others]))
    console.print(table)
    console.print()
    for one in found.layers:
        console.print(Text(one.sentence))
    console.print(
        Text(
            f"Vocabulary: {found.vocabulary}, {count(found.words, 'word')}. z: deviations above {found.sets:,} random sets of reference "
            f"samples. p: that the best of all words stands out as much by chance; a label needs a false-discovery rate of "
            f"{found.level:g} over its layer. ?: chance would explain it. relevance: share for {found.class_name}.",
            style="dim",
        )
    )
    for path in files:
        console.print(Text(path, style="cyan"), soft_wrap=True)
