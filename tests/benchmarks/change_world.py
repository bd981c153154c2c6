"""Pairs of audits of two models on the same samples, whose true values are known to be equal or to differ.

Both models see the same images: what a sample shows, how hard it is and how strongly its concepts stand out is drawn once. What a
model makes of it (relevance, crops, margins) is partly its own. Two models of the same parameters have the same population values,
whatever these are, so that every claim of a change between them is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from semlens_audit import checks, scores
from semlens_audit.counterfactuals import Pair, PairSet
from semlens_audit.data import DataSet, Sample
from semlens_audit.digest import digest
from semlens_audit.evidence import ConceptProbes, Evidence, LayerEvidence, PairEvidence
from semlens_audit.influence import influences
from semlens_audit.measure import measure
from semlens_audit.plan import AuditPlan
from semlens_audit.records import AuditRecord
from tests.benchmarks.coverage_world import CONCEPTS, Population, plan_of
from tests.golden.sample_record import small

CHECKS: dict[str, tuple[str, dict[str, float], tuple[str, ...]]] = {
    "spurious": ("spurious_reliance", {"at_most": 0.97}, ()),
    "valid": ("valid_reliance", {"at_least": 0.001}, ()),
    "unexplained": ("unexplained_relevance", {"at_most": 0.999}, ()),
    "clear": ("clarity", {"at_least": -0.5}, ()),
    "ruler-effect": ("behavioural_effect", {"at_most": 10.0}, ("ruler",)),
    "ruler-gap": ("subgroup_gap", {"at_most": 0.99}, ("ruler",)),
    "ruler-pairs": ("pair_effect", {"at_most": 10.0}, ("ruler",)),
}
"""Check -> kind, criterion and concepts. Every criterion is far from every value, so that only differences give labels."""


def plan(**settings: Any) -> AuditPlan:
    """One class, one layer, a check of every line of evidence."""
    asked = [
        {"id": name, "kind": kind, "criterion": criterion, "concepts": list(concepts)}
        for name, (kind, criterion, concepts) in CHECKS.items()
    ]
    return plan_of("releases", asked, **settings)


@dataclass(frozen=True)
class Model:
    """What one release does.

    Parameters
    ----------
    population
        Its components.
    effect
        How much the ruler moves the margin, logits.
    """

    population: Population
    effect: float = 0.3

    def worse(self, factor: float, effect: float) -> Model:
        """The same with `factor` times the relevance in components of spurious concepts, and another effect of the ruler."""
        carried = np.where(self.population.meaning > 0, factor, 1.0) * self.population.carried
        return Model(replace(self.population, carried=carried), effect)


@dataclass(frozen=True)
class World:
    """The samples of one pair of audits.

    Parameters
    ----------
    seed
        What they are drawn with.
    samples
        Test samples, half of them of the audited class.
    pairs
        Counterfactual pairs of the ruler.
    dimension
        Of embeddings.
    crops
        Random crops.
    shared
        Part of the variance of relevance and margins that both models owe to the sample, 0 to 1.
    """

    seed: int
    samples: int = 240
    pairs: int = 40
    dimension: int = 32
    crops: int = 1000
    shared: float = 0.6

    @cached_property
    def seen(self) -> dict[str, np.ndarray]:
        """What the images themselves hold."""
        rng, n = np.random.default_rng([11, self.seed]), self.samples
        labels = (np.arange(n) % 2).astype(np.int64)
        return {
            "labels": labels,
            "ruler": (rng.random(n) < np.where(labels == 1, 0.5, 0.35)).astype(np.int8),
            "images": 0.6 * rng.normal(size=(n, self.dimension)) / np.sqrt(self.dimension),
            "common": rng.normal(size=(n, len(CONCEPTS))),
            "hardness": rng.normal(size=n),
            "origin": rng.integers(n, size=self.crops),
            "chance": (rng.random((self.crops, len(CONCEPTS))) < 0.15) * rng.uniform(0.3, 1.5, (self.crops, len(CONCEPTS))),
            "steps": rng.normal(size=self.pairs),
        }

    @cached_property
    def data(self) -> DataSet:
        """The files behind it, by digest."""
        seen = self.seen
        samples = tuple(
            Sample(i, f"{i:05d}.png", int(label), digest([self.seed, i])) for i, label in enumerate(seen["labels"].tolist())
        )
        digests = {f"p{i}{end}.png": digest([self.seed, "pair", i, end]) for i in range(self.pairs) for end in "ab"}
        pairs = tuple(Pair("ruler", f"p{i}a.png", f"p{i}b.png", i + 2) for i in range(self.pairs))
        found = PairSet(pairs, Path(), Path("pairs.csv"), digests)
        return DataSet(samples, Path(), None, digest(self.seed), pairs=found)

    def evidence(self, model: Model, number: int) -> Evidence:
        """What an audit of `model` finds; `number` gives the model's own draws."""
        seen, rng = self.seen, np.random.default_rng([13, self.seed, number])
        n, population = self.samples, model.population
        k, m = len(population.strength), 20
        own, all_ = np.sqrt(1.0 - self.shared), np.sqrt(self.shared)
        common = 0.5 * (all_ * seen["common"] + own * rng.normal(size=(n, len(CONCEPTS))))[:, population.meaning]
        relevance = np.exp(common + 0.5 * rng.normal(size=(n, k))) * population.carried
        chosen = np.argsort(-relevance, axis=0, kind="stable")[:m].T
        pool = population._crops(rng, seen["images"][seen["origin"]], seen["chance"])
        noise = 1.2 * (all_ * seen["hardness"] + own * rng.normal(size=n))
        margin = 1.2 * (2.0 * seen["labels"] - 1.0) + model.effect * seen["ruler"] + noise
        step = model.effect + 0.5 * (all_ * seen["steps"] + own * rng.normal(size=self.pairs))
        directions = population.probes().directions
        layer = LayerEvidence(
            layer="layer",
            reference_ids=chosen,
            activations=np.ones((k, m)),
            embeddings=population.references(rng, seen["images"][chosen]).astype(np.float32),
            boxes=np.zeros((k, m, 4), dtype=np.int32),
            relevance=relevance[:, None, :].astype(np.float32),
            conservation=np.ones((n, 1), dtype=np.float32),
            dead=np.zeros(k, dtype=bool),
            null_embeddings=pool.astype(np.float32),
            attribution="made up",
            null_samples=seen["origin"],
        )
        return Evidence(
            classes=("nevus", "mel"),
            audited=(1,),
            class_names=("melanoma",),
            paths=tuple(sample.path for sample in self.data.samples),
            labels=seen["labels"],
            logits=np.stack([np.zeros(n), margin], axis=1).astype(np.float32),
            image_embeddings=scores.unit(
                population.centre + seen["images"] + 1.2 * seen["ruler"][:, None] * directions[CONCEPTS.index("ruler")]
            ).astype(np.float32),
            attributes={"ruler": seen["ruler"]},
            probes={
                name: ConceptProbes(directions[i][None, None].astype(np.float32), np.empty((0, self.dimension), np.float32))
                for i, name in enumerate(CONCEPTS)
            },
            empty_prompts=np.zeros((1, self.dimension), np.float32),
            layers=(layer,),
            pairs=PairEvidence(
                ("ruler",) * self.pairs,
                np.zeros((self.pairs, 2), np.float32),
                np.stack([np.zeros(self.pairs), step], axis=1).astype(np.float32),
                self.data.pairs.units if self.data.pairs else np.arange(self.pairs),
            ),
        )

    def record(self, asked: AuditPlan, model: Model, number: int) -> AuditRecord:
        """The record of an audit, as far as a comparison reads it."""
        evidence, quantities = self.evidence(model, number), checks.quantities(asked)
        measured = measure(asked, evidence, quantities)
        moved = influences(asked, self.data, evidence, measured, quantities)
        found = checks.findings(asked, measured.quantities, measured.class_layers, measured.unrecognised)
        base = small()
        return base.model_copy(
            update={
                "created": f"2026-01-0{1 + number % 2}T00:00:00+00:00",
                "data": base.data.model_copy(update={"sha256": self.data.sha256}),
                "subject": base.subject.model_copy(update={"version": str(number), "weights_sha256": digest(number)}),
                "settings": asked.audit.measurement,
                "layers": measured.layers,
                "effects": measured.effects,
                "presence_in_data": measured.presence_in_data,
                "pair_effects": measured.pair_effects,
                "findings": tuple(found),
                "influences": moved.records,
                "stages": {"probes": "0" * 64},
                "class_layers": (),
                "images": {},
            }
        )


def without_pairing(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """The same records as a version wrote them that kept no influences."""
    return [record.model_copy(update={"influences": ()}) for record in records]
