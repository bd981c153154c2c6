"""The rendered worlds of the qualification: which module renders, and which audit that comes with the tool reads its renders."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semlens_audit.digest import digest
from semlens_audit.errors import UsageError
from semlens_audit.plan import AuditPlan
from semlens_audit.resources import audits_dir
from semlens_audit.source_digest import essence

__all__ = ["WORLDS", "Case", "Renderer", "World", "available"]


class Switches(Protocol):
    """Which attributes a case has."""

    def has(self, name: str) -> bool:
        """Whether `name` is there."""

    def switched(self, name: str, on: bool) -> Any:
        """The same with `name` on or off."""


class Case(Protocol):
    """One scene to render and the class it is filed under."""

    @property
    def attributes(self) -> Switches:
        """What is in it."""

    @property
    def label(self) -> int:
        """Index into the world's classes."""


class Renderer(Protocol):
    """The public face of a world's module; see `semlens_audit.phantom.world`."""

    CLASSES: tuple[str, str]
    ARTEFACTS: tuple[str, ...]
    Population: Callable[..., Any]

    def sample(self, population: Any, n: int, seed: int) -> list[Any]:
        """Draw `n` cases."""

    def images(self, cases: Sequence[Any], size: int = 128) -> NDArray[np.uint8]:
        """The rendered cases, (n, size, size, 3) uint8."""


@dataclass(frozen=True)
class World:
    """One rendered world.

    Parameters
    ----------
    name
        How populations and reports call it.
    title
        In words.
    module
        Dotted name of the module that renders it, see `Renderer`.
    audit
        Audit that comes with the tool: gives spec, foundation model, preprocessing and kind of data.
    flips
        Whether a mirrored or transposed picture shows the same class.
    singles, doubles
        How large its part of the population is, see `semlens_audit.qualification.population.population`.
    blind
        Whether audits have to see by the foundation model which sample holds which concept; else attribute columns say so.
    """

    name: str
    title: str
    module: str
    audit: str
    flips: bool
    singles: int | None = None
    doubles: int = 2
    blind: bool = True

    @property
    def present(self) -> bool:
        """Whether this installation has the renderer and the audit."""
        return importlib.util.find_spec(self.module) is not None and (audits_dir() / self.audit).is_file()

    def renderer(self) -> Renderer:
        """The module that renders it."""
        module: Any = importlib.import_module(self.module)
        return module  # type: ignore[no-any-return]

    def plan(self) -> AuditPlan:
        """The audit that comes with the tool."""
        from semlens_audit.spec import read_plan

        return read_plan(audits_dir() / self.audit)

    def audited(self, plan: AuditPlan) -> int:
        """Index of the audited class among the renderer's classes."""
        name = next(iter(plan.spec.classes))
        return self.renderer().CLASSES.index(plan.audit.subject.class_map.get(name, name))

    def population(self, plan: AuditPlan, tied: Mapping[str, float]) -> Any:
        """Population in which each artefact of `tied` comes with the audited class that often, with the other as seldom."""
        audited = self.audited(plan)
        chances = {name: (1 - chance, chance) if audited == 1 else (chance, 1 - chance) for name, chance in tied.items()}
        return self.renderer().Population(tied=chances)

    def sources(self) -> str:
        """Digest of the code that renders: a changed renderer never meets what was rendered or trained before."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise UsageError("world-missing", f"The world {self.name!r} does not come with this installation.")
        folder = Path(spec.origin).parent
        files = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith(("train_", "evaluate_"))]
        return digest({path.name: essence(path) for path in files})


WORLDS: dict[str, World] = {
    "dermoscopy": World(
        "dermoscopy",
        "rendered dermoscopic images; concepts defined by text, presence as the foundation model sees it",
        "semlens_audit.phantom.world",
        "phantom-clean.yaml",
        True,
    ),
    "signs": World(
        "signs",
        "rendered road signs; concepts defined by example crops, presence from attribute columns",
        "semlens_audit.signs.world",
        "signs.yaml",
        False,
        3,
        1,
        False,
    ),
}


def available() -> tuple[World, ...]:
    """The worlds that this installation has."""
    return tuple(world for world in WORLDS.values() if world.present)
