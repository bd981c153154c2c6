"""The image encoder of this world: architecture, preprocessing, loading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["ARCHITECTURE", "ARGUMENTS", "FILE", "MEAN", "STD", "embeddings", "encode", "load", "new_model", "pixels"]

ARCHITECTURE = "resnet10t"
ARGUMENTS: dict[str, Any] = {"channels": [24, 48, 96, 160], "num_classes": 0}
MEAN = STD = 0.5
FILE = "model.safetensors"


def new_model() -> torch.nn.Module:
    """An untrained encoder."""
    import semlens_audit._torchvision  # noqa: F401  (timm imports torchvision)

    import timm  # isort: skip

    model: torch.nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, **ARGUMENTS)
    return model


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """(n, S, S, 3) uint8 -> (n, 3, S, S) float32, standardised, channels last in memory."""
    import torch

    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255.0).sub_(MEAN).div_(STD)
    return batch.contiguous(memory_format=torch.channels_last)


def encode(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """(n, d), as `semlens_audit.foundation` takes it."""
    features: torch.Tensor = model.forward_head(model.forward_features(batch), pre_logits=True)  # type: ignore[operator]
    return features.flatten(1)


def embeddings(model: torch.nn.Module, images: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """(n, SIDE, SIDE, 3) uint8 -> (n, d) float32 of unit length; the model in evaluation mode."""
    import torch

    with torch.inference_mode():
        parts = [encode(model, pixels(images[start : start + batch])) for start in range(0, len(images), batch)]
        return np.asarray(torch.nn.functional.normalize(torch.cat(parts).float(), dim=1).numpy())


def load(path: Path) -> torch.nn.Module:
    """The encoder with the weights of `path`, in single precision and evaluation mode."""
    from safetensors.torch import load_file

    model = new_model()
    model.load_state_dict(load_file(str(path)))  # copies into single precision
    return model.eval().requires_grad_(False)
