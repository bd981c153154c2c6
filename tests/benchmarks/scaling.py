"""How much quicker two nodes of one core each compute an index than one such node, on a Ray cluster on this machine.

``python -m tests.benchmarks.scaling`` prints the table. The seconds are those of the passes over data, from what the command line says
of them; connecting to the cluster and waiting for its workers does not grow with the data, and counts in the row of the whole command only.
The process that writes the store has no core of its own on a machine of two, and a node alone is not kept from the other core: what its
worker prepares in threads is done there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from semlens_audit.store import Store
from tests.e2e.ray_nodes import RayNodes
from tests.unit import index_world as world

__all__ = ["Row", "compare", "indexed", "lay", "main", "table"]

SIDE = 128
_OF_NO_SIZE = {"Arithmetic", "Embeddings, concepts"}
"""Stages that do not grow with the data."""

_STAGE = re.compile(r"^(?P<name>.+): (?P<done>\d+)/(?P<total>\d+) in (?P<seconds>[\d.]+) s", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """What one cluster took.

    Parameters
    ----------
    nodes
        Of one CPU each.
    images
        In the test data.
    seconds
        Pass -> time.
    whole
        Time of the whole command, seconds.
    processor
        Processor time of the process that writes the store, seconds; starting and importing included.
    content
        Digest of what the store holds in the end.
    """

    nodes: int
    images: int
    seconds: dict[str, float]
    whole: float
    processor: float
    content: str

    @property
    def passes(self) -> float:
        """Seconds of all passes."""
        return sum(self.seconds.values())


def lay(folder: Path, images: int) -> Path:
    """An audit of two layers of a ResNet-18 with random weights at 128 px, on `images` pictures."""
    import torch

    import semlens_audit._torchvision  # noqa: F401

    import timm  # isort: skip
    from safetensors.torch import save_file

    world.write_world(folder)
    shutil.rmtree(folder / "images")
    world.write_images(folder / "images", images)
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18", num_classes=2).state_dict(), folder / "small.safetensors")
    audit = world.audit(layers=["layer3", "layer4"])
    audit["subject"]["model"]["arguments"] = {"num_classes": 2}
    audit["subject"]["preprocessing"]["size"] = SIDE
    audit["measurement"] |= {"batch_size": 16, "attribution": "activation_x_gradient", "crop_minimum": 16}
    (folder / "audit.yaml").write_text(json.dumps(audit))
    return folder


def indexed(folder: Path, nodes: int, images: int) -> Row:
    """Compute the index of `folder` anew on a cluster of `nodes`."""
    for file in folder.glob("store.duckdb*"):
        file.unlink()
    with RayNodes(nodes) as cluster:
        command = [sys.executable, "-m", "semlens_audit", "index", "audit.yaml", "--engine", "ray", "--address", cluster.address]
        begun, before = time.perf_counter(), _processor()
        done = subprocess.run(command, cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False)
        whole, processor = time.perf_counter() - begun, _processor() - before
    if done.returncode:
        raise SystemExit(done.stderr)
    counted = [match for match in _STAGE.finditer(done.stderr) if not match["name"].startswith(("Checking", "Foundation", "Workers"))]
    seconds: dict[str, float] = {}
    for match in counted:
        if match["name"] not in _OF_NO_SIZE:
            seconds[match["name"]] = seconds.get(match["name"], 0.0) + float(match["seconds"])
    with Store.open(folder / "store.duckdb") as store:
        return Row(nodes, images, seconds, whole, processor, store.content_digest())


def _processor() -> float:
    """Processor time of the children that have ended, seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(one: Row, two: Row) -> list[str]:
    """Lines of Markdown."""
    lines = ["| pass | 1 node x 1 core, s | 2 nodes x 1 core, s | times as fast |", "| --- | ---: | ---: | ---: |"]
    rows = [(name, took, two.seconds[name]) for name, took in one.seconds.items()]
    rows += [("all passes", one.passes, two.passes), (f"whole command, {one.images:,} images", one.whole, two.whole)]
    lines += [f"| {name} | {took:.1f} | {other:.1f} | {took / max(other, 0.1):.2f} |" for name, took, other in rows]
    same = "the same bytes" if one.content == two.content else "**other bytes**"
    lines += ["", f"Both stores hold {same}. Processor time of the process that writes: {one.processor:.1f} s and {two.processor:.1f} s."]
    return lines


def compare(images: int = 2000) -> tuple[list[str], list[dict[str, Any]]]:
    """The table of one node against two, and the same as plain values; without Ray, why there is none."""
    if importlib.util.find_spec("ray") is None:
        return ["Not measured: Ray is not installed."], []
    load = os.getloadavg()[0]
    with TemporaryDirectory() as name:
        folder = lay(Path(name) / "world", images)
        one, two = (indexed(folder, nodes, images) for nodes in (1, 2))
    return table(one, two), [asdict(row) | {"passes": row.passes, "load_before": load} for row in (one, two)]


def main() -> None:
    """Measure one node against two, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    lines, rows = compare(parser.parse_args().images)
    print("\n".join(lines))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
