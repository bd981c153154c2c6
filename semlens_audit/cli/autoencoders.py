"""Sparse autoencoders: `sae train`, `sae info`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from semlens_audit.cli.compute import Device, MaxMemory, execution
from semlens_audit.cli.shell import AllowCode, AsJson, AuditFile, Quiet, app, print_json, say, verb
from semlens_audit.errors import UsageError

if TYPE_CHECKING:
    from semlens_audit.sae.training import Status
    from semlens_audit.sae_header import Dictionary, Training

__all__ = ["info", "train"]

_PLACES = {"all": "all vectors of the layer", "class": "tokens before the grid", "spatial": "tokens of the grid"}

sae = typer.Typer(
    help="Sparse autoencoders: train one on a layer's activations, so that its latents can be audited as components.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(sae, name="sae", rich_help_panel="Explore")


@verb(
    sae,
    epilog="Example: semlens-audit sae train audits/phantom-shortcut.yaml --layer layer3 --latents 256 --k 8 --epochs 30 "
    "--out layer3.safetensors",
)
def train(
    audit: AuditFile,
    layer: Annotated[str, typer.Option(help="Layer whose activations it reads; `semlens-audit layers` lists them.")],
    latents: Annotated[int, typer.Option(min=2, max=1_000_000, help="Latents.")],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to write.")],
    k: Annotated[int, typer.Option(min=1, help="Latents that are active at most in one place.")] = 32,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; this or --epochs.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training vectors; this or --steps.")] = None,
    tokens: Annotated[
        Literal["all", "class", "spatial"],
        typer.Option(help="Of a layer of tokens: all, those before the grid (class, registers), or those of the grid."),
    ] = "all",
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Vectors in each step.")] = 1024,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-12, max=1e3, help="To begin with; left out: 2e-4 x sqrt(2^14 / latents).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of first directions, order, and images held back.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there, and begin anew.")] = False,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a TopK sparse autoencoder on the activations of a layer, over the audit's images.

    A tenth of the images is held back to judge it by. Interrupted or killed at any moment, the same command goes on where it was and
    ends with the same bytes. A loss that is no finite number is an error; the last good state stays beside the file.

    To audit its latents, name the file in [cyan]subject.autoencoders[/] of the audit and [cyan]LAYER.sae.latents[/] among its layers.
    """
    if (steps is None) == (epochs is None):
        raise UsageError("steps-or-epochs", "Say how long to train: --steps or --epochs, not both.", "Write e.g. --epochs 20.")
    if out.suffix != ".safetensors":
        raise UsageError("bad-output", f"{out} does not end in .safetensors.", "Write e.g. --out layer3.safetensors.")
    where = execution(device, max_memory)
    from semlens_audit.data import open_data
    from semlens_audit.places import placed_in_audit
    from semlens_audit.sae.training import Settings, bare
    from semlens_audit.sae.training import train as run
    from semlens_audit.spec import read_plan
    from semlens_audit.work import Bench

    plan = read_plan(audit, check_files=False)  # the file that is going to be written may be named in it already
    settings = Settings(layer, latents, k, steps, epochs, tokens, batch, learning_rate, seed)
    with _shown(layer, quiet) as report, placed_in_audit(plan):
        bench = Bench(bare(plan), open_data(plan), allow_code=allow_code, execution=where)
        training = run(bench, settings, out, report, force=force)
    if as_json:
        print_json({"file": str(out), "latents": latents, **training.model_dump(mode="json")})
        return
    say(f"{out}: {_words(training, latents)}")
    say("\nTo audit its latents, write into the audit:\n\nsubject:")
    say(f"  autoencoders:\n    - {{layer: {layer}, file: {out.name}}}   # relative to the audit file")
    say(f"layers: [{layer}.sae.latents]\nmeasurement: {{attribution: activation_x_gradient}}")


@verb(sae, epilog="Example: semlens-audit sae info layer3.safetensors")
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="File of an autoencoder.")],
    as_json: AsJson = False,
) -> None:
    """Say what an autoencoder was trained on, and how well it does: layer, latents, explained variance on images held back, dead latents.

    Reads the header of the file and nothing else: neither the network nor torch. Of a file of another tool it says its shapes; an audit
    has to say how many of its latents are active.
    """
    from semlens_audit.sae_header import read_dictionary

    found = read_dictionary(file)
    if as_json:
        said = found.training.model_dump(mode="json") if found.training is not None else None
        print_json({"file": str(file), "width": found.width, "latents": found.latents, "training": said})
    else:
        _print(found)


def _print(found: Dictionary) -> None:
    from rich.console import Console
    from rich.table import Table

    from semlens_audit.terminal import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    rows = [("latents", f"{found.latents:,}"), ("width", f"{found.width:,}")]
    training = found.training
    if training is None:
        rows.append(("training", "not said: the file is of another tool. An audit has to say `k`."))
    else:
        rows += [
            ("layer", training.layer),
            ("active", f"at most {training.k} in one place, {training.active:.1f} on average"),
            ("reads", _PLACES[training.places]),
            ("explained variance", f"{100 * training.explained_variance:.1f} % on {training.held_back:,} images held back"),
            ("dead", f"{training.dead:,} of {found.latents:,}"),
            ("trained", f"{training.steps:,} steps of {training.batch:,} vectors of {training.samples:,} images, seed {training.seed}"),
            ("with", f"learning rate {training.learning_rate:.3g}, on {training.device}, semlens_audit {training.tool}"),
            ("network", f"SHA-256 of its tensors {training.subject}"),
            ("data", f"SHA-256 of the manifest {training.data}"),
            ("input", f"{training.preprocessing.size} x {training.preprocessing.size} px"),
        ]
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    Console(highlight=False).print(table)


def _words(training: Training, latents: int) -> str:
    return (
        f"explained variance {100 * training.explained_variance:.1f} % on {training.held_back:,} images held back, "
        f"{training.active:.1f} latents active on average, {training.dead:,} of {latents:,} dead"
    )


@contextmanager
def _shown(title: str, quiet: bool) -> Iterator[Callable[[Status], None]]:
    """A bar with what is known of the training on a terminal, a line now and then elsewhere; on stderr."""
    if quiet:
        yield lambda _status: None
        return
    if not sys.stderr.isatty():
        yield _line(title)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # what is learned is what one watches; the bar takes what an 80-column terminal leaves
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=10), MofNCompleteColumn(), TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(escape(title), total=None, told="reading activations")
        yield lambda status: bars.update(task, completed=status.step, total=status.steps, told=_told(status))


def _line(title: str) -> Callable[[Status], None]:
    """Print a tenth of the steps at a time."""
    tenths = [0]

    def show(status: Status) -> None:
        tenth = 10 * status.step // status.steps
        if tenth > tenths[0]:
            tenths[0] = tenth
            print(f"{title}: step {status.step:,} of {status.steps:,}, {_told(status)}", file=sys.stderr, flush=True)  # noqa: T201

    return show


def _told(status: Status) -> str:
    return f"loss {status.loss:.3f}, explained {100 * status.explained_variance:.1f} %, {status.dead:,} dead"
