"""What a class rests on: `describe`, `draft`."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semlens_audit.cli.compute import Device, execution
from semlens_audit.cli.shell import (
    AllowCode,
    AsJson,
    AuditFile,
    Quiet,
    print_json,
    read_plan,
    say,
    say_ties,
    show_progress,
    verb,
)
from semlens_audit.errors import UsageError

if TYPE_CHECKING:
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.progress import Progress
    from semlens_audit.records import AuditRecord

__all__ = ["describe", "draft"]

ClassName = Annotated[str, typer.Argument(metavar="CLASS", help="Class of the spec, or what the model calls it.")]
Layer = Annotated[str | None, typer.Option(help="Only this layer of the audit; default: all of them.")]
Vocabulary = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME|FILE", help="Label components with these words; see [cyan]label[/]. Repeatable. Default: no labels."),
]
Level = Annotated[float, typer.Option(min=0.0001, max=0.5, help="False-discovery rate of labels.")]
Likeness = Annotated[float, typer.Option(help="Least mean cosine at which nameless components count as alike, above 0 to 1.")]


@verb(
    rich_help_panel="Explore",
    epilog="Example: semlens-audit describe audits/phantom-shortcut.yaml melanoma --vocabulary dermoscopy --html melanoma.html",
)
def describe(
    audit: AuditFile,
    class_name: ClassName,
    layer: Layer = None,
    vocabulary: Vocabulary = None,
    level: Level = 0.05,
    likeness: Likeness = 0.6,
    top: Annotated[int, typer.Option(min=1, help="Groups and components of each layer to list.")] = 12,
    graph: Annotated[
        bool, typer.Option("--graph", help="Add which components of the earlier layers feed the most relevant ones; loads the model.")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it with pictures as one HTML file.")] = None,
    device: Device = "auto",
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say what the decision for a class rests on: its components by relevance, grouped by what they mean.

    Components that the last run assigned to a concept stand under it; others under a label, if a vocabulary is given and a word fits;
    what is left is grouped by likeness, so that unexplained relevance gets a face. Says how many components carry how much, and whether
    they speak for the class or against it.

    Reads the index and, for labels, loads the foundation model. With [bold]--graph[/], relevance is followed from each of the most
    relevant components back to the audit's earlier layers; what was computed is kept beside the store.
    """
    from semlens_audit.atlas import description, description_pages, description_screen, graph_figure
    from semlens_audit.atlas.graph import attribution_graph
    from semlens_audit.atlas.pages import write_page

    with ExitStack() as stack:
        progress = stack.enter_context(show_progress(quiet))
        atlas, chosen, record = _opened(stack, audit, class_name, layer)
        layers = None if layer is None else [layer]
        words = _words(atlas, vocabulary, progress)
        found = description.describe(
            atlas, chosen, layers=layers, record=record, level=level, likeness=likeness, progress=progress, **words
        )
        made = None
        if graph:
            made = attribution_graph(atlas, chosen, allow_code=allow_code, execution=execution(device), progress=progress)
        if html is not None:
            write_page(html, description_pages.description_page(atlas, found, made, groups=top))
    files = [str(html)] if html is not None else []
    if as_json:
        values = description.description_values(found)
        print_json({**values, "graph": graph_figure.graph_values(made) if made is not None else None, "files": files})
    else:
        description_screen.print_description(found, top=top, graph=made, files=files)


@verb(
    rich_help_panel="Explore",
    epilog="Example: semlens-audit draft audits/ham10000.yaml melanoma --out specs/melanoma-drafted.yaml",
)
def draft(
    audit: AuditFile,
    class_name: ClassName,
    layer: Layer = None,
    vocabulary: Vocabulary = None,
    level: Level = 0.05,
    likeness: Likeness = 0.6,
    top: Annotated[int, typer.Option(min=1, max=100, help="Most concepts to propose.")] = 5,
    examples: Annotated[int, typer.Option(min=1, max=500, help="Most example images of each.")] = 10,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the whole spec with the new concepts added; default: print these alone.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Propose concepts for what carries relevance for a class and no concept of the spec explains, as YAML to edit.

    Needs a [cyan]run[/] of the audit. Components with a significant label, and nameless ones that look alike, become one concept each:
    by the word, where the foundation model reads, else by example images, the crops that drive them. Every proposal says in a comment
    where it comes from. Its role is left undecided, because only people can say what a decision may rest on: until they have,
    [cyan]lint[/] refuses the file.
    """
    from semlens_audit.atlas.description import describe as describe_class
    from semlens_audit.atlas.draft import draft_concepts, draft_values, entries
    from semlens_audit.atlas.extended_spec import with_concepts
    from semlens_audit.atlas.pages import write_page

    if out is not None and not force and (out.exists() or out.is_symlink()):
        raise UsageError("file-exists", "is there already.", "Choose another name, or add --force.", file=str(out))
    with ExitStack() as stack:
        progress = stack.enter_context(show_progress(quiet))
        atlas, chosen, record = _opened(stack, audit, class_name, layer)
        words = _words(atlas, vocabulary, progress)
        layers = None if layer is None else [layer]
        found = describe_class(
            atlas, chosen, layers=layers, record=record, level=level, likeness=likeness, progress=progress, **words
        )
        concepts = draft_concepts(atlas, found, top=top, examples=examples)
        plan = atlas.plan
    if out is not None:
        beside = out.absolute().parent == Path(plan.spec_file).absolute().parent
        pictured = any(one.examples for one in plan.spec.concepts) or any(one.examples for one in concepts)
        if not beside and plan.audit.examples_root is None and pictured:
            raise UsageError(
                "other-folder", "Example images are relative to the spec's folder.", "Write the file beside the spec.", file=str(out)
            )
        write_page(out, with_concepts(plan.spec_text, plan.spec_file, lambda indent: entries(concepts, found, indent)))
    if as_json:
        print_json({**draft_values(concepts, found), "files": [str(out)] if out is not None else []})
    elif out is None:
        typer.echo(entries(concepts, found), nl=False)
    else:
        say(str(out))
    drafted = f"{len(concepts)} {'concept' if len(concepts) == 1 else 'concepts'} drafted"
    where = "Add to the spec what belongs there" if out is None else "Next"
    then = "" if out is None else f", check it with  semlens-audit lint {shlex.quote(str(out))}  and name it in the audit's `spec:`"
    say(f"{drafted}. {where}: say what the crops show, decide the roles{then}", err=True)


def _opened(stack: ExitStack, audit: Path, class_name: str, layer: str | None) -> tuple[Atlas, str, AuditRecord | None]:
    """The index of an audit, the class by its name in the spec, and the last run of this very spec, audit and index."""
    from semlens_audit import results
    from semlens_audit.atlas.opening import Atlas, chosen_class, chosen_layers

    plan = read_plan(audit)
    named = {model: name for name, model in plan.audit.subject.class_map.items()}
    chosen = chosen_class(plan, class_name if class_name in plan.spec.classes else named.get(class_name, class_name))
    chosen_layers(plan, layer)
    atlas = stack.enter_context(Atlas(plan))
    say_ties(atlas)
    record = results.last(plan)
    if record is not None and any(record.stages.get(name, key) != key for name, key in atlas.keys.items()):
        record = None  # of another model, other data or another index
    return atlas, chosen, record


def _words(atlas: Atlas, vocabulary: list[str] | None, progress: Progress) -> dict[str, Any]:
    if not vocabulary:
        return {}
    from semlens_audit.atlas.embedded_words import embed_words
    from semlens_audit.atlas.labelling import chosen_vocabulary

    chosen = chosen_vocabulary(atlas.plan, vocabulary)
    for note in chosen.notes:
        say(note, err=True)
    return {"words": embed_words(atlas, chosen, progress), "vocabulary": chosen.name}
