"""Looking after a store: `store info`, `store check`, `store gc`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semlens_audit.cli.compute import MaxMemory, execution
from semlens_audit.cli.shell import AsJson, app, print_json, read_plan, say, verb
from semlens_audit.errors import ExitCode

if TYPE_CHECKING:
    from semlens_audit.plan import AuditPlan

__all__ = ["check", "gc", "info", "store"]

store = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look into the store of an index, check it, and remove what no audit needs any more.",
)
app.add_typer(store, name="store", rich_help_panel="Explore")

Target = Annotated[Path, typer.Argument(metavar="AUDIT.yaml|STORE", help="Audit file whose store is meant, or the store itself.")]
Keep = Annotated[list[Path] | None, typer.Option("--keep", metavar="AUDIT.yaml", help="Another audit of the same store. Repeatable.")]


def _target(target: Path, keep: list[Path] | None = None) -> tuple[Path, list[AuditPlan]]:
    """The store, and the audits that were named."""
    from semlens_audit.paths import store_path

    files = [target] if target.suffix in {".yaml", ".yml"} else []
    plans = [read_plan(file) for file in (*files, *(keep or ()))]
    return (store_path(plans[0]) if files else target), plans


@verb(store, name="info", reads_audits=True, epilog="Example: semlens-audit store info audits/phantom-shortcut.yaml")
def info(target: Target, keep: Keep = None, as_json: AsJson = False) -> None:
    """List what a store holds: stages, rows, what they take on the disk, and the audits that it has served.

    Given audits, it says which stages they need; the others are of older settings, or of other audits.
    """
    from semlens_audit import store_screen, store_upkeep

    path, plans = _target(target, keep)
    found = store_upkeep.info(path, plans)
    if as_json:
        print_json(asdict(found))
    else:
        store_screen.print_contents(found)


@verb(store, name="check", reads_audits=True, epilog="Example: semlens-audit store check audits/phantom-shortcut.yaml")
def check(
    target: Target,
    mend: Annotated[
        bool, typer.Option("--mend", help="Remove what is damaged; the next [cyan]index[/] computes it again.")
    ] = False,
    as_json: AsJson = False,
) -> ExitCode:
    """Check that a store is whole: rows, references, vectors, digests and the chain of the run log.

    Exits with 6 if anything is damaged, and says how to mend it.
    """
    from semlens_audit import store_upkeep

    path, _ = _target(target)
    settled, found = store_upkeep.mend(path) if mend else (0, store_upkeep.check(path))
    if as_json:
        damages = [{"where": one.where, "what": one.what, "mendable": bool(one.remedy)} for one in found]
        print_json({"store": str(path), "mended": settled, "damages": damages})
        return ExitCode.INTEGRITY if found else ExitCode.SATISFIED
    if settled:
        say(f"{path}: {settled} damages removed; `semlens-audit index` computes again what they were in.")
    if found:
        raise store_upkeep.complaint(path, found)
    say(f"{path}: whole.")
    return ExitCode.SATISFIED


@verb(store, name="gc", reads_audits=True, epilog="Example: semlens-audit store gc audits/phantom-shortcut.yaml --yes")
def gc(
    target: Target,
    keep: Keep = None,
    forget: Annotated[
        list[str] | None,
        typer.Option("--forget", metavar="ID", help="Id of an audit that the store has served and no longer needs to. Repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only listed.")] = False,
    max_memory: MaxMemory = None,
    as_json: AsJson = False,
) -> None:
    """Remove what the given audits do not need, and give the space back.

    Stages of older settings, embeddings that nothing refers to, and cached measurements go. What stays is the same to the bit, and so
    is the run log. Interrupted at any moment, nothing is lost.
    """
    from semlens_audit import store_screen, store_upkeep

    path, plans = _target(target, keep)
    found = store_upkeep.collect(
        path, plans, forget=forget or (), really=yes, max_memory=execution(max_memory=max_memory).max_memory
    )
    if as_json:
        print_json(asdict(found))
    else:
        store_screen.print_collected(found)
