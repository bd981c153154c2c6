"""The vectors that an autoencoder is trained on: a layer's activations, computed once a sample and kept in a file without a name."""

from __future__ import annotations

import tempfile
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

_MOST_KEPT = 4 << 30
"""Bytes of the file; what does not fit is computed whenever it is asked for."""


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
        Bytes of the file that keeps them; it decides time, and no value.

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
        room = min(samples, limit // (4 * self.count * self.width))
        self._kept = np.zeros(room, dtype=bool)
        self._file: np.ndarray | None = None
        if room:
            with tempfile.TemporaryFile() as file:  # the map keeps the file alive after it is closed
                self._file = np.memmap(file, dtype=np.float32, mode="w+", shape=(room, self.count, self.width))

    def __call__(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, P, d) float32 vectors of some samples.

        Raises
        ------
        ExecutionError
            ``not-finite``: the layer gives NaN or infinities on one of them.
        """
        wanted = np.asarray(samples, dtype=np.int64)
        found = np.empty((len(wanted), self.count, self.width), dtype=np.float32)
        there = self._have(wanted)
        if self._file is not None and there.any():
            found[there] = self._file[wanted[there]]
        lacking = np.flatnonzero(~there)
        # Every pass has the same number of rows, so that what a sample gives does not depend on how many are asked for.
        batch = self._bench.plan.audit.measurement.batch_size
        parts = [lacking[start : start + batch] for start in range(0, len(lacking), batch)]
        ready = prefetched(lambda part: self._bench.images(wanted[part].tolist(), batch), parts, cores(), 1)
        for part, images in ready:
            found[part] = self._run(images.to(self._bench.device))[: len(part)]
            self._keep(wanted[part], found[part])
        return found

    def _have(self, samples: np.ndarray) -> np.ndarray:
        inside = samples < len(self._kept)
        inside[inside] = self._kept[samples[inside]]
        return inside

    def _keep(self, samples: np.ndarray, values: np.ndarray) -> None:
        broken = samples[~np.isfinite(values).all(axis=(1, 2))]
        if len(broken):
            path = self._bench.data.samples[int(broken[0])].path
            raise ExecutionError(
                "not-finite", f"Layer {self._layer!r} gives NaN or infinities on {path}.", "Mend the model, or look at that image."
            )
        fits = samples < len(self._kept)
        if self._file is not None and fits.any():
            self._file[samples[fits]] = values[fits]
            self._kept[samples[fits]] = True

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
