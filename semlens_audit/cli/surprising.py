"""What nobody expected: `surprising`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from semlens_audit.cli.shell import AsJson, AuditFile, print_json, read_plan, say_ties, verb

if TYPE_CHECKING:
    from rich.table import Table

    from semlens_audit.atlas.surprising import Surprises

__all__ = ["surprising"]


@verb(
    rich_help_panel="Explore",
    epilog="Example: semlens-audit surprising audits/photographs.yaml --class 'English springer' --html surprising.html",
)
def surprising(
    audit: AuditFile,
    class_name: Annotated[str | None, typer.Option("--class", help="Class of the spec; default: the first.")] = None,
    layer: Annotated[str | None, typer.Option(help="Only this layer of the audit; default: all of them.")] = None,
    expected: Annotated[
        Literal["declared", "valid"],
        typer.Option(help="What is expected: every concept of the spec, or only those that the class may rest on."),
    ] = "declared",
    carried: Annotated[
        float, typer.Option(help="Relevant are the fewest components that carry this share of the class's relevance, above 0 to 1.")
    ] = 0.8,
    clarity: Annotated[float, typer.Option(help="Least clarity, -1 to 1.")] = 0.4,
    top: Annotated[int, typer.Option(min=1, help="Components to list.")] = 20,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with crops and heatmaps.")] = None,
    as_json: AsJson = False,
) -> None:
    """List components that a class's relevance flows through, whose crops have something in common, and that mean nothing expected.

    Reads the index and nothing else; no run is needed. A component is expected if it aligns with an expected concept beyond what random
    reference samples reach. What the others stand for, [cyan]label[/] and [cyan]describe[/] may say, and their pictures.
    """
    from semlens_audit.atlas import surprising as found_by
    from semlens_audit.atlas.opening import Atlas, chosen_class, chosen_layers
    from semlens_audit.atlas.pages import write_page
    from semlens_audit.atlas.surprising_pages import surprising_page

    plan = read_plan(audit)
    chosen = chosen_class(plan, class_name)
    with Atlas(plan) as atlas:
        say_ties(atlas)
        layers = chosen_layers(plan, layer)
        found = found_by.surprising(atlas, chosen, layers=layers, expected=expected, carried=carried, clarity=clarity)
        if html is not None:
            write_page(html, surprising_page(atlas, found, top))
    files = [str(html)] if html is not None else []
    if as_json:
        print_json(found_by.surprise_values(found) | {"files": files})
    else:
        _print(found, top, files)


def _print(found: Surprises, top: int, files: list[str]) -> None:
    from rich.console import Console

    from semlens_audit.atlas.surprising_pages import layer_sentences
    from semlens_audit.terminal import Text

    console = Console(highlight=False)
    for sentence in layer_sentences(found):
        console.print(Text(sentence))
    if found.found:
        console.print()
        console.print(_table(found, top))
    if len(found.found) > top:
        console.print(Text(f"and {len(found.found) - top:,} more: --top {len(found.found)} lists all", style="dim"))
    for path in files:
        console.print(Text(path, style="cyan"), soft_wrap=True)


def _table(found: Surprises, top: int) -> Table:
    from rich.table import Table

    from semlens_audit.terminal import Text
    from semlens_audit.wording import format_number

    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    for name in ("component", "relevance", "interval", "clarity", "nearest expected", "z", "means", "first sample"):
        table.add_column(name, justify="right" if name in ("relevance", "interval", "clarity", "z") else "left", overflow="fold")
    for one in found.found[:top]:
        table.add_row(
            *map(
                Text,
                (
                    f"{one.layer}:{one.component}",
                    f"{100 * one.share:.1f} %",
                    f"{100 * one.interval.low:.1f}–{100 * one.interval.high:.1f} %",
                    format_number(one.clarity, 2),
                    one.nearest or "–",
                    "–" if one.z is None else format_number(one.z, 1, sign=True),
                    one.means or "–",
                    Path(one.references[0].sample).name if one.references else "–",
                ),
            )
        )
    return table
