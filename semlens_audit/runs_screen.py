"""What `runs` prints: the entries of a store's run log about one audit, for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from semlens_audit.run_log import Entry
from semlens_audit.terminal import Text
from semlens_audit.wording import count, shorten

__all__ = ["print_runs", "values"]

_EVENTS = {"audit": "run", "lock": "locked", "record": "record", "repeat": "repeated"}
_DIGITS = 8


def values(entries: Sequence[Entry], complaints: Sequence[str]) -> dict[str, Any]:
    """JSON-ready values of `entries`, and what is wrong with the chain."""
    return {
        "runs": sum(entry.event == "audit" for entry in entries),
        "intact": not complaints,
        "complaints": list(complaints),
        "entries": [
            {"at": entry.at.isoformat(), "event": entry.event, "sha256": entry.sha256, **entry.detail} for entry in entries
        ],
    }


def print_runs(entries: Sequence[Entry], *, whole: bool, console: Console | None = None) -> None:
    """Print one line an entry, in the order they were written, and whether the chain is intact."""
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    for name in ("when (UTC)", "what", "spec", "lock", "result", "record", "account"):
        table.add_column(name, no_wrap=True)
    for entry in entries:
        detail = entry.detail
        verdict = str(detail.get("verdict") or "–").replace("_", " ")
        if "exit_code" in detail:
            verdict = f"{verdict} ({detail['exit_code']})" if detail.get("verdict") else f"exit code {detail['exit_code']}"
        lock = _short(detail.get("lock"))
        if detail.get("lock_state") == "broken":
            lock += " (broken)"
        cells = [
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            _EVENTS.get(entry.event, entry.event),
            _short(detail.get("spec")),
            lock,
            verdict,
            _short(detail.get("record")),
            str(detail.get("account") or "–"),
        ]
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print()
    number = count(sum(entry.event == "audit" for entry in entries), "run")
    state = "every entry follows the one before it" if whole else "the log is not intact"
    console.print(Text(f"{number} as far as this store knows; {state}."))


def _short(value: object) -> str:
    return shorten(str(value), _DIGITS) if value else "–"
