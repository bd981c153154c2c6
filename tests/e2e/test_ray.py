"""A real cluster of two nodes on this machine: the bytes of the local engine, also when a worker or a node is lost mid-shard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from semlens_audit.store import Store
from tests.e2e.ray_nodes import RayNodes
from tests.unit import index_world as world

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; pip install 'semlens-audit[ray]'"),
]

# The audited model as the user's own code. In the first worker whose forward pass comes to it, it does what `moment` beside it says.
MODEL = """
    import os, signal, sys, time
    from pathlib import Path
    import timm

    def build(**arguments):
        model = timm.create_model("resnet18", **arguments)
        model.register_forward_pre_hook(strike)
        return model

    def strike(model, inputs):
        if Path(sys.argv[0]).name != "default_worker.py" or len(inputs[0]) < 4:
            return  # not a worker of the cluster, or only the model being looked at
        here = Path(__file__).parent
        moment = (here / "moment").read_text()
        if moment == "wait" and "SEMLENS_AUDIT_TEST_NODE" not in os.environ:
            return  # the node of the process that asks, and of the cluster's head
        try:
            os.close(os.open(here / "struck", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        if moment == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if moment == "wait":
            (here / "where.part").write_text(str(os.getpid()))
            os.replace(here / "where.part", here / "where")
            time.sleep(60)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with RayNodes() as two:
        yield two


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world.write_world(tmp_path_factory.mktemp("world"))
    (folder / "net.py").write_text(textwrap.dedent(MODEL))
    (folder / "moment").write_text("nothing")
    audit = world.audit()
    audit["subject"]["model"] |= {"source": "code", "name": "net.py:build"}
    audit["measurement"] |= {"batch_size": 4}
    (folder / "audit.yaml").write_text(json.dumps(audit))
    return folder


def index(folder: Path, environment: dict[str, str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "semlens_audit", "index", "audit.yaml", "--allow-code", *options]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def on_ray(folder: Path, nodes: RayNodes, *options: str) -> subprocess.Popen[str]:
    return index(folder, nodes.environment, "--engine", "ray", "--address", nodes.address, *options)


def finished(running: subprocess.Popen[str]) -> str:
    _, said = running.communicate(timeout=200)
    assert running.returncode == 0, said
    return said


def content(folder: Path) -> str:
    with Store.open(folder / "store.duckdb") as store:
        assert store.rows("SELECT count(*) FROM stage WHERE NOT complete") == [(0,)]
        return store.content_digest()


@pytest.fixture(scope="module")
def local(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("local") / "world"
    shutil.copytree(origin, folder)
    finished(index(folder, {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}))
    return content(folder)


def copy(origin: Path, folder: Path, moment: str) -> Path:
    shutil.copytree(origin, folder)
    (folder / "moment").write_text(moment)
    return folder


def test_a_worker_killed_in_the_middle_of_a_shard_changes_no_byte(
    origin: Path, tmp_path: Path, local: str, nodes: RayNodes
) -> None:
    folder = copy(origin, tmp_path / "world", "die")
    said = finished(on_ray(folder, nodes, "--workers", "2"))
    assert (folder / "struck").exists()
    assert "Outputs and reference samples: 22/22" in said
    assert content(folder) == local


def test_a_node_removed_in_the_middle_of_a_shard_changes_no_byte(
    origin: Path, tmp_path: Path, local: str, nodes: RayNodes
) -> None:
    folder = copy(origin, tmp_path / "world", "wait")
    running = on_ray(folder, nodes)
    ended = time.monotonic() + 150
    while not (folder / "where").exists():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < ended
        time.sleep(0.05)
    nodes.remove_node_of(int((folder / "where").read_text()))
    finished(running)
    assert content(folder) == local
