"""What verifying a file came to: one line a question, each proven, refused, or not checked with the reason."""

from __future__ import annotations

from typing import Literal

from semlens_audit.errors import AuditError, ExitCode
from semlens_audit.frozen import Frozen

__all__ = ["CheckedLine", "LineState", "Verification", "not_checked", "proven", "refused"]

LineState = Literal["proven", "refused", "not_checked"]


class CheckedLine(Frozen):
    """One question about a file and its answer."""

    id: str
    """Stable name, e.g. ``signature-1``."""
    question: str
    """What was looked at, in words."""
    state: LineState
    detail: str
    """What was found; where refused or not checked, why."""
    exit_code: ExitCode = ExitCode.INTEGRITY
    """What the process ends with if this line is refused."""


class Verification(Frozen):
    """The answer to all questions about one file."""

    file: str
    kind: Literal["pdf", "html", "record", "envelope"]
    lines: tuple[CheckedLine, ...]
    proven: tuple[str, ...] = ()
    """What follows, in sentences; empty where anything is refused."""
    not_proven: tuple[str, ...] = ()
    """What does not follow, in sentences."""

    @property
    def exit_code(self) -> ExitCode:
        """0 where nothing is refused and something is proven; 6 where anything is refused; 5 where nothing but waivers is."""
        refusals = {line.exit_code for line in self.lines if line.state == "refused"}
        if refusals == {ExitCode.WAIVER}:
            return ExitCode.WAIVER
        if refusals or not any(line.state == "proven" for line in self.lines):
            return ExitCode.INTEGRITY
        return ExitCode.SATISFIED


def proven(identifier: str, question: str, detail: str) -> CheckedLine:
    """A line that holds."""
    return CheckedLine(id=identifier, question=question, state="proven", detail=detail)


def not_checked(identifier: str, question: str, why: str) -> CheckedLine:
    """A line that could not be looked at."""
    return CheckedLine(id=identifier, question=question, state="not_checked", detail=why)


def refused(identifier: str, question: str, why: str | AuditError, exit_code: ExitCode = ExitCode.INTEGRITY) -> CheckedLine:
    """A line that does not hold."""
    said = why if isinstance(why, str) else " ".join(problem.message for problem in why.problems[:3])
    return CheckedLine(id=identifier, question=question, state="refused", detail=said, exit_code=exit_code)
