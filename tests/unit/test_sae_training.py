from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from semlens_audit.data import open_data
from semlens_audit.errors import DataError, ExecutionError, UsageError
from semlens_audit.execution import Execution
from semlens_audit.plan import AuditPlan
from semlens_audit.sae import training
from semlens_audit.sae.activations import Activations
from semlens_audit.sae.model import SparseAutoencoder, load_autoencoder, topk_latents
from semlens_audit.sae.order import Order
from semlens_audit.sae.training import Settings, Status, bare, train
from semlens_audit.sae_header import read_dictionary
from semlens_audit.work import Bench
from tests.unit import index_world

SETTINGS = Settings("layer3", latents=12, k=3, epochs=30, batch=16, learning_rate=0.01, seed=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return index_world.write_world(tmp_path_factory.mktemp("world"))


def made(world: Path) -> Bench:
    plan = index_world.plan(world)
    return Bench(bare(plan), open_data(plan), execution=Execution(device="cpu"))


@pytest.fixture(scope="module")
def bench(world: Path) -> Bench:
    return made(world)


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a training that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    train(bench, SETTINGS, out)
    return out


class Stop(BaseException):
    """Ctrl-C, at a place of the test's choice."""


def test_training_explains_variance_of_images_held_back(bench: Bench, tmp_path: Path) -> None:
    told: list[Status] = []
    found = train(bench, SETTINGS, tmp_path / "a.safetensors", told.append)
    assert found.samples + found.held_back == len(bench.data.samples)
    assert found.held_back == 2
    assert told[-1].step == told[-1].steps == found.steps
    assert told[-1].loss < told[0].loss
    assert found.explained_variance > 0.5
    # the same by slow loops, over the images held back
    model, said = load_autoencoder(tmp_path / "a.safetensors")
    assert said == found
    back = training._divided(bench, SETTINGS.seed)[1]
    vectors = Activations(bench, "layer3")(back).reshape(-1, model.width).astype(np.float64)
    left = sum(float(((one - model(torch.from_numpy(one).float()).double().numpy()) ** 2).sum()) for one in vectors)
    everything = float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    assert found.explained_variance == pytest.approx(1 - left / everything, rel=1e-4)
    codes = model.encode(torch.from_numpy(Activations(bench, "layer3")(np.arange(22)).reshape(-1, model.width)))
    assert found.dead == int((~(codes > 0).any(dim=0)).sum())
    assert 0 < found.active <= 3
    np.testing.assert_allclose(model.W_dec.norm(dim=1).numpy(), 1.0, rtol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(bench: Bench, whole: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    train(bench, SETTINGS, again)
    assert again.read_bytes() == whole.read_bytes()
    train(bench, Settings(**{**SETTINGS.__dict__, "seed": 5}), other)
    assert not torch.equal(load_file(other)["W_dec"], load_file(whole)["W_dec"])


@pytest.mark.parametrize("places", [(1,), (7, 9, 40)])
def test_an_interrupted_training_ends_with_the_same_bytes(
    bench: Bench, whole: Path, tmp_path: Path, places: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut.safetensors"
    advance = training._Run.advance
    for place in places:
        def stop(run: training._Run, vectors: torch.Tensor, place: int = place) -> None:
            if run.step == place:
                raise Stop
            advance(run, vectors)

        monkeypatch.setattr(training._Run, "advance", stop)
        with pytest.raises(Stop):
            train(bench, SETTINGS, out)
        assert not out.exists()
        assert (tmp_path / "cut.safetensors.partial").exists()
    monkeypatch.setattr(training._Run, "advance", advance)
    train(bench, SETTINGS, out)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors"]


def test_a_training_goes_on_with_as_many_threads_as_it_was_begun_with(
    bench: Bench, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, advance, seen = tmp_path / "cut.safetensors", training._Run.advance, []

    def stop(run: training._Run, vectors: torch.Tensor) -> None:
        if run.step == 5:
            raise Stop
        advance(run, vectors)

    def see(run: training._Run, vectors: torch.Tensor) -> None:
        seen.append(torch.get_num_threads())
        advance(run, vectors)

    monkeypatch.setattr(training._Run, "advance", stop)
    with pytest.raises(Stop):
        train(bench, SETTINGS, out)
    monkeypatch.setattr(training._Run, "advance", see)
    torch.set_num_threads(3)
    try:
        train(bench, SETTINGS, out)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert set(seen) == {1}
    assert out.read_bytes() == whole.read_bytes()


def test_an_interrupt_in_the_middle_of_a_step_keeps_the_state_before_it(
    bench: Bench, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, step = tmp_path / "cut.safetensors", torch.optim.Adam.step
    calls = [0]

    def cut(*arguments: object, **options: object) -> object:
        result = step(*arguments, **options)  # type: ignore[arg-type]
        calls[0] += 1
        if calls[0] == 20:
            raise Stop  # parameters are new, and directions not of unit length yet
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", cut)
    with pytest.raises(Stop):
        train(bench, SETTINGS, out, every=0.0)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    train(bench, SETTINGS, out)
    assert out.read_bytes() == whole.read_bytes()


def test_a_killed_training_ends_with_the_same_bytes(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed.safetensors"
    code = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from tests.unit import test_sae_training as t\n"
        "from semlens_audit.sae import training\n"
        "advance = training._Run.advance\n"
        "def slow(run, vectors):\n"
        "    advance(run, vectors); print(run.step, flush=True); time.sleep(0.02)\n"
        "training._Run.advance = slow\n"
        "t.train(t.made(Path(sys.argv[1])), t.SETTINGS, Path(sys.argv[2]), every=0.0)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(world), str(out)], cwd=root, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 11:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "killed.safetensors.partial").exists()
    assert not out.exists()
    train(made(world), SETTINGS, out)
    assert out.read_bytes() == whole.read_bytes()


def test_divergence_is_an_error_that_keeps_the_last_good_state(bench: Bench, tmp_path: Path) -> None:
    out, wild = tmp_path / "wild.safetensors", Settings("layer3", 12, 3, steps=50, batch=16, learning_rate=1e30)
    with pytest.raises(ExecutionError, match="no finite number") as caught:
        train(bench, wild, out)
    assert caught.value.slug == "training-diverged"
    assert not out.exists()
    state = load_file(tmp_path / "wild.safetensors.partial")
    assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_what_another_training_has_left_is_not_touched_unless_asked(bench: Bench, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "there.safetensors"
    out.write_bytes(whole.read_bytes())
    other = Settings(**{**SETTINGS.__dict__, "seed": 5, "epochs": 1})
    with pytest.raises(UsageError, match="other settings") as caught:
        train(bench, other, out)
    assert caught.value.slug == "other-training"
    assert train(bench, SETTINGS, out) == read_dictionary(whole).training  # it is finished already
    assert out.read_bytes() == whole.read_bytes()
    train(bench, other, out, force=True)
    assert read_dictionary(out).training.seed == 5  # type: ignore[union-attr]
    (tmp_path / "new.safetensors.partial").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="other settings"):
        train(bench, SETTINGS, tmp_path / "new.safetensors")
    for place in (tmp_path, tmp_path / "nowhere" / "a.safetensors"):
        with pytest.raises(UsageError, match="cannot be written"):
            train(bench, SETTINGS, place)


def test_settings_and_data_without_sense_are_refused(bench: Bench, world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be active"):
        train(bench, Settings("layer3", 4, 5, steps=1), tmp_path / "a.safetensors")
    audit = index_world.audit()
    plan = bare(index_world.plan(world, audit | {"data": audit["data"] | {"limit": 9}}))
    with pytest.raises(DataError, match="too few"):
        train(Bench(plan, open_data(plan)), SETTINGS, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_images_that_belong_together_are_on_the_same_side(bench: Bench) -> None:
    class Grouped:
        class data:  # noqa: N801
            samples = range(40)
            groups = np.arange(40) // 3

    first, back = training._divided(Grouped, 1)  # type: ignore[arg-type]
    assert sorted([*first, *back]) == list(range(40))
    assert not set(Grouped.data.groups[first]) & set(Grouped.data.groups[back])
    assert 4 <= len(back) <= 6


def test_activations_are_the_same_kept_or_computed_whole_or_in_part(bench: Bench) -> None:
    kept, none = Activations(bench, "layer3"), Activations(bench, "layer3", limit=0)
    some = Activations(bench, "layer3", limit=5 * 4 * kept.count * kept.width)
    whole = kept(np.arange(22))
    assert whole.shape == (22, 4, 6)
    for one in (kept, none, some):
        for samples in ([3], [21, 0, 7, 7], list(range(10))):
            np.testing.assert_array_equal(one(samples), whole[samples])
    model = bench.subject.model
    from semlens_audit.components import capture

    with torch.inference_mode(), capture(model, ["layer3"]) as seen:
        model(bench.images(list(range(8)), 8))
    np.testing.assert_allclose(whole[:8], seen["layer3"].permute(0, 2, 3, 1).reshape(8, 4, 6).numpy(), rtol=1e-5, atol=1e-6)


def test_the_order_goes_through_every_buffer_and_can_be_entered_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from semlens_audit.sae import order as module

    monkeypatch.setattr(module, "_BUFFER_VECTORS", 20)
    order = Order(np.arange(10, 23), count=4, width=2, batch=6, seed=0)
    assert order.epoch_steps == 3 + 3 + 2  # 5, 5 and 3 images of 4 vectors
    steps = list(order.steps(0, 20))
    assert len(steps) == 20
    assert sorted(image for number in range(3) for image in order.buffer(0, number)) == list(range(10, 23))
    assert not np.array_equal(order.buffer(0, 0), order.buffer(1, 0))
    for number in range(3):
        seen = np.concatenate([positions for epoch, buffer, positions in steps if (epoch, buffer) == (0, number)])
        assert len(np.unique(seen)) == len(seen)
    for first in (1, 3, 8, 17):
        for one, other in zip(order.steps(first, 20), steps[first:], strict=True):
            assert one[:2] == other[:2]
            np.testing.assert_array_equal(one[2], other[2])


def test_dead_latents_learn_from_what_the_others_leave_over(bench: Bench) -> None:
    run = training._Run(bench, Settings("layer3", 12, 3, steps=400, batch=16, learning_rate=0.01))
    run.begin()
    with torch.no_grad():  # two latents that never win
        run.model.b_enc[:2] = -100.0
    run.idle[:2] = training._IDLE
    before = run.model.W_dec[:2].clone()
    vectors = torch.from_numpy(run.activations(run.training).reshape(-1, 6)[:16])
    pre = run.model.preactivations(vectors)
    error = vectors / run.model.scale - (topk_latents(pre, 3) @ run.model.W_dec + run.model.b_dec)
    with torch.no_grad():
        run.model.b_enc[:2] = 0.0
        pre = run.model.preactivations(vectors)
        loss = run._auxiliary(pre, error, run.idle >= training._IDLE)
    tried = pre[:, :2].clamp(min=0) @ run.model.W_dec[:2]
    assert float(loss) == pytest.approx(float(((error - tried) ** 2).mean().detach() / (error**2).mean().detach()), rel=1e-5)
    run.idle[:2] = training._IDLE
    run.advance(vectors)
    assert not torch.equal(run.model.W_dec[:2], before)


def test_a_planted_dictionary_is_found_again() -> None:
    """Vectors made of two of eight directions each: the autoencoder finds the directions."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    codes = torch.zeros(4000, 8)
    for row in codes:
        row[torch.randperm(8, generator=generator)[:2]] = 1 + torch.rand(2, generator=generator)
    vectors = codes @ truth

    class Planted:
        count, width = 1, 16

        def __call__(self, samples: np.ndarray) -> np.ndarray:
            return vectors[torch.from_numpy(np.asarray(samples))].numpy()[:, None]

    run = object.__new__(training._Run)
    run.settings, run.device = Settings("x", 16, 2, steps=700, batch=64, learning_rate=0.005, seed=1), torch.device("cpu")
    run.activations, run.training = Planted(), np.arange(4000)  # type: ignore[assignment]
    run.order, run.steps, run.step, run.loss = Order(run.training, 1, 16, 64, 1), 700, 0, float("nan")
    run.begin()
    for _, _, positions in run.order.steps(0, 700):
        run.advance(vectors[torch.from_numpy(run.order.buffer(0, 0)[positions])])
    found = run.model.W_dec.detach() @ truth.T
    assert float(found.amax(dim=0).min()) > 0.97
    assert isinstance(run.model, SparseAutoencoder)


def test_plans_are_read_without_what_is_going_to_be_trained(world: Path) -> None:
    audit = index_world.audit(layers=["layer3.sae.latents"])
    audit["subject"]["autoencoders"] = [{"layer": "layer3", "file": "later.safetensors"}]
    plan = bare(index_world.plan(world, audit))
    assert isinstance(plan, AuditPlan)
    assert plan.audit.layers == ()
    assert plan.audit.subject.autoencoders == ()
