"""Exploring an index: `components`, `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, AuditFile, print_json, read_plan, verb

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
    rows = explore.components(plan, layer=layer, class_name=class_name, top=top)
    assigned = results.assigned(plan, chosen)
    if as_json:
        print_json(screen.component_values(rows, assigned))
    else:
        screen.print_components(rows, chosen, assigned)


@verb(rich_help_panel="Explore", epilog='Example: semlens-audit search audits/phantom-shortcut.yaml "ruler marks"')
def search(
    audit: AuditFile,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for, in plain words.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what this image shows, instead of a text.")] = None,
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
    as_json: AsJson = False,
) -> None:
    """Find the components whose meaning is nearest to a text or an image.

    Over all layers of the audit. Reads the index and loads the foundation model, not the audited one. A text needs a foundation
    model with a text tower. The answer is exact; over many components a file beside the store, made by the first search, makes the
    next ones quick.
    """
    from semlens_audit import explore, results, screen

    plan = read_plan(audit)
    rows = explore.search(plan, text=text, image=image, layer=layer, top=top, everywhere=everywhere)
    chosen = next(iter(plan.spec.classes))
    assigned = results.assigned(plan, chosen)
    if as_json:
        print_json(screen.component_values(rows, assigned))
    else:
        screen.print_components(rows, chosen, assigned)
