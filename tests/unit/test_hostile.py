"""Files from strangers: what they may reach, what they may run, how large they may make things, and what they may show."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from semlens_audit import confinement, paths, spec
from semlens_audit.bounded import JsonLimits, LimitError, read_bytes, read_json
from semlens_audit.errors import AuditError, DataError, IntegrityError, SpecError, SubjectError, UsageError
from semlens_audit.images import read_image
from semlens_audit.name_pattern import pattern_complaint
from semlens_audit.record_file import parse_record, read_record, record_bytes
from semlens_audit.store import Store
from semlens_audit.weights import read_state
from semlens_audit.yaml_source import MAX_PROBLEMS, load
from tests.golden import sample_record
from tests.unit import hostile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def audits(tmp_path: Path) -> Path:
    """The folder of an audit with traps; what is beside its parent is outside."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"secret")
    return hostile.lay(tmp_path / "stranger" / "audits")


def read(folder: Path, **changes: object) -> list[str]:
    """Slugs of what is said of the audit in `folder` with parts replaced: ``data__path="x"``."""
    audit = json.loads(json.dumps(hostile.AUDIT))
    for name, value in changes.items():
        *outer, last = name.split("__")
        holder = audit
        for key in outer:
            holder = holder[key]
        holder[last] = value
    (folder / "spec.yaml").write_text(json.dumps(hostile.SPEC), encoding="utf-8")
    (folder / "audit.yaml").write_text(json.dumps(audit), encoding="utf-8")
    try:
        spec.read_plan(folder / "audit.yaml")
    except SpecError as error:
        return [problem.slug for problem in error.problems]
    return []


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


# -- weights and architectures --------------------------------------------------------------------------------------


class _Executes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def _zipped(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


@pytest.mark.parametrize("form", ["zip", "bare"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_never_runs(tmp_path: Path, form: str, protocol: int) -> None:
    made = tmp_path / "executed"
    for suffix in (".pt", ".pth", ".bin", ".ckpt"):
        path = tmp_path / f"weights{suffix}"
        pickled = pickle.dumps({"state_dict": _Executes(made)}, protocol=protocol)
        _zipped(path, pickled) if form == "zip" else path.write_bytes(pickled)
        with pytest.raises(SubjectError) as caught:
            read_state(path)
        assert caught.value.slug in ("unsafe-weights", "unreadable-weights")
        assert not made.exists()
    pickle.loads(pickle.dumps(_Executes(made)))
    assert made.exists(), "the same pickle does run where nothing prevents it"


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}',
        struct.pack("<Q", 2) + b"[]",
        b"",
        b"\0" * 7,
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
    ],
)
def test_safetensors_with_a_header_that_lies(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(SubjectError) as caught:
        read_state(tmp_path / "w.safetensors")
    assert caught.value.slug == "unreadable-weights"


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/model", "hf_hub:a/b", "local-dir:/etc", "http://127.0.0.1/x", "../x", "a/../b", "/etc/x", ""]
)
def test_names_of_models_are_looked_up_nowhere_else(audits: Path, name: str) -> None:
    assert set(read(audits, subject__model__name=name)) & {"bad-model-name", "empty-value"}
    foundation = {"source": "open_clip", "name": name, "weights": "weights.safetensors"}
    assert set(read(audits, foundation_model=foundation)) & {"bad-model-name", "empty-value"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"checkpoint_path": "x.pt"},
        {"pretrained": True},
        {"pretrained_cfg": {"url": "http://127.0.0.1:9/x.pt"}},
        {"pretrained_cfg_overlay": {"file": "x.pt"}},
        {"cache_dir": "x"},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        {"norm_layer": "os:system"},
        {"num_classes": 10**9},
        {"channels": [10**6, 10**6]},
        {"layers": [100_000]},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}},
        {"x": [0] * 600},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_arguments_fetch_nothing_and_build_nothing_gigantic(audits: Path, arguments: dict[str, object]) -> None:
    assert read(audits, subject__model__arguments=arguments) == ["bad-arguments"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 21_841, "drop_path_rate": 0.1},
        {"pretrained": False},
        {"channels": [64, 128], "global_pool": "avg", "pad_type": "same"},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_arguments_that_people_write_are_fine(audits: Path, arguments: dict[str, object]) -> None:
    assert read(audits, subject__model__arguments=arguments) == []


@pytest.mark.parametrize(
    "config",
    [
        {"text_cfg": {"hf_model_name": "someone/model"}},
        {"vision_cfg": {"timm_model_name": "hf-hub:someone/model"}},
        {"vision_cfg": {"timm_model_name": "resnet18", "timm_model_pretrained": True}},
        {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}},
        {"vision_cfg": {"width": 10**9}},
        [],
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_model_directory_leads_nowhere_else(audits: Path, config: object) -> None:
    (audits / "clip").mkdir()
    (audits / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}), encoding="utf-8")
    assert read(audits, foundation_model={"source": "open_clip", "name": "clip"}) == ["bad-model-directory"]


def test_code_is_not_even_looked_for_outside_and_never_run_unasked(audits: Path) -> None:
    assert read(audits, subject__model={"source": "code", "name": "../../outside/code.py:f"}) == ["path-outside"]
    assert read(audits, subject__model={"source": "code", "name": "code.py:f"}) == []  # its first line would end the process
    done = subprocess.run(
        [sys.executable, "-m", "semlens_audit", "index", str(audits / "audit.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "[code-not-allowed]" in done.stderr


@pytest.mark.parametrize(
    "classes",
    [["a"], ["a", "a"], ["a", 1], ["a", "b\x1b[2J"], ["a", "\u202eb"], ["a", "b" * 1000], {"a": 1}, [["a"], ["b"]], "x"],
    ids=lambda value: json.dumps(value)[:30],
)
def test_lists_of_classes_that_are_none(audits: Path, classes: object) -> None:
    (audits / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    assert set(read(audits, subject__classes="classes.json")) & {"bad-classes", "duplicate-class"}


# -- images and stores ----------------------------------------------------------------------------------------------


def _png(width: int, height: int, data: bytes, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "slug"),
    [
        (_png(100_000, 100_000, zlib.compress(b"\0" * 1_000_000)), "image-too-large"),
        (_png(2**31 - 1, 2**31 - 1, b""), "image-too-large"),
        (_png(64, 64, zlib.compress(b"\0" * 64)), "unreadable-image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n", "unreadable-image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "unreadable-image"),
        (b"%PDF-1.7\n1 0 obj\n", "unreadable-image"),
        (b"", "empty-image"),
        (b"SIMPLE  =                    T" + b" " * 3000, "unreadable-image"),
    ],
    ids=["bomb", "gigantic", "short", "postscript", "svg", "pdf", "empty", "fits"],
)
def test_images_that_are_meant_to_hurt(tmp_path: Path, content: bytes, slug: str) -> None:
    path = tmp_path / "innocent.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.slug in (slug, "truncated-image" if slug == "unreadable-image" else slug)


def test_only_formats_that_are_decoded_here_are_read(tmp_path: Path) -> None:
    for name, form in (
        ("a.png", "PNG"),
        ("b.jpg", "JPEG"),
        ("c.tif", "TIFF"),
        ("d.webp", "WEBP"),
        ("e.gif", "GIF"),
        ("f.bmp", "BMP"),
        ("g.ppm", "PPM"),
    ):
        Image.new("RGB", (4, 4), (10, 20, 30)).save(tmp_path / name, form)
        assert read_image(tmp_path / name).size == (4, 4)
    done = subprocess.run(
        [sys.executable, "-c", "from PIL import Image\nImage.init()\nimport semlens_audit\nprint(sorted(set(Image.OPEN)))"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.strip() == str(sorted(semlens_formats()))


def semlens_formats() -> set[str]:
    from semlens_audit.image_formats import FORMATS

    return {form for form in FORMATS if form in Image.OPEN}


def test_a_store_from_a_stranger_reads_no_other_file(tmp_path: Path) -> None:
    import duckdb

    secret = tmp_path / "secret.csv"
    secret.write_text("secret", encoding="utf-8")
    with Store.open(tmp_path / "s.duckdb"):
        pass
    connection = duckdb.connect(str(tmp_path / "s.duckdb"))
    connection.execute("ALTER TABLE run_log RENAME TO other")
    connection.execute(
        f"CREATE VIEW run_log AS SELECT now()::TIMESTAMP AS at, 'x' AS event, content AS detail FROM read_text('{secret}')"
    )
    assert connection.execute("SELECT detail FROM run_log").fetchall() == [("secret",)]
    connection.close()
    with pytest.raises(AuditError) as caught, Store.open(tmp_path / "s.duckdb") as store:
        store.rows("SELECT * FROM run_log")
    assert "secret\n" not in str(caught.value)


# -- records --------------------------------------------------------------------------------------------------------

GOOD = record_bytes(sample_record.sample("shortcut"))


def test_a_good_record_is_read() -> None:
    assert record_bytes(parse_record(GOOD, "x")) == GOOD


def _with(old: bytes, new: bytes) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


@pytest.mark.parametrize(
    "data",
    [
        _with(b'"schema_version"', b'"schema_version": "1.1", "schema_version"'),
        _with(b'"findings": [', b'"findings": [' + b"[" * 500 + b"]" * 500 + b","),
        _with(b'"findings": [', b'"findings": [' + b"0," * 1_100_000),
        _with(b'"findings": [', b'"findings": [NaN,'),
        _with(b'"findings": [', b'"findings": [-Infinity,'),
        _with(b'"findings": [', b'"findings": [1e999,'),
        _with(b'"findings": [', b'"findings": [' + b"9" * 5000 + b","),
        _with(b'"findings": [', b'"findings": [\x00'),
        _with(b'"findings": [', b'"findings": [{"state": "satisfied"},'),
        GOOD[:-100],
        b"",
        b"[]",
        b"[" * 1_000_000,
        b'{"schema_version": "1.1"}',
        b" " * 64_000_001,
        _with(b"/9j/", b"AAAA"),
    ],
    ids=["twice", "deep", "many", "nan", "infinity", "1e999", "digits", "nul", "partial", "cut", "empty", "list", "brackets", "bare",
         "large", "image"],
)  # fmt: skip
def test_records_that_are_none_are_refused_at_once(data: bytes) -> None:
    with hostile.WATCH.watching(seconds=2.0), pytest.raises(IntegrityError) as caught:
        parse_record(data, "results.json")
    assert caught.value.slug == "invalid-record"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"<svg onload='alert(1)'/>", b"\xff\xd8\xff\xd9", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_images_of_records_are_the_jpegs_that_their_keys_name(content: bytes) -> None:
    import base64
    import hashlib

    value = json.loads(GOOD)
    value["images"][hashlib.sha256(content).hexdigest()] = base64.b64encode(content).decode()
    with pytest.raises(IntegrityError, match="JPEG"):
        parse_record(json.dumps(value).encode(), "results.json")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"a": [1, {"b": 2, "b": 3}]}', "twice"),
        (b"[NaN]", "NaN"),
        (b"[1e400]", "larger than 1.79"),
        (b"[9223372036854775808]", "digits"),
        (b"[" * 12 + b"]" * 12, "deeper"),
        (b"[" * 900_000, "values"),
        (b"\xff", "UTF-8"),
        (b"{", "no JSON"),
        (b" " * 2000, "larger"),
    ],
)
def test_json_that_readers_would_disagree_about(data: bytes, why: str) -> None:
    with pytest.raises(LimitError, match=why):
        read_json(data, JsonLimits(size=1000 if data.isspace() else 10_000_000, values=100, depth=10))


def test_json_within_limits_is_what_json_says() -> None:
    text = '{"a": [1, -2.5e3, "\\u00e9", null, true], "b": {"c": 9223372036854775807}}'
    assert read_json(text.encode(), JsonLimits(size=1000, values=100)) == json.loads(text)
