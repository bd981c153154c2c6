"""Independent units of the test data, the bootstrap weights that they share, and what repeated samples are worth.

Shapes use K components, B draws, m reference samples, N samples, U independent units.
"""

from __future__ import annotations

import numpy as np

__all__ = ["count_units", "effective_units", "reference_weights", "spread_factor", "unit_weights"]


def unit_weights(groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Bayesian-bootstrap weights, one per independent unit and draw, not normalised.

    Samples of one unit (photographs of one lesion, copies of one image) share their weight, so that repeating a sample
    adds nothing to what is known (cluster bootstrap; Cameron, Gelbach and Miller 2008). Everything that rests on a sample, be it
    as a test sample, as a reference sample of one component or of another, takes its weight from here: what the same samples
    bring about is resampled together.

    Parameters
    ----------
    groups
        (N,) int64 unit of each sample, any integers from 0.

    Returns
    -------
    numpy.ndarray
        (max(groups) + 1, draws) float32, exponentially distributed (Rubin 1981). Rows follow the unit's number, not the order
        of samples.
    """
    return rng.standard_exponential((int(groups.max(initial=-1)) + 1, draws), dtype=np.float32)


def count_units(groups: np.ndarray) -> int:
    """Number of different units."""
    return int(np.unique(groups).size)


def effective_units(units: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Independent samples that as many repeated ones are worth: ``m^2 / sum_u c_u^2`` with c_u samples of unit u (Kish 1965).

    Parameters
    ----------
    units
        (K, m) unit of each reference sample.
    present
        (K, m) bool

    Returns
    -------
    numpy.ndarray
        (K,) float64; the number of samples where none repeats, 0 without any.
    """
    same = (units[:, :, None] == units[:, None, :]) & present[:, :, None] & present[:, None, :]
    pairs = same.sum(axis=(1, 2))
    return np.divide(present.sum(axis=1) ** 2.0, pairs, out=np.zeros(len(units)), where=pairs > 0)


def spread_factor(units: np.ndarray | float) -> np.ndarray:
    """What the Bayesian bootstrap's deviation of a mean of u units falls short of: ``sqrt((u + 1) / (u - 1))``.

    Dirichlet(1, ..., 1) weights give a mean the variance ``s^2 / (u + 1)`` with s^2 the variance over u, where ``s^2 / (u - 1)``
    is without bias. 1 for fewer than two units.
    """
    count = np.asarray(units, dtype=np.float64)
    return np.sqrt(np.divide(count + 1.0, count - 1.0, out=np.ones_like(count), where=count >= 2))


def reference_weights(weights: np.ndarray, units: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights of each component's reference samples.

    Parameters
    ----------
    weights
        (U, B) of `unit_weights`.
    units
        (K, m) unit of each reference sample; anything where none is present.
    present
        (K, m) bool

    Returns
    -------
    numpy.ndarray
        (K, B, m) float32, each row adds up to 1 where the component has a reference sample, else 0.
    """
    chosen = weights[np.where(present, units, 0)] * present[..., None]
    chosen /= np.maximum(chosen.sum(axis=1, keepdims=True), 1e-12)
    return chosen.transpose(0, 2, 1)
