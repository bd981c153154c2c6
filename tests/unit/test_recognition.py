"""Recognition: held-out examples against a slow loop, and the two groups it is judged against."""

from __future__ import annotations

import numpy as np
import pytest

from semlens_audit.evidence import ConceptProbes
from semlens_audit.recognition import held_out_auroc, probe_aurocs
from semlens_audit.scores import unit


def _cos(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_each_example_is_scored_by_the_others() -> None:
    rng = np.random.default_rng(0)
    examples, others = unit(rng.normal(size=(6, 5)) + 0.4), unit(rng.normal(size=(9, 5)))
    centre = others.mean(axis=0)
    inside = [_cos(examples[i] - centre, np.mean([examples[j] for j in range(6) if j != i], axis=0) - centre) for i in range(6)]
    outside = [_cos(other - centre, examples.mean(axis=0) - centre) for other in others]
    wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert held_out_auroc(examples, others, centre) == pytest.approx(float(np.mean(wins)))


def test_too_few_examples_are_not_judged() -> None:
    assert held_out_auroc(np.eye(4), np.eye(4), np.zeros(4)) is None


def test_the_harder_of_two_comparisons_counts() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=12)
    twins = [unit(base + rng.normal(size=(12, 12)) * 0.3).astype(np.float32) for _ in range(2)]
    empty = np.empty((0, 1, 12), dtype=np.float32)
    probes = {"a": ConceptProbes(empty, twins[0]), "b": ConceptProbes(empty, twins[1])}
    pool = unit(rng.normal(size=(200, 12))).astype(np.float32)
    assert probe_aurocs({"a": probes["a"]}, pool)["a"] > 0.95
    assert probe_aurocs(probes, pool)["a"] < 0.8
