"""Independent units of the test data, the bootstrap weights that they share, and what repeated samples are worth.

Shapes use K components, B draws, m reference samples, N samples, U independent units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["UnitWeights", "all_different", "count_units", "effective_units", "normalised", "reference_weights", "spread_factor", "worth"]

_HELD = 1 << 24
"""Weights that are kept once made, 64 MB; the others are made again, alike."""


class UnitWeights:
    """Bayesian-bootstrap weights, one per independent unit and draw, exponentially distributed (Rubin 1981), not normalised.

    Samples of one unit (photographs of one lesion, copies of one image) share their weight, so that repeating a sample
    adds nothing to what is known (cluster bootstrap; Cameron, Gelbach and Miller 2008). Everything that rests on a sample, be it
    as a test sample, as a reference sample of one component or of another, takes its weight from here: what the same samples
    bring about is resampled together.

    The weights of a unit depend on the seed and the unit's number alone (counter-based generator Philox; Salmon et al. 2011), so
    that they are made where they are needed: a hundred thousand units with a thousand draws would take 400 MB.

    Parameters
    ----------
    draws
        B, draws of the bootstrap.
    seed
        Seeds of the generator.
    """

    def __init__(self, draws: int, seed: Sequence[int]) -> None:
        self.draws = draws
        self._bits = np.random.Philox(key=np.random.SeedSequence(list(seed)).generate_state(2, np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._start = self._bits.state
        self._held: dict[int, np.ndarray] = {}

    def of(self, units: np.ndarray) -> np.ndarray:
        """Weights of units.

        Parameters
        ----------
        units
            Any shape, integers from 0.

        Returns
        -------
        numpy.ndarray
            (..., B) float32.
        """
        names, place = np.unique(units, return_inverse=True)
        made = np.empty((len(names), self.draws), dtype=np.float32)
        for row, unit in enumerate(names.tolist()):
            made[row] = self._row(unit)
        return made[place.reshape(units.shape)]

    def _row(self, unit: int) -> np.ndarray:
        row = self._held.get(unit)
        if row is None:
            # Each unit has a stream of its own: the counter's third word, which no stream reaches by counting up.
            self._start["state"]["counter"][:] = (0, 0, unit, 0)
            self._bits.state = self._start
            row = self._generator.standard_exponential(self.draws, dtype=np.float32)
            if len(self._held) * self.draws < _HELD:
                self._held[unit] = row
        return row


def all_different(units: np.ndarray) -> bool:
    """Whether no row of (K, m) holds a unit twice."""
    ordered = np.sort(units, axis=1)
    return not bool((ordered[:, 1:] == ordered[:, :-1]).any())


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


def worth(units: np.ndarray) -> float:
    """Independent samples that those of the given units (n,) are worth, see `effective_units`; 0 without any."""
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return float(len(units) ** 2.0 / (sizes**2).sum()) if len(units) else 0.0


def spread_factor(units: np.ndarray | float) -> np.ndarray:
    """What the Bayesian bootstrap's deviation of a mean of u units falls short of: ``sqrt((u + 1) / (u - 1))``.

    Dirichlet(1, ..., 1) weights give a mean the variance ``s^2 / (u + 1)`` with s^2 the variance over u, where ``s^2 / (u - 1)``
    is without bias. 1 for fewer than two units.
    """
    count = np.asarray(units, dtype=np.float64)
    return np.sqrt(np.divide(count + 1.0, count - 1.0, out=np.ones_like(count), where=count >= 2))


def reference_weights(weights: UnitWeights, units: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights of each component's reference samples.

    Parameters
    ----------
    weights
        Of the audit's units.
    units
        (K, m) unit of each reference sample; anything where none is present.
    present
        (K, m) bool

    Returns
    -------
    numpy.ndarray
        (K, B, m) float32, each row adds up to 1 where the component has a reference sample, else 0.
    """
    return normalised(weights.of(np.where(present, units, 0)), present)


def normalised(chosen: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights of units as weights of reference samples; `chosen` (K, m, B) is changed in place, see `reference_weights`."""
    chosen *= present[..., None]
    chosen /= np.maximum(chosen.sum(axis=1, keepdims=True), 1e-12)
    return chosen.transpose(0, 2, 1)
