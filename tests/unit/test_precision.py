"""The forward pass in another arithmetic: folded, halved, and only where outputs and ranks are those of single precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import semlens_audit._torchvision  # noqa: F401

import timm  # isort: skip
import torchvision  # isort: skip

from semlens_audit import index, precision
from semlens_audit.components import capture, pool
from semlens_audit.inference import folded, halved, in_precision, shared_copy
from semlens_audit.precision import Arithmetic, Networks, _outputs, _ranked, _ranks, settle
from semlens_audit.store import Store
from tests.unit import index_world as world

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def unlike(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With statistics and affine parts as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.2, generator=generator)
    return model.eval().requires_grad_(False)


def inputs(count: int = 8, side: int = 64, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")


def resnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return unlike(timm.create_model("resnet18", channels=(8, 16, 24, 32), num_classes=5))


class Shared(torch.nn.Module):
    """Its convolution's output goes to a norm, and round it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Linear(6, 3)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        made = self.conv(value)
        return self.head((self.norm(made) + made).relu().mean(dim=(2, 3)))


class Narrow(torch.nn.Module):
    """Components that tell samples apart by less than bfloat16 can hold: 10.00 to 10.03."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 1)
        self.layer.weight.data.mul_(0.01)
        self.layer.bias.data.fill_(10.0)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(value).amax(dim=(2, 3)) - 10.0)


class TestFolding:
    @pytest.mark.parametrize(
        ("make", "norms"),
        [
            (resnet, 21),
            (lambda: unlike(torchvision.models.mobilenet_v2(num_classes=5)), 52),
            (lambda: unlike(timm.create_model("mobilenetv2_050", num_classes=5)), 52),
            (lambda: unlike(torchvision.models.vgg11_bn(num_classes=5)), 8),
            (lambda: unlike(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5)), 0),
        ],
        ids=["resnet", "mobilenet", "timm mobilenet", "vgg", "vit"],
    )
    def test_gives_the_same(self, make: Callable[[], torch.nn.Module], norms: int) -> None:
        model, images = make(), inputs()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        network, count = folded(model, images[:1])
        assert count == norms
        with torch.inference_mode():
            plain = model(images)
            torch.testing.assert_close(network(images), plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_every_layer_but_the_convolutions_gives_the_same(self) -> None:
        model, images = resnet(), inputs()
        network, _ = folded(model, images[:1])
        layers = ["layer1", "layer2.0", "layer3.0.bn1", "layer3.0.act1", "layer4.1.bn2", "layer1.0.conv1"]
        with torch.inference_mode(), capture(model, layers) as plain:
            model(images)
        with torch.inference_mode(), capture(network, layers) as other:
            network(images)
        for layer in layers[:-1]:
            torch.testing.assert_close(other[layer], plain[layer], rtol=1e-3, atol=1e-4)
        assert float((other[layers[-1]] - plain[layers[-1]]).abs().max()) > 0.01

    def test_is_not_used_where_the_convolution_is_read_elsewhere(self) -> None:
        model, images = unlike(Shared(), 3), inputs()
        network, count = folded(model, images[:1])
        assert count == 1
        with torch.inference_mode():
            assert float((network(images) - model(images)).abs().max()) > 0.01
        limit, layers, _ = settle(Networks(model, 64, CPU), [(images, 8)], ["norm", "conv"], "max", native=False)
        assert not limit.folded
        assert layers == {"norm": Arithmetic(), "conv": Arithmetic()}

    def test_a_convolution_that_is_audited_stays_as_it_is(self) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs(16)
        limit, layers, _ = settle(networks, [(images, 16)], ["layer2", "layer2.0.conv1"], "max", native=False)
        assert limit == layers["layer2"] == Arithmetic("fp32", folded=True)
        assert layers["layer2.0.conv1"] == Arithmetic("fp32", folded=False)

    def test_copies_share_what_they_do_not_change(self) -> None:
        model = resnet()
        other = shared_copy(model)
        assert other is not model
        assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))


class TestHalves:
    @pytest.mark.parametrize("name", ["resnet", "vit", "swin"])
    def test_agree_with_autocast(self, name: str) -> None:
        torch.manual_seed(0)
        make = {
            "resnet": resnet,
            "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=2),
            "swin": lambda: torchvision.models.swin_t(num_classes=5),
        }
        model, images = unlike(make[name]()), inputs(4)
        with in_precision("bf16", CPU):
            automatic, other = model(images).float(), halved(model)(images).float()
        with in_precision("fp32", CPU):
            plain = model(images)
        spread = float(plain.std())
        assert float((other - plain).abs().max()) < 0.1 * spread
        assert float((other - automatic).abs().max()) < 0.1 * spread

    def test_outputs_are_not_rounded_to_eight_bits(self) -> None:
        model, images = resnet(), inputs()
        network = halved(model, images[:1])
        with in_precision("bf16", CPU):
            outputs, rounded = network(images), halved(model)(images)
        assert outputs.dtype == torch.float32
        assert rounded.dtype == torch.bfloat16
        assert not torch.equal(outputs, outputs.bfloat16().float())

    def test_pooling_is_in_single_precision(self) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs()
        with in_precision("bf16", CPU), capture(networks[Arithmetic("bf16")], ["layer2"]) as seen:
            networks[Arithmetic("bf16")](images)
        _, pooled = networks.run(Arithmetic("bf16"), images, ["layer2"], "mean")
        np.testing.assert_allclose(pooled["layer2"], pool(seen["layer2"].float(), "mean").numpy(), rtol=1e-6)


class TestSettling:
    def test_ranks_that_break_keep_single_precision(self) -> None:
        """bfloat16 holds eight bits: 10.00 to 10.03 become one number, and which samples come first is then chance."""
        model, images = unlike(Narrow()), inputs(32)
        networks = Networks(model, 64, CPU)
        _, exact = networks.run(Arithmetic(), images, ["layer"], "max")
        _, rounded = networks.run(Arithmetic("bf16"), images, ["layer"], "max")
        assert len(np.unique(exact["layer"])) > 10 * len(np.unique(rounded["layer"]))
        limit, layers, agreement = settle(networks, [(images, 32)], ["layer"], "max")
        assert agreement["layer"]["rank"] < 0.98
        assert layers["layer"].precision == "fp32"
        assert limit.precision == "fp32"

    def test_ranks_that_hold_do_not(self) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs(64)
        limit, layers, agreement = settle(networks, [(images[:32], 32), (images[32:], 32)], ["layer1"], "max")
        assert agreement["outputs"]["noise"] < 0.05
        assert limit.precision == "bf16"
        assert layers["layer1"].precision == ("bf16" if agreement["layer1"]["rank"] >= 0.98 else "fp32")

    def test_a_layer_goes_no_further_than_the_outputs(self) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs(32)
        limit, layers, _ = settle(networks, [(images, 32)], ["layer1"], "max", outputs=Arithmetic("fp32", folded=True))
        assert limit == layers["layer1"] == Arithmetic("fp32", folded=True)

    def test_a_layer_does_not_depend_on_the_others(self) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs(32)
        alone = settle(networks, [(images, 32)], ["layer2"], "max")[1]["layer2"]
        among = settle(networks, [(images, 32)], ["layer2", "layer2.0.conv1", "layer4"], "max")[1]["layer2"]
        assert alone == among

    def test_emulated_bfloat16_is_not_tried(self) -> None:
        limit, _, agreement = settle(Networks(resnet(), 64, CPU), [(inputs(16), 16)], [], "max", native=False)
        assert limit.precision == "fp32"
        assert agreement == {}

    def test_rows_that_fill_a_batch_do_not_count(self) -> None:
        images = inputs(16)
        filled = torch.cat([images[:9], images[8:9].expand(7, -1, -1, -1)])
        networks = Networks(resnet(), 64, CPU)
        assert settle(networks, [(filled, 9)], ["layer1"], "max")[2] == settle(networks, [(images, 9)], ["layer1"], "max")[2]


class TestAgreement:
    def test_ranks_with_ties_are_those_of_scipy(self) -> None:
        from scipy.stats import rankdata, spearmanr

        rng = np.random.default_rng(0)
        first = rng.integers(0, 6, (40, 7)).astype(np.float32)
        second = (first + rng.integers(0, 3, (40, 7))).astype(np.float32)
        np.testing.assert_array_equal(_ranked(first), rankdata(first, axis=0))
        found, _ = _ranks(first, second)
        wanted = [spearmanr(first[:, k], second[:, k]).statistic for k in range(7)]
        assert found["worst"] == pytest.approx(min(wanted), abs=1e-12)

    def test_one_broken_component_is_enough(self) -> None:
        rng = np.random.default_rng(1)
        first = rng.normal(size=(64, 50))
        assert _ranks(first, first + 1e-4)[1]
        second = first.copy()
        second[:, 7] = rng.permutation(second[:, 7])
        assert not _ranks(first, second)[1]

    def test_constant_components_are_no_evidence(self) -> None:
        assert _ranks(np.ones((16, 3)), np.zeros((16, 3)))[1]

    def test_outputs(self) -> None:
        rng = np.random.default_rng(2)
        plain = rng.normal(size=(400, 5))
        assert _outputs(plain, plain)[1]
        found, enough = _outputs(plain, plain + 0.1 * rng.normal(size=plain.shape))
        assert found["noise"] == pytest.approx(0.1, rel=0.1)
        assert not enough
        broken = plain.copy()
        broken[3, 2] = np.inf
        assert not _outputs(plain, broken)[1]

    def test_another_largest_output_counts_only_where_it_was_clearly_smaller(self) -> None:
        rng = np.random.default_rng(3)
        plain = 0.1 * rng.normal(size=(64, 50))
        plain[np.arange(64), np.arange(64) % 50] += 3.0
        spread = np.sqrt(plain.var(axis=0).mean())
        for gap, same in ((0.02, True), (0.04, True), (0.06, False), (0.5, False)):
            first = plain.copy()
            best = first.argmax(axis=1)[:4]
            second = (best + 1) % 50
            first[np.arange(4), second] = first[np.arange(4), best] - gap * spread
            other = first.copy()
            other[np.arange(4), second] = first[np.arange(4), best] + 0.001 * spread
            found, enough = _outputs(first, other)
            assert (other.argmax(axis=1) != first.argmax(axis=1)).sum() == 4
            assert found["predictions"] == (1.0 if same else 60 / 64)
            assert enough == same

    def test_constant_outputs_have_to_name_the_same(self) -> None:
        plain = np.zeros((64, 3))
        plain[:, 1] = 1.0
        assert _outputs(plain, plain)[1]
        assert not _outputs(plain, plain[:, ::-1] * [1.0, 1.0, 2.0] + [2.0, 0.0, 0.0])[1]


class TestParts:
    """On a CPU a batch goes through the network in parts, and nothing depends on how a row came to its place."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(precision, "_PIXELS", 4 * 64**2)

    @pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (4, [4]), (7, [7]), (8, [4, 4]), (11, [6, 6]), (13, [5, 5, 5]), (16, [4] * 4)])
    def test_are_of_one_size_and_hold_every_row(self, count: int, sizes: list[int]) -> None:
        images = inputs(count).contiguous(memory_format=torch.channels_last)
        parts = precision._parts(images)
        assert [len(part) for part in parts] == sizes
        whole = torch.cat(parts)
        assert torch.equal(whole[:count], images)
        assert all(torch.equal(row, images[-1]) for row in whole[count:])
        assert all(part.is_contiguous(memory_format=torch.channels_last) and part.data_ptr() % 64 == 0 for part in parts)

    def test_pictures_larger_than_a_part_go_alone(self) -> None:
        assert [len(part) for part in precision._parts(inputs(3, side=200))] == [1, 1, 1]

    @pytest.mark.parametrize("arithmetic", [Arithmetic(), Arithmetic("fp32", folded=True), Arithmetic("bf16", folded=True)])
    def test_a_row_does_not_depend_on_its_place(self, arithmetic: Arithmetic) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs(13).contiguous(memory_format=torch.channels_last)
        logits, pooled = networks.run(arithmetic, images, ["layer2"], "max")
        assert logits.shape == (13, 5)
        turned, moved = networks.run(arithmetic, images.roll(3, 0), ["layer2"], "max")
        np.testing.assert_array_equal(np.roll(turned, -3, axis=0), logits)
        np.testing.assert_array_equal(np.roll(moved["layer2"], -3, axis=0), pooled["layer2"])

    def test_give_what_the_batch_gives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        networks, images = Networks(resnet(), 64, CPU), inputs(13)
        found = networks.run(Arithmetic(folded=True), images, ["layer2"], "mean")
        monkeypatch.undo()
        whole = networks.run(Arithmetic(folded=True), images, ["layer2"], "mean")
        np.testing.assert_allclose(found[0], whole[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1]["layer2"], whole[1]["layer2"], rtol=1e-4, atol=1e-5)


class TestIndex:
    def test_is_settled_once_kept_and_recorded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An index cut after its first batch goes on in the arithmetic that it was begun in, and ends with the same content."""
        from semlens_audit import passes, stages

        monkeypatch.setattr(stages, "NULL_CROPS", 40)
        monkeypatch.setattr(passes, "FEWEST", 16)
        monkeypatch.setattr(passes, "_SECONDS", 0.0)
        folders = [world.write_world(tmp_path / name) for name in ("whole", "cut")]
        plans = [world.plan(folder, world.audit(layers=["layer3"])) for folder in folders]
        index.build(plans[0])
        whole, calls = passes._Forward.compute, []

        def cut(self: passes._Forward, *arguments: object) -> object:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return whole(self, *arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(passes._Forward, "compute", cut)
            index.build(plans[1])
        with monkeypatch.context() as patched:
            patched.setattr(passes, "settle", None)  # what was settled is not settled again
            index.build(plans[1])
        stores = [Store.open(folder / "store.duckdb") for folder in folders]
        try:
            assert stores[0].content_digest() == stores[1].content_digest()
            facts = [dict(store.rows("SELECT name, facts FROM stage")) for store in stores]
            assert facts[0] == facts[1]
            assert '"folded":true' in facts[0]["outputs"].replace(" ", "")
            assert '"device":"cpu"' in facts[0]["references:layer3"].replace(" ", "")
        finally:
            for store in stores:
                store.close()
