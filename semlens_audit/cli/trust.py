"""Trust in the instrument: `qualify`."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.shell import AsJson, Quiet, print_json, say, show_progress, verb
from semlens_audit.errors import ExitCode
from semlens_audit.failures import print_problems

__all__ = ["qualify"]


Cost = "What it costs, instead of what the quick or the full part is made of"


@verb(rich_help_panel="Trust", epilog="Example: semlens-audit qualify --quick --out try-it")
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
    with show_progress(quiet) as progress:
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
            announce=None if quiet else functools.partial(say, err=True),
        )
    print_problems(outcome.problems)
    if as_json:
        print_json(certify.summary(outcome))
    else:
        certify.print_rates(outcome)
    return ExitCode.INCOMPLETE if outcome.problems else ExitCode.SATISFIED
