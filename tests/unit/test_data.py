from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semlens_audit.data import class_names, open_data
from semlens_audit.digest import digest_file
from semlens_audit.errors import DataError
from semlens_audit.images import read_image
from semlens_audit.phantom import world
from semlens_audit.plan import Concept, Data


def write_table(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return path.name


def test_folder_gives_sorted_samples_with_stable_ids(plan_of, image_folder):
    data = open_data(plan_of())
    assert [sample.path for sample in data.samples] == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]
    assert [sample.id for sample in data.samples] == list(range(6))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.labels.dtype == np.int64
    assert data.samples[4].sha256 == digest_file(image_folder / "b" / "1.png")
    assert data.attributes is None
    data.verify()


def test_manifest_digest_sees_content_path_and_label(plan_of, image_folder):
    before = open_data(plan_of()).sha256
    assert open_data(plan_of()).sha256 == before
    assert open_data(plan_of(classes=("b", "a"))).sha256 != before
    (image_folder / "a" / "0.png").write_bytes((image_folder / "a" / "1.png").read_bytes())
    assert open_data(plan_of()).sha256 != before


def test_hidden_files_and_other_files_are_no_samples(plan_of, image_folder):
    (image_folder / "a" / "notes.txt").write_text("x")
    (image_folder / ".cache").mkdir()
    (image_folder / ".cache" / "x.png").write_bytes((image_folder / "a" / "0.png").read_bytes())
    assert len(open_data(plan_of()).samples) == 6


def test_label_that_is_no_class_lists_every_one_with_a_suggestion(plan_of, image_folder):
    (image_folder / "a").rename(image_folder / "melanomas")
    (image_folder / "b").rename(image_folder / "zebra")
    with pytest.raises(DataError) as caught:
        open_data(plan_of(classes=("melanoma", "nevus")))
    assert [problem.slug for problem in caught.value.problems] == ["label-mismatch"] * 2
    assert "'melanoma'" in caught.value.problems[0].hint
    assert "nevus" in caught.value.problems[1].hint
    assert [problem.where for problem in caught.value.problems] == [
        str(image_folder / "melanomas"),
        str(image_folder / "zebra"),
    ]


def test_label_of_a_table_that_is_no_class_gives_its_line(plan_of, image_folder, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\na/0.png,a\nb/0.png,B\nb/1.png,B\n")
    with pytest.raises(DataError, match=r"'B' \(2 samples, e\.g\. b/0\.png\)") as caught:
        open_data(plan_of(data=Data(source="csv", path="images", labels="labels.csv")))
    assert caught.value.problems[0].where == f"{table}:3"


def test_class_of_the_spec_is_accepted_as_label(plan_of, image_folder):
    (image_folder / "a").rename(image_folder / "melanoma")
    data = open_data(plan_of(classes=("mel", "b"), class_map={"melanoma": "mel"}))
    assert data.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_one_class_is_an_error(plan_of, image_folder):
    for file in (image_folder / "b").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="one class") as caught:
        open_data(plan_of())
    assert caught.value.slug == "one-class"


def test_images_without_folder_of_a_class(plan_of, image_folder):
    (image_folder / "a" / "0.png").rename(image_folder / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png"):
        open_data(plan_of())


@pytest.mark.parametrize(
    ("path", "slug"), [("nowhere", "missing-data"), ("images/a/0.png", "missing-data"), ("empty", "no-images")]
)
def test_bad_folder(plan_of, image_folder, tmp_path, path, slug):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        open_data(plan_of(data=Data(source="folder", path=path)))
    assert caught.value.slug == slug


def test_pattern_reads_the_class_index_from_the_name(plan_of, image_folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for place, file in enumerate(sorted(image_folder.rglob("*.png"))):
        file.rename(flat / f"{place % 2:04d}_n{place}.png")
    pattern = r"^(?P<class_index>\d+)_"
    data = open_data(plan_of(data=Data(source="folder", path="flat", pattern=pattern)))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    (flat / "0000_n0.png").rename(flat / "0007_n0.png")
    (flat / "0001_n1.png").rename(flat / "x.png")
    with pytest.raises(DataError) as caught:
        open_data(plan_of(data=Data(source="folder", path="flat", pattern=pattern)))
    assert len(caught.value.problems) == 2
    for bad in (r"(\d+)", "("):
        with pytest.raises(DataError) as caught:
            open_data(plan_of(data=Data(source="folder", path="flat", pattern=bad)))
        assert caught.value.slug == "bad-pattern"


def table_data(**parts: object) -> Data:
    values = {"source": "csv", "path": "images", "labels": "labels.csv", "image_column": "id", "label_column": "dx"}
    return Data.model_validate({**values, "image_suffix": ".png", **parts})


def test_table_with_suffix_and_byte_order_mark(plan_of, image_folder, tmp_path):
    (tmp_path / "labels.csv").write_text("id,dx,age\na/2,b,30\na/0,a,40\n", encoding="utf-8-sig")
    data = open_data(plan_of(data=table_data()))
    assert [(sample.path, sample.label) for sample in data.samples] == [("a/0.png", 0), ("a/2.png", 1)]


@pytest.mark.parametrize(
    ("text", "slug", "line"),
    [
        ("id,diagnosis\na/0,a\n", "missing-column", 1),
        ("id,dx\na/0,a\na/0,b\n", "duplicate-sample", 3),
        ("id,dx\na/0\n", "short-row", 2),
        ("id,dx\n../a/0,a\n", "bad-path", 2),
        ("id,dx\n/etc/passwd,a\n", "bad-path", 2),
        ("id,dx\n", "no-images", None),
        ("id,dx\na/0,a\na/9,b\nb/9,b\n", "missing-image", None),
        ("id,dx\na/0,zz\na/1,b\n", "label-mismatch", 2),
    ],
)
def test_bad_table(plan_of, image_folder, tmp_path, text, slug, line):
    write_table(tmp_path / "labels.csv", text)
    with pytest.raises(DataError) as caught:
        open_data(plan_of(data=table_data()))
    assert caught.value.slug == slug
    assert caught.value.problems[0].line == line
    if slug == "missing-image":
        assert len(caught.value.problems) == 2


def test_missing_table_and_missing_labels(plan_of, image_folder, tmp_path):
    with pytest.raises(DataError) as caught:
        open_data(plan_of(data=table_data()))
    assert caught.value.slug == "missing-table"
    with pytest.raises(DataError) as caught:
        open_data(plan_of(data=Data(source="csv", path="images")))
    assert caught.value.slug == "no-labels"
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError) as caught:
        open_data(plan_of(data=table_data()))
    assert caught.value.slug == "unreadable-table"


def test_limit_spreads_evenly_over_the_sorted_list(plan_of, image_folder):
    data = open_data(plan_of(data=Data(source="folder", path="images", limit=2)))
    assert [sample.path for sample in data.samples] == ["a/1.png", "b/1.png"]
    assert [sample.id for sample in data.samples] == [0, 1]
    assert len(open_data(plan_of(data=Data(source="folder", path="images", limit=99))).samples) == 6


CONCEPTS = (
    Concept(id="ruler", role="spurious", descriptions=("r",)),
    Concept(id="plaster", role="spurious", descriptions=("p",), attribute="band_aid"),
)


def test_attributes_follow_the_order_of_samples(plan_of, image_folder, tmp_path):
    rows = ["b/2.png,,yes,-", "a/0.png,1,0,x", "a/1.png,0,1,", "a/2.png,nan,false,", "b/0.png,0,1,", "b/1.png,-1,TRUE,"]
    write_table(tmp_path / "attributes.csv", "\n".join(["path,ruler,band_aid,age", *rows]) + "\n")
    data = open_data(plan_of(concepts=CONCEPTS, data=Data(source="folder", path="images", attributes="attributes.csv")))
    assert data.attributes is not None
    assert sorted(data.attributes) == ["band_aid", "ruler"]
    assert data.attributes["ruler"].tolist() == [1, 0, -1, 0, -1, -1]
    assert data.attributes["band_aid"].tolist() == [0, 1, 0, 1, 1, 1]
    assert data.attributes["ruler"].dtype == np.int8


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("path,ruler,band_aid\na/0.png,1,1\n", "no row for 5 of 6"),
        ("path,ruler,band_aids\n", "no row"),
        ("path,ruler,band_aid\n" + "".join(f"{c}/{i}.png,maybe,1\n" for c in "ab" for i in range(3)), "'maybe'"),
        ("path,ruler,band_aids\n" + "".join(f"{c}/{i}.png,1,1\n" for c in "ab" for i in range(3)), "band_aid"),
    ],
)
def test_attributes_that_do_not_match(plan_of, image_folder, tmp_path, text, word):
    write_table(tmp_path / "attributes.csv", text)
    with pytest.raises(DataError, match=word) as caught:
        open_data(plan_of(concepts=CONCEPTS, data=Data(source="folder", path="images", attributes="attributes.csv")))
    assert caught.value.slug == "attributes-mismatch"


def test_classes_from_a_json_list(plan_of, tmp_path):
    (tmp_path / "classes.json").write_text('["x", "y"]')
    assert class_names(plan_of(classes="classes.json")) == ("x", "y")


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("{}", "unreadable-classes"),
        ("[1]", "unreadable-classes"),
        ("[", "unreadable-classes"),
        ('["x", "x"]', "duplicate-class"),
        ('["x"]', "too-few-classes"),
    ],
)
def test_bad_list_of_classes(plan_of, tmp_path, text, slug):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError) as caught:
        class_names(plan_of(classes="classes.json"))
    assert caught.value.slug == slug


def test_zero_byte_and_missing_images_are_all_named_at_once(plan_of, image_folder):
    (image_folder / "a" / "0.png").write_bytes(b"")
    (image_folder / "b" / "2.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_data(plan_of())
    assert [problem.slug for problem in caught.value.problems] == ["empty-image"] * 2
    assert [Path(problem.file or "").name for problem in caught.value.problems] == ["0.png", "2.png"]


def test_verify_names_every_broken_image(plan_of, image_folder):
    whole = (image_folder / "a" / "1.png").read_bytes()
    (image_folder / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "b" / "0.png").write_text("no image")
    counted: list[int] = []
    with pytest.raises(DataError) as caught:
        open_data(plan_of()).verify(progress=counted.append)
    assert sorted(Path(problem.file or "").name for problem in caught.value.problems) == ["0.png", "1.png"]
    assert sum(counted) == 6


def test_phantom_renders_once_and_atomically(plan_of, tmp_path):
    plan = plan_of(data=Data(source="phantom", samples=4, seed=3), classes=("nevus", "melanoma"))
    data = open_data(plan)
    assert len(data.samples) == 4
    assert data.attributes is not None
    assert set(data.attributes["ruler"].tolist()) <= {0, 1}
    stamp = {file: file.stat().st_mtime_ns for file in data.root.rglob("*") if file.is_file()}
    again = open_data(plan)
    assert again.sha256 == data.sha256
    assert {file: file.stat().st_mtime_ns for file in data.root.rglob("*") if file.is_file()} == stamp
    assert [path.name for path in (tmp_path / "store").iterdir()] == [data.root.name]
    other = open_data(plan_of(data=Data(source="phantom", samples=4, seed=4), classes=("nevus", "melanoma")))
    assert other.root != data.root


def test_two_processes_that_render_the_phantom_at_once_both_succeed(plan_of, tmp_path, monkeypatch):
    plan = plan_of(data=Data(source="phantom", samples=4, seed=3), classes=("nevus", "melanoma"))
    first = open_data(plan)
    folder = first.root
    aside = folder.with_name("aside")
    folder.rename(aside)
    write_folder = world.write_folder

    def slower(*arguments):
        write_folder(*arguments)
        aside.rename(folder)  # the other process finishes first

    monkeypatch.setattr(world, "write_folder", slower)
    assert open_data(plan).sha256 == first.sha256


def test_something_else_in_the_phantoms_place_is_named_and_kept(plan_of, tmp_path):
    plan = plan_of(data=Data(source="phantom", samples=4, seed=3), classes=("nevus", "melanoma"))
    folder = open_data(plan).root
    (folder / "labels.csv").unlink()
    with pytest.raises(DataError, match="phantom-not-written") as caught:
        open_data(plan)
    assert caught.value.problems[0].file == str(folder)
    assert (folder / "attributes.csv").is_file()


def test_listing_data_imports_no_torch():
    code = "import sys, semlens_audit.data, semlens_audit.subject, semlens_audit.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- image files


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), "white")
    image.paste((255, 0, 0), (0, 0, 5, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees to show
    image.save(tmp_path / "x.png", exif=exif)
    shown = read_image(tmp_path / "x.png")
    assert shown.size == (10, 20)
    assert shown.getpixel((9, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = np.tile(np.linspace(0, 255, 16, dtype=np.uint8), (16, 1))
    if mode == "I;16":
        image, name = Image.fromarray(grey.astype(np.uint16) * 257), "x.png"
    elif mode == "I":
        image, name = Image.fromarray(grey.astype(np.int32)), "x.tif"
    elif mode == "F":
        image, name = Image.fromarray(grey.astype(np.float32) / 255), "x.tif"
    else:
        image, name = Image.fromarray(grey).convert(mode), "x.tif" if mode == "CMYK" else "x.png"
    image.save(tmp_path / name)
    shown = read_image(tmp_path / name)
    assert shown.mode == "RGB"
    assert shown.size == (16, 16)
    if mode not in {"1"}:
        assert np.abs(np.asarray(shown).astype(int)[..., 0] - grey).max() <= 2


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    shown = np.asarray(read_image(tmp_path / "x.png"))
    assert (shown[:2] == 0).all()
    assert (shown[2:] == 255).all()


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=1)
    shown = read_image(tmp_path / "x.png")
    assert [shown.getpixel((0, 0)), shown.getpixel((1, 0))] == [(10, 20, 30), (255, 255, 255)]


def test_truncated_jpeg_is_refused(tmp_path):
    Image.effect_noise((200, 200), 90).save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "x.jpg")
    assert caught.value.slug == "truncated-image"
    assert str(tmp_path / "x.jpg") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "slug"), [(b"", "empty-image"), (b"not an image", "unreadable-image"), (None, "missing-image")]
)
def test_files_that_are_no_image(tmp_path, content, slug):
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "x.png")
    assert caught.value.slug == slug


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataError) as caught:
        read_image(tmp_path / "x.png")
    assert caught.value.slug == "image-too-large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # large, yet allowed: no warning that a test run turns into an error
    assert read_image(tmp_path / "x.png").size == (100, 100)


def test_huge_jpeg_decodes_at_reduced_scale_only_when_asked(tmp_path):
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").size == (1600, 1200)
    assert read_image(tmp_path / "x.jpg", at_least=300).size == (400, 300)
