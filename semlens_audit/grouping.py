"""Which samples are no independent evidence: photographs of one lesion, frames of one film, copies of one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semlens_audit.errors import DataError
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.tables import read_column

__all__ = ["independent_units", "joined"]


def independent_units(plan: AuditPlan, paths: Sequence[str], digests: Sequence[str]) -> np.ndarray:
    """Independent unit of each sample.

    Samples with the same value in the audit's ``data.groups`` column belong together, and so do identical images. A sample without a
    value, as where the column is empty, belongs to no group.

    Parameters
    ----------
    plan
        The audit. The column is one of the labels' table, or of the attributes' table where there is no table of labels.
    paths
        N sample paths.
    digests
        N content digests.

    Returns
    -------
    numpy.ndarray
        (N,) int64, numbered from 0 in the order of first occurrence.

    Raises
    ------
    DataError
        ``groups-without-table`` if the audit names a column and no table; ``missing-column`` if the table lacks it;
        ``groups-mismatch`` if a sample has no row.
    """
    data = plan.audit.data
    if data.groups is None:
        return joined([list(digests)])
    named = data.labels or data.attributes
    if named is None:
        raise DataError(
            "groups-without-table",
            f"`data.groups` names the column {data.groups!r}, but the audit has no table.",
            "Give `labels` or `attributes`: the CSV that has this column.",
            file=plan.audit_file,
        )
    table: Path = resolve(plan, named)
    values = read_column(table, data.image_column, data.groups, data.image_suffix)
    missing = [path for path in paths if path not in values]
    if missing:
        raise DataError(
            "groups-mismatch",
            f"The table has no row for {len(missing)} of {len(paths)} samples, e.g. {missing[0]}, so that their group is unknown.",
            "Give one row per sample; leave the group empty where a sample belongs to none.",
            file=str(table),
        )
    return joined([[values[path] or None for path in paths], list(digests)])


def joined(columns: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Number the sets of rows that share a value in any of the columns, directly or through others.

    Parameters
    ----------
    columns
        Columns of N values each, at least one column; None joins nothing.

    Returns
    -------
    numpy.ndarray
        (N,) int64, numbered from 0 in the order of first occurrence.
    """
    parent = list(range(len(columns[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for column in columns:
        first: dict[str, int] = {}
        for row, value in enumerate(column):
            if value is not None:
                one, other = root(first.setdefault(value, row)), root(row)
                parent[max(one, other)] = min(one, other)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(row), len(numbers)) for row in range(len(parent))], dtype=np.int64)
