from __future__ import annotations

from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.components import NO_SAMPLE, TopReferences, capture, first_tensor, maps, pool
from semlens_audit.errors import ExecutionError, SubjectError


def oracle(ids: list[int], values: list[list[float]], m: int) -> list[list[tuple[float, int]]]:
    """Slower and simpler: sort all pairs of each component."""
    components = len(values[0])
    result = []
    for k in range(components):
        pairs = sorted(((-row[k], i) for i, row in zip(ids, values, strict=True)))
        result.append([(-value, i) for value, i in pairs[:m]])
    return result


def check(top: TopReferences, ids: list[int], values: list[list[float]], m: int) -> None:
    for k, expected in enumerate(oracle(ids, values, m)):
        found = [(v, i) for v, i in zip(top.values[k].tolist(), top.ids[k].tolist(), strict=True) if i != NO_SAMPLE]
        assert found == expected
        assert top.ids[k].tolist()[len(expected) :] == [NO_SAMPLE] * (m - len(expected))
        assert top.values[k].tolist()[len(expected) :] == [0.0] * (m - len(expected))


@st.composite
def streams(draw):
    samples, components = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    # Few distinct values, so that ties are the rule.
    value = st.sampled_from([-2.0, -1.0, -1e-30, 0.0, 1e-7, 1.0, 1.0000001, 3.0])
    values = draw(st.lists(st.lists(value, min_size=components, max_size=components), min_size=samples, max_size=samples))
    order = draw(st.permutations(range(samples)))
    cuts = draw(st.lists(st.integers(0, samples), max_size=6))
    return values, order, sorted({0, samples, *cuts}), draw(st.integers(1, 8))


@settings(max_examples=150, deadline=None)
@given(streams())
def test_equals_the_slow_oracle_for_any_order_and_batches(stream):
    values, order, cuts, m = stream
    top = TopReferences(len(values[0]), m)
    for first, last in zip(cuts, cuts[1:], strict=False):
        part = order[first:last]
        top.update(np.array(part), np.array([values[i] for i in part], dtype=np.float64).reshape(len(part), -1))
    check(top, list(range(len(values))), values, m)
    array = np.array(values)
    assert top.dead.tolist() == (array.max(axis=0) <= 0).tolist()
    assert top.maximum.tolist() == array.max(axis=0).tolist()
    assert top.minimum.tolist() == array.min(axis=0).tolist()
    assert top.nonzero.tolist() == (array != 0).sum(axis=0).tolist()
    assert top.seen == len(values)


@settings(max_examples=40, deadline=None)
@given(streams())
def test_a_restored_checkpoint_continues_exactly(stream):
    values, order, cuts, m = stream
    whole, halted = TopReferences(len(values[0]), m), TopReferences(len(values[0]), m)
    for first, last in zip(cuts, cuts[1:], strict=False):
        part = order[first:last]
        batch = np.array([values[i] for i in part], dtype=np.float32).reshape(len(part), -1)
        whole.update(np.array(part), batch)
        halted.update(np.array(part), batch)
        halted = TopReferences.restore(halted.state(), "layer")
    for name, array in whole.state().items():
        assert np.array_equal(array, halted.state()[name])


def test_a_checkpoint_is_a_copy():
    top = TopReferences(1, 2)
    top.update(np.array([0]), np.array([[1.0]]))
    state = top.state()
    top.update(np.array([1]), np.array([[2.0]]))
    assert state["ids"].tolist() == [[0, -1]]


def test_never_positive_unit_gets_its_true_top_samples_not_the_last_image():
    values = np.array([[-3.0], [-1.0], [-2.0], [-9.0]])
    top = TopReferences(1, 2)
    top.update(np.arange(4), values)
    assert top.ids.tolist() == [[1, 2]]
    assert top.values.tolist() == [[-1.0, -2.0]]
    assert top.dead.tolist() == [True]


def test_dead_unit_is_known_as_dead_and_keeps_the_smallest_ids():
    top = TopReferences(2, 3)
    for start in (3, 0):
        top.update(np.arange(start, start + 3), np.tile([0.0, 1.0], (3, 1)))
    assert top.dead.tolist() == [True, False]
    assert top.nonzero.tolist() == [0, 6]
    assert top.ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_values_that_bfloat16_cannot_tell_apart_rank_exactly():
    values = np.array([[10.00], [10.03], [10.01], [10.02]], dtype=np.float32)
    assert len(set(torch.from_numpy(values).bfloat16().flatten().tolist())) < 4
    top = TopReferences(1, 4)
    top.update(np.arange(4), values)
    assert top.ids.tolist() == [[1, 3, 2, 0]]
    with pytest.raises(ValueError, match="full precision"):
        top.update(np.arange(4), values.astype(np.float16))


def test_second_pass_gives_the_same_sample_ids():
    def run() -> list[list[int]]:
        top = TopReferences(2, 3)
        for first in range(0, 10, 4):
            ids = np.arange(first, min(first + 4, 10))
            top.update(ids, np.stack([np.sin(ids), np.cos(ids)], axis=1))
        return top.ids.tolist()

    assert run() == run()


def test_last_batch_of_one_sample():
    top = TopReferences(3, 2)
    top.update(np.array([0, 1]), np.ones((2, 3), dtype=np.float32))
    top.update(np.array([2]), np.full((1, 3), 2.0, dtype=np.float32))
    assert top.ids.tolist() == [[2, 0]] * 3


def test_empty_batch_changes_nothing():
    top = TopReferences(3, 2)
    top.update(np.array([], dtype=np.int64), np.zeros((0, 3)))
    assert top.seen == 0
    assert (top.ids == NO_SAMPLE).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_names_layer_component_and_sample(bad):
    top = TopReferences(3, 2, "layer4.1")
    values = np.zeros((2, 3))
    values[1, 2] = bad
    with pytest.raises(ExecutionError, match=r"layer4\.1.*component 2.*sample 7") as caught:
        top.update(np.array([6, 7]), values)
    assert caught.value.slug == "not-finite"


def test_shapes_are_checked():
    for bad in (lambda: TopReferences(0, 1), lambda: TopReferences(1, 0)):
        with pytest.raises(ValueError, match="positive"):
            bad()
    top = TopReferences(2, 2)
    with pytest.raises(ValueError, match="shape"):
        top.update(np.array([0]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="negative"):
        top.update(np.array([-1]), np.zeros((1, 2)))


# ---- pooling


def test_pool_of_maps_tokens_and_vectors():
    rng = np.random.default_rng(0)
    for shape, axes in (((2, 5, 3, 4), (2, 3)), ((2, 7, 5), 1), ((2, 5), ())):
        value = rng.normal(size=shape).astype(np.float32)
        for how, function in (("max", np.max), ("mean", np.mean)):
            expected = value if axes == () else function(value, axis=axes)
            found = pool(torch.from_numpy(value), how)
            assert found.shape == (2, 5)
            assert np.allclose(found.numpy(), expected, atol=1e-6)


def test_pool_widens_half_precision():
    assert pool(torch.ones(1, 2, 2, 2, dtype=torch.bfloat16), "mean").dtype == torch.float32
    assert pool(torch.ones(1, 2, 2, 2, dtype=torch.float64), "max").dtype == torch.float64


def test_tokens_are_not_taken_for_channels():
    tokens = torch.zeros(1, 50, 12)
    tokens[0, 49, 3] = 1.0
    assert pool(tokens, "max").shape == (1, 12)
    assert maps(tokens).shape == (1, 12, 7, 7)
    assert maps(tokens)[0, 3, 6, 6] == 1.0  # the last token is the last place: the one before the grid is the class token


@pytest.mark.parametrize(("tokens", "side"), [(49, 7), (50, 7), (53, 7), (197, 14), (201, 14)])
def test_prefix_tokens_are_left_out(tokens, side):
    value = torch.arange(tokens, dtype=torch.float32)[None, :, None]
    grid = maps(value)
    assert grid.shape == (1, 1, side, side)
    assert grid[0, 0, 0, 0] == tokens - side * side


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4, 5, 6)])
def test_unknown_layouts(shape):
    with pytest.raises(SubjectError) as caught:
        pool(torch.zeros(shape), "max")
    assert caught.value.slug == "unknown-layout"


def test_maps_of_what_has_no_place():
    for value in (torch.zeros(2, 3), torch.zeros(2, 60, 3)):
        with pytest.raises(SubjectError):
            maps(value)


# ---- capture

Pair = namedtuple("Pair", "first second")


class Odd(torch.nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> object:
        return {
            "tuple": (x, x + 1), "list": [x, x + 1], "dict": OrderedDict(a=x, b=x + 1), "named": Pair(x, x + 1), "none": (None, x),
        }[self.kind]  # fmt: skip


class Reads(torch.nn.Module):
    def forward(self, value: object) -> torch.Tensor:
        parts = list(value.values()) if isinstance(value, dict) else value
        return sum(part for part in parts if part is not None)  # type: ignore[attr-defined, union-attr]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "named", "none"])
def test_tuple_outputs_do_not_crash(kind):
    model = torch.nn.Sequential(Odd(kind), Reads())
    value = torch.rand(2, 3)
    plain = model(value)
    with capture(model, ["0"]) as outputs:
        assert torch.equal(model(value), plain)
    assert torch.equal(outputs["0"], value)


def test_output_without_tensor():
    with pytest.raises(SubjectError) as caught:
        first_tensor(("a", 3))
    assert caught.value.slug == "no-tensor-output"


def test_captured_output_survives_what_works_in_place():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(inplace=True))
    value = torch.randn(4, 3)
    expected = model[0](value).detach()
    assert (expected < 0).any()
    with capture(model, ["0"]) as outputs, torch.no_grad():
        model(value)
    assert torch.equal(outputs["0"], expected)


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(RuntimeError), capture(model, ["0"]):
        model(torch.zeros(1, 7))
    assert not model[0]._forward_hooks
    with pytest.raises(SubjectError), capture(model, ["nope"]):
        pass


def test_differentiable_capture_records_nothing_before_the_layer():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 2)).requires_grad_(False)
    with capture(model, ["0", "1"], differentiable=True) as outputs:
        score = model(torch.randn(5, 3))[:, 0].sum()
    assert outputs["0"].is_leaf
    first, second = torch.autograd.grad(score, [outputs["0"], outputs["1"]])
    assert torch.allclose(first, second * (outputs["0"] > 0))
