"""Where the relevance of a class flows: mean shares of components, and how they move with the test samples.

Relevance is read once, some samples at a time, whatever the number of samples, of settings that are tried and of values that are
measured from it. Shapes use B draws, C audited classes, K components, N samples.
"""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass, replace

import numpy as np

from semlens_audit import scores
from semlens_audit.draws import draw_units
from semlens_audit.errors import StoreError
from semlens_audit.evidence import Evidence, LayerEvidence, not_finite
from semlens_audit.plan import AuditPlan
from semlens_audit.units import UnitWeights, count_units, spread_factor, worth

__all__ = ["ClassFlow", "Flows", "class_shares"]

_ROWS = 1024
"""Samples of a class that are summed together; fixed, so that no result depends on how relevance was read."""

_SUMS = 1 << 24
"""Running sums of draws that are held at a time, 128 MB; classes beyond them are read in another pass."""

_IN_MEMORY = 1 << 25
"""Bytes of finished draws that are held; beyond them they go to a temporary file."""


@dataclass(frozen=True)
class ClassFlow:
    """How one class's relevance divides among the components of a layer.

    Parameters
    ----------
    rows, units
        Samples of the class, and independent units that they make.
    samples, carried_units
        Those of them that carry any relevance in the layer, and their independent units.
    mean
        (K,) float64 mean share, see `semlens_audit.scores.relevance_shares`.
    drawn
        (B, K) float32 mean share under bootstrap weights of units, with the spread that the number of units asks for.
    magnitude, signed
        (K,) float64 mean of the relevance's size, and of the relevance itself.
    """

    rows: int
    units: int
    samples: int
    carried_units: int
    mean: np.ndarray
    drawn: np.ndarray
    magnitude: np.ndarray
    signed: np.ndarray


class Flows:
    """Flow of every audited class through every layer, found when first asked for and kept.

    It depends on relevance, labels, units and the weights of units: on nothing that says what components mean.

    Parameters
    ----------
    plan
        The audit: number of draws and seed.
    evidence
        Whose samples, labels and units count.
    """

    def __init__(self, plan: AuditPlan, evidence: Evidence) -> None:
        self.weights = draw_units(plan)
        self._units = evidence.units
        self._position = np.full(len(evidence.labels), -1, dtype=np.int64)
        for position, index in enumerate(evidence.audited):
            self._position[evidence.labels == index] = position
        self._classes = len(evidence.audited)
        self._found: dict[tuple[str, int], tuple[ClassFlow, int]] = {}
        self._drawn = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self._end = 0
        weakref.finalize(self, self._drawn.close)

    def of(self, source: LayerEvidence, position: int) -> ClassFlow:
        """Flow of the class at a position among the audited ones through a layer.

        Parameters
        ----------
        source
            The layer, of these samples.

        Raises
        ------
        DataError
            ``not-finite``: relevance that would be measured from holds NaN or infinities.
        StoreError
            ``temporary-file``: what does not fit into memory cannot be written.
        """
        key = (source.layer, position)
        if key not in self._found:
            together = max(1, _SUMS // max(self.weights.draws * source.components, 1))
            first = position - position % together
            self._stream(source, range(first, min(first + together, self._classes)))
        flow, place = self._found[key]
        self._drawn.seek(place)
        shape = (self.weights.draws, source.components)
        raw = self._drawn.read(4 * shape[0] * shape[1])
        return replace(flow, drawn=np.frombuffer(raw, dtype=np.float32).reshape(shape))

    def _stream(self, source: LayerEvidence, positions: range) -> None:
        """Read the layer's relevance once, for some classes."""
        inside = (self._position >= positions.start) & (self._position < positions.stop)
        sums = {position: _Sums(self.weights, source.components) for position in positions}
        for samples, relevance in source.relevance_blocks(np.where(inside, self._position, -1)):
            for position in np.unique(self._position[samples]).tolist():
                own = self._position[samples] == position
                sums[position].add(relevance[own], self._units[samples[own]])
        for one in sums.values():
            one.sum()
        broken = sum(one.broken for one in sums.values())
        if broken:
            raise not_finite(f"relevances in layer {source.layer}", broken)
        for position, one in sums.items():
            rows = np.flatnonzero(self._position == position)
            flow = one.result(len(rows), count_units(self._units[rows]))
            self._found[source.layer, position] = replace(flow, drawn=np.empty((0, 0))), self._end
            try:
                self._drawn.seek(self._end)
                self._drawn.write(flow.drawn.tobytes())
                self._drawn.flush()
            except OSError as error:
                raise StoreError(
                    "temporary-file",
                    f"A temporary file of draws cannot be written: {error.strerror}.",
                    "Make room in the folder for temporary files, or set the environment variable TMPDIR to another one.",
                    file=tempfile.gettempdir(),
                ) from error
            self._end += flow.drawn.nbytes


class _Sums:
    """Running sums over the samples of one class, in float64."""

    def __init__(self, weights: UnitWeights, components: int) -> None:
        self.broken = 0
        self._weights = weights
        self._waiting = np.empty((_ROWS, components), dtype=np.float32)
        self._waiting_units = np.empty(_ROWS, dtype=np.int64)
        self._count = 0
        self._units: list[np.ndarray] = []
        self._shares, self._size, self._signed = np.zeros((3, components))
        self._drawn = np.zeros((weights.draws, components))
        self._mass = np.zeros(weights.draws)

    def add(self, relevance: np.ndarray, units: np.ndarray) -> None:
        """Take (r, K) relevance of samples of (r,) units in."""
        start = 0
        while start < len(relevance):
            stop = min(start + _ROWS - self._count, len(relevance))
            place = slice(self._count, self._count + stop - start)
            self._waiting[place], self._waiting_units[place] = relevance[start:stop], units[start:stop]
            self._count, start = place.stop, stop
            if self._count == _ROWS:
                self.sum()

    def sum(self) -> None:
        """Sum what waits."""
        relevance, units, self._count = self._waiting[: self._count], self._waiting_units[: self._count], 0
        missing = int((~np.isfinite(relevance)).sum())
        self.broken += missing
        if missing:
            return
        shares = scores.relevance_shares(relevance)
        carried = shares.sum(axis=1) > 0
        if not carried.all():
            shares, relevance, units = shares[carried], relevance[carried], units[carried]
        self._units.append(units.copy())
        self._shares += shares.sum(axis=0)
        self._size += np.abs(relevance).sum(axis=0, dtype=np.float64)
        self._signed += relevance.sum(axis=0, dtype=np.float64)
        weights = self._weights.of(units)
        self._mass += weights.sum(axis=0, dtype=np.float64)
        self._drawn += weights.T @ shares.astype(np.float32)

    def result(self, rows: int, independent: int) -> ClassFlow:
        """The flow over all samples summed; of a class with `rows` samples in as many `independent` units."""
        units = np.concatenate([np.empty(0, dtype=np.int64), *self._units])
        n = len(units)
        mean, factor = self._shares / max(n, 1), float(spread_factor(worth(units)))
        drawn = self._drawn
        if n:
            drawn /= self._mass[:, None]
            drawn -= mean
            drawn *= factor
            drawn += mean
        return ClassFlow(
            rows,
            independent,
            n,
            count_units(units),
            mean,
            drawn.astype(np.float32),
            self._size / max(n, 1),
            self._signed / max(n, 1),
        )


def class_shares(source: LayerEvidence, labels: np.ndarray, audited: tuple[int, ...]) -> np.ndarray:
    """(C, K) float64 mean share of each component over the samples of each class; zeros for a class without samples.

    Parameters
    ----------
    source
        The layer.
    labels
        (N,) class of each sample.
    audited
        C classes.
    """
    position = np.full(len(labels), -1, dtype=np.int64)
    for place, index in enumerate(audited):
        position[labels == index] = place
    total = np.zeros((len(audited), source.components))
    for samples, relevance in source.relevance_blocks(position):
        shares, places = scores.relevance_shares(relevance), position[samples]
        for place in np.unique(places).tolist():
            total[place] += shares[places == place].sum(axis=0)
    return total / np.maximum(np.bincount(position[position >= 0], minlength=len(audited)), 1)[:, None]
