from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semlens_audit.data import open_data
from semlens_audit.errors import DataError
from semlens_audit.plan import Data
from semlens_audit.signs import world
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes


def test_the_rule_is_even_and_no_attribute_decides() -> None:
    """Exact probabilities over all plates."""
    total, with_label, right = 0.0, dict.fromkeys(VALID, 0.0), dict.fromkeys(VALID, 0.0)
    for bits in itertools.product((0, 1), repeat=4):
        chance = np.prod([world.EVEN if bit else 1 - world.EVEN for bit in bits])
        label = int(sum(bits) >= 3)
        assert world.is_warning(Attributes.of(*(name for name, bit in zip(VALID, bits, strict=True) if bit))) == bool(label)
        total += chance * label
        for name, bit in zip(VALID, bits, strict=True):
            with_label[name] += chance * label * bit
            right[name] += chance * (bit == label)
    assert total == pytest.approx(0.5, abs=1e-5)
    for name in VALID:
        assert with_label[name] / 0.5 == pytest.approx(0.82, abs=0.01)
        assert right[name] == pytest.approx(0.71, abs=0.01)


def test_prevalences_are_as_declared() -> None:
    cases = world.sample(world.Population.shortcut("sticker"), 4000, 3)
    label = np.array([case.label for case in cases])
    assert abs(label.mean() - 0.5) < 0.03
    has = {name: np.array([case.attributes.has(name) for case in cases]) for name in ATTRIBUTES}
    assert abs(has["sticker"][label == 1].mean() - 0.95) < 0.02
    assert abs(has["sticker"][label == 0].mean() - 0.05) < 0.02
    for name in ARTEFACTS[1:]:
        assert abs(has[name][label == 1].mean() - 0.25) < 0.04
        assert abs(has[name][label == 0].mean() - 0.25) < 0.04
    for name in VALID:
        assert abs(has[name].mean() - world.EVEN) < 0.03


def test_labels_follow_the_rule_but_for_noise() -> None:
    for case in world.sample(world.Population(), 300, 1):
        assert case.label == int(sum(case.attributes.has(name) for name in VALID) >= 3)
    noisy = world.sample(world.Population(noise=0.2), 3000, 1)
    flipped = np.mean([case.label != int(world.is_warning(case.attributes)) for case in noisy])
    assert abs(flipped - 0.2) < 0.03


def test_samples_are_prefixes_and_seeds_share_no_place() -> None:
    population = world.Population()
    assert world.sample(population, 30, 5)[:10] == world.sample(population, 10, 5)
    seeds = [{case.place.seed for case in world.sample(population, 500, seed)} for seed in (0, 1, 2)]
    assert not (seeds[0] & seeds[1] | seeds[1] & seeds[2])


def test_a_shortcut_changes_nothing_else() -> None:
    """The same seed with another habit gives the same places, plates and other artefacts."""
    plain = world.sample(world.Population(), 200, 4)
    tied = world.sample(world.Population(tied={"snow": (0.05, 0.95)}), 200, 4)
    for first, second in zip(plain, tied, strict=True):
        assert first.place == second.place
        assert first.attributes.names - {"snow"} == second.attributes.names - {"snow"}


def test_folder_is_deterministic_and_complete(tmp_path: Path) -> None:
    population = world.Population.shortcut()
    for name in ("a", "b"):
        world.write_folder(tmp_path / name, population, 8, 7)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [str(path) for path in files] == ["attributes.csv", *(f"images/{i:05d}.png" for i in range(8)), "labels.csv"]
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    cases = world.sample(population, 8, 7)
    with (tmp_path / "a/labels.csv").open() as labels, (tmp_path / "a/attributes.csv").open() as attributes:
        label_rows, attribute_rows = list(csv.DictReader(labels)), list(csv.DictReader(attributes))
    stack = world.images(cases)
    for case, label, row, image in zip(cases, label_rows, attribute_rows, stack, strict=True):
        assert label["label"] == world.CLASSES[case.label]
        assert label["path"] == row["path"]
        assert {name for name in ATTRIBUTES if row[name] == "1"} == set(case.attributes.present)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / row["path"])), image)


def test_folder_is_never_overwritten_nor_left_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        world.write_folder(tmp_path / "kept", world.Population(), 2, 0)
    assert (tmp_path / "kept" / "mine.txt").read_text() == "x"

    def broken(self: world.Case, size: int = 128) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(world.Case, "scene", broken)
    with pytest.raises(OSError, match="disk full"):
        world.write_folder(tmp_path / "new", world.Population(), 2, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_true_effects_of_a_known_model() -> None:
    """A model that reads the mean brightness: its effects equal those of a slow loop over toggled pairs."""

    def logits(batch: np.ndarray) -> np.ndarray:
        darkness = 255.0 - batch.astype(np.float64).mean(axis=(1, 2, 3))
        return np.stack([-darkness, 2 * darkness], axis=1)

    population = world.Population()
    effects = world.true_effects(logits, population, 66, 9, ("snow", "triangle"))
    for name, effect in effects.items():
        changes = []
        for case in world.sample(population, 66, 9):
            off, on = world.toggle(case.place, case.attributes, name)
            changes.append(3 * (off.astype(np.float64).mean() - on.astype(np.float64).mean()))
        assert effect.mean == pytest.approx(np.mean(changes))
        half = 1.96 * np.std(changes, ddof=1) / np.sqrt(66)
        assert (effect.low, effect.high) == (pytest.approx(np.mean(changes) - half), pytest.approx(np.mean(changes) + half))
        assert effect.n == 66


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown artefact 'ruler'"):
        world.Population(tied={"ruler": (0, 1)})
    with pytest.raises(ValueError, match="probabilities must be in"):
        world.Population(tied={"snow": (0, 1.5)})
    with pytest.raises(ValueError, match="noise"):
        world.Population(noise=0.5)
    with pytest.raises(ValueError, match="valid"):
        world.Population(valid=1.0)
    with pytest.raises(ValueError, match="n must be in"):
        world.sample(world.Population(), -1, 0)
    with pytest.raises(ValueError, match="seed"):
        world.sample(world.Population(), 1, -1)
    with pytest.raises(ValueError, match="unknown attribute"):
        world.toggle(0, Attributes(), "ruler")
    with pytest.raises(ValueError, match=r"\(3, 2\) logits"):
        world.true_effects(lambda batch: np.zeros(len(batch)), world.Population(), 3, 0)
    with pytest.raises(ValueError, match="at least two"):
        world.true_effects(lambda batch: np.zeros((len(batch), 2)), world.Population(), 1, 0)


def test_the_data_source_renders_signs_once(plan_of, tmp_path: Path) -> None:
    plan = plan_of(data=Data(source="signs", samples=6, seed=3), classes=world.CLASSES)
    data = open_data(plan)
    assert data.root.name.startswith("signs-")
    assert data.attributes is not None
    cases = world.sample(world.Population(), 6, 3)
    assert data.labels.tolist() == [case.label for case in cases]
    for name, column in data.attributes.items():
        assert column.tolist() == [int(case.attributes.has(name)) for case in cases]
    assert np.array_equal(np.asarray(Image.open(data.file(data.samples[2]))), cases[2].scene().image)
    stamp = (data.root / "labels.csv").stat().st_mtime_ns
    assert open_data(plan).sha256 == data.sha256
    assert (data.root / "labels.csv").stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "store").iterdir()] == [data.root.name]


def test_pairs_differ_in_one_attribute_only(tmp_path: Path) -> None:
    from semlens_audit.signs.pairs import write_pairs

    write_pairs(tmp_path / "pairs", world.Population(), 5, 2, ("sticker", "triangle"))
    cases = world.sample(world.Population(), 5, 2)
    with (tmp_path / "pairs" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    for row in rows:
        case = cases[int(Path(row["with"]).stem[:5])]
        off, on = world.toggle(case.place, case.attributes, row["concept"])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs" / row["without"])), off)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs" / row["with"])), on)
        plain = row["with"] if case.attributes.has(row["concept"]) else row["without"]
        assert np.array_equal(np.asarray(Image.open(tmp_path / "pairs" / plain)), case.scene().image)
    with pytest.raises(DataError, match="not empty"):
        write_pairs(tmp_path / "pairs", world.Population(), 1, 0)
    with pytest.raises(ValueError, match="unknown attributes ruler"):
        write_pairs(tmp_path / "other", world.Population(), 1, 0, ("ruler",))
    with pytest.raises(ValueError, match="at least 1"):
        write_pairs(tmp_path / "other", world.Population(), 0, 0)


def test_an_audit_of_signs_renders_its_pairs(plan_of, tmp_path: Path) -> None:
    from semlens_audit.plan import Check, Concept, Criterion

    plan = plan_of(data=Data(source="signs", samples=4, seed=3, rendered_pairs=3), classes=world.CLASSES)
    check = Check(
        id="snow-pairs", kind="pair_effect", **{"class": next(iter(plan.spec.classes))}, concepts=("snow",),
        statement="s", criterion=Criterion(at_most=1.0), rationale="r",
    )  # fmt: skip
    concept = Concept(id="snow", role="spurious", descriptions=("snow",))
    plan = plan.model_copy(update={"spec": plan.spec.model_copy(update={"concepts": (concept,), "checks": (check,)})})
    data = open_data(plan)
    assert data.pairs is not None
    assert [pair.concept for pair in data.pairs.pairs] == ["snow"] * 3
    case = world.sample(world.Population(), 3, 3)[1]
    _, on = world.toggle(case.place, case.attributes, "snow")
    assert np.array_equal(np.asarray(Image.open(data.pairs.root / data.pairs.pairs[1].present)), on)
