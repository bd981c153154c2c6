"""A sparse autoencoder spliced into a network: its latents become the layer ``LAYER.sae.latents``, and nothing else changes.

Attributing CLIP (arXiv 2505.20229) puts ``x^ + (x - x^).detach()`` in the place of a layer's output x. Here it is
``x + s (z - z0) W_dec`` with ``z0 = encode(x.detach())`` and z the latents as whoever observes them leaves them. Both have the
same value and the same gradient with respect to z, so that ``R_k = z_k dy/dz_k`` is the same. But this one is x to the last bit
where nobody changes z; the gradient with respect to every other layer is that of the network itself, not only of what the latents
carry; and a latent that is switched off is taken out, while what the autoencoder does not reconstruct stays as it was.
"""

from __future__ import annotations

import torch
from torch.overrides import _get_current_function_mode_stack

from semlens_audit.errors import SubjectError
from semlens_audit.layouts import Layout, first_tensor, grid_of, layout_of, prefix_tokens, replace_first
from semlens_audit.lrp_modes import Propagate
from semlens_audit.networks import nearest_layer
from semlens_audit.paths import resolve
from semlens_audit.plan import AuditPlan
from semlens_audit.sae.model import SparseAutoencoder, load_autoencoder
from semlens_audit.sae_header import Places, autoencoder_of
from semlens_audit.spliced_origin import require_origin

__all__ = ["Latents", "Vectors", "splice", "splice_audited", "vectors_of"]

_CHILD = "sae"


class Latents(torch.nn.Module):
    """Gives what it is given: a name under which latents are seen and replaced as any layer's output is."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """`latents` itself."""
        return latents


class Spliced(SparseAutoencoder):
    """An autoencoder as it hangs below a layer, with the name of its latents. Run as a module it gives what it is given.

    A container that runs whatever hangs below it therefore gives what it gave before.
    """

    def __init__(self, one: SparseAutoencoder) -> None:
        super().__init__(one.W_enc.data, one.W_dec.data, one.b_enc.data, one.b_dec.data, one.k, one.scale)
        self.latents = Latents()
        self.requires_grad_(False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """`value` itself."""
        return value


class Vectors:
    """How the vectors of a layer lie in its output.

    Parameters
    ----------
    layout
        Order of the axes.
    places
        Which of the vectors are read.
    prefix
        Tokens before those of the grid.
    width
        Values in a vector.
    count
        Vectors that are read of one input.
    """

    def __init__(self, layout: Layout, places: Places, prefix: int, width: int, count: int) -> None:
        self.layout, self.places, self.prefix, self.width, self.count = layout, places, prefix, width, count

    def flat(self, output: torch.Tensor) -> torch.Tensor:
        """(B, T, d) vectors of a layer's output, those that are not read left out."""
        value = self.layout.canonical(output)
        if value.ndim == 4:
            return value.flatten(2).transpose(1, 2)
        if value.ndim == 2:
            return value[:, None]
        return value[:, self._read()]

    def laid_out(self, flat: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """(B, T, n) values as the layer lays out its own `output`, in n components; zero where the vectors are not read."""
        value = self.layout.canonical(output)
        if value.ndim == 4:
            return self.layout.restored(flat.transpose(1, 2).unflatten(2, tuple(value.shape[2:])))
        if value.ndim == 2:
            return flat[:, 0]
        whole = flat
        if self.places != "all":
            whole = flat.new_zeros((len(flat), value.shape[1], flat.shape[2]))
            whole[:, self._read()] = flat
        return self.layout.restored(whole)

    def _read(self) -> slice:
        if self.places == "all":
            return slice(None)
        return slice(None, self.prefix) if self.places == "class" else slice(self.prefix, None)


class _Hook:
    """Runs after the layer. An instance, so that a copy of the network has one that knows the copy."""

    def __init__(self, spliced: Spliced, vectors: Vectors, layer: str) -> None:
        self.spliced, self.vectors, self.layer = spliced, vectors, layer

    def __call__(self, _module: torch.nn.Module, _inputs: object, output: object) -> object:
        latents = self.spliced.latents
        if not latents._forward_hooks:
            return None  # nobody looks: the network as it is
        if any(isinstance(mode, Propagate) for mode in _get_current_function_mode_stack()):
            raise SubjectError(
                "lrp-not-applicable",
                f"The latents of the autoencoder of layer {self.layer!r} have no rule of relevance propagation.",
                "Set measurement.attribution: activation_x_gradient, or auto.",
            )
        given = first_tensor(output)
        with torch.autocast(given.device.type, enabled=False):
            found = self.spliced.encode(self.vectors.flat(given.detach()).float())
            own = self.vectors.laid_out(found, given)
            seen = latents(own)
            if seen is own:
                return None
            return replace_first(output, self._changed(given, own, seen))

    def _changed(self, given: torch.Tensor, own: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """The layer's output with the latents `seen` for its `own`; of n times as many rows where these were put in their place."""
        layout = self.vectors.layout
        value, before, after = (layout.canonical(one) for one in (given, own, seen))
        if len(after) != len(before):
            if len(after) % len(before):
                raise ValueError(f"{len(after)} rows of latents for {len(before)} inputs")
            # Row s B + b is what becomes of input b: what is not reconstructed of it goes with it.
            times = (len(after) // len(before), *[1] * (value.ndim - 1))
            value, before = value.repeat(times), before.repeat(times)
        return layout.restored(value + self._decoded(after - before).to(value.dtype))

    def _decoded(self, change: torch.Tensor) -> torch.Tensor:
        """What (B, F, H, W), (B, T, F) or (B, F) changes of latents add to the layer's output in canonical order."""
        if change.ndim == 4:
            return torch.einsum("bfhw,fd->bdhw", change, self.spliced.W_dec) * self.spliced.scale
        return change @ self.spliced.W_dec * self.spliced.scale


def vectors_of(model: torch.nn.Module, layer: str, size: int, places: Places = "all") -> Vectors:
    """How the vectors of a layer lie in its output, found by running the network on two grey images.

    Parameters
    ----------
    model
        In eval mode.
    layer
        Name of a sub-module.
    size
        S of its inputs.
    places
        Which vectors to read; all of a layer that has no tokens.

    Raises
    ------
    SubjectError
        ``unknown-layer``, ``unused-layer``, and what `semlens_audit.layouts.layout_of` refuses; ``no-tokens``: only some tokens of a layer
        are asked for that has none, or none of these.
    """
    shown: list[torch.Tensor] = []
    handle = nearest_layer(model, layer).register_forward_hook(lambda _module, _inputs, output: shown.append(first_tensor(output)))
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            model(torch.zeros(2, 3, size, size, device=device))
    finally:
        handle.remove()
    if not shown:
        raise SubjectError("unused-layer", f"The forward pass leaves out layer {layer!r}.", "Name another: `semlens-audit layers`.")
    if len(shown) > 1:
        raise SubjectError(
            "layer-runs-often", f"Layer {layer!r} runs {len(shown)} times in a forward pass.", "Name a layer that runs once."
        )
    layout = layout_of(model, layer, shown[0], 2)
    shape = tuple(layout.canonical(shown[0]).shape)
    if len(shape) != 3:
        if places != "all":
            raise SubjectError("no-tokens", f"Layer {layer!r} has no tokens: its output is {layout.value}.", "Read all of its vectors.")
        return Vectors(layout, "all", 0, shape[1], shape[2] * shape[3] if len(shape) == 4 else 1)
    grid = grid_of(shape[1], prefix_tokens(model))
    if grid is None and places != "all":
        raise SubjectError("no-tokens", f"The {shape[1]} tokens of layer {layer!r} form no square grid.", "Read all of them.")
    before = grid[0] if grid is not None else 0
    count = {"all": shape[1], "class": before, "spatial": shape[1] - before}[places]
    if not count:
        raise SubjectError("no-tokens", f"Layer {layer!r} has no tokens before those of the grid.", "Read all of them.")
    return Vectors(layout, places, before, shape[2], count)


def splice(model: torch.nn.Module, layer: str, autoencoder: SparseAutoencoder, size: int, places: Places = "all") -> None:
    """Give `model` the layer ``LAYER.sae.latents``.

    Its output has the layer's own layout with F components instead of d: (B, F, H, W), (B, T, F) or (B, F), and so on; zero at
    tokens that the autoencoder does not read. It exists in passes in which somebody looks at it, and is computed in single precision.

    Parameters
    ----------
    model
        In eval mode.
    layer
        Name of a sub-module.
    autoencoder
        Of the layer's width.
    size
        S of the network's inputs.
    places
        Which of the layer's vectors it reads.

    Raises
    ------
    SubjectError
        See `vectors_of`; ``other-width``: the autoencoder reads vectors of another width; ``cannot-splice``: the layer cannot have
        anything hung below it.
    """
    vectors = vectors_of(model, layer, size, places)
    if autoencoder.width != vectors.width:
        raise SubjectError(
            "other-width",
            f"The autoencoder reads vectors of {autoencoder.width} values, and layer {layer!r} gives vectors of {vectors.width}.",
            "Name the layer that it was trained on, or train one for this layer.",
        )
    module = nearest_layer(model, layer)
    if hasattr(module, _CHILD):
        raise SubjectError("cannot-splice", f"Layer {layer!r} has something called `{_CHILD}` already.", "Name one autoencoder of it.")
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0)).to(device)
    plain = _outputs(model, images)
    spliced = Spliced(autoencoder.to(device)).eval()
    module.add_module(_CHILD, spliced)
    handle = module.register_forward_hook(_Hook(spliced, vectors, layer))
    why = ""
    try:
        if not torch.equal(plain, _outputs(model, images)):
            why = "the network's outputs are others with it"
    except Exception as error:  # noqa: BLE001  (whatever own code does with what it finds there)
        why = f"{type(error).__name__}: {error}"
    if why:
        handle.remove()
        del module._modules[_CHILD]
        raise SubjectError(
            "cannot-splice",
            f"Layer {layer!r} runs whatever hangs below it, so that an autoencoder cannot hang there ({why}).",
            "Train it on the layer that comes next.",
        )


def _outputs(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return first_tensor(model(images)).clone()


def splice_audited(plan: AuditPlan, model: torch.nn.Module, sha256: str) -> None:
    """Load and splice every autoencoder that the audit names.

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
        A file that cannot be loaded, or that does not fit: see `load_autoencoder`, `splice`; ``other-layer``, ``other-subject``,
        ``other-preprocessing``: it was trained on something else. ``lrp-not-applicable``: the audit attributes by relevance propagation.
    """
    subject, size = plan.audit.subject, plan.audit.subject.preprocessing.size
    for one in subject.autoencoders:
        path = resolve(plan, one.file)
        autoencoder, training = load_autoencoder(path, one.k)
        if training is not None:
            require_origin(
                training, one.layer, sha256, subject.preprocessing, path,
                was="The autoencoder was trained", hint="Train one with `semlens-audit sae train`, and name that.",
            )  # fmt: skip
        splice(model, one.layer, autoencoder, size, training.places if training is not None else "all")
    audited = [layer for layer in plan.audit.layers if autoencoder_of(plan.audit, layer)]
    if audited and plan.audit.measurement.attribution == "lrp":
        raise SubjectError(
            "lrp-not-applicable", f"Layer {audited[0]!r} is the latents of an autoencoder, which have no rule of relevance propagation.",
            "Set measurement.attribution: activation_x_gradient, or auto.",
        )  # fmt: skip
