"""Ablation against manual replacement, many sets in one pass against one at a time, and the closed form of a linear model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from semlens_audit import intervention
from semlens_audit.errors import ExecutionError, SubjectError
from semlens_audit.intervention import Ablation, ablate, donors, record_outputs, replacement
from semlens_audit.plan import Preprocessing
from semlens_audit.subject import LoadedSubject

SETS = [[], [0], [1, 3], [0, 1, 2, 3]]


def subject(model: torch.nn.Module) -> LoadedSubject:
    model.eval().requires_grad_(False)
    return LoadedSubject(model, ("a", "b", "c"), "0" * 64, 1, "made up", Preprocessing(size=12))


class Plain(torch.nn.Module):
    """Two convolutions, pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.second = torch.nn.Conv2d(4, 5, 3, stride=2)
        self.head = torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.first(x))
        return self.head(torch.relu(self.second(x)).mean(dim=(2, 3)))


class Residual(Plain):
    """What goes round the layer `second`: a sum, which would broadcast a single row over all."""

    def __init__(self) -> None:
        super().__init__()
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(x + self.second(x)).mean(dim=(2, 3)))


class Dense(Plain):
    """What goes round the layer `second`: a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.cat([x, self.second(x)], dim=1).mean(dim=(2, 3)))


class Tokens(torch.nn.Module):
    """Patches as tokens behind a class token, one block of attention; `block` returns a tuple."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return x + self.attention(x, x, x, need_weights=False)[0], None

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.block, self.second, self.head = self.Block(), self.Block(), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.second(self.block(x)[0])[0][:, 0])


def images(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def manual(model: torch.nn.Module, layer: str, x: torch.Tensor, sets: list[list[int]], values: torch.Tensor) -> np.ndarray:
    """One set and one sample at a time, component by component."""
    module = model.get_submodule(layer)
    rows = []
    for chosen in sets:
        row = []
        for sample in range(len(x)):
            each = values[sample] if values.shape[0] == len(x) else values

            def hook(_m: object, _i: object, output: object, chosen: list[int] = chosen, each: torch.Tensor = each) -> object:
                tensor = (output[0] if isinstance(output, tuple) else output).clone()
                for k in chosen:
                    if tensor.ndim == 3:
                        tensor[0, :, k] = each[:, k]
                    else:
                        tensor[0, k] = each[k]
                return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

            handle = module.register_forward_hook(hook)
            with torch.inference_mode():
                row.append(model(x[sample : sample + 1])[0])
            handle.remove()
        rows.append(torch.stack(row))
    return torch.stack(rows).numpy()


CASES: list[tuple[Callable[[], torch.nn.Module], str, bool]] = [
    (Plain, "first", True),
    (Plain, "second", True),
    (Plain, "head", True),
    (Residual, "first", True),
    (Residual, "second", False),
    (Dense, "second", False),
    (Tokens, "block", True),
    (Tokens, "second", True),
]


@pytest.mark.parametrize("method", ["mean", "resampling"])
@pytest.mark.parametrize(("make", "layer", "together"), CASES)
def test_it_equals_replacement_by_hand(make: Callable[[], torch.nn.Module], layer: str, together: bool, method: str) -> None:
    torch.manual_seed(1)
    loaded, x = subject(make()), images()
    recorded = record_outputs(loaded, layer, iter([x[:4], x[4:]]), len(x), np.ones(len(x)))
    sets = [[k for k in chosen if k < 3] for chosen in SETS] if layer == "head" else SETS
    values = replacement(recorded, method, slice(0, len(x)), donors(range(len(x)), 0))  # type: ignore[arg-type]
    ablation = Ablation(loaded, layer, sets)
    got = ablation(lambda: x, torch.from_numpy(recorded.outputs), values)
    assert ablation.expanded is together
    np.testing.assert_allclose(got, manual(loaded.model, layer, x, sets, values), atol=2e-6)
    with torch.inference_mode():
        np.testing.assert_allclose(got[0], loaded.model(x).numpy(), atol=2e-6)
    assert np.abs(got[-1] - got[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer2"), ("vit_tiny_patch16_224", "blocks.1"), ("densenet121", None)]
)
def test_real_architectures_in_one_pass_or_by_loop(name: str, layer: str | None) -> None:
    import semlens_audit._torchvision  # noqa: F401

    import timm  # isort: skip

    torch.manual_seed(0)
    small = {
        "resnet18": {"channels": (4, 8, 8, 8)},
        "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3},
        "densenet121": {"growth_rate": 4, "block_config": (2, 2)},
    }[name]
    model = timm.create_model(name, num_classes=3, **small)
    layer = layer or "features.denseblock1.denselayer1"
    x = torch.randn(3, 3, 32, 32)
    loaded = subject(model)
    values = record_outputs(loaded, layer, iter([x]), 3, np.ones(3)).mean
    got = ablate(loaded, x, layer, SETS, torch.from_numpy(values))
    np.testing.assert_allclose(got, manual(model, layer, x, SETS, torch.from_numpy(values)), atol=1e-5)


def test_sets_are_split_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    loaded, x = subject(Plain()), images()
    values = torch.zeros(4, 12, 12)
    whole = ablate(loaded, x, "first", SETS * 5, values)
    monkeypatch.setattr(intervention, "_ROWS_BYTES", 1)
    np.testing.assert_allclose(ablate(loaded, x, "first", SETS * 5, values), whole, atol=1e-6)


def test_in_a_linear_model_mean_ablation_takes_away_weight_times_distance_from_the_mean() -> None:
    """Change of a logit by component k: w_k (mean_k - a_k)."""

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = torch.nn.Linear(12, 4), torch.nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x[:, 0, 0]))

    torch.manual_seed(3)
    loaded, x = subject(Linear()), images(9)
    recorded = record_outputs(loaded, "body", iter([x]), 9, np.arange(1.0, 10.0))
    a = loaded.model.body(x[:, 0, 0]).numpy()  # type: ignore[operator, union-attr]
    np.testing.assert_allclose(recorded.mean, np.average(a, axis=0, weights=np.arange(1.0, 10.0)), rtol=1e-5)
    weight = loaded.model.head.weight.numpy()  # type: ignore[operator, union-attr]
    got = ablate(loaded, x, "body", SETS, torch.from_numpy(recorded.mean))
    for chosen, row in zip(SETS, got, strict=True):
        wanted = sum((np.outer(recorded.mean[k] - a[:, k], weight[:, k]) for k in chosen), np.zeros((9, 3)))
        np.testing.assert_allclose(row - got[0], wanted, atol=1e-5)


class TestReplacement:
    def test_the_mean_is_taken_at_each_position(self) -> None:
        loaded, x = subject(Plain()), images()
        recorded = record_outputs(loaded, "first", iter([x]), 6, np.ones(6))
        np.testing.assert_allclose(recorded.mean, recorded.outputs.mean(axis=0), atol=1e-6)
        assert np.ptp(recorded.mean, axis=(1, 2)).min() > 0

    def test_later_work_in_place_does_not_reach_what_is_kept(self) -> None:
        loaded, x = subject(Plain()), images()
        recorded = record_outputs(loaded, "first", iter([x]), 6, np.ones(6))
        assert recorded.outputs.min() < 0

    def test_large_outputs_go_to_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded, x = subject(Plain()), images()
        kept = record_outputs(loaded, "first", iter([x]), 6, np.ones(6)).outputs
        monkeypatch.setattr(intervention, "_KEPT_BYTES", 0)
        mapped = record_outputs(loaded, "first", iter([x]), 6, np.ones(6)).outputs
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(kept, mapped)

    def test_a_sample_short_is_an_error(self) -> None:
        with pytest.raises(ExecutionError, match="4 of 6"):
            record_outputs(subject(Plain()), "first", iter([images(4)]), 6, np.ones(6))

    @pytest.mark.parametrize("count", [2, 3, 10, 301])
    def test_every_sample_gets_another_ones_output_and_gives_its_own_once(self, count: int) -> None:
        given = donors(range(count), 5)
        assert sorted(given) == list(range(count))
        assert (given != np.arange(count)).all()
        np.testing.assert_array_equal(given, donors(range(count), 5))
        assert count < 4 or (given != donors(range(count), 6)).any()

    def test_resampling_does_not_depend_on_batches(self) -> None:
        torch.manual_seed(0)
        loaded, x = subject(Plain()), images(7)
        recorded, given = record_outputs(loaded, "first", iter([x]), 7, np.ones(7)), donors(range(7), 0)
        outputs = torch.from_numpy(recorded.outputs)
        every = Ablation(loaded, "first", SETS)(lambda: x, outputs, replacement(recorded, "resampling", slice(0, 7), given))
        parts = []
        for part in (slice(0, 2), slice(2, 3), slice(3, 7)):
            values = replacement(recorded, "resampling", part, given)
            parts.append(Ablation(loaded, "first", SETS)(lambda part=part: x[part], outputs[part], values))
        np.testing.assert_allclose(np.concatenate(parts, axis=1), every, atol=1e-6)


class TestErrors:
    def test_a_component_that_the_layer_has_not(self) -> None:
        with pytest.raises(SubjectError, match="4 components"):
            ablate(subject(Plain()), images(), "first", [[4]], torch.zeros(4, 12, 12))

    def test_outputs_that_are_not_finite(self) -> None:
        with pytest.raises(ExecutionError, match="NaN"):
            ablate(subject(Plain()), images(), "first", [[1]], torch.full((4, 12, 12), float("nan")))

    def test_a_layout_without_components(self) -> None:
        class Odd(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fold = torch.nn.Unflatten(3, (3, 4))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.fold(x).mean(dim=(2, 3, 4))

        with pytest.raises(SubjectError, match="cannot be told from places"):
            ablate(subject(Odd()), images(), "fold", [[1]], torch.zeros(3, 12, 3, 4))

    def test_an_unknown_layer(self) -> None:
        with pytest.raises(SubjectError):
            Ablation(subject(Plain()), "frist", [[1]])
