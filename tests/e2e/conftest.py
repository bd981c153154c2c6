"""A small audit of the shipped shortcut model, and the real command line as a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from semlens_audit.resources import audits_dir, specs_dir
from semlens_audit.yaml_source import load

Run = Callable[..., subprocess.CompletedProcess[str]]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


@dataclass
class SmallAudit:
    """A spec and an audit in a folder of their own; JSON, which is YAML as well.

    Parameters
    ----------
    folder
        Holds ``audit.yaml``, ``spec.yaml``, ``store.duckdb`` and ``reports/``.
    audit, spec
        Plain values; `write` puts them on disk.
    said
        What indexing printed on stderr.
    """

    folder: Path
    audit: dict[str, Any]
    spec: dict[str, Any]
    said: str = ""

    @property
    def file(self) -> Path:
        return self.folder / "audit.yaml"

    @property
    def results(self) -> Path:
        return self.folder / "reports" / self.audit["audit"] / "results.json"

    @property
    def store(self) -> Path:
        return self.folder / "store.duckdb"

    def write(self) -> SmallAudit:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "spec.yaml").write_text(json.dumps(self.spec, indent=1))
        self.file.write_text(json.dumps(self.audit, indent=1))
        return self

    def ask(self, *checks: dict[str, Any]) -> SmallAudit:
        """Put only these checks into the spec."""
        self.spec["checks"] = [
            {"class": "melanoma", "statement": "What is asked.", "rationale": "Chosen for this test.", **check}
            for check in checks
        ]
        return self.write()

    def record(self) -> dict[str, Any]:
        return json.loads(self.results.read_text())


def small_audit(folder: Path, name: str = "phantom-shortcut") -> SmallAudit:
    """The shipped audit `name`, cut down: one layer, few samples, few draws."""
    audit = load(audits_dir() / f"{name}.yaml").data
    spec = load(specs_dir() / Path(audit["spec"]).name).data
    audit |= {"spec": "spec.yaml", "store": "store.duckdb", "reports": "reports", "layers": ["layer4"]}
    audit["data"]["samples"] = 120
    audit["measurement"] = {"reference_samples": 6, "null_sets": 100, "bootstrap": 100, "minimum_samples": 10}
    return SmallAudit(folder, audit, spec).write()


@pytest.fixture(scope="session")
def command() -> Run:
    """``command("run", file, code=1)`` runs the command line and asserts its exit code and that no traceback leaks."""

    def run(*arguments: object, code: int | None = 0, timeout: float = 280, **more: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "semlens_audit", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **{"env": ENVIRONMENT, **more},
        )
        said = f"{' '.join(map(str, arguments))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert code is None or done.returncode == code, f"exit code {done.returncode}, not {code}: {said}"
        assert "Traceback" not in done.stderr, said
        assert "[unexpected]" not in done.stderr, said
        return done

    return run


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory, command: Run) -> SmallAudit:
    """A small audit whose store is complete."""
    audit = small_audit(tmp_path_factory.mktemp("indexed"))
    audit.said = command("index", audit.file).stderr
    return audit
