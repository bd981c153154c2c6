from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Lesion, render

names = st.sets(st.sampled_from(ATTRIBUTES)).map(lambda chosen: Attributes.from_names(sorted(chosen)))
seeds = st.integers(0, 2**40)


@settings(max_examples=15, deadline=None)
@given(seeds, names)
def test_same_arguments_same_bytes(seed: int, attributes: Attributes) -> None:
    first, second = render(seed, attributes), render(Lesion(seed), attributes)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.image.shape == (128, 128, 3)
    assert first.image.dtype == np.uint8


def test_different_seeds_differ() -> None:
    pictures = {render(seed, Attributes()).image.tobytes() for seed in range(20)}
    assert len(pictures) == 20


@settings(max_examples=60, deadline=None)
@given(seeds, names)
def test_a_mask_for_each_present_attribute_and_no_other(seed: int, attributes: Attributes) -> None:
    scene = render(seed, attributes)
    assert tuple(scene.masks) == attributes.present
    for name, mask in scene.masks.items():
        assert mask.dtype == bool
        assert mask.shape == (128, 128)
        assert mask.any(), name
        assert set(scene.extents) == set(scene.masks)


@settings(max_examples=80, deadline=None)
@given(seeds, names, st.sampled_from(ATTRIBUTES))
def test_switching_changes_only_where_the_attribute_is(seed: int, attributes: Attributes, name: str) -> None:
    off, on = (render(seed, attributes.switched(name, value)) for value in (False, True))
    changed = (off.image != on.image).any(axis=2)
    allowed = on.extents[name].copy()
    if name in VALID:
        # The shape attributes move the outline: what changes lies in the lesion before or after, or in its soft border, which has
        # faded out 10 px away.
        allowed |= off.lesion | on.lesion
        allowed = distance_transform_edt(~allowed) <= 10
    assert not (changed & ~allowed).any()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_is_visible(name: str) -> None:
    """On bare skin each attribute changes its own mask strongly, for every lesion."""
    for seed in range(12):
        off, on = render(seed, Attributes()), render(seed, Attributes.of(name))
        change = np.abs(off.image.astype(int) - on.image.astype(int)).max(axis=2)
        assert change[on.masks[name]].max() > 40
        assert (change > 12).sum() > 100


@pytest.mark.parametrize("name", ARTEFACTS)
def test_masks_of_other_attributes_stay_but_for_what_is_hidden(name: str) -> None:
    others = Attributes.from_names([other for other in ATTRIBUTES if other != name])
    off, on = render(5, others), render(5, others.switched(name, True))
    for other, mask in off.masks.items():
        assert not (on.masks[other] & ~mask).any()
        assert not ((mask & ~on.masks[other]) & ~on.extents[name]).any()


def test_asymmetry_makes_the_halves_differ() -> None:
    """Turning a lesion by 180 degrees about its centroid leaves a symmetric one almost as it was."""

    def difference(attributes: Attributes, seed: int) -> float:
        solid = render(seed, attributes).lesion
        rows, columns = np.nonzero(solid)
        turned = np.zeros_like(solid)
        r = np.clip(np.round(2 * rows.mean() - rows).astype(int), 0, 127)
        c = np.clip(np.round(2 * columns.mean() - columns).astype(int), 0, 127)
        turned[r, c] = True
        return float((solid ^ turned).sum() / solid.sum())

    for seed in range(20):
        assert difference(Attributes.of("asymmetry"), seed) > 2 * difference(Attributes(), seed)


def test_diameter_is_larger() -> None:
    for seed in range(20):
        small, large = render(seed, Attributes()).lesion, render(seed, Attributes.of("large_diameter")).lesion
        assert large.sum() > 1.8 * small.sum()
        assert not (small & ~large).any()


def test_a_larger_render_is_the_same_scene() -> None:
    attributes = Attributes.of("ruler", "plaster", "asymmetry", "several_colours")
    small, large = render(3, attributes, 128), render(3, attributes, 256)
    shrunk = large.image.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 4
    assert abs(large.masks["ruler"].mean() - small.masks["ruler"].mean()) < 0.01


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="unknown attribute 'rule'"):
        Attributes.of("rule")
    with pytest.raises(ValueError, match="unknown attribute 'rule'"):
        Attributes().switched("rule", True)
    with pytest.raises(ValueError, match="at least 32"):
        render(0, Attributes(), 16)
