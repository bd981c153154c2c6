"""Naming components: `label`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semlens_audit.cli.shell import AsJson, AuditFile, Quiet, print_json, read_plan, say, say_ties, show_progress, verb
from semlens_audit.errors import UsageError

if TYPE_CHECKING:
    from semlens_audit.atlas.candidates import Candidates
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.progress import Progress

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
    candidates: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="A program that proposes words, such as one with a captioning model: it is shown grids of the crops of each component "
            "listed. Without --vocabulary, labels are chosen from its words alone. Default: none.",
        ),
    ] = None,
    candidate_seconds: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="Longest wait for an answer of that program, seconds.")
    ] = 300.0,
    save_candidates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write its words as a vocabulary file, to use them again without the program.")
    ] = None,
    leave_out: Annotated[
        int,
        typer.Option(
            min=0, help="Reference samples, the first, that the words were chosen by looking at: labels are tested on the others."
        ),
    ] = 0,
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

    With [bold]--candidates[/], a program of yours is started, without a shell. It writes a line {"name": "...", "version": "..."}, then
    reads lines {"layer", "component", "positive", "contrastive"} with the paths of PNG grids of three by three crops (contrastive: null
    where the audit has none) and answers each with a line {"words": ["...", ...]}. It sees pictures of your data: mind where it sends
    them. What it has been shown is left out when its words are tested.
    """
    from semlens_audit.atlas import label_pages, labelling
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.atlas.pages import write_page
    from semlens_audit.atlas.vocabulary import joined

    if save_candidates is not None and candidates is None:
        raise UsageError("no-candidates", "There are no candidates to write without --candidates.", "Name the program as well.")
    plan = read_plan(audit)
    words = labelling.chosen_vocabulary(plan, vocabulary or ()) if vocabulary or candidates is None else None
    with Atlas(plan) as atlas, show_progress(quiet) as progress:
        proposed = None
        if candidates is not None:
            asked = labelling.most_relevant(atlas, layer, class_name, components or _SHOWN)
            proposed = _proposed(atlas, candidates, candidate_seconds, asked, save_candidates, progress)
            words = joined([proposed.vocabulary(), *([words] if words is not None else [])])
        assert words is not None
        count = components if components is not None else None if as_json or csv is not None else _SHOWN
        found = labelling.label(
            atlas, words, layer=layer, class_name=class_name, top=top, level=level, count=count, leave_out=leave_out,
            candidates=proposed, progress=progress,
        )  # fmt: skip
        say_ties(atlas)
        for note in found.notes:
            say(note, err=True)
        shown = found if components is not None else labelling.first(found, _SHOWN)
        if html is not None:
            write_page(html, label_pages.label_page(atlas, shown))
    if csv is not None:
        write_page(csv, labelling.csv_text(found))
    files = tuple(str(path) for path in (csv, html, save_candidates) if path is not None)
    if as_json:
        print_json(labelling.values(found) | {"files": list(files)})
    else:
        label_pages.print_labels(shown, files)


def _proposed(
    atlas: Atlas, command: str, seconds: float, asked: dict[str, list[int]], file: Path | None, progress: Progress
) -> Candidates:
    """What a program proposes for some components, written as a vocabulary where a file is named."""
    from semlens_audit.atlas import candidates as proposals
    from semlens_audit.atlas.candidate_program import CandidateProgram
    from semlens_audit.atlas.pages import write_page

    proposals.require_text(atlas)
    if file is not None:
        proposals.check_target(file)
    with CandidateProgram(command, seconds) as program:
        found = proposals.propose(atlas, program, asked, progress)
    if file is not None:
        write_page(file, proposals.vocabulary_text(found))
    return found
