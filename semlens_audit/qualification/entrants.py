"""Who takes part in a qualification: the members of the population, the twins that come with the tool, and how each is trained."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from semlens_audit.certificate import Part
from semlens_audit.digest import digest
from semlens_audit.plan import ModelSource
from semlens_audit.qualification.population import Member, population
from semlens_audit.qualification.worlds import WORLDS, World
from semlens_audit.source_digest import essence

__all__ = ["Entrant", "Recipe", "Trainer", "cores", "full", "model_source", "quick", "train_entrant", "weights_file"]

TRAINING_SEED = 5000
"""Seed of the training scenes of member 0; each member has its own."""


@dataclass(frozen=True)
class Recipe:
    """How members are trained.

    Parameters
    ----------
    renders
        Training images, at least 64.
    epochs
        Share of the architecture's own number of epochs, above 0; at least one epoch is made.
    """

    renders: int = 3500
    epochs: float = 1.0

    def passes(self, epochs: int) -> int:
        """Passes over the data for an architecture that is used to `epochs`."""
        return max(1, round(self.epochs * epochs))


@dataclass(frozen=True)
class Entrant:
    """One model to be audited.

    Parameters
    ----------
    member
        What it has seen.
    recipe
        How it is trained; ``None`` where its weights come with the tool.
    shipped
        Name of those weights.
    """

    member: Member
    recipe: Recipe | None = field(default_factory=Recipe)
    shipped: str | None = None

    @property
    def name(self) -> str:
        """Unique in a qualification."""
        return f"{self.member.world}-{self.shipped}" if self.shipped else self.member.name

    @property
    def part(self) -> Part:
        """Whether definitions may be chosen on it; the shipped twins served to develop the tool."""
        return "development" if self.shipped else self.member.part

    @property
    def world(self) -> World:
        """Its world."""
        return WORLDS[self.member.world]

    def key(self) -> str:
        """Digest of everything that its weights follow from."""
        if self.recipe is None:
            return digest({"shipped": self.shipped})[:16]
        return digest(
            {
                "world": self.member.world,
                "sources": self.world.sources(),
                "training": _training_code(),
                "architecture": self.member.architecture,
                "tied": dict(self.member.tied),
                "number": self.member.number,
                "renders": self.recipe.renders,
                "epochs": self.recipe.epochs,
            }
        )[:16]


@cache
def _training_code() -> str:
    folder = Path(__file__).parent
    return digest({name: essence(folder / name) for name in ("architectures.py", "plain.py", "training.py")})


def full(worlds: Sequence[World]) -> tuple[Entrant, ...]:
    """Every member of every world, the worlds in turn so that an early stop has seen all of them."""
    return _in_turn(
        [
            [
                Entrant(member)
                for member in population(world.name, tuple(world.renderer().ARTEFACTS), world.singles, world.doubles)
            ]
            for world in worlds
        ]
    )


def quick(worlds: Sequence[World], recipe: Recipe) -> tuple[Entrant, ...]:
    """The shipped twins, and one strong and one moderate shortcut of each world, trained briefly, over all architectures."""
    twins = (
        Entrant(Member("dermoscopy", "residual", {"ruler": 0.95}, 900), None, "shortcut"),
        Entrant(Member("dermoscopy", "residual", {}, 901), None, "clean"),
    )
    chosen = []
    for turn, world in enumerate(worlds):
        artefacts = tuple(world.renderer().ARTEFACTS)
        members = []
        for index, architecture in enumerate(("residual", "plain", "transformer")):
            strength = (0.95, 0.8, 0.05)[(index + turn) % 3]
            artefact = artefacts[(2 * index + 1) % len(artefacts)]
            members.append(Entrant(Member(world.name, architecture, {artefact: strength}, 910 + 10 * turn + index), recipe))
        chosen.append(members)
    here = {world.name for world in worlds}
    return tuple(twin for twin in twins if twin.member.world in here) + _in_turn(chosen)


def _in_turn(columns: list[list[Entrant]]) -> tuple[Entrant, ...]:
    longest = max((len(column) for column in columns), default=0)
    return tuple(column[row] for row in range(longest) for column in columns if row < len(column))


def weights_file(entrant: Entrant, work: Path) -> Path:
    """Where the weights of an entrant lie, or will lie once it is trained."""
    if entrant.shipped is not None:
        from semlens_audit.resources import phantom_weights

        return phantom_weights(entrant.shipped) / "model.safetensors"
    return work / "models" / f"{entrant.name}-{entrant.key()}.safetensors"


def model_source(entrant: Entrant, weights: Path) -> ModelSource:
    """How the audit builds the model."""
    from semlens_audit.qualification.architectures import ARCHITECTURES

    return ARCHITECTURES[entrant.member.architecture].source.model_copy(update={"weights": str(weights)})


def train_entrant(entrant: Entrant, work: Path, progress: Callable[[int], None] | None = None) -> Path:
    """Render what the entrant has to learn from, train it, keep the weights; nothing to do where they are there already."""
    target = weights_file(entrant, work)
    if target.is_file() or entrant.recipe is None:
        return target
    from semlens_audit.qualification import training
    from semlens_audit.qualification.architectures import ARCHITECTURES

    member, world, recipe = entrant.member, entrant.world, entrant.recipe
    architecture, renderer = ARCHITECTURES[member.architecture], world.renderer()
    cases = renderer.sample(world.population(world.plan(), member.tied), recipe.renders, TRAINING_SEED + member.number)
    model = training.train(
        architecture.build(),
        renderer.images(cases),
        np.array([case.label for case in cases], dtype=np.int64),
        epochs=recipe.passes(architecture.epochs),
        rate=architecture.rate,
        seed=member.number,
        flips=world.flips,
        progress=progress,
    )
    training.save(model, target)
    return target


def _alone(entrant: Entrant, work: Path) -> None:
    """Train in a process of its own; an interrupt is for the parent, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    train_entrant(entrant, work)


class Trainer:
    """Trains entrants ahead of the audits, one process each; use as a context manager, which ends what still runs.

    Parameters
    ----------
    entrants
        In the order in which they are audited.
    work
        Where weights are kept.
    jobs
        Processes at a time; 0 trains when asked for, in this process.
    """

    def __init__(self, entrants: Sequence[Entrant], work: Path, jobs: int) -> None:
        self._work, self._jobs = work, jobs
        self._waiting = [entrant for entrant in entrants if not weights_file(entrant, work).is_file()] if jobs else []
        self._running: dict[str, multiprocessing.process.BaseProcess] = {}

    def __enter__(self) -> Trainer:
        self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for name in [name for name, process in self._running.items() if not process.is_alive()]:
            self._running.pop(name).join()
        while self._waiting and len(self._running) < self._jobs:
            entrant = self._waiting.pop(0)
            process = context.Process(target=_alone, args=(entrant, self._work), daemon=True)
            process.start()
            self._running[entrant.name] = process

    @property
    def busy(self) -> int:
        """Processes that train at this moment."""
        return sum(process.is_alive() for process in self._running.values())

    def weights(self, entrant: Entrant) -> Path:
        """Weights of `entrant`, trained by now; waits for them where they are under way."""
        self._start()
        process = self._running.get(entrant.name)
        while process is None and self._jobs and any(entrant.name == other.name for other in self._waiting):
            # All processes are busy with entrants before this one: the next that ends makes room.
            multiprocessing.connection.wait([other.sentinel for other in self._running.values()])
            self._start()
            process = self._running.get(entrant.name)
        if process is not None:
            process.join()
        # A process that failed left no weights: trained here, whatever is wrong shows as an error of this process.
        path = train_entrant(entrant, self._work)
        self._start()
        return path


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
