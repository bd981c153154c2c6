"""MLflow with its own local store: artefacts, metrics, tags, and that logging twice changes nothing."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from semlens_audit import engine, exports, gate, mlflow_log
from semlens_audit.cli import app
from semlens_audit.compose import record_digest
from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.mlflow_log import Target
from semlens_audit.records import AuditRecord
from tests.golden.sample_record import sample, small

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'store.db'}"


@pytest.fixture(scope="module")
def client(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlflow import MlflowClient

    made = MlflowClient(tracking_uri=uri)
    made.create_experiment("training", artifact_location=(tmp_path_factory.mktemp("artefacts")).as_uri())
    made.create_experiment("audits", artifact_location=(tmp_path_factory.mktemp("more")).as_uri())
    made.create_registered_model("moles")
    return made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, in which nothing is left."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def record_file(tmp_path: Path) -> Path:
    engine.write_record(small(), tmp_path / "results.json")
    return tmp_path / "results.json"


def training_run(client: Any) -> str:
    return client.create_run(client.get_experiment_by_name("training").experiment_id).info.run_id


def test_a_record_is_logged_with_report_exports_metrics_and_tags(client: Any, uri: str, record_file: Path) -> None:
    run = training_run(client)
    version = client.create_model_version("moles", source=client.get_run(run).info.artifact_uri, run_id=run).version
    signed = record_file.with_name("signed.pdf")
    signed.write_bytes(b"%PDF signed")
    target = Target(run=run, model="moles", version=str(version), uri=uri)
    logged = mlflow_log.log(record_file, target, (signed,))
    record = small()
    names = {"results.json", "report.html", "signed.pdf", *(exports.FORMATS[name][0] for name in exports.FILES)}
    assert set(logged.files) == names
    assert {Path(one.path).name for one in client.list_artifacts(run, logged.folder)} == names
    back = Path(client.download_artifacts(run, f"{logged.folder}/results.json"))
    assert back.read_bytes() == record_file.read_bytes()
    data = client.get_run(run).data
    first = record.findings[0]
    key = f"semlens_audit/{record.audit.name}/{first.id}"
    assert data.metrics[f"{key}/value"] == first.measurement.value
    assert first.measurement.interval is not None
    assert data.metrics[f"{key}/low"] == first.measurement.interval.low
    assert data.metrics[f"{key}/high"] == first.measurement.interval.high
    # the second finding was not measured: no number stands for it
    assert not [name for name in data.metrics if record.findings[1].check in name]
    wanted = {
        "semlens_audit.verdict": record.verdict.state,
        "semlens_audit.gate": "none",
        "semlens_audit.exit_code": str(int(record.exit_code)),
        "semlens_audit.record_sha256": record_digest(record),
    }
    held = client.get_model_version("moles", str(version)).tags
    assert wanted.items() <= data.tags.items()
    assert wanted.items() <= held.items()
    assert held["semlens_audit.run_id"] == run


def test_logging_the_same_record_again_changes_nothing(client: Any, uri: str, record_file: Path) -> None:
    target = Target(experiment="audits", uri=uri)
    first, second = (mlflow_log.log(record_file, target) for _ in range(2))
    assert (first.known, second.known) == (False, True)
    assert first.run == second.run
    place = client.get_experiment_by_name("audits").experiment_id
    assert len(client.search_runs([place])) == 1
    for name in client.get_run(first.run).data.metrics:
        assert len(client.get_metric_history(first.run, name)) == 1


def test_what_mlflow_does_not_know_is_said_before_anything_is_written(client: Any, uri: str, record_file: Path) -> None:
    run = training_run(client)
    for target in (
        Target(run=run, model="moles", version="99", uri=uri),
        Target(run=run, model="no such model", version="1", uri=uri),
        Target(run="0" * 32, uri=uri),
    ):
        with pytest.raises(ExecutionError) as caught:
            mlflow_log.log(record_file, target)
        assert caught.value.slug == "mlflow"
    assert client.get_run(run).data.metrics == {}
    assert client.list_artifacts(run) == []


@pytest.mark.parametrize(
    "target", [Target(), Target(run="1", experiment="e"), Target(run="1", model="m"), Target(run="1", version="1")]
)
def test_half_a_target_is_refused(target: Target, record_file: Path) -> None:
    with pytest.raises(UsageError, match=r"run-id|model-version"):
        mlflow_log.log(record_file, target)


def test_the_verb_says_what_it_did_and_how_to_install_what_is_missing(
    client: Any, uri: str, record_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["mlflow", str(record_file), "--run-id", training_run(client), "--tracking-uri", uri]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "7 artefacts in semlens_audit/phantom-shortcut" in done.output
    real = builtins.__import__

    def without_mlflow(name: str, *more: Any, **options: Any) -> Any:
        if name.split(".")[0] == "mlflow":
            raise ImportError(name)
        return real(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", without_mlflow)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "semlens-audit[mlflow]" in done.output


def test_tags_say_what_the_gate_decided_and_fit() -> None:
    record = small()
    decided = gate.apply(record, (), gate.Policy(), date(2025, 11, 21))
    found = mlflow_log.tags(decided.model_copy(update={"title": "t"}), "0" * 64)
    assert found["semlens_audit.gate"] == "failed"
    assert found["semlens_audit.exit_code"] == "1"
    loud = record.verdict.model_copy(update={"headline": "x\n\u202e" * 9000})
    assert max(map(len, mlflow_log.tags(record.model_copy(update={"verdict": loud}), "0" * 64).values())) <= 5000


def test_names_of_metrics_are_allowed_and_distinct() -> None:
    from mlflow.utils.validation import _validate_metric_name

    record: AuditRecord = sample("shortcut")
    odd = record.findings[0].model_copy(update={"layer": "a/../b:é?*", "check": "same"})
    long = record.findings[0].model_copy(update={"layer": "x" * 400})
    found = mlflow_log.metrics(record.model_copy(update={"findings": (odd, odd, long, long, *record.findings)}))
    for name in found:
        _validate_metric_name(name)
        assert len(name) <= 250
    measured = sum(f.measurement.value is not None for f in record.findings) + 4
    assert len([name for name in found if name.endswith("/value")]) == measured
