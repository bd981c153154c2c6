"""Deletion and insertion curves of components, and the peers of this project's attribution that are judged by them.

*Deletion*: components are switched off in the order of their relevance, the most relevant first, and the score of the class is followed.
*Insertion*: all are off, and are switched on in that order. Samek et al. 2017 and Petsiuk et al. 2018 delete and insert pixels; components
are deleted as in Dreyer et al. 2025 (arXiv 2505.20229). Shapes use B images, K components, S steps, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from semlens_audit.components import capture
from semlens_audit.intervention import Ablation
from semlens_audit.layouts import observed
from semlens_audit.subject import LoadedSubject

__all__ = ["Curves", "Tail", "areas", "counts", "curves", "energy", "integrated_gradients", "mean_gradient", "order", "paired", "read_out"]

STEPS = 20
"""Points of the path of integrated gradients."""
ROWS = 32
"""Rows whose gradients are taken in one pass."""


def counts(components: int) -> np.ndarray:
    """(S,) how many components are switched at each step: 0, powers of two up to 5 %, then every 5 % up to all."""
    small = [2**i for i in range(components.bit_length()) if 2**i <= components / 20]
    return np.unique([0, *small, *(round(components * part / 20) for part in range(1, 21))])


def order(scores: np.ndarray) -> np.ndarray:
    """(K,) components from most to least relevant, signed; of equal ones the first first."""
    return np.argsort(-scores.astype(np.float64), kind="stable")


def areas(curve: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Area under curves (..., S) over the share of components switched, by trapezoids: (...), in units of the curve."""
    return np.trapezoid(curve.astype(np.float64), steps / steps[-1], axis=-1)


def energy(outputs: np.ndarray) -> np.ndarray:
    """(B, K) squared norm of each component's part of the layer's output: the sum over places of a^2.

    For latents Dreyer et al. 2025 take z ||w||, which is the root of the same: w is the latent's direction. A channel's has length 1.
    """
    return np.square(outputs.astype(np.float64)).reshape(*outputs.shape[:2], -1).sum(axis=-1)


class Tail:
    """What a network makes of the outputs of one of its layers.

    Parameters
    ----------
    subject
        The network.
    layer
        Its outputs are (B, K, ...), and nothing goes round it.
    images
        (B, 3, S, S), B >= 2: on these it is verified.

    Raises
    ------
    ValueError
        The network's answer does not follow from the layer's output alone.
    """

    def __init__(self, subject: LoadedSubject, layer: str, images: torch.Tensor) -> None:
        self._model, self.layer, self._image = subject.model, layer, images[:1]
        with torch.inference_mode(), capture(subject.model, [layer]) as seen:
            wanted = subject.model(images)
        with torch.inference_mode():
            given = self(seen[layer])
        if not torch.allclose(given, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
            raise ValueError(f"something goes round {layer}")

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """(R, C) outputs of the network for (R, K, ...) outputs of the layer."""
        with observed(self._model, [self.layer], lambda _layer, _output: rows.clone()):
            answers: torch.Tensor = self._model(self._image)
        return answers

    def gradients(self, rows: torch.Tensor, index: int) -> np.ndarray:
        """(R, K, ...) float64 gradient of the class logit at each row."""
        found = []
        for part in rows.split(ROWS):
            start = part.detach().clone().requires_grad_(True)
            with torch.enable_grad():
                total = self(start)[:, index].sum()
            found.append(torch.autograd.grad(total, start)[0].double().numpy())
        return np.concatenate(found)


def integrated_gradients(tail: Tail, output: torch.Tensor, index: int, steps: int = STEPS) -> np.ndarray:
    """(K,) activation times the mean gradient of the class logit on the straight path from a layer that is all zero.

    Sundararajan et al. 2017, equation 3, at the layer and with midpoints, summed over places. The sum over components is the logit less
    that of the layer at zero.

    Parameters
    ----------
    output
        (1, K, ...) the layer's output on one image.
    """
    middles = (torch.arange(steps, dtype=output.dtype) + 0.5) / steps
    mean = tail.gradients(middles.reshape(-1, *(1,) * (output.ndim - 1)) * output, index).mean(axis=0)
    return read_out(output.numpy(), mean)[0]


def mean_gradient(tail: Tail, outputs: torch.Tensor, index: int) -> np.ndarray:
    """(K, ...) the mean gradient of the class logit over images, by which a *lens* reads a layer.

    Where the classifier reads the layer's channels after pooling alone, this is the classifier's weight, on every image: the logit lens.
    Elsewhere the logit lens is not defined, because the classifier does not read these channels; the mean of the first-order maps from the
    layer to the logit takes its place.
    """
    return tail.gradients(outputs, index).mean(axis=0)


def read_out(outputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, K) sum over places of activations (B, K, ...) times weights (K, ...)."""
    return (outputs * weights).reshape(*outputs.shape[:2], -1).sum(axis=-1)


@dataclass(frozen=True)
class Curves:
    """Scores of one class on one image while components are switched.

    Parameters
    ----------
    logit, probability
        (M, 2, S) float64 for M orders: deletion, then insertion. Probabilities are of the softmax.
    """

    logit: np.ndarray
    probability: np.ndarray


def curves(
    subject: LoadedSubject, layer: str, image: torch.Tensor, output: torch.Tensor, values: torch.Tensor,
    orders: Sequence[np.ndarray], steps: np.ndarray, index: int,
) -> Curves:  # fmt: skip
    """Deletion and insertion curves of one image under several orders, by this project's ablation.

    Parameters
    ----------
    image
        (1, 3, S, S).
    output
        (1, K, ...) the layer's output on it.
    values
        (K, ...) what a component that is off gives: zero, or its mean.
    orders
        M permutations of the components.
    steps
        (S,) see `counts`.
    index
        Of the class.
    """
    rows: dict[bytes, int] = {}
    sets: list[list[int]] = []
    places = np.empty((len(orders), 2, len(steps)), dtype=np.int64)
    for one, ranked in enumerate(orders):
        for step, number in enumerate(steps):
            for way, chosen in enumerate((ranked[:number], ranked[number:])):
                off = np.zeros(len(ranked), dtype=bool)
                off[chosen] = True
                key = np.packbits(off).tobytes()
                if key not in rows:
                    rows[key] = len(sets)
                    sets.append(chosen.tolist())
                # insertion at step n: all but the first n are off
                places[one, way, step] = rows[key]
    answers = Ablation(subject, layer, sets)(lambda: image, output, values)[:, 0].astype(np.float64)
    logits = answers[:, index]
    shifted = np.exp(answers - answers.max(axis=1, keepdims=True))
    return Curves(logits[places], (shifted[:, index] / shifted.sum(axis=1))[places])


def paired(
    areas_of: Mapping[str, np.ndarray], full: np.ndarray, empty: np.ndarray, against: str, draws: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float, float, float]]:
    """Relative areas, and how far they are from another method's on the same images.

    A relative area is 0 where the score is all along what it is with the whole layer off, and 1 where it is what it is with nothing off.

    Parameters
    ----------
    areas_of
        Method -> (N,) area under each image's curve.
    full, empty
        (N,) the score of each image with nothing and with everything off.
    against
        Method that the others are compared with.

    Returns
    -------
    dict
        Method -> relative area, its difference, and the 95 % interval of the difference: percentiles of a bootstrap over images, the same
        images for all methods.
    """
    rng = np.random.default_rng([seed, len(full)])
    weights = rng.multinomial(len(full), np.full(len(full), 1 / len(full)), size=draws) / len(full)
    drop = full.mean() - empty.mean()
    drops = weights @ (full - empty)
    found = {}
    for name, values in areas_of.items():
        apart = values - areas_of[against]
        low, high = np.percentile(weights @ apart / drops, [2.5, 97.5])
        found[name] = (float((values.mean() - empty.mean()) / drop), float(apart.mean() / drop), float(low), float(high))
    return found
