"""The models that the instrument is qualified on: which artefact comes with which class in what each has seen, and how often.

Every architecture meets every artefact as a shortcut, with correlations from weak to strong, towards either class; some models
have two shortcuts at once, some none. The artefacts that a model has seen in both classes alike are the negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from semlens_audit.digest import digest

__all__ = ["Member", "Part", "population"]

Part = Literal["development", "held_back"]


@dataclass(frozen=True)
class Member:
    """One model of the qualification population.

    Parameters
    ----------
    world
        ``dermoscopy`` or ``signs``.
    architecture
        Key of `semlens_audit.qualification.architectures.ARCHITECTURES`.
    tied
        artefact -> how often it comes with the audited class in the training data; with the other class it comes with the
        complement. Empty: no shortcut.
    number
        Position in the population; decides the seeds of training data and weights.
    part
        ``development``: definitions and thresholds may be chosen on it; ``held_back``: only reported on.
    quick
        Whether the quick qualification uses it.
    """

    world: str
    architecture: str
    tied: Mapping[str, float] = field(default_factory=dict)
    number: int = 0
    part: Part = "held_back"
    quick: bool = False

    @property
    def name(self) -> str:
        """Readable and unique, e.g. ``dermoscopy-residual-03-ruler95``."""
        habits = "-".join(f"{artefact}{round(100 * chance)}" for artefact, chance in self.tied.items()) or "clean"
        return f"{self.world}-{self.architecture}-{self.number:02d}-{habits}"

    @property
    def key(self) -> str:
        """Digest of what its weights follow from, the code aside."""
        return digest({"name": self.name, "tied": dict(self.tied), "number": self.number})[:16]


def population(world: str, artefacts: tuple[str, ...], singles: int | None = None, doubles: int = 2) -> tuple[Member, ...]:
    """All members of a world.

    Parameters
    ----------
    world
        Its name.
    artefacts
        Its artefacts, seven for dermoscopy.
    singles
        Models of each architecture with a single shortcut, at most one an artefact; left out, one an artefact.
    doubles
        Models of each architecture with two shortcuts, 0 to 2.

    Returns
    -------
    tuple of Member
        Each architecture: single shortcuts, pairs of shortcuts, and one model without. The strengths
        rotate, so that every artefact is strong in one architecture and moderate in the others. Parts alternate.
    """
    strengths = (0.95, 0.8, 0.65, 0.2, 0.35, 0.05, 0.7)
    members: list[Member] = []

    def add(architecture: str, tied: Mapping[str, float], part: Part) -> None:
        members.append(Member(world, architecture, tied, len(members), part))

    for shift, architecture in enumerate(("residual", "plain", "transformer")):
        count = len(artefacts)
        for index in range(count if singles is None else min(singles, count)):
            # Fewer models than artefacts: the architectures take them in turns.
            artefact = artefacts[index if singles is None else (index + singles * shift) % count]
            strength = strengths[(index + 3 * shift) % len(strengths)]
            add(architecture, {artefact: strength}, "development" if (index + shift) % 2 == 0 else "held_back")
        for turn in range(doubles):
            first, second = artefacts[(2 * shift + turn) % count], artefacts[(2 * shift + 3 + 2 * turn) % count]
            tied = {first: 0.9, second: 0.75} if turn == 0 else {first: 0.8, second: 0.3}
            add(architecture, tied, "held_back" if turn == 0 else "development")
        add(architecture, {}, "held_back" if shift % 2 == 0 else "development")
    return tuple(members)
