"""The README's commands, run as they stand there, in their order, on the phantom's audits cut down."""

from __future__ import annotations

import datetime
import re
import shlex
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12

from semlens_audit.demo_signing import make_signatory
from tests.e2e.conftest import ENVIRONMENT, Run, small_audit

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {"make", "qualify", "selftest", "demo"}
"""Tested at length in files of their own."""
VERDICTS = {"run", "gate", "diff", "waiver"}
"""Whose exit code is a decision on these small audits: any of 0, 1, 3, 4, 5."""
PASSPHRASE = "correct horse"


def blocks() -> dict[str, list[list[str]]]:
    """Section -> its command lines, in order."""
    found: dict[str, list[list[str]]] = {}
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL):
        lines = [line for block in re.findall(r"```console\n(.*?)```", body, re.DOTALL) for line in re.findall(r"^\$ (.+)", block, re.M)]
        if lines:
            found[title] = [shlex.split(line) for line in lines]
    return found


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
def test_the_readme_runs_from_top_to_bottom(checkout: Path, command: Run) -> None:
    environment = {
        **ENVIRONMENT,
        "AUTHORS_PASSPHRASE": PASSPHRASE,
        "MLFLOW_TRACKING_URI": f"sqlite:///{checkout / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    codes: dict[str, int] = {}
    for lines in blocks().values():
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
