"""Deletion and insertion curves: what attributions are compared by is right, and the comparison runs."""

from __future__ import annotations

from itertools import combinations, permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from semlens_audit.components import capture
from tests.benchmarks import attribution, deletion
from tests.benchmarks.attribution_figure import draw


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Network(nn.Module):
    """Two convolutions, pooling and a classifier; the second convolution is `late`, the first `early`."""

    def __init__(self, components: int = 5, activation: type[nn.Module] = nn.ReLU, skip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.early = nn.Sequential(nn.Conv2d(3, components, 3, padding=1), activation())
        self.late = nn.Sequential(nn.Conv2d(components, components, 3, padding=1), activation())
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Linear(components, 3)
        self.skip = skip
        with torch.no_grad():
            self.head.weight.mul_(10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        early = self.early(images)
        late = self.late(early)
        found: torch.Tensor = self.head(self.flatten(self.pool(late + early if self.skip else late)))
        return found


def world(layer: str, count: int = 4, **settings: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The network as a subject, images, and the layer's outputs on them."""
    model = Network(**settings).eval()
    images = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), capture(model, [layer]) as seen:
        model(images)
    return SimpleNamespace(model=model), images, seen[layer]


def test_steps_show_the_beginning():
    assert deletion.counts(1280)[:9].tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    for components in (1, 5, 64, 320):
        steps = deletion.counts(components)
        assert steps[0] == 0
        assert steps[-1] == components
        assert (np.diff(steps) > 0).all()


def test_area_of_a_line_does_not_depend_on_the_steps():
    steps = deletion.counts(64)
    assert deletion.areas(3 - 2 * steps / 64, steps) == pytest.approx(2)
    assert deletion.areas(3 - 2 * steps / 64, steps) == pytest.approx(deletion.areas(np.array([3.0, 1.0]), np.array([0, 64])))


def test_order_keeps_equals_in_place():
    assert deletion.order(np.array([0.0, 2.0, -1.0, 2.0, 0.0])).tolist() == [1, 3, 0, 4, 2]


def test_deletion_by_activation_x_gradient_is_the_best_where_the_logit_is_a_sum():
    subject, images, outputs = world("late")
    index, steps, zero = 1, np.arange(6), torch.zeros_like(outputs[0])
    tail = deletion.Tail(subject, "late", images)
    weights = deletion.mean_gradient(tail, outputs, index)
    assert weights[:, 0, 0] == pytest.approx(subject.model.head.weight[index].detach().numpy() / 36, rel=1e-4)
    score = deletion.read_out(outputs.numpy(), weights)[0]
    every = [np.array(one) for one in permutations(range(5))]
    found = deletion.curves(subject, "late", images[:1], outputs[:1], zero, [deletion.order(score), *every], steps, index)
    bias = float(subject.model.head.bias.detach()[index])
    for number in range(6):  # written down without the network: the logit is the bias and what each component adds
        least = min(bias + score.sum() - score[list(off)].sum() for off in combinations(range(5), number))
        assert found.logit[0, 0, number] == pytest.approx(least, abs=1e-4)
    under = deletion.areas(found.logit, steps)
    assert under[0, 0] <= under[1:, 0].min() + 1e-4
    assert under[0, 1] >= under[1:, 1].max() - 1e-4
    assert under[1:, 0].mean() > under[0, 0] + 0.1  # random orders are worse


def test_insertion_is_deletion_of_the_reverse_order_backwards():
    subject, images, outputs = world("early", activation=nn.GELU)
    ranked = np.array([3, 0, 4, 1, 2])
    both = deletion.curves(
        subject, "early", images[:1], outputs[:1], outputs.mean(dim=0), [ranked, ranked[::-1]], np.arange(6), 2
    )
    assert both.logit[0, 1] == pytest.approx(both.logit[1, 0, ::-1])
    with torch.no_grad():
        logits = subject.model(images[:1])[0]
    assert both.logit[0, :, 0] == pytest.approx([float(logits[2]), both.logit[0, 0, -1]], abs=1e-5)
    assert both.probability[0, 0, 0] == pytest.approx(float(logits.softmax(dim=0)[2]), abs=1e-6)


def test_integrated_gradients_are_complete():
    subject, images, outputs = world("early", activation=nn.GELU)
    tail = deletion.Tail(subject, "early", images)
    with torch.no_grad():
        ends = tail(torch.cat([outputs, torch.zeros_like(outputs[:1])])).double()
    for index in range(3):
        found = [deletion.integrated_gradients(tail, outputs[i : i + 1], index).sum() for i in range(len(outputs))]
        assert found == pytest.approx((ends[:-1, index] - ends[-1, index]).tolist(), rel=0.01, abs=0.01)


def test_integrated_gradients_equal_activation_x_gradient_only_where_the_tail_is_linear():
    for layer, same in (("late", True), ("early", False)):
        subject, images, outputs = world(layer, activation=nn.GELU)
        tail = deletion.Tail(subject, layer, images)
        plain = deletion.read_out(outputs[:1].numpy(), tail.gradients(outputs[:1], 0)[0])[0]
        assert np.allclose(deletion.integrated_gradients(tail, outputs[:1], 0), plain, atol=1e-5) is same


def test_a_layer_that_something_goes_round_is_refused():
    subject, images, _ = world("late", skip=True)
    with pytest.raises(ValueError, match="goes round late"):
        deletion.Tail(subject, "late", images)


def test_energy_is_the_squared_norm():
    outputs = np.array([[[[1.0, -2.0]], [[0.0, 3.0]]]])
    assert deletion.energy(outputs).tolist() == [[5.0, 9.0]]


def test_paired_differences():
    full, empty = np.array([4.0, 6.0, 5.0]), np.array([0.0, 2.0, 1.0])
    base = np.array([1.0, 3.0, 2.0])
    found = deletion.paired({"base": base, "worse": base + [0.4, 0.8, 0.6]}, full, empty, "base")
    assert found["base"] == pytest.approx((0.25, 0, 0, 0))
    assert found["worse"][:2] == pytest.approx((0.4, 0.15))
    assert 0.1 - 1e-9 <= found["worse"][2] < 0.15 < found["worse"][3] <= 0.2 + 1e-9


@pytest.fixture(scope="module")
def measured() -> list[attribution.Found]:
    torch.set_num_threads(1)
    found = []
    for layer in ("early", "late"):
        subject, inputs, _ = world(layer, count=8, components=8)
        with torch.no_grad():
            classes = subject.model(inputs).argmax(dim=1).numpy()
        images = attribution.Images(inputs, classes)
        found.append(attribution.measure(SimpleNamespace(subject=subject), "tiny", layer, images, images, inputs, classes=True))  # type: ignore[arg-type]
    return found


def test_methods_that_say_the_same_share_a_line(measured):
    early, late = measured
    together = ["activation × gradient", "integrated gradients", "lens"]
    assert any(set(together) <= set(group) for group in attribution.alike(late, "image"))
    assert not any(set(together) <= set(group) for group in attribution.alike(early, "image"))
    for found in measured:
        names = [name for group in attribution.alike(found, "image") for name in group]
        assert sorted(names) == sorted(attribution.METHODS)


def test_gradients_beat_chance_on_the_last_layer(measured):
    scores = measured[1].logit["zero", "image"]
    under = {name: deletion.areas(one, measured[1].steps).mean(axis=0) for name, one in scores.items()}
    assert under["activation × gradient"][0] < under["energy"][0]
    assert under["activation × gradient"][0] < under["random"][0]
    assert under["activation × gradient"][1] > under["random"][1]


def test_deviation_from_the_mean_is_the_best_where_components_are_put_at_their_mean(measured):
    scores = measured[1].logit["mean", "image"]
    under = {name: deletion.areas(one, measured[1].steps) for name, one in scores.items()}
    for name in attribution.METHODS:
        assert (under["deviation × gradient"][:, 0] <= under[name][:, 0] + 1e-4).all(), name
        assert (under["deviation × gradient"][:, 1] >= under[name][:, 1] - 1e-4).all(), name
    assert under["deviation × gradient"][:, 0].mean() < under["activation × gradient"][:, 0].mean() - 1e-3


def test_section_and_picture_have_every_layer(measured):
    text = "\n".join(attribution.section(measured, 8))
    for layer in ("early", "late"):
        assert text.count(f"| tiny `{layer}` |") >= 1 + 3 * 3
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| tiny") and "random" in line}
    assert widths == {7, 9}
    picture = draw(measured)
    assert picture == draw(measured)
    for said in ("tiny early, deletion", "tiny late, insertion", "energy", "random"):
        assert said in picture
