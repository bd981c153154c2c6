"""Relevance of one layer's components for a component of a later layer, by a pass through the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from semlens_audit.attribution_maps import Method, images_at_once, outputs_of
from semlens_audit.components import capture
from semlens_audit.devices import on_device
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.layouts import observed
from semlens_audit.lrp import relevance_model

if TYPE_CHECKING:
    from semlens_audit.work import Bench

__all__ = ["conditional_relevance", "layer_relevance", "running_order"]


def running_order(bench: Bench, layers: Sequence[str]) -> list[str]:
    """`layers` in the order in which the network first runs them.

    Raises
    ------
    SubjectError
        ``unused-layer``: the forward pass leaves one out.
    """
    images = on_device(bench.images([0]), bench.device)
    with capture(bench.subject.model, layers) as outputs, torch.no_grad():
        bench.subject.model(images)
    outputs_of(outputs, layers)
    return list(outputs)


def conditional_relevance(
    bench: Bench, samples: Sequence[int], earlier: str, later: str, component: int, method: Method
) -> np.ndarray:
    """What arrives in the earlier layer of a later component's activation on some samples; see `layer_relevance`.

    Returns
    -------
    numpy.ndarray
        (n, J + 1) float64: each earlier component, summed over space, and last what the component started with.
    """
    parts, step = [], images_at_once(bench.plan.audit.subject.preprocessing.size)
    for first in range(0, len(samples), step):
        some = samples[first : first + step]
        # A short batch is filled up, so that a row does not depend on how many there are.
        images = on_device(bench.images(some, min(step, len(samples))), bench.device)
        parts.append(layer_relevance(bench.subject.model, images, earlier, later, component, method)[: len(some)])
    return np.concatenate(parts)


def layer_relevance(
    model: torch.nn.Module, images: torch.Tensor, earlier: str, later: str, component: int, method: Method
) -> np.ndarray:
    """Relevance of an earlier layer's components for one component of a later layer.

    Parameters
    ----------
    model
        Network in eval mode.
    images
        (B, 3, S, S) float32.
    earlier, later
        Names of layers; the later one is computed from the earlier one.
    component
        Of the later layer.
    method
        ``lrp``: relevance starts as the component's activation, at each of its places, and is propagated with the composite of
        `semlens_audit.lrp`. ``activation_x_gradient``: ``a_j * d(sum over places of a_k) / d a_j``.

    Returns
    -------
    numpy.ndarray
        (B, J + 1) float64: sum over the places of each earlier component; last the sum over the component's own places.

    Raises
    ------
    SubjectError
        ``layers-in-parallel``: the later layer does not depend on the earlier one; ``unused-layer``; ``lrp-not-applicable``.
    ExecutionError
        ``not-finite``.
    """
    if method == "lrp":
        seen: dict[str, torch.Tensor] = {}
        # The very tensor and no copy of it: a folded batch norm recognises its convolution by it.
        with observed(model, [earlier], lambda name, tensor: seen.__setitem__(name, tensor)):
            end, _ = relevance_model(model, images).up_to(images, later)
        if earlier not in seen:
            raise _parallel(earlier, later)
        start = seen[earlier]
    else:
        with capture(model, [earlier, later], differentiable=True) as outputs, torch.enable_grad():
            model(images.detach())
        start, end = outputs_of(outputs, [earlier, later])
    wanted = _of_component(end.detach(), component)
    mask = torch.zeros_like(end)
    _of_component(mask, component).copy_(wanted if method == "lrp" else torch.ones_like(wanted))
    (gradient,) = torch.autograd.grad(end, start, mask, allow_unused=True) if end.requires_grad else (None,)
    if gradient is None:
        raise _parallel(earlier, later)
    found = gradient if method == "lrp" else gradient * start.detach()
    total = torch.cat([_over_places(found), _over_places(wanted.unsqueeze(1) if end.ndim != 3 else wanted.unsqueeze(2))], dim=1)
    result = np.asarray(total.cpu().numpy(), dtype=np.float64)
    if not np.isfinite(result).all():
        raise ExecutionError(
            "not-finite",
            f"The relevance in layer {earlier!r} for component {component} of layer {later!r} is NaN or infinite.",
            "Check the model and its data.",
        )
    return result


def _of_component(output: torch.Tensor, component: int) -> torch.Tensor:
    """The places of one component in (B, K, H, W), (B, T, K) or (B, K); a view."""
    return output[..., component] if output.ndim == 3 else output[:, component]


def _over_places(value: torch.Tensor) -> torch.Tensor:
    """(B, K) sum over the places of each component, in double precision."""
    value = value.double()
    if value.ndim == 4:
        return value.sum(dim=(2, 3))
    return value.sum(dim=1) if value.ndim == 3 else value


def _parallel(earlier: str, later: str) -> SubjectError:
    return SubjectError(
        "layers-in-parallel",
        f"Layer {later!r} is not computed from layer {earlier!r}: they lie in parallel branches.",
        "Audit layers one of which follows from the other.",
    )
