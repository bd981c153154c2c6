"""Virtual neurons spliced into a network: ``LAYER.virtual.units`` has a layer's components with some of them in two; nothing else changes.

The units are the K components of the layer, and behind them two for each of the n that are split. A component that is split is zero in
its own place; of its two virtual neurons, one has its values on a sample and the other is zero, by which centroid the sample's circuit
is nearest to. They add up to the component, so that the network's outputs stay what they are to the last bit, and its relevance is
shared out among them: ``R_k = R_k1 + R_k2``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.overrides import _get_current_function_mode_stack

from semlens_audit.errors import SubjectError
from semlens_audit.layouts import first_tensor, replace_first
from semlens_audit.lrp_modes import Propagate
from semlens_audit.networks import nearest_layer
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.spliced_origin import require_origin
from semlens_audit.virtual.circuits import Given, Place, circuits, detached_copy, nearest, place_of
from semlens_audit.virtual_header import Splitting, read_splitting, virtual_of

__all__ = ["Units", "gathered", "load_splitting", "parted", "splice_virtual", "splice_virtual_audited"]

_CHILD = "virtual"


class Units(torch.nn.Module):
    """Gives what it is given: a name under which units are seen and replaced as any layer's output is."""

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        """`units` itself."""
        return units


class Spliced(torch.nn.Module):
    """What hangs below a layer: centroids of circuits, and the name of the units. Run as a module it gives what it is given."""

    components: torch.Tensor
    centroids: torch.Tensor

    def __init__(self, components: torch.Tensor, centroids: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("components", components.long())
        # Nothing that works on floating-point buffers may change a bit of them.
        self.register_buffer("centroids", centroids.float())
        self.units = Units()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`value` itself."""
        return value


def _axis(value: torch.Tensor) -> int:
    return 2 if value.ndim == 3 else 1


def parted(value: torch.Tensor, components: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """A layer's output with some components in two.

    Parameters
    ----------
    value
        (B, K, H, W), (B, T, K) or (B, K).
    components
        (n,) int64, each at most once.
    first
        (B, n) bool: whether the sample belongs to the first of the component's two virtual neurons.

    Returns
    -------
    torch.Tensor
        As `value`, with K + 2 n components: zero in the place of a component that is split, its two virtual neurons in places
        K + 2 j and K + 2 j + 1.
    """
    axis = _axis(value)
    chosen = value.index_select(axis, components)
    gate = first.reshape((len(first), 1, -1) if value.ndim == 3 else (*first.shape, *[1] * (value.ndim - 2)))
    nothing = chosen.new_zeros(())
    pairs = torch.stack([torch.where(gate, chosen, nothing), torch.where(gate, nothing, chosen)], dim=axis + 1)
    return torch.cat([value.index_fill(axis, components, 0.0), pairs.flatten(axis, axis + 1)], dim=axis)


def gathered(units: torch.Tensor, components: torch.Tensor) -> torch.Tensor:
    """Inverse of `parted`: what the layer gives where its units are these, virtual neurons added up."""
    axis = _axis(units)
    width = units.shape[axis] - 2 * len(components)
    own, pairs = units.narrow(axis, 0, width), units.narrow(axis, width, 2 * len(components))
    return own.index_add(axis, components, pairs.unflatten(axis, (-1, 2)).sum(dim=axis + 1))


class _Layer:
    """A copy of a layer as it was loaded, which copies of the network share.

    It is no sub-module: whatever folds, rounds or lists those leaves it alone, so that circuits are the same in every arithmetic.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = detached_copy(module)
        self._device: torch.device | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Layer:
        return self

    def __call__(self, device: torch.device) -> torch.nn.Module:
        if device != self._device:
            self._module.to(device)
            self._device = device
        return self._module


class _Hooks:
    """Run before and after the layer. An instance, so that a copy of the network has one that knows the copy."""

    def __init__(self, spliced: Spliced, layer: _Layer, place: Place, name: str) -> None:
        self.spliced, self.layer, self.place, self.name = spliced, layer, place, name
        self.given: Given | None = None

    @property
    def watched(self) -> bool:
        """Whether somebody looks at the units; otherwise the network runs as it is."""
        return bool(self.spliced.units._forward_hooks)

    def before(self, _module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Keep what the layer is given, which it may work on in place."""
        self.given = Given(arguments, named).kept() if self.watched else None

    def after(self, _module: torch.nn.Module, _inputs: object, output: object) -> object:
        """Show the units, and put what became of them in the place of the layer's output."""
        given, self.given = self.given, None
        if given is None:
            return None
        if any(isinstance(mode, Propagate) for mode in _get_current_function_mode_stack()):
            raise SubjectError(
                "lrp-not-applicable",
                f"The virtual neurons of layer {self.name!r} have no rule of relevance propagation.",
                "Set measurement.attribution: activation_x_gradient, or auto.",
            )
        layout, tensor, components = self.place.after, first_tensor(output), self.spliced.components
        found = circuits(self.layer(tensor.device), given, self.place, components.tolist())
        own = layout.restored(parted(layout.canonical(tensor), components, nearest(found, self.spliced.centroids)))
        seen = self.spliced.units(own)
        if seen is own:
            return None
        changed = layout.restored(gathered(layout.canonical(seen), components))
        if changed.shape == tensor.shape:
            # Laid out in memory as it was: what comes next may add up in another order otherwise.
            changed = torch.empty_like(tensor, requires_grad=False).copy_(changed)
        return replace_first(output, changed)


def splice_virtual(model: torch.nn.Module, layer: str, components: torch.Tensor, centroids: torch.Tensor, size: int) -> None:
    """Give `model` the layer ``LAYER.virtual.units``.

    It has the layer's own layout and exists in passes in which somebody looks at it. Such a pass runs the layer a second time, on a copy
    of its input and in single precision, with one backward pass through it for each component that is split.

    Parameters
    ----------
    model
        In eval mode.
    layer
        Name of a sub-module.
    components
        (n,) int64, ascending: the components to split.
    centroids
        (n, 2, C) mean circuits of their virtual neurons.
    size
        S of the network's inputs.

    Raises
    ------
    SubjectError
        See `semlens_audit.virtual.circuits.place_of`; ``other-width``: the circuits are of another width than the layer's input, or the
        layer has no such components; ``cannot-splice``: the layer cannot have anything hung below it.
    """
    place = place_of(model, layer, size)
    if place.inputs != centroids.shape[2] or int(components.max()) >= place.width:
        raise SubjectError(
            "other-width",
            f"The circuits are of {centroids.shape[2]} components and go to component {int(components.max())}; layer {layer!r} is given "
            f"{place.inputs} and has {place.width}.",
            "Name the layer that was split, or split this one.",
        )
    module = nearest_layer(model, layer)
    if hasattr(module, _CHILD):
        raise SubjectError(
            "cannot-splice", f"Layer {layer!r} has something called `{_CHILD}` already.", "Name its virtual neurons once."
        )
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0)).to(device)
    plain = _outputs(model, images)
    spliced = Spliced(components, centroids).to(device).eval()
    hooks = _Hooks(spliced, _Layer(module), place, layer)
    module.add_module(_CHILD, spliced)
    handles = [module.register_forward_pre_hook(hooks.before, with_kwargs=True), module.register_forward_hook(hooks.after)]
    why = ""
    try:
        if not torch.equal(plain, _outputs(model, images)):
            why = "the network's outputs are others with it"
    except Exception as error:  # noqa: BLE001  (whatever own code does with what it finds there)
        why = f"{type(error).__name__}: {error}"
    if why:
        for handle in handles:
            handle.remove()
        del module._modules[_CHILD]
        raise SubjectError(
            "cannot-splice",
            f"Layer {layer!r} runs whatever hangs below it, so that virtual neurons cannot hang there ({why}).",
            "Split the layer that comes next.",
        )


def _outputs(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return first_tensor(model(images)).clone()


def load_splitting(path: Path) -> tuple[torch.Tensor, torch.Tensor, Splitting]:
    """Components (n,), centroids (n, 2, C) and header of a file, checked.

    Raises
    ------
    SubjectError
        ``bad-virtual-neurons``: another file, or values that are not finite or do not fit its header.
    """
    said = read_splitting(path).splitting
    try:
        state = load_file(path)
    except Exception as error:
        raise _bad(path, f"Its tensors cannot be read: {type(error).__name__}: {error}.") from error
    components, centroids = state["components"], state["centroids"]
    if components.dtype != torch.int64 or components.tolist() != [one.component for one in said.splits]:
        raise _bad(path, "Its components are not those that its header names.")
    if centroids.dtype != torch.float32 or not bool(torch.isfinite(centroids).all()):
        raise _bad(path, "Its circuits are no finite numbers in single precision.")
    return components, centroids, said


def _bad(path: Path, what: str) -> SubjectError:
    return SubjectError(
        "bad-virtual-neurons", f"{path.name} holds no virtual neurons that can be loaded. {what}", "Make it with `semlens-audit split`.",
        file=str(path),
    )  # fmt: skip


def splice_virtual_audited(plan: AuditPlan, model: torch.nn.Module, sha256: str) -> None:
    """Load and splice all virtual neurons that the audit names.

    Parameters
    ----------
    plan
        The audit.
    model
        Its network, with its weights.
    sha256
        Of the network's tensors.

    Raises
    ------
    SubjectError
        A file that cannot be loaded, or that does not fit: see `load_splitting`, `splice_virtual`; ``other-layer``, ``other-subject``,
        ``other-preprocessing``: something else was split. ``lrp-not-applicable``: the audit attributes by relevance propagation.
    """
    subject = plan.audit.subject
    for one in subject.virtual_neurons:
        path = resolve(plan, one.file)
        components, centroids, said = load_splitting(path)
        require_origin(
            said, one.layer, sha256, subject.preprocessing, path,
            was="Components were split", hint="Split the layer with `semlens-audit split`, and name that file.",
        )  # fmt: skip
        splice_virtual(model, one.layer, components, centroids, subject.preprocessing.size)
    audited = [layer for layer in plan.audit.layers if virtual_of(plan.audit, layer)]
    if audited and plan.audit.measurement.attribution == "lrp":
        raise SubjectError(
            "lrp-not-applicable", f"Layer {audited[0]!r} has virtual neurons, which have no rule of relevance propagation.",
            "Set measurement.attribution: activation_x_gradient, or auto.",
        )  # fmt: skip
