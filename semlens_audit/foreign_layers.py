"""Layers of other indexes in the same store: of other models or data, or of earlier settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from semlens_audit.store import Store

__all__ = ["ForeignLayer", "foreign_layers"]


@dataclass(frozen=True)
class ForeignLayer:
    """A layer whose concept embeddings are in the store, and which is not the audit's.

    Parameters
    ----------
    key
        Of the stage that holds its concept embeddings.
    layer
        Its name.
    pool
        Key of the pool of region embeddings it was made from.
    crops, references
        Keys of the stages of its crops and reference samples.
    declared
        Reference samples that its concept embeddings are means of; the store may hold more.
    data
        Digest of the data that the reference samples are from; ``None`` where the store does not tell.
    model
        Whose layer it is: architecture and first digits of the weights' digest, ``timm resnet18, weights 384d06d60b75``; or that
        the store does not tell.
    """

    key: str
    layer: str
    pool: str
    crops: str
    references: str
    declared: int
    data: str | None
    model: str


def foreign_layers(store: Store, pool: str, own: set[str]) -> list[ForeignLayer]:
    """Layers of complete indexes made with the same foundation model, by name of the layer, then key.

    Parameters
    ----------
    store
        Open store.
    pool
        Key of the stage ``foundation`` of the audit.
    own
        Keys of the audit's own stages, which are left out.
    """
    stages: dict[str, tuple[str, dict[str, Any]]] = {}
    models: dict[str, str] = {}
    for key, name, text, facts in store.rows("SELECT key, name, inputs, facts FROM stage WHERE complete"):
        stages[key] = name, json.loads(text)
        if name == "outputs":
            models[str(stages[key][1].get("subject"))] = _model(json.loads(facts))

    def inputs(key: object) -> dict[str, Any]:
        return stages[str(key)][1] if str(key) in stages else {}

    model = inputs(pool).get("foundation")
    found = []
    for key, (name, parts) in stages.items():
        kind, _, layer = name.partition(":")
        if kind != "null" or key in own or inputs(parts.get("pool")).get("foundation") != model:
            continue
        chosen = inputs(parts.get("crops")).get("references")
        made = inputs(chosen)
        data = made.get("data") or inputs(made.get("relevance")).get("data")
        subject = str(made.get("subject") or inputs(made.get("relevance")).get("subject"))
        model_name = models.get(subject, "a model that the store does not name")
        # An index from before there were more reference samples than declared ones says only how many there are.
        declared = int(parts["references"] if "references" in parts else made["m"])
        found.append(ForeignLayer(key, layer, parts["pool"], parts["crops"], str(chosen), declared, data, model_name))
    return sorted(found, key=lambda one: (one.layer, one.key))


def _model(facts: dict[str, Any]) -> str:
    """What the facts of a model's outputs say of the model."""
    weights = str(facts.get("weights_sha256", ""))[:12]
    return ", ".join(part for part in (str(facts.get("architecture", "")), f"weights {weights}" if weights else "") if part)
