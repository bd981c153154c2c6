"""Files of a training: the finished autoencoder, and beside it the last state of an unfinished one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from semlens_audit.errors import SubjectError, UsageError
from semlens_audit.sae.model import SparseAutoencoder
from semlens_audit.sae_header import Training, read_dictionary

__all__ = ["Checkpoints", "write_dictionary"]

_STATE = "semlens_audit_sae_state"

State = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Checkpoints:
    """The states of one training.

    Parameters
    ----------
    out
        The file that is going to be written; states lie beside it in ``OUT.partial``.
    key
        Digest of all that the training depends on.
    every
        Seconds between two of them.
    force
        Whether what another training has left is replaced.
    """

    def __init__(self, out: Path, key: str, every: float, *, force: bool = False) -> None:
        self._out, self._key, self._every, self._force = out, key, every, force
        self._partial = out.with_name(out.name + ".partial")
        self._since = time.monotonic()

    def finished(self) -> Training | None:
        """What the finished file says, where this very training has written it.

        Raises
        ------
        UsageError
            ``other-training``: another file is there. ``bad-output``: nothing can be written there.
        """
        if not self._out.parent.is_dir() or self._out.is_dir():
            raise UsageError("bad-output", f"{self._out} cannot be written: its folder is not there, or it is one.", "Mend --out.")
        if not self._out.exists():
            return None
        try:
            said = read_dictionary(self._out).training
        except SubjectError:
            said = None
        if said is not None and said.key == self._key:
            return said
        if self._force:
            return None
        raise self._other(self._out)

    def load(self) -> State | None:
        """The last state; ``None`` where there is none.

        Raises
        ------
        UsageError
            ``other-training``: it is of another training, or damaged.
        """
        if not self._partial.exists():
            return None
        try:
            with safe_open(self._partial, framework="pt") as file:
                said = json.loads((file.metadata() or {}).get(_STATE, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        except (SafetensorError, ValueError) as error:
            if self._force:
                return None
            raise self._other(self._partial) from error
        if said.get("key") == self._key:
            return tensors, said["numbers"]
        if self._force:
            return None
        raise self._other(self._partial)

    def _other(self, path: Path) -> UsageError:
        return UsageError(
            "other-training",
            f"{path} is of a training with other settings, on other data or of another network.",
            "Give another --out, the same settings as then, or --force to begin anew.",
        )

    def keep(self, state: Callable[[], State]) -> None:
        """Write a state, if the last one is old enough."""
        if time.monotonic() - self._since >= self._every:
            self.save(*state())

    def save(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Write a state in the place of the last one."""
        said = json.dumps({"key": self._key, "numbers": numbers}, sort_keys=True, allow_nan=False)
        _replace(self._partial, save(tensors, {_STATE: said}))
        self._since = time.monotonic()

    def drop(self) -> None:
        """Remove the state of a finished training."""
        self._partial.unlink(missing_ok=True)


def write_dictionary(out: Path, model: SparseAutoencoder, training: Training) -> None:
    """Write an autoencoder's file; the same autoencoder gives the same bytes."""
    _replace(out, save(model.tensors(), training.metadata()))


def _replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` all at once."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
