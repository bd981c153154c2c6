"""Scores of components: concept embedding, alignment, clarity, relevance shares.

Pure functions of NumPy arrays. Shapes use K components, m reference samples, d embedding dimensions, P probes, N samples.
SemanticLens stands for Dreyer et al., "Mechanistic understanding and validation of large AI models with SemanticLens",
arXiv 2501.05398.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "EPSILON",
    "ProbeSet",
    "alignment",
    "clarity",
    "concept_embedding",
    "example_probe",
    "gram",
    "relevance_shares",
    "same_origin",
    "template_probes",
    "unit",
]

EPSILON = 1e-12


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors of shape (..., d) to unit length; zero vectors stay zero."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norm, EPSILON)


def concept_embedding(embeddings: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean embedding of each component's reference samples (SemanticLens).

    Parameters
    ----------
    embeddings
        (K, m, d) unit-length embeddings.
    present
        (K, m) bool, False where a component has fewer than m reference samples.

    Returns
    -------
    numpy.ndarray
        (K, d); zeros for a component without reference samples.
    """
    weights = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
    return np.einsum("km,kmd->kd", weights.astype(embeddings.dtype), embeddings)


def template_probes(text: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """Probe of each description as the mean difference to the empty prompt (SemanticLens, released code).

    Parameters
    ----------
    text
        (Q, T, d) embeddings of description x template.
    empty
        (T, d) embeddings of the templates filled with the empty string.

    Returns
    -------
    numpy.ndarray
        (Q, d): ``mean_t [F(t(q)) - F(t(""))]``, not normalised.
    """
    return (text - empty[None]).mean(axis=1)


@dataclass(frozen=True)
class ProbeSet:
    """All probes of an audit, stacked.

    Parameters
    ----------
    directions
        (P, d) directions that embeddings are compared with.
    origins
        (P, d) point that is subtracted from an embedding before it is compared; zero for text.
    baselines
        (P, d) direction whose cosine is subtracted from the cosine with `directions`; zero: nothing is subtracted.
    concepts
        (P,) index of the concept each probe belongs to.
    """

    directions: np.ndarray
    origins: np.ndarray
    baselines: np.ndarray
    concepts: np.ndarray

    @property
    def count(self) -> int:
        """Number of concepts."""
        return int(self.concepts.max()) + 1 if len(self.concepts) else 0


def example_probe(examples: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Probe of a concept given by example images: mean example, seen from the centre of random crops.

    Embeddings of an image encoder crowd in a narrow cone; measured from the cone's centre, the cosine speaks of what
    differs from an arbitrary crop of the same data.

    Parameters
    ----------
    examples
        (E, d) unit-length embeddings, E >= 1.
    centre
        (d,) mean embedding of random crops.

    Returns
    -------
    numpy.ndarray
        (d,)
    """
    return examples.mean(axis=0) - centre


def _cosine(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return unit(vectors) @ unit(directions).T


def alignment(vectors: np.ndarray, probes: ProbeSet) -> np.ndarray:
    """Cosine of embeddings with every probe.

    ``cos(v - origin, direction) - cos(v, baseline)``; with zero baselines this is the template-difference probe of
    SemanticLens; with the empty prompt as baseline it is the difference-of-cosines probe of arXiv 2505.20229.

    Parameters
    ----------
    vectors
        (n, d)

    Returns
    -------
    numpy.ndarray
        (n, P), -1 to 1 (-2 to 2 with baselines).
    """
    out = np.empty((len(vectors), len(probes.directions)))
    for rows in same_origin(probes.origins):
        out[:, rows] = _cosine(vectors - probes.origins[rows[0]], probes.directions[rows])
    return out - _cosine(vectors, probes.baselines)


def same_origin(origins: np.ndarray) -> list[np.ndarray]:
    """Group probe indices by identical origin, so that each group is one matrix product."""
    if not len(origins):
        return []
    _, group = np.unique(origins, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return [np.flatnonzero(group == value) for value in range(int(group.max()) + 1)]


def relevance_shares(relevance: np.ndarray) -> np.ndarray:
    """Share of each component in a sample's absolute relevance.

    ``share_ik = |R_ik| / sum_k |R_ik|``.

    Parameters
    ----------
    relevance
        (N, K) signed relevance.

    Returns
    -------
    numpy.ndarray
        (N, K) float64, rows add up to 1; a row without any relevance is zero throughout.
    """
    magnitude = np.abs(relevance.astype(np.float64))
    total = magnitude.sum(axis=1, keepdims=True)
    return np.divide(magnitude, total, out=np.zeros_like(magnitude), where=total > 0)


def gram(embeddings: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
    """Inner products among each component's reference embeddings, (K, m, d) -> (K, m, m) float64."""
    centred = embeddings if origin is None else embeddings - origin.astype(embeddings.dtype)
    return np.matmul(centred, centred.transpose(0, 2, 1)).astype(np.float64)


def clarity(embeddings: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean pairwise cosine of each component's reference embeddings (SemanticLens).

    ``(||mean_i v_i||^2 - 1/m) * m / (m - 1)`` with unit-length v_i.

    Parameters
    ----------
    embeddings
        (K, m, d)
    present
        (K, m) bool

    Returns
    -------
    numpy.ndarray
        (K,) float64 in [-1/(m-1), 1]; NaN for fewer than two reference samples.
    """
    count = present.sum(axis=1).astype(np.float64)
    total = np.where(present[..., None], unit(embeddings.astype(np.float64)), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = ((total**2).sum(axis=1) - count) / (count * (count - 1))
    return np.where(count >= 2, value, np.nan)
