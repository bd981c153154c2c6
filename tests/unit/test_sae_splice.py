from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from semlens_audit.attribution import heatmaps, relevance
from semlens_audit.attribution_choice import choose
from semlens_audit.components import capture
from semlens_audit.errors import SubjectError
from semlens_audit.inference import folded, shared_copy
from semlens_audit.intervention import Ablation, ablate
from semlens_audit.layouts import Layout, observed
from semlens_audit.lrp import relevance_model
from semlens_audit.sae.model import SparseAutoencoder, load_autoencoder, topk_latents
from semlens_audit.sae.splice import splice, vectors_of
from semlens_audit.sae_header import read_dictionary

SIDE = 16


pytestmark = pytest.mark.usefixtures("one_thread")


class Convolutional(torch.nn.Module):
    """Two stages with a connection round the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
        self.second = torch.nn.Conv2d(6, 6, 3, 1, 1)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = self.first(images)
        value = torch.relu(value + self.second(value))
        return self.head(value.mean(dim=(2, 3)))


class Tokens(torch.nn.Module):
    """A class token and a grid of four, sequence first or batch first."""

    def __init__(self, sequence_first: bool) -> None:
        super().__init__()
        self.cut = torch.nn.Conv2d(3, 8, SIDE // 2, SIDE // 2)
        self.class_token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.block = torch.nn.Linear(8, 8)
        self.mix = torch.nn.MultiheadAttention(8, 2, batch_first=not sequence_first)
        self.head = torch.nn.Linear(8, 3)
        self.sequence_first = sequence_first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = self.cut(images).flatten(2).transpose(1, 2)
        value = torch.cat([self.class_token.expand(len(grid), 1, 8), grid], dim=1)
        value = value.transpose(0, 1) if self.sequence_first else value
        value = torch.tanh(self.block(value))
        value = value + self.mix(value, value, value)[0]
        return self.head(value[0] if self.sequence_first else value[:, 0])


class ChannelsLast(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = torch.nn.Conv2d(3, 6, 4, 4)
        self.norm = torch.nn.LayerNorm(6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.cut(images).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


class Vector(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(3, 5)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(images.mean(dim=(2, 3)))))


def dictionary(width: int, latents: int = 12, k: int = 3, seed: int = 0) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(latents, width, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    bias, mean = 0.1 * torch.randn(latents, generator=generator), 0.1 * torch.randn(width, generator=generator)
    return SparseAutoencoder(directions.T.clone(), directions, bias, mean, k, 1.7).eval().requires_grad_(False)


NETWORKS = {
    "maps": (Convolutional, "first", Layout.MAPS, "all"),
    "tokens": (lambda: Tokens(False), "block", Layout.TOKENS, "all"),
    "class token": (lambda: Tokens(False), "block", Layout.TOKENS, "class"),
    "spatial tokens": (lambda: Tokens(False), "block", Layout.TOKENS, "spatial"),
    "sequence first": (lambda: Tokens(True), "block", Layout.TOKENS_FIRST, "all"),
    "channels last": (ChannelsLast, "norm", Layout.CHANNELS_LAST, "all"),
    "vector": (Vector, "hidden", Layout.VECTOR, "all"),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, str, Layout, str]:
    make, layer, layout, places = NETWORKS[request.param]
    torch.manual_seed(3)
    return make().eval().requires_grad_(False), layer, layout, places


class Subject:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model


def images(count: int = 3, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


# -- the autoencoder ------------------------------------------------------------------------------------------------


def test_topk_keeps_the_largest_of_each_row_and_no_negative_one() -> None:
    pre = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    found = topk_latents(pre, 4)
    for row, kept in zip(pre.tolist(), found.tolist(), strict=True):
        largest = sorted(row, reverse=True)[:4]
        assert kept == [value if value in largest and value > 0 else 0.0 for value in row]
    assert torch.equal(topk_latents(pre, 9), pre.clamp(min=0))


def test_reconstruction_is_that_of_slow_loops() -> None:
    model, vectors = dictionary(5), torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    for vector, found in zip(vectors.double().numpy(), model(vectors), strict=True):
        centred = vector / 1.7 - model.b_dec.double().numpy()
        pre = [float(centred @ model.W_enc[:, f].double().numpy()) + float(model.b_enc[f]) for f in range(12)]
        active = sorted(range(12), key=lambda f: -pre[f])[:3]
        made = model.b_dec.double().numpy() + sum(max(pre[f], 0.0) * model.W_dec[f].double().numpy() for f in active)
        np.testing.assert_allclose(found.numpy(), 1.7 * made, rtol=1e-5, atol=1e-6)


# -- the splice -----------------------------------------------------------------------------------------------------


def test_outputs_are_the_networks_own_to_the_last_bit(network: tuple[torch.nn.Module, str, Layout, str]) -> None:
    model, layer, layout, places = network
    plain, batch = model(images()), images()
    before = {name for name, _ in model.named_modules()}
    vectors = vectors_of(model, layer, SIDE, places)  # type: ignore[arg-type]
    assert vectors.layout is layout
    splice(model, layer, dictionary(vectors.width), SIDE, places)  # type: ignore[arg-type]
    assert {name for name, _ in model.named_modules()} - before == {f"{layer}.sae", f"{layer}.sae.latents"}
    assert torch.equal(model(batch), plain)
    with capture(model, [f"{layer}.sae.latents", layer]) as seen:
        assert torch.equal(model(batch), plain)
    latents, outputs = seen[f"{layer}.sae.latents"], seen[layer]
    assert latents.ndim == outputs.ndim
    assert latents.shape[2 if latents.ndim == 3 else 1] == 12
    assert float(latents.min()) == 0.0
    assert (latents > 0).any()


def test_latents_are_what_the_autoencoder_makes_of_the_layer(network: tuple[torch.nn.Module, str, Layout, str]) -> None:
    model, layer, _, places = network
    width = vectors_of(model, layer, SIDE).width
    model_of_latents = dictionary(width)
    splice(model, layer, model_of_latents, SIDE, places)  # type: ignore[arg-type]
    with capture(model, [f"{layer}.sae.latents", layer]) as seen:
        model(images())
    latents, outputs = seen[f"{layer}.sae.latents"], seen[layer]
    if outputs.ndim == 4:
        latents, outputs = latents.permute(0, 2, 3, 1), outputs.permute(0, 2, 3, 1)
    expected = model_of_latents.encode(outputs)
    if places == "class":
        expected[:, 1:] = 0
    if places == "spatial":
        expected[:, :1] = 0
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-6)


def test_relevance_of_latents_is_activation_times_gradient_of_the_published_splice(
    network: tuple[torch.nn.Module, str, Layout, str],
) -> None:
    model, layer, _, places = network
    width = vectors_of(model, layer, SIDE).width
    one, batch = dictionary(width), images()
    reference, latents = _published(model, layer, one, batch, places)
    splice(model, layer, one, SIDE, places)  # type: ignore[arg-type]
    found, kept = relevance(Subject(model), batch, [f"{layer}.sae.latents"], [0, 2], "activation_x_gradient")
    scale = np.abs(reference).max()
    assert scale > 0
    np.testing.assert_allclose(found[f"{layer}.sae.latents"], reference, atol=1e-5 * scale)
    logits = model(batch).numpy()[:, [0, 2]]
    np.testing.assert_allclose(kept[f"{layer}.sae.latents"], reference.sum(axis=2) / logits, rtol=1e-3, atol=1e-5)
    assert latents > 0


def _published(
    model: torch.nn.Module, layer: str, one: SparseAutoencoder, batch: torch.Tensor, places: str
) -> tuple[np.ndarray, int]:
    """``x^ + (x - x^).detach()`` in the layer's place, vector by vector; R_k = sum over places of z_k dy/dz_k."""
    made: list[torch.Tensor] = []

    def spliced(_name: str, output: torch.Tensor) -> torch.Tensor:
        value = output.permute(0, 2, 3, 1) if output.ndim == 4 else output
        z = one.encode(value.detach())
        if places == "class":
            z = z * torch.tensor([1.0, 0, 0, 0, 0])[:, None]
        if places == "spatial":
            z = z * torch.tensor([0.0, 1, 1, 1, 1])[:, None]
        made.append(z.requires_grad_(True))
        again = one.decode(z)
        total = again + (value - again).detach()
        return total.permute(0, 3, 1, 2) if output.ndim == 4 else total

    with torch.enable_grad(), observed(model, [layer], spliced):
        logits = model(batch)
    rows = []
    for index in (0, 2):
        (gradient,) = torch.autograd.grad(logits[:, index].sum(), made[0], retain_graph=True)
        share = (made[0] * gradient).detach()
        rows.append(share.reshape(len(batch), -1, share.shape[-1]).sum(dim=1).numpy())
    return np.stack(rows, axis=1), int((made[0] > 0).sum())


def test_latents_and_remainder_add_up_to_the_layers_relevance() -> None:
    torch.manual_seed(3)
    model, batch = Convolutional().eval().requires_grad_(False), images()
    one = dictionary(6)
    splice(model, "first", one, SIDE)
    names = ["first.sae.latents", "first"]
    both, _ = relevance(Subject(model), batch, names, [1], "activation_x_gradient")
    with capture(model, ["first"], differentiable=True) as seen, torch.enable_grad():
        logits = model(batch)
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), seen["first"])
    outputs = seen["first"].detach().permute(0, 2, 3, 1)
    # what is not carried by latents: the decoder's bias, and what is not reconstructed
    rest = (outputs - one.decode(one.encode(outputs)) + one.scale * one.b_dec) * gradient.permute(0, 2, 3, 1)
    total = both["first.sae.latents"][:, 0].sum(axis=1) + rest.sum(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(total, both["first"][:, 0].sum(axis=1), rtol=1e-4, atol=1e-6)


def test_relevance_of_other_layers_is_what_it_is_without_an_autoencoder() -> None:
    torch.manual_seed(3)
    model, batch = Convolutional().eval().requires_grad_(False), images()
    subject, layers = Subject(model), ["first.0", "second"]
    before = [relevance(subject, batch, layers, [0, 1], method)[0] for method in ("activation_x_gradient", "lrp")]
    splice(model, "first", dictionary(6), SIDE)
    after = [relevance(subject, batch, layers, [0, 1], method)[0] for method in ("activation_x_gradient", "lrp")]
    with_latents = relevance(subject, batch, [*layers, "first.sae.latents"], [0, 1], "activation_x_gradient")[0]
    for layer in layers:
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one[layer], other[layer])
        np.testing.assert_allclose(with_latents[layer], before[0][layer], rtol=1e-6)


def test_a_latent_that_is_switched_off_is_taken_out_and_nothing_else() -> None:
    torch.manual_seed(3)
    model, batch = Convolutional().eval().requires_grad_(False), images()
    one = dictionary(6)
    with capture(model, ["first"]) as seen:
        model(batch)
    outputs = seen["first"].permute(0, 2, 3, 1)
    latents = one.encode(outputs)
    chosen = int(latents.sum(dim=(0, 1, 2)).argmax())
    without = outputs - latents[..., chosen, None] * one.W_dec[chosen] * one.scale
    with observed(model, ["first"], lambda _name, _output: without.permute(0, 3, 1, 2)):
        expected = model(batch)
    splice(model, "first", one, SIDE)
    side = outputs.shape[1]
    found = ablate(Subject(model), batch, "first.sae.latents", [[chosen], []], torch.zeros(12, side, side))  # type: ignore[arg-type]
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[1], model(batch).numpy())
    assert np.abs(found[0] - found[1]).max() > 1e-4


@pytest.mark.parametrize("round_it", [False, True])
def test_many_sets_share_a_pass_where_nothing_goes_round_the_layer(round_it: bool) -> None:
    torch.manual_seed(3)
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    model: torch.nn.Module = Convolutional() if round_it else plain
    model, layer = model.eval().requires_grad_(False), "second" if round_it else "1"
    splice(model, layer, dictionary(6), SIDE)
    name, batch, sets = f"{layer}.sae.latents", images(5), [[0, 3], [], [7]]
    with torch.inference_mode(), capture(model, [name]) as seen:
        model(batch)
    values = seen[name].flip(0)
    ablation = Ablation(Subject(model), name, sets)  # type: ignore[arg-type]
    together = ablation(lambda: batch, seen[name], values)
    assert ablation.expanded is not round_it
    ablation.expanded = False
    np.testing.assert_allclose(together, ablation(lambda: batch, seen[name], values), rtol=1e-4, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-4


def test_heatmaps_are_the_latents_own_places_and_copies_of_the_network_have_their_own_splice() -> None:
    torch.manual_seed(3)
    model, batch = Convolutional().eval().requires_grad_(False), images()
    splice(model, "first", dictionary(6), SIDE)
    name = "first.sae.latents"
    heat = heatmaps(Subject(model), batch, name, [0, 1, 2], "activation_x_gradient")
    assert heat.shape == (3, SIDE, SIDE)
    with capture(model, [name]) as seen:
        model(batch)
    latents = seen[name]
    for copied in (copy.deepcopy(model), shared_copy(model), folded(model, batch[:1])[0]):
        with capture(copied, [name]) as seen:
            copied(batch)
        torch.testing.assert_close(seen[name], latents, rtol=1e-3, atol=1e-3)
        hook = next(iter(copied.first._forward_hooks.values()))  # type: ignore[union-attr]
        assert hook.spliced is copied.get_submodule("first.sae")  # type: ignore[attr-defined]


def test_relevance_propagation_refuses_latents_and_auto_takes_the_gradient() -> None:
    torch.manual_seed(3)
    model, batch = Convolutional().eval().requires_grad_(False), images()
    splice(model, "first", dictionary(6), SIDE)
    with pytest.raises(SubjectError, match="no rule of relevance propagation") as caught:
        relevance(Subject(model), batch, ["first.sae.latents"], [0], "lrp")
    assert caught.value.slug == "lrp-not-applicable"
    assert choose(model, batch, ["first.sae.latents"])["first.sae.latents"].method == "activation_x_gradient"
    assert relevance_model(model, batch).model is model


# -- what does not fit ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_the_layer_is_refused() -> None:
    model = Convolutional().eval()
    for layer, one, places, slug in (
        ("first", dictionary(7), "all", "other-width"),
        ("first", dictionary(6), "class", "no-tokens"),
        ("nowhere", dictionary(6), "all", "unknown-layer"),
    ):
        with pytest.raises(SubjectError) as caught:
            splice(model, layer, one, SIDE, places)  # type: ignore[arg-type]
        assert caught.value.slug == slug
    assert not any("sae" in name for name, _ in model.named_modules())
    splice(model, "first", dictionary(6), SIDE)
    with pytest.raises(SubjectError) as caught:
        splice(model, "first", dictionary(6), SIDE)
    assert caught.value.slug == "cannot-splice"


class Dense(torch.nn.ModuleDict):
    """Gives everything that its members make, one beside the other."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([member(value) for member in self.values()], dim=1)


class Densely(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Dense({"a": torch.nn.Conv2d(3, 4, 3, 2, 1), "b": torch.nn.Conv2d(3, 4, 3, 2, 1)})
        self.head = torch.nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(images).mean(dim=(2, 3)))


def test_a_container_that_runs_whatever_hangs_below_it_is_refused_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model, batch = Densely().eval().requires_grad_(False), images()
    plain = model(batch)
    with pytest.raises(SubjectError, match="whatever hangs below") as caught:
        splice(model, "block", dictionary(8), SIDE)
    assert caught.value.slug == "cannot-splice"
    assert torch.equal(model(batch), plain)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    save_file(dictionary(6).tensors(), path)
    return path


def test_a_foreign_file_is_read_with_the_k_that_is_said(file: Path) -> None:
    with pytest.raises(SubjectError) as caught:
        load_autoencoder(file)
    assert caught.value.slug == "autoencoder-without-k"
    loaded, training = load_autoencoder(file, 3)
    assert training is None
    vectors = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded(vectors), dictionary(6)(vectors))
    with pytest.raises(SubjectError, match="cannot be active"):
        load_autoencoder(file, 13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b_enc"), r"1 missing \(b_enc\)"),
        (lambda t: t.update(threshold=torch.zeros(12)), r"1 unexpected \(threshold\)"),
        (lambda t: t.update(W_dec=torch.zeros(12, 5)), r"W_dec has shape \(12, 5\) instead of \(12, 6\)"),
        (lambda t: t.update(b_dec=torch.zeros(12)), r"b_dec has shape"),
        (lambda t: t.update(W_enc=torch.full((6, 12), float("nan"))), "W_enc hold NaN"),
        (lambda t: t.update(scale=torch.tensor(0.0)), "divides by 0"),
        (lambda t: t.update(W_enc=torch.zeros(6)), r"must be \(width, latents\)"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_and_never_filled_in(tmp_path: Path, change: object, message: str) -> None:
    tensors = dictionary(6).tensors()
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(SubjectError) as caught:
        load_autoencoder(tmp_path / "bad.safetensors", 3)
    assert caught.value.slug == "bad-autoencoder"
    assert re.search(message, str(caught.value.problems[0]))


def test_what_is_no_safetensors_file_is_refused_without_being_read(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"W_enc: nothing", "list": b"\x02\0\0\0\0\0\0\0[]", "pickle": b"\x80\x04K\x01."}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SubjectError, match="no safetensors file") as caught:
            read_dictionary(tmp_path / name)
        assert caught.value.slug == "bad-autoencoder"
