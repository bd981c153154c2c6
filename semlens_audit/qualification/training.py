"""Training of qualification subjects; the same recipe for every world and architecture."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["logits", "save", "tensor", "train"]

MEAN, STD = 0.5, 0.5
_BATCH = 64


def tensor(batch: NDArray[np.uint8]) -> torch.Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float32, standardised."""
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))).float().div_(255.0).sub_(MEAN).div_(STD)


def train(
    model: torch.nn.Module,
    pictures: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    epochs: int,
    rate: float,
    seed: int,
    flips: bool = True,
    progress: Callable[[int], None] | None = None,
) -> torch.nn.Module:
    """Train with cross-entropy under bfloat16 autocast; returned in evaluation mode, single precision.

    Parameters
    ----------
    model
        In training mode; trained in place.
    pictures
        (n, H, W, 3) uint8, n >= 64.
    labels
        (n,) classes.
    flips
        Whether mirrored and transposed pictures show the same class.
    progress
        Called with the number of batches done since the last call.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    # Typed stubs of torch do not know the memory format of whole modules.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps, done = epochs * (len(pictures) // _BATCH), 0
    for _ in range(epochs):
        order = rng.permutation(len(pictures))
        for begin in range(0, len(order) - _BATCH + 1, _BATCH):
            rows = np.sort(order[begin : begin + _BATCH])
            views = pictures[rows]
            if flips:
                views = views[:, :, ::-1] if rng.random() < 0.5 else views
                views = views[:, ::-1] if rng.random() < 0.5 else views
                views = views.transpose(0, 2, 1, 3) if rng.random() < 0.5 else views
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (done + 1) / 40) * 0.5 * (1 + math.cos(math.pi * done / steps))
            inputs = tensor(views).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(inputs)
            loss = torch.nn.functional.cross_entropy(scores.float(), torch.from_numpy(labels[rows]))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            done += 1
            if progress is not None:
                progress(1)
    return model.eval().requires_grad_(False)


def logits(model: torch.nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, H, W, 3) uint8 -> (n, C) outputs in single precision."""
    with torch.inference_mode():
        parts = [model(tensor(pictures[start : start + 64])).float().numpy() for start in range(0, len(pictures), 64)]
    return np.concatenate(parts)


def save(model: torch.nn.Module, path: Path) -> None:
    """Write the weights as safetensors, atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, str(partial))
    os.replace(partial, path)
