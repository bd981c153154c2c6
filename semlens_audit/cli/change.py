"""What changed between two records: `diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, say, verb

__all__ = ["diff"]

Old = Annotated[Path, typer.Argument(metavar="OLD", help="Baseline: results.json, or the PDF of a report.")]
New = Annotated[Path, typer.Argument(metavar="NEW", help="The record to compare: results.json, or the PDF of a report.")]


@verb(
    rich_help_panel="Release",
    epilog=(
        "Exit codes: 0 nothing is new or worsened · 1 a result is new or worsened · 2 refused: another spec or foundation model · "
        "3 a result that the baseline had is not comparable or gone · 6 a file is damaged.   "
        "Example: semlens-audit diff reports/phantom-clean/results.json reports/phantom-shortcut/results.json"
    ),
)
def diff(
    old: Old,
    new: New,
    components: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="COMPARE.json",
            help="What `compare OLD NEW --json` printed: says what became of the components too; once for each class.",
        ),
    ] = None,
    level: Annotated[float, typer.Option(metavar="SHARE", help="Confidence level of the differences, 0.5 to 0.999.")] = 0.95,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, as for a build server's summary.")] = False,
) -> int:
    """Say what is new, fixed, worsened or improved since an earlier record, and what is within noise.

    Results are held against each other check by check. The interval of each difference is paired where both audits saw the same
    samples, and p-values are adjusted for the number of results (Holm), so that chance alone seldom calls anything worsened. A
    result is [bold]new[/] that was satisfied and is not satisfied now, whatever the size of the difference. What was measured
    differently is not compared, with the reason. Needs neither the models nor the data.

    What [cyan]compare[/] found between the components of both models is added with [bold]--components[/], and changes no exit code.
    """
    from semlens_audit import change, change_screen
    from semlens_audit.component_sheet import compared
    from semlens_audit.errors import UsageError
    from semlens_audit.record_source import read_any

    if not 0.5 <= level <= 0.999:
        raise UsageError("bad-level", f"{level:g} is no confidence level from 0.5 to 0.999.", "Give e.g. --level 0.95.")
    if as_json and as_markdown:
        raise UsageError("one-format", "--json and --markdown exclude each other.", "Give one of them.")
    before, after = read_any(old), read_any(new)
    found = change.compare(before, after, level=level)
    if components:
        found = found.model_copy(update={"components": compared(before, after, components)})
    if as_json:
        say(found.model_dump_json(indent=1))
    elif as_markdown:
        typer.echo(change_screen.markdown(found), nl=False)
    else:
        change_screen.print_change(found)
    return int(change.exit_code(found))
