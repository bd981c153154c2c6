"""In which order vectors are trained on: images shuffled, then the vectors of as many of them as fit into a buffer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from semlens_audit.sae.activations import Activations, aligned

__all__ = ["Buffers", "Order"]

_BUFFER_VECTORS, _BUFFER_BYTES = 1 << 16, 128 << 20
"""Vectors that are shuffled together: at most so many, and at most so many bytes. Part of what a result depends on."""


class Order:
    """Which vectors make up which step.

    Parameters
    ----------
    samples
        (n,) ids of the training images.
    count, width
        Vectors of an image, and values in one.
    batch
        Vectors in a step.
    seed
        Of the order.

    Attributes
    ----------
    epoch_steps : int
        Steps in one pass over the images.
    """

    def __init__(self, samples: np.ndarray, count: int, width: int, batch: int, seed: int) -> None:
        self._samples, self._count, self._seed = samples, count, seed
        vectors = min(_BUFFER_VECTORS, max(1, _BUFFER_BYTES // (4 * width)))
        self._images = max(1, min(len(samples), vectors // count))
        sizes = [len(samples[start : start + self._images]) * count for start in range(0, len(samples), self._images)]
        # What is left over at the end of a buffer makes no step, unless the buffer has no other.
        self._steps = [max(1, size // batch) for size in sizes]
        self._batch = batch
        self.epoch_steps = sum(self._steps)

    def buffer(self, epoch: int, number: int) -> np.ndarray:
        """Ids of the images whose vectors are shuffled together."""
        order = np.random.default_rng([self._seed, 1, epoch]).permutation(self._samples)
        return np.asarray(order[number * self._images : (number + 1) * self._images])

    def steps(self, first: int, total: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(epoch, number of the buffer, positions among its vectors) of every step from `first` up to `total`."""
        epoch, position = divmod(first, self.epoch_steps)
        step = first
        while step < total:
            for number, here in enumerate(self._steps):
                if position >= here:
                    position -= here
                    continue
                size = len(self.buffer(epoch, number)) * self._count
                shuffled = np.random.default_rng([self._seed, 2, epoch, number]).permutation(size)
                for turn in range(position, here):
                    if step == total:
                        return
                    yield epoch, number, shuffled[turn * self._batch : (turn + 1) * self._batch]
                    step += 1
                position = 0
            epoch += 1


class Buffers:
    """The vectors of the buffer that is being worked on; of all images in order where one buffer holds them all."""

    def __init__(self, activations: Activations, order: Order) -> None:
        self._activations, self._order = activations, order
        self._at: tuple[int, int] | None = None
        self._vectors = np.empty((0, 0), dtype=np.float32)

    def __call__(self, epoch: int, number: int, positions: np.ndarray) -> torch.Tensor:
        """(n, d) float32 vectors."""
        if self._at != (epoch, number):
            self._vectors = np.empty((0, 0), dtype=np.float32)  # two buffers are never held
            self._vectors = self._activations(self._order.buffer(epoch, number)).reshape(-1, self._activations.width)
            self._at = (epoch, number)
        return aligned(self._vectors[positions])
