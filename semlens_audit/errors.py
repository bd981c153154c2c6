"""The errors a user can cause, each with what is wrong, where it is and what to do about it.

Nothing here prints or exits: `semlens_audit.cli` is the only place that turns an error into text and an exit code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "AuditError", "DataError", "ExitCode", "ExecutionError", "IntegrityError", "Problem", "SpecError", "StoreError",
    "SubjectError", "UsageError", "WaiverError",
]


class ExitCode(IntEnum):
    """Exit codes of the command line: the same number in the record, the report and the shell."""

    SATISFIED = 0
    """Every check was evaluated and satisfied."""
    NOT_SATISFIED = 1
    """At least one check is not satisfied."""
    USAGE = 2
    """The command line, the spec or the audit file is invalid."""
    INCONCLUSIVE = 3
    """No check failed, and at least one interval reaches over its criterion."""
    INCOMPLETE = 4
    """A check could not be measured, no check was evaluated, or the run failed."""
    WAIVER = 5
    """A waiver is expired or invalid."""
    INTEGRITY = 6
    """A digest or signature does not match."""
    INTERRUPTED = 130
    """Interrupted by the user; what was finished is kept."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint about one place.

    Parameters
    ----------
    slug
        Stable machine-readable name of the complaint, e.g. ``"unknown-key"``.
    message
        What is wrong, in one sentence.
    hint
        What to do or write instead; may be empty.
    file
        Path of the file as the user wrote it, or ``None`` where no file is concerned.
    line, column
        1-based position in `file`, or ``None``.
    """

    slug: str
    message: str
    hint: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None

    @property
    def where(self) -> str:
        """``file:line:column`` as far as known, else an empty string."""
        if self.file is None:
            return ""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{place}{self.message} [{self.slug}]{hint}"


class AuditError(Exception):
    """Something the user can mend.

    Parameters
    ----------
    slug, message, hint, file, line, column
        See `Problem`.
    """

    exit_code: ExitCode = ExitCode.INCOMPLETE

    def __init__(
        self, slug: str, message: str, hint: str = "", *, file: str | None = None, line: int | None = None,
        column: int | None = None, problems: tuple[Problem, ...] = (),
    ) -> None:
        first = Problem(slug, message, hint, file, line, column)
        self.problems: tuple[Problem, ...] = problems or (first,)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @property
    def slug(self) -> str:
        """Slug of the first problem."""
        return self.problems[0].slug

    def __reduce__(self) -> tuple[Callable[..., AuditError], tuple[type[AuditError], tuple[Problem, ...]]]:
        return _again, (type(self), self.problems)


def _again(kind: type[AuditError], problems: tuple[Problem, ...]) -> AuditError:
    """The error that another process raised."""
    return kind(problems[0].slug, problems[0].message, problems=problems)


class UsageError(AuditError):
    """The command line asks for something that cannot be."""

    exit_code = ExitCode.USAGE


class SpecError(AuditError):
    """A spec or audit file is invalid; carries every problem found, in file order."""

    exit_code = ExitCode.USAGE

    @classmethod
    def of(cls, problems: list[Problem]) -> SpecError:
        """Bundle `problems` (at least one) into one error."""
        first = problems[0]
        return cls(first.slug, first.message, first.hint, problems=tuple(problems))


class WaiverError(AuditError):
    """A waivers file cannot be read; carries every problem found, in file order."""

    exit_code = ExitCode.WAIVER


class SubjectError(AuditError):
    """The audited model cannot be built, loaded or run as the audit says."""


class DataError(AuditError):
    """The test data cannot be read or does not fit the audit."""


class StoreError(AuditError):
    """The store is locked, corrupt, full or from another version."""


class ExecutionError(AuditError):
    """A computation failed; nothing stored by then is lost."""


class IntegrityError(AuditError):
    """A digest or signature does not match what was recorded."""

    exit_code = ExitCode.INTEGRITY
