"""The header of a safetensors file: names, shapes and metadata, without torch and without a byte of the tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_header", "shapes"]

_MOST = 1_000_000


def read_header(path: Path) -> tuple[dict[str, Any], Any]:
    """Tensors and metadata that a file says it has: eight bytes of the header's length, then JSON.

    Returns
    -------
    tensors : dict
        Name -> what the header says of it.
    metadata : object
        ``__metadata__``, or an empty mapping.

    Raises
    ------
    ValueError
        Saying why it is no such file.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= _MOST:
                raise ValueError(f"a header of {length} bytes")
            found = json.loads(stream.read(length).decode("utf-8"))
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise ValueError("its header is no JSON object")
    return found, found.pop("__metadata__", {})


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Name -> shape as the header says it; () where it says none."""
    said = {name: part.get("shape") if isinstance(part, Mapping) else None for name, part in tensors.items()}
    return {name: tuple(shape) if isinstance(shape, list) else () for name, shape in said.items()}
