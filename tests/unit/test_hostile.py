"""Files from strangers: what they may reach, what they may run, how large they may make things, and what they may show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from semlens_audit import confinement, paths, spec
from semlens_audit.bounded import LimitError, read_bytes
from semlens_audit.errors import SpecError, UsageError
from semlens_audit.name_pattern import pattern_complaint
from semlens_audit.record_file import read_record
from semlens_audit.yaml_source import MAX_PROBLEMS, load
from tests.unit import hostile
from tests.unit.hostile import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def audits(tmp_path: Path) -> Path:
    """The folder of an audit with traps; what is beside its parent is outside."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"secret")
    return hostile.lay(tmp_path / "stranger" / "audits")


# -- paths ----------------------------------------------------------------------------------------------------------

PLACES = [
    "data__path",
    "subject__model__weights",
    "examples_root",
    "store",
    "reports",
    "spec",
    "subject__classes",
    "qualification",
]
OUTSIDE = [
    "/etc/passwd",
    "../../outside",
    "../../../../../../../../etc",
    "link-to-etc",
    "link-to-etc/passwd",
    "/dev/zero",
    "zero",
]


def test_the_untouched_audit_is_fine(audits: Path) -> None:
    assert read(audits) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", [*OUTSIDE, "${SEMLENS_AUDIT_NOT_SET:-../../outside}"])
def test_no_path_leads_out_of_the_folder(audits: Path, place: str, path: str) -> None:
    assert read(audits, **{place: path}) == ["path-outside"]


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("store", "reports")])
@pytest.mark.parametrize("path", ["pipe", "loop", "file:///etc/passwd", "~/x", "C:\\x", "no/such"])
def test_what_is_no_file_is_not_waited_for(audits: Path, place: str, path: str) -> None:
    said = "bad-classes" if (place, path) == ("subject__classes", "pipe") else "missing-file"
    assert read(audits, **{place: path}) == [said]


@pytest.mark.parametrize("place", ["store", "reports"])
@pytest.mark.parametrize("path", ["loop", "loop/below"])
def test_nothing_is_written_through_a_link_that_leads_to_itself(audits: Path, place: str, path: str) -> None:
    assert read(audits, **{place: path}) == ["bad-path"]


@pytest.mark.parametrize("place", ["store", "reports"])
@pytest.mark.parametrize("path", ["phantom:shortcut", "signs:foundation"])
def test_nothing_is_written_where_the_tool_itself_lies(audits: Path, place: str, path: str) -> None:
    assert read(audits, **{place: path}) == ["path-outside"]


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000])
def test_paths_that_no_file_system_has(audits: Path, path: str) -> None:
    assert set(read(audits, data__path=path)) <= {"bad-path", "too-long"}
    assert read(audits, data__path=path)


def test_links_within_the_data_that_lead_out(audits: Path) -> None:
    (audits / "images" / "0_link.png").symlink_to(audits.parents[1] / "outside" / "secret.png")
    assert read(audits) == ["path-outside"]
    (audits / "images" / "0_link.png").unlink()
    (audits / "images" / "0_link.png").symlink_to(audits / "examples" / "a.png")
    assert read(audits) == []


def test_example_images_that_are_links(audits: Path) -> None:
    (audits / "examples" / "a.png").unlink()
    (audits / "examples" / "a.png").symlink_to(audits.parents[1] / "outside" / "secret.png")
    assert read(audits) == ["path-outside"]


@pytest.mark.parametrize("name", ["leaves.duckdb", "leaves.duckdb.wal", "leaves.duckdb.tmp"])
def test_nothing_is_written_through_a_link_where_the_store_is(audits: Path, name: str) -> None:
    (audits / "store" / name).symlink_to(audits.parents[1] / "outside" / "new")
    assert read(audits) == ["path-outside"]


@pytest.mark.parametrize("name", ["results.json.tmp", "results.json", "report.html"])
def test_nothing_is_written_through_a_link_where_the_report_is(audits: Path, name: str) -> None:
    (audits / "reports" / "leaves").mkdir(parents=True)
    (audits / "reports" / "leaves" / name).symlink_to(audits.parents[1] / "outside" / "new")
    assert read(audits) == ["path-outside"]


@pytest.mark.parametrize("place", ["store", "reports"])
def test_nothing_is_written_into_a_repository(audits: Path, place: str) -> None:
    (audits.parent / ".git").mkdir()
    assert read(audits, **{place: "../.git/hooks"}) == ["path-outside"]


def test_the_users_word_allows_what_it_names(audits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = audits.parents[1] / "outside"
    elsewhere = {"data__path": str(outside), "data__pattern": None}
    assert read(audits, **elsewhere)[0] == "path-outside"
    with confinement.allowing([outside]):
        assert "path-outside" not in read(audits, **elsewhere)
        assert "path-outside" in read(audits, examples_root=str(outside.parent))
    assert "path-outside" in read(audits, **elsewhere)
    monkeypatch.setenv("SEMLENS_AUDIT_ALLOW_PATHS", f"/nowhere{os.pathsep}{outside}")
    assert "path-outside" not in read(audits, **elsewhere)


def test_a_variable_that_the_user_has_set_allows_its_own_folder_only(audits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMLENS_AUDIT_PLACE", str(audits.parents[1] / "outside"))
    assert "path-outside" not in read(audits, data__path="${SEMLENS_AUDIT_PLACE}", data__pattern=None)
    assert "path-outside" in read(audits, data__path="${SEMLENS_AUDIT_PLACE}/..")
    assert "path-outside" in read(audits, data__path="${SEMLENS_AUDIT_PLACE}/../../../..")
    assert "path-outside" in read(audits, examples_root=str(audits.parents[1] / "outside"))


@pytest.mark.parametrize("name", ["HOME", "AWS_SECRET_ACCESS_KEY", "SEMLENS_AUDIT_PASSWORD", "SEMLENS_AUDIT_SIGNING_KEY"])
def test_no_audit_reads_other_variables(audits: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "the-value-of-it")
    with pytest.raises(SpecError) as caught:
        paths.resolve(audits / "audit.yaml", f"${{{name}:-x}}/y")
    assert caught.value.slug == "variable-not-allowed"
    assert "the-value-of-it" not in str(caught.value)
    monkeypatch.setenv("SEMLENS_AUDIT_ALLOW_VARIABLES", f"OTHER, {name}")
    assert paths.resolve(audits / "audit.yaml", f"${{{name}:-x}}/y") == audits / "the-value-of-it" / "y"


def test_where_an_audit_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    deep = tmp_path / "home" / "downloads" / "x"
    deep.mkdir(parents=True)
    assert confinement.audit_root(deep / "audit.yaml") == deep
    (tmp_path / "home" / ".git").mkdir()
    assert confinement.audit_root(deep / "audit.yaml") == deep, "a home folder under version control allows nothing"
    (deep / "audits").mkdir()
    assert confinement.audit_root(deep / "audits" / "audit.yaml") == deep
    (deep.parent / "specs").mkdir()
    (deep.parent / "audits").mkdir()
    assert confinement.audit_root(deep / "audit.yaml") == deep.parent
    (deep / ".git").mkdir()
    assert confinement.audit_root(deep / "audit.yaml") == deep


def test_the_command_line_takes_the_users_word(audits: Path) -> None:
    shutil.copytree(audits / "images", audits.parents[1] / "outside" / "images")
    read(audits, data__path="../../outside/images")
    command = [sys.executable, "-m", "semlens_audit", "lint", str(audits / "audit.yaml")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, "[path-outside]" in refused.stderr, "--allow-path" in refused.stderr) == (2, True, True)
    allowed = subprocess.run(
        [*command, "--allow-path", str(audits.parents[1] / "outside")], capture_output=True, text=True, check=False
    )
    assert (allowed.returncode, allowed.stderr) == (0, "")


# -- size, time and form of files -----------------------------------------------------------------------------------

BILLION = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "slug"),
    [
        (BILLION.encode(), "yaml-alias"),
        (b"&a [*a]\n", "yaml-alias"),
        (b"[" * 100_000, "too-deep"),
        (b"- " * 100_000, "too-deep"),
        (b"x: " + b"y" * 300_000, "file-too-large"),
        (b"[" + b"1," * 60_000 + b"1]", "file-too-large"),
        (b"a: 1\n" * 40_000, "duplicate-key"),
        (b"? " * 1000, "bad-key"),
        (b"<<: {a: 1}\n", "bad-key"),
        (b"k" * 1000 + b": 1\n", "bad-key"),
        (b"a: !!python/object/apply:os.system ['true']\n", "yaml-tag"),
        (b"a: !!binary aGk=\n", "yaml-tag"),
        (b"%YAML 1.1\n---\na: 1\n---\nb: 2\n", "several-documents"),
        (b"\xff\xfea\0:\0 \x001\0", "not-utf8"),
        (b"spec: \x1b[31mred\n", "hidden-character"),
        (b'spec: "\\e]0;title\\a"\n', "hidden-character"),
        ("spec: a # \u202e b\n".encode(), "hidden-character"),
        ("\ufeff\ufeffspec: a\n".encode(), "hidden-character"),
        (b'spec: "\\U000e0041"\n', "hidden-character"),
        (b'spec: "\\ud800"\n', "not-utf8"),
    ],
)
def test_yaml_that_is_meant_to_hurt(tmp_path: Path, content: bytes, slug: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with hostile.WATCH.watching(seconds=2.0):
        source = load(tmp_path / "x.yaml")
    assert source.problems[0].slug == slug
    assert len(source.problems) <= MAX_PROBLEMS + 1


def test_hidden_characters_are_said_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("title: a\r\npurpose: |\r\n  first\r\n  sec\u202eond\r\n# \u200b\r\n".encode())
    found = [(problem.line, problem.column, problem.slug) for problem in load(tmp_path / "x.yaml").problems]
    assert found == [(4, 6, "hidden-character"), (5, 3, "hidden-character")]


def test_a_pipe_and_a_device_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        assert load(path).problems[0].slug == "missing-file"
        with pytest.raises(LimitError):
            read_bytes(path, 10)
        with pytest.raises(UsageError):
            read_record(path)


def test_no_more_problems_are_looked_for_than_anyone_reads(tmp_path: Path) -> None:
    many = {
        **hostile.SPEC,
        "checks": [{**hostile.SPEC["checks"][0], "id": f"c{i}", "concepts": [f"labe{i}"]} for i in range(400)],
    }
    (tmp_path / "x.yaml").write_text(json.dumps(many), encoding="utf-8")
    with hostile.WATCH.watching(seconds=4.0), pytest.raises(SpecError) as caught:
        spec.read_spec(tmp_path / "x.yaml")
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.slug == "too-many-problems"


@pytest.mark.parametrize(
    "changes",
    [
        {"measurement__bootstrap": 10**12},
        {"measurement__null_sets": 10**9},
        {"measurement__batch_size": 10**9},
        {"subject__preprocessing": {"size": 4096}, "measurement__batch_size": 64},
        {"subject__preprocessing__size": 100_000},
        {"measurement": {"reference_samples": 10**6}},
        {"measurement": {"control_sets": 10**6}},
        {"measurement": {"intervention_samples": 10**12}},
        {"data": {"source": "phantom", "samples": 10**9}},
        {"data__limit": 10**30},
        {"seed": 2**64},
        {"seed": 10**299},
    ],
    ids=str,
)
def test_gigantic_numbers_are_refused(audits: Path, changes: dict[str, object]) -> None:
    assert set(read(audits, **changes)) <= {"out-of-range", "wrong-type"}
    assert read(audits, **changes)


@pytest.mark.parametrize(
    "pattern", [r"(?P<class_index>(\d+)+)x", r"^(?P<class_index>(a|aa)+)$", r"(?P<class_index>.*.*.*.*.*)x"]
)
def test_patterns_that_never_end_are_refused(pattern: str) -> None:
    complaint = pattern_complaint(pattern, ["1_a.png"])
    assert complaint is not None
    assert complaint[0] == "slow-pattern"


@pytest.mark.parametrize(
    "pattern", [r"^(?P<class_index>\d+)_", r"^[a-z]+_(?P<class_index>\d+)_[0-9a-f]+\.jpe?g$", r"(?P<class_index>\d)"]
)
def test_patterns_that_people_write_are_not(pattern: str) -> None:
    assert pattern_complaint(pattern, ["1_a.png", "x_2_ff.jpg"] * 500) is None
