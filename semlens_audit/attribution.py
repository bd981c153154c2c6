"""Relevance of components for classes, and where in the input a component is driven from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Literal, Protocol

import numpy as np
import torch

from semlens_audit.components import capture, first_tensor, maps
from semlens_audit.cropping import box, boxes
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.layouts import prefix_tokens
from semlens_audit.lrp import COMPOSITE, relevance_model

__all__ = ["Attributable", "Method", "box", "boxes", "describe", "heatmaps", "relevance", "stream_heatmaps"]

Method = Literal["lrp", "activation_x_gradient"]
_AT_ONCE = 8 * 224**2
"""Pixels per channel whose graph is held at a time; bounds memory, changes no result."""


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
    folded = relevance_model(subject.model, images).folded
    norms = f"; {folded} batch norms folded into their convolutions" if folded else ""
    return f"LRP, composite {COMPOSITE} (rules of zennit {version('zennit')}){norms}"


def relevance(
    subject: Attributable, images: torch.Tensor, layers: Sequence[str], class_indices: Sequence[int], method: Method
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Relevance of every component of the layers for every class, of one batch.

    One forward pass is shared by all classes. With ``lrp``, relevance starts as the class logit and is propagated with the
    EpsilonPlusFlat composite; a component's relevance R_k(c) is the sum over its map (CRP, Achtibat et al. 2023). With
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
        layer -> (B, C, K) float32 signed relevance, in units of the logit; and layer -> (B, C) float32 conservation ratio:
        relevance in the layer over the logit (1: nothing lost to biases; 0 where the logit is 0).

    Raises
    ------
    SubjectError
        Unknown layer, a layer that the outputs do not depend on, or a model that `method` does not apply to.
    ExecutionError
        ``not-finite``, naming the layer.
    """
    step = _images_at_once(images.shape[-1])
    parts = [
        _relevance(subject, images[first : first + step], layers, class_indices, method)
        for first in range(0, len(images), step)
    ]
    return (
        {layer: np.concatenate([found[layer] for found, _ in parts]) for layer in layers},
        {layer: np.concatenate([kept[layer] for _, kept in parts]) for layer in layers},
    )


def _images_at_once(size: int) -> int:
    return max(1, _AT_ONCE // size**2)


def _relevance(
    subject: Attributable, images: torch.Tensor, layers: Sequence[str], class_indices: Sequence[int], method: Method
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    if method == "lrp":
        logits, outputs = relevance_model(subject.model, images).forward(images, layers)
    else:
        with capture(subject.model, layers, differentiable=True) as outputs, torch.enable_grad():
            logits = first_tensor(subject.model(images.detach()))
    tensors = _outputs(outputs, layers)
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    kept: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for place, index in enumerate(class_indices):
        score = logits[:, index].detach()
        start = torch.zeros_like(logits)
        start[:, index] = score if method == "lrp" else 1.0
        gradients = _gradients(logits, tensors, start, layers, retain=place + 1 < len(class_indices))
        for layer, tensor, gradient in zip(layers, tensors, gradients, strict=True):
            share = _over_space(gradient if method == "lrp" else gradient * tensor.detach()).numpy()
            if not np.isfinite(share).all():
                raise ExecutionError(
                    "not-finite",
                    f"The relevance in layer {layer!r} is NaN or infinite.",
                    "Check the model and its data.",
                )
            found[layer].append(share.astype(np.float32))
            kept[layer].append(_ratio(share.sum(axis=1), score.numpy()).astype(np.float32))
    return (
        {layer: np.stack(values, axis=1) for layer, values in found.items()},
        {layer: np.stack(values, axis=1) for layer, values in kept.items()},
    )


def _gradients(
    logits: torch.Tensor, tensors: list[torch.Tensor], start: torch.Tensor, layers: Sequence[str], *, retain: bool
) -> list[torch.Tensor]:
    gradients: Sequence[torch.Tensor | None] = [None] * len(tensors)
    if logits.requires_grad:
        gradients = torch.autograd.grad(logits, tensors, start, retain_graph=retain, allow_unused=True)
    result = []
    for layer, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise SubjectError("unused-layer", f"The outputs do not depend on layer {layer!r}.", "Audit another layer.")
        result.append(gradient)
    return result


def _outputs(outputs: dict[str, torch.Tensor], layers: Sequence[str]) -> list[torch.Tensor]:
    for layer in layers:
        if layer not in outputs:
            raise SubjectError("unused-layer", f"The forward pass leaves out layer {layer!r}.", "Audit another layer.")
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

    With ``lrp``: conditional relevance (CRP, Achtibat et al. 2023): propagation starts at the layer with the component's own
    activation, all other components masked, and ends at the pixels. With ``activation_x_gradient``, and for layers of tokens:
    the component's activation map, up-sampled (SemanticLens, arXiv 2501.05398); where a layer has no map, input x gradient.

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
    step = _images_at_once(images.shape[-1])
    parts = [
        _prepare(subject, images[first : first + step], layer, method)(rows[first : first + step])
        for first in range(0, len(images), step)
    ]
    return np.concatenate(parts)


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
        Most images per pass; fewer where inputs are large, to bound memory.

    Yields
    ------
    tuple
        (n,) positions in `rows`, and their (n, S, S) float32 heatmaps. Every position comes exactly once; the order depends
        only on `rows`, `batch_size` and S.
    """
    pairs = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    by_sample: dict[int, list[int]] = {}
    for position, sample in enumerate(pairs[:, 0].tolist()):
        by_sample.setdefault(sample, []).append(position)
    for group in _alike({sample: len(positions) for sample, positions in by_sample.items()}, batch_size):
        images = torch.stack([load(sample) for sample in group])
        width = _images_at_once(images.shape[-1])
        for first in range(0, len(group), width):
            part = [by_sample[sample] for sample in group[first : first + width]]
            run = _prepare(subject, images[first : first + width], layer, method)
            for turn in range(max(len(positions) for positions in part)):
                # An image whose components are all done repeats its last one, which is thrown away.
                chosen = np.array([positions[min(turn, len(positions) - 1)] for positions in part])
                wanted = np.array([turn < len(positions) for positions in part])
                yield chosen[wanted], run(pairs[chosen, 1])[wanted]


def _alike(counts: dict[int, int], batch_size: int) -> Iterator[list[int]]:
    """Groups of at most `batch_size` samples with like numbers of components, so that few places of a pass stay empty."""
    group: list[int] = []
    for sample in sorted(counts, key=lambda sample: (-counts[sample], sample)):
        if group and (len(group) == batch_size or counts[sample] < 0.8 * counts[group[0]] - 2):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


_Run = Callable[[np.ndarray], np.ndarray]


def _prepare(subject: Attributable, images: torch.Tensor, layer: str, method: Method) -> _Run:
    """One forward pass; the returned function gives the heatmaps of one component per image, as often as it is called."""
    if method == "lrp":
        return _conditional(subject.model, images, layer)
    with capture(subject.model, [layer]) as outputs, torch.no_grad():
        subject.model(images)
    (activation,) = _outputs(outputs, [layer])
    if activation.ndim == 2:
        return _input_times_gradient(subject.model, images, layer)
    return _upsampled(maps(activation, prefix_tokens(subject.model)), images.shape[-1])


def _conditional(model: torch.nn.Module, images: torch.Tensor, layer: str) -> _Run:
    activation, inputs = relevance_model(model, images).up_to(images, layer)
    if activation.ndim == 3:
        return _upsampled(maps(activation.detach(), prefix_tokens(model)), images.shape[-1])

    def run(components: np.ndarray) -> np.ndarray:
        start = _only(activation.detach(), components)
        (gradient,) = torch.autograd.grad(activation, inputs, start, retain_graph=True)
        return _finite(gradient.sum(dim=1).numpy(), layer)

    return run


def _input_times_gradient(model: torch.nn.Module, images: torch.Tensor, layer: str) -> _Run:
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


def _upsampled(activation: torch.Tensor, size: int) -> _Run:
    def run(components: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(np.asarray(components, dtype=np.int64))
        chosen = activation[torch.arange(len(index)), index][:, None].detach()
        # What drives a component is where it is high; one that is nowhere positive is judged by its least negative places.
        highest = chosen.amax(dim=(2, 3), keepdim=True)
        lowest = chosen.amin(dim=(2, 3), keepdim=True)
        chosen = torch.where(highest > 0, chosen.clamp(min=0), chosen - lowest)
        up = torch.nn.functional.interpolate(chosen, size=(size, size), mode="bilinear", align_corners=False)
        return np.asarray(up[:, 0].numpy(), dtype=np.float32)

    return run


def _finite(heat: np.ndarray, layer: str) -> np.ndarray:
    if not np.isfinite(heat).all():
        raise ExecutionError(
            "not-finite", f"A heatmap of layer {layer!r} holds NaN or infinities.", "Check the model and its data."
        )
    return np.asarray(heat, dtype=np.float32)
