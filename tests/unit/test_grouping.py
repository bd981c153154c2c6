"""Independent units from a column of the table and from identical images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.errors import DataError
from semlens_audit.grouping import independent_units, joined
from semlens_audit.plan import AuditPlan, Data

_VALUES = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from(["x", "y", "z", "w", None])), max_size=12)


@given(_VALUES)
@settings(max_examples=100, deadline=None)
def test_joined_equals_the_transitive_closure(rows: list[tuple[str | None, str | None]]) -> None:
    if not rows:
        return
    found = joined([[row[0] for row in rows], [row[1] for row in rows]])
    alike = [[any(a is not None and a == b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
    linked = np.array(alike) | np.eye(len(rows), dtype=bool)
    for _ in rows:
        linked = linked @ linked
    assert np.array_equal(found[:, None] == found[None, :], linked)
    assert list(dict.fromkeys(found)) == list(range(found.max() + 1))


def _plan(plan_of: Callable[..., AuditPlan], folder: Path, text: str | None, **data: str) -> AuditPlan:
    made = plan_of()
    labels = folder / "labels.csv"
    if text is not None:
        labels.write_text(text, encoding="utf-8")
    table = {"source": "csv", "labels": str(labels)} if text else {"source": "folder"}
    changed = Data.model_validate({"path": str(folder)} | table | data)
    return made.model_copy(update={"audit": made.audit.model_copy(update={"data": changed})})


TABLE = "path,label,lesion\na.png,nevus,L1\nb.png,nevus,L1\nc.png,mel,\nd.png,mel,\n"


def test_a_column_and_identical_images_join(plan_of: Callable[..., AuditPlan], tmp_path: Path) -> None:
    plan = _plan(plan_of, tmp_path, TABLE, groups="lesion")
    paths = ["a.png", "b.png", "c.png", "d.png"]
    assert independent_units(plan, paths, ["1", "2", "3", "4"]).tolist() == [0, 0, 1, 2]
    assert independent_units(plan, paths, ["1", "2", "3", "2"]).tolist() == [0, 0, 1, 0]
    without = _plan(plan_of, tmp_path, TABLE)
    assert independent_units(without, paths, ["1", "2", "1", "4"]).tolist() == [0, 1, 0, 2]


def test_an_unknown_column_is_named_with_table_and_line(plan_of: Callable[..., AuditPlan], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'lesions'") as caught:
        independent_units(_plan(plan_of, tmp_path, TABLE, groups="lesions"), ["a.png"], ["1"])
    problem = caught.value.problems[0]
    assert (Path(str(problem.file)).name, problem.line) == ("labels.csv", 1)
    assert "lesion" in problem.hint


def test_a_sample_without_a_row_and_a_column_without_a_table(plan_of: Callable[..., AuditPlan], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row for 1 of 2 samples, e\.g\. e\.png"):
        independent_units(_plan(plan_of, tmp_path, TABLE, groups="lesion"), ["a.png", "e.png"], ["1", "2"])
    with pytest.raises(DataError, match="the audit has no table"):
        independent_units(_plan(plan_of, tmp_path, None, groups="lesion"), ["a.png"], ["1"])
