"""CLIP-Dissect's score, which labels are compared with, against a loop over single images."""

from __future__ import annotations

import math

import numpy as np

from tests.benchmarks import dissect


def slowly(activations: np.ndarray, similarity: np.ndarray, images: int) -> np.ndarray:
    given = np.zeros((activations.shape[1], similarity.shape[1]))
    for k in range(activations.shape[1]):
        ranked = sorted(range(len(activations)), key=lambda i: (-activations[i, k], i))[:images]
        for rank, i in enumerate(ranked):
            chances = [math.exp(10 * s) for s in similarity[i]]
            w = 0.998 - rank / len(ranked) * (0.998 - 0.97)
            for v in range(similarity.shape[1]):
                given[k, v] += math.log(1 + w * (chances[v] / sum(chances) - 1) + 1e-7)
    mean = np.array([[math.log(sum(math.exp(given[k, v]) for k in range(len(given))) / len(given)) for v in range(given.shape[1])]])
    return given - mean


def test_soft_wpmi_is_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(2)
    activations, similarity = rng.random((30, 4)).round(1), rng.uniform(-0.2, 0.4, (30, 6))
    found = dissect.soft_wpmi(activations, similarity, images=8)
    np.testing.assert_allclose(found, slowly(activations, similarity, 8), rtol=1e-9)
    assert dissect.soft_wpmi(activations, similarity).shape == (4, 6)


def test_soft_wpmi_hangs_on_the_set_of_words_and_components() -> None:
    rng = np.random.default_rng(2)
    activations, similarity = rng.random((40, 4)), rng.uniform(-0.2, 0.4, (40, 6))
    every = dissect.soft_wpmi(activations, similarity, images=10)
    assert not np.allclose(dissect.soft_wpmi(activations, similarity[:, :4], images=10), every[:, :4], atol=0.1)
    assert not np.allclose(dissect.soft_wpmi(activations[:, :2], similarity, images=10), every[:2], atol=0.1)
