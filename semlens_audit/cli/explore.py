"""Exploring an index: `components`, `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, AuditFile, print_json, read_plan, say_ties, verb
from semlens_audit.errors import UsageError

__all__ = ["components", "search"]


Layer = Annotated[str | None, typer.Option(help="Only this layer of the audit; default: all of them.")]


@verb(
    rich_help_panel="Explore",
    epilog="Example: semlens-audit components audits/phantom-shortcut.yaml --layer layer3 --class melanoma --top 5",
)
def components(
    audit: AuditFile,
    layer: Layer = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of the spec whose relevance orders them; default: the first.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Components of each layer.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the components that carry most of a class's relevance.

    Reads the index that [cyan]index[/] or [cyan]run[/] has built, and nothing else. After a [cyan]run[/] with the same spec and
    audit, the concept that each component was assigned to stands beside it.
    """
    from semlens_audit import explore, results, screen

    plan = read_plan(audit)
    chosen = class_name or next(iter(plan.spec.classes))
    with explore.Explorer(plan) as explorer:
        rows = explorer.components(layer=layer, class_name=class_name, top=top)
        say_ties(explorer)
    assigned = results.assigned(plan, chosen)
    if as_json:
        print_json(screen.component_values(rows, assigned))
    else:
        screen.print_components(rows, chosen, assigned)


@verb(
    rich_help_panel="Explore",
    epilog='Example: semlens-audit search audits/phantom-shortcut.yaml "ruler marks" --without "dark hair" --html found.html',
)
def search(
    audit: AuditFile,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for, in plain words.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what this image shows.")] = None,
    box: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Only this part of the image, in pixels of it.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="LAYER:COMPONENT", help="Look for components that mean the same as this one.")
    ] = None,
    without: Annotated[str | None, typer.Option(metavar="TEXT", help="What is not meant, in plain words.")] = None,
    without_image: Annotated[Path | None, typer.Option(help="What is not meant, as an image.")] = None,
    weight: Annotated[float, typer.Option(help="How much a text counts beside an image or a component.")] = 1.0,
    layer: Layer = None,
    top: Annotated[int, typer.Option(min=1, help="Components to list.")] = 10,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere",
            help="Search every other index in the store too that was made with the same foundation model: of other models, of other "
            "data, of earlier settings.",
        ),
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found, with pictures, as one HTML file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the components whose meaning is nearest to a text, an image, another component, or several of them together.

    Over all layers of the audit. Reads the index and loads the foundation model, not the audited one. Each hit says whether it is
    significantly near: nearer than random reference sets come, adjusted for every component searched.

    A text needs a foundation model with a text tower; others search by image or component. The answer is exact; over many
    components a file beside the store, made by the first search, makes the next ones quick.
    """
    from semlens_audit import explore, results, screen

    plan = read_plan(audit)
    query = explore.Query(text, image, _box(box), like, without, without_image, weight)
    query.check()
    with explore.Explorer(plan) as explorer:
        found = explorer.search(query, layer=layer, top=top, everywhere=everywhere)
        say_ties(explorer)
        page = explorer.search_page(found) if html is not None else None
    if html is not None and page is not None:
        explore.write_page(html, page)
    chosen = next(iter(plan.spec.classes))
    assigned = results.assigned(plan, chosen)
    if as_json:
        print_json(screen.found_values(found, assigned, html))
    else:
        screen.print_found(found, chosen, assigned, html)


def _box(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UsageError("bad-box", f"{text!r} is no box.", "Write four numbers, in pixels of the image: --box 10,20,110,120.")
    x0, y0, x1, y1 = map(int, parts)
    return x0, y0, x1, y1
