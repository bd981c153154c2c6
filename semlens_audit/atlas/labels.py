"""Labels of components: the words of a vocabulary that they align with beyond chance, and where no label fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semlens_audit.atlas.embedded_words import EmbeddedWords, embed_words
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.vocabulary import Vocabulary, of_words
from semlens_audit.atlas.word_alignment import label_words, set_sizes
from semlens_audit.draws import generator
from semlens_audit.errors import DataError
from semlens_audit.evidence import LayerEvidence
from semlens_audit.progress import Progress, SilentProgress
from semlens_audit.scores import concept_embedding
from semlens_audit.statistics import benjamini_hochberg
from semlens_audit.units import effective_units

__all__ = ["Label", "best_label", "label_components", "random_sets"]

_SETS = (1000, 10_000)
"""Least and most random sets of reference samples that every word is held against."""

_COMPARISONS = 20_000_000
"""Random sets times words that are compared as long as that leaves the least number of sets."""


@dataclass(frozen=True)
class Label:
    """A word that a component may stand for.

    Parameters
    ----------
    word
        As the vocabulary writes it.
    alignment
        Cosine between the component's concept embedding and the word's probe, -1 to 1 (-2 to 2 for differences of cosines).
    z
        The same, in deviations from what random sets of as many crops reach with this word.
    p
        Probability that the best word of the whole vocabulary reaches this z with random reference samples; above 0, at most 1.
    significant
        Whether p stands out over all components of the layer: Benjamini and Hochberg (1995) at the level asked for. False: chance
        would explain it, the word is no label.
    """

    word: str
    alignment: float
    z: float
    p: float
    significant: bool


def random_sets(words: int) -> int:
    """How many random sets of reference samples a vocabulary of so many words is held against: the fewer words, the more sets.

    Where p-values of many components lie close to what false-discovery control asks for, the chance in which sets were drawn decides
    over many labels at once; more sets leave it less to decide.
    """
    return min(max(_COMPARISONS // max(words, 1), _SETS[0]), _SETS[1])


def best_label(labels: Sequence[Label]) -> Label | None:
    """The first label if it is significant, else ``None``: no label fits."""
    return labels[0] if labels and labels[0].significant else None


def label_components(
    atlas: Atlas,
    layer: str,
    words: EmbeddedWords | Vocabulary | Sequence[str],
    *,
    top: int = 3,
    level: float = 0.05,
    components: Sequence[int] | None = None,
    leave_out: int = 0,
    progress: Progress | None = None,
) -> list[list[Label]]:
    """The words that components of a layer align with most, see `semlens_audit.atlas.word_alignment.label_words`.

    Significance is always decided over the layer's components all together, so that a component has the same label whichever others
    are asked about. What a component's second and third word need is what its layer's best ones needed: the largest p that was
    rejected.

    Parameters
    ----------
    atlas
        Open index.
    layer
        One of the audit's layers.
    words
        Embedded words, a vocabulary, or words (no two alike but for case, white space or Unicode form).
    top
        Labels for each component.
    level
        False-discovery rate over the layer's components: of the components that are given a label, the share whose label is due to
        chance. Above 0, below 1.
    components
        Which; ``None``: all, in order.
    leave_out
        Reference samples of each component, the first, that the words were chosen by looking at: they and all of the same independent
        units are not tested on, since words that were chosen by looking fit what was looked at.
    progress
        Told of words that are embedded and compared.

    Returns
    -------
    list of list of Label
        Of each component the labels by z, highest first; at most `top`. Empty for a component that can have none: dead, or with
        fewer than two independent reference samples.

    Raises
    ------
    SubjectError
        ``no-text-tower``: the foundation model cannot read, and the words come without example images.
    DataError
        ``too-few-random-crops``.
    """
    progress = progress or SilentProgress()
    embedded = words if isinstance(words, EmbeddedWords) else embed_words(atlas, _vocabulary(words), progress)
    source = atlas.layers[layer]
    pool = np.asarray(source.null_meant)
    present, sizes = _tested(atlas, source, leave_out, len(pool))
    with progress.stage(f"Labels, {layer}", len(embedded.words)) as advance:
        nearest = label_words(
            concept_embedding(source.meant, present) if leave_out else atlas.concept_embeddings(layer),
            sizes,
            pool,
            lambda: embedded.blocks(atlas.centre(layer)),
            len(embedded.words),
            top=top,
            sets=random_sets(len(embedded.words)),
            generator=lambda size: generator(atlas.plan, "labels", layer, str(size)),
            advance=advance,
        )
    cut = _critical_p(nearest.p[:, 0], level)
    return [
        [
            Label(embedded.words[int(word)], float(nearest.alignment[k, i]), float(nearest.z[k, i]), float(p), bool(p <= cut))
            for i, (word, p) in enumerate(zip(nearest.words[k], nearest.p[k], strict=True))
            if word >= 0
        ]
        for k in (range(len(nearest.words)) if components is None else components)
    ]


def _tested(atlas: Atlas, source: LayerEvidence, leave_out: int, pool: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, m) bool: reference samples that words are tested on; and (K,) int64: sizes of the random sets they are held against."""
    present = source.reference_ids >= 0
    units = np.where(present, atlas.evidence.units[source.reference_ids], -1 - np.arange(present.shape[1]))
    if leave_out:
        present &= ~(units[:, :, None] == units[:, None, :leave_out]).any(axis=2)
    counts = effective_units(np.where(present, units, -1 - np.arange(present.shape[1])), present)
    sizes = set_sizes(counts, (counts >= 2) & ~source.dead)
    if sizes.max(initial=0) > pool:
        raise DataError(
            "too-few-random-crops",
            f"layer {source.layer}: {pool} random crops for reference sets of {sizes.max()}",
            "use more samples or fewer reference samples",
        )
    return present, sizes


def _critical_p(p: np.ndarray, level: float) -> float:
    """Largest p among those rejected at a false-discovery rate; below 0 where none is. NaN is no test."""
    tested = p[~np.isnan(p)]
    rejected = tested[benjamini_hochberg(tested) <= level] if len(tested) else tested
    return float(rejected.max()) if len(rejected) else -1.0


def _vocabulary(words: Vocabulary | Sequence[str]) -> Vocabulary:
    return words if isinstance(words, Vocabulary) else of_words(words)
