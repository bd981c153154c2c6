"""`sign`, `attest` and `verify` as a user runs them: what they say, what they write, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semlens_audit import report
from semlens_audit.demo_signing import make_signatory, sign_all
from semlens_audit.record_file import RESULTS, write_record
from tests.e2e.conftest import ENVIRONMENT, Run
from tests.golden.consistent_record import consistent

pytest.importorskip("weasyprint", reason="Pango is not installed", exc_type=OSError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, command: Run) -> Path:
    """A report with its waiver, signed by both responsible persons, the first with an encrypted key, and attested."""
    place = tmp_path_factory.mktemp("signed")
    record = consistent(waived=True)
    write_record(record, place / RESULTS)
    report.write(record, place)
    trust = place / "trust"
    trust.mkdir()
    for stem, person in zip(("ada", "max"), record.responsible, strict=True):
        (trust / f"{stem}.pem").write_bytes(make_signatory(person.name, place / f"{stem}.key", place / f"{stem}.pem"))
    common = ["--key", place / "ada.key", "--cert", place / "ada.pem"]
    said = command("sign", place / "report.pdf", "--as", "Dr. Ada Example", *common).stdout
    assert "Yet to sign: Max Müster" in said
    more = ["--key", place / "max.key", "--cert", place / "max.pem"]
    said = command("sign", place / "report.signed.pdf", "--as", "Max Müster", *more).stdout
    assert "closed" in said
    environment = {**ENVIRONMENT, "SECRET": "open sesame"}
    made = command("attest", "--new-key", place / "attest.pem", "--passphrase-env", "SECRET", env=environment).stdout
    assert "encrypted with the passphrase" in made
    (trust / "attest.pub").write_bytes((place / "attest.pem.pub").read_bytes())
    command("attest", place / RESULTS, "--key", place / "attest.pem", "--passphrase-env", "SECRET", env=environment)
    return place


def test_accepted(folder: Path, command: Run) -> None:
    arguments = ["--trust", folder / "trust", "--today", "2026-01-31"]
    done = command("verify", folder / "report.signed.pdf", "--json", *arguments)
    found = json.loads(done.stdout)
    assert found["exit_code"] == 0
    assert {line["state"] for line in found["lines"]} == {"proven", "not_checked"}
    assert found["proven"]
    assert found["not_proven"]
    said = command("verify", folder / "results.intoto.json", *arguments).stdout
    assert "Accepted: the file is what it claims to be." in said
    assert "What the audit found: resnet18-phantom: decisions for melanoma rest on ruler" in said


def test_expired_waiver_is_exit_code_5(folder: Path, command: Run) -> None:
    said = command("verify", folder / RESULTS, "--trust", folder / "trust", "--today", "2026-03-02", code=5).stdout
    assert "no longer holds" in said
    assert "1 March 2026" in said


def test_refused_is_exit_code_6(folder: Path, command: Run, tmp_path: Path) -> None:
    common = ["--trust", folder / "trust", "--today", "2026-01-31"]
    data = (folder / RESULTS).read_bytes()
    touched = tmp_path / RESULTS
    touched.write_bytes(data.replace(b'"seed": 7', b'"seed": 8', 1))
    said = command("verify", touched, "--envelope", folder / "results.intoto.json", *common, code=6).stdout
    assert "refused" in said
    pdf = tmp_path / "report.signed.pdf"
    pdf.write_bytes((folder / "report.signed.pdf").read_bytes() + b"\n")
    assert "appended" in command("verify", pdf, *common, code=6).stdout
    assert "neither" in command("verify", touched, *common, code=6).stdout
    assert "trust list" in command("verify", folder / "results.intoto.json", "--trust", folder / "ada.pem", code=6).stdout


def test_wrong_use_is_exit_code_2(folder: Path, command: Run, tmp_path: Path) -> None:
    pdf, key, certificate = folder / "report.pdf", folder / "ada.key", folder / "ada.pem"
    assert "which-key" in command("sign", pdf, code=2).stderr
    assert "no-certificate" in command("sign", pdf, "--key", key, code=2).stderr
    assert "which-responsible" in command("sign", pdf, "--key", key, "--cert", certificate, code=2).stderr
    assert "document-closed" in command(
        "sign", folder / "report.signed.pdf", "--as", "Max Müster", "--key", key, "--cert", certificate, "--out", tmp_path / "x.pdf", code=2
    ).stderr
    assert not (tmp_path / "x.pdf").exists()
    assert "no-passphrase" in command("attest", folder / RESULTS, "--key", folder / "attest.pem", code=2, input="").stderr
    assert "key-exists" in command("attest", "--new-key", folder / "attest.pem", code=2).stderr
    assert "bad-trust" in command("verify", pdf, "--trust", folder / "ada.key", code=2).stderr
    assert "bad-date" in command("verify", pdf, "--today", "tomorrow", code=2).stderr


def test_model(folder: Path, command: Run) -> None:
    """The record is a made-up one, so that the shipped weights are not those that it names."""
    weights = Path(report.__file__).parent / "phantom" / "weights" / "shortcut" / "model.safetensors"
    done = command("verify", folder / RESULTS, "--trust", folder / "trust", "--today", "2026-01-31", "--model", weights, code=6)
    assert "They are others" in done.stdout


def test_what_the_demonstration_leaves(tmp_path: Path) -> None:
    """Every file that it signs and attests is accepted, by a trust list that it makes."""
    record = consistent(persons=1)
    place = tmp_path / "reports" / "small"
    place.mkdir(parents=True)
    write_record(record, place / RESULTS)
    files = [place / RESULTS, *report.write(record, place)]
    found = sign_all([files], tmp_path / "reports" / "demo-keys")
    assert [path.name for path, _ in found] == ["report.signed.pdf", "results.intoto.json"]
    assert all(one.exit_code == 0 for _, one in found), [one.lines for _, one in found]
    certificate = (tmp_path / "reports" / "demo-keys" / "dr--ada-example.pem").read_bytes()
    from cryptography import x509

    assert "TEST, not for use" in x509.load_pem_x509_certificate(certificate).subject.rfc4514_string().replace("\\", "")
