"""Which arithmetic the forward pass uses: settled by what it does to outputs and ranks on the data itself, then kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from semlens_audit.components import pool
from semlens_audit.devices import out_of_memory
from semlens_audit.inference import Precision, folded, halved, in_precision
from semlens_audit.layouts import first_tensor, observed

__all__ = ["FEWEST", "LEVELS", "Arithmetic", "Levels", "Networks", "settle"]

FEWEST = 256
"""Samples below which nothing but the plain network is tried: settling would cost what it saves."""

CHECKED = 64
"""Samples that arithmetics are compared on."""


@dataclass(frozen=True)
class Levels:
    """What another arithmetic has to reach against single precision, on the samples that are compared.

    Parameters
    ----------
    noise
        Most root mean square difference of outputs, over their standard deviation over samples.
    predictions
        Least share of samples whose largest output is the same, or was as good as the largest before: in single precision it lies below
        the largest by no more than `noise` allows. Where two outputs tie but for that, as they do on many samples of a network with a
        thousand classes, which of them is the larger says nothing about the arithmetic.
    rank
        Least rank correlation (Spearman) over the samples of a component that varies, all but one in a hundred of them.
    worst
        Least rank correlation of any component.
    top
        Least mean share of a component's highest eighth of the samples that both name.
    """

    noise: float = 0.05
    predictions: float = 0.98
    rank: float = 0.98
    worst: float = 0.9
    top: float = 0.95


LEVELS = Levels()
_PIXELS = 16 * 224**2
"""Fewest pixels that a CPU takes through a network together: many more take memory, and no less time."""
_FOLDING = 1e-3
"""Most difference that folding may make, over the standard deviation over samples: a thousand times below what bfloat16 may."""


@dataclass(frozen=True)
class Arithmetic:
    """How a stage's forward passes are run.

    Parameters
    ----------
    precision
        ``fp32``, or ``bf16``: autocast to bfloat16, with outputs and pooling in single precision.
    folded
        Whether batch norms are folded into their convolutions.
    """

    precision: Precision = "fp32"
    folded: bool = False

    def facts(self) -> dict[str, Any]:
        """For the facts of a stage."""
        return {"precision": self.precision, "folded": self.folded}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Arithmetic:
        """What `facts` say; an older stage that says nothing was computed in single precision, nothing folded."""
        return cls(facts.get("precision", "fp32"), bool(facts.get("folded", False)))


class Networks:
    """The audited network in each arithmetic, made when first asked for.

    Parameters
    ----------
    model
        The network as it was loaded, in single precision.
    size
        S of its inputs.
    device
        Where it is.
    """

    def __init__(self, model: torch.nn.Module, size: int, device: torch.device) -> None:
        self._model, self._device = model, device
        self._example = torch.zeros(1, 3, size, size, device=device)

    @cached_property
    def _folded(self) -> tuple[torch.nn.Module, int]:
        return folded(self._model, self._example)

    @cached_property
    def _halved(self) -> dict[bool, torch.nn.Module]:
        return {}

    @property
    def norms(self) -> int:
        """Batch norms that can be folded."""
        return self._folded[1]

    def __getitem__(self, arithmetic: Arithmetic) -> torch.nn.Module:
        plain = self._folded[0] if arithmetic.folded else self._model
        if arithmetic.precision == "fp32":
            return plain
        if arithmetic.folded not in self._halved:
            self._halved[arithmetic.folded] = halved(plain, self._example)
        return self._halved[arithmetic.folded]

    def run(
        self, arithmetic: Arithmetic, images: torch.Tensor, layers: Sequence[str], how: Literal["max", "mean"]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """One forward pass.

        Parameters
        ----------
        images
            (B, 3, S, S) float32 on the networks' device.
        layers
            Whose outputs are pooled, see `semlens_audit.components.pool`.

        Returns
        -------
        logits : numpy.ndarray
            (B, C) float32.
        pooled : dict
            layer -> (B, K) float32.
        """
        pooled: dict[str, torch.Tensor] = {}

        def see(name: str, output: torch.Tensor) -> None:
            with torch.autocast(output.device.type, enabled=False):
                pooled[name] = pool(output, how)

        model, count = self[arithmetic], len(images)
        found: dict[str | None, list[np.ndarray]] = {name: [] for name in (None, *layers)}
        with in_precision(arithmetic.precision, self._device), observed(model, layers, see):
            for part in _parts(images):
                found[None].append(first_tensor(model(part)).float().cpu().numpy())
                for layer in layers:
                    found[layer].append(pooled[layer].cpu().numpy())
        whole = {name: np.concatenate(values)[:count] for name, values in found.items()}
        return whole.pop(None), {layer: whole[layer] for layer in layers}


def _parts(images: torch.Tensor) -> list[torch.Tensor]:
    """A batch as it goes through a network: whole on a GPU, on a CPU in parts of equal size, the last one filled up with its last row.

    Rows must not depend on where in a batch they are, so that every part has a shape and a place in memory as any other.
    """
    many = images[:, 0].numel() // _PIXELS if images.device.type == "cpu" else 1
    if many <= 1:
        return [images]
    size = -(-len(images) // min(many, len(images)))
    rows = torch.arange(size * -(-len(images) // size)).clamp(max=len(images) - 1)
    return [images[one].contiguous(memory_format=torch.channels_last) for one in rows.split(size)]


@dataclass(frozen=True)
class _Compared:
    """What one arithmetic gave on the samples: (n, C) outputs, and layer -> (n, K)."""

    logits: np.ndarray
    pooled: dict[str, np.ndarray]


def settle(
    networks: Networks,
    batches: Sequence[tuple[torch.Tensor, int]],
    layers: Sequence[str],
    how: Literal["max", "mean"],
    *,
    outputs: Arithmetic | None = None,
    native: bool = True,
) -> tuple[Arithmetic, dict[str, Arithmetic], dict[str, dict[str, float]]]:
    """Settle the arithmetic of the outputs and of each layer, each by itself.

    A layer's goes no further than the outputs', so that one pass serves both wherever both allow it; what a layer comes to does not
    depend on the other layers.

    Parameters
    ----------
    networks
        The network.
    batches
        Inputs to compare on, and how many rows of them count.
    layers
        Layers to settle.
    how
        How they are pooled.
    outputs
        What the outputs' stage is computed with already; ``None``: settled here.
    native
        Whether the device has instructions for bfloat16; emulated, it is slower than single precision.

    Returns
    -------
    outputs : Arithmetic
    layers : dict
        layer -> Arithmetic.
    agreement : dict
        ``outputs`` or layer -> what was compared with `Levels`; empty where bfloat16 was not tried.
    """
    def run(arithmetic: Arithmetic, parts: Sequence[tuple[torch.Tensor, int]]) -> _Compared | None:
        try:
            found = [(networks.run(arithmetic, images, layers, how), count) for images, count in parts]
        except (RuntimeError, NotImplementedError) as error:
            if arithmetic == Arithmetic() or out_of_memory(error):
                raise
            return None  # an operation without a kernel for it: this arithmetic is none for this network
        return _Compared(
            np.concatenate([logits[:count] for (logits, _), count in found]),
            {layer: np.concatenate([pooled[layer][:count] for (_, pooled), count in found]) for layer in layers},
        )

    plain = run(Arithmetic(), batches[:1])  # folding is algebra: a batch shows whether what it takes for granted holds
    assert plain is not None
    merged = run(Arithmetic(folded=True), batches[:1]) if networks.norms else None
    chosen = {"": Arithmetic(folded=merged is not None and _same(plain.logits, merged.logits))}
    for layer in layers:
        same = merged is not None and _same(plain.pooled[layer], merged.pooled[layer])
        chosen[layer] = Arithmetic(folded=same and (outputs or chosen[""]).folded)
    agreement: dict[str, dict[str, float]] = {}
    for fold in sorted({arithmetic.folded for arithmetic in chosen.values()}) if native else ():
        single, reduced = run(Arithmetic("fp32", fold), batches), run(Arithmetic("bf16", fold), batches)
        if single is None or reduced is None:
            continue
        for name in [name for name, arithmetic in chosen.items() if arithmetic.folded == fold]:
            if name:
                found, reached = _ranks(single.pooled[name], reduced.pooled[name])
            else:
                found, reached = _outputs(single.logits, reduced.logits)
            agreement[name or "outputs"] = found
            if reached:
                chosen[name] = Arithmetic("bf16", fold)
    limit = outputs or chosen.pop("")
    chosen.pop("", None)
    return limit, {name: _no_further(arithmetic, limit) for name, arithmetic in chosen.items()}, agreement


def _no_further(arithmetic: Arithmetic, limit: Arithmetic) -> Arithmetic:
    precision: Precision = "bf16" if arithmetic.precision == limit.precision == "bf16" else "fp32"
    return Arithmetic(precision, arithmetic.folded and limit.folded)


def _same(plain: np.ndarray, other: np.ndarray) -> bool:
    if not np.isfinite(other).all():
        return not np.isfinite(plain).all()  # no fault of the folding
    scale = np.maximum(plain.std(axis=0), 1e-6 * np.abs(plain).max(initial=0.0))
    return bool((np.abs(plain - other) <= _FOLDING * np.maximum(scale, np.finfo(np.float32).tiny)).all())


def _outputs(plain: np.ndarray, other: np.ndarray) -> tuple[dict[str, float], bool]:
    """Agreement of (n, C) outputs, and whether it is enough."""
    if not np.isfinite(other).all():
        return {"noise": float("inf"), "predictions": 0.0}, False
    plain, other = plain.astype(np.float64), other.astype(np.float64)
    spread = float(np.sqrt(plain.var(axis=0).mean()))
    noise = float(np.sqrt(((plain - other) ** 2).mean()))
    ratio = noise / spread if spread > 0 else (0.0 if noise == 0 else float("inf"))
    named = np.take_along_axis(plain, other.argmax(axis=1)[:, None], axis=1)[:, 0]
    predictions = float((plain.max(axis=1) - named <= LEVELS.noise * spread).mean())
    return {"noise": ratio, "predictions": predictions}, ratio <= LEVELS.noise and predictions >= LEVELS.predictions


def _ranks(plain: np.ndarray, other: np.ndarray) -> tuple[dict[str, float], bool]:
    """Agreement of (n, K) pooled activations, and whether it is enough."""
    if not np.isfinite(other).all():
        return {"rank": -1.0, "worst": -1.0, "top": 0.0}, False
    varies = plain.max(axis=0) > plain.min(axis=0)
    if not varies.any():
        return {"rank": 1.0, "worst": 1.0, "top": 1.0}, True
    first, second = plain[:, varies], other[:, varies]
    one, two = _ranked(first), _ranked(second)
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    length = np.sqrt((one**2).sum(axis=0) * (two**2).sum(axis=0))
    rank = np.divide((one * two).sum(axis=0), length, out=np.zeros_like(length), where=length > 0)
    count = max(1, len(plain) // 8)
    top = [
        len(np.intersect1d(a, b)) / count
        for a, b in zip(
            np.argsort(-first, axis=0, kind="stable")[:count].T, np.argsort(-second, axis=0, kind="stable")[:count].T, strict=True
        )
    ]
    low, worst, shared = float(np.quantile(rank, 0.01, method="lower")), float(rank.min()), float(np.mean(top))
    enough = low >= LEVELS.rank and worst >= LEVELS.worst and shared >= LEVELS.top
    return {"rank": low, "worst": worst, "top": shared}, enough


def _ranked(values: np.ndarray) -> np.ndarray:
    """Ranks of each column, ties sharing their mean rank, as float64."""
    ranks = np.empty(values.shape)
    for column in range(values.shape[1]):
        _, place, counts = np.unique(values[:, column], return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        ranks[:, column] = (ends - (counts - 1) / 2.0)[place]
    return ranks
