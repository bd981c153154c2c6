"""Waivers: declared, dated, approved exceptions, and the file that people write them in.

The file lies beside the audit (``AUDIT.waivers.yaml`` for ``AUDIT.yaml``). A waiver never changes what was found; whether it lets a
release go out, `semlens_audit.gate` decides. What makes a waiver more than a switch: it names who asked for it and who else approved
it (segregation of duties: ISO/IEC 27001:2022, Annex A, 5.3), why, for which model, until when (at most `LONGEST` days), under which
ticket, what asks for a new decision before that, and the worst value that it was granted for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field

from semlens_audit import yaml_source
from semlens_audit.errors import Problem, WaiverError
from semlens_audit.plan import Identifier, Text
from semlens_audit.release_records import DocumentRecord
from semlens_audit.spec_rules import mappings
from semlens_audit.spec_shape import validate
from semlens_audit.yaml_source import Source

__all__ = [
    "LONGEST", "SHORTEST_JUSTIFICATION", "Declared", "Scope", "Waiver", "WaiversFile", "beside", "complaints", "covers", "faults", "find",
    "parse", "person", "read", "repeated", "schema", "scope_words",
]  # fmt: skip

LONGEST = 180
"""Days from the day a waiver was granted to the last day on which it holds, at most."""
SHORTEST_JUSTIFICATION = 30
"""Characters of a justification, at least: less says nothing that a reader could judge."""

_DATE = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SHA256 = re.compile("[0-9a-f]{64}")
_Line = Annotated[str, Field(min_length=1, max_length=400)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Scope(_Declared):
    """The model that a waiver speaks of: exactly one of the two."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["model_sha256"]}, {"required": ["versions"]}]})

    model_sha256: str | None = Field(default=None, max_length=64)
    """Digest of its weights, as reports print it (64 hexadecimal digits)."""
    versions: str | None = Field(default=None, max_length=100)
    """Range of versions, e.g. ``>=1.0,<2.0`` (PEP 440), held against ``subject.version`` of the audit."""


class Waiver(_Declared):
    """One exception as it is declared."""

    check: Identifier
    """Id of the check."""
    where: _Line | None = None
    """Layer or concept of the result that is waived; default: every result of the check."""
    scope: Scope
    justification: Text
    """Why the release may go out although the check asks for more."""
    owner: _Line
    """Who answers for it."""
    approver: _Line
    """Who approved it; someone other than the owner."""
    created: date
    """Day on which it was granted."""
    expires: date
    """Last day on which it holds."""
    ticket: _Line
    """Where the matter is followed up."""
    revalidate_on: Annotated[str, Field(min_length=1, max_length=1000)]
    """What asks for a new decision before it expires."""
    ceiling: float
    """The worst value that it was granted for, in the unit of the criterion: an estimate beyond it voids the waiver."""


class WaiversFile(_Declared):
    """What a waivers file holds."""

    waivers: tuple[Waiver, ...]


@dataclass(frozen=True)
class Declared:
    """The waivers of one file.

    Parameters
    ----------
    waivers
        In the file's order.
    lines
        1-based line of each.
    document
        The file as it stands, for the record.
    problems
        What breaks a rule that the gate judges (see `faults`), each with its place; such a waiver never holds.
    """

    waivers: tuple[Waiver, ...]
    lines: tuple[int, ...]
    document: DocumentRecord
    problems: tuple[Problem, ...] = ()


def beside(audit_file: Path | str) -> Path:
    """Where the waivers of an audit lie: ``AUDIT.waivers.yaml`` for ``AUDIT.yaml``."""
    return Path(audit_file).with_suffix(".waivers.yaml")


def find(audit_file: Path | str, given: Path | None = None) -> Declared | None:
    """The waivers in `given`, which must be there, or else in the file beside the audit, if there is one; raises as `read`."""
    if given is not None:
        return read(given)
    path = beside(audit_file)
    return read(path) if path.exists() or path.is_symlink() else None


def read(path: Path) -> Declared:
    """Read a waivers file.

    Raises
    ------
    WaiverError
        With every problem of the file, where it cannot be read as what it should be. Waivers that are legible but break a rule
        (approved by their owner, too long, ...) raise nothing: they must stay visible, see `Declared.problems`.
    """
    return _declared(yaml_source.load(path), path.name)


def complaints(path: Path) -> tuple[Problem, ...]:
    """Everything that is wrong with a waivers file, in the order of its lines, whether or not it is legible."""
    try:
        return read(path).problems
    except WaiverError as error:
        return error.problems


def parse(content: bytes, file: str) -> Declared:
    """The waivers in the bytes of a file; `file` is the name that problems give it. Raises as `read`."""
    return _declared(yaml_source.parse(content, file), Path(file).name)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a waivers file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **WaiversFile.model_json_schema()}


def person(name: str) -> tuple[str, ...]:
    """What a name is compared by: its words in any order, whatever their case, spacing, punctuation and Unicode form (NFKC)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return tuple(sorted("".join(_kept(character) for character in folded).split()))


def _kept(character: str) -> str:
    """Of a name: letters and digits as they are, nothing for what is not seen or lies on a letter, a space for the rest."""
    if character.isalnum():
        return character
    return "" if unicodedata.category(character) in ("Cf", "Mn") else " "


def scope_words(scope: Scope) -> str:
    """Of which model a waiver speaks."""
    if scope.model_sha256 is not None:
        return f"weights {scope.model_sha256[:12]}"
    return f"versions {scope.versions}"


def covers(scope: Scope, weights_sha256: str, version: str | None) -> str | None:
    """Why `scope` does not cover a model; ``None`` where it does.

    Parameters
    ----------
    weights_sha256, version
        Of the model; pre-releases count as versions like any other.
    """
    if scope.model_sha256 is not None:
        if scope.model_sha256 == weights_sha256:
            return None
        return f"it was granted for the weights {scope.model_sha256[:12]}, and these are {weights_sha256[:12]}"
    if version is None:
        return f"it was granted for the versions {scope.versions}, and the audit states no version of the model"
    try:
        allowed = SpecifierSet(scope.versions or "")
    except InvalidSpecifier:
        return f"`{scope.versions}` is no range of versions"
    try:
        inside = allowed.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return (
            f"the model's version `{version}` cannot be held against a range (PEP 440); name the digest of its weights instead"
        )
    return (
        None
        if inside and scope.versions
        else f"it was granted for the versions {scope.versions}, and this is version {version}"
    )


def faults(waiver: Waiver) -> tuple[tuple[str, str, str, str], ...]:
    """Rules that a waiver breaks by itself, whatever was measured: key, slug, what is wrong (a clause), what to do."""
    found = []
    if person(waiver.owner) == person(waiver.approver):
        found.append(
            ("approver", "self-approved", f"it is approved by its owner, {waiver.owner}", "Have someone else approve it.")
        )
    days = (waiver.expires - waiver.created).days
    if days < 0:
        said = f"it expires on {waiver.expires.isoformat()}, before it was granted on {waiver.created.isoformat()}"
        found.append(("expires", "expires-early", said, "Mend the dates."))
    if days > LONGEST:
        said = f"it holds for {days} days; at most {LONGEST} are allowed"
        found.append(("expires", "expires-late", said, "Choose an earlier day, and decide again when it comes."))
    return tuple(found)


def repeated(waivers: Sequence[Waiver]) -> dict[int, int]:
    """Index of a waiver -> index of an earlier one of the same check, place and scope."""
    first: dict[tuple[str, str | None, Scope], int] = {}
    found = {}
    for index, waiver in enumerate(waivers):
        key = (waiver.check, waiver.where, waiver.scope)
        if key in first:
            found[index] = first[key]
        first.setdefault(key, index)
    return found


def _declared(source: Source, name: str) -> Declared:
    if source.data is not None:
        _check(source)
        complained = {(problem.line, problem.column) for problem in source.problems}
        known = len(source.problems)
        file = validate(WaiversFile, source)
        # a rule above says it better than the shape does
        vague = [p for p in source.problems[known:] if p.slug == "invalid-value" and (p.line, p.column) in complained]
        source.problems = [problem for problem in source.problems if problem not in vague]
    else:
        file = None
    if source.problems or file is None:
        problems = tuple(sorted(source.problems, key=lambda problem: (problem.line or 0, problem.column or 0)))
        raise WaiverError(problems[0].slug, problems[0].message, problems=problems)
    places = source.places
    problems = tuple(
        places.problem(slug, ("waivers", index, key), f"waiver {index + 1} ({waiver.check}): {said}.", hint)
        for index, waiver in enumerate(file.waivers)
        for key, slug, said, hint in faults(waiver)
    ) + tuple(
        places.problem(
            "duplicate-waiver",
            ("waivers", index),
            f"waiver {index + 1} ({file.waivers[index].check}): the same result of the same model is waived on line "
            f"{places.value(('waivers', first))[0]} already.",
            "Keep one of them.",
        )
        for index, first in repeated(file.waivers).items()
    )
    return Declared(
        waivers=file.waivers,
        lines=tuple(places.value(("waivers", index))[0] for index in range(len(file.waivers))),
        document=DocumentRecord(
            kind="waivers", name=name, media_type="application/yaml", sha256=source.sha256, text=source.text
        ),
        problems=tuple(sorted(problems, key=lambda problem: problem.line or 0)),
    )


def _check(source: Source) -> None:
    """Add what the shape cannot say well: dates, scopes, justifications, names."""
    for index, waiver in mappings(source.data, "waivers"):
        at = ("waivers", index)
        for key in ("created", "expires"):
            value = waiver.get(key)
            if value is not None and not (isinstance(value, str) and _is_date(value)):
                source.complain("bad-date", (*at, key), f"`{key}` is no date: {_cut(str(value))}.", "Write it as `2026-01-31`.")
        scope = waiver.get("scope")
        if isinstance(scope, dict):
            _check_scope(source, (*at, "scope"), scope)
        text = waiver.get("justification")
        if isinstance(text, str) and text and len("".join(text.split())) < SHORTEST_JUSTIFICATION:
            said = f"the justification has fewer than {SHORTEST_JUSTIFICATION} characters."
            hint = "Say why the release may go out all the same, so that a reader can judge it."
            source.complain("short-justification", (*at, "justification"), said, hint)
        for key in ("owner", "approver"):
            if isinstance(name := waiver.get(key), str) and name and not person(name):
                source.complain("no-name", (*at, key), f"`{key}` names no one: {_cut(name)}.", "Write the person's name.")


def _is_date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _check_scope(source: Source, at: tuple[str | int, ...], scope: dict[str, Any]) -> None:
    weights, versions = scope.get("model_sha256"), scope.get("versions")
    if (weights is None) == (versions is None) and not set(scope) - {"model_sha256", "versions"}:
        source.complain(
            "bad-scope",
            at,
            "the scope must name either the model's digest or a range of versions.",
            'Write `scope: {model_sha256: ...}` or `scope: {versions: ">=1.0,<2.0"}`.',
        )
    if isinstance(weights, str) and not _SHA256.fullmatch(weights):
        hint = "Take all 64 hexadecimal digits (in small letters) from the section “Identity” of the report."
        source.complain("bad-digest", (*at, "model_sha256"), f"`{_cut(weights)}` is no SHA-256.", hint)
    if isinstance(versions, str):
        try:
            empty = not SpecifierSet(versions)
        except InvalidSpecifier:
            empty = True
        if empty:
            hint = "Write for example `>=1.0,<2.0` (PEP 440)."
            source.complain("bad-versions", (*at, "versions"), f"`{_cut(versions)}` is no range of versions.", hint)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
