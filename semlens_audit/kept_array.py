"""An array that is kept in a file beside what it was computed from, and computed anew where the file is not what was written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

__all__ = ["kept_array"]


def kept_array(path: Path, shape: tuple[int, ...], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The float64 array kept in a file, or computed and kept there if the folder can be written.

    Parameters
    ----------
    path
        The file; its name stands for everything that the array depends on.
    shape
        Of the array.
    compute
        Gives the array.
    """
    with suppress(OSError):
        content = path.read_bytes()
        values = content[32:]
        if len(values) == 8 * int(np.prod(shape)) and hashlib.sha256(path.name.encode() + values).digest() == content[:32]:
            return np.frombuffer(values, dtype="<f8").reshape(shape).copy()
    found = np.ascontiguousarray(compute(), dtype="<f8")
    if found.shape != shape:
        raise ValueError(f"an array of shape {found.shape} instead of {shape}")
    values = found.tobytes()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):  # a folder that cannot be written: it is computed again the next time
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(hashlib.sha256(path.name.encode() + values).digest() + values)
        os.replace(temporary, path)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
    return found
