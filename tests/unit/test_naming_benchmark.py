"""The benchmark of labels: what it calls a label that holds is one, and its sets of photographs do not overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semlens_audit.phantom.render import ATTRIBUTES
from semlens_audit.phantom.world import Population, sample
from tests.benchmarks import naming, naming_photographs, naming_scores
from tests.benchmarks.naming_scores import Naming, Truth

LESIONS = 6


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_areas_are_the_share_of_pairs_that_are_in_order():
    rng = np.random.default_rng(0)
    without, present = rng.integers(0, 4, (17, 3)).astype(np.float32), rng.integers(0, 5, (23, 3)).astype(np.float32)
    slow = [
        np.mean([(1.0 if a > b else 0.5 if a == b else 0.0) for a in present[:, k] for b in without[:, k]]) for k in range(3)
    ]
    assert naming_scores.areas(without, present) == pytest.approx(slow, abs=1e-12)
    assert naming_scores.areas(np.zeros((3, 1)), np.zeros((4, 1))).tolist() == [0.5]
    with pytest.raises(ValueError, match="with and without"):
        naming_scores.areas(np.zeros((0, 1)), np.zeros((4, 1)))


def test_differences_are_in_deviations_of_the_images_without():
    without, present = np.array([[0.0, 7.0], [2.0, 7.0]]), np.array([[4.0, 8.0], [6.0, 9.0]])
    found = naming_scores.differences(without, present)
    assert found[0] == pytest.approx(4.0)
    assert np.isnan(found[1])


def test_a_component_that_fires_for_one_attribute_only_is_told_by_its_word():
    cases = sample(Population(), LESIONS, naming.SEED)
    found = []
    for case in cases:
        every = [case.attributes]
        every += [case.attributes.switched(name, not case.attributes.has(name)) for name in ATTRIBUTES]
        found += [[float(shown.has("ruler")), -float(shown.has("asymmetry")), 0.0] for shown in every]
    area, difference = naming.switched(np.array(found) + np.random.default_rng(0).normal(0, 0.01, (len(found), 3)), LESIONS)
    words = list(naming.WORDS)
    truth = naming_scores.signed(area, difference, [(ATTRIBUTES.index(name), there) for name, there, _ in naming.WORDS.values()])
    assert truth.area[0, words.index("a ruler")] == 1.0
    assert truth.area[1, words.index("a symmetric lesion")] == 1.0
    assert truth.area[1, words.index("an asymmetric lesion")] == 0.0
    assert truth.difference[0, words.index("a ruler")] > 10
    assert truth.area[2].max() < 1.0
    rest = [place for place, word in enumerate(words) if word != "a ruler"]
    assert np.abs(truth.area[0, rest] - 0.5).max() < 0.5


def test_lesions_are_rendered_as_they_are_drawn_and_with_each_attribute_switched():
    views = list(naming.lesions(1))
    assert len(views) == 1 + len(ATTRIBUTES)
    assert all(view.shape == (128, 128, 3) for view in views)
    assert all((view != views[0]).any() for view in views[1:])


def test_attributes_known_of_the_index_tell_which_word_is_best():
    has = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=bool)
    found = np.array([[3.0, 0.0], [2.0, 5.0], [1.0, 4.0], [0.0, 1.0]])
    assert naming.of_index(found, has).tolist() == [[1.0, 0.5], [0.5, 1.0]]


def test_a_row_compares_the_same_components():
    truth = Truth(np.array([[0.9, 0.4], [0.8, 0.3], [0.6, 0.7], [0.5, 0.5]]), np.array([[2.0, 0.0], [1.0, 0.0], [0.5, 1.0], [0.0, 0.0]]))
    base = Naming("base", np.array([0, 0, 0, -1]), np.array([True, False, True, True]))
    other = Naming("other", np.array([0, 0, 1, 1]))
    chosen = np.array([0, 1, 2])
    said = dict(zip(naming_scores.HEAD, naming_scores.row(base, base, truth, chosen, np.array([0.0, 1.0, 0.0, 9.0])), strict=True))
    assert said["mean AUROC"].startswith("0.77 (")
    assert said["against SemanticLens, paired"] == "–"
    assert said["AUROC ≥ 0.7"].startswith("67 % (")
    assert said["the best word; mean rank"] == "67 %; 1.3"
    assert said["significant"] == "2 of 3"
    assert said["their mean AUROC"].startswith("0.75 (")
    assert said["mean AUROC weighted by relevance"].startswith("0.80 (")
    said = dict(zip(naming_scores.HEAD, naming_scores.row(other, base, truth, chosen, None), strict=True))
    assert said["against SemanticLens, paired"].startswith("+0.03 (+0.00 to ")
    assert said["significant"] == said["mean AUROC weighted by relevance"] == "–"


def test_intervals_hold_the_estimate_and_narrow_with_the_number_of_components():
    rng = np.random.default_rng(1)
    few, many = rng.random(20), rng.random(2000)
    one, other = (naming_scores.estimate(some, naming_scores.bootstrap_indices(len(some))) for some in (few, many))
    assert one.low < one.value < one.high
    assert other.high - other.low < 0.2 * (one.high - one.low)
    assert other.high - other.low == pytest.approx(2 * 1.96 * many.std() / np.sqrt(2000), rel=0.1)


def test_photographs_of_index_words_and_tests_differ():
    parts = naming_photographs.split()
    every = [place for some in parts.values() for place in some]
    assert sorted(every) == list(range(1000))
    grouped = [place for said in naming_photographs.GROUPS.values() for place in naming_photographs.members(said)]
    assert len(grouped) == len(set(grouped))
    for some in parts.values():
        assert naming_photographs.shows(some).sum(axis=0).min() >= 2
