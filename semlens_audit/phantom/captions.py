"""Captions of phantom crops that name only what is visible in the crop.

What can be said of a crop is a vector of *facts*, each true, false or open. An attribute that is half inside the
crop is neither true nor false: it is open, and no caption takes a side on it. The facts also say which captions
of other crops happen to be true of this one, which the training loss needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from semlens_audit.phantom.render import ARTEFACTS, ATTRIBUTES, VALID, Attributes, Scene

# The states of a fact.
FALSE, TRUE, OPEN = 0, 1, 2

LESION_FACTS: tuple[str, ...] = ("symmetric", "smooth_border", "one_colour", "small")
FACTS: tuple[str, ...] = (*ATTRIBUTES, *LESION_FACTS, "mole", "plain_skin")

OPPOSITE: dict[str, str] = {
    "symmetric": "asymmetry",
    "smooth_border": "irregular_border",
    "one_colour": "several_colours",
    "small": "large_diameter",
}

TEMPLATES: tuple[str, ...] = (
    "{}",
    "a photo of {}",
    "a close-up of {}",
    "a dermoscopic image of {}",
    "an image showing {}",
    "a picture of {}",
    "a dermoscopic photo of {}",
    "a crop with {}",
    "skin with {}",
    "a dermatoscope view with {}",
)

PHRASES: dict[str, tuple[str, ...]] = {
    "asymmetry": (
        "asymmetry", "asymmetric lesion", "an asymmetric lesion", "an asymmetric mole", "asymmetrical shape",
        "a lopsided lesion", "a lesion whose halves differ", "asymmetry of shape and pigment", "an uneven, lopsided mole",
        "a mole with one half darker than the other", "asymmetric pigmentation", "a melanoma with asymmetry",
        "an asymmetrical skin lesion", "asymmetric",
    ),
    "irregular_border": (
        "irregular border", "an irregular border", "irregular borders", "a lesion with an irregular border",
        "a ragged border", "notched border", "a notched, ragged edge", "jagged edges", "border irregularity",
        "a lesion with a scalloped, uneven outline", "a mole with a jagged edge", "irregular, notched border",
        "an abrupt ragged margin", "a blurred or ragged edge",
    ),
    "several_colours": (
        "several colours", "multiple colours", "several colors", "multiple colors", "colour variegation",
        "a lesion with several colours", "a mole of many colours", "a multicoloured lesion", "a multicolored mole",
        "variegated colour", "brown, black, red and white areas", "a lesion with red, black, white and brown parts",
        "more than one colour", "different colours in one lesion", "color variegation",
    ),
    "blue_white_veil": (
        "blue-white veil", "a blue-white veil", "a blue white veil", "blue-whitish veil", "a blue veil over the lesion",
        "a bluish haze", "a lesion with a blue-white veil", "a mole with a blue-grey area", "blue-gray structureless area",
        "a blue patch within the mole", "bluish-white haze over pigment", "blue-white structures",
    ),
    "large_diameter": (
        "large diameter", "a large diameter", "a large lesion", "a big mole", "a wide lesion", "a large mole",
        "diameter above 6 mm", "a lesion larger than 6 mm", "a lesion with a large diameter", "a very large skin lesion",
        "a lesion that fills the view", "large size",
    ),
    "ruler": (
        "ruler", "a ruler", "ruler marks", "a ruler with tick marks", "ruler markings", "a measuring scale",
        "a millimetre scale", "tick marks of a ruler", "black tick marks at the edge", "a ruler at the edge of the image",
        "a measuring ruler", "scale bar", "a scale with tick marks", "measurement marks", "a ruler beside the skin",
    ),
    "plaster": (
        "plaster", "a plaster", "an adhesive plaster", "band-aid", "a band-aid", "an adhesive bandage", "a sticking plaster",
        "a bandage", "bandaid", "a blue plaster", "a skin-coloured plaster", "a patch stuck on the skin", "an adhesive strip",
        "a coloured sticker", "adhesive tape",
    ),
    "hair": (
        "hair", "hairs", "body hair", "dark hair", "dark hairs", "dark hairs on skin", "hair across the skin", "hairy skin",
        "hair covering the lesion", "strands of hair", "thick dark hair", "hairs over the lesion", "dense hair",
    ),
    "pen_ink": (
        "pen ink", "pen marks", "ink", "purple ink", "purple pen marks", "blue ink", "a surgical marker",
        "ink marks on the skin", "marker ink around the lesion", "skin marking ink", "a pen marking", "a purple marker line",
        "surgical skin marker",
        "gentian violet ink", "ink markings",
    ),
    "dark_corners": (
        "dark corners", "black corners", "a vignette", "dark corner", "vignetting", "a dark vignette",
        "black border of the lens",
        "a round field of view with black corners", "the dark rim of the dermatoscope", "black circular frame",
        "dark image corners", "a black rim",
    ),
    "red_skin": (
        "red skin", "reddened skin", "erythema", "red, irritated skin", "inflamed skin", "redness around the lesion",
        "redness of the skin", "skin redness", "irritated skin", "reddish skin", "red surrounding skin", "a red rash",
        "flushed red skin",
    ),
    "colour_chart": (
        "colour chart", "a colour chart", "color chart", "a color chart", "colour calibration chart",
        "a color calibration card",
        "calibration patches", "coloured calibration squares", "a row of coloured squares", "colour patches", "color patches",
        "a colour checker", "color checker", "a colour reference card",
    ),
    "symmetric": (
        "a symmetric lesion", "symmetric lesion", "a round symmetric mole", "a symmetrical mole", "an even, round mole",
        "a mole with equal halves", "symmetry",
    ),
    "smooth_border": (
        "a smooth border", "a lesion with a smooth border", "regular border", "a regular border", "an even outline",
        "smooth edges", "a mole with a smooth, even edge",
    ),
    "one_colour": (
        "one colour", "a single colour", "a uniformly brown mole", "a lesion of one colour", "uniform pigment",
        "a single color",
        "an evenly brown lesion",
    ),
    "small": (
        "a small lesion", "a small mole", "small diameter", "a tiny mole", "a lesion smaller than 6 mm", "a little mole",
        "a lesion with a small diameter",
    ),
    "mole": (
        "a mole", "a lesion", "a skin lesion", "a pigmented lesion", "a naevus or melanoma", "a pigmented spot", "a nevus",
        "mole",
        "pigment",
    ),
    "plain_skin": (
        "plain skin", "skin", "bare skin", "healthy skin", "clean skin", "skin without a lesion", "normal skin", "empty skin",
        "background skin", "skin texture",
    ),
}  # fmt: skip

# As an adjective before "mole", or after it behind "with" (several facts in one caption).
ADJECTIVES: dict[str, tuple[str, ...]] = {
    "asymmetry": ("asymmetric", "asymmetrical", "lopsided"),
    "irregular_border": ("ragged", "jagged", "notched", "irregularly bordered"),
    "several_colours": ("multicoloured", "variegated", "multicolored"),
    "large_diameter": ("large", "big", "wide"),
    "symmetric": ("symmetric", "symmetrical", "round"),
    "smooth_border": ("smooth-edged", "regular", "sharply round"),
    "one_colour": ("uniformly brown", "evenly coloured", "one-coloured"),
    "small": ("small", "tiny", "little"),
}
WITH: dict[str, tuple[str, ...]] = {
    "asymmetry": ("asymmetry", "an asymmetric shape"),
    "irregular_border": ("an irregular border", "a jagged edge", "ragged borders"),
    "several_colours": ("several colours", "multiple colours", "several colors"),
    "blue_white_veil": ("a blue-white veil", "a bluish haze", "a blue veil"),
    "large_diameter": ("a large diameter",),
    "symmetric": ("a symmetric shape",),
    "smooth_border": ("a smooth border", "a regular border", "even edges"),
    "one_colour": ("a single colour", "one uniform colour"),
    "small": ("a small diameter",),
}
GENERIC: tuple[str, ...] = (
    "", "a photo of", "a close-up of", "a dermoscopic image of", "an image showing", "a picture of", "a dermoscopic photo of",
    "a crop with", "a photo", "an image", "a dermoscopic image", "a close-up",
)  # fmt: skip

# The phrase by which the model card measures each concept.
PROBES: dict[str, tuple[str, ...]] = {name: PHRASES[name][:4] for name in ATTRIBUTES}

Box = tuple[int, int, int, int]


def facts(scene: Scene, attributes: Attributes, box: Box) -> NDArray[np.int8]:
    """What can be said of one crop.

    Parameters
    ----------
    scene : Scene
    attributes : Attributes
        What `scene` was rendered with.
    box : (left, top, right, bottom) in pixels, right and bottom exclusive.

    Returns
    -------
    (len(FACTS),) int8 of FALSE, TRUE, OPEN.
    """
    left, top, right, bottom = box
    window = (slice(top, bottom), slice(left, right))
    area = float((bottom - top) * (right - left))
    total = float(scene.lesion.size)
    state = np.zeros(len(FACTS), dtype=np.int8)
    lesion_pixels = float(scene.lesion[window].sum())
    shown = lesion_pixels / max(float(scene.lesion.sum()), 1.0)
    whole = shown >= 0.75
    for place, name in enumerate(ATTRIBUTES):
        if not attributes.has(name):
            continue
        mask = scene.masks[name]
        inside = float(mask[window].sum())
        if inside == 0:
            continue
        if name == "asymmetry":
            seen, gone = whole, shown < 0.1
        elif name == "large_diameter":
            # Without the bare skin around it, the size of a lesion cannot be told.
            seen, gone = shown >= 0.6 and area / total > 0.25, shown < 0.1
        else:
            part = inside / float(mask.sum())
            seen = inside / area > _needed(name) or (part > 0.5 and inside / area > 0.01)
            gone = inside / area < 0.002 and part < 0.05
        state[place] = TRUE if seen else FALSE if gone else OPEN
    for name in LESION_FACTS:
        place = FACTS.index(name)
        if attributes.has(OPPOSITE[name]) or shown < 0.05:
            state[place] = FALSE
        elif name == "small" and area / total <= 0.25:
            state[place] = OPEN
        else:
            state[place] = TRUE if whole else OPEN
    mole = FACTS.index("mole")
    state[mole] = TRUE if lesion_pixels / area > 0.06 else FALSE if lesion_pixels == 0 else OPEN
    visible_artefact = any(state[ATTRIBUTES.index(name)] != FALSE for name in ARTEFACTS)
    plain = FACTS.index("plain_skin")
    state[plain] = FALSE if visible_artefact or lesion_pixels / area > 0.06 else TRUE if lesion_pixels == 0 else OPEN
    return state


def _needed(name: str) -> float:
    """Share of the crop's area from which on an attribute counts as visible."""
    return {"hair": 0.03, "irregular_border": 0.05, "pen_ink": 0.025, "red_skin": 0.12}.get(name, 0.04)


def caption(state: NDArray[np.int8], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A caption true of a crop, and the facts it claims.

    Parameters
    ----------
    state : (len(FACTS),) int8
        Of the crop, see `facts`.
    rng : numpy.random.Generator

    Returns
    -------
    text : str
    claimed : names out of `FACTS`, all true in `state`; empty for a caption that says nothing.
    """
    true = [name for name, value in zip(FACTS, state, strict=True) if value == TRUE]
    draw = rng.random()
    if not true or draw < 0.03:
        return str(rng.choice(GENERIC)), ()
    if draw < 0.62:
        # Attributes first: the single-concept caption is what a probe looks like.
        marked = [name for name in true if name in ATTRIBUTES]
        pool = marked if marked and rng.random() < 0.8 else true
        name = pool[int(rng.integers(len(pool)))]
        return str(rng.choice(TEMPLATES)).format(rng.choice(PHRASES[name])), (name,)
    return _sentence(true, rng)


def _sentence(true: Sequence[str], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """One sentence over several facts, chosen at random among those that are true."""
    kept = [name for name in true if name != "mole" and rng.random() < 0.75]
    if "plain_skin" in kept or not kept:
        kept = [true[int(rng.integers(len(true)))]]
    shape = [name for name in kept if name in VALID or name in LESION_FACTS]
    things = [name for name in kept if name in ARTEFACTS]
    claimed = list(kept)
    parts: list[str] = []
    if shape:
        rng.shuffle(shape)
        front = [name for name in shape if name in ADJECTIVES][: int(rng.integers(0, 3))]
        back = [name for name in shape if name not in front]
        noun = str(rng.choice(["mole", "lesion", "skin lesion", "pigmented lesion"]))
        words = " ".join([*(str(rng.choice(ADJECTIVES[name])) for name in front), noun])
        subject = ("an " if words[0] in "aeiou" else "a ") + words
        if back:
            subject += " with " + _joined([str(rng.choice(WITH[name])) for name in back])
        parts.append(subject)
    elif "mole" in true and things and rng.random() < 0.4:
        parts.append(str(rng.choice(["a mole", "a lesion"])))
        claimed.append("mole")
    elif not things:
        parts.append(str(rng.choice(PHRASES[kept[0]])))
    if things:
        rng.shuffle(things)
        joined = _joined([str(rng.choice(PHRASES[name])) for name in things])
        link = str(rng.choice(["with", "beside", "and", "next to", "together with"]))
        parts.append(f"{link} {joined}" if parts else joined)
    return str(rng.choice(TEMPLATES)).format(" ".join(parts)), tuple(dict.fromkeys(claimed))


def _joined(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]


def truth(states: NDArray[np.int8], claims: Sequence[Sequence[str]]) -> NDArray[np.int8]:
    """Which captions are true of which crops.

    Parameters
    ----------
    states : (n, len(FACTS)) int8
    claims : n_captions sequences of fact names

    Returns
    -------
    (n, n_captions) int8: FALSE where a claimed fact is false, else OPEN where one is open, else TRUE.
    """
    claimed = np.zeros((len(claims), len(FACTS)), dtype=np.float32)
    for row, names in enumerate(claims):
        for name in names:
            claimed[row, FACTS.index(name)] = 1
    wrong = (states == FALSE).astype(np.float32) @ claimed.T > 0
    unsure = (states == OPEN).astype(np.float32) @ claimed.T > 0
    return np.where(wrong, FALSE, np.where(unsure, OPEN, TRUE)).astype(np.int8)


def draw_box(scene: Scene, rng: np.random.Generator, smallest: int = 28) -> Box:
    """A square crop: around an attribute, around the lesion, anywhere, or beside the lesion.

    Parameters
    ----------
    scene : Scene of size at least `smallest`.
    rng : numpy.random.Generator
    smallest : int
        Least side in pixels.

    Returns
    -------
    (left, top, right, bottom) in pixels inside the image.
    """
    size = scene.image.shape[0]
    draw = rng.random()
    target = None
    if draw < 0.16:
        return _beside(scene, rng, smallest)
    if draw < 0.75 and scene.masks:
        names = list(scene.masks)
        target = scene.masks[names[int(rng.integers(len(names)))]]
    elif draw < 0.88:
        target = scene.lesion
    side = int(np.exp(rng.uniform(np.log(smallest), np.log(size))))
    if target is None or not target.any():
        left, top = (int(v) for v in rng.integers(0, size - side + 1, 2))
        return left, top, left + side, top + side
    rows, columns = np.nonzero(target)
    if rng.random() < 0.5:
        # The box that holds the whole attribute, with some room: what attribution of a whole-object neuron gives.
        span = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
        side = int(np.clip(span * rng.uniform(0.9, 1.3), smallest, size))
        cy, cx = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    else:
        pick = int(rng.integers(rows.size))
        cy, cx = rows[pick] + rng.uniform(-0.3, 0.3) * side, columns[pick] + rng.uniform(-0.3, 0.3) * side
    left = int(np.clip(round(cx - side / 2), 0, size - side))
    top = int(np.clip(round(cy - side / 2), 0, size - side))
    return left, top, left + side, top + side


def _beside(scene: Scene, rng: np.random.Generator, smallest: int) -> Box:
    """A square crop with as little of the lesion as a few tries find."""
    size = scene.image.shape[0]
    best, least = (0, 0, smallest, smallest), np.inf
    for _ in range(12):
        side = int(rng.integers(smallest, max(smallest + 1, int(0.45 * size))))
        left, top = (int(v) for v in rng.integers(0, size - side + 1, 2))
        lesion = float(scene.lesion[top : top + side, left : left + side].mean())
        if lesion < least:
            best, least = (left, top, left + side, top + side), lesion
        if lesion == 0:
            break
    return best
