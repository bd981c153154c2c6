"""What a run leaves behind where something is missing: no disk left, no PDF; and where a complaint about a model stands."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from semlens_audit import engine, release, report, results
from semlens_audit.errors import AuditError, ExitCode, IntegrityError, SubjectError
from semlens_audit.places import placed_in_audit
from semlens_audit.progress import SilentProgress
from semlens_audit.records import AuditRecord
from semlens_audit.wording import format_date
from tests.conftest import PlanFactory
from tests.golden.sample_record import sample


def test_a_full_disk_leaves_the_old_record_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.json"
    target.write_text("old")

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        engine.write_record(sample("clean"), target)
    assert caught.value.filename == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("kind", ["clean", "shortcut"])
def test_a_missing_pdf_turns_a_pass_into_incomplete_and_says_so(
    kind: str, plan_of: PlanFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = sample(kind)

    def carried_out(*_: object, **__: object) -> AuditRecord:
        return record

    def without_pdf(_: AuditRecord) -> bytes:
        raise AuditError("pango-missing", "no Pango.")

    monkeypatch.setattr(engine, "run", carried_out)
    monkeypatch.setattr(report, "render_pdf", without_pdf)
    outcome = results.carry_out(plan_of(), progress=SilentProgress(), pdf=True, out=tmp_path / "out")
    slugs = [problem.slug for problem in outcome.problems]
    assert [path.name for path in outcome.files][:2] == ["results.json", "report.html"]
    assert "report.pdf" not in {path.name for path in outcome.files}
    assert all(path.is_file() for path in outcome.files)
    if kind == "clean":
        assert slugs == ["pango-missing", "pdf-missing"]
        assert outcome.exit_code is ExitCode.INCOMPLETE
    else:
        assert slugs == ["pango-missing"]
        assert outcome.exit_code is ExitCode.NOT_SATISFIED


def test_pdfs_of_an_earlier_record_are_named(tmp_path: Path) -> None:
    assert results.leave(sample("clean"), tmp_path, pdf=False).notices == ()
    (tmp_path / "report.pdf").write_bytes(b"%PDF-")
    (tmp_path / "report.signed.pdf").write_bytes(b"%PDF-")
    (notice,) = results.leave(sample("clean"), tmp_path, pdf=False).notices
    assert notice.slug == "older-pdf"
    assert "report.pdf and report.signed.pdf" in notice.message
    assert (tmp_path / "report.signed.pdf").read_bytes() == b"%PDF-"


def test_a_complaint_about_the_model_stands_where_the_audit_says_it(plan_of: PlanFactory, tmp_path: Path) -> None:
    plan = plan_of(layers=("layer1", "layer44"))
    text = "audit: test\nlayers:\n  - layer1\n  - layer44\nsubject:\n  classes: [a, b]\n"
    (tmp_path / "audit.yaml").write_text(text)

    def where(error: AuditError) -> str:
        with pytest.raises(SubjectError) as caught, placed_in_audit(plan):
            raise error
        assert caught.value.slug == error.slug
        return caught.value.problems[0].where.removeprefix(str(tmp_path))

    assert where(SubjectError("unknown-layer", "The model has no layer 'layer44'.")) == "/audit.yaml:4:5"
    assert where(SubjectError("classes-do-not-fit", "The model has 2 outputs.")) == "/audit.yaml:6:12"
    assert where(SubjectError("weights-do-not-fit", "They do not.", file="w.pt")) == "w.pt", "a file that is named stays"
    assert where(SubjectError("lrp-unfaithful", "Not the same.")) == "", "what concerns no line has none"


@pytest.mark.parametrize("state", ["satisfied", "inconclusive", "not_measured"])
def test_a_state_that_somebody_typed_decides_nothing(tmp_path: Path, state: str) -> None:
    record = sample("shortcut")
    edited = tuple(f.model_copy(update={"state": state}) if f.state == "not_satisfied" else f for f in record.findings)
    # control for multiplicity turns violations into open results
    with pytest.raises(IntegrityError, match="does not follow") if state != "inconclusive" else nullcontext():
        results.decide(record.model_copy(update={"findings": edited}), results.Terms())


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_times_at_the_edge_of_the_calendar(created: str) -> None:
    record = sample("clean").model_copy(update={"created": created})
    with pytest.raises(IntegrityError, match="time"):
        release.day_of(record)
    assert format_date(created) == created
