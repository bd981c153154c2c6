"""Waivers and what became of them: as a table, as plain values, and as complaints with their lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from rich.console import Console
from rich.table import Table

from semlens_audit.errors import Problem
from semlens_audit.plain_text import one_line
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord
from semlens_audit.release_policy import Policy
from semlens_audit.release_records import WaiverState
from semlens_audit.terminal import Text
from semlens_audit.waiver_judgement import BAD, judge_declared, judge_waivers
from semlens_audit.waivers import Declared, scope_words
from semlens_audit.wording import count

__all__ = ["Row", "complaints", "print_rows", "rows", "values", "warnings"]

_WORDS: dict[WaiverState | None, tuple[str, str]] = {
    None: ("✓ in force", "green"),
    "applied": ("! applied", "yellow"),
    "not_needed": ("✓ not needed", "green"),
    "not_in_force": ("○ not in force", "magenta"),
    "expired": ("✗ expired", "bold red"),
    "exceeded": ("✗ exceeded", "bold red"),
    "unmatched": ("✗ unmatched", "bold red"),
    "invalid": ("✗ invalid", "bold red"),
}


@dataclass(frozen=True)
class Row:
    """One waiver and what became of it.

    Parameters
    ----------
    state
        ``None``: nothing speaks against it, and there is no result yet to hold it against.
    days
        Until its last day; negative once that is past.
    """

    check: str
    where: str | None
    scope: str
    state: WaiverState | None
    sentence: str
    owner: str
    approver: str
    created: str
    expires: str
    days: int
    ticket: str
    ceiling: float
    line: int


def rows(declared: Declared, subject: AuditPlan | AuditRecord, today: date) -> tuple[Row, ...]:
    """Every waiver, held against a record under its own policy, or where there is none, against what an audit asks."""
    if isinstance(subject, AuditRecord):
        policy = Policy(subject.gate.fail_on, subject.gate.on_inconclusive) if subject.gate is not None else Policy()
        judged = judge_waivers(subject, declared.waivers, policy, today)
        standings: Sequence[tuple[WaiverState | None, str]] = [(one.state, one.sentence) for one in judged]
    else:
        standings = judge_declared(subject, declared.waivers, today)
    return tuple(
        Row(
            check=one.check,
            where=one.where,
            scope=scope_words(one.scope),
            state=state,
            sentence=sentence,
            owner=one.owner,
            approver=one.approver,
            created=one.created.isoformat(),
            expires=one.expires.isoformat(),
            days=(one.expires - today).days,
            ticket=one.ticket,
            ceiling=one.ceiling,
            line=line,
        )
        for one, line, (state, sentence) in zip(declared.waivers, declared.lines, standings, strict=True)
    )


def complaints(listed: Sequence[Row], file: str) -> tuple[Problem, ...]:
    """Waivers that end with exit code 5, each with its line."""
    hint = "Renew it with a new approval, or remove it."
    return tuple(
        Problem(f"waiver-{row.state}", f"Waiver of {row.check}: {one_line(row.sentence)}", hint, file, row.line)
        for row in listed
        if row.state in BAD
    )


def warnings(listed: Sequence[Row], file: str, days: int) -> tuple[Problem, ...]:
    """Waivers that hold, but not for much longer than `days`."""
    hint = "Decide again before then."
    return tuple(
        Problem("waiver-expires-soon", f"Waiver of {row.check} expires {_in(row.days)} ({row.expires}).", hint, file, row.line)
        for row in listed
        if row.state not in BAD and row.days <= days
    )


def _in(days: int) -> str:
    return "today" if days <= 0 else f"in {count(days, 'day')}"


def values(listed: Sequence[Row]) -> list[dict[str, Any]]:
    """The same as plain values for scripts."""
    return [asdict(row) for row in listed]


def print_rows(listed: Sequence[Row], console: Console | None = None) -> None:
    """Print waivers as a table, with the sentence on each below it; to stdout by default."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    for name in ("", "check", "where", "until", "owner", "approver", "ticket"):
        table.add_column(name, overflow="fold", no_wrap=name in ("", "until"))
    for row in listed:
        word, style = _WORDS[row.state]
        cells = (row.check, row.where or "–", row.expires, row.owner, row.approver, row.ticket)
        table.add_row(Text(word, style=style), *(Text(one_line(cell)) for cell in cells))
    console.print(table)
    console.print()
    for row in listed:
        console.print(Text(f"{row.check}: {one_line(row.sentence)}"))
