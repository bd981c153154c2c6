"""Virtual neurons: `split`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from semlens_audit.cli.compute import Device, MaxMemory, execution
from semlens_audit.cli.shell import AllowCode, AsJson, AuditFile, Quiet, app, print_json, say, show_progress, verb
from semlens_audit.errors import UsageError

__all__ = ["split"]


@verb(
    app,
    rich_help_panel="Explore",
    epilog="Example: semlens-audit split audits/phantom-shortcut.yaml --layer layer3 --out layer3-virtual.safetensors",
)
def split(
    audit: AuditFile,
    layer: Annotated[str, typer.Option(help="Layer of the audit whose components are looked at; its index must be complete.")],
    polysemanticity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Look at components over this polysemanticity.")
    ] = 0.2,
    references: Annotated[
        int, typer.Option(min=4, max=10_000, help="Samples that activate a component most, whose circuits are divided.")
    ] = 100,
    smallest: Annotated[int, typer.Option(min=2, max=5_000, help="Samples that each of the two groups has to have.")] = 10,
    level: Annotated[
        float,
        typer.Option(min=1e-6, max=0.5, help="Highest adjusted p: of being clearer, and of a valley between the two groups of circuits."),
    ] = 0.05,
    separation: Annotated[
        float,
        typer.Option(
            min=-1.0, max=1.0, help="Over this, the two groups are distinct by looks, whatever their circuits: 1 less the difference of "
            "reference samples of one group over that of samples of different groups.",
        ),
    ] = 0.3,
    at_most: Annotated[
        int,
        typer.Option(
            min=1, max=1_000, help="Components that are looked at, the most polysemantic ones. Each that is split costs a backward pass "
            "through the layer in every batch that its virtual neurons are observed in.",
        ),
    ] = 64,
    out: Annotated[Path | None, typer.Option(metavar="FILE.safetensors", help="File to write; left out: nothing is written.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Split components that stand for two things into virtual neurons, by what drives them in the layer before (PURE).

    Of each component over the declared polysemanticity, the samples that activate it most are divided in two by their circuits: which
    components of the layer's input drive it, by activation x gradient. A split is kept only where the reference samples of the index are
    significantly clearer within the two groups than within random ones, and where the groups are distinct: either their circuits leave a
    valley between them that one group would hardly leave (dip test), or the foundation model finds samples of one group far more alike.
    Components that stand for one thing stay whole.

    To audit the virtual neurons, name the file in [cyan]subject.virtual_neurons[/] of the audit and [cyan]LAYER.virtual.units[/] among
    its layers.
    """
    if out is not None:
        _require_place(out, force)
    where = execution(device, max_memory)
    from semlens_audit.atlas.opening import Atlas
    from semlens_audit.places import placed_in_audit
    from semlens_audit.spec import read_plan
    from semlens_audit.splitting import screen
    from semlens_audit.splitting.fit import Settings, bare, fit, write_fit
    from semlens_audit.work import Bench, LocalEngine

    plan = read_plan(audit, check_files=False)  # the file that is going to be written may be named in it already
    settings = Settings(layer, polysemanticity, references, smallest, level, separation, at_most)
    with Atlas(bare(plan, layer), where.max_memory) as atlas, show_progress(quiet) as progress:
        engine = LocalEngine(Bench(atlas.plan, atlas.data, allow_code=allow_code, execution=where))
        with placed_in_audit(plan):
            found = fit(atlas, engine, settings, progress)
        written = out if found.kept else None
        if written is not None:
            write_fit(atlas, engine, found, written)
    if as_json:
        print_json(screen.as_json(found, written))
        return
    screen.print_fit(found)
    if written is not None:
        say(f"\n{written}: to audit the virtual neurons, write into the audit:\n\nsubject:")
        say(f"  virtual_neurons:\n    - {{layer: {layer}, file: {written.name}}}   # relative to the audit file")
        say(f"layers: [{layer}.virtual.units]\nmeasurement: {{attribution: activation_x_gradient}}")
    elif out is not None:
        say(f"\nNo component is split, so that {out} is not written.")


def _require_place(out: Path, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise UsageError("bad-output", f"{out} does not end in .safetensors.", "Write e.g. --out layer3-virtual.safetensors.")
    if not out.parent.is_dir() or out.is_dir():
        raise UsageError("bad-output", f"{out} cannot be written: its folder is not there, or it is one.", "Mend --out.")
    if out.exists() and not force:
        raise UsageError("output-exists", f"{out} is there already.", "Give another --out, or --force to replace it.")
