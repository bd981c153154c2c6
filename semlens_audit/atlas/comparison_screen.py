"""Measures and comparisons on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from semlens_audit.atlas import comparison_words as words
from semlens_audit.atlas.compared import Comparison, LayerComparison
from semlens_audit.terminal import Text
from semlens_audit.wording import count, format_number

if TYPE_CHECKING:
    from semlens_audit.atlas.measures import MeasureTable

__all__ = ["print_comparison", "print_measures"]


def print_measures(table: MeasureTable, *, files: Sequence[str] = (), console: Console | None = None) -> None:
    """Print interpretability measures.

    Parameters
    ----------
    table
        What was measured.
    files
        Files written.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    several = len({row.audit for row in table.rows}) > 1
    heads = ["audit"] * several + ["layer", "measure", "components by", "value", "other components", "random crops", "components"]
    rows = []
    for row in table.rows:
        wide, found = row.population, row.measurement
        cells = [row.audit] * several + [
            row.layer,
            row.quantity,
            "count" if row.weighting is None else f"relevance, {row.weighting}",
            found.not_measured or words.cosine(found.value, found.interval),
            "–" if wide is None else f"{format_number(wide.low, 2)} to {format_number(wide.high, 2)}",
            "–" if row.chance is None else format_number(row.chance, 2),
            f"{found.n:,} of {row.components:,}" + (f", {row.dead:,} dead" if row.dead else ""),
        ]
        rows.append(cells)
    console.print(_table(heads, rows, numeric=("random crops", "components")))
    _close(console, table.remarks, files)


def print_comparison(found: Comparison, *, top: int, files: Sequence[str] = (), console: Console | None = None) -> None:
    """Print a comparison.

    Parameters
    ----------
    found
        What was found.
    top
        Components of each list.
    files
        Files written.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    for layer in found.layers:
        first, second = words.side_name(layer, "first"), words.side_name(layer, "second")
        title = f"{layer.first.layer} of {layer.first.audit} against {layer.second.layer} of {layer.second.audit}"
        console.print(Text(title, style="bold"))
        for sentence in words.sentences(layer):
            console.print(Text(sentence))
        console.print()
        console.print(_table(["set similarity", "seen", "components", "value", "other components", "chance"], words.similarity_rows(layer)))
        console.print()
        states = ["layer", "state", "components", "relevance"]
        console.print(_table(states, words.state_rows(layer), numeric=("components",), unless=layer.class_name))
        if layer.concept_shares:
            rows = [
                (
                    "●" if row.changed else "",
                    row.concept or "unexplained",
                    words.between(row.first),
                    words.between(row.second),
                    words.points(row.change),
                )
                for row in words.by_change(layer)
            ]
            console.print()
            console.print(_table(["", "concept", first, second, "change, points"], rows))
        _lists(console, layer, top)
        console.print()
    _close(console, found.remarks, files)


def _lists(console: Console, layer: LayerComparison, top: int) -> None:
    for state in ("learned", "lost", "open"):
        members = words.ordered([one for one in layer.singles if one.state == state])
        if members:
            rows = [
                (
                    f"{words.side_name(layer, one.side)} {one.component}",
                    one.concept or "–",
                    words.percent(one.share),
                    words.cosine(one.similarity, one.interval),
                    "–" if one.level is None else format_number(one.level, 2),
                    one.reason,
                )
                for one in members[:top]
            ]
            console.print()
            console.print(_table([state, "counted for", "relevance", "nearest there", "chance", ""], rows, unless=layer.class_name))
            if len(members) > top:
                console.print(Text(f"and {count(len(members) - top, 'more', 'more')}", style="dim"))
    pairs = sorted(layer.pairs, key=lambda one: (not one.shifted, -abs((one.second_share or 0.0) - (one.first_share or 0.0))))
    if pairs:
        cells = [
            (
                f"{one.first} – {one.second}",
                words.cosine(one.similarity, one.interval),
                f"{one.first_concept or '–'} → {one.second_concept or '–'}" if one.shifted else one.second_concept or "–",
                f"{words.percent(one.first_share)} → {words.percent(one.second_share)}",
                words.points(one.change) + ("" if one.changed else ", noise"),
            )
            for one in pairs[:top]
        ]
        console.print()
        console.print(_table(["pair", "similarity", "counted for", "relevance", "change, points"], cells, unless=layer.class_name))
        if len(pairs) > top:
            console.print(Text(f"and {count(len(pairs) - top, 'more pair')}", style="dim"))


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = (), unless: str | None = ""
) -> Table:
    """A table; without columns on relevance where `unless`, the class that it is for, is None."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    kept = [place for place, name in enumerate(heads) if unless is not None or name not in ("relevance", "change, points")]
    for place in kept:
        table.add_column(heads[place], justify="right" if heads[place] in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[place]) for place in kept))
    return table


def _close(console: Console, remarks: Sequence[str], files: Sequence[str]) -> None:
    for remark in remarks:
        console.print(Text(remark, style="yellow"))
    for path in files:
        console.print(Text(path, style="cyan"), soft_wrap=True)
