"""Killed at any moment, an index resumes without loss: SIGKILL lets no handler run, so only what is on the disk counts."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from semlens_audit.store import Store
from tests.unit import index_world as world

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

# Kills itself before or after the commit of a given number, or in the middle of a transaction.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    from semlens_audit import index, spec, stages
    from semlens_audit.store import Store
    stages.NULL_CROPS = 60
    moment, at = sys.argv[2], int(sys.argv[3])
    real, append, commits, appends = Store.execute, Store.append, 0, 0

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def execute(self, sql, parameters=()):
        global commits
        if sql != "COMMIT":
            return real(self, sql, parameters)
        commits += 1
        if moment == "before" and commits == at:
            kill()
        result = real(self, sql, parameters)
        if moment == "after" and commits == at:
            kill()
        return result

    def half(self, table, **columns):
        global appends
        append(self, table, **columns)
        appends += 1
        if moment == "within" and appends == at:
            kill()

    Store.execute = execute
    Store.append = half
    index.build(spec.read_plan(Path(sys.argv[1])))
"""


def build(folder: Path, moment: str, at: int) -> int:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder / "audit.yaml"), moment, str(at)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    return done.returncode


def content(folder: Path) -> str:
    with Store.open(folder / "store.duckdb") as store:
        assert store.rows("SELECT count(*) FROM stage WHERE NOT complete") == [(0,)]
        return store.content_digest()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def uninterrupted(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole") / "world"
    shutil.copytree(origin, folder)
    assert build(folder, "never", 0) == 0
    return content(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "at"), [("after", 17), ("within", 14)])
def test_killed_again_and_again_the_content_is_that_of_an_uninterrupted_run(
    origin: Path, tmp_path: Path, uninterrupted: str, moment: str, at: int
) -> None:
    folder = tmp_path / "world"
    shutil.copytree(origin, folder)
    kills = 0
    while build(folder, moment, at):
        kills += 1
        assert kills < 30, "no progress is kept"
    assert kills >= 2
    assert content(folder) == uninterrupted


@pytest.mark.slow
def test_the_command_line_killed_from_outside_and_out_of_disk_resumes(origin: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        shutil.copytree(origin, folder)
    command = [sys.executable, "-m", "semlens_audit", "index", "audit.yaml"]
    subprocess.run(command, cwd=whole, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    with subprocess.Popen(command, cwd=killed, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if b"Crops" in line:  # one layer is done, the next or the embeddings are under way
                time.sleep(0.02)
                running.kill()
                break
        running.communicate()
    assert running.returncode == -signal.SIGKILL
    with Store.open(killed / "store.duckdb") as store:
        states = dict(store.rows("SELECT name, complete FROM stage"))
        assert states["outputs"]
        assert not all(states.get(name, False) for name in ("probes", "null:layer1", "null:layer3"))
    # The disk is full: the limit on a file's size makes the same write fail, with another errno.
    limit = (killed / "store.duckdb").stat().st_size + 200_000
    full = subprocess.run(
        command, cwd=killed, env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert full.returncode == 4, full.stderr
    assert "store-full-disk" in full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(command, cwd=killed, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    assert content(killed) == content(whole)
