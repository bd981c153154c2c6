from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import semlens_audit._torchvision  # noqa: F401
from semlens_audit import attribution_maps, crops
from semlens_audit.attribution_maps import EXACT, Way, heatmaps, lifted, settle, stream_heatmaps
from semlens_audit.devices import has_bfloat16
from tests.unit.family_world import images
from tests.unit.family_world import settle as trained_like

# isort: split
from torchvision.models.resnet import BasicBlock, ResNet

CROP = (51, 0.05, 8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject() -> SimpleNamespace:
    torch.manual_seed(0)
    return SimpleNamespace(model=trained_like(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)))


def smooth(count: int, size: int) -> torch.Tensor:
    """Pictures with structure larger than a pixel."""
    return torch.nn.functional.interpolate(images(count, size // 8), size=(size, size), mode="bilinear")


def components(subject: SimpleNamespace, batch: torch.Tensor, layer: str, count: int) -> np.ndarray:
    """(count, B) components that are active on their images."""
    kept: list[torch.Tensor] = []
    handle = subject.model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    subject.model(batch)
    handle.remove()
    return kept[0].amax((2, 3)).topk(count, dim=1).indices.T.numpy()


# ---- lifting


def test_lifting_interpolates_linearly_and_keeps_what_is_outermost():
    heat = np.zeros((1, 4, 4), dtype=np.float32)
    heat[0, 1, 2] = 1.0
    up = lifted(heat, 16)
    expected = torch.nn.functional.interpolate(torch.from_numpy(heat)[None], size=(16, 16), mode="bilinear")[0].numpy()
    assert np.allclose(up, expected, atol=1e-6)
    shifted = lifted(heat, 16, -2.0)
    assert np.allclose(shifted[0, 2:12, 4:12], up[0, 4:14, 6:14], atol=1e-6)
    assert lifted(heat, 4) is heat


# ---- the shortest way that agrees


def test_a_way_survives_its_facts():
    way = Way("bf16", 14, -1.25, "bf16")
    assert Way.of(json.loads(json.dumps({**way.facts(), "heatmap_cosine": 0.99}))) == way
    assert Way.of({}) == EXACT


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_is_settled_agrees_with_the_exact_way(subject, bfloat16):
    if bfloat16 and not has_bfloat16(torch.device("cpu")):
        pytest.skip("the processor has no bfloat16 instructions")
    batch = smooth(4, 64)
    chosen = components(subject, batch, "layer2", 4)
    way, agreement = settle(subject, batch, "layer2", chosen, CROP, bfloat16=bfloat16)
    if bfloat16:
        assert way.precision == "bf16"
        assert agreement["heatmap_cosine"] >= attribution_maps.SAME_MAP
        assert agreement["heatmap_iou"] >= attribution_maps.SAME_BOX
    else:
        assert way.precision == "fp32"
        assert (way == EXACT) == (not agreement)
    assert settle(subject, batch, "layer2", chosen, CROP, bfloat16=bfloat16) == (way, agreement)
    again = heatmaps(subject, batch, "layer2", chosen[0], "lrp", way)
    assert again.shape == (4, 64, 64)


def test_a_way_that_gives_other_crops_is_not_taken(subject, monkeypatch):
    batch = smooth(4, 64)
    chosen = components(subject, batch, "layer2", 4)
    plain = attribution_maps.Conditional

    class Shuffled(plain):
        def __call__(self, wanted: torch.Tensor) -> torch.Tensor:
            found = super().__call__(wanted)
            return found if self._dtype == torch.float32 and self._side is None else found.flip(-1)

    monkeypatch.setattr(attribution_maps, "Conditional", Shuffled)
    assert settle(subject, batch, "layer2", chosen, CROP, bfloat16=True) == (EXACT, {})


@pytest.mark.parametrize("bfloat16", [False, True])
def test_ways_are_tried_from_the_shortest_on_and_each_once(bfloat16):
    ways = list(attribution_maps._shorter(64, bfloat16))
    assert len(set(ways)) == len(ways)
    assert EXACT not in ways
    assert [way.side for way in ways] == sorted([way.side for way in ways if way.precision == "bf16"], key=lambda s: s or 64) + [8, 16]
    assert any(way.precision == "bf16" for way in ways) == bfloat16


def test_the_way_to_the_layer_and_the_way_back_are_rounded_apart(subject):
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("the processor has no bfloat16 instructions")
    batch = smooth(4, 64)
    chosen = components(subject, batch, "layer2", 1)[0]
    exact = heatmaps(subject, batch, "layer2", chosen, "lrp")
    off = [
        np.abs(heatmaps(subject, batch, "layer2", chosen, "lrp", way) - exact).max() / np.abs(exact).max()
        for way in (Way("fp32"), Way("bf16"), Way("bf16", forward="bf16"), Way("fp32", forward="bf16"))
    ]
    assert off[0] == 0
    assert all(0 < one < 0.1 for one in off[1:])
    assert len(set(off)) == 4


@pytest.mark.parametrize("offset", [-1.5, 0.0, 2.0])
def test_where_a_map_is_displaced_is_measured(offset):
    rng = np.random.default_rng(0)
    heat = np.zeros((5, 16, 16), dtype=np.float32)
    heat[:, 4:12, 4:12] = rng.normal(size=(5, 1, 1)) * rng.random((5, 8, 8))
    assert attribution_maps._offset(heat, lifted(heat, 64, offset)) == pytest.approx(offset, abs=0.1)


# ---- streams


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 13, 21])
def test_turns_are_powers_of_two_without_waste(count):
    turns = list(attribution_maps._turns(count))
    assert [turn for part in turns for turn in part] == list(range(count))
    assert all(len(part) in (1, 2, 4, 8) for part in turns)


def test_a_stream_by_a_shorter_way_is_the_same_in_any_company(subject):
    batch = smooth(3, 64)
    chosen = components(subject, batch, "layer2", 5)
    way = Way("fp32", 16, -1.5)
    rows = [(int(sample), int(k)) for turn in chosen for sample, k in enumerate(turn)]
    found = np.zeros((len(rows), 64, 64), dtype=np.float32)
    for positions, heat in stream_heatmaps(subject, lambda sample: batch[sample], "layer2", rows, "lrp", 3, way):
        found[positions] = heat
    for place, (sample, component) in enumerate(rows):
        alone = heatmaps(subject, batch[sample][None], "layer2", [component], "lrp", way)[0]
        assert np.allclose(found[place], alone, rtol=1e-3, atol=1e-5 * np.abs(alone).max())


# ---- the trial of a layer's crops


def test_references_tried_are_spread_and_are_references():
    rng = np.random.default_rng(0)
    for samples, count in ((3, 40), (50, 400), (500, 600)):
        rows = np.unique(np.stack([rng.integers(0, samples, count), rng.integers(0, 30, count)], axis=1), axis=0)
        references = np.concatenate([rows, np.zeros((len(rows), 1), dtype=np.int64)], axis=1)
        chosen, tried = crops._tried(references)
        assert len(chosen) == len(set(chosen)) == min(crops._TRIED, len(np.unique(rows[:, 0])))
        assert tried.shape[1] == len(chosen)
        assert tried.shape[0] <= 4
        known = set(map(tuple, rows.tolist()))
        assert all((sample, int(k)) in known for turn in tried for sample, k in zip(chosen, turn, strict=True))


class Stem(torch.nn.Module):
    """Two convolutions behind an operation."""

    def __init__(self, before=None, between=None):
        super().__init__()
        torch.manual_seed(3)
        self.before, self.between = before, between
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Conv2d(8, 8, 3, 1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, images):
        value = images if self.before is None else self.before(images)
        value = self.first(value).relu()
        value = self.second(value if self.between is None else self.between(value)).relu()
        return self.head(value.mean((2, 3)))


def reflected(value):
    return torch.nn.functional.pad(value, (1, 1, 1, 1), mode="reflect")


@pytest.mark.parametrize(
    "model",
    [Stem(before=torch.nn.AvgPool2d(2)), Stem(between=reflected)],
    ids=["pooled before the first convolution", "padding without a kernel in bfloat16"],
)
def test_what_a_shorter_way_cannot_do_is_no_reason_to_end(model):
    subject = SimpleNamespace(model=model.eval())
    batch, chosen = torch.rand(4, 3, 64, 64), np.tile(np.arange(3)[:, None], (1, 4))
    way, _ = settle(subject, batch, "second", chosen, CROP, bfloat16=True)
    for condition in chosen:
        exact = heatmaps(subject, batch, "second", condition, "lrp")
        assert np.isfinite(exact).all()
        assert heatmaps(subject, batch, "second", condition, "lrp", way).shape == exact.shape


def test_more_channels_than_places_are_taken_for_no_map():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    model = ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, 48, 1), CNBlockConfig(48, None, 1)], num_classes=5).eval()
    subject = SimpleNamespace(model=model)
    batch, chosen = torch.rand(4, 3, 64, 64), np.tile(np.arange(2)[:, None], (1, 4))
    way, agreement = settle(subject, batch, "features.5", chosen, CROP, bfloat16=True)
    assert way != EXACT
    assert agreement["heatmap_cosine"] >= 0.99
