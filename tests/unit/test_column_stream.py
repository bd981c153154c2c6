from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from semlens_audit.column_stream import ColumnStream


def through(*columns: Any) -> list[np.ndarray]:
    """The columns after a way through the database."""
    with duckdb.connect() as connection:
        stream = ColumnStream({f"c{i}": column for i, column in enumerate(columns)})
        connection.register("given", stream)
        connection.execute("CREATE TABLE kept AS SELECT * FROM given")
        connection.unregister("given")
        del stream
        gc.collect()
        return list(connection.execute("SELECT * FROM kept").fetchnumpy().values())


@settings(max_examples=12, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(1, 9))
def test_numbers_and_vectors_come_back_to_the_bit(data: st.DataObject, rows: int, width: int) -> None:
    kind = data.draw(st.sampled_from(["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"]))
    values = data.draw(arrays.arrays(kind, rows))
    vectors = data.draw(arrays.arrays(np.float32, (rows, width)))
    came, stacked = through(values, vectors)
    assert came.dtype == values.dtype
    assert came.tobytes() == values.tobytes() or np.isnan(values).any()
    np.testing.assert_array_equal(came, values)
    np.testing.assert_array_equal(np.stack(stacked), vectors)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=1, max_size=40))
def test_text_with_gaps(values: list[str | None]) -> None:
    if any(value is not None for value in values):
        assert np.ma.asarray(through(values)[0]).tolist() == values


def test_bytes_gaps_masks_and_cuts() -> None:
    every = np.arange(40, dtype=np.float32).reshape(4, 10)
    masked = np.ma.array([1.5, 2.5, 3.5], mask=[False, True, False])
    came = through([b"", None, b"\x00\xff"], [None, 0.5, 2.0], masked, every[:3, ::2], [True, False, True], np.array(["a", "b", "c"]))
    assert np.ma.asarray(came[0]).tolist() == [b"", None, b"\x00\xff"]
    assert np.ma.asarray(came[1]).tolist() == [None, 0.5, 2.0]
    assert np.ma.asarray(came[2]).tolist() == [1.5, None, 3.5]
    np.testing.assert_array_equal(np.stack(came[3]), every[:3, ::2])
    assert came[4].tolist() == [True, False, True]
    assert came[5].tolist() == ["a", "b", "c"]


def test_either_order_of_bytes() -> None:
    wanted = np.array([1.5, -2.25, 3e7], dtype=np.float32)
    for kind in ("<f4", ">f4"):
        vectors = np.stack([wanted, wanted, 2 * wanted]).astype(kind)
        came, stacked = through(wanted.astype(kind), vectors)
        np.testing.assert_array_equal(came, wanted)
        np.testing.assert_array_equal(np.stack(stacked), vectors)


def test_what_is_no_column_is_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        ColumnStream({"a": [1, 2], "b": np.zeros((3, 2))})
    with pytest.raises(TypeError, match="complex"):
        ColumnStream({"a": np.zeros(2, dtype=complex)})
    with pytest.raises(TypeError, match="object"):
        ColumnStream({"a": [object()]})
    with pytest.raises(TypeError, match="shape"):
        ColumnStream({"a": np.zeros((2, 3, 2))})


def test_needs_no_other_library() -> None:
    code = """
        import sys
        import duckdb, numpy
        from semlens_audit.column_stream import ColumnStream

        class Absent:
            def find_spec(self, name, *_):
                if name.partition(".")[0] in {"pandas", "pyarrow", "polars"}:
                    raise ImportError(name)

        sys.meta_path.insert(0, Absent())
        with duckdb.connect() as connection:
            stream = ColumnStream({"a": numpy.arange(5000), "b": numpy.ones((5000, 3), dtype=numpy.float32)})
            connection.register("given", stream)
            print(connection.execute("SELECT sum(a), sum(list_sum(b)) FROM given").fetchall())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[(12497500, 15000.0)]"
