"""The commands of the README and of the pages that it leads to, run as they stand there, in their order, on the phantom's audits cut down.

Those of the pages run in this process, each once, wherever else it stands.
"""

from __future__ import annotations

import datetime
import re
import shlex
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12
from typer.testing import CliRunner

from semlens_audit.cli import app
from semlens_audit.demo_signing import make_signatory
from tests.documentation import PAGES, ROOT, console, steps
from tests.e2e.conftest import ENVIRONMENT, Run, small_audit

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGED = "Know the model"
"""Section of the README whose commands stand on the pages of `tests.documentation` too, and more."""
ELSEWHERE = {"make", "qualify", "selftest", "demo"}
"""Tested at length in files of their own."""
VERDICTS = {"run", "gate", "diff", "waiver"}
"""Whose exit code is a decision on these small audits: any of 0, 1, 3, 4, 5."""
PASSPHRASE = "correct horse"
CUT = {"--latents": "32", "--epochs": "4"}
"""Values of options on small audits."""
MORE = {"split": ["--level", "0.5", "--separation", "-1", "--at-most", "8"]}
"""Options that small audits take in addition: with six reference samples no split is significant."""
WRITTEN = ("found.html", "labels.html", "melanoma.html", "graph.html", "measures.html", "compare.html", "latents.html", "units.html",
           "surprising.html")  # fmt: skip


def blocks() -> dict[str, list[list[str]]]:
    """Section -> its command lines, in order."""
    found: dict[str, list[list[str]]] = {}
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL):
        lines = [list(words) for words in console(body)]
        if lines:
            found[title] = lines
    return found


def read_the_pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Do what the pages say, one after the other; gives each command's exit code."""
    monkeypatch.chdir(root)
    codes: dict[str, int] = {}
    for page in PAGES:
        for step in steps(page.read_text(encoding="utf-8")):
            if step.file:
                step.write(root)
            elif step.command not in codes:
                program, *arguments = step.words
                assert program == "semlens-audit", f"{page.name}: {step.command}"
                verb = arguments[0]
                pairs = zip(["", *arguments], arguments, strict=False)
                arguments = [CUT.get(before, word) for before, word in pairs] + MORE.get(verb, [])
                done = CliRunner().invoke(app, arguments)
                codes[step.command] = done.exit_code
                assert done.exit_code in ({0, 1, 3, 4} if verb in VERDICTS else {0}), f"{page.name}: {step.command}\n{done.output}"
                assert done.exception is None or isinstance(done.exception, SystemExit)
    return codes


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, command: Run) -> Path:
    """A folder like a checkout after `make demo`, with small audits, and the keys and certificates that the README supposes."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("phantom-shortcut", "phantom-clean"):
        small = small_audit(root / name, name)
        small.audit |= {
            "spec": "../specs/melanoma-abcde.yaml",
            "store": "../.semlens/{audit}.duckdb",
            "reports": "../reports",
            "layers": ["layer3"],
        }
        small.write()
        for folder, file, source in (("audits", f"{name}.yaml", "audit.yaml"), ("specs", "melanoma-abcde.yaml", "spec.yaml")):
            (root / folder).mkdir(exist_ok=True)
            (root / folder / file).write_text((root / name / source).read_text())
    command("run", "audits/phantom-clean.yaml", "--quiet", code=None, cwd=root)
    authority = make_signatory("The authors of semlens-audit", root / "authors.key", root / "authors.pem")
    (root / "hospital-ca.pem").write_bytes(authority)
    key = load_pem_private_key((root / "authors.key").read_bytes(), None)
    certificate = x509.load_pem_x509_certificate((root / "authors.pem").read_bytes())
    locked = pkcs12.serialize_key_and_certificates(
        b"authors",
        key,  # type: ignore[arg-type]
        certificate,
        [x509.load_pem_x509_certificate(authority)],
        BestAvailableEncryption(PASSPHRASE.encode()),
    )
    (root / "authors.p12").write_bytes(locked)
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readme_runs_from_top_to_bottom(checkout: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        **ENVIRONMENT,
        "AUTHORS_PASSPHRASE": PASSPHRASE,
        "MLFLOW_TRACKING_URI": f"sqlite:///{checkout / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    codes: dict[str, int] = {}
    for title, lines in blocks().items():
        if title == PAGED:
            paged = read_the_pages(checkout, monkeypatch)
            assert {shlex.join(words) for words in lines} <= set(paged), "a command of the README stands on none of its pages"
            codes |= paged
            continue
        for words in lines:
            program, *arguments = words
            verb = arguments[0]
            if program in ELSEWHERE or verb in ELSEWHERE:
                continue
            assert program == "semlens-audit"
            if words[1:3] == ["waiver", "add"]:  # the date in the README is a date like any other
                expires = datetime.date.fromisoformat(arguments[arguments.index("--expires") + 1])
                arguments += ["--today", (expires - datetime.timedelta(days=40)).isoformat()]
            done = command(*arguments, code=None, cwd=checkout, env=environment)
            codes[shlex.join(words)] = done.returncode
            allowed = {0, 1, 3, 4, 5} if verb in VERDICTS and words[1:3] != ["waiver", "add"] else {0}
            assert done.returncode in allowed, f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert len(codes) >= 20
    assert (checkout / "reports/phantom-clean/report.signed.pdf").is_file()
    assert (checkout / "for-the-board/report.pdf").is_file()
    assert (checkout / "audits/phantom-shortcut.waivers.yaml").is_file()
    assert (checkout / "mine" / "audits").is_dir()
    for name in WRITTEN:
        assert (checkout / name).read_text(encoding="utf-8").startswith("<!DOCTYPE html>"), name
