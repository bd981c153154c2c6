"""A seeded renderer of road scenes with one sign, in which every attribute is known.

A `Place` is a seed: landscape, light, plate and where each artefact would be follow from it. `Attributes` say which of the nine
attributes are there. Each has a random stream of its own, so that switching one changes the picture where it is and nowhere
else. The signs follow no road code: their class is a rule over four attributes of the plate. A fifth of
the plates have lost their colours, so that a network cannot always be right.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semlens_audit.signs.artefacts import PAINTERS, Coat
from semlens_audit.signs.plate import SYMBOLS, Stand, mount, pole
from semlens_audit.signs.surroundings import landscape, sensor_noise

__all__ = ["ARTEFACTS", "ATTRIBUTES", "VALID", "Attributes", "Place", "SYMBOLS", "Scene", "render"]

VALID: tuple[str, ...] = ("triangle", "red_rim", "yellow_ground", "exclamation_mark")
ARTEFACTS: tuple[str, ...] = ("sticker", "watermark", "snow", "timestamp", "lamp_post")
ATTRIBUTES: tuple[str, ...] = VALID + ARTEFACTS

_WHERE = {"triangle": "plate", "red_rim": "rim", "yellow_ground": "ground", "exclamation_mark": "symbol"}

# Put onto the finished picture, whatever the light.
_IN_CAMERA = ("watermark", "timestamp")


@dataclass(frozen=True)
class Attributes:
    """Which attributes an image has.

    Parameters
    ----------
    names : frozenset of str
        A subset of `ATTRIBUTES`; ValueError otherwise.
    """

    names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in sorted(self.names):
            _known(name)

    @classmethod
    def of(cls, *names: str) -> Attributes:
        """Exactly `names`. Raises ValueError for an unknown name."""
        return cls(frozenset(names))

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Attributes:
        """Exactly `names`. Raises ValueError for an unknown name."""
        return cls(frozenset(names))

    def switched(self, name: str, on: bool) -> Attributes:
        """The same with `name` present (`on`) or absent. Raises ValueError for an unknown name."""
        _known(name)
        return Attributes(self.names | {name} if on else self.names - {name})

    def has(self, name: str) -> bool:
        """Whether `name` is present. Raises ValueError for an unknown name."""
        return _known(name) in self.names

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the attributes present, in the order of `ATTRIBUTES`."""
        return tuple(name for name in ATTRIBUTES if name in self.names)


def _known(name: str) -> str:
    if name not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {name!r}; known are {', '.join(ATTRIBUTES)}")
    return name


@dataclass(frozen=True)
class Place:
    """One sign at one roadside, photographed once: everything that is not an attribute.

    Parameters
    ----------
    seed : int
        Non-negative; the same seed gives the same place on every platform.
    """

    seed: int

    def stream(self, name: str) -> np.random.Generator:
        """The random stream of one aspect, independent of every other aspect."""
        return np.random.default_rng([self.seed, zlib.crc32(b"signs:" + name.encode())])


@dataclass(frozen=True)
class Scene:
    """A rendered image and where its attributes are.

    Attributes
    ----------
    image : (H, W, 3) uint8, RGB.
    masks : attribute name -> (H, W) bool; where the attribute is visible. A key for each present attribute only, and never an
        empty mask.
    extents : attribute name -> (H, W) bool; every pixel that the attribute may have changed. For the attributes of the plate
        this is the plate.
    plate : (H, W) bool; every pixel that the plate touches.
    bleached : bool; whether the plate has lost its colours, so that rim and ground cannot be told.
    symbol : str; ``exclamation_mark`` or one of `SYMBOLS`.
    things : ``sky``, ``road``, ``pole``, ``rim``, ``ground``, ``symbol`` -> (H, W) bool; where they are, what lies in front left
        aside but for the plate.
    """

    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    extents: dict[str, NDArray[np.bool_]]
    plate: NDArray[np.bool_]
    bleached: bool
    symbol: str
    things: dict[str, NDArray[np.bool_]]


def render(place: Place | int, attributes: Attributes, size: int = 128) -> Scene:
    """Render one image.

    Parameters
    ----------
    place : Place or int
        The place, or its seed.
    attributes : Attributes
        What is present.
    size : int
        Height and width in pixels, at least 32.

    Returns
    -------
    Scene

    Raises
    ------
    ValueError
        If `size` is below 32.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, not {size}")
    if not isinstance(place, Place):
        place = Place(int(place))
    stand = Stand.draw(place.stream("stand"))
    canvas, things = landscape(place.stream("landscape"), size)
    masks: dict[str, NDArray[np.bool_]] = {}
    extents: dict[str, NDArray[np.bool_]] = {}

    def add(name: str, coat: Coat) -> None:
        coat.paint(canvas)
        for other in masks:
            masks[other] = masks[other] & ~coat.opaque
        masks[name], extents[name] = coat.mask, coat.extent

    painters = {name: paint for name, paint in PAINTERS.items() if name in attributes.names}
    if "lamp_post" in painters:
        add("lamp_post", painters.pop("lamp_post")(place.stream("lamp_post"), stand, size))
    things["pole"] = pole(place.stream("pole"), stand, canvas, size)
    plate = mount(place.stream("plate"), place.stream("symbol"), stand, attributes.names, canvas, size)
    parts = plate.parts
    free = 1 - parts["plate"]
    things = {name: opacity * free for name, opacity in things.items()} | {
        name: parts[name] for name in ("rim", "ground", "symbol")
    }
    for other in masks:
        masks[other] = masks[other] & ~(parts["plate"] > 0.5)
    for name in VALID:
        if name in attributes.names:
            masks[name], extents[name] = parts[_WHERE[name]] > 0.5, parts["plate"] > 0
    light = np.float32(place.stream("light").uniform(0.75, 1.1))
    for name, paint in painters.items():
        if name in _IN_CAMERA:
            canvas *= light
            light = np.float32(1)
        add(name, paint(place.stream(name), stand, size))
    canvas *= light
    canvas += sensor_noise(place.stream("sensor"), size)
    image = (np.clip(canvas, 0.0, 1.0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return Scene(
        image,
        {name: masks[name] for name in ATTRIBUTES if name in masks},
        {name: extents[name] for name in ATTRIBUTES if name in extents},
        parts["plate"] > 0,
        plate.bleached,
        plate.symbol,
        {name: opacity > 0.5 for name, opacity in things.items()},
    )
