"""How much quicker two nodes of one core each compute an index than one such node, on a Ray cluster on this machine.

``python -m tests.benchmarks.scaling`` prints a row for each cluster. The seconds are those of the passes over data, from what the command
line says of them; connecting to the cluster and waiting for its workers does not grow with the data, and counts in the last row only. The
process that writes the store has no core of its own on a machine of two.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from semlens_audit.store import Store
from tests.e2e.ray_nodes import RayNodes
from tests.unit import index_world as world

__all__ = ["Row", "lay", "main", "measure"]

SIDE = 128
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
    content
        Digest of what the store holds in the end.
    """

    nodes: int
    images: int
    seconds: dict[str, float]
    whole: float
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


def measure(folder: Path, nodes: int, images: int) -> Row:
    """Compute the index of `folder` anew on a cluster of `nodes`."""
    for file in folder.glob("store.duckdb*"):
        file.unlink()
    with RayNodes(nodes) as cluster:
        command = [sys.executable, "-m", "semlens_audit", "index", "audit.yaml", "--engine", "ray", "--address", cluster.address]
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False)
        whole = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(done.stderr)
    counted = [match for match in _STAGE.finditer(done.stderr) if not match["name"].startswith(("Checking", "Foundation", "Workers"))]
    seconds = {match["name"]: float(match["seconds"]) for match in counted if match["name"] != "Embeddings, concepts"}
    with Store.open(folder / "store.duckdb") as store:
        return Row(nodes, images, seconds, whole, store.content_digest())


def main() -> None:
    """Measure one node against two, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    images = parser.parse_args().images
    load = os.getloadavg()[0]
    with TemporaryDirectory() as name:
        folder = lay(Path(name) / "world", images)
        rows = [measure(folder, nodes, images) for nodes in (1, 2)]
    one, two = rows
    print(f"Load before: {load:.1f} on {os.cpu_count()} CPUs; the same bytes: {one.content == two.content}")
    print("\n| pass | 1 node x 1 core, s | 2 nodes x 1 core, s | times as fast |\n|---|---|---|---|")
    for title, took, other in [*((n, s, two.seconds[n]) for n, s in one.seconds.items()), ("all passes", one.passes, two.passes)]:
        print(f"| {title} | {took:.1f} | {other:.1f} | {took / other:.2f} |")
    print(f"| whole command, {images} images | {one.whole:.1f} | {two.whole:.1f} | {one.whole / two.whole:.2f} |")


if __name__ == "__main__":
    main()
