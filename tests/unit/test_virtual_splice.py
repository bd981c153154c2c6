from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from semlens_audit.attribution import heatmaps, relevance
from semlens_audit.attribution_choice import choose
from semlens_audit.components import capture
from semlens_audit.errors import SubjectError
from semlens_audit.inference import folded, halved
from semlens_audit.intervention import Ablation, ablate
from semlens_audit.layouts import Layout, observed
from semlens_audit.lrp import relevance_model
from semlens_audit.plan import Preprocessing
from semlens_audit.virtual.circuits import Given, circuits, nearest, place_of
from semlens_audit.virtual.splice import gathered, load_splitting, parted, splice_virtual
from semlens_audit.virtual_header import SplitComponent, Splitting, read_splitting

SIDE = 16


pytestmark = pytest.mark.usefixtures("one_thread")


class Block(torch.nn.Module):
    """Begins by working in place on what it is given, as pre-activation networks do; may be given a scale by name."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.act = torch.nn.LeakyReLU(0.5, inplace=True)
        self.conv = torch.nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm = torch.nn.BatchNorm2d(outputs)

    def forward(self, value: torch.Tensor, *, scale: torch.Tensor | None = None) -> torch.Tensor:
        value = self.norm(self.conv(self.act(value)))
        return value if scale is None else value * scale


class Convolutional(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 5, 3, 2, 1)
        self.second = Block(5, 6)
        self.relu = torch.nn.ReLU()
        self.depthwise = torch.nn.Conv2d(6, 6, 3, 1, 1, groups=6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = self.first(images)
        value = self.relu(self.second(value * 1.0, scale=torch.tensor(1.5)))
        return self.head(self.depthwise(value).mean(dim=(2, 3)))


class Tokens(torch.nn.Module):
    def __init__(self, sequence_first: bool) -> None:
        super().__init__()
        self.cut = torch.nn.Conv2d(3, 8, SIDE // 2, SIDE // 2)
        self.class_token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.block = torch.nn.Linear(8, 7)
        self.up = torch.nn.Linear(7, 8)
        self.mix = torch.nn.MultiheadAttention(8, 2, batch_first=not sequence_first)
        self.head = torch.nn.Linear(8, 3)
        self.sequence_first = sequence_first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = self.cut(images).flatten(2).transpose(1, 2)
        value = torch.cat([self.class_token.expand(len(grid), 1, 8), grid], dim=1)
        value = value.transpose(0, 1) if self.sequence_first else value
        value = self.up(torch.tanh(self.block(value)))
        value = value + self.mix(value, value, value)[0]
        return self.head(value[0] if self.sequence_first else value[:, 0])


class ChannelsLast(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = torch.nn.Conv2d(3, 6, 4, 4)
        self.norm = torch.nn.LayerNorm(6)
        self.mix = torch.nn.Linear(6, 5)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.norm(self.cut(images).permute(0, 2, 3, 1))).mean(dim=(1, 2)))


class Vector(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(3, 5)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(images.mean(dim=(2, 3)))))


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], str, Layout]] = {
    "maps": (Convolutional, "second", Layout.MAPS),
    "the whole image": (Convolutional, "first", Layout.MAPS),
    "tokens": (lambda: Tokens(False), "block", Layout.TOKENS),
    "sequence first": (lambda: Tokens(True), "block", Layout.TOKENS_FIRST),
    "attention": (lambda: Tokens(False), "mix", Layout.TOKENS),
    "channels last": (ChannelsLast, "mix", Layout.CHANNELS_LAST),
    "vector": (Vector, "hidden", Layout.VECTOR),
}
COMPONENTS = [1, 3]


def network(name: str) -> tuple[torch.nn.Module, str, Layout]:
    make, layer, layout = NETWORKS[name]
    torch.manual_seed(3)
    model = make().eval().requires_grad_(False)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    return model, layer, layout


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def given_to(model: torch.nn.Module, layer: str, batch: torch.Tensor) -> Given:
    seen: list[Given] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _module, given, named: seen.append(Given(given, named).kept()), with_kwargs=True
    )
    model(batch)
    handle.remove()
    return seen[0]


def by_hand(model: torch.nn.Module, layer: str, layout: Layout, image: torch.Tensor, component: int) -> np.ndarray:
    """The circuit of one component on one image, by central differences in double precision, one value of the input at a time."""
    model = copy.deepcopy(model).double()
    given = given_to(model, layer, image[None].double())
    own, module = given.input, model.get_submodule(layer)

    def total(value: torch.Tensor) -> float:
        called = given.with_input(value.clone())
        output = module(*called.arguments, **called.named)
        output = layout.canonical(output[0] if isinstance(output, tuple) else output)
        chosen = output[..., component] if output.ndim == 3 else output[:, component]
        return float(torch.relu(chosen).sum())

    found = torch.zeros_like(own)
    for place in np.ndindex(*own.shape):
        moved = [own.clone(), own.clone()]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        found[place] = own[place] * (total(moved[0]) - total(moved[1])) / 2e-6
    found = layout.canonical(found)
    circuit = found.sum(dim=(2, 3)) if found.ndim == 4 else found.sum(dim=1) if found.ndim == 3 else found
    length = float(circuit.abs().sum())
    return circuit[0].numpy() / length if length else circuit[0].numpy()


def centroids_of(model: torch.nn.Module, layer: str) -> torch.Tensor:
    """Two circuits of each component that are its own on two of the images, so that both virtual neurons get some."""
    place = place_of(model, layer, SIDE)
    found = circuits(model.get_submodule(layer), given_to(model, layer, images(8)), place, COMPONENTS)
    apart = torch.cdist(found.permute(1, 0, 2), found.permute(1, 0, 2)).flatten(1).argmax(dim=1)
    return torch.stack([found[[int(at) // 8, int(at) % 8], column] for column, at in enumerate(apart)]).float()


def spliced(name: str) -> tuple[torch.nn.Module, torch.nn.Module, str, Layout]:
    model, layer, layout = network(name)
    plain = copy.deepcopy(model)
    splice_virtual(model, layer, torch.tensor(COMPONENTS), centroids_of(plain, layer), SIDE)
    return model, plain, layer, layout


@pytest.mark.parametrize("name", list(NETWORKS))
def test_circuits_are_those_of_slow_differences(name: str) -> None:
    model, layer, layout = network(name)
    place, batch = place_of(model, layer, SIDE), images(2)
    found = circuits(model.get_submodule(layer), given_to(model, layer, batch), place, COMPONENTS)
    assert found.shape == (2, 2, place.inputs)
    for row in range(2):
        for column, component in enumerate(COMPONENTS):
            expected = by_hand(model, layer, layout, batch[row], component)
            np.testing.assert_allclose(found[row, column].numpy(), expected, atol=2e-4)
            assert np.abs(expected).sum() in (0, pytest.approx(1))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_units_are_the_layer_with_some_components_in_two(name: str) -> None:
    model, plain, layer, _ = spliced(name)
    batch, units = images(8), f"{layer}.virtual.units"
    with torch.inference_mode(), capture(plain, [layer]) as before:
        expected = plain(batch)
    with torch.inference_mode(), capture(model, [layer, units]) as seen:
        assert torch.equal(model(batch), expected)
    assert torch.equal(seen[layer], before[layer])
    whole, parts = seen[layer], seen[units]
    axis = 2 if whole.ndim == 3 else 1
    width = whole.shape[axis]
    assert parts.shape[axis] == width + 4
    parts, whole = parts.movedim(axis, 1), whole.movedim(axis, 1)
    found = circuits(plain.get_submodule(layer), given_to(plain, layer, batch), place_of(plain, layer, SIDE), COMPONENTS)
    centroids = model.get_submodule(layer).virtual.centroids.double()
    for column, component in enumerate(COMPONENTS):
        one, other = parts[:, width + 2 * column], parts[:, width + 2 * column + 1]
        assert torch.equal(one + other, whole[:, component])
        assert not parts[:, component].any()
        for row in range(8):
            distances = [float(((found[row, column] - mean) ** 2).sum()) for mean in centroids[column]]
            kept, zero = (one, other) if distances[0] <= distances[1] else (other, one)
            assert torch.equal(kept[row], whole[row, component])
            assert not zero[row].any()
    untouched = [component for component in range(width) if component not in COMPONENTS]
    assert torch.equal(parts[:, untouched], whole[:, untouched])
    assert set(nearest(found, centroids).flatten().tolist()) == {True, False}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_relevance_is_shared_out_among_virtual_neurons(name: str) -> None:
    model, _, layer, layout = spliced(name)
    units = f"{layer}.virtual.units"
    subject = _Subject(model)
    shares, kept = relevance(subject, images(8), [layer, units], [0, 2], "activation_x_gradient")
    width = shares[layer].shape[2]
    own, pairs = shares[units][..., :width], shares[units][..., width:].reshape(8, 2, 2, 2)
    # Each value is shared out to the bit; sums over places may be added up in another order.
    close = {"rtol": 2e-6, "atol": 1e-8}
    np.testing.assert_allclose(pairs.sum(axis=3), shares[layer][..., COMPONENTS], **close)
    assert (pairs == 0).any(axis=3).all()
    assert not own[..., COMPONENTS].any()
    others = np.setdiff1d(np.arange(width), COMPONENTS)
    np.testing.assert_allclose(own[..., others], shares[layer][..., others], **close)
    np.testing.assert_allclose(kept[units], kept[layer], rtol=1e-4, atol=1e-6)
    alone, _ = relevance(subject, images(8), [units], [0, 2], "activation_x_gradient")
    np.testing.assert_allclose(alone[units], shares[units], rtol=1e-5, atol=1e-7)
    if layout is Layout.MAPS:
        assert heatmaps(subject, images(2), units, [width, width + 3], "activation_x_gradient").shape == (2, SIDE, SIDE)


class _Subject:
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model


def test_a_sample_has_the_same_units_in_any_company() -> None:
    model, _, layer, _ = spliced("maps")
    every = images(8)
    with torch.inference_mode(), capture(model, [f"{layer}.virtual.units"]) as seen:
        model(every)
        together = seen[f"{layer}.virtual.units"].clone()
        model(torch.cat([every[3:4], images(7, seed=5)]))
        other = seen[f"{layer}.virtual.units"].clone()
    assert torch.equal(other[0], together[3])


def test_switching_one_virtual_neuron_off_leaves_the_other() -> None:
    model, plain, layer, _ = spliced("maps")
    units, batch = f"{layer}.virtual.units", images(8)
    zero = torch.zeros(1)
    both = ablate(_Subject(model), batch, units, [[6, 7], [6], []], zero)
    whole = ablate(_Subject(plain), batch, layer, [[COMPONENTS[0]], []], zero)
    np.testing.assert_allclose(both[0], whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both[2], whole[1], rtol=1e-5, atol=1e-6)
    place = place_of(plain, layer, SIDE)
    found = circuits(plain.get_submodule(layer), given_to(plain, layer, batch), place, COMPONENTS)
    first = nearest(found, model.get_submodule(layer).virtual.centroids)[:, 0].numpy()
    np.testing.assert_allclose(both[1], np.where(first[:, None], whole[0], whole[1]), rtol=1e-5, atol=1e-6)
    ablation = Ablation(_Subject(model), units, [[6], [9]])
    with torch.inference_mode(), capture(model, [units]) as seen:
        model(batch)
        outputs = seen[units].clone()
    ablation(lambda: batch, outputs, torch.zeros(outputs.shape[1:]))
    assert ablation.expanded, "what comes before the units runs once for all sets"


def test_folded_and_halved_networks_have_the_same_virtual_neurons() -> None:
    model, _, layer, _ = spliced("maps")
    units, batch = f"{layer}.virtual.units", images(8)
    merged, count = folded(model, batch[:1])
    assert count == 1

    def gates(one: torch.nn.Module, *, reduced: bool = False) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=reduced), capture(one, [units]) as seen:
            one(batch)
        return seen[units][:, 6:].flatten(2).float().abs().amax(dim=2) > 0

    expected = gates(model)
    assert torch.equal(gates(merged), expected)
    assert (gates(halved(merged, batch[:1]), reduced=True) == expected).float().mean() > 0.9


def test_nobody_looks_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, layer, _ = spliced("maps")

    def never(*_arguments: object) -> None:
        raise AssertionError("circuits are computed where nobody looks at the units")

    monkeypatch.setattr("semlens_audit.virtual.splice.circuits", never)
    assert torch.equal(model(images()), plain(images()))
    with pytest.raises(AssertionError, match="nobody looks"), capture(model, [f"{layer}.virtual.units"]):
        model(images())


def test_relevance_propagation_is_refused() -> None:
    model, _, layer, _ = spliced("maps")
    with pytest.raises(SubjectError, match="no rule of relevance propagation"):
        relevance_model(model, images(1)).forward(images(1), [f"{layer}.virtual.units"])
    found = choose(model, images(2), [f"{layer}.virtual.units"])[f"{layer}.virtual.units"]
    assert found.method == "activation_x_gradient"
    assert "no rule of relevance propagation" in found.reason


@pytest.mark.parametrize(("layer", "slug"), [("relu", "trivial-circuits"), ("depthwise", "trivial-circuits"), ("nothing", "unknown-layer"),
                                             ("second.norm", "trivial-circuits"), ("second.act", "trivial-circuits")])  # fmt: skip
def test_layers_without_circuits_of_their_own_are_refused(layer: str, slug: str) -> None:
    model, _, _ = network("maps")
    with pytest.raises(SubjectError) as caught:
        place_of(model, layer, SIDE)
    assert caught.value.slug == slug


def test_virtual_neurons_that_do_not_fit_are_refused() -> None:
    model, layer, _ = network("maps")
    fitting = centroids_of(model, layer)
    for components, centroids in (([1, 9], fitting), ([1, 3], fitting[..., :4])):
        with pytest.raises(SubjectError) as caught:
            splice_virtual(model, layer, torch.tensor(components), centroids, SIDE)
        assert caught.value.slug == "other-width"
    splice_virtual(model, layer, torch.tensor(COMPONENTS), fitting, SIDE)
    with pytest.raises(SubjectError) as caught:
        splice_virtual(model, layer, torch.tensor(COMPONENTS), fitting, SIDE)
    assert caught.value.slug == "cannot-splice"


def test_parting_and_gathering_are_inverse() -> None:
    for shape in ((3, 5, 2, 2), (3, 4, 5), (3, 5)):
        value = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        components, first = torch.tensor([0, 4]), torch.tensor([[True, False], [False, False], [True, True]])
        units = parted(value, components, first)
        assert torch.equal(gathered(units, components), value)
        hole = value.clone()
        hole[0, 0] = float("inf")
        assert torch.equal(gathered(parted(hole, components, first), components), hole), "what is not finite stays where it is"


def splitting(**changes: object) -> Splitting:
    one = SplitComponent(
        component=1, polysemanticity=0.5, sizes=(60, 40), clarity=0.4, clarity_split=0.7, silhouette=0.6, separation=0.4, p=0.001,
        dip=0.1, p_dip=0.002,
    )  # fmt: skip
    values = {
        "layer": "second", "width": 6, "inputs": 5, "subject": "0" * 64, "preprocessing": Preprocessing(size=SIDE), "data": "1" * 64,
        "foundation": "2" * 64, "polysemanticity": 0.3, "references": 100, "smallest": 10, "level": 0.05,
        "separation": 0.3, "at_most": 64, "seed": 0, "looked_at": 3, "device": "cpu", "tool": "1",
        "splits": (one, one.model_copy(update={"component": 3})),
    }  # fmt: skip
    return Splitting.model_validate(values | changes)


def test_a_file_is_read_back_and_held_to_its_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    centroids = torch.rand(2, 2, 5)
    save_file({"components": torch.tensor(COMPONENTS), "centroids": centroids}, path, splitting().metadata())
    components, found, said = load_splitting(path)
    assert components.tolist() == COMPONENTS
    assert torch.equal(found, centroids)
    assert said == splitting() == read_splitting(path).splitting
    good = {"components": torch.tensor(COMPONENTS), "centroids": centroids}
    for tensors, metadata in (
        (good, None),
        (good, {"semlens_audit_virtual": "{}"}),
        (good, splitting(inputs=4).metadata()),
        (good, splitting(splits=splitting().splits[::-1]).metadata()),
        (good, splitting(width=3).metadata()),
        (good | {"more": torch.zeros(1)}, splitting().metadata()),
        (good | {"components": torch.tensor([1, 2])}, splitting().metadata()),
        (good | {"components": torch.tensor([1.0, 3.0])}, splitting().metadata()),
        (good | {"centroids": centroids * float("nan")}, splitting().metadata()),
        (good | {"centroids": centroids.double()}, splitting().metadata()),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(SubjectError) as caught:
            load_splitting(path)
        assert caught.value.slug == "bad-virtual-neurons"
        assert caught.value.problems[0].file == str(path)
    for content in (b"", b"no such file at all", (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(content)
        with pytest.raises(SubjectError) as caught:
            read_splitting(path)
        assert caught.value.slug == "bad-virtual-neurons"


def test_other_observers_replace_units_too() -> None:
    model, plain, layer, _ = spliced("channels last")
    with torch.inference_mode(), observed(model, [f"{layer}.virtual.units"], lambda _name, units: units * 2.0):
        doubled = model(images())
    with torch.inference_mode(), observed(plain, [layer], lambda _name, value: value * 2.0):
        expected = plain(images())
    torch.testing.assert_close(doubled, expected)
