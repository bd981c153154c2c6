"""Circuits of components: which components of a layer's input drive each of its own, on one sample.

PURE (Dreyer et al. 2024, "PURE: Turning polysemantic neurons into pure features by identifying relevant circuits", arXiv 2404.06453):
``c_j = sum_x a_j d(sum_x relu(a_k)) / d a_j``, activation x gradient summed over space, divided by ``sum_j |c_j|``. Here the layer before
is what the audited layer is given, so that a circuit goes through this one layer, however much it is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semlens_audit.errors import SubjectError
from semlens_audit.layouts import Layout, first_tensor, layout_of
from semlens_audit.networks import nearest_layer

__all__ = ["Given", "Place", "circuits", "detached_copy", "nearest", "place_of"]

_TRIED = 64
"""Components that are asked whether their circuits say anything."""


@dataclass(frozen=True)
class Given:
    """What a layer was called with.

    Parameters
    ----------
    arguments, named
        Positional and keyword arguments; the first tensor among them is the layer's input.
    """

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def input(self) -> torch.Tensor:
        """The first tensor; `SubjectError` ``no-circuits`` where there is none."""
        found = next((one for one in (*self.arguments, *self.named.values()) if isinstance(one, torch.Tensor)), None)
        if found is None:
            raise SubjectError("no-circuits", "The layer is given no tensor that its components could be driven by.", "Name another layer.")
        return found

    def kept(self) -> Given:
        """The same with copies of its tensors, which a layer that works in place leaves alone; one tensor stays one."""
        copies: dict[int, torch.Tensor] = {}

        def one(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return copies.setdefault(id(value), value.detach().clone())

        return Given(tuple(map(one, self.arguments)), {name: one(value) for name, value in self.named.items()})

    def with_input(self, value: torch.Tensor) -> Given:
        """The same with another input, wherever the input stands; its other tensors as ones that gradients may be taken with."""
        own = self.input

        def one(part: Any) -> Any:
            if part is own:
                return value
            return part.clone() if isinstance(part, torch.Tensor) else part

        return Given(tuple(map(one, self.arguments)), {name: one(part) for name, part in self.named.items()})


@dataclass(frozen=True)
class Place:
    """How a layer lays out what it is given and what it gives.

    Parameters
    ----------
    before, after
        Order of the axes of its input and of its output.
    inputs, width
        Components of its input and of its output.
    """

    before: Layout
    after: Layout
    inputs: int
    width: int


def detached_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a layer in single precision that nobody observes and no gradients of parameters are taken of."""
    return copy.deepcopy(module).float().eval().requires_grad_(False)


def _component(output: torch.Tensor, component: int) -> torch.Tensor:
    """One component of a (B, K, H, W), (B, T, K) or (B, K) output."""
    return output[..., component] if output.ndim == 3 else output[:, component]


def _over_space(value: torch.Tensor) -> torch.Tensor:
    """(B, C) sum over places of (B, C, H, W), (B, T, C) or (B, C)."""
    if value.ndim == 4:
        return value.sum(dim=(2, 3))
    return value.sum(dim=1) if value.ndim == 3 else value


def _run(layer: Callable[..., object], given: Given, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """Input with a graph, and the layer's output in canonical order."""
    value = given.input.detach().clone().float().requires_grad_(True)
    # What works in place must not be given a leaf.
    called = given.with_input(value.clone())
    return value, place.after.canonical(first_tensor(layer(*called.arguments, **called.named)))


def circuits(layer: Callable[..., object], given: Given, place: Place, components: Sequence[int]) -> torch.Tensor:
    """Circuits of some components on a batch.

    Parameters
    ----------
    layer
        The layer in single precision and eval mode; run once, with one backward pass for each component.
    given
        What it is given for B samples.
    place
        See `place_of`.
    components
        n indices.

    Returns
    -------
    torch.Tensor
        (B, n, C) float64, ``sum_j |c_j|`` is 1; zeros where the component is nowhere above zero, or where nothing of the input moves it.
        Rows do not influence each other.
    """
    device = given.input.device
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        value, output = _run(layer, given, place)
        found = []
        for position, component in enumerate(components):
            total = torch.relu(_component(output, component)).sum()
            (gradient,) = torch.autograd.grad(total, value, retain_graph=position + 1 < len(components))
            found.append(_over_space(place.before.canonical((gradient * value).detach())).double())
    stacked = torch.stack(found, dim=1)
    length = stacked.abs().sum(dim=2, keepdim=True)
    return torch.where(length > 0, stacked / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def nearest(found: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """(B, n) bool: whether circuits (B, n, C) are as near to the first of their two centroids (n, 2, C) as to the second, or nearer."""
    apart = (found[:, :, None] - centroids.double()[None]).square().sum(dim=3)
    return apart[..., 0] <= apart[..., 1]


def place_of(model: torch.nn.Module, layer: str, size: int) -> Place:
    """How a layer lays out its input and its output, found by running the network on two images.

    Parameters
    ----------
    model
        In eval mode.
    layer
        Name of a sub-module.
    size
        S of the network's inputs.

    Raises
    ------
    SubjectError
        ``unknown-layer``, ``unused-layer``, ``layer-runs-often``; what `semlens_audit.layouts.layout_of` refuses of its output;
        ``no-circuits``: it is given no tensor, or one whose components cannot be told from places; ``trivial-circuits``: each of its
        components is driven by one component of its input, so that no two circuits differ, as in an activation function, a normalisation
        or a depth-wise convolution.
    """
    module, seen = nearest_layer(model, layer), list[tuple[Given, tuple[int, ...], torch.Tensor]]()
    waiting: list[Given] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, given, named: waiting.append(Given(given, named).kept()), with_kwargs=True),
        module.register_forward_hook(
            lambda _module, _given, output: seen.append((waiting.pop(), tuple(first_tensor(output).shape), first_tensor(output)))
        ),
    ]
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0)).to(device)
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise SubjectError("unused-layer", f"The forward pass leaves out layer {layer!r}.", "Name another: `semlens-audit layers`.")
    if len(seen) > 1:
        raise SubjectError(
            "layer-runs-often", f"Layer {layer!r} runs {len(seen)} times in a forward pass.", "Name a layer that runs once."
        )
    given, _, output = seen[0]
    after = layout_of(model, layer, output, 2)
    try:
        before = layout_of(model, layer, given.input, 2)
    except SubjectError as error:
        raise SubjectError(
            "no-circuits",
            f"What layer {layer!r} is given has shape {tuple(given.input.shape)}: its components cannot be told from places.",
            "Name the block that holds it, or the one after it.",
        ) from error
    width, inputs = (
        int(value.shape[2] if value.ndim == 3 else value.shape[1]) for value in (after.canonical(output), before.canonical(given.input))
    )
    place = Place(before, after, inputs, width)
    if _trivial(detached_copy(module), given, place):
        raise SubjectError(
            "trivial-circuits",
            f"Each component of layer {layer!r} is driven by one component of what it is given, so that its circuits are all alike.",
            "Name the block that holds it, or the layer before it.",
        )
    return place


def _trivial(layer: torch.nn.Module, given: Given, place: Place) -> bool:
    """Whether each of the components that are tried depends on one component of the input, and none on several."""
    with torch.inference_mode(False), torch.enable_grad():
        value, output = _run(layer, given, place)
        if not output.requires_grad:
            raise SubjectError("no-circuits", "The layer's output does not depend on what it is given.", "Name another layer.")
        counts = set()
        for component in range(0, place.width, -(-place.width // _TRIED)):
            (gradient,) = torch.autograd.grad(_component(output, component).sum(), value, retain_graph=True)
            counts.add(int((_over_space(place.before.canonical(gradient).abs()).amax(dim=0) > 0).sum()))
            if max(counts) > 1:
                return False
    return 1 in counts
