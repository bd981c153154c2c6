"""The command line: parses, calls plain functions, prints, exits. The only place that exits.

Imports of anything heavier than the parser happen inside the verbs, so that ``--help`` is instant and a verdict is re-decided
from the cache without torch.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semlens_audit import __version__
from semlens_audit.errors import ExitCode
from semlens_audit.failures import guard, print_problems

if TYPE_CHECKING:
    from semlens_audit.plan import AuditPlan
    from semlens_audit.progress import Progress

__all__ = ["app", "main"]

EXIT_CODES = (
    "Exit codes: 0 every check satisfied · 1 a check not satisfied · 2 invalid command, spec or audit · 3 inconclusive · "
    "4 incomplete or failed · 5 invalid waiver · 6 integrity failure · 130 interrupted."
)

OVERVIEW = (
    "Audit what a vision model has learned.\n\n"
    "Experts write a [bold]spec[/]: which concepts a decision may rest on, which it must not, and the criterion for each. "
    "An [bold]audit[/] binds the spec to a model. [bold]run[/] measures how much of each class's relevance flows through "
    "components that mean each concept, decides, writes a report, and exits with the verdict.\n\n"
    "New here? [cyan]semlens-audit demo[/] audits two small models, one of which decides by a ruler."
)

app = typer.Typer(
    name="semlens-audit",
    help=OVERVIEW,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def _verb(**settings: Any) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a function as a verb whose failures become messages and exit codes."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def verb(*arguments: Any, **options: Any) -> None:
            command = ["semlens-audit", *sys.argv[1:]]
            raise typer.Exit(int(guard(lambda: function(*arguments, **options), command)))

        # the help text flows over the terminal's width; only blank lines part paragraphs
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        app.command(help="\n\n".join(" ".join(text.split()) for text in paragraphs), **settings)(verb)
        return verb

    return register


def main() -> None:
    """Entry point of the console script; exits with an `ExitCode`."""
    # threads of torch that wait by spinning slow a shared machine down by an order of magnitude: let them sleep
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(prog_name="semlens-audit")
    except SystemExit as leaving:
        # an interrupt before a verb began: typer exits with 130 and says nothing
        raise leaving from None
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.INTERRUPTED))


# -- arguments that several verbs share ------------------------------------------------------------------------------------

AuditFile = Annotated[
    Path, typer.Argument(metavar="AUDIT.yaml", help="Audit file: binds a spec to a model, its data and layers.")
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Permit a model that is defined by your own Python code to be executed. Never needed for weights."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


class SchemaName(StrEnum):
    """Documents that a JSON Schema is published for."""

    SPEC = "spec"
    AUDIT = "audit"
    RECORD = "record"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semlens-audit {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


# -- writing specs ------------------------------------------------------------------------------------------------------------


@_verb(rich_help_panel="Write", epilog="Example: semlens-audit init audits-of-mine --name moles")
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
        typer.echo(str(path))
    audit = next((path for path in written if path.parent.name == "audits"), written[-1])
    typer.echo(f"Next: edit them, then  semlens-audit lint {shlex.quote(str(audit))}", err=True)


@_verb(rich_help_panel="Write", epilog="Example: semlens-audit lint specs/*.yaml audits/*.yaml. Exit code 0: valid; 2: not.")
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
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif problems:
        print_problems(problems)
    else:
        typer.echo(f"{len(files)} file{'s' if len(files) > 1 else ''}: no problem found.")
    return ExitCode.USAGE if problems else ExitCode.SATISFIED


@_verb(rich_help_panel="Write", epilog="Example: semlens-audit schema spec > spec.schema.json")
def schema(
    document: Annotated[SchemaName, typer.Argument(help="Which document's schema.")],
) -> None:
    """Print the JSON Schema of a spec, an audit or a record.

    For editors (completion and checking while you type) and for programs that read [bold]results.json[/].
    """
    if document is SchemaName.RECORD:
        from semlens_audit.records import AuditRecord

        text = AuditRecord.model_json_schema()
    else:
        from semlens_audit import spec

        text = spec.schemas()[document.value]
    typer.echo(json.dumps(text, indent=2, ensure_ascii=False))


# -- auditing -----------------------------------------------------------------------------------------------------------------


@_verb(rich_help_panel="Audit", epilog="Example: semlens-audit index audits/phantom-clean.yaml")
def index(audit: AuditFile, allow_code: AllowCode = False, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Build the concept index of an audit: the heavy part, cached.

    Runs the model over the data, finds each component's reference samples, crops and embeds them, and attributes every class
    to components. Writes the store named in the audit (DuckDB). Interrupted or killed, it resumes where it was; finished
    stages are reused as long as weights, data and settings are the same to the byte. [cyan]run[/] does this by itself.
    """
    from semlens_audit import index as concept_index
    from semlens_audit import paths
    from semlens_audit.data import open_data
    from semlens_audit.store import Store

    plan = _plan(audit)
    path = paths.store_path(plan)
    with _progress(quiet) as progress, Store.open(path) as store:
        data = open_data(plan, store.file_digest)
        concept_index.build(plan, data, store, allow_code=allow_code, progress=progress)
    size = path.stat().st_size
    if as_json:
        typer.echo(json.dumps({"audit": plan.audit.audit, "store": str(path), "bytes": size}, indent=2))
    else:
        typer.echo(f"Index complete: {path} ({size / 1e6:.1f} MB)")


@_verb(rich_help_panel="Audit", epilog=f"Example: semlens-audit run audits/phantom-shortcut.yaml --pdf. {EXIT_CODES}")
def run(
    audit: AuditFile,
    allow_code: AllowCode = False,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Also render the report as PDF (some seconds).")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for results and report, instead of the one the audit names.")] = None,
    qualification: Annotated[
        Path | None, typer.Option(help="The qualification.json whose error rates the report states, instead of the tool's own.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Audit a model, write the report, exit with the verdict.

    Builds what is missing of the index, measures, holds each measurement against its acceptance criterion, and writes
    [bold]results.json[/] (the record) and [bold]report.html[/] into the audit's reports folder. Changing a criterion and
    running again re-decides from the cache within seconds.
    """
    from semlens_audit import results, screen

    plan = _plan(audit)
    with _progress(quiet) as progress:
        outcome = results.carry_out(
            plan, allow_code=allow_code, pdf=pdf, out=out, qualification=qualification, progress=progress
        )
    print_problems(outcome.problems)
    if as_json:
        typer.echo(
            json.dumps(screen.summary(outcome.record, outcome.files, int(outcome.exit_code)), indent=2, ensure_ascii=False)
        )
    else:
        screen.print_findings(outcome.record, outcome.files)
    return outcome.exit_code


@_verb(rich_help_panel="Audit", epilog="Example: semlens-audit selftest audits/phantom-shortcut.yaml --repeats 2")
def selftest(
    audit: AuditFile,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Repeats with other seeds and on halves of the data.")] = 3,
    fast: Annotated[
        bool, typer.Option("--quick", help="Build no index again: seconds instead of minutes, and a weaker test.")
    ] = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Repeat an audit, and report how often its findings turn.

    On identical input, measured again and with its index rebuilt in a temporary store, it must give the same to the bit. With other
    seeds and on random halves of the data, findings may become inconclusive, but none should turn from satisfied to not satisfied
    or back. Exits 0 if so, 6 if identical input gave something else, 1 if a finding or the verdict turned.
    """
    from semlens_audit import selftest as repetition
    from semlens_audit.selftest_screen import print_selftest

    plan = _plan(audit)
    with _progress(quiet) as progress:
        test = repetition.selftest(plan, repeats=repeats, quick=fast, allow_code=allow_code, progress=progress)
    if as_json:
        typer.echo(json.dumps(test.model_dump(mode="json") | {"exit_code": int(test.exit_code)}, indent=2, ensure_ascii=False))
    else:
        print_selftest(test)
    return test.exit_code


@_verb(rich_help_panel="Audit", epilog="Example: semlens-audit report reports/phantom-clean/results.json --out for-the-board")
def report(
    record_file: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="Record that a run has written.")],
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Render the PDF too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default: beside the record.")] = None,
) -> None:
    """Render the report of a record again, as HTML and PDF.

    Needs neither the model nor the data nor the store: everything a reader sees is in the record. The same record gives the
    same bytes. Exits 0 when the report is written, whatever the verdict: the gate is [cyan]run[/].
    """
    from semlens_audit import engine
    from semlens_audit import report as pages

    record = engine.read_record(record_file)
    folder = out or record_file.parent
    for path in pages.write(record, folder, pdf=False):
        typer.echo(str(path))
    if pdf:
        typer.echo(str(pages.write_pdf(record, folder)))


@_verb(rich_help_panel="Audit", epilog="Example: semlens-audit demo --out try-it")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the two audits, their spec, stores and reports; files that exist there are kept.")
    ] = Path("semlens-audit-demo"),
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Render the reports as PDF too.")] = True,
    quiet: Quiet = False,
) -> ExitCode:
    """Audit two small models that come with the tool, of which one decides by a ruler.

    Both were trained on rendered images of moles; in the first one's training images a ruler lay beside nearly every
    melanoma. Takes some minutes and no network. Exits 0 when the audits came out as the truth demands: the shortcut model
    not satisfied and the ruler named, its clean twin satisfied; else 4.
    """
    from semlens_audit import demo as demonstration
    from semlens_audit import results, screen

    surprises = []
    for expected, audit in demonstration.prepare(out):
        typer.echo(f"{audit}: {expected.description}")
        with _progress(quiet) as progress:
            outcome = results.carry_out(_plan(audit), pdf=pdf, progress=progress)
        print_problems(outcome.problems)
        screen.print_findings(outcome.record, outcome.files)
        surprises += demonstration.surprises(expected, outcome.record)
    for surprise in surprises:
        typer.echo(f"Not as the truth demands: {surprise}", err=True)
    if not surprises:
        typer.echo("As the truth demands: the shortcut model is not satisfied and its clean twin is.")
    return ExitCode.INCOMPLETE if surprises else ExitCode.SATISFIED


Cost = "What it costs, instead of what the quick or the full part is made of"


@_verb(rich_help_panel="Trust", epilog="Example: semlens-audit qualify --quick --out try-it")
def qualify(
    quick: Annotated[bool, typer.Option("--quick", help="The quick part: few models, trained briefly. Minutes.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for qualification.json and the report.")] = Path("reports/qualification"),
    work: Annotated[
        Path, typer.Option(help="Folder of weights, renders, stores and results; what it holds is used again.")
    ] = Path(".semlens/qualification"),
    only: Annotated[
        list[str] | None, typer.Option(help="Only models with this in their name, e.g. transformer; may be repeated.")
    ] = None,
    members: Annotated[int | None, typer.Option(min=1, help="No more models than this.")] = None,
    renders: Annotated[int | None, typer.Option(min=64, help="Training images of each model.", rich_help_panel=Cost)] = None,
    epochs: Annotated[
        float | None, typer.Option(min=0.01, help="Share of each architecture's usual epochs.", rich_help_panel=Cost)
    ] = None,
    scenes: Annotated[int | None, typer.Option(min=2, help="Scenes that the truth is told on.", rich_help_panel=Cost)] = None,
    samples: Annotated[int | None, typer.Option(min=60, help="Test samples of each audit.", rich_help_panel=Cost)] = None,
    repeats: Annotated[
        int | None, typer.Option(min=0, help="Further audits of each model, on other test data.", rich_help_panel=Cost)
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Processes that train ahead; default: processors less one.", rich_help_panel=Cost)
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf/--no-pdf", help="Render the report as PDF too.")] = True,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Measure how often this instrument is wrong, on models whose true reliance is known.

    Trains models in rendered worlds, with known shortcuts and without; tells the true effect of every artefact by switching it
    on in the same scenes; audits every model as [cyan]run[/] does; and reports how often the verdict is right, with intervals,
    like a laboratory's calibration certificate. Interrupted or killed, it resumes with the next model. Exits 0 when it ran,
    whatever the rates: what falls short of its aim is printed as such.
    """
    from semlens_audit.qualification import certify

    parameters = certify.cost(brief=quick, renders=renders, epochs=epochs, scenes=scenes, samples=samples, repeats=repeats)
    entrants = certify.choose(parameters, brief=quick, only=only or (), members=members)
    with _progress(quiet) as progress:
        outcome = certify.certify(
            entrants,
            parameters,
            brief=quick,
            work=work,
            out=out,
            pdf=pdf,
            command=shlex.join(["semlens-audit", *sys.argv[1:]]),
            jobs=jobs,
            progress=progress,
            announce=None if quiet else functools.partial(typer.echo, err=True),
        )
    print_problems(outcome.problems)
    if as_json:
        typer.echo(json.dumps(certify.summary(outcome), indent=2, ensure_ascii=False))
    else:
        certify.print_rates(outcome)
    return ExitCode.INCOMPLETE if outcome.problems else ExitCode.SATISFIED


# -- exploring ----------------------------------------------------------------------------------------------------------------


Layer = Annotated[str | None, typer.Option(help="Only this layer of the audit; default: all of them.")]


@_verb(
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

    plan = _plan(audit)
    chosen = class_name or next(iter(plan.spec.classes))
    rows = explore.components(plan, layer=layer, class_name=class_name, top=top)
    assigned = results.assigned(plan, chosen)
    if as_json:
        typer.echo(json.dumps(screen.component_values(rows, assigned), indent=2, ensure_ascii=False))
    else:
        screen.print_components(rows, chosen, assigned)


@_verb(rich_help_panel="Explore", epilog='Example: semlens-audit search audits/phantom-shortcut.yaml "ruler marks"')
def search(
    audit: AuditFile,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for, in plain words.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what this image shows, instead of a text.")] = None,
    layer: Layer = None,
    top: Annotated[int, typer.Option(min=1, help="Components to list.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find the components whose meaning is nearest to a text or an image.

    Over all layers of the audit. Reads the index and loads the foundation model, not the audited one. A text needs a foundation
    model with a text tower.
    """
    from semlens_audit import explore, results, screen

    plan = _plan(audit)
    rows = explore.search(plan, text=text, image=image, layer=layer, top=top)
    chosen = next(iter(plan.spec.classes))
    assigned = results.assigned(plan, chosen)
    if as_json:
        typer.echo(json.dumps(screen.component_values(rows, assigned), indent=2, ensure_ascii=False))
    else:
        screen.print_components(rows, chosen, assigned)


# -- what the verbs share -----------------------------------------------------------------------------------------------------


def _plan(audit: Path) -> AuditPlan:
    from semlens_audit import spec

    return spec.read_plan(audit)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    from semlens_audit.progress import LineProgress, RichProgress, SilentProgress

    if quiet:
        yield SilentProgress()
    elif sys.stderr.isatty():
        from rich.console import Console

        with RichProgress(Console(stderr=True)) as bars:
            yield bars
    else:
        yield LineProgress(sys.stderr)
