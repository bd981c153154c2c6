"""An audit repeated from its record alone: what it takes, what it refuses before measuring, what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semlens_audit import engine, provenance, reproduce
from semlens_audit.agreement import Agreement
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import AuditError, ExitCode
from semlens_audit.progress import SilentProgress
from semlens_audit.record_file import record_bytes
from semlens_audit.record_source import read_any
from semlens_audit.records import AuditRecord
from semlens_audit.spec import read_plan
from semlens_audit.store import Store
from tests.unit import index_world as world


@pytest.fixture(scope="module", autouse=True)
def small_and_quick() -> Iterator[None]:
    with world.quick(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "revision", lambda: "0123456789ab")  # whoever commits meanwhile
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = world.write_world(tmp_path_factory.mktemp("reproduce"))
    values = world.audit(layers=["layer3"])
    values["measurement"] |= {"intervention": "none", "minimum_samples": 4, "minimum_counterexamples": 2}
    (place / "audit.yaml").write_text(json.dumps(values))
    return place


@pytest.fixture(scope="module")
def record(folder: Path) -> AuditRecord:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return engine.run(read_plan(Path("audit.yaml")), command="semlens-audit run audit.yaml")


def again(record: AuditRecord, **more: Any) -> Agreement:
    return reproduce.reproduce(record, progress=SilentProgress(), **more)


def slug(record: AuditRecord, code: ExitCode, **more: Any) -> str:
    with pytest.raises(AuditError) as caught:
        again(record, **more)
    assert caught.value.exit_code is code
    return caught.value.slug


def test_the_same_to_the_bit_from_the_record_alone(record: AuditRecord, folder: Path, tmp_path: Path) -> None:
    """The audit file itself is gone; what it names lies where it lay."""
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    for name in ("audit.yaml", "spec.yaml", "store.duckdb"):
        (moved / name).unlink()
    found = again(record, root=moved, work=tmp_path / "work")
    assert found.number("identical") == len(found.compared) > 10
    assert (found.fields, found.environment) == ((), ())
    assert found.reproduced
    assert (tmp_path / "work" / "store.duckdb").is_file(), "kept, so that an interrupted one goes on"
    assert not (moved / "store.duckdb").exists()
    with Store.open(tmp_path / "work" / "store.duckdb") as store:
        before = store.rows("SELECT count(*) FROM run_log WHERE event = 'stage-begun'")
    assert again(record, root=moved, work=tmp_path / "work").reproduced
    with Store.open(tmp_path / "work" / "store.duckdb") as store:
        assert store.rows("SELECT count(*) FROM run_log WHERE event = 'stage-begun'") == before, "nothing is built twice"


def test_from_the_own_store_everything_is_measured_again(
    record: AuditRecord, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = engine.measure, []

    def counting(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        return real(*arguments, **more)

    monkeypatch.setattr(engine, "measure", counting)
    assert again(record, audit_file=folder / "audit.yaml", use_store=True).reproduced
    assert calls


def test_a_measurement_that_was_edited_is_found(record: AuditRecord, folder: Path) -> None:
    first = record.class_layers[0]
    value = first.unexplained.value
    assert value is not None
    edited = first.model_copy(update={"unexplained": first.unexplained.model_copy(update={"value": value * 0.5})})
    found = again(
        record.model_copy(update={"class_layers": (edited, *record.class_layers[1:])}),
        audit_file=folder / "audit.yaml",
        use_store=True,
    )
    assert [one.what for one in found.compared if one.match == "differs"] == [
        f"unexplained relevance, {first.class_name}, {first.layer}"
    ]
    assert found.exit_code is ExitCode.INTEGRITY


def change_weights(folder: Path) -> None:
    world.write_subject(folder / "small.safetensors", seed=1)


def change_data(folder: Path) -> None:
    shutil.copy(folder / "images/nevus/000.png", folder / "images/nevus/002.png")


def change_foundation(folder: Path) -> None:
    world.write_clip(folder / "clip", seed=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_weights, "the weights of the audited model"),
        (change_data, "the test data"),
        (change_foundation, "the foundation model"),
    ],
)
def test_other_input_is_refused_before_anything_is_measured(
    record: AuditRecord, folder: Path, tmp_path: Path, change: Any, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    change(moved)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(engine, "run", never)
    with pytest.raises(AuditError) as caught:
        again(record, root=moved)
    assert caught.value.exit_code is ExitCode.INTEGRITY
    assert [named in problem.message for problem in caught.value.problems] == [True]


def test_what_is_not_there_cannot_be_repeated(record: AuditRecord, folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    (moved / "small.safetensors").unlink()
    assert slug(record, ExitCode.INCOMPLETE, root=moved) == "cannot-reproduce"
    assert slug(record, ExitCode.INCOMPLETE, root=tmp_path) == "cannot-reproduce"


def test_a_record_without_its_documents_cannot_be_repeated(record: AuditRecord) -> None:
    assert slug(record.model_copy(update={"documents": ()}), ExitCode.INCOMPLETE) == "cannot-reproduce"


@pytest.mark.parametrize("both", [False, True])
def test_documents_that_were_edited_are_refused(record: AuditRecord, both: bool) -> None:
    text = record.documents[0].text.replace("0.2", "0.9")
    digests = {"sha256": digest_bytes(text.encode())} if both else {}
    edited = record.documents[0].model_copy(update={"text": text, **digests})
    changed = record.model_copy(update={"documents": (edited, *record.documents[1:])})
    assert slug(changed, ExitCode.INTEGRITY) == "documents-changed"


def test_an_audit_file_has_to_be_the_one_of_the_record(record: AuditRecord, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "audit.yaml"
    other.write_text((folder / "audit.yaml").read_text() + "\n")
    assert slug(record, ExitCode.INTEGRITY, audit_file=other) == "other-audit"
    assert slug(record, ExitCode.USAGE, audit_file=tmp_path / "absent.yaml") == "no-audit"


def test_a_store_is_used_only_where_the_audit_file_lies(record: AuditRecord, folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    (moved / "audit.yaml").unlink()
    assert slug(record, ExitCode.USAGE, root=moved, use_store=True) == "no-local-audit"


@pytest.mark.parametrize("shown", ["/etc/audit.yaml", "../../audit.yaml", "..\\audit.yaml", "a/../../audit.yaml", ""])
def test_a_strangers_record_leads_to_no_file_outside_of_the_root(
    record: AuditRecord, tmp_path: Path, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    real = reproduce.check_audit

    def noting(source: Any, base: Path, **more: Any) -> None:
        seen.append(base)
        real(source, base, **more)

    monkeypatch.setattr(reproduce, "check_audit", noting)
    strange = record.model_copy(update={"audit": record.audit.model_copy(update={"detail": {"file": shown}})})
    assert slug(strange, ExitCode.INCOMPLETE, root=tmp_path) == "cannot-reproduce"
    assert all(base.resolve().is_relative_to(tmp_path) for base in seen)


def test_reading_a_record_from_what_is_none(tmp_path: Path, record: AuditRecord) -> None:
    path = tmp_path / "file"
    with pytest.raises(AuditError, match="no-record"):
        read_any(path)
    with pytest.raises(AuditError, match="no-record"):
        read_any(tmp_path)
    for content in (b"", b"%PDF-1.7\n", b"{}", b"\xff", b"%PDF-"):
        path.write_bytes(content)
        with pytest.raises(AuditError):
            read_any(path)
    path.write_bytes(record_bytes(record))
    assert read_any(path) == record
