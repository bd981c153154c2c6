"""An audit's index opened for looking things up: layers, concept embeddings, shares of relevance, thumbnails, queries."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from semlens_audit import scores
from semlens_audit.component_search import cache_folder, when_finished
from semlens_audit.data import DataSet, open_data
from semlens_audit.digest import digest, digest_array
from semlens_audit.errors import StoreError, UsageError
from semlens_audit.evidence import Evidence, LayerEvidence
from semlens_audit.flow import class_shares
from semlens_audit.index import evidence_stages, load_evidence
from semlens_audit.kept_array import kept_array
from semlens_audit.look_alikes import LookAlikes
from semlens_audit.memory import divide
from semlens_audit.paths import store_path
from semlens_audit.plan import AuditPlan
from semlens_audit.probe_texts import prompts
from semlens_audit.store import Store
from semlens_audit.vectors import null_vectors

if TYPE_CHECKING:
    from types import TracebackType

    from semlens_audit.foundation import Foundation

__all__ = ["Atlas", "chosen_class", "chosen_layers"]


class Atlas:
    """The complete index of an audit, opened once for any number of questions; reads the store only.

    Nothing is loaded before a question needs it, and then once. Only `foundation` and what is embedded with it brings in torch.

    Parameters
    ----------
    plan
        The audit; its index must be complete.
    max_memory
        Bytes of main memory that may be used, or ``None``: as much as it takes.

    Attributes
    ----------
    plan : AuditPlan
    store : Store
        Open for reading.
    data : DataSet
    keys : dict
        Stage (``crops:LAYER``, ``null:LAYER``, ``foundation``, ...) -> key in the store.

    Raises
    ------
    StoreError
        ``index-incomplete``, or no store.
    """

    def __init__(self, plan: AuditPlan, max_memory: int | None = None) -> None:
        self.plan = plan
        self.store = Store.open(store_path(plan), read_only=True, memory_limit=divide(max_memory).database)
        try:
            self.data: DataSet = open_data(plan, self.store.file_digest)
            self.keys = evidence_stages(plan, self.data, self.store)
            if not self.store.complete(list(self.keys.values())):
                raise _incomplete(self.store)
        except BaseException:
            self.store.close()
            raise
        self._centres: dict[tuple[str, str], np.ndarray] = {}
        self._shares: dict[str, np.ndarray] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    @cached_property
    def evidence(self) -> Evidence:
        """Everything measured; large arrays are read when they are used."""
        found = load_evidence(self.plan, self.data, self.store)
        if found is None:
            raise _incomplete(self.store)
        return found

    @cached_property
    def layers(self) -> dict[str, LayerEvidence]:
        """Layer -> its components: reference samples, embeddings of their crops, random crops, relevance."""
        return {source.layer: source for source in self.evidence.layers}

    @cached_property
    def foundation(self) -> Foundation:
        """The foundation model, loaded."""
        from semlens_audit.foundation import load_foundation

        return load_foundation(self.plan)

    def concept_embeddings(self, layer: str, column: str = "vector") -> np.ndarray:
        """Concept embeddings of a layer's components.

        Parameters
        ----------
        layer
            One of the audit's layers.
        column
            ``vector``: what the audit makes of the crops' embeddings, their mean or the mean of what contrastive crops leave of them;
            ``centred``: their mean, minus the mean of the layer's random crops.

        Returns
        -------
        numpy.ndarray
            (K, d) float32; zeros for a component without reference samples.
        """
        source = self.layers[layer]
        if column == "vector" and source.residuals is not None:
            return scores.concept_embedding(source.residuals, source.reference_ids >= 0)
        rows = self.store.arrays(
            f'SELECT component, "{column}" AS vector FROM meaning WHERE stage = ? ORDER BY component', (self.keys[f"null:{layer}"],)
        )
        out = np.zeros((source.components, rows["vector"].shape[1] if len(rows["component"]) else 0), dtype=np.float32)
        out[rows["component"]] = rows["vector"]
        return out

    def centre(self, layer: str) -> np.ndarray:
        """(d,) float64 mean embedding of the layer's random crops: what image queries and example probes are seen from."""
        return self.centre_of(self.keys[f"null:{layer}"], self.keys["foundation"])

    def centre_of(self, null: str, pool: str) -> np.ndarray:
        """The same for any layer in the store, by the keys of its random crops and of the pool that holds their embeddings."""
        if (null, pool) not in self._centres:
            self._centres[null, pool] = null_vectors(self.store, null, pool).astype(np.float64).mean(axis=0)
        return self._centres[null, pool]

    def shares(self, layer: str) -> np.ndarray:
        """(C, K) mean share of each audited class's absolute relevance; read once, and kept beside the store where possible."""
        if layer not in self._shares:
            evidence = self.evidence
            stage = self.keys[f"relevance:{layer}"]
            counted = [digest_array(evidence.labels), list(evidence.audited), stage, when_finished(self.store, stage)]
            self._shares[layer] = kept_array(
                cache_folder(self.store.path) / f"{stage}.{digest(counted)[:16]}.shares",
                (len(evidence.audited), len(self.layers[layer].dead)),
                lambda: class_shares(self.layers[layer], evidence.labels, evidence.audited),
            )
        return self._shares[layer]

    def thumbnail(self, layer: str, component: int, rank: int) -> tuple[bytes, bytes]:
        """JPEG bytes of a reference sample's crop and of its heatmap with the box; there for the first few ranks only."""
        assert self.evidence.thumbnails is not None
        return self.evidence.thumbnails(layer, component, rank)

    @cached_property
    def look_alikes(self) -> LookAlikes | None:
        """The contrastive crops of the components; ``None`` where concept embeddings are means of crops alone."""
        if self.plan.audit.measurement.concept_embedding != "contrastive":
            return None
        return LookAlikes(self.store, self.keys, self.data, self.plan.audit.subject.preprocessing)

    def text_probe(self, text: str) -> np.ndarray:
        """(d,) float64 probe of a text as those of concepts: mean difference to the empty prompt (SemanticLens, arXiv 2501.05398).

        Raises
        ------
        UsageError
            ``empty-query``: the text says nothing to the foundation model.
        SubjectError
            ``no-text-tower``.
        """
        templates = self.plan.spec.templates
        described = self.foundation.embed_texts(prompts(templates, [text])).astype(np.float64)
        empty = self.foundation.embed_texts(prompts(templates, [""])).astype(np.float64)
        probe = np.asarray(scores.template_probes(described[None], empty)[0])
        if not probe.any():
            raise UsageError("empty-query", f"The text {text!r} says nothing.", 'Write what to look for, e.g. "a ruler".')
        return probe

    def image_embedding(self, image: Path) -> np.ndarray:
        """(d,) float64 embedding of an image file.

        Raises
        ------
        DataError
            The file is no image that can be read.
        """
        from semlens_audit.images import read_image

        return self.foundation.embed_images([read_image(Path(image))])[0].astype(np.float64)


def chosen_layers(plan: AuditPlan, layer: str | None) -> tuple[str, ...]:
    """All layers of the audit, or the one that was named.

    Raises
    ------
    UsageError
        ``unknown-layer``.
    """
    if layer is None:
        return plan.audit.layers
    if layer not in plan.audit.layers:
        raise UsageError("unknown-layer", f"The audit has no layer {layer!r}.", f"Its layers: {', '.join(plan.audit.layers)}.")
    return (layer,)


def chosen_class(plan: AuditPlan, name: str | None) -> str:
    """The named class of the spec, or its first.

    Raises
    ------
    UsageError
        ``unknown-class``.
    """
    names = list(plan.spec.classes)
    if name is None:
        return names[0]
    if name not in names:
        raise UsageError("unknown-class", f"The spec has no class {name!r}.", f"Its classes: {', '.join(names)}.")
    return name


def _incomplete(store: Store) -> StoreError:
    return StoreError(
        "index-incomplete",
        "The index of this audit is not complete.",
        "Run `semlens-audit index` with it first.",
        file=str(store.path),
    )
