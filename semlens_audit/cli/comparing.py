"""Models and layers side by side: `measures`, `compare`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, AuditFile, print_json, read_plan, say_ties, verb
from semlens_audit.errors import UsageError

__all__ = ["compare", "measures"]

Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write it with pictures as one HTML file.")]
ClassName = Annotated[str | None, typer.Option("--class", help="Class whose relevance counts.")]


@verb(
    reads_audits=True,
    rich_help_panel="Explore",
    epilog="Example: semlens-audit measures audits/phantom-clean.yaml audits/phantom-shortcut.yaml --html measures.html",
)
def measures(
    audits: Annotated[list[Path], typer.Argument(metavar="AUDIT.yaml...", help="Audit files whose indexes are complete.")],
    layer: Annotated[str | None, typer.Option(help="Only this layer of each audit; default: all of them.")] = None,
    class_name: ClassName = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Measure how interpretable the components of layers are: clarity, polysemanticity, redundancy.

    Each over all components, and weighted by how much relevance they carry: for one class, or for all audited classes together. Two
    intervals stand beside each value: of other samples, and the wider one of other components as well, which is the one to hold layers
    or models against each other with. What random crops reach says where a value means nothing.

    Reads the index, and nothing else.
    """
    from semlens_audit.atlas import comparison_screen, measure_pages
    from semlens_audit.atlas.measures import measure_table
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.atlas.pages import write_page

    with ExitStack() as stack:
        atlases = [stack.enter_context(Atlas(read_plan(audit))) for audit in audits]
        for atlas in atlases:
            say_ties(atlas)
        found = measure_table(atlases, layer=layer, class_name=class_name)
        if html is not None:
            write_page(html, measure_pages.measures_page(atlases, found))
    files = [str(html)] if html is not None else []
    if as_json:
        print_json({**found.model_dump(mode="json"), "files": files})
    else:
        comparison_screen.print_measures(found, files=files)


@verb(
    rich_help_panel="Explore",
    epilog="Example: semlens-audit compare audits/phantom-clean.yaml audits/phantom-shortcut.yaml --html compare.html",
)
def compare(
    audit: AuditFile,
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER.yaml", help="The audit to compare with; default: the same, for two of its layers.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the first audit; default: each that both have.")] = None,
    other_layer: Annotated[str | None, typer.Option(help="Layer of the second audit; default: the same.")] = None,
    class_name: ClassName = None,
    top: Annotated[int, typer.Option(min=1, help="Components of each list.")] = 8,
    html: Html = None,
    as_json: AsJson = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="With --json: the crops of the components that tell most, for `run --components`.")
    ] = False,
) -> None:
    """Compare what two models, two releases or two layers have learned, component by component.

    Says which components mean the same, which only one side has, which became something else, and how the relevance of a class moved
    between concepts. Similarity counts where it is beyond what random reference samples reach; changes are measured sample by sample
    where both sides saw the same data.

    Both indexes must be made with the same foundation model. Reads them, and nothing else; it decides no check: see [cyan]diff[/] for
    what a release hangs on. What [bold]--json[/] prints is what [cyan]diff[/] and [cyan]run[/] take with [bold]--components[/].
    """
    from semlens_audit.atlas import comparison_pages, comparison_screen
    from semlens_audit.atlas.comparison import compare as compared
    from semlens_audit.atlas.comparison import require_comparable
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.atlas.pages import write_page
    from semlens_audit.atlas.telling import with_portraits

    if pictures and not as_json:
        raise UsageError("pictures-in-json", "--pictures says what --json is to hold.", "Give --json as well, or --html for a page.")
    if other is None and (layer is None or other_layer is None):
        raise UsageError(
            "one-audit", "One audit has nothing to compare with.", "Name another, or two of its layers with --layer and --other-layer."
        )
    plans = (read_plan(audit), read_plan(other or audit))
    require_comparable(*plans)
    with ExitStack() as stack:
        first = stack.enter_context(Atlas(plans[0]))
        second = first if other is None else stack.enter_context(Atlas(plans[1]))
        found = compared(first, second, layer=layer, other_layer=other_layer, class_name=class_name)
        if pictures:
            found = with_portraits(first, second, found)
        if html is not None:
            write_page(html, comparison_pages.comparison_page(first, second, found, top=top))
    files = (str(html),) if html is not None else ()
    if as_json:
        print_json(found.model_copy(update={"files": files}).model_dump(mode="json"))
    else:
        comparison_screen.print_comparison(found, top=top, files=files)
