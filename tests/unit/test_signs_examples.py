from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semlens_audit import spec
from semlens_audit.signs import examples
from semlens_audit.signs.crops import (
    ABSENT,
    COLOURS,
    FACTS,
    OPEN,
    PRESENT,
    SIDE,
    SURROUNDINGS,
    draw_box,
    render_crops,
    rendered,
    states,
)
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Place, render

ROOT = Path(examples.__file__).parents[2]
SPEC = ROOT / "specs" / "traffic-signs.yaml"


@pytest.fixture(scope="module")
def shown() -> tuple[examples.Marked, ...]:
    return examples.marked(4, 1)


def test_every_concept_has_as_many_examples_as_asked(shown: tuple[examples.Marked, ...]) -> None:
    assert Counter(name for entry in shown for name in entry.boxes) == dict.fromkeys(examples.CONCEPTS, 4)
    assert len({entry.seed for entry in shown}) == len(shown)


def test_boxes_hold_the_attribute_and_little_else(shown: tuple[examples.Marked, ...]) -> None:
    for entry in shown:
        for name, (x0, y0, x1, y1) in entry.boxes.items():
            if name in SURROUNDINGS:
                continue
            mask = entry.scene.masks[name]
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
            assert min(x1 - x0, y1 - y0) >= 32
            assert states(entry.scene, (x0, y0, x1, y1))[ATTRIBUTES.index(name)] == PRESENT
            if name == "snow":
                continue
            assert mask[y0:y1, x0:x1].sum() >= 0.9 * mask.sum(), (entry.seed, name)
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            assert x1 - x0 <= max(32, 1.7 * np.ptp(columns) + 3, 0.75 * np.ptp(rows) + 3), (entry.seed, name)
            assert y1 - y0 <= max(32, 1.7 * np.ptp(rows) + 3, 0.75 * np.ptp(columns) + 3), (entry.seed, name)


def test_surroundings_are_marked_where_no_artefact_is(shown: tuple[examples.Marked, ...]) -> None:
    for entry in shown:
        for name in set(SURROUNDINGS) & set(entry.boxes):
            x0, y0, x1, y1 = box = entry.boxes[name]
            window = np.s_[y0:y1, x0:x1]
            assert states(entry.scene, box)[FACTS.index(name)] == PRESENT
            assert entry.scene.things[name][window].any()
            assert entry.scene.plate[window].mean() < 0.05
            for artefact in set(ARTEFACTS) & set(entry.scene.masks):
                assert entry.scene.masks[artefact][window].sum() <= 0.03 * entry.scene.masks[artefact].sum()


def test_examples_vary_in_what_else_they_show() -> None:
    """No attribute's examples all share another one, and none is of a single kind of plate."""
    entries = examples.marked()
    for name in ATTRIBUTES:
        own = [entry for entry in entries if name in entry.boxes]
        assert len(own) == examples.PER_CONCEPT
        for other in ATTRIBUTES:
            if other != name:
                assert sum(other in entry.scene.masks for entry in own) < len(own), (name, other)
        if name != "snow":
            assert sum("snow" in entry.scene.masks for entry in own) <= len(own) / 2, name


def test_examples_are_of_places_used_nowhere_else() -> None:
    from semlens_audit.signs import world
    from semlens_audit.signs.crops import EVALUATION_SEEDS, TRAINING_SEEDS

    seeds = {entry.seed for entry in examples.marked()}
    assert min(seeds) >= 3_000_000 > EVALUATION_SEEDS + 500_000
    assert min(seeds) > TRAINING_SEEDS + 1_500_000
    assert max(seeds) < world.BLOCK  # samples of other seeds than 0 begin here, and no sample of seed 0 is as long as that


def test_written_files_are_what_the_spec_ships(tmp_path: Path) -> None:
    written = examples.write_examples(tmp_path)
    found, _ = spec.read_spec(SPEC)
    assert {concept.id for concept in found.concepts if concept.role == "valid"} == set(VALID)
    assert {concept.id for concept in found.concepts if concept.role == "spurious"} == set(ARTEFACTS)
    assert {concept.id for concept in found.concepts if concept.role == "neutral"} == set(SURROUNDINGS)
    for concept in found.concepts:
        assert [(f"traffic-signs/{entry.image}", entry.box) for entry in written[concept.id]] == [
            (entry.image, entry.box) for entry in concept.examples
        ]
    shipped = sorted((ROOT / "specs" / "traffic-signs").iterdir())
    assert [path.name for path in shipped] == sorted(path.name for path in tmp_path.iterdir())
    assert sum(path.stat().st_size for path in shipped) <= 250_000
    for path in shipped:
        ours, theirs = (np.asarray(Image.open(folder / path.name)).astype(int) for folder in (tmp_path, path.parent))
        # Another version of the JPEG library may round otherwise.
        assert np.abs(ours - theirs).mean() < 2, path.name


def test_spec_mirrors_the_checks_of_the_other_world() -> None:
    found, _ = spec.read_spec(SPEC)
    other, _ = spec.read_spec(ROOT / "specs" / "melanoma-abcde.yaml")
    bounds = {check.kind: check.criterion.operator for check in other.checks}
    for check in found.checks:
        assert check.criterion.operator == bounds[check.kind]
    for kind in ("concept_not_used", "behavioural_effect"):
        assert sorted(check.concepts for check in found.checks if check.kind == kind) == sorted((name,) for name in ARTEFACTS)


def test_pictures_are_the_crops_at_the_encoder_s_size() -> None:
    pictures = examples.pictures("snow", 4, 1)
    assert pictures.shape == (4, SIDE, SIDE, 3)
    assert pictures.dtype == np.uint8


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="per_concept"):
        examples.marked(0)
    with pytest.raises(ValueError, match="seed"):
        examples.marked(1, -1)


# ---- crops


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.sets(st.sampled_from(ATTRIBUTES)), st.integers(0, 1000))
def test_states_follow_the_masks(seed: int, names: set[str], draw: int) -> None:
    scene = render(seed, Attributes.from_names(names))
    rng = np.random.default_rng(draw)
    x0, y0, x1, y1 = box = draw_box(scene, rng)
    assert 0 <= x0 < x1 <= 128
    assert 0 <= y0 < y1 <= 128
    found, whole = states(scene, box), states(scene, (0, 0, 128, 128))
    for index, name in enumerate(ATTRIBUTES):
        if scene.bleached and name in COLOURS:
            assert whole[index] == OPEN
            assert found[index] == (OPEN if scene.plate[y0:y1, x0:x1].any() else ABSENT)
            continue
        assert whole[index] == (PRESENT if name in names else ABSENT)
        if name not in names or not scene.masks[name][y0:y1, x0:x1].any():
            assert found[index] == ABSENT
        elif scene.masks[name][y0:y1, x0:x1].sum() == scene.masks[name].sum():
            assert found[index] == PRESENT


def test_a_box_that_cuts_an_attribute_in_half_is_left_open() -> None:
    scene = render(Place(2), Attributes.of("exclamation_mark"))
    rows, _ = np.nonzero(scene.masks["exclamation_mark"])
    box = (0, 0, 128, int(np.median(rows)))
    assert states(scene, box)[ATTRIBUTES.index("exclamation_mark")] == OPEN


def test_crops_do_not_depend_on_the_number_of_processes_nor_on_the_chunk() -> None:
    together, alone = rendered(50, 3, 2, 1), render_crops((52, 1, 2))
    assert together.images.shape == (6, SIDE, SIDE, 3)
    assert together.full.tolist() == [True, False] * 3
    assert np.array_equal(together.images[4:], alone.images)
    assert np.array_equal(together.states[4:], alone.states)
