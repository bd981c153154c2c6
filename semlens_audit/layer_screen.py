"""What `semlens-audit layers` prints."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from semlens_audit.terminal import Text

if TYPE_CHECKING:
    from semlens_audit.layer_listing import Listing
    from semlens_audit.layer_survey import LayerCost

__all__ = ["print_layers"]

_MOST_UNUSED = 6
_PLAIN = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})
"""What YAML, of either version, reads as something else than text."""


def print_layers(listing: Listing, *, everything: bool = False, console: Console | None = None) -> None:
    """Print the layers as a table, and below it what to write into an audit.

    Parameters
    ----------
    listing
        What was found.
    everything
        Every layer; else stages, blocks and what stands at the top.
    console
        Where to print; default: stdout.
    """
    console = console or Console(highlight=False)
    found = listing.found
    console.print(Text(f"{listing.model}, {found.size} x {found.size} px, {_giga(found.flops)} per image, {len(found.layers)} layers"))
    rows = found.layers if everything else listing.principal
    cells = [_cells(listing, row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for place, title in enumerate(("", "layer", "type", "output", "share", "until here", "crops")):
        # Only the type may be cut where the terminal is narrow: names are to be copied, numbers to be read.
        width = None if title == "type" else max(len(title), *(len(row[place]) for row in cells), 0)
        table.add_column(title, no_wrap=True, min_width=width, justify="right" if place > 2 else "left")
    for row in cells:
        table.add_row(Text(row[0], style="green"), *map(Text, row[1:]))
    console.print(table)
    console.print()
    if len(rows) < len(found.layers):
        console.print(Text(f"{len(found.layers) - len(rows)} more inside of these: --all lists every layer."))
    _print_notes(listing, console)


def _cells(listing: Listing, row: LayerCost) -> tuple[str, ...]:
    found, crops = listing.found, listing.crops(row)
    return (
        ("●" if row.name in listing.chosen else "") + ("○" if row.name in listing.asked else ""),
        row.name,
        row.kind,
        output(row),
        _percent(found.share(row.flops)),
        _percent(found.share(row.before)),
        "–" if crops is None else f"{crops:,}",
    )


def _print_notes(listing: Listing, console: Console) -> None:
    found = listing.found
    refused = {row.name: row.refusal for row in found.layers if row.layout is None}
    known = {row.name for row in found.layers}
    if found.unused:
        more = f" and {len(found.unused) - _MOST_UNUSED} more" if len(found.unused) > _MOST_UNUSED else ""
        console.print(Text(f"Not run as modules in a forward pass: {', '.join(found.unused[:_MOST_UNUSED])}{more}."))
    for name in listing.asked:
        if name not in known:
            console.print(Text(f"{name}, which the audit names, is no layer that is run."))
        elif name in refused:
            console.print(Text(f"{name}, which the audit names, cannot be audited: {refused[name]}"))
    alike: dict[str, list[str]] = {}
    for name, choice in listing.attribution.items():
        how = "LRP" if choice.method == "lrp" else "activation x gradient"
        alike.setdefault(f"{how}; {choice.reason}", []).append(name)
    for told, names in alike.items():
        console.print(Text(f"{', '.join(names)}: {told} (on noise{'' if listing.trained else ', with random weights'})."))
    if listing.chosen:
        console.print(Text(f"● To begin with:  layers: [{', '.join(map(_yaml, listing.chosen))}]"))
    else:
        console.print(Text("No stages or repeated blocks are found to begin with: choose layers from the list."))
    if listing.asked:
        console.print(Text(f"○ The audit names: layers: [{', '.join(map(_yaml, listing.asked))}]"))


def _yaml(name: str) -> str:
    """A layer's name as an audit file takes it: quoted where YAML would read something else, as of a number."""
    plain = _PLAIN.fullmatch(name) and name.lower() not in _WORDS
    return name if plain else json.dumps(name, ensure_ascii=False)


def output(row: LayerCost) -> str:
    """Shape of a layer's output on one image in words: channels and grid, features and tokens (prefix+grid), or units."""
    if row.layout is None:
        return "not auditable"
    if len(row.shape) == 3:
        return f"{row.shape[0]} channels {row.shape[1]}x{row.shape[2]}"
    if len(row.shape) == 2:
        before = f"{row.prefix}+" if row.prefix else ""
        return f"{row.shape[1]} features {before}{row.side}x{row.side}"
    return f"{row.shape[0]} units"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 or share == 0 else "< 1 %"


def _giga(operations: int) -> str:
    return f"{operations / 1e9:.2f} GFLOP" if operations >= 1e7 else f"{operations / 1e6:.2f} MFLOP"
