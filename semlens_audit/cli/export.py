"""Machine-readable outputs: `export`, `mlflow`, `ci`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import say, verb

__all__ = ["Format", "Template", "ci", "export", "mlflow"]

RecordFile = Annotated[Path, typer.Argument(metavar="RESULTS.json", help="Record that a run has written.")]


class Template(StrEnum):
    """A file for a build server."""

    GITHUB = "github"
    RELEASE_GATE = "release-gate"
    GITLAB = "gitlab"


_TEMPLATES = {
    Template.GITHUB: "action.yml",
    Template.RELEASE_GATE: "release-gate.github.yml",
    Template.GITLAB: "gitlab.yml",
}


class Format(StrEnum):
    """What a record is exported as."""

    JUNIT = "junit"
    SARIF = "sarif"
    CODE_SCANNING = "code-scanning"
    OSCAL = "oscal"
    CYCLONEDX = "cyclonedx"
    SUMMARY = "summary"
    ALL = "all"


@verb(rich_help_panel="Release", epilog="Example: semlens-audit export reports/phantom-clean/results.json --format junit --out -")
def export(
    record_file: RecordFile,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="junit, sarif, oscal, cyclonedx (ML-BOM), summary (Markdown), code-scanning (SARIF with problems only), or all of "
            "them.",
        ),
    ] = Format.ALL,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER|-", help="Folder to write into; - for stdout; default: beside the record.")
    ] = None,
) -> None:
    """Write a record in the formats that build servers and compliance systems read.

    Needs neither the model nor the data nor the store. The same record gives the same bytes. [bold]results.sarif[/] holds every
    finding; [bold]code-scanning.sarif[/] only what needs attention, for services that take each result for a problem. Exits 0
    when the files are written, whatever the verdict: the exit code of the audit stands in them.
    """
    from semlens_audit import exports
    from semlens_audit.errors import UsageError
    from semlens_audit.record_file import read_record

    record = read_record(record_file)
    if out == "-":
        if form is Format.ALL:
            raise UsageError("one-format", "Only one format fits on stdout.", "Give --format, or a folder.")
        typer.echo(exports.render(record, form.value), nl=False)
        return
    folder = record_file.parent if out is None else Path(out)
    forms = exports.FORMATS if form is Format.ALL else (form.value,)
    for name in forms:
        say(str(exports.write_format(record, name, folder)))


@verb(rich_help_panel="Release", epilog="Example: semlens-audit mlflow reports/phantom-clean/results.json --experiment moles")
def mlflow(
    record_file: RecordFile,
    run_id: Annotated[str | None, typer.Option("--run-id", help="Run to log to: the one that trained the model.")] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Experiment to log a run of its own to, instead of --run-id; made where it does not exist.")
    ] = None,
    model_name: Annotated[str | None, typer.Option("--model-name", help="Registered model whose version is tagged.")] = None,
    model_version: Annotated[str | None, typer.Option("--model-version", help="Its version.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="Tracking server or store; default: as MLflow is configured.")
    ] = None,
    registry_uri: Annotated[
        str | None, typer.Option("--registry-uri", help="Model registry; default: that of the tracking server.")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", help="A further file to keep beside the record, such as the signed PDF.")
    ] = None,
) -> None:
    """Log a record to MLflow, and tag the model version with its verdict.

    Artefacts: the record, its report as HTML, and every export. Metrics: value and interval of each finding. Tags of run and model
    version: [bold]semlens_audit.verdict[/], [bold].gate[/], [bold].exit_code[/], [bold].record_sha256[/]. Logging the same record
    again changes nothing. Needs the extra [bold]mlflow[/].
    """
    from semlens_audit import mlflow_log

    target = mlflow_log.Target(
        experiment=experiment, run=run_id, model=model_name, version=model_version, uri=tracking_uri, registry=registry_uri
    )
    logged = mlflow_log.log(record_file, target, files or ())
    known = ", which held this record already" if logged.known else ""
    say(f"run {logged.run}{known}: {len(logged.files)} artefacts in {logged.folder}, {logged.metrics} metrics")
    if logged.model is not None:
        say(f"model version {logged.model}: tagged")


@verb(rich_help_panel="Release", epilog="Example: semlens-audit ci github > .github/actions/semlens-audit/action.yml")
def ci(
    template: Annotated[
        Template, typer.Argument(metavar="github|release-gate|gitlab", help="Composite action, workflow that uses it, or component.")
    ],
) -> None:
    """Print a file that lets a build server run audits.

    [bold]github[/]: a composite action. [bold]release-gate[/]: a workflow that publishes a release only after its audit.
    [bold]gitlab[/]: a component with the audit as a job.
    """
    from semlens_audit.resources import templates_dir

    typer.echo((templates_dir() / "ci" / _TEMPLATES[template]).read_text(encoding="utf-8"), nl=False)
