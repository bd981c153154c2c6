"""Writing specs: `init`, `lint`, `schema`."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, print_json, say, verb
from semlens_audit.errors import ExitCode
from semlens_audit.failures import print_problems

__all__ = ["init", "lint", "schema"]


class SchemaName(StrEnum):
    """Documents that a JSON Schema is published for."""

    SPEC = "spec"
    AUDIT = "audit"
    CATALOGUE = "catalogue"
    WAIVERS = "waivers"
    RECORD = "record"


@verb(rich_help_panel="Write", epilog="Example: semlens-audit init audits-of-mine --name moles")
def init(
    directory: Annotated[Path, typer.Argument(help="Folder to write into; made where it does not exist.")] = Path(),
    name: Annotated[str, typer.Option(help="Id of the new spec and audit: lower-case letters, digits, - and _.")] = "my-audit",
) -> None:
    """Write a commented spec and audit to start from.

    Every key is explained where it stands. Existing files are never overwritten. Fill in the model and the data, then let
    [cyan]semlens-audit lint[/] tell what is missing.
    """
    from semlens_audit import scaffold

    written = scaffold.write(directory, name)
    for path in written:
        say(str(path))
    audit = next((path for path in written if path.parent.name == "audits"), written[-1])
    say(f"Next: edit them, then  semlens-audit lint {shlex.quote(str(audit))}", err=True)


@verb(
    reads_audits=True,
    rich_help_panel="Write",
    epilog="Example: semlens-audit lint specs/*.yaml audits/*.yaml. Exit code 0: valid; 2: not.",
)
def lint(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.yaml...", help="Spec and audit files, in any mixture.")],
    as_json: AsJson = False,
) -> ExitCode:
    """Report every problem of specs and audits at once.

    Each as [bold]file:line:column[/] with what to write instead. Reads no weights and no images; an audit is checked together
    with the spec it names.
    """
    from semlens_audit import spec

    problems = spec.lint(files)
    if as_json:
        rows = [
            {
                "slug": problem.slug,
                "message": problem.message,
                "hint": problem.hint,
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
            }
            for problem in problems
        ]
        print_json(rows)
    elif problems:
        print_problems(problems)
    else:
        say(f"{len(files)} file{'s' if len(files) > 1 else ''}: no problem found.")
    return ExitCode.USAGE if problems else ExitCode.SATISFIED


@verb(rich_help_panel="Write", epilog="Example: semlens-audit schema spec > spec.schema.json")
def schema(
    document: Annotated[SchemaName, typer.Argument(help="Which document's schema.")],
) -> None:
    """Print the JSON Schema of a spec, an audit, a catalogue of controls, waivers or a record.

    For editors (completion and checking while you type) and for programs that read [bold]results.json[/].
    """
    if document is SchemaName.RECORD:
        from semlens_audit.records import AuditRecord

        text = AuditRecord.model_json_schema()
    elif document is SchemaName.WAIVERS:
        from semlens_audit import waivers

        text = waivers.schema()
    else:
        from semlens_audit import spec

        text = spec.schemas()[document.value]
    print_json(text)
