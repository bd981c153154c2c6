from __future__ import annotations

import ast
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.signs import stencil
from semlens_audit.signs.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Place, render

names = st.sets(st.sampled_from(ATTRIBUTES)).map(lambda chosen: Attributes.from_names(sorted(chosen)))
seeds = st.integers(0, 2**40)


@settings(max_examples=15, deadline=None)
@given(seeds, names)
def test_same_arguments_same_bytes(seed: int, attributes: Attributes) -> None:
    first, second = render(seed, attributes), render(Place(seed), attributes)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.image.shape == (128, 128, 3)
    assert first.image.dtype == np.uint8


def test_different_seeds_differ() -> None:
    assert len({render(seed, Attributes()).image.tobytes() for seed in range(20)}) == 20


@settings(max_examples=60, deadline=None)
@given(seeds, names)
def test_a_mask_for_each_present_attribute_and_no_other(seed: int, attributes: Attributes) -> None:
    scene = render(seed, attributes)
    assert tuple(scene.masks) == tuple(scene.extents) == attributes.present
    for name, mask in scene.masks.items():
        assert mask.dtype == bool
        assert mask.shape == (128, 128)
        assert mask.any(), name
        assert not (mask & ~scene.extents[name]).any(), name


@settings(max_examples=80, deadline=None)
@given(seeds, names, st.sampled_from(ATTRIBUTES))
def test_switching_changes_only_where_the_attribute_is(seed: int, attributes: Attributes, name: str) -> None:
    off, on = (render(seed, attributes.switched(name, value)) for value in (False, True))
    changed = (off.image != on.image).any(axis=2)
    allowed = on.extents[name] | off.plate | on.plate if name in VALID else on.extents[name]
    assert changed.any()
    assert not (changed & ~allowed).any()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_is_visible(name: str) -> None:
    """Alone on a sign without any other, each attribute changes the picture strongly, colours on bleached plates aside."""
    for seed in range(16):
        off, on = render(seed, Attributes()), render(seed, Attributes.of(name))
        change = np.abs(off.image.astype(int) - on.image.astype(int)).max(axis=2)
        if on.bleached and name in ("red_rim", "yellow_ground"):
            assert change.max() < 30, seed
        else:
            assert change[on.masks[name]].max() > 30, seed
            assert (change > 20).sum() >= 20, seed


def test_a_fifth_of_the_plates_is_bleached() -> None:
    assert 0.1 < np.mean([render(seed, Attributes(), 32).bleached for seed in range(150)]) < 0.3


def test_small_and_diffuse_artefacts() -> None:
    """Some artefacts sit in a small box, some fill the picture: what finds only one kind is caught."""
    spread = {}
    for name in ARTEFACTS:
        rows, columns = np.nonzero(render(5, Attributes.of(name)).masks[name])
        spread[name] = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 128**2
    assert spread["sticker"] < 0.03
    assert spread["timestamp"] < 0.06
    assert spread["snow"] > 0.9


def test_streams_are_independent_of_each_other() -> None:
    place = Place(7)
    assert place.stream("snow").random() == place.stream("snow").random()
    assert len({place.stream(name).random() for name in ATTRIBUTES}) == len(ATTRIBUTES)
    assert place.stream("snow").random() != Place(8).stream("snow").random()


def test_other_sizes_show_the_same_scene() -> None:
    small, large = (render(3, Attributes.of("triangle", "sticker"), size) for size in (64, 128))
    assert small.image.shape == (64, 64, 3)
    coarse = large.plate.reshape(64, 2, 64, 2).any(axis=(1, 3))
    assert (coarse & small.plate).sum() / (coarse | small.plate).sum() > 0.9
    centres = [np.argwhere(scene.masks["sticker"]).mean(axis=0) / len(scene.image) for scene in (small, large)]
    np.testing.assert_allclose(centres[0], centres[1], atol=0.01)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 32 pixels"):
        render(0, Attributes(), 31)
    for call in (lambda: Attributes.of("ruler"), lambda: Attributes().has("x"), lambda: Attributes().switched("x", True)):
        with pytest.raises(ValueError, match="unknown attribute"):
            call()


def test_no_rendering_code_is_shared_with_the_phantom() -> None:
    """Only the value object of an effect is imported from the other world."""
    import semlens_audit.signs as package

    imported = set()
    for path in Path(package.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("semlens_audit.phantom"):
                imported |= {alias.name for alias in node.names}
            assert not (isinstance(node, ast.Import) and any("phantom" in alias.name for alias in node.names))
    assert imported == {"Effect"}


def test_a_stencil_covers_the_area_of_its_shape() -> None:
    disc = stencil.Sheet(128).disc((64, 60), 20).opacity()
    assert disc.sum() == pytest.approx(np.pi * 400, rel=0.02)
    square = stencil.Sheet(64).polygon([(10, 10), (50, 10), (50, 50), (10, 50)]).opacity()
    assert square.sum() == pytest.approx(400, rel=0.06)
    assert disc.min() == 0
    assert disc.max() == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_covering_equals_a_slow_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    canvas, opacity = rng.random((9, 9, 3), dtype=np.float32), rng.random((9, 9), dtype=np.float32)
    opacity[rng.random((9, 9)) < 0.6] = 0
    colour = (0.2, 0.5, 0.9)
    slow = canvas.copy()
    for y in range(9):
        for x in range(9):
            for c in range(3):
                slow[y, x, c] = (1 - opacity[y, x]) * canvas[y, x, c] + opacity[y, x] * colour[c]
    stencil.cover(canvas, colour, opacity)
    np.testing.assert_allclose(canvas, slow, atol=1e-6)


def test_rendering_is_fast() -> None:
    started = time.process_time()
    for seed in range(40):
        render(seed, Attributes.of(*ATTRIBUTES))
    assert (time.process_time() - started) / 40 < 0.02
