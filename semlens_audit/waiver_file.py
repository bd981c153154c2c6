"""Adding a waiver to a file that people also edit: comments, order and spelling of what is there stay."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from semlens_audit.errors import Problem, UsageError, WaiverError
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord, Finding
from semlens_audit.spec_shape import nearest
from semlens_audit.waiver_judgement import matching, place
from semlens_audit.waivers import Declared, Scope, Waiver, beside, covers, parse, read

__all__ = ["add", "default_ceiling", "draft"]

_HEADER = """\
# Waivers of {name}: results that do not stop the release, each for one model, until a day, and up to a value.
# Every waiver is judged at every run; one that has expired, is exceeded or matches nothing ends with exit code 5.
"""
_STEP = Decimal("0.001")


def default_ceiling(findings: list[Finding]) -> float:
    """The worst estimate of some results of one check, rounded away from the criterion to three decimals, and never stricter than it.

    Parameters
    ----------
    findings
        Results that are not satisfied or inconclusive, at least one.
    """
    criterion = findings[0].criterion
    at_most = criterion.operator == "at_most"
    values = [one.measurement.value for one in findings if one.measurement.value is not None]
    worst = max([*values, criterion.threshold]) if at_most else min([*values, criterion.threshold])
    return float(Decimal(repr(worst)).quantize(_STEP, ROUND_CEILING if at_most else ROUND_FLOOR))


def draft(
    plan: AuditPlan,
    record: AuditRecord | None,
    *,
    check: str,
    where: str | None,
    scope: Scope,
    ceiling: float | None,
    created: date,
    expires: date,
    words: dict[str, str],
) -> Waiver:
    """A waiver of what the last run found.

    Parameters
    ----------
    plan
        The audit.
    record
        Its last run; ``None``: there is none of this very spec and audit.
    scope
        Of which model it speaks; naming neither digest nor versions, the model of the last run.
    ceiling
        The worst value that it is granted for; ``None``: what the last run measured, see `default_ceiling`.
    words
        ``justification``, ``owner``, ``approver``, ``ticket``, ``revalidate_on``.

    Raises
    ------
    UsageError
        There is nothing to waive, or something is missing or cannot be.
    """
    known = [one.id for one in plan.spec.checks]
    if check not in known:
        raise UsageError("unknown-check", f"The spec has no check `{check}`.", nearest(check, known))
    if scope.versions is not None and (why := covers(scope, "", plan.audit.subject.version)):
        raise UsageError(
            "waiver-of-another-model", f"The waiver would match nothing: {why}.", "Mend the range, or leave it out."
        )
    if record is None and (ceiling is None or scope == Scope()):
        said = "There is no run of this very spec and audit to take the waiver's ceiling and model from."
        raise UsageError("no-run", said, "Run the audit first, or give --ceiling and --versions (or --model).")
    if record is not None:
        scope = Scope(model_sha256=record.subject.weights_sha256) if scope == Scope() else scope
        ceiling = default_ceiling(_needing(record, check, where)) if ceiling is None else ceiling
    try:
        return Waiver.model_validate(
            {
                "check": check,
                "where": where,
                "scope": scope,
                "ceiling": ceiling,
                "created": created,
                "expires": expires,
                **words,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError("invalid-waiver", f"`{field}`: {first['msg']}.", "Nothing was written.") from error


def _needing(record: AuditRecord, check: str, where: str | None) -> list[Finding]:
    """Results that a waiver is for."""
    every = matching(record, check, None)
    matched = matching(record, check, where)
    if not matched:
        said = f"The last run has no result of {check} at `{where}`."
        raise UsageError("unknown-place", said, nearest(str(where), dict.fromkeys(place(one) for one in every)))
    needing = [one for one in matched if one.state in ("not_satisfied", "inconclusive")]
    if not needing:
        missing = any(one.state == "not_measured" for one in matched)
        said = "was not measured, which cannot be waived" if missing else "is satisfied: there is nothing to waive"
        raise UsageError("nothing-to-waive", f"In the last run, {check} {said}.", "See `semlens-audit waiver --help`.")
    return needing


def add(audit_file: Path, waiver: Waiver, path: Path | None = None) -> Declared:
    """Append a waiver to the file beside an audit, or to `path`; the file is made where there is none.

    Returns
    -------
    Declared
        The file as it stands now.

    Raises
    ------
    WaiverError
        The file that is there cannot be read.
    UsageError
        The waiver breaks a rule, or there is one of the same check, place and scope. Nothing is written then.
    """
    target = path or beside(audit_file)
    there = target.exists() or target.is_symlink()
    old = read(target) if there else None
    text = old.document.text if old is not None else _HEADER.format(name=audit_file.name) + "waivers: []\n"
    written = _appended(text.removeprefix("\ufeff"), waiver)
    try:
        new = parse(written.encode("utf-8"), str(target))
    except WaiverError as error:
        raise _refused(error.problems) from error
    before = old.waivers if old is not None else ()
    if new.waivers != (*before, waiver):
        said = "The waiver cannot be added without changing others that are there."
        raise UsageError("waiver-not-added", said, "Write it into the file by hand.", file=str(target))
    if problems := [problem for problem in new.problems if (problem.line or 0) >= new.lines[-1]]:
        raise _refused(problems)
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_text(written, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(target)) from error
    return new


def _refused(problems: Sequence[Problem]) -> UsageError:
    """What is wrong with a waiver that was not written; lines would be those of a file that is not there."""
    said = tuple(Problem(one.slug, one.message, f"{one.hint} Nothing was written.".strip()) for one in problems)
    return UsageError(said[0].slug, said[0].message, problems=said)


def _appended(text: str, waiver: Waiver) -> str:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    entries = document["waivers"]
    if not isinstance(entries, CommentedSeq) or not entries:
        entries = CommentedSeq()
        document["waivers"] = entries
    entries.fa.set_block_style()
    entries.append(_plain(waiver))
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _plain(waiver: Waiver) -> CommentedMap:
    value: dict[str, Any] = waiver.model_dump(mode="json", exclude_none=True)
    quoted = {"where", "justification", "owner", "approver", "ticket", "revalidate_on"}
    entry = CommentedMap({key: DoubleQuotedScalarString(one) if key in quoted else one for key, one in value.items()})
    scope = CommentedMap(value["scope"])
    scope.fa.set_flow_style()
    entry["scope"] = scope
    return entry
