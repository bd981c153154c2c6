"""A plain convolutional network in the manner of VGG (Simonyan and Zisserman, arXiv 1409.1556): no shortcut connections."""

from __future__ import annotations

import torch

__all__ = ["network"]


def network(num_classes: int = 2, widths: tuple[int, ...] = (16, 32, 64, 64, 128)) -> torch.nn.Sequential:
    """Blocks of convolution, batch norm, ReLU and pooling, then a linear classifier on the mean of the last map.

    Parameters
    ----------
    num_classes
        Outputs.
    widths
        Channels of each block; block i ends in sub-module ``i.pool``, its activations in ``i.relu``.
    """
    blocks: list[torch.nn.Module] = []
    width = 3
    for wider in widths:
        block = torch.nn.Sequential()
        block.add_module("conv", torch.nn.Conv2d(width, wider, 3, padding=1, bias=False))
        block.add_module("norm", torch.nn.BatchNorm2d(wider))
        block.add_module("relu", torch.nn.ReLU())
        block.add_module("pool", torch.nn.MaxPool2d(2))
        blocks.append(block)
        width = wider
    return torch.nn.Sequential(*blocks, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, num_classes))
