"""What every verb shares: the application, how a function becomes a verb, arguments, progress."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from semlens_audit import __version__
from semlens_audit.confinement import allowing
from semlens_audit.failures import guard
from semlens_audit.plain_text import json_text, visible

if TYPE_CHECKING:
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.plan import AuditPlan
    from semlens_audit.progress import Progress

__all__ = [
    "EXIT_CODES", "AllowCode", "AsJson", "AuditFile", "Quiet", "app", "print_json", "read_plan", "say", "say_ties", "show_progress", "verb",
]  # fmt: skip

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


def verb(
    group: typer.Typer = app, *, reads_audits: bool = False, **settings: Any
) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Register a function as a verb of `group` whose failures become messages and exit codes.

    A verb that takes an `AuditFile`, or says that it `reads_audits`, also takes ``--allow-path``.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*arguments: Any, allow_path: list[Path] | None = None, **options: Any) -> None:
            command = ["semlens-audit", *sys.argv[1:]]
            with allowing(allow_path or ()):
                raise typer.Exit(int(guard(lambda: function(*arguments, **options), command)))

        signature, hints = inspect.signature(function), get_type_hints(function, include_extras=True)
        if reads_audits or AuditFile in hints.values():
            option = inspect.Parameter("allow_path", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=AllowPath)
            known = [one.replace(annotation=hints[name]) for name, one in signature.parameters.items()]
            guarded.__signature__ = signature.replace(parameters=[*known, option])  # type: ignore[attr-defined]
            guarded.__annotations__ = {**hints, "allow_path": AllowPath}

        # the help text flows over the terminal's width; only blank lines part paragraphs
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        group.command(help="\n\n".join(" ".join(text.split()) for text in paragraphs), **settings)(guarded)
        return guarded

    return register


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
AllowPath = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Folder outside of the audit's own that the audit may read and write too. Repeatable; also "
        "$SEMLENS_AUDIT_ALLOW_PATHS.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def say(text: str, *, err: bool = False) -> None:
    """Print a line; hidden characters in it are written out."""
    typer.echo(visible(text), err=err)


def say_ties(atlas: Atlas) -> None:
    """Say on stderr where the reference samples of an index are no choice, see `semlens_audit.ties`."""
    from semlens_audit.ties import remark, tied_of

    said = remark(tied_of(atlas.layers.values()), atlas.plan.audit.measurement)
    if said:
        say(said, err=True)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json_text(value))


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


def read_plan(audit: Path) -> AuditPlan:
    """The plan of an audit file, checked against its spec."""
    from semlens_audit import spec

    return spec.read_plan(audit)


@contextmanager
def show_progress(quiet: bool) -> Iterator[Progress]:
    """Give bars on a terminal, lines elsewhere, nothing where quiet is wanted; all of it on stderr."""
    from semlens_audit.progress import LineProgress, RichProgress, SilentProgress

    if quiet:
        yield SilentProgress()
    elif sys.stderr.isatty():
        from rich.console import Console

        with RichProgress(Console(stderr=True)) as bars:
            yield bars
    else:
        yield LineProgress(sys.stderr)
