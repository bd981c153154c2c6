"""Naming components: `label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, AuditFile, Quiet, print_json, read_plan, say, say_ties, show_progress, verb

__all__ = ["label"]

_SHOWN = 20
"""Components of each layer on the screen and on the page unless a number is asked for."""


@verb(
    rich_help_panel="Explore",
    epilog="Example: semlens-audit label audits/phantom-shortcut.yaml --vocabulary dermoscopy --html labels.html",
)
def label(
    audit: AuditFile,
    layer: Annotated[str | None, typer.Option(help="Only this layer of the audit; default: all of them.")] = None,
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Words to choose from: a file with a word on each line, a table word,image,box with example images (.csv), "
            "[cyan]general[/] (20,000 words), [cyan]dermoscopy[/], or [cyan]spec[/] for the concepts of the spec. Repeatable. "
            "Default: general; spec where the foundation model cannot read.",
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of the spec whose relevance orders them; default: the first.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="Words for each component.")] = 3,
    level: Annotated[float, typer.Option(help="False-discovery rate over the components of a layer, above 0 and below 1.")] = 0.05,
    components: Annotated[
        int | None,
        typer.Option(min=1, help=f"Components of each layer, the most relevant; default: {_SHOWN}, with --json or --csv all."),
    ] = None,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table for a spreadsheet.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with crops, heatmaps and labels.")] = None,
    quiet: Quiet = False,
) -> None:
    """Name components with the words of a vocabulary, and say where no label fits.

    A component's label is the word that its crops align with most beyond what random crops of the same data reach; it has none where
    the best word of the whole vocabulary stands out no more than chance would have it. Choose words that the foundation model was
    trained on: what others stand for is arbitrary.

    Reads the index that [cyan]index[/] or [cyan]run[/] has built. Words are embedded once and kept beside the store; only then the
    foundation model is loaded.
    """
    from semlens_audit.atlas import label_pages, labelling
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.atlas.pages import write_page

    plan = read_plan(audit)
    words = labelling.chosen_vocabulary(plan, vocabulary or ())
    with Atlas(plan) as atlas, show_progress(quiet) as progress:
        count = components if components is not None else None if as_json or csv is not None else _SHOWN
        found = labelling.label(
            atlas, words, layer=layer, class_name=class_name, top=top, level=level, count=count, progress=progress
        )
        say_ties(atlas)
        for note in found.notes:
            say(note, err=True)
        shown = found if components is not None else labelling.first(found, _SHOWN)
        if html is not None:
            write_page(html, label_pages.label_page(atlas, shown))
    if csv is not None:
        write_page(csv, labelling.csv_text(found))
    files = tuple(str(path) for path in (csv, html) if path is not None)
    if as_json:
        print_json(labelling.values(found) | {"files": list(files)})
    else:
        label_pages.print_labels(shown, files)
