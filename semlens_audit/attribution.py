"""Relevance of components for classes, and where in the input a component is driven from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch

from semlens_audit.components import capture, first_tensor, maps
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.lrp import COMPOSITE, RelevanceModel, relevance_model

__all__ = ["Method", "box", "boxes", "describe", "heatmaps", "relevance", "stream_heatmaps"]

Method = Literal["lrp", "activation_x_gradient"]
_REFERENCE_SIZE = 224


class Attributable(Protocol):
    """What is needed of a subject: its network."""

    @property
    def model(self) -> torch.nn.Module:
        """Network in eval mode."""
        ...


def describe(subject: Attributable, images: torch.Tensor, method: Method) -> str:
    """The method in words for a report, after checking that it applies to the model.

    Parameters
    ----------
    subject
        The audited model.
    images
        (B, 3, S, S) inputs, of which the first is run.
    method
        See `relevance`.

    Raises
    ------
    SubjectError
        ``lrp-not-applicable``: the model holds operations without a rule, such as attention.
    """
    if method == "activation_x_gradient":
        return "activation x gradient of the class logit, summed over space or tokens"
    import zennit

    folded = relevance_model(subject.model, images).folded
    norms = f"; {folded} batch norms folded into their convolutions" if folded else ""
    return (
        f"LRP, composite {COMPOSITE} (rules of zennit {zennit.__version__ if hasattr(zennit, '__version__') else ''}".rstrip()
        + f"){norms}"
    )


def relevance(
    subject: Attributable, images: torch.Tensor, layers: Sequence[str], class_indices: Sequence[int], method: Method,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """Relevance of every component of the layers for every class, of one batch.

    One forward pass is shared by all classes. With ``lrp``, relevance starts as the class logit and is propagated with the
    EpsilonPlusFlat composite; a component's relevance R_k(c) is the sum over its map (CRP, Achtibat et al. 2023, eq. 5). With
    ``activation_x_gradient``, R_k(c) = sum over space or tokens of a_k * d y_c / d a_k.

    Parameters
    ----------
    subject
        The audited model.
    images
        (B, 3, S, S) float32.
    layers
        Layer names.
    class_indices
        C indices into the model's outputs.
    method
        ``lrp`` or ``activation_x_gradient``.

    Returns
    -------
    tuple of dict
        layer -> (B, C, K) float32 signed relevance, in units of the logit; and layer -> (B, C) float32 conservation ratio: relevance
        in the layer over the logit that it started from (1: nothing lost to biases; 0 where the logit is 0).

    Raises
    ------
    SubjectError
        Unknown layer, a layer without gradient, or a model that `method` does not apply to.
    ExecutionError
        ``not-finite``, naming the layer.
    """
    if method == "lrp":
        logits, outputs = relevance_model(subject.model, images).forward(images, layers)
    else:
        with capture(subject.model, layers) as outputs, torch.enable_grad():
            logits = first_tensor(subject.model(images.detach().clone().requires_grad_(True)))
    tensors = _outputs(outputs, layers)
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    conserved: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for place, index in enumerate(class_indices):
        score = logits[:, index]
        start = torch.zeros_like(logits)
        start[:, index] = score.detach() if method == "lrp" else 1.0
        gradients = torch.autograd.grad(
            logits, tensors, start, retain_graph=place + 1 < len(class_indices), allow_unused=True
        )
        for layer, tensor, gradient in zip(layers, tensors, gradients, strict=True):
            if gradient is None:
                raise SubjectError(
                    "unused-layer", f"The model's outputs do not depend on layer {layer!r}.", "Audit another layer."
                )
            share = gradient if method == "lrp" else gradient * tensor.detach()
            parts = _over_space(share).numpy()
            if not np.isfinite(parts).all():
                raise ExecutionError(
                    "not-finite",
                    f"The relevance in layer {layer!r} holds NaN or infinities.",
                    "Check the model and its data.",
                )
            found[layer].append(parts)
            conserved[layer].append(_ratio(parts.sum(axis=1), score.detach().numpy()))
    return (
        {layer: np.stack(parts, axis=1).astype(np.float32) for layer, parts in found.items()},
        {layer: np.stack(parts, axis=1).astype(np.float32) for layer, parts in conserved.items()},
    )


def _outputs(outputs: dict[str, torch.Tensor], layers: Sequence[str]) -> list[torch.Tensor]:
    missing = [layer for layer in layers if layer not in outputs]
    if missing:
        raise SubjectError(
            "unused-layer", f"The layer {missing[0]!r} takes no part in the forward pass.", "Audit another layer."
        )
    return [outputs[layer] for layer in layers]


def _over_space(value: torch.Tensor) -> torch.Tensor:
    if value.ndim == 4:
        return value.sum(dim=(2, 3))
    if value.ndim == 3:
        return value.sum(dim=1)
    if value.ndim == 2:
        return value
    raise SubjectError("unknown-layout", f"The layer's output has shape {tuple(value.shape)}.", "Audit another layer.")


def _ratio(inside: np.ndarray, score: np.ndarray) -> np.ndarray:
    return np.divide(inside, score, out=np.zeros_like(score), where=score != 0)


def heatmaps(
    subject: Attributable, images: torch.Tensor, layer: str, components: Sequence[int] | np.ndarray, method: Method
) -> np.ndarray:
    """Where in each image the given component is driven from.

    With ``lrp``: conditional relevance (CRP, Achtibat et al. 2023): propagation starts at the layer with the component's own activation,
    all other components masked, and ends at the pixels. With ``activation_x_gradient``, and for layers of tokens: the component's
    activation map, up-sampled (SemanticLens, arXiv 2501.05398); where a layer has no map, input x gradient.

    Parameters
    ----------
    subject
        The audited model.
    images
        (B, 3, S, S) float32.
    layer
        Layer name.
    components
        (B,) component of each row; rows do not influence each other.
    method
        See above.

    Returns
    -------
    np.ndarray
        (B, S, S) float32.
    """
    rows = np.asarray(components, dtype=np.int64)
    if rows.shape != (len(images),):
        raise ValueError(f"expected {len(images)} components, got shape {rows.shape}")
    passes = _prepare(subject, images, layer, method)
    return passes(rows)


def stream_heatmaps(
    subject: Attributable,
    load: Callable[[int], torch.Tensor],
    layer: str,
    rows: Sequence[tuple[int, int]] | np.ndarray,
    method: Method,
    batch_size: int = 32,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Heatmaps of many (sample, component) pairs, each image's forward pass shared by all of its components.

    Parameters
    ----------
    subject
        The audited model.
    load
        Sample id -> (3, S, S) float32 input; called once per sample.
    layer
        Layer name.
    rows
        (R, 2) pairs of sample id and component, in any order.
    method
        See `heatmaps`.
    batch_size
        Images per pass.

    Yields
    ------
    tuple
        (n,) positions in `rows`, and their (n, S, S) float32 heatmaps. Every position comes exactly once; the order depends only on
        `rows` and `batch_size`.
    """
    pairs = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    by_sample: dict[int, list[int]] = {}
    for position, sample in enumerate(pairs[:, 0].tolist()):
        by_sample.setdefault(sample, []).append(position)
    # Samples with like numbers of components run together, so that few places of a pass stay empty.
    order = sorted(by_sample, key=lambda sample: (-len(by_sample[sample]), sample))
    for first in range(0, len(order), batch_size):
        group = order[first : first + batch_size]
        images = torch.stack([load(sample) for sample in group])
        # Samples are in order of falling counts, so those with work left form a prefix; a shrunken prefix gets its own graph.
        done, width = 0, len(group)
        while width:
            until = len(by_sample[group[width - 1]])
            passes = _prepare(subject, images[:width], layer, method)
            for turn in range(done, until):
                positions = np.array([by_sample[sample][turn] for sample in group[:width]])
                yield positions, passes(pairs[positions, 1])
            done = until
            while width and len(by_sample[group[width - 1]]) <= done:
                width -= 1


def _prepare(
    subject: Attributable, images: torch.Tensor, layer: str, method: Method
) -> Callable[[np.ndarray], np.ndarray]:
    """One forward pass; the returned function gives the heatmaps of one component per image, as often as it is called."""
    model = subject.model
    if method == "lrp":
        return _conditional(relevance_model(model, images), images, layer)
    with capture(model, [layer]) as outputs, torch.no_grad():
        model(images)
    (activation,) = _outputs(outputs, [layer])
    if activation.ndim == 2:
        return _input_times_gradient(model, images, layer)
    return _upsampled(maps(activation), images.shape[-1])


def _conditional(model: RelevanceModel, images: torch.Tensor, layer: str) -> Callable[[np.ndarray], np.ndarray]:
    inputs = images.detach().clone().requires_grad_(True)
    activation = model.up_to(inputs, layer)
    if activation.ndim == 3:
        return _upsampled(maps(activation.detach()), images.shape[-1])

    def run(components: np.ndarray) -> np.ndarray:
        start = _only(activation.detach(), components)
        (gradient,) = torch.autograd.grad(activation, inputs, start, retain_graph=True)
        return _finite(gradient.sum(dim=1).numpy(), layer)

    return run


def _input_times_gradient(
    model: torch.nn.Module, images: torch.Tensor, layer: str
) -> Callable[[np.ndarray], np.ndarray]:
    inputs = images.detach().clone().requires_grad_(True)
    with capture(model, [layer]) as outputs, torch.enable_grad():
        model(inputs)
    activation = outputs[layer]

    def run(components: np.ndarray) -> np.ndarray:
        start = _only(torch.ones_like(activation), components)
        (gradient,) = torch.autograd.grad(activation, inputs, start, retain_graph=True)
        return _finite((gradient * inputs.detach()).sum(dim=1).numpy(), layer)

    return run


def _only(activation: torch.Tensor, components: np.ndarray) -> torch.Tensor:
    """`activation` with all but one component per row set to zero."""
    index = torch.from_numpy(np.asarray(components, dtype=np.int64))
    rows = torch.arange(len(index))
    masked = torch.zeros_like(activation)
    masked[rows, index] = activation[rows, index]
    return masked


def _upsampled(activation: torch.Tensor, size: int) -> Callable[[np.ndarray], np.ndarray]:
    def run(components: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(np.asarray(components, dtype=np.int64))
        chosen = activation[torch.arange(len(index)), index][:, None].detach()
        # What drives a component is where it is high; one that is nowhere positive is judged by its least negative places.
        highest = chosen.amax(dim=(2, 3), keepdim=True)
        lowest = chosen.amin(dim=(2, 3), keepdim=True)
        chosen = torch.where(highest > 0, chosen.clamp(min=0), chosen - lowest)
        up = torch.nn.functional.interpolate(chosen, size=(size, size), mode="bilinear", align_corners=False)
        return up[:, 0].numpy().astype(np.float32)

    return run


def _finite(heat: np.ndarray, layer: str) -> np.ndarray:
    if not np.isfinite(heat).all():
        raise ExecutionError(
            "not-finite", f"A heatmap of layer {layer!r} holds NaN or infinities.", "Check the model and its data."
        )
    return np.asarray(heat, dtype=np.float32)


@lru_cache(maxsize=8)
def _blur_matrix(size: int, blur: int) -> torch.Tensor:
    """(S, S) float32 matrix that blurs a column with a Gaussian kernel of `blur` px at 224 px, mirrored at the border.

    Width and standard deviation are those of torchvision's ``gaussian_blur``, which SemanticLens uses.
    """
    half = min(max(0, round(blur * size / _REFERENCE_SIZE)) // 2, size - 1)
    kernel = 2 * half + 1
    deviation = max(0.3 * ((kernel - 1) * 0.5 - 1) + 0.8, 0.1)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / deviation) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    for row in range(size):
        for offset, weight in zip(range(-half, half + 1), weights, strict=True):
            column = abs(row + offset)
            column = 2 * (size - 1) - column if column >= size else column
            matrix[row, column] += weight
    return torch.from_numpy(matrix.astype(np.float32))


def boxes(heat: np.ndarray, blur: int = 51, threshold: float = 0.01, minimum: int = 32) -> np.ndarray:
    """Square crops around what drives a component (SemanticLens, arXiv 2501.05398).

    The heatmap is blurred, |h| / max|h| above `threshold` is kept, and the smallest square around what is kept is taken, moved
    inside the image where it reaches out. A heatmap without any relevance gives the whole image.

    Parameters
    ----------
    heat
        (B, S, S) finite heatmaps.
    blur
        Side of the Gaussian kernel in pixels at 224 px, scaled with S.
    threshold
        Share of the maximum, between 0 and 1.
    minimum
        Smallest side in pixels.

    Returns
    -------
    np.ndarray
        (B, 4) int32: x0, y0, x1, y1, with x1 and y1 exclusive; always inside the image, square and not empty.
    """
    heat = np.asarray(heat, dtype=np.float32)
    batch, size = heat.shape[0], heat.shape[-1]
    matrix = _blur_matrix(size, blur)
    largest = np.abs(heat).reshape(batch, -1).max(axis=1, initial=0.0)
    scaled = heat / np.where(largest > 0, largest, 1.0)[:, None, None]
    blurred = torch.matmul(torch.matmul(matrix, torch.from_numpy(scaled)), matrix.T).abs_().numpy()
    peak = blurred.reshape(batch, -1).max(axis=1, initial=0.0)
    kept = blurred > (threshold * peak)[:, None, None]
    columns, rows = kept.any(axis=1), kept.any(axis=2)
    left, right = columns.argmax(axis=1), size - columns[:, ::-1].argmax(axis=1)
    top, bottom = rows.argmax(axis=1), size - rows[:, ::-1].argmax(axis=1)
    side = np.minimum(np.maximum(np.maximum(right - left, bottom - top), minimum), size)
    x0 = np.clip((left + right - side) // 2, 0, size - side)
    y0 = np.clip((top + bottom - side) // 2, 0, size - side)
    found = np.stack([x0, y0, x0 + side, y0 + side], axis=1)
    empty = (largest == 0) | ~kept.any(axis=(1, 2))
    found[empty] = (0, 0, size, size)
    return found.astype(np.int32)


def box(heat: np.ndarray, blur: int = 51, threshold: float = 0.01, minimum: int = 32) -> tuple[int, int, int, int]:
    """`boxes` of one (S, S) heatmap."""
    x0, y0, x1, y1 = (int(v) for v in boxes(np.asarray(heat)[None], blur, threshold, minimum)[0])
    return x0, y0, x1, y1
