"""Relevance of components for classes, and where in the input a component is driven from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch

from semlens_audit.attribution_maps import Attributable, Method, heatmaps, images_at_once, outputs_of, stream_heatmaps
from semlens_audit.components import capture, first_tensor
from semlens_audit.cropping import box, boxes
from semlens_audit.devices import device_of, on_device
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.lrp import COMPOSITE, relevance_model

__all__ = ["Attributable", "Method", "box", "boxes", "describe", "heatmaps", "relevance", "stream_heatmaps"]

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
    step = images_at_once(images.shape[-1])
    images = on_device(images, device_of(subject.model))
    parts = [
        _relevance(subject, images[first : first + step], layers, class_indices, method)
        for first in range(0, len(images), step)
    ]
    return (
        {layer: np.concatenate([found[layer] for found, _ in parts]) for layer in layers},
        {layer: np.concatenate([kept[layer] for _, kept in parts]) for layer in layers},
    )


def _relevance(
    subject: Attributable, images: torch.Tensor, layers: Sequence[str], class_indices: Sequence[int], method: Method
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    if method == "lrp":
        logits, outputs = relevance_model(subject.model, images).forward(images, layers)
    else:
        with capture(subject.model, layers, differentiable=True) as outputs, torch.enable_grad():
            logits = first_tensor(subject.model(images.detach()))
    tensors = outputs_of(outputs, layers)
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    kept: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for place, index in enumerate(class_indices):
        score = logits[:, index].detach()
        start = torch.zeros_like(logits)
        start[:, index] = score if method == "lrp" else 1.0
        gradients = _gradients(logits, tensors, start, layers, retain=place + 1 < len(class_indices))
        for layer, tensor, gradient in zip(layers, tensors, gradients, strict=True):
            share = _over_space(gradient if method == "lrp" else gradient * tensor.detach()).cpu().numpy()
            if not np.isfinite(share).all():
                raise ExecutionError(
                    "not-finite",
                    f"The relevance in layer {layer!r} is NaN or infinite.",
                    "Check the model and its data.",
                )
            found[layer].append(share.astype(np.float32))
            kept[layer].append(_ratio(share.sum(axis=1), score.cpu().numpy()).astype(np.float32))
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
