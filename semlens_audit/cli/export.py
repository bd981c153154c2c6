"""Machine-readable outputs: `export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import verb

__all__ = ["Format", "export"]

RecordFile = Annotated[Path, typer.Argument(metavar="RESULTS.json", help="Record that a run has written.")]


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
    from semlens_audit import engine, exports
    from semlens_audit.errors import UsageError

    record = engine.read_record(record_file)
    if out == "-":
        if form is Format.ALL:
            raise UsageError("one-format", "Only one format fits on stdout.", "Give --format, or a folder.")
        typer.echo(exports.render(record, form.value), nl=False)
        return
    folder = record_file.parent if out is None else Path(out)
    forms = exports.FORMATS if form is Format.ALL else (form.value,)
    for name in forms:
        typer.echo(str(exports.write_format(record, name, folder)))
