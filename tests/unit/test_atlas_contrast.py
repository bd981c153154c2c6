"""Contrastive semantic projection and CLIP-Dissect's score, against loops over single samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.atlas import contrast as csp
from semlens_audit.atlas import dissect


def made_up(seed: int, components: int = 5, references: int = 4, candidates: int = 23, dimensions: int = 6) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    positives = rng.standard_normal((components, references, dimensions)).astype(np.float32)
    present = rng.random((components, references)) < 0.8
    present[0] = False
    others = rng.standard_normal((candidates, dimensions)).astype(np.float32)
    below = rng.random((candidates, components)) < 0.5
    below[:, 1] = False
    return positives, rng.random((components, references)) - 0.1, present, others, below


def slowly(positives: np.ndarray, activations: np.ndarray, present: np.ndarray, others: np.ndarray, below: np.ndarray, gamma: float):  # type: ignore[no-untyped-def]
    """Concept embeddings and contrasts, sample by sample, as the paper writes them."""
    ids, out = np.full(present.shape, -1), []
    for k in range(len(positives)):
        total, weights = np.zeros(positives.shape[2]), 0.0
        positive = [max(float(a), 0.0) for a in activations[k]]
        even = not any(a for a, here in zip(positive, present[k], strict=True) if here)
        for i in range(positives.shape[1]):
            if not present[k, i]:
                continue
            p = positives[k, i].astype(float)
            p = p / np.linalg.norm(p)
            best, n = -math.inf, np.zeros_like(p)
            for x in range(len(others)):
                candidate = others[x].astype(float)
                candidate = candidate / np.linalg.norm(candidate)
                if below[x, k] and p @ candidate > best:
                    best, n, ids[k, i] = p @ candidate, candidate, x
            a = 1.0 if even else positive[i]
            total, weights = total + a * (p - gamma * (p @ n) * n), weights + a
        mean = total / weights if weights else total
        out.append(mean / max(np.linalg.norm(mean), 1e-12))
    return ids, np.array(out)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_contrast_is_that_of_a_slow_loop(seed: int, gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csp, "_COMPONENTS", 2)
    monkeypatch.setattr(csp, "_CANDIDATES", 7)
    positives, activations, present, others, below = made_up(seed)
    activations[2] = -1.0
    asked: list[tuple[int, int]] = []

    def block(rows: slice, part: slice) -> np.ndarray:
        asked.append((rows.stop - rows.start, part.stop - part.start))
        return below[rows, part]

    found = csp.contrast(positives, activations, present, others, block, gamma=gamma)
    ids, embeddings = slowly(positives, activations, present, others, below, gamma)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.embeddings, embeddings, atol=1e-12)
    assert max(asked) <= (7, 2)
    assert (found.embeddings[0] == 0).all(), "no reference samples"
    assert (found.ids[1] == -1).all(), "nothing lies below its mean"
    assert np.isnan(found.similarity[found.ids == -1]).all()
    k, i = np.argwhere(found.ids >= 0)[0]
    p, n = positives[k, i].astype(float), others[found.ids[k, i]].astype(float)
    assert found.similarity[k, i] == pytest.approx(p @ n / np.linalg.norm(p) / np.linalg.norm(n))


def test_without_candidates_nothing_is_taken_away() -> None:
    positives, activations, present, others, _ = made_up(1)
    found = csp.contrast(positives, activations, present, others[:0], lambda rows, part: np.zeros((0, 5), dtype=bool), gamma=1.0)
    plain = csp.contrast(positives, activations, present, others, lambda rows, part: np.ones((23, 5), dtype=bool)[rows, part], gamma=0.0)
    assert (found.ids == -1).all()
    np.testing.assert_allclose(found.embeddings, plain.embeddings)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_residuals_lose_what_the_contrast_has(seed: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    p, n = rng.standard_normal((3, 4, 8)), rng.standard_normal((3, 4, 8))
    left = csp.residuals(p, n, gamma)
    unit = n / np.linalg.norm(n, axis=-1, keepdims=True)
    own = p / np.linalg.norm(p, axis=-1, keepdims=True)
    np.testing.assert_allclose((left * unit).sum(-1), (1 - gamma) * (own * unit).sum(-1), atol=1e-12)
    assert (np.linalg.norm(left, axis=-1) <= 1 + 1e-12).all()
    np.testing.assert_allclose(csp.residuals(5 * p, 3 * n, gamma), left, atol=1e-12)


def test_gamma_has_a_range_and_broad_components_are_told() -> None:
    for gamma in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="gamma"):
            csp.residuals(np.ones(3), np.ones(3), gamma)
    assert csp.too_broad(np.array([0.1, 0.79, 0.8, 1.0])).tolist() == [False, False, True, True]


def test_contrast_finds_what_a_shared_background_hides() -> None:
    """Crops that share a background with the samples the component ignores: only the contrast leaves what drives it."""
    rng = np.random.default_rng(5)
    background, concept, other = np.eye(12)[:3]
    others = 3 * background + rng.standard_normal((200, 12)) * 0.1 + other * rng.random((200, 1))
    positives = (3 * background + concept + rng.standard_normal((10, 12)) * 0.1)[None]
    everything = np.ones((200, 1), dtype=bool)
    made = {
        gamma: csp.contrast(positives, np.ones((1, 10)), np.ones((1, 10), dtype=bool), others, lambda r, p: everything[r, p], gamma=gamma)
        for gamma in (0.0, 1.0)
    }
    assert made[0.0].embeddings[0] @ concept < 0.4
    assert made[1.0].embeddings[0] @ concept > 0.9


def soft_wpmi_slowly(activations: np.ndarray, similarity: np.ndarray, images: int) -> np.ndarray:
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
    np.testing.assert_allclose(found, soft_wpmi_slowly(activations, similarity, 8), rtol=1e-9)
    assert dissect.soft_wpmi(activations, similarity).shape == (4, 6)


def test_soft_wpmi_hangs_on_the_set_of_words_and_components() -> None:
    rng = np.random.default_rng(2)
    activations, similarity = rng.random((40, 4)), rng.uniform(-0.2, 0.4, (40, 6))
    every = dissect.soft_wpmi(activations, similarity, images=10)
    assert not np.allclose(dissect.soft_wpmi(activations, similarity[:, :4], images=10), every[:, :4], atol=0.1)
    assert not np.allclose(dissect.soft_wpmi(activations[:, :2], similarity, images=10), every[:2], atol=0.1)
