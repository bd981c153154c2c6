"""A population of audits whose true values are known: components with true meanings, samples, random crops, all drawn anew.

Every value that `semlens_audit.measure` estimates has its limit here: more samples, more reference sets of the same size, a larger
pool of random crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from semlens_audit import scores
from semlens_audit.calibration import calibrate, concept_z, critical_z, divide, excess
from semlens_audit.evidence import ConceptProbes, Evidence, LayerEvidence
from semlens_audit.plan import Audit, AuditPlan, Spec

CONCEPTS = ("border", "ruler", "hair", "ink")
SETTINGS: dict[str, Any] = {"reference_samples": 20, "null_sets": 1000, "bootstrap": 1000}
_LARGE = 40000
_CHECKS = (
    ("spurious", "spurious_reliance", {"at_most": 0.3}),
    ("valid", "valid_reliance", {"at_least": 0.2}),
    ("unexplained", "unexplained_relevance", {"at_most": 0.5}),
    ("clear", "clarity", {"at_least": 0.1}),
)


def plan(seed: int = 0, **settings: Any) -> AuditPlan:
    """Audit of the population: four checks on one class and one layer."""
    checks = [{"id": name, "kind": kind, "criterion": criterion} for name, kind, criterion in _CHECKS]
    return plan_of("population", checks, seed, **settings)


def plan_of(name: str, checks: Sequence[dict[str, Any]], seed: int = 0, **settings: Any) -> AuditPlan:
    """Audit called `name` of one class and one layer, whose files do not exist; `checks` as a spec writes them, without class and words."""
    words = {"class": "melanoma", "statement": "S.", "rationale": "R."}
    spec = {
        "spec": name, "version": "1", "title": name.title(), "purpose": "Made up.", "classes": {"melanoma": {}},
        "concepts": [
            {"id": concept, "role": "spurious" if index else "valid", "descriptions": [concept]}
            for index, concept in enumerate(CONCEPTS)
        ],
        "checks": [words | check for check in checks],
    }  # fmt: skip
    audit = {
        "audit": name, "title": name.title(), "spec": "spec.yaml", "layers": ["layer"], "seed": seed,
        "subject": {
            "name": "Model", "model": {"source": "timm", "name": "resnet18"}, "classes": ["nevus", "mel"],
            "class_map": {"melanoma": "mel"},
        },
        "data": {"source": "folder", "path": "."}, "measurement": SETTINGS | settings,
    }  # fmt: skip
    return AuditPlan(
        spec=Spec.model_validate(spec), audit=Audit.model_validate(audit), spec_file="s", audit_file="a",
        spec_digest="0" * 64, audit_digest="1" * 64,
    )  # fmt: skip


@dataclass(frozen=True)
class Population:
    """What an infinite data set and one model would give.

    Parameters
    ----------
    strength
        (K,) how strongly each component's crops show its concept.
    meaning
        (K,) index of the concept.
    carried
        (K,) typical relevance.
    centre
        (d,) what all crops have in common.
    samples
        Test samples per audit, half of them of the audited class.
    """

    strength: np.ndarray
    meaning: np.ndarray
    carried: np.ndarray
    centre: np.ndarray
    samples: int

    @classmethod
    def draw(
        cls, seed: int, *, components: int = 40, dimension: int = 32, samples: int = 240, near: float = 0.25
    ) -> Population:
        """A model at random: a share `near` of its components close to the critical z, the others clear or without meaning."""
        rng = np.random.default_rng(seed)
        kind = rng.choice(3, components, p=[near, 0.4, 0.6 - near])
        low, high = np.array([0.35, 0.9, 0.0]), np.array([0.75, 2.0, 0.2])
        strength = rng.uniform(low[kind], high[kind])
        carried = np.exp(rng.normal(0, 0.7, components))
        return cls(
            strength,
            rng.integers(len(CONCEPTS), size=components),
            carried,
            0.8 * scores.unit(rng.normal(size=dimension)),
            samples,
        )

    def _crops(self, rng: np.random.Generator, image: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Embeddings of crops from their image's own part (..., d) and how much of each concept they show (..., J)."""
        noise = 1.2 * rng.normal(size=image.shape) / np.sqrt(image.shape[-1])
        found = self.centre + image + noise
        found[..., : len(CONCEPTS)] += shown
        return scores.unit(found)

    def _images(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return 0.6 * rng.normal(size=(n, len(self.centre))) / np.sqrt(len(self.centre))

    def _chance(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n, J): what random crops show of the concepts."""
        return (rng.random((n, len(CONCEPTS))) < 0.15) * rng.uniform(0.3, 1.5, (n, len(CONCEPTS)))

    def _relevance(self, rng: np.random.Generator, n: int) -> np.ndarray:
        common = rng.normal(0, 0.4, (n, len(CONCEPTS)))[:, self.meaning]
        size = np.exp(common + rng.normal(0, 0.6, (n, len(self.carried)))) * self.carried
        return size * np.where(rng.random(size.shape) < 0.25, -1, 1)

    def references(self, rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
        """Embeddings (K, m, d) of the components' crops of some images (K, m, d)."""
        shown = np.zeros((*image.shape[:2], len(CONCEPTS)))
        amount = self.strength[:, None] * np.maximum(rng.normal(1.0, 0.5, image.shape[:2]), 0.0)
        shown[np.arange(len(image)), :, self.meaning] = amount
        return self._crops(rng, image, shown)

    @cached_property
    def mean_share(self) -> np.ndarray:
        """(K,) mean share of relevance."""
        return scores.relevance_shares(self._relevance(np.random.default_rng(1), _LARGE)).mean(axis=0)

    def probes(self) -> scores.ProbeSet:
        """The concepts' directions."""
        directions = np.eye(len(self.centre))[: len(CONCEPTS)]
        return scores.ProbeSet(directions, 0 * directions, 0 * directions, np.arange(len(CONCEPTS)))

    @cached_property
    def weights(self) -> np.ndarray:
        """(K, J) how components divide among the concepts they mean: expected alignment against the exact null."""
        rng, m, count = np.random.default_rng(2), int(SETTINGS["reference_samples"]), 400
        pool = self._crops(rng, self._images(rng, _LARGE), self._chance(rng, _LARGE))
        null = calibrate(pool, m, 20000, self.probes(), rng)
        mean = np.zeros((len(self.strength), len(CONCEPTS)))
        for _ in range(count):
            sets = self.references(rng, self._images(rng, len(self.strength) * m).reshape(-1, m, len(self.centre)))
            mean += scores.alignment(sets.mean(axis=1), self.probes()) / count
        z = concept_z(mean, null, self.probes())
        everything = np.ones(len(z), dtype=bool)
        reached = z >= critical_z(z, everything, least=3.0, rate=0.05)
        return divide(z, excess(mean, null, self.probes()), reached, np.zeros(len(CONCEPTS), dtype=bool))

    @cached_property
    def clarity(self) -> float:
        """Mean clarity weighted by mean share."""
        rng = np.random.default_rng(3)
        image = self._images(rng, len(self.strength) * 2000).reshape(len(self.strength), 2000, -1)
        values = scores.clarity(self.references(rng, image), np.ones(image.shape[:2], dtype=bool))
        return float((values * self.mean_share).sum() / self.mean_share.sum())

    def truth(self) -> dict[str, float]:
        """Check -> population value."""
        share = (self.mean_share @ self.weights).tolist()
        return {
            "spurious": sum(share[1:]),
            "valid": share[0],
            "unexplained": 1.0 - sum(share),
            "clear": self.clarity,
        }

    def evidence(self, seed: int, *, crops: int = 2000) -> Evidence:
        """One audit's evidence: new samples, references chosen among them by relevance, new random crops."""
        rng = np.random.default_rng([7, seed])
        n, m, k = self.samples, int(SETTINGS["reference_samples"]), len(self.strength)
        labels = (np.arange(n) % 2).astype(np.int64)
        relevance, images = self._relevance(rng, n), self._images(rng, n)
        chosen = np.argsort(-np.abs(relevance), axis=0, kind="stable")[:m].T
        pool = self._crops(rng, self._images(rng, crops), self._chance(rng, crops))
        directions = self.probes().directions
        layer = LayerEvidence(
            layer="layer",
            reference_ids=chosen,
            activations=np.ones((k, m)),
            embeddings=self.references(rng, images[chosen]).astype(np.float32),
            boxes=np.zeros((k, m, 4), dtype=np.int32),
            relevance=relevance[:, None, :].astype(np.float32),
            conservation=np.ones((n, 1), dtype=np.float32),
            dead=np.zeros(k, dtype=bool),
            null_embeddings=pool.astype(np.float32),
            attribution="made up",
        )
        return Evidence(
            classes=("nevus", "mel"),
            audited=(1,),
            class_names=("melanoma",),
            paths=tuple(f"{i:05d}.png" for i in range(n)),
            labels=labels,
            logits=np.stack([np.zeros(n), rng.normal(size=n)], axis=1).astype(np.float32),
            image_embeddings=scores.unit(self.centre + images).astype(np.float32),
            attributes={},
            probes={
                name: ConceptProbes(directions[i][None, None].astype(np.float32), np.empty((0, len(self.centre)), np.float32))
                for i, name in enumerate(CONCEPTS)
            },
            empty_prompts=np.zeros((1, len(self.centre)), np.float32),
            layers=(layer,),
        )
