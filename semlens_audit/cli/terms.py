"""Options that decide on a release, shared by `run` and `gate`."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from semlens_audit.errors import UsageError

if TYPE_CHECKING:
    from semlens_audit.results import Terms

__all__ = ["Baseline", "Components", "FailOn", "OnInconclusive", "Today", "WaiversFile", "day", "terms"]

_PANEL = "Release gate"
_Severity = Literal["critical", "major", "minor"]
_Inconclusive = Literal["inconclusive", "fail", "pass"]

FailOn = Annotated[
    _Severity,
    typer.Option("--fail-on", help="Least severity of a result that stops the release.", rich_help_panel=_PANEL),
]
OnInconclusive = Annotated[
    _Inconclusive,
    typer.Option(
        "--on-inconclusive",
        help="What an inconclusive result does: exit code 3, fail like one that is not satisfied, or pass.",
        rich_help_panel=_PANEL,
    ),
]
WaiversFile = Annotated[
    Path | None,
    typer.Option(
        "--waivers",
        metavar="FILE.yaml",
        help="Waivers, instead of those beside the audit (AUDIT.waivers.yaml) or in the record.",
        rich_help_panel=_PANEL,
    ),
]
Today = Annotated[
    str | None,
    typer.Option("--today", metavar="YYYY-MM-DD", help="Date on which waivers are judged.", rich_help_panel=_PANEL),
]


Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="RESULTS.json|REPORT.pdf",
        help="Record of the last release: the report says what changed since; where its index lies in the same store, in components too.",
        rich_help_panel=_PANEL,
    ),
]


Components = Annotated[
    list[Path] | None,
    typer.Option(
        "--components",
        metavar="COMPARE.json",
        help="What `compare OLD NEW --json --pictures` printed: the report says what became of the components; once for each class.",
        rich_help_panel=_PANEL,
    ),
]


def day(text: str | None) -> date:
    """The date that `text` means; the present one (UTC) where it is ``None``.

    Raises
    ------
    UsageError
        ``bad-date``.
    """
    if text is None:
        return datetime.now(UTC).date()
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.isoformat() != text:
        raise UsageError("bad-date", f"`{text[:40]}` is no date.", "Write it as 2026-01-31.")
    return found


def terms(
    fail_on: _Severity,
    on_inconclusive: _Inconclusive,
    waivers: Path | None,
    today: date | None,
    baseline: Path | None,
    components: list[Path] | None = None,
) -> Terms:
    """What the options say."""
    from semlens_audit.release_policy import Policy
    from semlens_audit.results import Terms

    return Terms(Policy(fail_on, on_inconclusive), waivers, today, baseline, tuple(components or ()))
