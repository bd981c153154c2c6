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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semlens_audit.store import Store
from tests.unit import index_world as world

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

# Stands by with everything imported. For every line "folder moment at" it forks a process that builds the index and kills itself before
# or after the commit of that number, or in the middle of the transaction of that number; and says how it ended.
KILLED = """
    import os, signal, sys, traceback
    from pathlib import Path
    import torch
    torch.set_num_threads(1)
    import semlens_audit._torchvision
    from semlens_audit import attribution_pass, crops, index, pairs, passes, regions, spec, stages
    import open_clip, timm, zennit
    from semlens_audit.store import Store

    stages.NULL_CROPS = 60
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
    for line in sys.stdin:
        folder, moment, number = line.split()
        at = int(number)
        child = os.fork()
        if not child:
            code = 99
            try:
                index.build(spec.read_plan(Path(folder) / "audit.yaml"))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Build = Callable[[Path, str, int], int]


@pytest.fixture(scope="module")
def build() -> Iterator[Build]:
    """``build(folder, moment, at)`` indexes the world in `folder` until it is killed, and gives the exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nursery:

        def run(folder: Path, moment: str, at: int) -> int:
            assert nursery.stdin is not None
            assert nursery.stdout is not None
            print(folder, moment, at, file=nursery.stdin, flush=True)
            ended = int(nursery.stdout.readline())
            assert ended in {0, -signal.SIGKILL}
            return ended

        yield run


def content(folder: Path) -> str:
    with Store.open(folder / "store.duckdb") as store:
        assert store.rows("SELECT count(*) FROM stage WHERE NOT complete") == [(0,)]
        return store.content_digest()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_world(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def uninterrupted(origin: Path, tmp_path_factory: pytest.TempPathFactory, build: Build) -> str:
    folder = tmp_path_factory.mktemp("whole") / "world"
    shutil.copytree(origin, folder)
    assert build(folder, "never", 0) == 0
    return content(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "at"), [("after", 12), ("within", 9)])
def test_killed_again_and_again_the_content_is_that_of_an_uninterrupted_run(
    origin: Path, tmp_path: Path, uninterrupted: str, build: Build, moment: str, at: int
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
    limit = 200_000  # what is lacking is longer, in the log that goes before the store; what is there already is not touched
    full = subprocess.run(
        command, cwd=killed, env=ENVIRONMENT, check=False, capture_output=True, text=True, timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert full.returncode == 4, full.stderr
    assert "store-full-disk" in full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(command, cwd=killed, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    assert content(killed) == content(whole)


# Stands by with everything imported. For every line "folder seed seconds" it forks a process that runs the command line as typed there,
# kills it with SIGKILL after a random part of that time (or lets it run, where that is 0), and says how it ended and after how long.
NURSERY = """
    import os, random, signal, sys, time
    import torch
    torch.set_num_threads(1)
    import semlens_audit._torchvision
    from semlens_audit import attribution_pass, crops, pairs, passes, regions
    import open_clip, timm, zennit
    from semlens_audit import cli, index, stages

    stages.NULL_CROPS = 60
    for line in sys.stdin:
        folder, seed, seconds = line.split()
        begun = time.monotonic()
        child = os.fork()
        if not child:
            os.chdir(folder)
            sys.argv = ["semlens-audit", "index", "audit.yaml", "--quiet"]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                cli.main()
            except SystemExit as left:
                os._exit(left.code or 0)
            os._exit(99)
        if float(seconds):
            time.sleep(random.Random(seed).uniform(0.0, float(seconds)))
            os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(ended, time.monotonic() - begun, flush=True)
"""
KILLS = int(os.environ.get("SEMLENS_AUDIT_KILLS", "8"))
SEED = int(os.environ.get("SEMLENS_AUDIT_KILLS_SEED", "5"))


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
def test_killed_at_random_moments_the_command_line_loses_nothing(origin: Path, tmp_path: Path) -> None:
    """`make kills` does it 50 times."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(NURSERY)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nursery:

        def run(folder: Path, seed: int, within: float) -> tuple[int, float]:
            assert nursery.stdin is not None
            assert nursery.stdout is not None
            print(folder, seed, within, file=nursery.stdin, flush=True)
            ended, took = nursery.stdout.readline().split()
            return int(ended), float(took)

        def fresh(name: str) -> Path:
            return Path(shutil.copytree(origin, tmp_path / name))

        whole = fresh("whole")
        ended, span = run(whole, 0, 0.0)
        assert ended == 0
        expected = content(whole)
        kills, worlds, folder, held = 0, 1, fresh("killed-1"), set[str]()
        while kills < KILLS:
            # The span is that of a whole run, also for what a resumed one is spared: some end before their moment comes.
            ended, took = run(folder, SEED + 1000 * worlds + kills, span)
            if ended == 0:
                assert content(folder) == expected
                worlds, held = worlds + 1, set()
                folder = fresh(f"killed-{worlds}")
                continue
            assert ended == -signal.SIGKILL
            kills += 1
            finished = complete(folder, tmp_path / "aside")
            print(f"kill {kills} (seed {SEED}) after {took:.2f} of {span:.2f} s: {len(finished)} stages complete")
            assert finished >= held, "a finished stage is lost"
            held = finished
        assert run(folder, 0, 0.0)[0] == 0
        assert content(folder) == expected


def complete(folder: Path, aside: Path) -> set[str]:
    """Stages that the store holds whole; looked at in a copy, so that the next run finds what the killed one left."""
    if not (folder / "store.duckdb").exists():
        return set()
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for file in folder.glob("store.duckdb*"):
        shutil.copy(file, aside)
    with Store.open(aside / "store.duckdb") as store:
        return {name for (name,) in store.rows("SELECT name FROM stage WHERE complete")}
