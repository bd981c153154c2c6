"""CSV tables beside the images: labels and attributes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from semlens_audit.errors import DataError, Problem
from semlens_audit.plan import AuditPlan

__all__ = ["PairRow", "read_attributes", "read_labels", "read_pairs", "some"]

_TRUE = frozenset({"1", "1.0", "true", "yes"})
_FALSE = frozenset({"0", "0.0", "false", "no"})
_UNKNOWN = frozenset({"", "-1", "na", "nan", "unknown", "?"})


def read_labels(path: Path, image_column: str, label_column: str, suffix: str) -> list[tuple[str, str]]:
    """(relative path, label text) of every row.

    Raises
    ------
    DataError
        A table or column that is missing or unreadable, a path outside the data folder, an image listed twice.
    """
    rows = _read_table(path, (image_column, label_column))
    found: dict[str, int] = {}
    result = []
    for line, row in enumerate(rows, start=2):
        name = _inside(row[image_column].strip() + suffix, path, line)
        if name in found:
            raise DataError(
                "duplicate-sample",
                f"{name} is listed twice (first in line {found[name]}).",
                "Keep one row per image.",
                file=str(path),
                line=line,
            )
        found[name] = line
        result.append((name, row[label_column].strip()))
    if not result:
        raise DataError("no-images", "The table has no row.", file=str(path))
    return result


def read_column(path: Path, image_column: str, column: str, suffix: str) -> dict[str, str]:
    """Relative path of an image -> what one column says of it, without spaces around it.

    Raises
    ------
    DataError
        A table or column that is missing or unreadable, a path outside the data folder.
    """
    rows = _read_table(path, (image_column, column))
    return {
        _inside(row[image_column].strip() + suffix, path, line): row[column].strip() for line, row in enumerate(rows, start=2)
    }


def read_attributes(table: Path, plan: AuditPlan, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the columns that the spec's concepts refer to.

    Parameters
    ----------
    table
        CSV with the image column and 0/1 columns; empty where unknown.
    plan
        The audit.
    paths
        N sample paths.

    Returns
    -------
    dict
        column -> (N,) int8 in the order of `paths`: 1, 0, or -1 where unknown.

    Raises
    ------
    DataError
        ``attributes-mismatch``: a sample without row, a column that a concept names and the table lacks, another value.
    """
    data = plan.audit.data
    image_column = data.image_column if not data.rendered else "path"
    suffix = data.image_suffix if not data.rendered else ""
    rows = _read_table(table, (image_column,))
    by_path: dict[str, tuple[int, dict[str, str]]] = {}
    for line, row in enumerate(rows, start=2):
        by_path[_inside(row[image_column].strip() + suffix, table, line)] = (line, row)
    missing = [path for path in paths if path not in by_path]
    if missing:
        raise DataError(
            "attributes-mismatch",
            f"The attributes table has no row for {len(missing)} of {len(paths)} samples ({some(missing)}).",
            f"Give one row per sample; its {image_column!r} must be the sample's path.",
            file=str(table),
        )
    columns = _attribute_columns(plan, list(rows[0]) if rows else [], table)
    values = {column: np.full(len(paths), -1, dtype=np.int8) for column in columns}
    for i, path in enumerate(paths):
        line, row = by_path[path]
        for column in columns:
            values[column][i] = _attribute_value(row[column], column, table, line)
    return values


@dataclass(frozen=True, slots=True)
class PairRow:
    """A row of a table of counterfactual pairs: concept id, paths of the images without and with it, 1-based line."""

    concept: str
    without: str
    present: str
    line: int


def read_pairs(table: Path, plan: AuditPlan) -> list[PairRow]:
    """Read a table of counterfactual pairs.

    Parameters
    ----------
    table
        CSV with the columns ``without`` and ``with`` (paths) and ``concept``: the id of a concept of the spec, or the name of its
        attribute column.
    plan
        The audit.

    Raises
    ------
    DataError
        A table or column that is missing or unreadable; with every unknown concept and every path outside the data folder.
    """
    rows = _read_table(table, ("without", "with", "concept"))
    known = {concept.id: concept.id for concept in reversed(plan.spec.concepts)}
    names = {concept.attribute: concept.id for concept in reversed(plan.spec.concepts) if concept.attribute} | known
    found, problems = [], []
    for line, row in enumerate(rows, start=2):
        name, paths = row["concept"].strip(), []
        if name not in names:
            near = get_close_matches(name, list(names), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The spec's concepts: {', '.join(known)}."
            problems.append(Problem("unknown-concept", f"{name!r} is no concept of the spec.", hint, str(table), line))
        for column in ("without", "with"):
            try:
                paths.append(_inside(row[column].strip(), table, line))
            except DataError as error:
                problems += error.problems
        if name in names and len(paths) == 2:
            found.append(PairRow(names[name], paths[0], paths[1], line))
    if problems:
        first = problems[0]
        raise DataError(first.slug, first.message, first.hint, file=first.file, line=first.line, problems=tuple(problems))
    if not found:
        hint = "Give one row per pair, or leave `data.pairs` out."
        raise DataError("no-pairs", "The table has no row.", hint, file=str(table))
    return found


def _attribute_columns(plan: AuditPlan, header: list[str], table: Path) -> list[str]:
    """Columns to read: those a concept names, and those named like a concept; others (age, site, ...) are left alone."""
    columns = []
    for concept in plan.spec.concepts:
        column = concept.attribute or concept.id
        if column in header and column not in columns:
            columns.append(column)
        elif concept.attribute is not None and column not in header:
            near = get_close_matches(column, header, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(header)}."
            raise DataError(
                "attributes-mismatch",
                f"The attributes table has no column {column!r}, which concept {concept.id!r} names.",
                hint,
                file=str(table),
                line=1,
            )
    return columns


def _attribute_value(text: str | None, column: str, table: Path, line: int) -> int:
    value = (text or "").strip().lower()
    if value in _TRUE:
        return 1
    if value in _FALSE:
        return 0
    if value in _UNKNOWN:
        return -1
    raise DataError(
        "attributes-mismatch",
        f"Column {column!r} holds {text!r}.",
        "Write 1, 0, or nothing where unknown.",
        file=str(table),
        line=line,
    )


def _read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or ())
            rows = list(reader)
    except FileNotFoundError as error:
        raise DataError(
            "missing-table", "The table does not exist.", "Mend its path in the audit.", file=str(path)
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "unreadable-table", f"The table cannot be read: {error}.", "Save it as CSV in UTF-8.", file=str(path)
        ) from error
    for column in columns:
        if column not in header:
            near = get_close_matches(column, header, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(header) or 'no header'}."
            raise DataError("missing-column", f"The table has no column {column!r}.", hint, file=str(path), line=1)
    short = [i for i, row in enumerate(rows, start=2) if any(row[column] is None for column in columns)]
    if short:
        raise DataError(
            "short-row",
            f"The row has fewer values than the header ({len(short)} such rows).",
            "Fill the row.",
            file=str(path),
            line=short[0],
        )
    return rows


def _inside(name: str, table: Path, line: int) -> str:
    """The path in posix form; absolute paths and such as climb out of the folder are refused."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise DataError(
            "bad-path",
            f"The image path {name!r} is not relative to the data folder.",
            "Write it relative to `data.path`.",
            file=str(table),
            line=line,
        )
    return path.as_posix()


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
