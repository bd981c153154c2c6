"""One tiny network of every family of vision models, and how to bring it into the state that training would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import semlens_audit._torchvision  # noqa: F401

# isort: split
import open_clip
import timm
from torchvision import models
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

__all__ = ["FAMILIES", "SIDE", "ClipHead", "Family", "images", "settle"]

SIDE = 64
CLASSES = 4


class ClipHead(nn.Module):
    """Image tower of a CLIP-like model with a linear head."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.visual = open_clip.model.VisionTransformer(SIDE, 16, 32, 2, 2, 2.0, output_dim=16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.visual(x))


def _vgg() -> nn.Module:
    model = models.vgg.VGG(models.vgg.make_layers([8, "M", 16, "M", 16], batch_norm=True), CLASSES, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(64, 24), nn.ReLU(True), nn.Dropout(), nn.Linear(24, CLASSES))
    return model


def _efficientnet() -> nn.Module:
    blocks = [MBConvConfig(1, 3, 2, 16, 16, 1, 1.0, 1.0), MBConvConfig(4, 3, 2, 16, 24, 2, 1.0, 1.0)]
    return EfficientNet(blocks, 0.0, num_classes=CLASSES)


def _mobilenet_v3() -> nn.Module:
    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(16, 3, 48, 24, True, "HS", 2, 1, 1.0),
        InvertedResidualConfig(24, 3, 48, 24, False, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(blocks, 32, num_classes=CLASSES)


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **arguments)


_SWIN = {"img_size": SIDE, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
_VIT = {"img_size": SIDE, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}


@dataclass(frozen=True)
class Family:
    """A tiny member of a family.

    Parameters
    ----------
    make
        Builds it, randomly initialised.
    first, last
        Layers of the network's only path: of its first operation, and the last with places.
    """

    make: Callable[[], nn.Module]
    first: str
    last: str


FAMILIES = {
    "residual": Family(_timm("resnet18", channels=(8, 16, 16, 32)), "act1", "layer4"),
    "plain": Family(_vgg, "features.2", "features"),
    "dense": Family(lambda: models.DenseNet(8, (2, 2), 16, num_classes=CLASSES), "features.relu0", "features"),
    "inverted residual": Family(lambda: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.25), "features.0", "features"),
    "squeeze and excitation": Family(_efficientnet, "features.0", "features"),
    "hard swish": Family(_mobilenet_v3, "features.0", "features"),
    "convnext": Family(_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), "stem", "stages"),
    "vit": Family(_timm("vit_tiny_patch16_224", **_VIT), "patch_embed", "norm"),
    "deit": Family(_timm("deit_tiny_distilled_patch16_224", **_VIT), "patch_embed", "norm"),
    "swin": Family(_timm("swin_tiny_patch4_window7_224", **_SWIN), "patch_embed", "norm"),
    "clip": Family(ClipHead, "visual.transformer", "visual.transformer"),
}


def images(count: int = 2, size: int = SIDE, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def settle(model: nn.Module, *, bias: bool = True, seed: int = 0) -> nn.Module:
    """Bring every layer's output to unit size, as training would; without `bias`, take every additive constant away.

    An untrained network lets its signal die out, until the rules' stabilizer is all that is left.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval().requires_grad_(False)

    def level(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        size = output.square().mean().sqrt()
        module.weight.data /= size
        return output / size

    handles = []
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "layer_scale")):
            parameter.fill_(0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.running_mean.normal_(0, 0.1 if bias else 0.0, generator=generator)
        elif not isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm):
            continue
        if module.bias is not None:
            module.bias.normal_(0, 0.1 if bias else 0.0, generator=generator)
        if not isinstance(module, nn.LayerNorm) and "NonDynamicallyQuantizable" not in type(module).__name__:
            handles.append(module.register_forward_hook(level))
    model(images(4, seed=9))
    for handle in handles:
        handle.remove()
    return model
