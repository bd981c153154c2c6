"""A made-up audit whose truth is known: components that mean a concept, relevance that is put in by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from semlens_audit.evidence import ConceptProbes, Evidence, LayerEvidence
from semlens_audit.plan import Audit, AuditPlan, Spec
from semlens_audit.scores import unit

CONCEPTS = ("border", "ruler", "hair")
DIMENSION = 24


def check(identifier: str, kind: str, criterion: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "id": identifier,
        "kind": kind,
        "class": "melanoma",
        "statement": f"{identifier} holds.",
        "criterion": criterion,
        "rationale": "A reason.",
    } | more


def plan(checks: list[dict[str, Any]] | None = None, **settings: Any) -> AuditPlan:
    checks = checks or [
        check("no-ruler", "concept_not_used", {"at_most": 0.2}, concepts=["ruler"]),
        check("spurious", "spurious_reliance", {"at_most": 0.3}),
        check("valid", "valid_reliance", {"at_least": 0.1}),
        check("unexplained", "unexplained_relevance", {"at_most": 0.9}),
        check("ruler-effect", "behavioural_effect", {"at_most": 1.0}, concepts=["ruler"]),
        check("clear", "clarity", {"at_least": 0.05}),
    ]
    spec = Spec.model_validate(
        {
            "spec": "made-up",
            "version": "1",
            "title": "Made up",
            "purpose": "A test.",
            "classes": {"melanoma": {}},
            "concepts": [
                {"id": name, "role": role, "descriptions": [name]}
                for name, role in zip(CONCEPTS, ("valid", "spurious", "spurious"), strict=True)
            ],
            "checks": checks,
        }
    )
    audit = Audit.model_validate(
        {
            "audit": "made-up",
            "title": "Made up",
            "spec": "spec.yaml",
            "subject": {
                "name": "Model A",
                "model": {"source": "timm", "name": "resnet18"},
                "classes": ["nevus", "mel"],
                "class_map": {"melanoma": "mel"},
            },
            "layers": ["layer1"],
            "data": {"source": "folder", "path": "."},
            "measurement": {"reference_samples": 12, "null_sets": 300, "bootstrap": 300} | settings,
        }
    )
    return AuditPlan(
        spec=spec, audit=audit, spec_file="spec.yaml", audit_file="audit.yaml", spec_digest="0" * 64, audit_digest="1" * 64
    )


def evidence(
    weights: dict[str | None, float], *, samples: int = 200, effect: float = 0.0, seed: int = 0, correlation: float = 0.5
) -> Evidence:
    """Evidence of a layer of 12 components.

    Parameters
    ----------
    weights
        concept -> its share of melanoma's relevance; None: components that mean nothing. Three components each.
    effect
        Change of the margin by the ruler.
    correlation
        Probability of the ruler in melanoma; one minus that in the others.
    """
    rng = np.random.default_rng(seed)
    directions = np.eye(DIMENSION)[: len(CONCEPTS)]
    meaning: list[str | None] = [name for name in (*CONCEPTS, None) for _ in range(3)]
    k, m = len(meaning), 12
    pool = unit(rng.normal(size=(600, DIMENSION)))
    embeddings = np.empty((k, m, DIMENSION), dtype=np.float32)
    for index, name in enumerate(meaning):
        base = pool[rng.choice(600, m, replace=False)]
        shift = 1.5 * directions[CONCEPTS.index(name)] if name else 0.0
        embeddings[index] = unit(base + shift)
    labels = (np.arange(samples) % 2).astype(np.int64)
    ruler = rng.random(samples) < np.where(labels == 1, correlation, 1 - correlation)
    hair = rng.random(samples) < 0.3
    relevance = np.empty((samples, 1, k), dtype=np.float32)
    for index, name in enumerate(meaning):
        relevance[:, 0, index] = weights.get(name, 0.0) / 3 * np.exp(rng.normal(0, 0.2, samples))
    margin = 2.0 * labels - 1 + effect * ruler + rng.normal(0, 0.3, samples)
    images = unit(rng.normal(size=(samples, DIMENSION)) * 0.15 + ruler[:, None] * directions[1] + hair[:, None] * directions[2])
    layer = LayerEvidence(
        layer="layer1",
        reference_ids=np.tile(np.arange(m), (k, 1)),
        activations=np.tile(np.linspace(2, 1, m), (k, 1)),
        embeddings=embeddings,
        boxes=np.tile(np.array([0, 0, 8, 8], dtype=np.int32), (k, m, 1)),
        relevance=relevance,
        conservation=np.ones((samples, 1), dtype=np.float32),
        dead=np.zeros(k, dtype=bool),
        null_embeddings=pool.astype(np.float32),
        attribution="made up",
    )
    empty = np.zeros((2, DIMENSION), dtype=np.float32)
    probes = {
        name: ConceptProbes(
            np.repeat(directions[i][None, None], 2, axis=1).astype(np.float32), np.empty((0, DIMENSION), dtype=np.float32)
        )
        for i, name in enumerate(CONCEPTS)
    }
    return Evidence(
        classes=("nevus", "mel"),
        audited=(1,),
        class_names=("melanoma",),
        paths=tuple(f"{i:04d}.png" for i in range(samples)),
        labels=labels,
        logits=np.stack([np.zeros(samples), margin], axis=1).astype(np.float32),
        image_embeddings=images.astype(np.float32),
        attributes={"ruler": ruler.astype(np.int8)},
        probes=probes,
        empty_prompts=empty,
        layers=(layer,),
        stages={"all": str(seed)},
    )
