"""Layer-wise relevance propagation for convolutional networks: zennit's rules, applied to the operations a forward pass runs.

The composite is EpsilonPlusFlat, as in SemanticLens (arXiv 2501.05398) and CRP (Achtibat et al., Nature Machine
Intelligence 2023): flat rule at the first convolution, z+ at the others, epsilon at linear layers, proportional shares at sums
and average pools, relevance passed through elementwise functions. It flows as the "gradient" of torch's autograd.

zennit attaches rules to modules and therefore needs a canonizer per architecture, which turns a residual ``x + y`` into a
module and folds batch norms by the order in which modules were defined. Here the *executed* operations are intercepted
instead, so that any torchvision, timm or own network is covered: a batch norm is folded into the convolution whose output it
was seen to be the only reader of, and every sum, pool and activation is met wherever it is written. What has no rule is refused
by name, never treated as a plain gradient. The model itself is not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary, ref

import torch

from semlens_audit.errors import SubjectError
from semlens_audit.layouts import first_tensor, observed
from semlens_audit.lrp_modes import Observe, Propagate, from_input

__all__ = ["COMPOSITE", "RelevanceModel", "relevance_model"]

COMPOSITE = "EpsilonPlusFlat"


class _Reached(Exception):  # noqa: N818  (no error: a way out of a forward pass)
    """The layer that a partial forward pass goes to has been reached."""


class RelevanceModel:
    """A network whose backward pass carries relevance.

    Parameters
    ----------
    model
        Convolutional network in eval mode; not changed.
    example
        (B, 3, S, S) input on which its operations are observed.

    Raises
    ------
    SubjectError
        ``lrp-not-applicable``: an operation without a rule; ``lrp-unfaithful``: the rewritten forward pass gives other outputs.
    """

    def __init__(self, model: torch.nn.Module, example: torch.Tensor) -> None:
        self._model = ref(model)
        self._fingerprint = _fingerprint(model)
        observe = Observe()
        with torch.no_grad(), observe:
            plain = first_tensor(model(example[:1]))
        self._fusion = observe.finish()
        with self._propagating():
            again = first_tensor(model(example[:1].detach().clone().requires_grad_(True)))
        if not torch.allclose(plain, again.detach(), rtol=1e-3, atol=1e-3 * max(1.0, float(plain.abs().max()))):
            raise SubjectError(
                "lrp-unfaithful", "Rewritten for relevance propagation, the model no longer gives the same outputs.",
                "Set measurement.attribution: activation_x_gradient.",
            )  # fmt: skip

    @property
    def model(self) -> torch.nn.Module:
        """The network, held weakly."""
        model = self._model()
        if model is None:
            raise ReferenceError("the model is gone")
        return model

    @property
    def folded(self) -> int:
        """Number of batch norms folded into convolutions."""
        return len(self._fusion.norms)

    @property
    def stale(self) -> bool:
        """Whether the model's parameters were changed since its operations were observed."""
        return self._fingerprint != _fingerprint(self.model)

    def _propagating(self, dtype: torch.dtype | None = None) -> Propagate:
        return Propagate(self._fusion, dtype)

    def forward(self, images: torch.Tensor, layers: Sequence[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the network so that gradients of its output with respect to the layers' outputs are relevances.

        Parameters
        ----------
        images
            (B, 3, S, S).
        layers
            Names of layers; what comes before the first of them is not recorded.

        Returns
        -------
        tuple
            (B, C) outputs with a graph, and layer -> its output inside that graph.
        """
        with _collecting(self.model, layers) as outputs, self._propagating(), torch.enable_grad():
            result = first_tensor(self.model(from_input(images.detach().contiguous(memory_format=torch.channels_last))))
        return result, outputs

    def up_to(
        self, images: torch.Tensor, layer: str, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network up to `layer`.

        Parameters
        ----------
        images
            (B, 3, S, S).
        layer
            Name of the layer; what follows it is not run.
        dtype
            To which convolutions round their input and parameters, or ``None``: not at all.

        Returns
        -------
        tuple
            Output of the layer, and the input: the gradient of the one with respect to the other is relevance.
        """
        inputs = images.detach().clone(memory_format=torch.channels_last).requires_grad_(True)
        reached: list[torch.Tensor] = []

        def stop(_layer: str, output: torch.Tensor) -> None:
            reached.append(output)
            raise _Reached

        try:
            with observed(self.model, [layer], stop), self._propagating(dtype), torch.enable_grad():
                self.model(inputs)
        except _Reached:
            return reached[0], inputs
        raise SubjectError(
            "unused-layer", f"The layer {layer!r} takes no part in the forward pass.", "Audit another layer."
        )


@contextmanager
def _collecting(model: torch.nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect layer outputs; one without a graph becomes the start of one."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> None:
        # In place, because a folded batch norm recognises its convolution by the very tensor.
        outputs[name] = tensor if tensor.requires_grad else tensor.requires_grad_(True)

    with observed(model, layers, keep):
        yield outputs


def _fingerprint(model: torch.nn.Module) -> tuple[tuple[int, int], ...]:
    return tuple((value.data_ptr(), value._version) for value in model.state_dict(keep_vars=True).values())


_MODELS: WeakKeyDictionary[torch.nn.Module, RelevanceModel] = WeakKeyDictionary()


def relevance_model(model: torch.nn.Module, example: torch.Tensor) -> RelevanceModel:
    """The `RelevanceModel` of `model`, made on first use and again after its parameters have changed."""
    known = _MODELS.get(model)
    if known is None or known.stale:
        known = _MODELS[model] = RelevanceModel(model, example)
    return known
