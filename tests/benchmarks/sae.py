"""Sparse autoencoders on the phantom's two models: how well they reconstruct, what they cost, and whether the ruler is found.

    .venv/bin/python -m tests.benchmarks.sae     # about ten minutes

Prints two Markdown tables. Everything is built from nothing in a temporary folder.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from semlens_audit.data import open_data
from semlens_audit.engine import run
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import LineProgress
from semlens_audit.records import AuditRecord
from semlens_audit.sae.training import Settings, bare, train
from semlens_audit.sae_header import Training, latents_of
from semlens_audit.spec import read_plan
from semlens_audit.work import Bench

ROOT = Path(__file__).resolve().parents[2]
AUDITS = {"shortcut": ROOT / "audits" / "phantom-shortcut.yaml", "clean": ROOT / "audits" / "phantom-clean.yaml"}
AUTOENCODERS = (Settings("layer3", 256, 8, epochs=20), Settings("layer4", 512, 16, epochs=40))
CLASS, PLANTED = "melanoma", "ruler"


def trained(plan: AuditPlan, folder: Path) -> Iterator[tuple[Settings, Training, float]]:
    """Train every autoencoder; seconds include the layer's activations, not loading the model."""
    bench = Bench(bare(plan), open_data(plan))
    _ = bench.subject
    for settings in AUTOENCODERS:
        begun = time.monotonic()
        found = train(bench, settings, folder / f"{settings.layer}.safetensors")
        yield settings, found, time.monotonic() - begun


def audited(audit: Path, folder: Path, attribution: str, latents: bool) -> AuditRecord:
    """The audit of both layers, and of their latents where these are asked for."""
    values: dict[str, Any] = YAML(typ="safe").load(audit)
    layers = [settings.layer for settings in AUTOENCODERS]
    values |= {"audit": f"sae-{attribution.replace('_', '-')}", "store": "store.duckdb", "reports": "reports"}
    values["measurement"] = {"attribution": attribution}
    values["layers"] = layers + [latents_of(layer) for layer in layers if latents]
    if latents:
        values["subject"]["autoencoders"] = [{"layer": layer, "file": f"{layer}.safetensors"} for layer in layers]
    path = folder / "audits" / f"{attribution}.yaml"
    path.write_text(json.dumps(values))
    return run(read_plan(path), progress=LineProgress(sys.stderr), command="python -m tests.benchmarks.sae", comparisons=False)


def rows(record: AuditRecord, words: str) -> Iterator[tuple[str, ...]]:
    """One row for each layer."""
    roles = {concept.id: concept.role for concept in record.concepts}
    for place in record.class_layers:
        if place.class_name != CLASS:
            continue
        shares = place.concepts
        ruler = shares[PLANTED]
        others = {name: one.value or 0.0 for name, one in shares.items() if name != PLANTED and roles[name] == "spurious"}
        largest = max(others, key=lambda name: others[name])
        switched = next(
            one for one in record.interventions if (one.class_name, one.layer, one.concept) == (CLASS, place.layer, PLANTED)
        )
        assert ruler.interval is not None
        yield (
            place.layer, words, str(len(place.components)),
            f"{100 * (ruler.value or 0):.0f} % ({100 * ruler.interval.low:.0f}–{100 * ruler.interval.high:.0f} %)",
            f"{largest}, {100 * others[largest]:.0f} %", f"{100 * (place.unexplained.value or 0):.0f} %",
            str(len(switched.components)), switched.state,
        )  # fmt: skip


def measured(model: str, audit: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Rows of both tables."""
    (folder / "audits").mkdir(parents=True)
    shutil.copytree(ROOT / "specs", folder / "specs")
    training, finding = [], []
    widths = {"layer3": 64, "layer4": 128}
    for settings, found, seconds in trained(read_plan(audit), folder / "audits"):
        training.append(
            f"| {model} | {settings.layer} | {widths[settings.layer]} | {settings.latents} | {settings.k} | {found.steps:,} | "
            f"{100 * found.explained_variance:.1f} % | {found.active:.1f} | {found.dead} | {seconds:.0f} |"
        )
    for attribution, latents in (("lrp", False), ("activation_x_gradient", True)):
        record = audited(audit, folder, attribution, latents)
        finding += [f"| {model} | {' | '.join(row)} |" for row in rows(record, attribution.replace("_", " ").replace(" x ", " × "))]
    return training, finding


def main() -> None:
    chosen = sys.argv[1:] or list(AUDITS)
    with tempfile.TemporaryDirectory() as name:
        tables = [measured(model, AUDITS[model], Path(name) / model) for model in chosen]
    heads = (
        ("model", "layer", "width", "latents", "k", "steps", "explained variance", "active", "dead", "seconds"),
        ("model", "layer", "attribution", "components", "ruler (interval)", "largest other artefact", "unexplained", "of the ruler",
         "switched off"),
    )  # fmt: skip
    for place, titles in enumerate(heads):
        print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
        print("\n".join(row for table in tables for row in table[place]), end="\n\n")


if __name__ == "__main__":
    main()
