"""The truth about a model: what each artefact does to its decision, told by the renderer, which no audit ever asks.

The same scenes are rendered without and with each artefact, all else equal; every model of a world sees the same renders, so
they are made once and kept as arrays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semlens_audit.certificate import Estimate
from semlens_audit.digest import digest
from semlens_audit.qualification.worlds import World

__all__ = ["SEED", "TruthSet", "estimate", "true_effects", "truth_set"]

SEED = 13
"""Of the scenes; training and test data have other seeds, and scenes of different seeds share nothing."""
_LEVEL = 0.95

Logits = Callable[[NDArray[np.uint8]], NDArray[np.floating]]


@dataclass(frozen=True)
class TruthSet:
    """Scenes of a world with each artefact off and on.

    Parameters
    ----------
    artefacts
        A names.
    base
        (n, S, S, 3) uint8: the scenes as the clean population has them.
    other
        (A, n, S, S, 3) uint8: the same with one artefact the other way round.
    present
        (A, n) bool: whether the base scene holds the artefact.
    labels
        (n,) class of each scene, which no artefact changes.
    """

    artefacts: tuple[str, ...]
    base: NDArray[np.uint8]
    other: NDArray[np.uint8]
    present: NDArray[np.bool_]
    labels: NDArray[np.int64]


def truth_set(world: World, scenes: int, folder: Path, *, size: int = 128) -> TruthSet:
    """Render the scenes, or open what was rendered before.

    Parameters
    ----------
    scenes
        n, at least 2.
    folder
        Where the arrays are kept; a name of their own for each world, number of scenes and renderer.
    """
    renderer = world.renderer()
    artefacts = tuple(renderer.ARTEFACTS)
    cases = renderer.sample(renderer.Population(), scenes, SEED)
    present = np.array([[case.attributes.has(name) for case in cases] for name in artefacts])
    key = digest({"sources": world.sources(), "scenes": scenes, "seed": SEED, "size": size, "artefacts": artefacts})[:16]
    arrays = []
    for position, name in enumerate(("base", *artefacts)):
        path = folder / f"truth-{world.name}-{key}-{name}.npy"
        if not path.is_file():
            wanted = cases
            if position:
                had = present[position - 1]
                wanted = [_switched(case, name, not on) for case, on in zip(cases, had, strict=True)]
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.part")
            try:
                with partial.open("wb") as stream:
                    np.save(stream, renderer.images(wanted, size))
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        arrays.append(np.load(path))
    labels = np.array([case.label for case in cases], dtype=np.int64)
    return TruthSet(artefacts, arrays[0], np.stack(arrays[1:]), present, labels)


def _switched(case: Any, name: str, on: bool) -> Any:
    return replace(case, attributes=case.attributes.switched(name, on))


def estimate(changes: NDArray[np.float64]) -> Estimate:
    """Mean with its 95 % interval (Student's t over scenes).

    Parameters
    ----------
    changes
        (n,) with n >= 2.
    """
    from scipy.stats import t

    n = int(changes.size)
    if n < 2:
        raise ValueError("at least two scenes are needed for an interval")
    mean = float(changes.mean())
    half = float(t.ppf((1 + _LEVEL) / 2, n - 1)) * float(changes.std(ddof=1)) / n**0.5
    return Estimate(value=mean, low=mean - half, high=mean + half, n=n)


def true_effects(logits: Logits, scenes: TruthSet, audited: int) -> tuple[dict[str, tuple[Estimate, Estimate]], float]:
    """What each artefact does to a model.

    Parameters
    ----------
    logits
        (B, S, S, 3) uint8 -> (B, 2) outputs in the order of the world's classes.
    audited
        Index of the audited class.

    Returns
    -------
    effects : dict
        artefact -> mean change of the margin (logit of the audited class less that of the other) and mean change of the share of
        right decisions, when the artefact is switched on.
    accuracy : float
        Share of right decisions on the scenes as the clean population has them, 0 to 1.
    """

    def asked(pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = np.asarray(logits(pictures), dtype=np.float64)
        if values.shape != (len(pictures), 2):
            raise ValueError(f"the model must return ({len(pictures)}, 2) outputs, not {values.shape}")
        margin = values[:, audited] - values[:, 1 - audited]
        return margin, (values.argmax(axis=1) == scenes.labels).astype(np.float64)

    margin, right = asked(scenes.base)
    found = {}
    for index, name in enumerate(scenes.artefacts):
        other, other_right = asked(scenes.other[index])
        sign = np.where(scenes.present[index], 1.0, -1.0)
        found[name] = (estimate(sign * (margin - other)), estimate(sign * (right - other_right)))
    return found, float(right.mean())
