"""The list of files that workers take together or first names files that are there, and what it says is what happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import distribution

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
import os
import pytest

@pytest.fixture(scope="module", autouse=True)
def made():
    with open({log!r}, "a") as stream:
        stream.write({name!r} + "\\n")

@pytest.mark.parametrize("i", range(6))
def test_one(i):
    pass
"""


def test_every_file_named_is_there() -> None:
    for file in {*distribution.LONGEST, *(file for files in distribution.TOGETHER for file in files)}:
        assert (ROOT / file).is_file(), file


def test_a_set_up_of_a_module_is_made_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name in ("a", "b", "c"):
        (tmp_path / f"test_{name}.py").write_text(MODULE.format(log=str(log), name=name))
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler\n")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(log.read_text().split()) == ["a", "b", "c"]
