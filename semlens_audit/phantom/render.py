"""A seeded renderer of dermoscopy-like images in which every attribute is known.

A `Lesion` is a seed: skin, pigment, lighting and the place of every artefact follow from it. `Attributes` say
which of the twelve attributes are present. Every attribute draws from a random stream of its own, so switching
one leaves the skin, the lesion and all other artefacts as they were: the pair of images differs only where the
attribute is, which makes the causal effect of an attribute on a model measurable.

The valid attributes are the criteria of the ABCD(E) rule of dermoscopy that a still image can show (Nachbar et
al., J Am Acad Dermatol 30:551, 1994) and the blue-white veil of the seven-point checklist (Argenziano et al.,
Arch Dermatol 134:1563, 1998); the artefacts are those known to bias models trained on the ISIC archive.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from semlens_audit.phantom import artefacts, skin

VALID: tuple[str, ...] = (
    "asymmetry",
    "irregular_border",
    "several_colours",
    "blue_white_veil",
    "large_diameter",
)
ARTEFACTS: tuple[str, ...] = (
    "ruler",
    "plaster",
    "hair",
    "pen_ink",
    "dark_corners",
    "red_skin",
    "colour_chart",
)
ATTRIBUTES: tuple[str, ...] = VALID + ARTEFACTS

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Attributes:
    """Which attributes a rendered image has; all absent by default."""

    asymmetry: bool = False
    irregular_border: bool = False
    several_colours: bool = False
    blue_white_veil: bool = False
    large_diameter: bool = False
    ruler: bool = False
    plaster: bool = False
    hair: bool = False
    pen_ink: bool = False
    dark_corners: bool = False
    red_skin: bool = False
    colour_chart: bool = False

    @classmethod
    def of(cls, *names: str) -> Attributes:
        """Attributes with exactly `names` present. Raises ValueError for an unknown name."""
        return cls.from_names(names)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Attributes:
        """Attributes with exactly `names` present. Raises ValueError for an unknown name."""
        chosen = list(names)
        unknown = sorted(set(chosen) - set(ATTRIBUTES))
        if unknown:
            raise ValueError(f"unknown attribute {unknown[0]!r}; known are {', '.join(ATTRIBUTES)}")
        return cls(**dict.fromkeys(chosen, True))

    def switched(self, name: str, on: bool) -> Attributes:
        """The same attributes with `name` present (`on`) or absent. Raises ValueError for an unknown name."""
        if name not in ATTRIBUTES:
            raise ValueError(f"unknown attribute {name!r}; known are {', '.join(ATTRIBUTES)}")
        return replace(self, **{name: on})

    def has(self, name: str) -> bool:
        """Whether attribute `name` is present."""
        return bool(getattr(self, name))

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the attributes present, in the order of `ATTRIBUTES`."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name))


@dataclass(frozen=True)
class Lesion:
    """One lesion on one patch of skin, photographed once: everything that is not an attribute.

    Parameters
    ----------
    seed : int
        Non-negative; the same seed gives the same lesion on every platform.
    """

    seed: int

    def stream(self, name: str) -> np.random.Generator:
        """The random stream of one aspect of the lesion, independent of every other aspect."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, zlib.crc32(name.encode())])))


@dataclass(frozen=True)
class Scene:
    """A rendered image and where its attributes are.

    Attributes
    ----------
    image : (H, W, 3) uint8, RGB.
    masks : attribute name -> (H, W) bool; where the attribute is visible. A key for each present attribute only,
        and never an empty mask.
    extents : attribute name -> (H, W) bool; every pixel the attribute may have changed (its soft rim included).
        For the shape attributes of the lesion this is the lesion's extent.
    lesion : (H, W) bool; the lesion, also where an artefact covers it.
    """

    image: Image
    masks: dict[str, Mask]
    extents: dict[str, Mask] = field(default_factory=dict)
    lesion: Mask = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Plane, Plane]:
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2.0 / size) - np.float32(1.0)
    x, y = np.meshgrid(axis, axis)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


ARTEFACT_LAYERS: tuple[tuple[str, Callable[..., artefacts.Layer]], ...] = (
    ("pen_ink", artefacts.pen_ink),
    ("hair", artefacts.hair),
    ("plaster", artefacts.plaster),
    ("colour_chart", artefacts.colour_chart),
    ("ruler", artefacts.ruler),
    ("dark_corners", artefacts.dark_corners),
)


def render(lesion: Lesion | int, attributes: Attributes, size: int = 128) -> Scene:
    """Render one image.

    Parameters
    ----------
    lesion : Lesion or int
        The lesion, or its seed.
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
    if not isinstance(lesion, Lesion):
        lesion = Lesion(int(lesion))
    x, y = _grid(size)
    layout = artefacts.Layout.draw(lesion.stream("layout"))
    canvas = skin.skin(lesion, x, y)
    masks: dict[str, Mask] = {}
    extents: dict[str, Mask] = {}
    geometry = skin.outline(lesion, attributes, x, y)
    if attributes.red_skin:
        redness = skin.erythema(lesion, x, y)
        canvas = skin.redden(canvas, redness)
        masks["red_skin"] = (redness > 0.25) & (geometry.alpha < 0.3)
        extents["red_skin"] = redness > 0
    canvas, inner = skin.paint_lesion(lesion, attributes, geometry, canvas, x, y)
    solid = geometry.alpha > 0.5
    support = geometry.alpha > 0
    for name, mask in inner.items():
        masks[name] = mask
        extents[name] = support
    for name, layer_of in ARTEFACT_LAYERS:
        if not attributes.has(name):
            continue
        layer = layer_of(lesion.stream(name), layout, x, y)
        canvas = layer.over(canvas)
        for other in masks:
            masks[other] = masks[other] & ~layer.opaque
        masks[name] = layer.mask
        extents[name] = layer.extent
    canvas = canvas + skin.sensor_noise(lesion, size)
    image = (np.clip(canvas, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)
    ordered = {name: masks[name] for name in ATTRIBUTES if name in masks}
    return Scene(image, ordered, extents, solid)
