"""The verb ``qualify``: choose who takes part, carry the campaign out, write certificate and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semlens_audit import report
from semlens_audit.certificate import ALL, Qualification
from semlens_audit.errors import AuditError, Problem, UsageError
from semlens_audit.progress import Progress
from semlens_audit.qualification import pages
from semlens_audit.qualification.campaign import Campaign, Parameters
from semlens_audit.qualification.entrants import Entrant, Recipe, full, quick
from semlens_audit.qualification.rates import AIMS
from semlens_audit.qualification.worlds import available
from semlens_audit.standing import shown

__all__ = ["FULL", "QUICK", "Outcome", "certify", "choose", "cost", "print_rates", "summary"]

FULL = Parameters()
"""What the full qualification costs: about two minutes of one processor for each of some thirty members of each world."""
QUICK = Parameters(
    recipe=Recipe(renders=1200, epochs=0.7), scenes=120, samples=500, repeats=0, measurement={"intervention": "none"}
)
"""What the quick part costs: minutes. Nothing is switched off, which changes no finding."""


@dataclass(frozen=True)
class Outcome:
    """What a qualification came to.

    Parameters
    ----------
    qualification
        The certificate.
    files
        What was written, ``qualification.json`` first.
    problems
        Why a PDF that was asked for is missing.
    """

    qualification: Qualification
    files: tuple[Path, ...]
    problems: tuple[Problem, ...] = ()


def cost(
    *,
    brief: bool,
    renders: int | None = None,
    epochs: float | None = None,
    scenes: int | None = None,
    samples: int | None = None,
    repeats: int | None = None,
) -> Parameters:
    """Parameters of the quick or the full part, with those named put in their place; see `Parameters` and `Recipe`."""
    usual = QUICK if brief else FULL
    recipe = {name: value for name, value in {"renders": renders, "epochs": epochs}.items() if value is not None}
    named = {"scenes": scenes, "samples": samples, "repeats": repeats}
    return replace(
        usual,
        recipe=replace(usual.recipe, **recipe),  # type: ignore[arg-type]
        **{name: value for name, value in named.items() if value is not None},  # type: ignore[arg-type]
    )


def choose(parameters: Parameters, *, brief: bool, only: Sequence[str] = (), members: int | None = None) -> tuple[Entrant, ...]:
    """Who takes part.

    Parameters
    ----------
    brief
        Whether the quick part is asked for.
    only
        Words of which a model's name has to hold at least one; empty: any name will do.
    members
        No more models than this.

    Raises
    ------
    UsageError
        ``no-members``: no model is left.
    """
    worlds = available()
    everyone = quick(worlds, parameters.recipe) if brief else full(worlds)
    found = [
        entrant if entrant.shipped or brief else replace(entrant, recipe=parameters.recipe)
        for entrant in everyone
        if not only or any(word in entrant.name for word in only)
    ]
    if not found:
        names = ", ".join(entrant.name for entrant in everyone[:6])
        raise UsageError(
            "no-members",
            f"No model of the qualification has {' or '.join(map(repr, only))} in its name.",
            f"Names are like: {names}.",
        )
    return tuple(found[:members])


def certify(
    entrants: Sequence[Entrant],
    parameters: Parameters,
    *,
    brief: bool,
    work: Path,
    out: Path,
    pdf: bool,
    command: str,
    jobs: int | None = None,
    progress: Progress,
    announce: Callable[[str], None] | None = None,
) -> Outcome:
    """Carry a qualification out and write its certificate and report.

    Parameters
    ----------
    entrants, parameters, work, jobs, progress, announce
        See `semlens_audit.qualification.campaign.Campaign`.
    brief
        Whether it is the quick part.
    out
        Folder of certificate and report.
    pdf
        Whether to write the PDF too; the rest stands even where it cannot be made.
    command
        Command that reproduces it.
    """
    campaign = Campaign(entrants, parameters, work, jobs=jobs)
    results = campaign.run(progress=progress, announce=announce)
    qualification = campaign.qualification(results, quick=brief, command=command)
    out.mkdir(parents=True, exist_ok=True)
    certificate = out / "qualification.json"
    report.replace(certificate, (qualification.model_dump_json(indent=1) + "\n").encode("utf-8"))
    files = [certificate, *pages.write(qualification, out, pdf=False)]
    if not pdf:
        return Outcome(qualification, tuple(files))
    try:
        files = [certificate, *pages.write(qualification, out, pdf=True)]
    except AuditError as error:
        return Outcome(qualification, tuple(files), error.problems)
    return Outcome(qualification, tuple(files))


def summary(outcome: Outcome) -> dict[str, Any]:
    """What a program reads of a qualification: all rates of all groups, and the files."""
    qualification = outcome.qualification
    return {
        "schema_version": qualification.schema_version,
        "sha256": qualification.sha256,
        "quick": qualification.quick,
        "models": len(qualification.members),
        "pairs": len(qualification.pairs),
        "headline": pages.headline(qualification),
        "groups": [group.model_dump(mode="json") for group in qualification.groups],
        "files": [str(path) for path in outcome.files],
    }


def print_rates(outcome: Outcome) -> None:
    """Print the operating characteristics, with what falls short of its aim."""
    from rich.console import Console
    from rich.table import Table

    qualification = outcome.qualification
    worlds = [world.name for world in qualification.worlds]
    groups = [(name, pages.best(qualification, name)) for name in (ALL, *(worlds if len(worlds) > 1 else ()))]
    table = Table(title="Operating characteristics, 95 % intervals", title_justify="left")
    table.add_column("rate")
    for name, _ in groups:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("aim")
    first = groups[0][1]
    for rate in first.rates if first is not None else ():
        cells = [shown(group.rate(rate.name)) if group is not None else "" for _, group in groups]
        table.add_row(rate.name.replace("_", " "), *cells, "" if rate.name not in AIMS else pages.judged(rate))
    console = Console()
    console.print(table)
    console.print(pages.headline(qualification))
    for path in outcome.files:
        console.print(str(path), highlight=False, soft_wrap=True)
