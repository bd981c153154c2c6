"""The lock: what breaks it and what does not, what a damaged one comes to, and how many looks there were."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semlens_audit import engine, lock, run_log, standing
from semlens_audit.data import open_data
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import AuditError, IntegrityError, UsageError
from semlens_audit.foundation import foundation_digest
from semlens_audit.limitations import limitations
from semlens_audit.lock_file import MAX_BYTES, lock_file, read, write
from semlens_audit.lock_pages import lock_digests, lock_facts
from semlens_audit.lock_statement import contradictions, sentence
from semlens_audit.measure import Measurements
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord
from semlens_audit.release_records import LockRecord
from semlens_audit.store import Store
from tests.golden.sample_record import small
from tests.unit import index_world as world

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world.write_world(tmp_path_factory.mktemp("lock"))
    lock.make(plan(folder), now=NOW, note="before anything ran")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copied"))


def plan(
    folder: Path, audit: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, check: dict[str, Any] | None = None
) -> AuditPlan:
    values = world.spec(**(spec or {}))
    values["checks"][0] |= check or {}
    return world.plan(folder, world.audit(**(audit or {})), values)


def held(asked: AuditPlan, *, required: bool = False) -> lock.Held | None:
    with Store.open(Path(asked.audit_file).parent / "store.duckdb") as store:
        return lock.hold(asked, open_data(asked, store.file_digest), store, required=required)


def differences(asked: AuditPlan) -> tuple[str, ...]:
    found = held(asked)
    assert found is not None
    assert found.record.state == ("broken" if found.record.differences else "kept")
    return found.record.differences


def concept(**changes: Any) -> dict[str, Any]:
    values = world.spec()["concepts"]
    values[0] |= changes
    return {"concepts": values}


def subject(**changes: Any) -> dict[str, Any]:
    return {"subject": world.audit()["subject"] | changes}


# -- what is locked -----------------------------------------------------------------------------------------------------------


def test_a_lock_is_kept_by_what_was_locked(folder: Path) -> None:
    found = held(plan(folder), required=True)
    assert found is not None
    assert (found.record.state, found.record.differences) == ("kept", ())
    assert found.record.created == "2026-01-02T03:04:05+00:00"
    assert found.document.kind == "lock"
    assert found.record.sha256 == read(lock_file(folder / "audit.yaml")).sha256


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"check": {"criterion": {"at_most": 0.3}}}, "spec.checks.no-ruler.criterion.at_most was 0.2, is 0.3"),
        ({"check": {"rationale": "It fits."}}, "spec.checks.no-ruler.rationale"),
        ({"check": {"statement": "Some ruler."}}, "spec.checks.no-ruler.statement"),
        ({"check": {"severity": "minor"}}, 'spec.checks.no-ruler.severity was "major", is "minor"'),
        ({"check": {"class": "nevus"}}, "spec.checks.no-ruler.class"),
        ({"check": {"id": "other"}}, "spec.checks.no-ruler was"),
        ({"spec": concept(role="neutral")}, "spec.concepts.ruler.role"),
        ({"spec": concept(descriptions=["a ruler"])}, "spec.concepts.ruler.descriptions"),
        ({"spec": {"templates": ["{}"]}}, "spec.templates"),
        ({"spec": {"multiplicity": "none"}}, "spec.multiplicity"),
        ({"spec": {"purpose": "Another."}}, "spec.purpose"),
        ({"spec": {"version": "2"}}, "spec.version"),
        ({"audit": {"seed": 4}}, "audit.seed was 3, is 4"),
        ({"audit": {"layers": ["layer3"]}}, "audit.layers"),
        ({"audit": {"measurement": world.audit()["measurement"] | {"bootstrap": 200}}}, "audit.measurement.bootstrap"),
        ({"audit": subject(intended_purpose="Another.")}, "audit.subject.intended_purpose"),
        ({"audit": subject(preprocessing={"size": 40})}, "audit.subject.preprocessing.size"),
        ({"audit": subject(classes=["naevus", "melanoma"], class_map={"nevus": "naevus"})}, "the class names of the model"),
        ({"audit": {"sensitivity": {"layers": ["layer2"]}}}, "audit.sensitivity.layers"),
    ],
)
def test_what_asks_or_measures_breaks_the_lock_and_is_named(folder: Path, changes: dict[str, Any], named: str) -> None:
    if "naevus" in str(changes):
        (folder / "images" / "nevus").rename(folder / "images" / "naevus")
        table = folder / "images" / "attributes.csv"
        table.write_text(table.read_text().replace("nevus/", "naevus/"))
    asked = plan(folder, **changes)
    assert any(named in clause for clause in differences(asked)), differences(asked)
    with pytest.raises(IntegrityError) as caught:
        held(asked, required=True)
    assert caught.value.slug == "lock-broken"
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"audit": {"title": "Another title"}},
        {"audit": {"responsible": [{"name": "A. Person", "role": "auditor"}]}},
        {"audit": {"limitations": ["What it does not show."]}},
        {"audit": {"reports": "elsewhere"}},
        {"audit": {"measurement": world.audit()["measurement"] | {"batch_size": 4}}},
        {"audit": subject(name="other name", version="2.1")},
        {"audit": {"data": world.audit()["data"] | {"description": "Pictures."}}},
        {"audit": {"foundation_model": world.audit()["foundation_model"] | {"statement": "Sees blotches."}}},
        {"spec": {"title": "Another title"}},
        {"spec": {"classes": {"melanoma": {"title": "Melanoma"}, "nevus": {}}}},
        {"spec": concept(title="Ruler", source="A citation.", hazard="It decides.")},
        {"check": {"supports": ["EU AI Act Art. 10"]}},
    ],
)
def test_words_that_ask_nothing_may_change(folder: Path, changes: dict[str, Any]) -> None:
    assert differences(plan(folder, **changes)) == ()


def test_the_order_of_checks_and_the_place_of_files_may_change(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "small.safetensors").rename(folder / "models" / "new-name.safetensors")
    (folder / "images").rename(folder / "photographs")
    (folder / "clip").rename(folder / "models" / "clip")
    values = subject(model=world.audit()["subject"]["model"] | {"weights": "models/new-name.safetensors"})
    moved = {
        **values,
        "data": {"source": "folder", "path": "photographs", "attributes": "photographs/attributes.csv"},
        "foundation_model": {"source": "open_clip", "name": "models/clip"},
    }
    assert differences(plan(folder, audit=moved)) == ()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def new_picture(folder: Path) -> None:
    shutil.copy(folder / "images/nevus/000.png", folder / "images/nevus/zzz.png")
    with (folder / "images/attributes.csv").open("a") as stream:
        stream.write("nevus/zzz.png,0\r\n")


def relabel(folder: Path) -> None:
    table = folder / "images/attributes.csv"
    table.write_text(table.read_text().replace("nevus/000.png,1", "nevus/000.png,0"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: flip(f / "small.safetensors"), "the audited model (weights, architecture or code)"),
        (lambda f: Image.new("RGB", (40, 40)).save(f / "images/nevus/000.png"), "the test data"),
        (new_picture, "the test data"),
        (relabel, "the attributes of the test data"),
        (lambda f: Image.new("RGB", (30, 28)).save(f / "examples/a.png"), "the example images of the concepts"),
        (lambda f: flip(f / "clip/open_clip_model.safetensors"), "the foundation model"),
    ],
)
def test_content_that_a_verdict_rests_on_breaks_the_lock(folder: Path, change: Callable[[Path], None], named: str) -> None:
    change(folder)
    found = differences(plan(folder))
    assert any(clause.startswith(f"{named}: ") for clause in found), found


def test_code_that_measures_breaks_the_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = standing.code_digests()
    monkeypatch.setattr(lock, "code_digests", lambda: {**real, "verdict": "0" * 16})
    (clause,) = differences(plan(folder))
    assert "(verdict)" in clause


def test_a_lock_of_another_audit_is_none_of_this_one(folder: Path) -> None:
    assert any("another audit" in clause for clause in differences(plan(folder, audit={"audit": "other"})))


# -- the file -----------------------------------------------------------------------------------------------------------------


def test_a_lock_is_replaced_only_by_force_and_names_what_it_replaced(folder: Path) -> None:
    first = read(lock_file(folder / "audit.yaml"))
    with pytest.raises(UsageError) as caught:
        lock.make(plan(folder))
    assert caught.value.slug == "already-locked"
    _, second = lock.make(plan(folder), force=True)
    _, third = lock.make(plan(folder), force=True)
    assert [one.sha256 for one in third.history] == [first.sha256, second.sha256]
    found = held(plan(folder))
    assert found is not None
    assert found.record.replaced == 2
    assert "replaced 2" in found.record.sentence.replace("\u202f", " ").replace("\u00a0", " ")


def test_any_byte_of_a_lock_that_is_changed_is_noticed(folder: Path) -> None:
    path = lock_file(folder / "audit.yaml")
    whole, rng = path.read_bytes(), random.Random(0)
    known = read(path)
    for _ in range(300):
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        try:
            # an insignificant space that became another one says the same
            assert read(path) == known
            assert whole[at : at + 1].isspace()
        except IntegrityError as error:
            assert error.slug == "lock-damaged"  # noqa: PT017 - either of both may come


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"sha256": 1}', b'{"sha256": ""}', b"[" * 100_000, b'{"a":' * 50_000,
        b'{"schema_version": "9.0", "sha256": "0"}', b"NaN", b" " * (MAX_BYTES + 1),
    ],
)  # fmt: skip
def test_what_is_no_lock_is_refused_and_never_taken_for_none(folder: Path, content: bytes) -> None:
    lock_file(folder / "audit.yaml").write_bytes(content)
    for required in (False, True):
        with pytest.raises(IntegrityError) as caught:
            held(plan(folder), required=required)
        assert caught.value.slug == "lock-damaged"


def test_a_number_that_was_edited_is_noticed_even_with_its_digest_made_anew(folder: Path) -> None:
    path = lock_file(folder / "audit.yaml")
    values = read(path).model_dump(mode="json")
    values["asked"]["spec"]["checks"]["no-ruler"]["criterion"]["at_most"] = 0.4
    write(type(read(path)).model_validate(values), path)
    found = held(plan(folder))
    assert found is not None
    assert found.record.state == "broken"
    assert not found.record.witnessed, "the store never saw this lock being made"


@pytest.mark.parametrize("created", ["yesterday", "2026-01-02T03:04:05", ""])
def test_a_lock_without_a_proper_time_is_damaged(folder: Path, created: str) -> None:
    path = lock_file(folder / "audit.yaml")
    write(read(path).model_copy(update={"created": created}), path)
    with pytest.raises(IntegrityError, match="lock-damaged"):
        read(path)


def test_without_a_lock_there_is_none_and_required_it_is_refused(folder: Path) -> None:
    lock_file(folder / "audit.yaml").unlink()
    assert held(plan(folder)) is None
    with pytest.raises(IntegrityError) as caught:
        held(plan(folder), required=True)
    assert caught.value.slug == "not-locked"


def test_a_lock_that_cannot_be_written_leaves_no_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_file(folder / "audit.yaml").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "write", full)
    with Store.open(folder / "store.duckdb") as store:
        before = len(run_log.read(store))
    with pytest.raises(OSError, match="No space"):
        lock.make(plan(folder))
    with Store.open(folder / "store.duckdb") as store:
        assert len(run_log.read(store)) == before


# -- how many looks -----------------------------------------------------------------------------------------------------------


def look(folder: Path, number: int = 1) -> None:
    with Store.open(folder / "store.duckdb") as store:
        for _ in range(number):
            run_log.append(store, "audit", {"audit": "made-up"})


def counted(folder: Path) -> LockRecord:
    found = held(plan(folder))
    assert found is not None
    return found.record


def test_runs_before_and_since_are_counted_whether_or_not_the_lock_lay_there(folder: Path) -> None:
    assert (counted(folder).runs_before_lock, counted(folder).earlier_runs) == (0, 0)
    look(folder, 2)
    assert (counted(folder).runs_before_lock, counted(folder).earlier_runs) == (0, 2)
    lock.make(plan(folder), force=True)
    assert (counted(folder).runs_before_lock, counted(folder).earlier_runs) == (2, 0)
    assert read(lock_file(folder / "audit.yaml")).history[0].runs == 2
    path = lock_file(folder / "audit.yaml")
    away = path.rename(folder / "hidden")
    look(folder)
    away.rename(path)
    record = counted(folder)
    assert (record.runs_before_lock, record.earlier_runs) == (2, 1)
    assert record.log_intact
    assert record.witnessed


def test_a_store_that_was_deleted_keeps_what_the_lock_knew(folder: Path) -> None:
    look(folder, 3)
    lock.make(plan(folder), force=True)
    (folder / "store.duckdb").unlink()
    record = counted(folder)
    assert (record.runs_before_lock, record.earlier_runs) == (3, 0)
    assert not record.witnessed


def test_a_log_that_was_changed_is_said(folder: Path) -> None:
    look(folder, 3)
    with Store.open(folder / "store.duckdb") as store:
        store.execute("DELETE FROM run_log WHERE rowid = (SELECT max(rowid) - 1 FROM run_log)")
    record = counted(folder)
    assert not record.log_intact
    assert "not intact" in record.sentence


@pytest.fixture(scope="module")
def ran(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A locked audit with a complete store, run once."""
    from semlens_audit import stages

    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("ran") / "copied"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "NULL_CROPS", 40)
        engine.run(lean(folder), command="x", comparisons=False)
    return folder


def lean(folder: Path, **more: Any) -> AuditPlan:
    return plan(folder, **more)


def test_the_engine_holds_an_audit_against_its_lock_and_counts(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semlens_audit import stages

    monkeypatch.setattr(stages, "NULL_CROPS", 40)
    second = engine.run(lean(ran), command="x", comparisons=False, locked=True)
    assert second.lock is not None
    assert (second.lock.state, second.lock.earlier_runs) == ("kept", 1)
    assert "second run" in second.lock.sentence
    assert [document.name for document in second.documents if document.kind == "lock"] == ["audit.lock.json"]
    assert any("1\u00a0earlier run" in text or "1\u202fearlier run" in text for text in second.limitations)
    repeated = engine.run(lean(ran), command="x", comparisons=False, counted=False)
    assert repeated.lock is None
    looser = lean(ran, check={"criterion": {"at_most": 0.9}})
    with Store.open(ran / "store.duckdb") as store:
        before = len(run_log.read(store))
    with pytest.raises(IntegrityError, match=r"was 0\.2, is 0\.9"):
        engine.run(looser, command="x", comparisons=False, locked=True)
    with Store.open(ran / "store.duckdb") as store:
        entries = run_log.read(store)
        assert len(entries) == before, "what was refused is no run"
    assert [entry.event for entry in entries] == ["lock", "audit", "audit", "repeat"]
    assert entries[1].detail["lock"] == entries[0].detail["lock"] == second.lock.sha256
    assert entries[2].detail["verdict"] == second.verdict.state
    broken = engine.run(looser, command="x", comparisons=False)
    assert broken.lock is not None
    assert (broken.lock.state, broken.lock.earlier_runs) == ("broken", 2)
    assert any("not carried out as it was locked" in text for text in broken.limitations)


def test_without_a_lock_nothing_is_opened_where_one_is_required(tmp_path: Path) -> None:
    world.write_world(tmp_path)
    with pytest.raises(AuditError) as caught:
        engine.run(plan(tmp_path), command="x", locked=True)
    assert caught.value.slug == "not-locked"
    assert not (tmp_path / "store.duckdb").exists()


# -- what a reader sees -------------------------------------------------------------------------------------------------------


def test_a_report_says_what_is_known_of_when_the_audit_was_fixed(folder: Path) -> None:
    bare = small()
    assert "not locked" in lock_facts(bare)[0].text
    assert lock_digests(bare) == ()
    found = held(plan(folder, audit={"seed": 4}))
    assert found is not None
    record = bare.model_copy(update={"lock": found.record, "documents": (found.document,)})
    said = " ".join(fact.text for fact in lock_facts(record))
    assert "audit.seed was 3, is 4" in said
    assert ("Lock", "audit.lock.json", found.record.sha256) in lock_digests(record)


def test_limitations_say_what_the_lock_does_not_show(folder: Path) -> None:
    empty = Measurements.model_construct(
        layers=(), class_layers=(), effects=(), presence_in_data=(), unrecognised={}, presence_auroc={}, probe_auroc={}
    )

    def said(record: LockRecord | None) -> str:
        return " ".join(limitations(plan(folder), empty, text=True, lock=record))

    kept = counted(folder)
    assert "not locked" in said(None)
    assert not any(word in said(kept) for word in ("locked", "lock file", "log of runs"))
    assert "earlier" in said(kept.model_copy(update={"earlier_runs": 2}))
    assert "lock file alone" in said(kept.model_copy(update={"witnessed": False}))
    assert "not intact" in said(kept.model_copy(update={"log_intact": False}))


def bound(folder: Path, **changes: Any) -> AuditRecord:
    """A record of the locked audit, as far as its lock goes."""
    asked = plan(folder, **changes)
    found, bare = held(asked), small()
    assert found is not None
    with Store.open(folder / "store.duckdb") as store:
        data = open_data(asked, store.file_digest)
    return bare.model_copy(
        update={
            "lock": found.record,
            "documents": (found.document,),
            "data": bare.data.model_copy(update={"sha256": data.sha256}),
            "foundation_model": bare.foundation_model.model_copy(update={"sha256": foundation_digest(asked)}),
        }
    )


def test_what_a_record_says_of_its_lock_follows_from_what_it_carries(folder: Path) -> None:
    assert contradictions(bound(folder), plan(folder)) == ()
    broken = bound(folder, audit={"seed": 4})
    assert contradictions(broken, plan(folder, audit={"seed": 4})) == ()
    assert contradictions(small(), plan(folder)) == ()


def worded(record: LockRecord) -> LockRecord:
    return record.model_copy(update={"sentence": sentence(record)})


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "0" * 64},
        {"created": "2020-01-01T00:00:00+00:00"},
        {"replaced": 1},
        {"state": "broken"},
        {"differences": ("audit.seed was 3, is 4",)},
        {"sentence": "All is well."},
    ],
)
def test_a_lock_record_that_was_edited_contradicts_the_lock(folder: Path, changes: dict[str, Any]) -> None:
    record = bound(folder)
    assert record.lock is not None
    edited = record.lock.model_copy(update=changes)
    edited = edited if "sentence" in changes else worded(edited)
    assert contradictions(record.model_copy(update={"lock": edited}), plan(folder))


def test_a_broken_lock_cannot_be_passed_off_as_kept(folder: Path) -> None:
    changed = {"check": {"criterion": {"at_most": 0.9}}}
    record = bound(folder, **changed)
    assert record.lock is not None
    kept = worded(record.lock.model_copy(update={"state": "kept", "differences": ()}))
    (said,) = contradictions(record.model_copy(update={"lock": kept}), plan(folder, **changed))
    assert "was 0.2, is 0.9" in said
    other = record.data.model_copy(update={"sha256": "0" * 64})
    assert contradictions(bound(folder).model_copy(update={"data": other}), plan(folder))


def test_a_lock_that_was_left_out_or_put_in_is_noticed(folder: Path) -> None:
    record = bound(folder)
    assert contradictions(record.model_copy(update={"documents": ()}), plan(folder))
    assert contradictions(record.model_copy(update={"lock": None}), plan(folder))
    text = record.documents[0].text.replace("0.2", "0.3")
    swapped = record.documents[0].model_copy(update={"text": text})
    assert contradictions(record.model_copy(update={"documents": (swapped,)}), plan(folder))
    again = swapped.model_copy(update={"sha256": digest_bytes(text.encode())})
    assert "damaged" in contradictions(record.model_copy(update={"documents": (again,)}), plan(folder))[0]


def test_runs_that_the_lock_knew_cannot_be_left_out(folder: Path) -> None:
    look(folder, 2)
    lock.make(plan(folder), force=True)
    record = bound(folder)
    assert record.lock is not None
    fewer = worded(record.lock.model_copy(update={"runs_before_lock": 1}))
    assert contradictions(record.model_copy(update={"lock": fewer}), plan(folder))


def test_a_lock_reads_as_it_was_written(folder: Path) -> None:
    path = lock_file(folder / "audit.yaml")
    known = read(path)
    assert known.note == "before anything ran"
    values = json.loads(path.read_text())
    assert values["sha256"] == known.sha256
    assert "/" not in "".join(values["files"])
    assert str(folder) not in path.read_text()
