"""Relevance propagation as plain loops, in tiny networks of the families that zennit has no canonizer for."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["Dense", "Inverted", "NextBlock", "norms"]


def z_plus(value, weight, bias, out, *, padding=0, groups=1):
    """The z+ rule of a convolution with stride 1, one output after the other."""
    passed = np.zeros((value.shape[0], value.shape[1] + 2 * padding, value.shape[2] + 2 * padding))
    padded = np.pad(value, ((0, 0), (padding, padding), (padding, padding)))
    size, inputs = weight.shape[2], weight.shape[1]
    for o, y, x in np.ndindex(*out.shape):
        start = o // (weight.shape[0] // groups) * inputs
        place = (slice(start, start + inputs), slice(y, y + size), slice(x, x + size))
        parts = np.maximum(padded[place] * weight[o], 0)
        passed[place] += parts / (parts.sum() + max(bias[o], 0) + 1e-6) * out[o, y, x]
    return passed[:, padding : passed.shape[1] - padding or None, padding : passed.shape[2] - padding or None]


def epsilon(value, weight, bias, out):
    passed = np.zeros_like(value)
    for o in range(len(out)):
        z = float(weight[o] @ value + bias[o])
        passed += value * weight[o] / (z + (1e-6 if z >= 0 else -1e-6)) * out[o]
    return passed


def shares(terms, out):
    """Each of the terms of a sum gets its share."""
    total = sum(terms)
    return [term / (total + np.where(total >= 0, 1e-6, -1e-6)) * out for term in terms]


def pooled(value, out):
    """Global average pool: each place by its share."""
    total = value.mean((1, 2))
    return value / value[0].size / (total + np.where(total >= 0, 1e-6, -1e-6))[:, None, None] * out[:, None, None]


def folded(conv, norm):
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).numpy()
    shift = (norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()).numpy()
    return conv.weight.numpy() * scale[:, None, None, None], shift


def norms(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.2)
    return module.eval().requires_grad_(False).double()


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn0, self.act = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.bn1, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.bn2, self.head = nn.BatchNorm2d(7), nn.Linear(7, 2)

    def forward(self, x):
        a = self.act(self.bn0(self.stem(x)))
        d = self.conv(functional.relu(self.bn1(a)))
        return self.head(functional.relu(self.bn2(torch.cat([a, d], 1))).mean((2, 3)))

    def slow(self, x, index):
        a = self.act(self.bn0(self.stem(x)))
        read = functional.relu(self.bn1(a))
        h = functional.relu(self.bn2(torch.cat([a, self.conv(read)], 1)))[0].numpy()
        start = np.eye(2)[index] * float(self(x)[0, index])
        both = pooled(h, epsilon(h.mean((1, 2)), self.head.weight.numpy(), self.head.bias.numpy(), start))
        return both[:4] + z_plus(read[0].numpy(), self.conv.weight.numpy(), np.zeros(3), both[4:], padding=1)


class Inverted(nn.Module):
    """Inverted residual with squeeze and excitation, its signal negative in places."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.SiLU()
        self.expand, self.bn1 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.project, self.bn3 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def steps(self, x):
        a = self.act(self.stem(x))
        e = functional.silu(self.bn1(self.expand(a)))
        d = functional.silu(self.bn2(self.depthwise(e)))
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(functional.adaptive_avg_pool2d(d, 1)))))
        g = d * gate
        return a, e, g, self.bn3(self.project(g))

    def forward(self, x):
        a, _, _, p = self.steps(x)
        return self.head((p + a).mean((2, 3)))

    def slow(self, x, index):
        a, e, g, p = (step[0].numpy() for step in self.steps(x))
        start = np.eye(2)[index] * float(self(x)[0, index])
        total = pooled(p + a, epsilon((p + a).mean((1, 2)), self.head.weight.numpy(), self.head.bias.numpy(), start))
        inside, beside = shares([p, a], total)
        inside = z_plus(g, *folded(self.project, self.bn3), inside)
        inside = z_plus(e, *folded(self.depthwise, self.bn2), inside, padding=1, groups=6)
        return beside + z_plus(a, *folded(self.expand, self.bn1), inside)


class NextBlock(nn.Module):
    """A block of ConvNeXt: depthwise convolution, layer norm, two linear layers at every place, layer scale."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Identity()
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4)
        self.up, self.down, self.gamma = nn.Linear(4, 8), nn.Linear(8, 4), nn.Parameter(torch.tensor([0.5, 1.0, 0.7, 0.3]))
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def steps(self, x):
        a = self.act(self.stem(x))
        n = self.norm(self.depthwise(a).permute(0, 2, 3, 1))
        u = functional.gelu(self.up(n))
        return a, n.permute(0, 3, 1, 2), u.permute(0, 3, 1, 2), (self.gamma * self.down(u)).permute(0, 3, 1, 2)

    def forward(self, x):
        a, _, _, p = self.steps(x)
        return self.head(self.last((a + p).mean((2, 3))))

    def slow(self, x, index):
        a, n, u, p = (step[0].numpy() for step in self.steps(x))
        start = np.eye(2)[index] * float(self(x)[0, index])
        read = self.last(torch.from_numpy((a + p).mean((1, 2)))).numpy()
        total = pooled(a + p, epsilon(read, self.head.weight.numpy(), self.head.bias.numpy(), start))
        beside, inside = shares([a, p], total)
        for value, linear in ((u, self.down), (n, self.up)):
            inside = z_plus(value, linear.weight.numpy()[:, :, None, None], linear.bias.numpy(), inside)
        return beside + z_plus(a, self.depthwise.weight.numpy(), self.depthwise.bias.numpy(), inside, padding=1, groups=4)
