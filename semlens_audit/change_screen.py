"""What a comparison prints: a table on the terminal, and the same as Markdown for a build server's summary."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from semlens_audit.change_words import CHANGE_GLYPHS, CHANGE_WORDS, format_difference, format_plain, ranked
from semlens_audit.component_changes import ComponentChanges
from semlens_audit.component_words import (
    KINDS,
    NO_CHECK,
    ChangedRow,
    changed_rows,
    counts,
    heading,
    opening,
    similarity_sentences,
)
from semlens_audit.exports.markdown import escape
from semlens_audit.plain_text import one_line
from semlens_audit.release_records import ChangeLabel, ChangeRecord
from semlens_audit.terminal import Text
from semlens_audit.wording import DASH, format_measured

__all__ = ["markdown", "print_change"]

_STYLES: dict[ChangeLabel, str] = {
    "new": "bold red",
    "worsened": "bold red",
    "not_comparable": "bold magenta",
    "removed": "bold magenta",
    "fixed": "green",
    "improved": "green",
    "within_noise": "",
    "added": "yellow",
}


def print_change(change: ChangeRecord, console: Console | None = None) -> None:
    """Print what changed, the gravest first.

    Parameters
    ----------
    change
        What `semlens_audit.change.compare` found.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    if change.entries:
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("result", overflow="fold")
        for name in ("then", "now", "difference"):
            table.add_column(name, justify="right", overflow="fold")
        for entry in ranked(change):
            label = Text(f"{CHANGE_GLYPHS[entry.label]} {CHANGE_WORDS[entry.label]}", style=_STYLES[entry.label])
            cells = (
                # check and place in two lines, so that no name is cut anywhere
                "\n".join(one_line(part) for part in entry.finding.split("/", 1)),
                format_plain(entry.old),
                format_plain(entry.new),
                format_difference(entry.difference),
            )
            table.add_row(label, *map(Text, cells))
        console.print(table)
        console.print()
    for entry in ranked(change):
        if entry.label != "within_noise":
            console.print(Text(f"{one_line(entry.finding)}: {one_line(entry.sentence)}"))
    if any(entry.label != "within_noise" for entry in change.entries):
        console.print()
    console.print(Text(one_line(change.sentence)))
    if change.components is not None:
        _print_components(change.components, console)


def _print_components(found: ComponentChanges, console: Console) -> None:
    """What became of the components, layer by layer."""
    console.print()
    console.print(Text(one_line(f"{opening(found.layers)} {NO_CHECK}")))
    for layer in found.layers:
        console.print()
        console.print(Text(one_line(heading(layer)), style="bold"))
        for sentence in (*layer.sentences, *similarity_sentences(layer)):
            console.print(Text(one_line(sentence)))
        rows = changed_rows(layer)
        if rows:
            table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
            for name in ("", "then", "now", "counted for", "relevance", "similarity"):
                table.add_column(name, justify="right" if name in ("then", "now") else "left", overflow="fold")
            for row in rows:
                table.add_row(*(Text(one_line(cell)) for cell in _cells(row)))
            console.print(table)
        console.print(Text(one_line(f"{counts(layer)}."), style="dim"))
    for remark in found.remarks:
        console.print(Text(one_line(remark), style="yellow"))


def _cells(row: ChangedRow) -> tuple[str, ...]:
    numbers = (DASH if number is None else str(number) for number in (row.first, row.second))
    return (KINDS[row.kind], *numbers, row.counted, row.relevance, row.similarity)


def markdown(change: ChangeRecord) -> str:
    """The comparison as GitHub-flavoured Markdown, ending in a line feed."""
    lines = ["## Change since the baseline", "", escape(change.sentence, None), ""]
    if change.entries:
        lines += ["| Change | Result | Then | Now | Difference |", "| :-- | :-- | --: | --: | --: |"]
        for entry in ranked(change):
            then, now = (format_measured(one) if one is not None else DASH for one in (entry.old, entry.new))
            label = f"{CHANGE_GLYPHS[entry.label]} {CHANGE_WORDS[entry.label]}"
            cells = [label, entry.finding, then, now, format_difference(entry.difference)]
            lines.append(f"| {' | '.join(escape(cell, None) for cell in cells)} |")
        lines.append("")
        lines += [
            f"- {escape(entry.finding, None)}: {escape(entry.sentence, None)}"
            for entry in ranked(change)
            if entry.label != "within_noise"
        ]
        if lines[-1]:
            lines.append("")
    if change.components is not None:
        lines += _component_lines(change.components)
    return "\n".join(lines)


def _component_lines(found: ComponentChanges) -> list[str]:
    """What became of the components, as lines of Markdown."""
    lines = ["### Components since the baseline", "", escape(f"{opening(found.layers)} {NO_CHECK}", None), ""]
    for layer in found.layers:
        lines += [f"#### {escape(heading(layer), None)}", ""]
        lines += [f"- {escape(sentence, None)}" for sentence in (*layer.sentences, *similarity_sentences(layer))]
        lines += [f"- {escape(counts(layer), None)}.", ""]
        rows = changed_rows(layer)
        if rows:
            lines += ["| Component | Then | Now | Counted for | Relevance | Similarity |", "| :-- | --: | --: | :-- | :-- | :-- |"]
            lines += [f"| {' | '.join(escape(cell, None) for cell in _cells(row))} |" for row in rows]
            lines.append("")
    lines += [f"- {escape(remark, None)}" for remark in found.remarks]
    return [*lines, ""] if found.remarks else lines
