"""Concept embeddings of one layer in a byte a number, with what each may be wrong by: the file that a search scans.

A unit vector u is kept as an integer vector c of -127 to 127 and a scale s, u ~ m + s (w * c), with m the layer's mean and w what
each dimension varies by; and with it a bound b on how far the cosine with any query can be from what c says. By Cauchy and Schwarz
it is the length of the remainder, plus what arithmetic in float32 can add (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1). The file is a cache: it is named after the stage that wrote the embeddings, every part of it carries a check sum that
is compared when the part is used, and it is made anew where one differs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semlens_audit.digest import canonical_json
from semlens_audit.prefetch import cores

__all__ = ["BLOCK", "Codes", "CodesDamagedError", "estimates", "write_codes"]

BLOCK = 2048
"""Rows that are read, compared with their check sum and scanned at once."""

_WIDE = 4 << 20
"""Bytes of codes widened to float32 at a time: few enough to stay in a cache, enough that threads seldom wait for one another."""

_SHARE = 8 << 20
"""Bytes of codes that a thread takes at a time, and that another thread is worth."""

_THREADS = 8
"""Threads that are worth it: more only wait for memory and for one another."""

_MAGIC = b"SLACODE1"
_LONGEST_HEADER = 1 << 16
_UNIT = 2.0**-24  # unit roundoff of float32


class CodesDamagedError(Exception):
    """The file is not what was written under its name; it has to be made anew."""


@dataclass(frozen=True)
class Codes:
    """An open file of codes.

    Parameters
    ----------
    path
        The file.
    component
        (K,) int32 components in the order of the rows.
    mean, weight
        (d,) float64 m and w.
    scale
        (K,) float32 s.
    bound
        (K,) float32 b: the most by which `estimate` can differ from the cosine.
    sums
        Check sum of each block of codes.
    offset, width
        Where the codes begin, in bytes, and bytes of each row.
    """

    path: Path
    component: np.ndarray
    mean: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    bound: np.ndarray
    sums: np.ndarray
    offset: int
    width: int

    @classmethod
    def open(cls, path: Path, stage: str, column: str) -> Codes:
        """Read all but the codes.

        Raises
        ------
        CodesDamagedError
            If it is not the file of that stage and column, or has been damaged.
        OSError
            If it cannot be read.
        """
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise CodesDamagedError("another kind of file")
            length = int.from_bytes(stream.read(4), "little")
            if not 0 < length < _LONGEST_HEADER:
                raise CodesDamagedError("its head is damaged")
            try:
                header = json.loads(stream.read(length))
                rows, dimension, sha256 = int(header["rows"]), int(header["dimension"]), header["sha256"]
                owner = (header["stage"], header["column"], header["block"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CodesDamagedError("its head is damaged") from error
            if owner != (stage, column, BLOCK) or rows < 0 or dimension < 1:
                raise CodesDamagedError("it belongs to something else")
            width = _padded(dimension)
            kinds = _parts(rows, dimension)
            offset = len(_MAGIC) + 4 + length + sum(np.dtype(kind).itemsize * count for kind, count in kinds)
            if size != offset + rows * width:
                raise CodesDamagedError("it has been cut or extended")
            parts = [stream.read(np.dtype(kind).itemsize * count) for kind, count in kinds]
        if hashlib.sha256(b"".join(parts)).hexdigest() != sha256:
            raise CodesDamagedError("its tables are damaged")
        arrays = [np.frombuffer(part, dtype=kind) for part, (kind, _) in zip(parts, kinds, strict=True)]
        component, mean, weight, scale, bound, sums = arrays
        return cls(path, component, mean, weight, scale, bound, sums, offset, width)

    def estimate(self, query: np.ndarray) -> np.ndarray:
        """(K,) float64 cosine of every row with a query of length d, to within `bound`; see `estimates`.

        Raises
        ------
        CodesDamagedError
            If a block of the codes is not what was written.
        OSError
            If the file cannot be read.
        """
        (found,) = estimates([(self, query)])
        if isinstance(found, Exception):
            raise found
        return found


def estimates(
    asked: Sequence[tuple[Codes, np.ndarray]], threads: int | None = None
) -> list[np.ndarray | CodesDamagedError | OSError]:
    """Scan several files, each for a query of its own, in as many threads as are worth it.

    Parameters
    ----------
    asked
        Codes and the (d,) query that their rows are compared with, not zero.
    threads
        Most threads; ``None``: as many as there are processors, at most 8. What is found does not depend on it.

    Returns
    -------
    list
        For each of them (K,) float64 cosines, to within `Codes.bound`, or why there are none: a block is not what was written, or
        the file cannot be read.
    """
    scans = [_Scan.of(codes, query) for codes, query in asked]
    shares = deque((scan, blocks) for scan in scans for blocks in scan.shares())
    most = min(cores(), _THREADS) if threads is None else threads
    workers = min(most, -(-sum(codes.width * len(codes.component) for codes, _ in asked) // _SHARE))
    if workers > 1:
        with ThreadPoolExecutor(workers, thread_name_prefix="scan") as pool:
            for future in [pool.submit(_work_off, shares) for _ in range(workers)]:
                future.result()
    else:
        _work_off(shares)
    return [scan.failure or scan.found for scan in scans]


@dataclass(eq=False)
class _Scan:
    """One file that is scanned: what is looked for, and what has been found."""

    codes: Codes
    weight: np.ndarray
    constant: float
    found: np.ndarray
    failure: CodesDamagedError | OSError | None = None

    @classmethod
    def of(cls, codes: Codes, query: np.ndarray) -> _Scan:
        unit = query.astype(np.float64) / np.linalg.norm(query)
        weight = np.zeros(codes.width, dtype=np.float32)
        weight[: len(unit)] = codes.weight * unit
        return cls(codes, weight, float(unit @ codes.mean), np.empty(len(codes.component)))

    def shares(self) -> list[range]:
        """Runs of blocks that a thread takes at a time."""
        count, step = len(self.codes.sums), max(1, _SHARE // (BLOCK * self.codes.width))
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def read(self, blocks: range, room: _Room) -> None:
        """Find the cosines of consecutive blocks."""
        codes, rows = self.codes, len(self.codes.component)
        with codes.path.open("rb", buffering=0) as stream:
            stream.seek(codes.offset + blocks.start * BLOCK * codes.width)
            for block in blocks:
                start, stop = block * BLOCK, min((block + 1) * BLOCK, rows)
                part = room.raw[: stop - start]
                if _read_whole(stream.readinto, part) != part.nbytes or _sum(part) != codes.sums[block]:
                    raise CodesDamagedError("its codes are damaged")
                for first in range(0, len(part), len(room.wide)):
                    tile = part[first : first + len(room.wide)]
                    np.copyto(room.wide[: len(tile)], tile)
                    # Row by row: a product of matrix and vector would be shared among threads of its own.
                    np.vecdot(room.wide[: len(tile)], self.weight, out=room.product[first : first + len(tile)])
                np.multiply(codes.scale[start:stop], room.product[: len(part)], out=self.found[start:stop], dtype=np.float64)
                self.found[start:stop] += self.constant


class _Room:
    """What one thread reads blocks of one width into: the codes, some of them widened, and their products with the query."""

    def __init__(self, width: int) -> None:
        self.raw = np.empty((BLOCK, width), dtype=np.int8)
        self.wide = np.empty((min(BLOCK, max(1, _WIDE // (4 * width))), width), dtype=np.float32)
        self.product = np.empty(BLOCK, dtype=np.float32)


def _work_off(shares: deque[tuple[_Scan, range]]) -> None:
    """Take one share after the other until none is left."""
    rooms: dict[int, _Room] = {}
    while True:
        try:
            scan, blocks = shares.popleft()
        except IndexError:
            return
        if scan.failure is None:
            width = scan.codes.width
            room = rooms[width] = rooms.get(width) or _Room(width)
            try:
                scan.read(blocks, room)
            except (CodesDamagedError, OSError) as error:
                scan.failure = error


def write_codes(
    path: Path, stage: str, column: str, rows: int, dimension: int, read: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
) -> None:
    """Make the file of a stage whose embeddings are read twice, block by block; it appears whole or not at all.

    Parameters
    ----------
    path
        Where; its folder must exist.
    stage, column
        Key of the stage and name of the column that the embeddings come from.
    rows, dimension
        K and d.
    read
        Gives the embeddings anew each time: blocks of (n,) components and (n, d) float32 vectors, K rows in all.

    Raises
    ------
    ValueError
        If an embedding is not finite, or there are not `rows` of them.
    OSError
        If the file cannot be written.
    """
    total, highest, lowest, seen = np.zeros(dimension), np.full(dimension, -np.inf), np.full(dimension, np.inf), 0
    for _, vectors in read():
        unit = _units(vectors)
        total += unit.sum(axis=0)
        highest, lowest = np.maximum(highest, unit.max(axis=0)), np.minimum(lowest, unit.min(axis=0))
        seen += len(unit)
    if seen != rows:
        raise ValueError(f"{seen} embeddings instead of {rows}")
    mean = total / max(rows, 1)
    weight = np.maximum(highest - mean, mean - lowest) if rows else np.ones(dimension)
    weight[weight <= 0] = 1.0
    component, scale, bound = np.zeros(rows, np.int32), np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    sums = np.zeros(-(-rows // BLOCK), dtype=np.uint64)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            kinds = _parts(rows, dimension)
            head = _head(stage, column, rows, dimension, "0" * 64)
            stream.seek(len(head) + sum(np.dtype(kind).itemsize * count for kind, count in kinds))
            at = 0
            for number, (names, vectors) in enumerate(_regular(read())):
                codes, scales, bounds = _encode(_units(vectors), mean, weight)
                stop = at + len(names)
                component[at:stop], scale[at:stop], bound[at:stop], sums[number] = names, scales, bounds, _sum(codes)
                stream.write(codes.tobytes())
                at = stop
            values = (component, mean, weight, scale, bound, sums)
            parts = [np.asarray(value, dtype=kind).tobytes() for value, (kind, _) in zip(values, kinds, strict=True)]
            stream.seek(0)
            stream.write(_head(stage, column, rows, dimension, hashlib.sha256(b"".join(parts)).hexdigest()))
            stream.writelines(parts)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _parts(rows: int, dimension: int) -> tuple[tuple[str, int], ...]:
    """Type and length of each table between head and codes, in the order of the fields of `Codes`."""
    return (("<i4", rows), ("<f8", dimension), ("<f8", dimension), ("<f4", rows), ("<f4", rows), ("<u8", -(-rows // BLOCK)))


def _head(stage: str, column: str, rows: int, dimension: int, sha256: str) -> bytes:
    values = {"stage": stage, "column": column, "rows": rows, "dimension": dimension, "block": BLOCK, "sha256": sha256}
    text = canonical_json(values).encode("utf-8")
    return _MAGIC + len(text).to_bytes(4, "little") + text


def _padded(dimension: int) -> int:
    return -(-dimension // 8) * 8


def _sum(codes: np.ndarray) -> np.uint64:
    """Sum of the 64-bit words of a block, modulo 2^64: a changed bit always changes it."""
    return np.uint64(codes.view(np.uint64).sum(dtype=np.uint64))


def _units(vectors: np.ndarray) -> np.ndarray:
    values = vectors.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("an embedding is not finite")
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)


def _encode(unit: np.ndarray, mean: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, width) int8 codes, (n,) float32 scales and (n,) float32 bounds of (n, d) unit vectors."""
    dimension = unit.shape[1]
    relative = (unit - mean) / weight
    scale = np.maximum(np.abs(relative).max(axis=1) / 127, 1e-30).astype(np.float32)
    codes = np.zeros((len(unit), _padded(dimension)), dtype=np.int8)
    codes[:, :dimension] = np.clip(np.rint(relative / scale[:, None].astype(np.float64)), -127, 127)
    kept = scale[:, None].astype(np.float64) * weight * codes[:, :dimension]
    remainder = np.linalg.norm(unit - mean - kept, axis=1)
    # Products and sums of float32, whatever their order, and the query's own rounding; 1e-9 for what is done in float64.
    arithmetic = (dimension + 8) * _UNIT * np.linalg.norm(kept, axis=1) + 1e-9
    bound = np.nextafter((remainder + arithmetic).astype(np.float32), np.float32(np.inf))
    return codes, scale, bound


def _regular(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows in blocks of `BLOCK`."""
    names: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    waiting = 0
    for one, other in blocks:
        names, vectors, waiting = [*names, one], [*vectors, other], waiting + len(one)
        if waiting >= BLOCK:
            every, values = np.concatenate(names), np.concatenate(vectors)
            whole = waiting // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                yield every[start : start + BLOCK], values[start : start + BLOCK]
            names, vectors, waiting = [every[whole:]], [values[whole:]], waiting - whole
    if waiting:
        yield np.concatenate(names), np.concatenate(vectors)


def _read_whole(readinto: Callable[[memoryview], int | None], part: np.ndarray) -> int:
    view = part.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        got = readinto(view[done:])
        if not got:
            break
        done += got
    return done
