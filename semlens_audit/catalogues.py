"""Standards and regulations whose clauses checks support evidence for: catalogue files, and the names by which a spec refers to them.

Catalogues come with the tool (``specs/controls/``); those in a folder ``controls`` beside a spec are known to that spec too, and take the
place of a shipped one with the same id. A check names a clause as ``catalogue:clause``, e.g. ``eu-ai-act:art-10-2-f``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from semlens_audit.errors import Problem, SpecError
from semlens_audit.plan import Catalogue
from semlens_audit.release_records import CatalogueRecord, ClauseRecord
from semlens_audit.resources import specs_dir
from semlens_audit.spec_rules import mappings, texts
from semlens_audit.spec_shape import nearest, validate
from semlens_audit.yaml_source import Source, load

__all__ = ["catalogues_of", "check_controls", "read_catalogue"]

FOLDER = "controls"


def read_catalogue(path: Path) -> tuple[Source, Catalogue | None]:
    """Read one catalogue file.

    Returns
    -------
    source : Source
        With every problem of the file.
    catalogue : Catalogue or None
        ``None`` where it does not fit.
    """
    source = load(path)
    if source.data is None:
        return source, None
    catalogue = validate(Catalogue, source)
    first: dict[str, int] = {}
    for index, clause in mappings(source.data, "clauses"):
        identifier = clause.get("id")
        if not isinstance(identifier, str):
            continue
        if identifier in first:
            line = source.places.value(("clauses", first[identifier], "id"))[0]
            source.complain(
                "duplicate-id",
                ("clauses", index, "id"),
                f"the clause id `{identifier}` is taken on line {line}.",
                "Give each its own id.",
            )
        first.setdefault(identifier, index)
    return source, catalogue


def _files(spec_file: Path) -> list[Path]:
    """Catalogue files that a spec knows; shipped ones first, so that those beside the spec take their place."""
    folders = [specs_dir() / FOLDER]
    beside = spec_file.resolve().parent / FOLDER
    if beside != folders[0].resolve() and beside.is_dir():
        folders.append(beside)
    return [path for folder in folders for path in sorted(folder.glob("*.yaml"))]


def _known(spec_file: Path) -> tuple[dict[str, Catalogue], list[Problem]]:
    known: dict[str, Catalogue] = {}
    problems: list[Problem] = []
    for path in _files(spec_file):
        status = path.stat()
        catalogue, found = _read(path, status.st_mtime_ns, status.st_size)
        problems += found
        if catalogue is not None and not found:
            known[catalogue.catalogue] = catalogue
    return known, problems


@functools.lru_cache(maxsize=64)
def _read(path: Path, changed: int, size: int) -> tuple[Catalogue | None, tuple[Problem, ...]]:
    """Catalogue and problems of a file, read once for as long as it stays as it is."""
    source, catalogue = read_catalogue(path)
    return catalogue, tuple(source.problems)


@functools.cache
def _clause_ids(catalogue: Catalogue) -> tuple[str, ...]:
    return tuple(clause.id for clause in catalogue.clauses)


def check_controls(source: Source, spec_file: Path) -> None:
    """Add to ``source.problems`` every control that a check of the spec names and no catalogue has.

    Parameters
    ----------
    source
        The spec as read.
    spec_file
        Its path; catalogues are also looked for in the folder ``controls`` beside it.
    """
    named = [
        (("checks", index, "supports", position), text)
        for index, check in mappings(source.data, "checks")
        for position, text in texts(check, "supports")
    ]
    if not named:
        return
    known, problems = _known(spec_file)
    source.problems += problems
    for path, text in named:
        name, colon, clause = text.partition(":")
        if not colon or name not in known:
            every = ", ".join(f"`{identifier}`" for identifier in known)
            source.complain(
                "unknown-control",
                path,
                f"`{text}` names no clause of a known catalogue." if not colon else f"there is no catalogue `{name}`.",
                f"Write `catalogue:clause`, e.g. `eu-ai-act:art-15-1`. Catalogues: {every}. Own ones go into a folder `{FOLDER}` "
                "beside the spec.",
            )
        elif clause not in _clause_ids(known[name]):
            source.complain(
                "unknown-control", path, f"`{name}` has no clause `{clause}`.", nearest(clause, _clause_ids(known[name]))
            )


def catalogues_of(supports: Iterable[str], spec_file: Path) -> tuple[CatalogueRecord, ...]:
    """Catalogues that checks refer to, whole, in the order of their ids.

    Parameters
    ----------
    supports
        ``catalogue:clause`` of all checks.
    spec_file
        Path of the spec.

    Raises
    ------
    SpecError
        A catalogue file is invalid, or one that is named is not there.
    """
    wanted = sorted({text.partition(":")[0] for text in supports})
    if not wanted:
        return ()
    known, problems = _known(spec_file)
    if problems:
        raise SpecError.of(problems)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise SpecError(
            "unknown-control",
            f"there is no catalogue `{missing[0]}`.",
            f"Put it into a folder `{FOLDER}` beside the spec.",
            file=str(spec_file),
        )
    return tuple(
        CatalogueRecord(
            id=known[name].catalogue,
            title=known[name].title,
            edition=known[name].edition,
            source=known[name].source,
            clauses=tuple(
                ClauseRecord(id=clause.id, title=clause.title, summary=clause.summary, sections=clause.sections, note=clause.note)
                for clause in known[name].clauses
            ),
        )
        for name in wanted
    )
