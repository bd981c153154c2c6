"""Devices by name, and stages that stay on theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from semlens_audit import index
from semlens_audit.cli import app
from semlens_audit.cli.compute import execution
from semlens_audit.devices import describe, device_of, find_device, has_bfloat16, on_device, require_same
from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.execution import Execution
from semlens_audit.store import StageState, Store
from tests.unit import index_world as world

CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="there is no CUDA device")


class TestNames:
    def test_the_cpu(self) -> None:
        assert find_device("cpu") == torch.device("cpu")
        assert describe(find_device("cpu")) == "cpu"

    def test_auto_takes_what_there_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert find_device("auto").type == ("cuda" if CUDA else "cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert find_device("auto") == torch.device("cpu")

    @pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cpu:0", "", "meta", "cuda:-1"])
    def test_other_names_are_refused(self, name: str) -> None:
        with pytest.raises(UsageError) as caught:
            find_device(name)
        assert caught.value.slug == "unknown-device"
        with pytest.raises(UsageError) as caught:  # before anything is read: an index that is complete asks for no device
            execution(device=name)
        assert caught.value.slug == "unknown-device"

    @pytest.mark.parametrize("name", ["cuda", "cuda:0"])
    def test_cuda_that_is_not_there_is_said(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError) as caught:
            find_device(name)
        assert caught.value.slug == "no-cuda"
        assert "--device cpu" in caught.value.problems[0].hint

    def test_devices_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert find_device("auto") == torch.device("cuda", 0)
        assert find_device("cuda:1") == torch.device("cuda", 1)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        with pytest.raises(UsageError, match="only 2 of them"):
            find_device("cuda:2")

    def test_where_a_network_is(self) -> None:
        assert device_of(torch.nn.Linear(2, 2)) == torch.device("cpu")
        assert device_of(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
        assert device_of(torch.nn.Flatten()) == torch.device("cpu")

    def test_tensors_move_only_where_they_are_not(self) -> None:
        value = torch.zeros(3)
        assert on_device(value, torch.device("cpu")) is value
        assert on_device(value, torch.device("meta")).device.type == "meta"

    def test_bfloat16_is_asked_of_the_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for told in (True, False):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda told=told: told)
            assert has_bfloat16(torch.device("cpu")) is told


class TestStages:
    def test_go_on_where_they_were_begun(self) -> None:
        state = StageState("k", "references:layer3", 100, 32, False, {"device": "cuda (NVIDIA H200)"})
        require_same(state, "cuda (NVIDIA H200)")
        require_same(StageState("k", "outputs", 100, 0, False), "cpu")
        with pytest.raises(ExecutionError) as caught:
            require_same(state, "cpu")
        assert caught.value.slug == "other-device"
        assert "references:layer3" in str(caught.value)
        assert "--device cuda" in caught.value.problems[0].hint

    def test_record_the_device_and_refuse_another(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from semlens_audit import passes, stages

        monkeypatch.setattr(stages, "NULL_CROPS", 40)
        monkeypatch.setattr(passes, "_SECONDS", 0.0)
        plan = world.plan(world.write_world(tmp_path))
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            whole, calls = passes._Forward.compute, []

            def cut(self: passes._Forward, *arguments: object) -> object:
                calls.append(1)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return whole(self, *arguments)  # type: ignore[arg-type]

            patched.setattr(passes._Forward, "compute", cut)
            index.build(plan, execution=Execution(device="cpu"))
        with Store.open(tmp_path / "store.duckdb") as store:
            begun = dict(store.rows("SELECT name, done FROM stage WHERE NOT complete"))
            assert begun["outputs"] == 8
        with monkeypatch.context() as patched:
            patched.setattr(passes, "describe_device", lambda device: "cuda (NVIDIA H200)")
            with pytest.raises(ExecutionError, match="other-device"):
                index.build(plan, execution=Execution(device="cpu"))
        index.build(plan, execution=Execution(device="auto" if not CUDA else "cpu"))
        with Store.open(tmp_path / "store.duckdb") as store:
            facts = [store.stage(key) for (key,) in store.rows("SELECT key FROM stage WHERE name IN ('outputs', 'foundation')")]
            assert [state.facts["device"] for state in facts if state] == ["cpu", "cpu"]

    @needs_cuda
    def test_cuda_gives_what_the_cpu_gives(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import numpy as np

        from semlens_audit import stages
        from semlens_audit.data import open_data

        monkeypatch.setattr(stages, "NULL_CROPS", 40)
        folders = [world.write_world(tmp_path / name) for name in ("cpu", "cuda")]
        found = []
        for folder, device in zip(folders, ("cpu", "cuda"), strict=True):
            plan = world.plan(folder)
            index.build(plan, execution=Execution(device=device))
            with Store.open(folder / "store.duckdb") as store:
                evidence = index.load_evidence(plan, open_data(plan), store)
                assert evidence is not None
                found.append((np.asarray(evidence.logits), [np.asarray(layer.embeddings) for layer in evidence.layers]))
        (logits, embeddings), (others, vectors) = found
        np.testing.assert_allclose(others, logits, atol=1e-3)
        for one, other in zip(embeddings, vectors, strict=True):
            alive = np.linalg.norm(one, axis=-1) > 0
            assert ((one * other).sum(axis=-1)[alive] > 0.99).mean() > 0.95


class TestCommandLine:
    @pytest.mark.parametrize("verb", ["index", "run"])
    def test_options_are_checked_before_anything_is_read(self, verb: str, tmp_path: Path) -> None:
        (tmp_path / "audit.yaml").write_text("no audit")
        done = CliRunner().invoke(app, [verb, str(tmp_path / "audit.yaml"), "--max-memory", "lots"])
        assert done.exit_code == 2
        assert "bad-size" in done.output

    def test_a_device_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        folder = world.write_world(tmp_path)
        done = CliRunner().invoke(app, ["index", str(folder / "audit.yaml"), "--device", "cuda", "--quiet"])
        assert done.exit_code == 2
        assert "no-cuda" in done.output
