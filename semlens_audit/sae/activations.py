"""The vectors that an autoencoder is trained on: a layer's activations, computed once a sample and kept in a file without a name."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from semlens_audit.errors import ExecutionError
from semlens_audit.layouts import first_tensor
from semlens_audit.networks import nearest_layer
from semlens_audit.prefetch import cores, prefetched
from semlens_audit.sae.splice import vectors_of
from semlens_audit.sae_header import Places

if TYPE_CHECKING:
    from semlens_audit.work import Bench

__all__ = ["Activations"]

_MOST_KEPT, _PART_OF_DISK = 4 << 30, 0.25
"""Bytes of the file, and the most of what is free; what does not fit is computed whenever it is asked for."""


class _Reached(Exception):  # noqa: N818  (no error: a way out of a forward pass)
    """The layer has been reached."""


class Activations:
    """The vectors of a layer, by sample.

    Parameters
    ----------
    bench
        The audit, its data and its network.
    layer
        Name of the layer.
    places
        Which of its vectors.
    limit
        Bytes of the file that keeps them, at most; it decides time, and no value. What the file holds is no memory of the process.

    Attributes
    ----------
    count : int
        P, vectors of one sample.
    width : int
        d, values in a vector.
    """

    def __init__(self, bench: Bench, layer: str, places: Places = "all", *, limit: int = _MOST_KEPT) -> None:
        self._bench, self._layer = bench, layer
        self._module = nearest_layer(bench.subject.model, layer)
        self._vectors = vectors_of(bench.subject.model, layer, bench.plan.audit.subject.preprocessing.size, places)
        self.count, self.width = self._vectors.count, self._vectors.width
        samples = len(bench.data.samples)
        self._bytes = 4 * self.count * self.width
        limit = min(limit, int(_PART_OF_DISK * shutil.disk_usage(tempfile.gettempdir()).free))
        self._kept = np.zeros(min(samples, limit // self._bytes), dtype=bool)
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        self._closing = weakref.finalize(self, os.close, self._file)

    def __call__(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, P, d) float32 vectors of some samples.

        Raises
        ------
        ExecutionError
            ``not-finite``: the layer gives NaN or infinities on one of them.
        """
        wanted = np.asarray(samples, dtype=np.int64)
        found = np.empty((len(wanted), self.count, self.width), dtype=np.float32)
        lacking = np.flatnonzero([not self._read(sample, found[place]) for place, sample in enumerate(wanted.tolist())])
        # Every pass has the same number of rows, so that what a sample gives does not depend on how many are asked for.
        batch = self._bench.plan.audit.measurement.batch_size
        parts = [lacking[start : start + batch] for start in range(0, len(lacking), batch)]
        ready = prefetched(lambda part: self._bench.images(wanted[part].tolist(), batch), parts, cores(), 1)
        for part, images in ready:
            found[part] = self._run(images.to(self._bench.device))[: len(part)]
            self._keep(wanted[part], found[part])
        return found

    def _read(self, sample: int, room: np.ndarray) -> bool:
        """Fill `room` with a sample's vectors from the file; whether they were there."""
        if sample >= len(self._kept) or not self._kept[sample]:
            return False
        found = os.pread(self._file, self._bytes, sample * self._bytes)
        if len(found) != self._bytes:
            return False
        room[:] = np.frombuffer(found, dtype=np.float32).reshape(room.shape)
        return True

    def _keep(self, samples: np.ndarray, values: np.ndarray) -> None:
        broken = samples[~np.isfinite(values).all(axis=(1, 2))]
        if len(broken):
            path = self._bench.data.samples[int(broken[0])].path
            raise ExecutionError(
                "not-finite", f"Layer {self._layer!r} gives NaN or infinities on {path}.", "Mend the model, or look at that image."
            )
        for sample, vectors in zip(samples.tolist(), values, strict=True):
            if sample < len(self._kept):
                try:
                    written = os.pwrite(self._file, np.ascontiguousarray(vectors).tobytes(), sample * self._bytes)
                except OSError:  # a full disk: the file saves time, and nothing depends on it
                    written = 0
                self._kept[sample] = written == self._bytes

    def _run(self, images: torch.Tensor) -> np.ndarray:
        reached: list[torch.Tensor] = []

        def stop(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            reached.append(self._vectors.flat(first_tensor(output)).float().cpu())
            raise _Reached

        handle = self._module.register_forward_hook(stop)
        try:
            with torch.inference_mode():
                self._bench.subject.model(images)
        except _Reached:
            pass
        finally:
            handle.remove()
        return reached[0].numpy()
