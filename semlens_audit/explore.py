"""Looking into an index without auditing: components of a layer by relevance, and search by text or image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semlens_audit import scores
from semlens_audit.data import open_data
from semlens_audit.errors import StoreError, UsageError
from semlens_audit.evidence import LayerEvidence
from semlens_audit.index import evidence_stages, load_evidence
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import prompts
from semlens_audit.store import Store
from semlens_audit.vectors import null_vectors

__all__ = ["ComponentRow", "Reference", "components", "search"]

_NEIGHBOURS = 5


@dataclass(frozen=True)
class Reference:
    """One reference sample.

    Parameters
    ----------
    sample
        Path relative to the data's root.
    activation
        Pooled activation.
    box
        Crop x0, y0, x1, y1 in pixels of the network's input.
    """

    sample: str
    activation: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ComponentRow:
    """One component of a layer, as a listing shows it.

    Parameters
    ----------
    layer, component
        Which.
    dead
        Never above zero on the data.
    share
        Class of the spec -> mean share of the class's absolute relevance in the layer, 0 to 1.
    references
        Its first reference samples, highest activation first.
    similarity
        Cosine between its concept embedding and the query, -1 to 1; ``None`` in a listing without a query.
    """

    layer: str
    component: int
    dead: bool
    share: dict[str, float]
    references: tuple[Reference, ...]
    similarity: float | None = None


def components(
    plan: AuditPlan, *, layer: str | None = None, class_name: str | None = None, top: int = 20
) -> list[ComponentRow]:
    """The components that carry most of a class's relevance, most relevant first; reads the store only.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    layer
        One of the audit's layers; ``None``: each of them, one after the other.
    class_name
        Class of the spec; ``None``: the first.
    top
        Components of each layer.

    Raises
    ------
    UsageError
        ``unknown-layer``, ``unknown-class``.
    StoreError
        ``index-incomplete``, or no store.
    """
    names = list(plan.spec.classes)
    chosen = names[0] if class_name is None else class_name
    if chosen not in names:
        raise UsageError("unknown-class", f"The spec has no class {chosen!r}.", f"Its classes: {', '.join(names)}.")
    wanted = _layers(plan, layer)
    with Store.open(store_path(plan), read_only=True) as store:
        evidence = load_evidence(plan, open_data(plan, store.file_digest), store)
        if evidence is None:
            raise _incomplete(store)
        rows = []
        for source in evidence.layers:
            if source.layer not in wanted:
                continue
            share = _shares(source, evidence.labels, evidence.audited)
            order = np.argsort(-share[names.index(chosen)], kind="stable")[:top]
            rows += [
                _row(source, int(k), evidence.paths, {name: float(share[c, k]) for c, name in enumerate(names)}) for k in order
            ]
        return rows


def search(
    plan: AuditPlan, *, text: str | None = None, image: Path | None = None, layer: str | None = None, top: int = 10
) -> list[ComponentRow]:
    """The components whose concept embedding is nearest to a text or an image, over all layers; loads the foundation model.

    A text is compared as the probe of a concept is: its mean difference to the empty prompt over the spec's templates
    (SemanticLens, arXiv 2501.05398). An image is compared from the centre of the layer's random crops, because embeddings of
    images crowd in a narrow cone.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    text, image
        Exactly one of them.
    layer
        One of the audit's layers; ``None``: all.
    top
        Components to return.

    Raises
    ------
    UsageError
        Neither or both of `text` and `image`; ``unknown-layer``.
    SubjectError
        ``no-text-tower``: the foundation model cannot read text.
    StoreError
        ``index-incomplete``, or no store.
    """
    if (text is None) == (image is None):
        raise UsageError(
            "one-query", "Search needs a text or an image, and not both.", 'Write e.g. search AUDIT.yaml "a ruler".'
        )
    wanted = _layers(plan, layer)
    with Store.open(store_path(plan), read_only=True) as store:
        data = open_data(plan, store.file_digest)
        keys = evidence_stages(plan, data, store)
        if not store.complete(list(keys.values())):
            raise _incomplete(store)
        query = _query(plan, text, image)
        found = []
        for name in wanted:
            null = keys[f"null:{name}"]
            direction = query if image is None else query - _centre(store, keys, name)
            column, width = ("vector" if image is None else "centred"), len(query)
            hits = store.rows(
                f'SELECT component, array_cosine_similarity("{column}"::FLOAT[{width}], ?::FLOAT[{width}]) AS similarity '
                "FROM meaning WHERE stage = ? ORDER BY similarity DESC, component LIMIT ?",
                (direction.astype(np.float32).tolist(), null, top),
            )
            found += [(similarity, name, component) for component, similarity in hits]
        found = sorted(found, key=lambda hit: (-hit[0], hit[1], hit[2]))[:top]
        evidence = load_evidence(plan, data, store)
        if evidence is None:
            raise _incomplete(store)
        sources = {source.layer: source for source in evidence.layers}
        shares = {name: _shares(sources[name], evidence.labels, evidence.audited) for name in {hit[1] for hit in found}}
        classes = list(plan.spec.classes)
        return [
            _row(
                sources[name],
                k,
                evidence.paths,
                {c: float(shares[name][i, k]) for i, c in enumerate(classes)},
                float(similarity),
            )
            for similarity, name, k in found
        ]


def _layers(plan: AuditPlan, layer: str | None) -> tuple[str, ...]:
    if layer is None:
        return plan.audit.layers
    if layer not in plan.audit.layers:
        raise UsageError("unknown-layer", f"The audit has no layer {layer!r}.", f"Its layers: {', '.join(plan.audit.layers)}.")
    return (layer,)


def _incomplete(store: Store) -> StoreError:
    return StoreError(
        "index-incomplete",
        "The index of this audit is not complete.",
        "Run `semlens-audit index` with it first.",
        file=str(store.path),
    )


def _query(plan: AuditPlan, text: str | None, image: Path | None) -> np.ndarray:
    from semlens_audit.foundation import load_foundation
    from semlens_audit.images import read_image

    foundation = load_foundation(plan)
    if image is not None:
        return foundation.embed_images([read_image(Path(image))])[0].astype(np.float64)
    templates = plan.spec.templates
    described = foundation.embed_texts(prompts(templates, [text or ""])).astype(np.float64)
    empty = foundation.embed_texts(prompts(templates, [""])).astype(np.float64)
    return np.asarray(scores.template_probes(described[None], empty)[0])


def _centre(store: Store, keys: dict[str, str], layer: str) -> np.ndarray:
    return np.asarray(null_vectors(store, keys[f"null:{layer}"], keys["foundation"]).astype(np.float64).mean(axis=0))


def _shares(source: LayerEvidence, labels: np.ndarray, audited: tuple[int, ...]) -> np.ndarray:
    """(C, K) mean share of each component over the samples of each class; zeros for a class without samples."""
    result = np.zeros((len(audited), source.relevance.shape[2]))
    for place, index in enumerate(audited):
        rows = source.relevance[labels == index, place]
        if len(rows):
            result[place] = scores.relevance_shares(rows).mean(axis=0)
    return result


def _row(
    source: LayerEvidence, component: int, paths: tuple[str, ...], share: dict[str, float], similarity: float | None = None
) -> ComponentRow:
    ids = source.reference_ids[component]
    references = tuple(
        Reference(
            sample=paths[int(ids[rank])],
            activation=float(source.activations[component, rank]),
            box=tuple(int(value) for value in source.boxes[component, rank]),  # type: ignore[arg-type]
        )
        for rank in np.flatnonzero(ids >= 0)[:_NEIGHBOURS]
    )
    return ComponentRow(source.layer, component, bool(source.dead[component]), share, references, similarity)
