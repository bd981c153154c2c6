"""What a run prints: the findings with the verdict's own words, and the same as plain values for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semlens_audit.records import AuditRecord, Finding, State
from semlens_audit.wording import GLYPHS, STATES, format_criterion, format_measured, join

__all__ = ["print_findings", "print_rows", "summary"]

_STYLES: dict[State, str] = {
    "satisfied": "green",
    "not_satisfied": "bold red",
    "inconclusive": "yellow",
    "not_measured": "bold magenta",
}
_ORDER: tuple[State, ...] = ("not_satisfied", "not_measured", "inconclusive", "satisfied")


def print_findings(record: AuditRecord, files: Sequence[Path], console: Console | None = None) -> None:
    """Print the verdict, its findings (failures first) and where the files lie.

    Parameters
    ----------
    record
        What was found.
    files
        Files written, in the order to name them.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("check", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("layer", overflow="fold")
    table.add_column("measured", justify="right", overflow="fold")
    table.add_column("criterion", justify="right", overflow="fold")
    for finding in sorted(record.findings, key=lambda one: _ORDER.index(one.state)):
        unit = finding.measurement.unit
        table.add_row(
            Text(f"{GLYPHS[finding.state]} {STATES[finding.state].lower()}", style=_STYLES[finding.state]),
            Text(finding.check),
            Text(finding.class_name),
            Text(finding.layer or "all"),
            Text(_measured(finding)),
            Text(format_criterion(finding.criterion, unit)),
        )
    console.print(table)
    console.print()
    verdict = record.verdict
    headline = Text(f"{GLYPHS[verdict.state]} {STATES[verdict.state]}", style=_STYLES[verdict.state])
    headline.append(f" (exit code {int(verdict.exit_code)}). ", style="default not bold")
    headline.append(verdict.headline, style="default not bold")
    console.print(headline)
    for sentence in verdict.agreement:
        console.print(Text(sentence))
    console.print()
    for path in files:
        console.print(Text(str(path), style="cyan"), soft_wrap=True)


def _measured(finding: Finding) -> str:
    if finding.measurement.value is None:
        return f"not measured: {finding.measurement.not_measured}"
    return format_measured(finding.measurement, finding.criterion)


def summary(record: AuditRecord, files: Sequence[Path]) -> dict[str, Any]:
    """Give verdict, findings and files as JSON-ready values; the whole record is the first of `files`."""
    verdict = record.verdict
    return {
        "audit": record.audit.name,
        "state": verdict.state,
        "exit_code": int(verdict.exit_code),
        "headline": verdict.headline,
        "findings": [
            {
                "check": finding.check,
                "class": finding.class_name,
                "layer": finding.layer,
                "concepts": list(finding.concepts),
                "line": finding.line,
                "state": finding.state,
                "measurement": finding.measurement.model_dump(mode="json"),
                "criterion": finding.criterion.model_dump(mode="json", exclude_none=True),
            }
            for finding in record.findings
        ],
        "files": [str(path) for path in files],
    }


def print_rows(rows: Sequence[dict[str, Any]], columns: dict[str, str], console: Console | None = None) -> None:
    """Print `rows` as a table.

    Parameters
    ----------
    rows
        One mapping a row; lists are joined, numbers rounded to three digits.
    columns
        Key -> heading, in order; keys that a row lacks stay empty.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim")
    for key, heading in columns.items():
        numeric = any(isinstance(row.get(key), int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(key))) for key in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return join([str(part) for part in value]) if value else "–"
    return str(value)
