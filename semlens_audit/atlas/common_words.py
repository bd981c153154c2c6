"""Everyday words: how near a text comes that has nothing to do with what is looked for.

The reference samples of a component are never a random choice, so that any text whatever, pointed in some direction, lies beyond what
random reference sets reach in many components. A text says something only where it stands out from everyday words. Each component's z
with the text is held against its z with these words, in deviations; of each word the component that it stands out most for, anywhere
in what is searched, gives the distribution of the maximum that a text has to exceed (Westfall and Young, "Resampling-based multiple
testing", 1993). On the two models of the phantom, random sets alone would call something near to 59 and 61 of 62 other words; this
leaves 3 and 2.
"""

from __future__ import annotations

import numpy as np

from semlens_audit import scores
from semlens_audit.atlas.opening import Atlas
from semlens_audit.component_search import cache_folder
from semlens_audit.digest import digest
from semlens_audit.kept_array import kept_array
from semlens_audit.probe_texts import prompts

__all__ = ["WORDS", "word_probes"]

_TEXT = """
    car dog house tree river mountain bread apple chair table window door shoe hat bird fish horse cow road bridge
    train plane boat bottle cup plate knife fork spoon book paper pen pencil telephone computer screen keyboard lamp
    candle fire smoke cloud rain snow ice sun moon star sea beach sand stone rock grass flower leaf root seed fruit
    banana orange grape lemon carrot potato onion tomato cheese butter milk egg meat chicken rice soup salad cake
    biscuit candy sugar salt pepper honey wine beer coffee tea water glass mirror clock watch ring necklace coin money
    bank shop market school church castle tower wall roof floor stair garden park forest desert island lake king queen
    soldier doctor nurse teacher child baby man woman boy girl face eye nose mouth ear hand foot leg arm heart bone
    blood brain guitar piano drum violin song dance game ball football tennis golf bicycle motorcycle lorry bus ship
    anchor rope chain key lock hammer nail saw wheel engine oil coal gold silver iron wood wool cotton silk leather
    shirt coat sock glove umbrella bag box basket bed pillow blanket curtain towel carpet brush comb soap newspaper
    letter stamp envelope map flag statue painting
"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())
"""Nouns of everyday life, chosen by hand from as many fields as possible."""


def word_probes(atlas: Atlas) -> np.ndarray:
    """(W, d) float64 probes of `WORDS` by the spec's templates, as those of concepts; kept beside the store where possible."""
    templates = atlas.plan.spec.templates
    foundation = atlas.evidence.foundation
    name = digest([foundation["sha256"], list(templates), list(WORDS)])[:24]

    def embedded() -> np.ndarray:
        texts = atlas.foundation.embed_texts(prompts(templates, WORDS)).astype(np.float64)
        empty = atlas.foundation.embed_texts(prompts(templates, [""])).astype(np.float64)
        return scores.template_probes(texts.reshape(len(WORDS), len(templates), -1), empty)

    shape = (len(WORDS), int(str(foundation["dimension"])))
    return kept_array(cache_folder(atlas.store.path) / f"{name}.words", shape, embedded)
