"""Looking at a model before it is audited: `layers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from semlens_audit.cli.shell import AllowCode, AsJson, print_json, read_plan, verb
from semlens_audit.errors import UsageError

__all__ = ["layers"]


@verb(
    reads_audits=True,
    rich_help_panel="Write",
    epilog="Example: semlens-audit layers timm:resnet50, or semlens-audit layers audits/phantom-clean.yaml",
)
def layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="AUDIT.yaml|SOURCE:NAME",
            help="Audit file, or a model: timm:NAME, torchvision:NAME, open_clip:DIRECTORY, export:FILE.pt2.",
        ),
    ],
    size: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Side of the square input, pixels; default: what the model says, else 224.")
    ] = None,
    argument: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the architecture, e.g. num_classes=2. Repeatable.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every layer, not only stages and blocks.")] = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """List the layers of a model: what of it can be audited, what that costs, and what to begin with.

    In the order of execution, each with its components and their places, its share of the operations of a forward pass, the share
    until its output is there, and the number of crops that auditing it takes. Marked are the layers to begin with (●) and those that
    the audit names (○); for these, the attribution that applies is told. Needs no data.
    """
    from semlens_audit import layer_listing, layer_screen

    path = Path(model)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        if size is not None or argument:
            raise UsageError("unused-option", "--size and --argument are for models by name; the audit file says both.", "Leave them out.")
        listing = layer_listing.list_audit(read_plan(path), allow_code=allow_code)
    else:
        listing = layer_listing.list_architecture(model, size, _arguments(argument or []), allow_code=allow_code)
    if as_json:
        print_json(listing.values())
    else:
        layer_screen.print_layers(listing, everything=everything)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long for a file's name
        return False


def _arguments(given: list[str]) -> dict[str, Any]:
    """``KEY=VALUE`` as arguments; a value that is no JSON is text."""
    arguments: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError("bad-argument", f"`{text}` is not KEY=VALUE.", "Write e.g. --argument num_classes=2.")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments
