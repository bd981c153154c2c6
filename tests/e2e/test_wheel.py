"""The built wheel, installed elsewhere and used from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that the wheel is installed into, without its dependencies."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    return folder


def in_installation(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run([*arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_wheel_holds_specs_templates_phantom_audits_weights_and_licences(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [*(ROOT / "specs").glob("*.yaml"), *(ROOT / "audits").glob("phantom-*.yaml"), *(ROOT / "templates").rglob("*.*")]
    shipped += [ROOT / "audits" / "signs.yaml", *(ROOT / "specs" / "traffic-signs").glob("*.jpg")]
    weights = list((ROOT / "semlens_audit/phantom/weights").rglob("*.*"))
    signs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "semlens_audit/signs/weights").rglob("*.*")}
    assert len(signs) == 4
    assert signs <= names
    assert len(shipped) > 8
    assert {path.parent.name for path in weights if path.suffix == ".safetensors"} == {"clip", "shortcut", "clean"}
    for path in shipped:
        if "__pycache__" not in path.parts:
            assert f"semlens_audit/{path.relative_to(ROOT)}" in names, path
    assert {path.relative_to(ROOT).as_posix() for path in weights} <= names
    assert "semlens_audit/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "reports/", ".ci")) for name in names)
    assert not any("ham10000" in name for name in names if "/audits/" in name), "audits of data that are not shipped stay out"


def test_wheel_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 30e6


def test_console_script_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin" / "semlens-audit")
    version = in_installation(installed, tmp_path, script, "--version")
    assert version.returncode == 0, version.stderr
    assert version.stdout.startswith("semlens-audit ")

    made = in_installation(installed, tmp_path, script, "init", "mine", "--name", "moles")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "mine").is_dir()

    audits = sorted(str(path) for path in (installed / "semlens_audit" / "audits").glob("phantom-*.yaml"))
    assert len(audits) == 2
    linted = in_installation(installed, tmp_path, script, "lint", *audits)
    assert linted.returncode == 0, linted.stderr

    schema = in_installation(installed, tmp_path, script, "schema", "spec")
    assert "checks" in json.loads(schema.stdout)["properties"]


def test_installation_uses_its_own_files_and_renders_a_report(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, semlens_audit.resources as r, semlens_audit.report as report, semlens_audit.records as records\n"
        "assert r.checkout() is None\n"
        "for folder in (r.specs_dir(), r.templates_dir(), r.audits_dir(), r.phantom_weights('clip')): print(folder)\n"
        "record = records.AuditRecord.model_validate_json(pathlib.Path('results.json').read_text())\n"
        "report.write(record, pathlib.Path('.'), pdf=False)\n"
    )
    from tests.golden.sample_record import sample

    (tmp_path / "results.json").write_text(sample("shortcut").model_dump_json())
    done = in_installation(installed, tmp_path, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(installed) for line in done.stdout.splitlines())
    assert (tmp_path / "report.html").stat().st_size > 50_000
