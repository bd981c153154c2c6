"""The score of CLIP-Dissect, to compare labels with: soft weighted pointwise mutual information.

Oikarinen and Weng, "CLIP-Dissect", ICLR 2023 (arXiv 2204.10965), section 3 and released code. Shapes use N images, K components, V
words.

What limits its use: a word's probability for an image is a softmax over *all* words, and what a component's own score is compared
with is the mean over *all* components. The score of a component with a word therefore changes when other words join the vocabulary or
other components the layer. Scores can rank words for components within one run; they cannot be compared across vocabularies, specs or
layers, and have no null distribution. Alignment against random reference sets (`semlens_audit.atlas.word_alignment`) has neither
dependence: only its p-value, on purpose, counts the words.
"""

from __future__ import annotations

import numpy as np

__all__ = ["IMAGES", "soft_wpmi"]

IMAGES = 100
"""Images that activate a component most, as many as in the released code."""

_SHARPNESS = 10.0
_INCLUDED = (0.998, 0.97)
_LEAST = 1e-7


def soft_wpmi(
    activations: np.ndarray, similarity: np.ndarray, *, images: int = IMAGES, sharpness: float = _SHARPNESS, weight: float = 1.0
) -> np.ndarray:
    """Soft weighted pointwise mutual information between components and words.

    With P(word | image) the softmax over words of ``sharpness * similarity`` and w falling from 0.998 to 0.97 over the images that
    activate the component most: ``log P(word | component) = sum_i log(1 + w_i (P_i - 1))``, less `weight` times the logarithm of its
    mean over components.

    Parameters
    ----------
    activations
        (N, K) pooled activations; of equal ones the image that comes first counts as the higher.
    similarity
        (N, V) cosines of images and words.
    images
        How many of the most activating images count, at least 1; all where there are fewer.

    Returns
    -------
    numpy.ndarray
        (K, V) float64; higher is nearer. Depends on all words and all components, see above.
    """
    count = min(images, len(activations))
    logits = sharpness * similarity.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    included = _INCLUDED[0] - np.arange(count) / count * (_INCLUDED[0] - _INCLUDED[1])
    given = np.empty((activations.shape[1], similarity.shape[1]))
    for component in range(activations.shape[1]):
        highest = np.argsort(-activations[:, component], kind="stable")[:count]
        given[component] = np.log(1.0 + included[:, None] * (logits[highest] - 1.0) + _LEAST).sum(axis=0)
    most = given.max(axis=0)
    mean = most + np.log(np.exp(given - most).mean(axis=0))
    return np.asarray(given - weight * mean)
