"""Tables of counterfactual pairs: what they mean, and every way in which they can be wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semlens_audit.counterfactuals import PairSet, open_pairs
from semlens_audit.data import open_data
from semlens_audit.errors import DataError
from semlens_audit.phantom import world as phantom
from semlens_audit.phantom.pairs import write_pairs
from semlens_audit.spec import lint
from tests.unit import index_world as world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images ``images/pairs/0.png`` to ``7.png``, all different; 7 is of another size."""
    (tmp_path / "images" / "pairs").mkdir(parents=True)
    for number in range(8):
        size = (9, 9, 3) if number == 7 else (8, 8, 3)
        pixels = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "pairs" / f"{number}.png")
    return tmp_path


def table(folder: Path, rows: Sequence[Sequence[object]], head: Sequence[str] = ("without", "with", "concept")) -> Path:
    path = folder / "pairs.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return path


def opened(folder: Path, **concepts: Any) -> PairSet:
    values = world.audit()
    values["data"] = values["data"] | {"pairs": "pairs.csv"}
    found = open_pairs(world.plan(folder, values, **concepts), folder / "images")
    assert found is not None
    return found


def pair(first: int, second: int, concept: str = "ruler") -> tuple[str, str, str]:
    return f"pairs/{first}.png", f"pairs/{second}.png", concept


def refused(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(folder)
    return caught.value


class TestMeaning:
    def test_each_image_is_run_once(self, folder: Path) -> None:
        table(folder, [pair(0, 1), pair(0, 2, "border"), pair(3, 4)])
        pairs = opened(folder)
        assert len(pairs.images) == 5
        assert [one.line for one in pairs.pairs] == [2, 3, 4]
        for one, (without, present) in zip(pairs.pairs, pairs.places, strict=True):
            assert pairs.images[without] == (pairs.digests[one.without], one.without)
            assert pairs.images[present] == (pairs.digests[one.present], one.present)

    def test_pairs_of_a_concept_that_share_an_image_are_one_unit(self, folder: Path) -> None:
        table(folder, [pair(0, 1), pair(2, 1), pair(2, 3), pair(4, 5), pair(0, 3, "border")])
        units = opened(folder).units
        assert units[0] == units[1] == units[2]
        assert len({units[0], units[3], units[4]}) == 3

    def test_a_copy_under_another_name_is_the_same_image(self, folder: Path) -> None:
        (folder / "images" / "copy.png").write_bytes((folder / "images" / "pairs" / "0.png").read_bytes())
        table(folder, [pair(0, 1), ("copy.png", "pairs/2.png", "ruler")])
        pairs = opened(folder)
        assert len(pairs.images) == 3
        assert len(set(pairs.units)) == 1

    def test_the_digest_tells_pairs_apart_but_not_their_order(self, folder: Path) -> None:
        rows = [pair(0, 1), pair(2, 3)]
        table(folder, rows)
        digest = opened(folder).sha256
        table(folder, rows[::-1])
        assert opened(folder).sha256 == digest
        table(folder, [pair(0, 3), pair(2, 1)])
        assert opened(folder).sha256 != digest

    def test_a_concept_may_be_named_by_its_attribute_column(self, folder: Path) -> None:
        spec = world.spec()
        spec["concepts"][0]["attribute"] = "has_ruler"
        table(folder, [pair(0, 1, "has_ruler")])
        assert opened(folder, spec_values=spec).pairs[0].concept == "ruler"

    def test_without_a_table_there_are_none(self, folder: Path) -> None:
        assert open_pairs(world.plan(folder), folder / "images") is None


class TestBadInput:
    def test_every_problem_of_the_table_at_once(self, folder: Path) -> None:
        path = table(folder, [pair(0, 1, "rular"), ("../x.png", "pairs/1.png", "ruler"), pair(0, 1), ("/a", "", "nothing")])
        problems = refused(folder).problems
        assert [(one.slug, one.line) for one in problems] == [
            ("unknown-concept", 2), ("bad-path", 3), ("unknown-concept", 5), ("bad-path", 5), ("bad-path", 5),
        ]  # fmt: skip
        assert problems[0].hint == "Did you mean 'ruler'?"
        assert {one.file for one in problems} == {str(path)}

    @pytest.mark.parametrize("column", ["without", "with", "concept"])
    def test_a_missing_column(self, folder: Path, column: str) -> None:
        head = [name if name != column else "other" for name in ("without", "with", "concept")]
        table(folder, [pair(0, 1)], head)
        error = refused(folder)
        assert error.slug == "missing-column"
        assert f"{column!r}" in str(error)

    def test_no_row(self, folder: Path) -> None:
        table(folder, [])
        assert refused(folder).slug == "no-pairs"

    def test_a_row_that_is_too_short(self, folder: Path) -> None:
        table(folder, [pair(0, 1), ("pairs/2.png",)])
        assert refused(folder).slug == "short-row"

    def test_images_that_are_missing_or_empty(self, folder: Path) -> None:
        (folder / "images" / "empty.png").touch()
        table(folder, [pair(0, 1), ("pairs/0.png", "pairs/9.png", "ruler"), ("empty.png", "pairs/2.png", "ruler")])
        assert [(one.slug, one.line) for one in refused(folder).problems] == [("missing-image", 3), ("empty-image", 4)]

    def test_pairs_that_are_no_pairs(self, folder: Path) -> None:
        (folder / "images" / "copy.png").write_bytes((folder / "images" / "pairs" / "0.png").read_bytes())
        table(
            folder,
            [pair(0, 1), pair(2, 2), ("pairs/0.png", "copy.png", "ruler"), pair(0, 1), pair(1, 0), pair(1, 0, "border")],
        )
        assert [(one.slug, one.line) for one in refused(folder).problems] == [
            ("pair-same-image", 3), ("pair-same-image", 4), ("duplicate-pair", 5), ("contradictory-pair", 6),
        ]  # fmt: skip

    def test_images_that_do_not_decode_or_differ_in_size(self, folder: Path) -> None:
        broken = folder / "images" / "pairs" / "3.png"
        broken.write_bytes(broken.read_bytes()[:60])
        table(folder, [pair(0, 1), pair(2, 3), pair(4, 7)])
        pairs, seen = opened(folder), []
        with pytest.raises(DataError) as caught:
            pairs.verify(progress=seen.append)
        first, second = caught.value.problems
        assert first.file == str(broken)
        assert (second.slug, second.line) == ("pair-sizes-differ", 4)
        assert sum(seen) == len(pairs.images)

    def test_the_audit_file_is_told_what_fits(self, folder: Path) -> None:
        for name in ("clip", "examples"):
            (folder / name).mkdir()
        (folder / "small.safetensors").touch()
        (folder / "clip" / "open_clip_config.json").touch()
        Image.new("RGB", (30, 30)).save(folder / "examples" / "a.png")
        (folder / "spec.yaml").write_text(json.dumps(world.spec()))

        def slugs(**data: Any) -> list[tuple[str, int | None]]:
            values = world.audit()
            values["data"] = data
            (folder / "audit.yaml").write_text(json.dumps(values, indent=1))
            return [(one.slug, one.line) for one in lint([folder / "audit.yaml"])]

        images = {"source": "folder", "path": "images"}
        table(folder, [pair(0, 1)])
        assert slugs(**images, pairs="pairs.csv") == []
        assert [slug for slug, _ in slugs(**images, pairs="none.csv")] == ["missing-file"]
        assert [slug for slug, _ in slugs(**images, rendered_pairs=30)] == ["unused-key"]
        assert [slug for slug, _ in slugs(source="phantom", pairs="pairs.csv")] == ["unused-key"]
        assert slugs(source="phantom", rendered_pairs=30) == []
        assert slugs(source="phantom", rendered_pairs="many")


class TestRendered:
    def test_pairs_differ_by_the_attribute_alone(self, tmp_path: Path) -> None:
        write_pairs(tmp_path / "pairs", phantom.Population(), 6, 5, ["ruler", "hair"], size=64)
        cases = phantom.sample(phantom.Population(), 6, 5)
        with (tmp_path / "pairs" / "pairs.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == 12
        for row in rows:
            case = cases[int(Path(row["with"]).stem[:5])]
            off, on = phantom.toggle(case.lesion, case.attributes, row["concept"], 64)
            assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs" / row["without"])), off)
            assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs" / row["with"])), on)

    def test_bad_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="rular"):
            write_pairs(tmp_path / "a", phantom.Population(), 2, 0, ["rular"])
        with pytest.raises(ValueError, match="at least 1"):
            write_pairs(tmp_path / "a", phantom.Population(), 0, 0)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(DataError, match="not empty"):
            write_pairs(tmp_path / "full", phantom.Population(), 2, 0)

    def test_rendered_once_for_what_checks_name(self, tmp_path: Path) -> None:
        spec = world.spec()
        asked = spec["checks"][0] | {"id": "pairs", "kind": "pair_effect", "criterion": {"at_most": 1.0}}
        values = world.audit(data={"source": "phantom", "samples": 4, "rendered_pairs": 3})
        nothing = open_data(world.plan(tmp_path, values))
        assert nothing.pairs is None
        plan = world.plan(tmp_path, values, spec | {"checks": [*spec["checks"], asked]})
        first = open_data(plan).pairs
        assert first is not None
        assert [one.concept for one in first.pairs] == ["ruler"] * 3
        assert len(first.images) == 6
        stamp = first.table.stat().st_mtime_ns
        again = open_data(plan).pairs
        assert again is not None
        assert (again.sha256, again.table.stat().st_mtime_ns) == (first.sha256, stamp)
