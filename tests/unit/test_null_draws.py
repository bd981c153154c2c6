"""The null distribution under other random crops moves as far as that of pools drawn anew."""

from __future__ import annotations

import numpy as np
import pytest

from semlens_audit.calibration import calibrate, mean_gradient, resample_null
from semlens_audit.scores import ProbeSet, alignment, unit

D = 24


def _probes(rng: np.random.Generator, *, centred: bool) -> ProbeSet:
    directions = unit(rng.normal(size=(3, D)))
    origin = np.tile(_centre(), (3, 1)) if centred else np.zeros((3, D))
    return ProbeSet(directions, origin, np.zeros((3, D)), np.arange(3))


def _centre() -> np.ndarray:
    return 0.6 * unit(np.ones(D))


def _pool(rng: np.random.Generator, n: int) -> np.ndarray:
    return _centre() + rng.normal(size=(n, D)) / np.sqrt(D) + (rng.random((n, 1)) < 0.2) * np.eye(D)[0]


def test_gradient_equals_finite_differences() -> None:
    rng = np.random.default_rng(0)
    probes = ProbeSet(rng.normal(size=(3, D)), rng.normal(size=(3, D)) * 0.1, rng.normal(size=(3, D)), np.arange(3))
    vectors, step = rng.normal(size=(5, D)), 1e-6
    found = mean_gradient(vectors, probes)
    for axis in range(D):
        move = np.zeros(D)
        move[axis] = step
        difference = (alignment(vectors + move, probes) - alignment(vectors - move, probes)).mean(axis=0) / (2 * step)
        assert found[:, axis] == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_shift_and_spread_are_those_of_new_pools(centred: bool) -> None:
    rng = np.random.default_rng(1)
    probes, m, size = _probes(rng, centred=centred), 20, 300
    exact = calibrate(_pool(rng, 20000), m, 2000, probes, rng)
    fresh = [calibrate(_pool(rng, size), m, 200, probes, rng) for _ in range(80)]
    moved = np.array([(one.mean - exact.mean) / exact.deviation for one in fresh])
    ratio = np.array([one.deviation / exact.deviation for one in fresh])
    weights = rng.standard_exponential((300, size))
    weights /= weights.sum(axis=1, keepdims=True)
    drawn = [resample_null(_pool(rng, size), weights, m, 200, probes, rng) for _ in range(6)]
    shift, spread = (np.mean([getattr(one, name).std(axis=0) for one in drawn], axis=0) for name in ("shift", "spread"))
    assert shift == pytest.approx(moved.std(axis=0), rel=0.25)
    assert spread == pytest.approx(ratio.std(axis=0), rel=0.35)
    assert np.abs(drawn[0].shift.mean(axis=0)).max() < 0.06
    assert drawn[0].spread.mean(axis=0) == pytest.approx(np.ones(3), abs=0.03)


def test_a_pool_of_identical_crops_moves_nothing() -> None:
    rng = np.random.default_rng(2)
    pool = np.tile(unit(np.ones(D)), (50, 1))
    drawn = resample_null(pool, np.full((7, 50), 1 / 50), 10, 100, _probes(rng, centred=False), rng)
    assert not drawn.shift.any()
    assert (drawn.spread == 1.0).all()
