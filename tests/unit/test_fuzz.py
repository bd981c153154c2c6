"""A short run of each coverage-guided fuzzer, so that they stay runnable; ``make fuzz`` runs them for minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runs"), [("fuzz_spec", 300), ("fuzz_verify", 40)])
def test_fuzzing_finds_nothing(name: str, runs: int) -> None:
    pytest.importorskip("atheris", reason="the coverage-guided fuzzer atheris is not installed")
    done = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{name}", f"-runs={runs}", "-seed=1"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tried = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert tried is not None, done.stderr[-3000:]
    assert int(tried[1]) >= runs
