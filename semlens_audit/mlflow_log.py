"""A record in MLflow: artefacts, metrics with their intervals, and tags of the run and of the registered model's version.

MLflow is optional and imported here only. Logging the same record again changes nothing.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semlens_audit import exports, report
from semlens_audit.errors import ExecutionError, UsageError
from semlens_audit.exports.plain import line, moment
from semlens_audit.record_file import read_record, record_digest
from semlens_audit.records import AuditRecord
from semlens_audit.report import replace

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["TAG", "Logged", "Target", "log", "metrics", "tags"]

TAG = "semlens_audit"
"""First part of the names of tags, metrics and artefacts."""
_LONGEST = 5000
_KEY = 250


@dataclass(frozen=True)
class Target:
    """Where to log.

    Parameters
    ----------
    experiment
        Name of the experiment; made where it does not exist. Not together with `run`.
    run
        Id of the run that trained the model. None: the run of `experiment` that holds this record already, else a new one.
    model, version
        Registered model and its version whose tags are set; both or neither.
    uri
        Tracking server or store; none: as MLflow is configured.
    registry
        Model registry; none: that of the tracking server.
    """

    experiment: str | None = None
    run: str | None = None
    model: str | None = None
    version: str | None = None
    uri: str | None = None
    registry: str | None = None


@dataclass(frozen=True)
class Logged:
    """What was logged.

    Parameters
    ----------
    run
        Id of the run.
    folder
        Folder of the artefacts within the run.
    files
        Names of the artefacts, sorted.
    metrics
        How many metrics the record has.
    model
        ``name/version`` of the registered model whose tags were set, or none.
    known
        Whether the run held this very record before.
    """

    run: str
    folder: str
    files: tuple[str, ...]
    metrics: int
    model: str | None
    known: bool


def log(record_file: Path, target: Target, files: Sequence[Path] = ()) -> Logged:
    """Log a record with its report and exports.

    Parameters
    ----------
    record_file
        ``results.json`` as `run` wrote it; logged as it is, to the byte.
    target
        Where to.
    files
        Further files to keep beside it, such as a signed PDF.

    Raises
    ------
    UsageError
        Slugs ``no-mlflow``: it is not installed; ``mlflow-file``: one of `files` is named like another artefact;
        ``mlflow-target``: the target names no run and no experiment, or both, or half a model version; and as
        `semlens_audit.record_file.read_record`.
    IntegrityError
        As `semlens_audit.record_file.read_record`.
    ExecutionError
        Slug ``mlflow``: MLflow refuses or cannot be reached, or there is no such run or model version.
    """
    _check(target)
    record = read_record(record_file)
    sha256 = record_digest(record)
    with _failures():
        client = _client(target)
        if target.model is not None and target.version is not None:
            client.get_model_version(target.model, target.version)  # before anything is written
        run, known = _run(client, target, record, sha256)
        folder = f"{TAG}/{_name(record.audit.name)}"
        with tempfile.TemporaryDirectory(prefix="semlens-audit-") as temporary:
            room = Path(temporary)
            report.write(record, room, pdf=False)
            exports.write_all(record, room)
            replace(room / "results.json", record_file.read_bytes())
            for path in files:
                if (room / path.name).exists():
                    raise UsageError("mlflow-file", f"There is already an artefact {path.name}.", "Rename the file.", file=str(path))
                replace(room / path.name, path.read_bytes())
            names = tuple(sorted(path.name for path in room.iterdir()))
            client.log_artifacts(run, str(room), folder)
        values = metrics(record)
        if not known:
            _log_metrics(client, run, values, record)
        for key, value in tags(record, sha256).items():
            client.set_tag(run, key, value)
        model = None
        if target.model is not None and target.version is not None:
            for key, value in {**tags(record, sha256), f"{TAG}.run_id": run}.items():
                client.set_model_version_tag(target.model, target.version, key, value)
            model = f"{target.model}/{target.version}"
    return Logged(run=run, folder=folder, files=names, metrics=len(values), model=model, known=known)


def tags(record: AuditRecord, record_sha256: str) -> dict[str, str]:
    """Tags of the run and of the model version: what a deployment asks for before it takes a model."""
    found = {
        "verdict": record.verdict.state,
        "gate": record.gate.outcome if record.gate is not None else "none",
        "exit_code": str(int(record.exit_code)),
        "record_sha256": record_sha256,
        "weights_sha256": record.subject.weights_sha256,
        "audit": record.audit.name,
        "spec": f"{record.spec.name} {record.spec.detail.get('version', '')}",
        "created": record.created,
        "headline": record.verdict.headline,
        "tool": f"{record.tool.name} {record.tool.version}",
    }
    return {f"{TAG}.{key}": line(value, _LONGEST) for key, value in found.items()}


def metrics(record: AuditRecord) -> dict[str, float]:
    """Metrics of a record: value and both ends of the interval of each measured finding, and how many there are of each state.

    Returns
    -------
    dict
        ``semlens_audit/AUDIT/CHECK/WHERE/value`` and so on -> number in the measurement's unit. What was not measured has none.
    """
    start = f"{TAG}/{_name(record.audit.name)}"
    verdict = record.verdict
    values: dict[str, float] = {
        f"{start}/satisfied": verdict.satisfied,
        f"{start}/not_satisfied": verdict.not_satisfied,
        f"{start}/inconclusive": verdict.inconclusive,
        f"{start}/not_measured": verdict.not_measured,
        f"{start}/exit_code": int(record.exit_code),
    }
    taken: dict[str, int] = {}
    for finding in record.findings:
        key = f"{start}/{_name(finding.id)}"[: _KEY - 16]
        taken[key] = taken.get(key, 0) + 1
        if taken[key] > 1:
            key = f"{key}_{taken[key]}"
        measurement = finding.measurement
        if measurement.value is not None and measurement.interval is not None:
            values[f"{key}/value"] = measurement.value
            values[f"{key}/low"] = measurement.interval.low
            values[f"{key}/high"] = measurement.interval.high
    return values


def _name(text: str) -> str:
    """`text` with the characters that MLflow allows in keys and paths, without empty or relative parts."""
    parts = [re.sub(r"[^A-Za-z0-9_. -]", "_", part).strip(". ") for part in line(text).split("/")]
    return "/".join(part for part in parts if part) or "_"


def _check(target: Target) -> None:
    if (target.run is None) == (target.experiment is None):
        raise UsageError(
            "mlflow-target", "Exactly one of --run-id and --experiment says where to log.", "Give the run that trained the model."
        )
    if (target.model is None) != (target.version is None):
        raise UsageError("mlflow-target", "A model version needs both --model-name and --model-version.", "Give both or neither.")


def _client(target: Target) -> MlflowClient:
    # MLflow reports its use to its authors unless told not to, before it is imported
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise UsageError(
            "no-mlflow", "MLflow is not installed.", "Install it with: pip install 'semlens-audit[mlflow]'"
        ) from error
    return MlflowClient(tracking_uri=target.uri, registry_uri=target.registry)


def _run(client: MlflowClient, target: Target, record: AuditRecord, sha256: str) -> tuple[str, bool]:
    """Id of the run, and whether it holds the record already."""
    if target.run is not None:
        held = client.get_run(target.run).data.tags.get(f"{TAG}.record_sha256")
        return target.run, held == sha256
    assert target.experiment is not None
    experiment = client.get_experiment_by_name(target.experiment)
    place = experiment.experiment_id if experiment is not None else client.create_experiment(target.experiment)
    found = client.search_runs([place], filter_string=f"tags.`{TAG}.record_sha256` = '{sha256}'", max_results=1)
    if found:
        return found[0].info.run_id, True
    run = client.create_run(place, run_name=_name(record.audit.name), start_time=_milliseconds(record)).info.run_id
    return run, False


def _log_metrics(client: MlflowClient, run: str, values: dict[str, float], record: AuditRecord) -> None:
    from mlflow.entities import Metric

    when = _milliseconds(record)
    batch = [Metric(key, value, when, 0) for key, value in values.items()]
    for start in range(0, len(batch), 1000):  # the most that a tracking server takes at once
        client.log_batch(run, metrics=batch[start : start + 1000])


def _milliseconds(record: AuditRecord) -> int:
    return int(datetime.fromisoformat(moment(record.created)).timestamp() * 1000)


@contextmanager
def _failures() -> Iterator[None]:
    """What MLflow raises, as an error for the user."""
    try:
        yield
    except Exception as error:
        if not _is_mlflow(error):
            raise
        raise ExecutionError(
            "mlflow", f"MLflow: {line(str(error), 500)}", "Check --tracking-uri, the run, the model and its version."
        ) from error


def _is_mlflow(error: Any) -> bool:
    return any(kind.__module__.split(".", 1)[0] == "mlflow" for kind in type(error).__mro__)
