"""The architectures of the qualification: a residual network, a plain one and a vision transformer, all small."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from semlens_audit import networks
from semlens_audit.plan import MeasurementSettings, ModelSource

__all__ = ["ARCHITECTURES", "SIZE", "Architecture"]

SIZE = 128
"""Side of the input, pixels."""


@dataclass(frozen=True)
class Architecture:
    """One family of subjects.

    Parameters
    ----------
    name
        How population and reports call it.
    source
        How to build it.
    layers
        Layers to audit, the first of them by default.
    attribution
        The method that applies to it.
    epochs, rate
        Passes over the training images and peak learning rate.
    """

    name: str
    source: ModelSource
    layers: tuple[str, ...]
    attribution: str
    epochs: int
    rate: float

    def build(self) -> torch.nn.Module:
        """An untrained network, in training mode with gradients."""
        code = Path(self.source.name.rpartition(":")[0]) if self.source.source == "code" else None
        return networks.build(self.source, code_file=code, allow_code=True).requires_grad_(True).train()

    def settings(self, settings: MeasurementSettings) -> MeasurementSettings:
        """Settings with the attribution that applies."""
        return settings.model_copy(update={"attribution": self.attribution})


_PLAIN = Path(__file__).with_name("plain.py")

ARCHITECTURES: dict[str, Architecture] = {
    "residual": Architecture(
        "residual",
        ModelSource(source="timm", name="resnet18", arguments={"num_classes": 2, "channels": [16, 32, 64, 128]}),
        ("layer3", "layer4"),
        "lrp",
        6,
        2e-3,
    ),
    "plain": Architecture(
        "plain",
        ModelSource(source="code", name=f"{_PLAIN}:network", arguments={"num_classes": 2}),
        ("3.pool", "4.pool"),
        "lrp",
        6,
        4e-3,
    ),
    "transformer": Architecture(
        "transformer",
        ModelSource(
            source="timm",
            name="vit_tiny_patch16_224",
            arguments={"num_classes": 2, "img_size": SIZE, "patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 3},
        ),
        ("blocks.2.mlp.act", "blocks.3.mlp.act"),
        "activation_x_gradient",
        12,
        1e-3,
    ),
}
