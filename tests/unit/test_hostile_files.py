"""Weights, tables, images, stores and records from strangers: nothing runs, nothing swells, nothing else is read."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from semlens_audit.bounded import JsonLimits, LimitError, read_json
from semlens_audit.errors import AuditError, DataError, IntegrityError, SubjectError
from semlens_audit.images import read_image
from semlens_audit.record_file import parse_record, record_bytes
from semlens_audit.store import Store
from semlens_audit.tables import read_labels
from semlens_audit.weights import read_state
from tests.golden import sample_record
from tests.unit import hostile
from tests.unit.hostile import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def audits(tmp_path: Path) -> Path:
    """The folder of an audit with traps; what is beside its parent is outside."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"secret")
    return hostile.lay(tmp_path / "stranger" / "audits")


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


def _archive(path: Path, *, compression: int, size: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", b"\0" * size)


def test_an_archive_that_swells_is_no_weights_file(audits: Path) -> None:
    _archive(audits / "w.pt", compression=zipfile.ZIP_DEFLATED, size=10_000_000)
    assert read(audits, subject__model__weights="w.pt") == ["bad-weights"]
    _archive(audits / "w.pt", compression=zipfile.ZIP_STORED, size=100_000)
    assert read(audits, subject__model__weights="w.pt") == []


# -- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", ["../x.png", "/etc/x", "C:\\x.png", "C:x.png", "\\\\host\\share\\x.png", "a/../../x", "..\\x.png", ""]
)
def test_no_row_of_a_table_leads_out_of_the_data(tmp_path: Path, row: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,label\n{row},a\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "t.csv", "path", "label", "")
    assert caught.value.slug == "bad-path"


@pytest.mark.parametrize(
    "content",
    [b"path,label\n" + b"a" * 300_000 + b",x\n", "path,label\na,b\n".encode("utf-16"), b"", b'path,label\n"', b"\0" * 100],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError):
        read_labels(tmp_path / "t.csv", "path", "label", "")


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
