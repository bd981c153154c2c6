"""Columns of NumPy arrays as the database reads them without a copy: the Arrow C stream interface, from structures alone.

A row that holds a vector costs a Python object each way a database is usually fed. The C data interface
(https://arrow.apache.org/docs/format/CDataInterface.html) describes where a whole column lies in memory instead; DuckDB reads it as
it is. It takes a few structures, and no Arrow library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["ColumnStream"]

_NUMBERS = {
    "b1": b"b", "i1": b"c", "u1": b"C", "i2": b"s", "u2": b"S", "i4": b"i", "u4": b"I", "i8": b"l", "u8": b"L", "f4": b"f", "f8": b"g",
}  # fmt: skip
_NULLABLE = 2


class _Schema(ctypes.Structure):
    """ArrowSchema."""


class _Array(ctypes.Structure):
    """ArrowArray."""


class _Stream(ctypes.Structure):
    """ArrowArrayStream."""


_SchemaPointer, _ArrayPointer, _StreamPointer = ctypes.POINTER(_Schema), ctypes.POINTER(_Array), ctypes.POINTER(_Stream)
_ReleaseSchema, _ReleaseArray = ctypes.CFUNCTYPE(None, _SchemaPointer), ctypes.CFUNCTYPE(None, _ArrayPointer)
_ReleaseStream = ctypes.CFUNCTYPE(None, _StreamPointer)
_GetSchema = ctypes.CFUNCTYPE(ctypes.c_int, _StreamPointer, _SchemaPointer)
_GetNext = ctypes.CFUNCTYPE(ctypes.c_int, _StreamPointer, _ArrayPointer)
_GetError = ctypes.CFUNCTYPE(ctypes.c_char_p, _StreamPointer)

_Schema._fields_ = [
    ("format", ctypes.c_char_p), ("name", ctypes.c_char_p), ("metadata", ctypes.c_char_p), ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64), ("children", ctypes.POINTER(_SchemaPointer)), ("dictionary", _SchemaPointer),
    ("release", _ReleaseSchema), ("private_data", ctypes.c_void_p),
]  # fmt: skip
_Array._fields_ = [
    ("length", ctypes.c_int64), ("null_count", ctypes.c_int64), ("offset", ctypes.c_int64), ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64), ("buffers", ctypes.POINTER(ctypes.c_void_p)), ("children", ctypes.POINTER(_ArrayPointer)),
    ("dictionary", _ArrayPointer), ("release", _ReleaseArray), ("private_data", ctypes.c_void_p),
]  # fmt: skip
_Stream._fields_ = [
    ("get_schema", _GetSchema), ("get_next", _GetNext), ("get_last_error", _GetError), ("release", _ReleaseStream),
    ("private_data", ctypes.c_void_p),
]  # fmt: skip


class _Column:
    """One column: its type in the C data interface, and the buffers it lies in.

    Parameters
    ----------
    values
        (n,) numbers, a masked array of them, or a sequence of numbers, strings or bytes, ``None`` for NULL; or (n, d) numbers, a
        vector for each row.
    """

    def __init__(self, values: Any) -> None:
        self.child: _Column | None = None
        self.nulls, valid = 0, None
        if not isinstance(values, np.ndarray) or values.dtype.kind in "OUS":
            values = values.tolist() if isinstance(values, np.ndarray) else list(values)
            first = next((value for value in values if value is not None), None)
            if isinstance(first, (str, bytes)):
                self._text(values, isinstance(first, bytes))
                return
            mask = np.array([value is None for value in values], dtype=bool)
            values = np.array([0 if value is None else value for value in values] if mask.any() else values)
            values = np.ma.array(values, mask=mask) if mask.any() else values
        if isinstance(values, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(values)
            values, self.nulls = values.data, int(mask.sum())
            valid = np.packbits(~mask, bitorder="little") if self.nulls else None
        if values.ndim == 2:
            self.length, self.format, self.child = len(values), b"+L", _Column(values.reshape(-1))
            self.buffers = [None, np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]]
            return
        if values.ndim > 2:
            raise TypeError(f"the store has no column for arrays of shape {values.shape}")
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
        self.length = len(values)
        kind = values.dtype.str[1:]
        if kind not in _NUMBERS:
            raise TypeError(f"the store has no column for values of type {values.dtype}")
        if kind == "b1":
            values = np.packbits(values, bitorder="little")
        self.format, self.buffers = _NUMBERS[kind], [valid, values]

    def _text(self, values: list[Any], binary: bool) -> None:
        parts = [b"" if value is None else value if binary else value.encode("utf-8") for value in values]
        mask = np.array([value is None for value in values], dtype=bool)
        self.length, self.nulls, self.format = len(values), int(mask.sum()), b"Z" if binary else b"U"
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        valid = np.packbits(~mask, bitorder="little") if self.nulls else None
        self.buffers = [valid, offsets, np.frombuffer(b"".join(parts) or b"\0", dtype=np.uint8)]


class ColumnStream:
    """Columns of equal length, for `duckdb.DuckDBPyConnection.register`; can be read once.

    Parameters
    ----------
    columns
        Name -> array or sequence of n values; see `Store.append`. The arrays must not change until the stream is read.

    Raises
    ------
    ValueError
        If the columns are not equally long.
    TypeError
        If a column holds something else than numbers, strings or bytes.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._names = [name.encode("utf-8") for name in columns]
        self._columns = [_Column(values) for values in columns.values()]
        lengths = {column.length for column in self._columns}
        if len(lengths) != 1:
            raise ValueError(f"columns of different lengths: {sorted(lengths)}")
        self._length, self._sent = lengths.pop(), False
        # Everything below is pointed at from structures that Python does not see.
        self._kept: list[Any] = []
        self._release_schema, self._release_array = _ReleaseSchema(_forget), _ReleaseArray(_forget)
        self._stream = _Stream(
            _GetSchema(self._get_schema), _GetNext(self._get_next), _GetError(lambda _: b"the columns could not be described"),
            _ReleaseStream(_forget), None,
        )  # fmt: skip

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        """The stream as a capsule of the C interface; this object must live until it is read."""
        make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
            ("PyCapsule_New", ctypes.pythonapi)
        )
        return make(ctypes.addressof(self._stream), b"arrow_array_stream", None)

    def _get_schema(self, _: Any, out: Any) -> int:
        children = [self._schema(_Schema(), name, column) for name, column in zip(self._names, self._columns, strict=True)]
        self._fill_schema(out.contents, b"+s", b"", children)
        return 0

    def _schema(self, schema: _Schema, name: bytes, column: _Column) -> _Schema:
        children = [] if column.child is None else [self._schema(_Schema(), b"item", column.child)]
        return self._fill_schema(schema, column.format, name, children)

    def _fill_schema(self, schema: Any, kind: bytes, name: bytes, children: Sequence[_Schema]) -> Any:
        # all of them outlive the structure: constants, and names that the stream holds
        schema.format, schema.name, schema.flags, schema.n_children = kind, name, _NULLABLE, len(children)
        if children:
            schema.children = self._keep((_SchemaPointer * len(children))(*map(ctypes.pointer, children)), children)
        schema.release = self._release_schema
        return schema

    def _get_next(self, _: Any, out: Any) -> int:
        if self._sent:
            out.contents.release = _ReleaseArray()  # the end of the stream
            return 0
        self._sent = True
        children = [self._array(_Array(), column) for column in self._columns]
        self._fill_array(out.contents, self._length, 0, [None], children)
        return 0

    def _array(self, array: _Array, column: _Column) -> _Array:
        children = [] if column.child is None else [self._array(_Array(), column.child)]
        return self._fill_array(array, column.length, column.nulls, column.buffers, children)

    def _fill_array(
        self, array: Any, length: int, nulls: int, buffers: Sequence[np.ndarray | None], children: Sequence[_Array]
    ) -> Any:
        array.length, array.null_count, array.offset = length, nulls, 0
        array.n_buffers, array.n_children = len(buffers), len(children)
        places = [None if buffer is None else buffer.ctypes.data for buffer in buffers]
        array.buffers = self._keep((ctypes.c_void_p * len(places))(*places))
        if children:
            array.children = self._keep((_ArrayPointer * len(children))(*map(ctypes.pointer, children)), children)
        array.release = self._release_array
        return array

    def _keep(self, value: Any, *others: Any) -> Any:
        self._kept.append((value, others))
        return value


def _forget(pointer: Any) -> None:
    """Mark a structure as released; the memory is Python's and goes with the `ColumnStream`."""
    pointer.contents.release = type(pointer.contents.release)()
