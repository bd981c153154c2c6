"""Components of a layer: their outputs captured, pooled, and their reference samples found in one streaming pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.layouts import first_tensor, grid_of, observed, replace_first

__all__ = ["NO_SAMPLE", "TopReferences", "capture", "first_tensor", "maps", "pool", "replace_first"]

NO_SAMPLE = -1


class TopReferences:
    """The exact top-m samples of every component, from one pass over the data in any order and batching.

    The reference samples E_k of SemanticLens (arXiv 2501.05398): the m samples with the highest pooled
    activation. Order is by activation, highest first, then by sample id, smallest first, so the result depends on nothing but
    the (id, value) pairs seen. Activations need not be positive: a component that never fires still has a highest sample.

    Parameters
    ----------
    components
        K, number of components.
    m
        Reference samples to keep for each.
    layer
        Name that an error message gives.
    """

    def __init__(self, components: int, m: int, layer: str = "") -> None:
        if components < 1 or m < 1:
            raise ValueError(f"components ({components}) and m ({m}) must be positive")
        self.layer = layer
        self._ids = np.full((components, m), NO_SAMPLE, dtype=np.int64)
        self._values = np.full((components, m), -np.inf, dtype=np.float64)
        self._maximum = np.full(components, -np.inf)
        self._minimum = np.full(components, np.inf)
        self._nonzero = np.zeros(components, dtype=np.int64)
        self._seen = 0

    @property
    def ids(self) -> np.ndarray:
        """(K, m) int64 sample ids, highest activation first; -1 where fewer than m samples were seen."""
        return self._ids.copy()

    @property
    def values(self) -> np.ndarray:
        """(K, m) float64 pooled activations, descending; 0 where the id is -1."""
        return np.where(self._ids == NO_SAMPLE, 0.0, self._values)

    @property
    def dead(self) -> np.ndarray:
        """(K,) bool: never above zero on the samples seen."""
        return ~(self._maximum > 0)

    @property
    def maximum(self) -> np.ndarray:
        """(K,) float64 highest pooled activation seen; -inf before the first sample."""
        return self._maximum.copy()

    @property
    def minimum(self) -> np.ndarray:
        """(K,) float64 lowest pooled activation seen; inf before the first sample."""
        return self._minimum.copy()

    @property
    def nonzero(self) -> np.ndarray:
        """(K,) int64 number of samples with a pooled activation other than zero."""
        return self._nonzero.copy()

    @property
    def seen(self) -> int:
        """Number of samples seen."""
        return self._seen

    def update(self, sample_ids: np.ndarray, values: np.ndarray) -> None:
        """Take in a batch.

        Parameters
        ----------
        sample_ids
            (B,) integers >= 0, each sample at most once in a pass.
        values
            (B, K) float32 or float64 pooled activations; float32 is widened, never rounded.

        Raises
        ------
        ExecutionError
            ``not-finite``: a value is NaN or infinite; names layer, component and sample.
        ValueError
            Shapes that do not match, or a dtype of less than single precision, which could swap neighbours in rank.
        """
        ids = np.asarray(sample_ids, dtype=np.int64).reshape(-1)
        values = np.asarray(values)
        if values.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"pooled activations must be float32 or float64, not {values.dtype}: ranks need full precision"
            )
        if values.shape != (len(ids), len(self._ids)):
            raise ValueError(f"expected values of shape {(len(ids), len(self._ids))}, got {values.shape}")
        if (ids < 0).any():
            raise ValueError("sample ids must not be negative")
        if not len(ids):
            return
        finite = np.isfinite(values)
        if not finite.all():
            row, component = (int(i) for i in np.argwhere(~finite)[0])
            raise ExecutionError(
                "not-finite",
                f"Layer {self.layer!r}: component {component} is {values[row, component]} on sample {int(ids[row])}.",
                "Check the model and that sample; activations must be finite numbers.",
            )
        values = values.astype(np.float64)
        self._maximum = np.maximum(self._maximum, values.max(axis=0))
        self._minimum = np.minimum(self._minimum, values.min(axis=0))
        self._nonzero += (values != 0).sum(axis=0)
        self._seen += len(ids)
        self._merge(ids, values.T)

    def _merge(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Merge (K, B) values into the kept ones; components whose batch holds nothing better are left alone."""
        m = self._ids.shape[1]
        # A tie at the border is decided by id, so "not below" must be looked at, not only "above".
        touched = np.flatnonzero(values.max(axis=1) >= self._values[:, -1])
        if not len(touched):
            return
        every = np.concatenate([self._values[touched], values[touched]], axis=1)
        names = np.concatenate([self._ids[touched], np.broadcast_to(ids, (len(touched), len(ids)))], axis=1)
        # Places without a sample carry -inf, which no finite value ties with, so their id of -1 never wins.
        order = np.lexsort((names, -every), axis=1)[:, :m]
        self._values[touched] = np.take_along_axis(every, order, axis=1)
        self._ids[touched] = np.take_along_axis(names, order, axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `restore` continues from: a checkpoint."""
        return {
            "ids": self._ids.copy(), "values": self._values.copy(), "maximum": self._maximum.copy(),
            "minimum": self._minimum.copy(), "nonzero": self._nonzero.copy(), "seen": np.array(self._seen, dtype=np.int64),
        }  # fmt: skip

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray], layer: str = "") -> TopReferences:
        """Continue from what `state` returned."""
        components, m = state["ids"].shape
        top = cls(components, m, layer)
        top._ids = np.array(state["ids"], dtype=np.int64)
        top._values = np.array(state["values"], dtype=np.float64)
        top._maximum = np.array(state["maximum"], dtype=np.float64)
        top._minimum = np.array(state["minimum"], dtype=np.float64)
        top._nonzero = np.array(state["nonzero"], dtype=np.int64)
        top._seen = int(state["seen"])
        return top


def pool(activation: torch.Tensor, how: Literal["max", "mean"]) -> torch.Tensor:
    """Pool a layer's output over space or tokens into one value per component.

    Parameters
    ----------
    activation
        (B, K, H, W) of a convolution, (B, T, K) of tokens, or (B, K).
    how
        ``max`` or ``mean``.

    Returns
    -------
    torch.Tensor
        (B, K) float32, or float64 if the input is.

    Raises
    ------
    SubjectError
        ``unknown-layout``: neither 2, 3 nor 4 dimensions.
    """
    if activation.dtype not in (torch.float32, torch.float64):
        activation = activation.float()
    if activation.ndim == 2:
        return activation
    if activation.ndim == 3:
        return activation.amax(dim=1) if how == "max" else activation.mean(dim=1)
    if activation.ndim == 4:
        return activation.amax(dim=(2, 3)) if how == "max" else activation.mean(dim=(2, 3))
    raise _unknown_layout(activation)


def maps(activation: torch.Tensor, prefix: int | None = None) -> torch.Tensor:
    """Lay out a layer's output as (B, K, H, W) maps; tokens on their square grid, class and register tokens left out.

    Parameters
    ----------
    activation
        (B, K, H, W) or (B, T, K).
    prefix
        Number of tokens before those of the grid, as `semlens_audit.layouts.prefix_tokens` tells it.

    Raises
    ------
    SubjectError
        ``unknown-layout``: a vector has no place, and tokens that form no square grid have none either.
    """
    if activation.ndim == 4:
        return activation
    if activation.ndim == 3:
        batch, tokens, components = activation.shape
        grid = grid_of(tokens, prefix)
        if grid is not None:
            before, side = grid
            return activation[:, before:].transpose(1, 2).reshape(batch, components, side, side)
        raise SubjectError(
            "unknown-layout",
            f"The layer's output has shape {tuple(activation.shape)}: its {tokens} tokens form no square grid, so they have no place.",
            "Audit a layer whose tokens are those of square patches of the image, with class and register tokens before them.",
        )
    raise _unknown_layout(activation)


def _unknown_layout(activation: torch.Tensor) -> SubjectError:
    return SubjectError(
        "unknown-layout",
        f"The layer's output has shape {tuple(activation.shape)}: components cannot be told from places.",
        "Audit a layer that returns (batch, components, height, width), (batch, tokens, components) or (batch, components).",
    )


@contextmanager
def capture(
    model: torch.nn.Module, layers: Sequence[str], *, differentiable: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the outputs of the named layers during each forward pass inside the context.

    Parameters
    ----------
    model
        Any network.
    layers
        Names of sub-modules.
    differentiable
        Let an output without a graph be the start of one, so that gradients with respect to it exist but nothing before it
        is recorded.

    Yields
    ------
    dict
        layer -> its last output (first tensor of a tuple) as (B, K, H, W), (B, T, K) or (B, K), filled anew by every forward pass.

    Raises
    ------
    SubjectError
        ``unknown-layer``; in the forward pass, outputs whose layout is refused: see `semlens_audit.layouts.layout_of`.
    """
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if differentiable and not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_(True)
        outputs[name] = tensor
        # What follows may work in place (ReLU, +=), so it gets a copy and the collected tensor stays as it was.
        return tensor.clone()

    with observed(model, layers, keep):
        yield outputs
