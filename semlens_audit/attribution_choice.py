"""Which attribution applies to a network: relevance propagation where it is conserved, else activation x gradient.

What arrives of the logit in a layer is accounted for: of the relevance that leaves the output, biases take a part by their share
of each activation, and a part may be lost where a rule finds nothing to pass it on to. Relevance is propagated only where next to
nothing is lost and biases take no more than half; elsewhere the shares of a layer's components would be shares of little.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from semlens_audit.errors import SubjectError
from semlens_audit.lrp import RelevanceModel, relevance_model
from semlens_audit.lrp_rules import Operation
from semlens_audit.wording import format_number, join

__all__ = ["LOST", "TAKEN", "Account", "Choice", "account", "applies", "choose"]

Method = Literal["lrp", "activation_x_gradient"]

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)

LOST = 0.05
"""Share of the logit that may be lost on the way to a layer. Stabilisers alone cost less than a thousandth; more is lost only where
units carry relevance without a positive contribution, which z+ cannot pass on."""

TAKEN = 0.5
"""Share of the logit that biases may take on the way to a layer: beyond it, less reaches the layer than does not."""


@dataclass(frozen=True)
class Account:
    """Where the relevance of an output went before it reached a layer, as shares of the output.

    Parameters
    ----------
    arrived
        Relevance in the layer. With `taken` and `lost` it adds up to 1, unless some passes the layer by in another branch.
    taken
        By biases: each its share ``b_j / z_j`` of the relevance of activation j, batch norms folded into convolutions.
    lost
        By rules that had nothing to pass it on to, and by their stabilisers.
    """

    arrived: float
    taken: float
    lost: float


@dataclass(frozen=True)
class Choice:
    """The attribution that applies.

    Parameters
    ----------
    method
        ``lrp`` or ``activation_x_gradient``.
    reason
        Why, as a clause without a full stop.
    conservation
        Relevance in the layer over the output under LRP, the median over the examples; ``None`` where LRP does not apply.
    """

    method: Method
    reason: str
    conservation: float | None = None


def applies(model: torch.nn.Module, example: torch.Tensor, layer: str | None = None) -> Choice:
    """Choose the attribution of one layer, or of the network as a whole.

    Parameters
    ----------
    model
        Network in eval mode, with one score per class.
    example
        (B, 3, S, S) float32 inputs, B >= 1. The output that is farthest from zero is attributed on each.
    layer
        Where relevance is measured; without it, the last layer that still has places, from which pooling and classifier go on.

    Returns
    -------
    Choice
        LRP where the network has a rule for every operation, no more than `LOST` is lost and biases take no more than `TAKEN`.

    Raises
    ------
    SubjectError
        Unknown layer, or a layer that the outputs do not depend on.
    """
    name = layer if layer is not None else _last_with_places(model, example[:1])
    return choose(model, example, [name])[name]


def choose(model: torch.nn.Module, example: torch.Tensor, layers: Sequence[str]) -> dict[str, Choice]:
    """Choose the attribution of every layer; see `applies`.

    Returns
    -------
    dict
        layer -> choice.
    """
    try:
        propagation = relevance_model(model, example[:1])
    except SubjectError as error:
        if error.slug not in {"lrp-not-applicable", "lrp-unfaithful"}:
            raise
        return dict.fromkeys(layers, Choice("activation_x_gradient", _refused(model, error)))
    return {layer: _decide(propagation, example, layer) for layer in layers}


def _refused(model: torch.nn.Module, error: SubjectError) -> str:
    told = error.problems[0].message.removesuffix(".")
    told = told[:1].lower() + told[1:]
    attends = any(_ATTENTION.search(type(module).__name__) for module in model.modules())
    return f"the network has attention, and {told}" if attends else told


def _decide(propagation: RelevanceModel, example: torch.Tensor, layer: str) -> Choice:
    """The median over the examples decides."""
    try:
        accounts = list(_accounts(propagation, example, layer))
    except SubjectError as error:
        if error.slug == "lrp-not-applicable":  # what the network executes may depend on the image
            return Choice("activation_x_gradient", _refused(propagation.model, error))
        if error.slug != "unused-layer":
            raise
        # A gate, for example; whether the outputs depend on the layer at all shows once their gradient is taken.
        return Choice("activation_x_gradient", "relevance propagation passes the layer by", 0.0)
    arrived, taken, lost = (
        float(np.median([getattr(one, name) for one in accounts])) for name in ("arrived", "taken", "lost")
    )
    if not np.isfinite([arrived, taken, lost]).all():
        return Choice("activation_x_gradient", "relevance propagation gives values that are not finite")
    came = f"{format_number(arrived, 2)} of the output arrives in the layer"
    went = [
        f"{format_number(part, 2)} {how}"
        for part, how in (
            (taken, "is taken by biases"),
            (lost, "is lost where no input contributes"),
            (1 - arrived - taken - lost, "passes it by in other branches"),
        )
        if abs(part) >= LOST
    ]
    said = f"{came} ({join(went)})" if went else came
    if abs(lost) > LOST or abs(taken) > TAKEN:
        return Choice("activation_x_gradient", f"relevance propagation would not carry enough: {said}", arrived)
    return Choice("lrp", f"relevance propagation conserves: {said}", arrived)


def account(model: torch.nn.Module, images: torch.Tensor, layer: str, index: int | None = None) -> list[Account]:
    """Account for relevance between the output and a layer, image by image.

    Parameters
    ----------
    model
        Network in eval mode that relevance propagation applies to.
    images
        (B, 3, S, S).
    layer
        Name of the layer.
    index
        Which output; without it, on each image the one farthest from zero.

    Raises
    ------
    SubjectError
        ``lrp-not-applicable``, ``lrp-unfaithful``; ``unknown-layer``, ``unused-layer``.
    """
    return list(_accounts(relevance_model(model, images[:1]), images, layer, index))


def _accounts(
    propagation: RelevanceModel, images: torch.Tensor, layer: str, index: int | None = None
) -> Iterator[Account]:
    # One by one: an account depends on its image alone, and no more than one graph is held.
    for image in images.split(1):
        logits, outputs = propagation.forward(image, [layer])
        if layer not in outputs or not logits.requires_grad:
            raise _unused(layer)
        wanted = int(logits.detach().abs().argmax()) if index is None else index
        score = float(logits.detach()[0, wanted])
        start = torch.zeros_like(logits)
        start[0, wanted] = score
        taken, lost = [0.0], [0.0]
        for node in _rules(logits):
            node.register_hook(_auditor(node, taken, lost))
        (inside,) = torch.autograd.grad(logits, outputs[layer], start, allow_unused=True)
        if inside is None:
            raise _unused(layer)
        total = score if score != 0 else float("nan")
        yield Account(float(inside.double().sum()) / total, sum(taken) / total, sum(lost) / total)


def _unused(layer: str) -> SubjectError:
    return SubjectError("unused-layer", f"The outputs do not depend on layer {layer!r}.", "Audit another layer.")


def _rules(outputs: torch.Tensor) -> list[Any]:
    """Every step of the graph that a rule with parameters or shares is applied at."""
    seen: set[Any] = set()
    waiting = [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return [node for node in seen if isinstance(getattr(node, "operation", None), Operation)]


def _auditor(node: Any, taken: list[float], lost: list[float]) -> Any:
    def audit(to_inputs: tuple[torch.Tensor | None, ...], from_output: tuple[torch.Tensor | None, ...]) -> None:
        (relevance,) = from_output
        if relevance is None or to_inputs[0] is None:
            return
        absorbed = _absorbed(node.operation, node.value, relevance)
        taken.append(absorbed)
        lost.append(float(relevance.double().sum()) - absorbed - float(to_inputs[0].double().sum()))

    return audit


def _absorbed(operation: Operation, value: torch.Tensor, relevance: torch.Tensor) -> float:
    """Relevance that the biases of an operation take: sum over j of ``R_j b_j / z_j``, with b and z as its rule modifies them."""
    rule = operation.rule
    biases = [bias for _, bias in operation.branches()]
    if all(bias is None for bias in biases):
        return 0.0
    outputs = [
        finish(operation.call(modify(value), weight, bias))
        for modify, finish, (weight, bias) in zip(rule.input_modifiers, rule.output_modifiers, operation.branches(), strict=True)
    ]
    factors = rule.gradient_mapper(torch.ones_like(outputs[0]), outputs)
    parts = [factors] * len(outputs) if isinstance(factors, torch.Tensor) else factors
    # A linear layer has its components last, a convolution second.
    shape = (-1,) if operation.weight is not None and operation.weight.ndim == 2 else (-1, *(1,) * (relevance.ndim - 2))
    return sum(
        float((relevance * factor * bias.view(shape)).double().sum())
        for factor, bias in zip(parts, biases, strict=True)
        if bias is not None
    )


def _last_with_places(model: torch.nn.Module, image: torch.Tensor) -> str:
    """The module whose output is the last, in order of execution, that still has places or tokens; of nested ones the outermost."""
    found: list[str] = []

    def watch(name: str) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor) and (
                output.ndim == 3 or (output.ndim == 4 and sorted(output.shape[1:])[1] > 1)
            ):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise SubjectError("no-places", "No layer of the model gives maps or tokens.", "Name the layer to audit.")
    return found[-1]
