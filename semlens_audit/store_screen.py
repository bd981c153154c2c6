"""What a store holds and what would be removed from it, as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semlens_audit.memory import show_size
from semlens_audit.store_contents import Contents
from semlens_audit.store_upkeep import Collected

__all__ = ["print_collected", "print_contents"]


def print_contents(found: Contents, console: Console | None = None) -> None:
    """Print what a store holds; default: on stdout."""
    console = console or Console(highlight=False)
    free = f", {show_size(found.free)} of it free" if found.free else ""
    console.print(Text(f"{found.path}: {show_size(found.bytes)}{free}; schema {found.version}, by semlens-audit {found.tool}"))
    stages = _table("stage", "key", "begun", "state", "rows")
    asked = any(stage.audits is not None for stage in found.stages)
    if asked:
        stages.add_column("needed by")
    for stage in found.stages:
        state = "complete" if stage.complete else f"{stage.done} of {stage.total}"
        rows = ", ".join(f"{count:,} {table}" for table, count in stage.rows.items()) or "–"
        cells = [stage.name, stage.key[:12], stage.begun[:16].replace("T", " "), state, rows]
        cells += [", ".join(stage.audits or ()) or "no audit given"] if asked else []
        stages.add_row(*map(Text, cells))
    console.print(stages)
    tables = _table("table", "rows", "size")
    for table in found.tables:
        if table.rows:
            tables.add_row(*map(Text, [table.name, f"{table.rows:,}", show_size(table.bytes)]))
    console.print(tables)
    for audit, at in found.audits.items():
        console.print(Text(f"audit {audit}: last used {at.replace('T', ' ')} UTC", style="dim"))


def print_collected(found: Collected, console: Console | None = None) -> None:
    """Print what was removed, or would be; default: on stdout."""
    console = console or Console(highlight=False)
    if not found.removals:
        console.print(Text("Every row of the store is needed."))
    tables = _table("table", "removed" if found.done else "to remove", "of")
    for removal in found.removals:
        tables.add_row(*map(Text, [removal.table, f"{removal.rows:,}", f"{removal.of:,}"]))
    if found.removals:
        console.print(tables)
    if found.stages:
        names = ", ".join(f"{name} x {count}" if count > 1 else name for name, count in found.stages.items())
        console.print(Text(f"stages: {names}", style="dim"))
    if found.after is not None:
        console.print(Text(f"{found.path}: {show_size(found.before)} before, {show_size(found.after)} now."))
        return
    console.print(Text(f"{found.path}: {show_size(found.before)}. Nothing has been removed; --yes does it, and compacts the file."))
    for audit, count in found.lacking.items():
        console.print(Text(f"The index of {audit} lacks {count} stages: it was begun, or made by another version or for other settings."))
    for audit in found.left_out:
        console.print(Text(f"The store has served the audit {audit} too: give its file with --keep, or its id with --forget."))


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="dim", expand=False)
    for name in names:
        number = names[0] == "table" and name != "table"
        table.add_column(name, justify="right" if number else "left", no_wrap=name in {"stage", "key", "begun"})
    return table
