"""Relevance between layers against slow loops and zennit; edges, intervals, what is kept, and how the picture says it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import semlens_audit._torchvision  # noqa: F401
from semlens_audit import index
from semlens_audit.atlas import conditional_relevance
from semlens_audit.atlas.conditional_relevance import layer_relevance
from semlens_audit.atlas.graph import attribution_graph, edges_of
from semlens_audit.atlas.opening import Atlas
from semlens_audit.component_search import cache_folder
from semlens_audit.errors import SubjectError, UsageError
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan
from tests.unit import index_world as world

# isort: split
from zennit.composites import EpsilonPlusFlat

pytestmark = pytest.mark.usefixtures("one_thread")


class Chain(nn.Module):
    """Convolutions one after the other, a branch beside them, and tokens at the end."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, bias=bias), nn.Conv2d(4, 5, 3, stride=2, bias=bias)
        self.beside = nn.Conv2d(3, 2, 1)
        self.act1, self.act2, self.act3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.tokens, self.head = nn.Linear(5, 6, bias=bias), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        extra = self.beside(x).mean()
        x = self.act2(self.second(self.act1(self.first(x))))
        return self.head(self.act3(self.tokens(x.flatten(2).transpose(1, 2))).mean(1)) + extra


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_activation_x_gradient_equals_a_loop_over_single_activations(images: torch.Tensor) -> None:
    model = Chain().eval().requires_grad_(False)
    found = layer_relevance(model, images, "act1", "act2", 2, "activation_x_gradient")
    for row, image in enumerate(images):
        start = functional.relu(model.first(image[None])).double()
        weight, bias = model.second.weight.double(), model.second.bias.double()

        def total(value: torch.Tensor, weight: torch.Tensor = weight, bias: torch.Tensor = bias) -> float:
            return float(functional.relu(functional.conv2d(value, weight, bias, stride=2))[0, 2].sum())

        for channel in range(4):
            expected = 0.0
            for y, x in np.ndindex(*start.shape[2:]):
                moved, step = start.clone(), 1e-7
                moved[0, channel, y, x] += step
                expected += float(start[0, channel, y, x]) * (total(moved) - total(start)) / step
            assert found[row, channel] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert found[row, -1] == pytest.approx(total(start), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("earlier", "later", "component"), [("act1", "act2", 2), ("act2", "act3", 4), ("act1", "act3", 1)])
def test_relevance_equals_zennit_started_at_one_component(images: torch.Tensor, earlier: str, later: str, component: int) -> None:
    class Plain(nn.Module):
        """The chain without what zennit has no rule for."""

        def __init__(self) -> None:
            super().__init__()
            self.chain = Chain()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            chain = self.chain
            x = chain.act2(chain.second(chain.act1(chain.first(x))))
            return chain.head(chain.act3(chain.tokens(x.flatten(2).transpose(1, 2))))

    model = Plain().eval().requires_grad_(False)
    found = layer_relevance(model, images, f"chain.{earlier}", f"chain.{later}", component, "lrp")
    seen: dict[str, torch.Tensor] = {}
    handles = [
        getattr(model.chain, name).register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
        for name in (earlier, later)
    ]
    with EpsilonPlusFlat().context(model) as ruled:
        ruled(images.clone().requires_grad_(True))
        mask = torch.zeros_like(seen[later])
        place = (..., component) if later == "act3" else (slice(None), component)
        mask[place] = seen[later].detach()[place]
        (expected,) = torch.autograd.grad(seen[later], seen[earlier], mask)
    for handle in handles:
        handle.remove()
    assert mask.flatten(1).any(dim=1).all(), "a component that is never active would prove nothing"
    assert found[:, -1] == pytest.approx(mask.flatten(1).sum(1).numpy(), rel=1e-5)
    assert found[:, :-1] == pytest.approx(expected.sum(dim=(2, 3)).numpy(), rel=1e-3, abs=1e-5)


def test_without_biases_nothing_is_lost_and_with_them_something_is(images: torch.Tensor) -> None:
    for method in ("lrp", "activation_x_gradient"):
        for bias in (False, True):
            model = Chain(bias=bias).eval().requires_grad_(False)
            found = np.stack([layer_relevance(model, images, "act1", "act2", k, method) for k in (0, 2, 4)])
            kept = found[..., :-1].sum(axis=-1) / found[..., -1]
            assert (np.abs(kept - 1) < 1e-3).all() == (not bias), (method, bias, kept)


def test_a_row_does_not_depend_on_the_others(images: torch.Tensor) -> None:
    model = Chain().eval().requires_grad_(False)
    together = layer_relevance(model, images, "act1", "act2", 2, "lrp")
    for row in range(len(images)):
        assert together[row] == pytest.approx(layer_relevance(model, images[row : row + 1], "act1", "act2", 2, "lrp")[0], rel=1e-5)


@pytest.mark.parametrize("method", ["lrp", "activation_x_gradient"])
def test_layers_that_do_not_follow_from_each_other_are_told(images: torch.Tensor, method: str) -> None:
    model = Chain().eval().requires_grad_(False)
    with pytest.raises(SubjectError, match="parallel") as caught:
        layer_relevance(model, images, "beside", "act2", 0, method)  # type: ignore[arg-type]
    assert caught.value.slug == "layers-in-parallel"


# -- the graph of an audit


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditPlan]:
    from semlens_audit import stages

    before, stages.NULL_CROPS = stages.NULL_CROPS, 40
    # the order in the audit is not that of the network
    made = world.plan(world.write_world(tmp_path_factory.mktemp("graph")), world.audit(layers=["layer3", "layer1"]))
    index.build(made)
    yield made
    stages.NULL_CROPS = before


def test_the_graph_of_an_audit(plan: AuditPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    with Atlas(plan) as atlas:
        found = attribution_graph(atlas, "melanoma", top=3, feeders=2)
        assert found.layers == ("layer1", "layer3")
        assert [node.component for node in found.nodes["layer3"]] == np.argsort(-atlas.shares("layer3")[0], kind="stable")[:3].tolist()
        assert {edge.later for edge in found.edges["layer3"]} == {node.component for node in found.nodes["layer3"]}
        assert {edge.earlier for edge in found.edges["layer3"]} == {node.component for node in found.nodes["layer1"]}
        for node in found.nodes["layer3"]:
            edges = [edge for edge in found.edges["layer3"] if edge.later == node.component]
            assert (len(edges), node.samples) == (2, 5)
            assert all(edge.low <= edge.share <= edge.high for edge in edges)
            assert node.shown == pytest.approx(sum(abs(edge.share) for edge in edges))
            assert 0 < (node.arrived or 0.0) < 1.05
        # the second time it is read from beside the store
        def never(*_: object) -> np.ndarray:
            raise AssertionError("computed again")

        monkeypatch.setattr(conditional_relevance, "conditional_relevance", never)
        assert attribution_graph(atlas, "melanoma", top=3, feeders=2) == found
        with pytest.raises(AssertionError, match="computed again"):
            attribution_graph(atlas, "nevus", top=8)


def test_an_edge_is_the_mean_share_over_reference_samples(plan: AuditPlan) -> None:
    with Atlas(plan) as atlas:
        component = attribution_graph(atlas, "melanoma", top=1).nodes["layer3"][0].component
        ids = atlas.layers["layer3"].reference_ids[component]
        rng = np.random.default_rng(0)
        raw = rng.normal(size=(len(ids), 5))
        raw[2] = 0.0  # a sample that nothing arrives of says nothing
        edges, (arrived, samples) = edges_of(atlas, "layer3", component, raw, 4)
        rows = [row for row in raw if row.any()]
        expected = np.mean([row[:-1] / np.abs(row[:-1]).sum() for row in rows], axis=0)
        assert samples == len(ids) - 1
        assert {edge.earlier: edge.share for edge in edges} == pytest.approx(dict(enumerate(expected)))
        assert [abs(edge.share) for edge in edges] == sorted(np.abs(expected), reverse=True)
        assert arrived == pytest.approx(np.median([row[:-1].sum() / row[-1] for row in rows]))
        nothing = edges_of(atlas, "layer3", component, np.zeros_like(raw), 4)
        assert nothing == ((), (None, 0))


def test_an_interrupted_graph_goes_on_where_it_was(plan: AuditPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in cache_folder(store_path(plan)).glob("*.circuit"):
        path.unlink()
    real, asked = conditional_relevance.conditional_relevance, []

    def once(*arguments: object) -> np.ndarray:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    with Atlas(plan) as atlas:
        with monkeypatch.context() as patch:
            patch.setattr(conditional_relevance, "conditional_relevance", once)
            with pytest.raises(KeyboardInterrupt):
                attribution_graph(atlas, "melanoma", top=3)
        calls: list[object] = []
        monkeypatch.setattr(conditional_relevance, "conditional_relevance", lambda *given: (calls.append(given), real(*given))[1])
        attribution_graph(atlas, "melanoma", top=3)
        assert len(calls) == 1, "two components were kept"


def test_an_audit_of_one_layer_has_no_graph(plan: AuditPlan) -> None:
    with Atlas(plan) as atlas:
        atlas.layers.pop("layer1")
        with pytest.raises(UsageError) as caught:
            attribution_graph(atlas, "melanoma")
    assert caught.value.slug == "one-layer"
    assert "semlens-audit layers" in caught.value.problems[0].hint
