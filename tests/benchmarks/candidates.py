"""Definitions of reliance compared on models whose true reliance is known, as a Markdown table.

    .venv/bin/python -m tests.benchmarks.candidates --work .semlens/qualification --keep .semlens/candidates

Each definition scores every pair of model and artefact. The truth is the mean change of the class margin when the artefact is
switched on for the same lesions. Thresholds are chosen on the development part, rates are those of the held-back part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semlens_audit import behaviour, scores
from semlens_audit.calibration import calibrate, concept_z, critical_z, divide
from semlens_audit.phantom import world
from semlens_audit.plan import AuditPlan
from semlens_audit.presence import presence_from_attribute, presences_from_embeddings
from semlens_audit.qualification import training
from semlens_audit.qualification.architectures import ARCHITECTURES
from semlens_audit.qualification.entrants import Entrant, full, train_entrant
from semlens_audit.qualification.truth import true_effects, truth_set
from semlens_audit.qualification.worlds import WORLDS
from semlens_audit.statistics import auroc
from tests.benchmarks.candidate_evidence import DATA_SEED, Arrays, Eye, TestData, evidence, load, test_data

M = 30
STORED = 40
RELIES, FREE = 1.0, 0.5
"""True effects in logits from which a pair counts as relying, and below which as free of reliance."""
ALLOWED = 0.02
"""False-positive rate at which thresholds are chosen on the development part."""


@dataclass(frozen=True)
class Meaning:
    """Probes of the phantom's concepts."""

    ids: tuple[str, ...]
    template: scores.ProbeSet
    cosine: scores.ProbeSet

    @classmethod
    def of(cls, plan: AuditPlan, eye: Eye) -> Meaning:
        """From the spec's descriptions."""
        texts, empty = eye.texts()
        ids = tuple(concept.id for concept in plan.spec.concepts)
        owners = np.concatenate([[place] * len(texts[name]) for place, name in enumerate(ids)])
        zero = np.zeros((len(owners), empty.shape[1]))
        difference = np.concatenate([scores.template_probes(texts[n].astype(float), empty.astype(float)) for n in ids])
        plain = np.concatenate([texts[n].astype(float).mean(axis=1) for n in ids])
        nothing = np.broadcast_to(empty.astype(float).mean(axis=0), zero.shape)
        return cls(
            ids, scores.ProbeSet(difference, zero, zero, owners), scores.ProbeSet(plain, zero, np.array(nothing), owners)
        )

    def places(self) -> list[int]:
        """Positions of the artefacts."""
        return [self.ids.index(name) for name in world.ARTEFACTS]


@dataclass(frozen=True)
class Scored:
    """One value per artefact, on all samples and on either half of them."""

    whole: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]


Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""alignment, excess, z and whether significant, each (K, J) -> weight of each concept in each component, (K, J)."""


def _one_hot(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    masked = np.where(allowed, values, -np.inf)
    return (np.arange(values.shape[1]) == masked.argmax(axis=1)[:, None]) & allowed.any(axis=1)[:, None]


def _soft(values: np.ndarray, allowed: np.ndarray, temperature: float) -> np.ndarray:
    masked = np.where(allowed, values, -np.inf)
    top = np.where(allowed.any(axis=1), np.max(masked, axis=1, initial=-9.0), 0.0)
    weight = np.where(allowed, np.exp((values - top[:, None]) / temperature), 0.0)
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)


ASSIGNMENTS: dict[str, Weigh] = {
    "largest cosine": lambda a, x, z, s: _one_hot(a, np.ones_like(s)),
    "cosine above 0.2": lambda a, x, z, s: _one_hot(a, a > 0.2),
    "largest excess": lambda a, x, z, s: _one_hot(x, np.ones_like(s)),
    "z over the layer's components > 2": lambda a, x, z, s: _one_hot(
        (a - a.mean(axis=0)) / a.std(axis=0), (a - a.mean(axis=0)) / a.std(axis=0) > 2
    ),
    "significant, largest z": lambda a, x, z, s: _one_hot(z, s),
    "significant, largest excess": lambda a, x, z, s: _one_hot(x, s),
    "significant, divided by (z x excess) squared (default)": lambda a, x, z, s: divide(
        z, x, s, np.zeros(s.shape[1], dtype=bool)
    ),
    "significant, shared by excess": lambda a, x, z, s: _soft(x, s, 0.05),
    "shared by excess": lambda a, x, z, s: _soft(x, np.ones_like(s), 0.05),
    "every significant concept in full": lambda a, x, z, s: s.astype(float),
}


def _probes(kind: str, meaning: Meaning) -> scores.ProbeSet:
    return meaning.cosine if kind == "cosine" else meaning.template


def internal(
    found: Arrays, data: TestData, meaning: Meaning, probe: str = "template", m: int = M
) -> Iterator[tuple[str, Scored]]:
    """Every internal definition on one layer's evidence."""
    ids, probes = found["ids"][:, :m], _probes(probe, meaning)
    present = ids >= 0
    usable = present.sum(axis=1) >= 2
    embedding = scores.concept_embedding(found["emb"][:, :m].astype(float), present)
    aligned = scores.alignment(embedding, probes)
    null = calibrate(found["null"].astype(float), m, 500, probes, np.random.default_rng(0))
    z = concept_z(aligned, null, probes)
    above = np.stack([(aligned - null.mean)[:, probes.concepts == j].max(axis=1) for j in range(probes.count)], axis=1)
    significant = (z >= critical_z(z, usable, least=3.0, rate=0.05)) & usable[:, None]
    best = np.stack([aligned[:, probes.concepts == j].max(axis=1) for j in range(probes.count)], axis=1)
    places, melanoma = meaning.places(), data.labels == 1
    held = data.attributes[:, [world.ATTRIBUTES.index(name) for name in world.ATTRIBUTES]]
    shares = scores.relevance_shares(found["rel"][:, 1])
    margin = found["rel"][:, 1] - found["rel"][:, 0]
    rows = _halves(len(data.labels))

    def scored(value: Callable[[np.ndarray], np.ndarray]) -> Scored:
        return Scored(value(np.ones(len(data.labels), dtype=bool)), (value(rows), value(~rows)))

    yield (
        "largest alignment x largest relevance (as published)",
        scored(lambda r: (best * shares[r & melanoma].mean(axis=0)[:, None]).max(axis=0)[places]),
    )
    for name, weigh in ASSIGNMENTS.items():
        weight = weigh(best, above, z, significant) * usable[:, None]
        yield (
            f"share of relevance; {name}",
            scored(lambda r, w=weight: (shares[r & melanoma].mean(axis=0) @ w)[places]),
        )
        if "default" in name or "in full" in name:
            yield (
                f"share, present minus absent; {name}",
                scored(lambda r, w=weight: _contrast(shares @ w, held, data, r, places)),
            )
            yield (
                f"relevance regressed on presence, logits; {name}",
                scored(lambda r, w=weight: _slopes(margin @ w, held, data, r, places)),
            )


def _halves(n: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(n) < n // 2


def _contrast(values: np.ndarray, held: np.ndarray, data: TestData, rows: np.ndarray, places: list[int]) -> np.ndarray:
    out = np.zeros(len(places))
    for number, (place, name) in enumerate(zip(places, world.ARTEFACTS, strict=True)):
        inside = held[:, world.ATTRIBUTES.index(name)] & rows
        outside = ~held[:, world.ATTRIBUTES.index(name)] & rows
        out[number] = values[inside, place].mean() - values[outside, place].mean() if inside.any() and outside.any() else 0.0
    return out


def _slopes(values: np.ndarray, held: np.ndarray, data: TestData, rows: np.ndarray, places: list[int]) -> np.ndarray:
    design = np.column_stack([np.ones(rows.sum()), data.labels[rows], held[rows]])
    slopes = np.linalg.lstsq(design, values[rows], rcond=None)[0][2:]
    return np.array(
        [abs(slopes[world.ATTRIBUTES.index(name), place]) for place, name in zip(places, world.ARTEFACTS, strict=True)]
    )


@dataclass(frozen=True)
class Seen:
    """Effects measured from outside: per source of presence, values and interval ends, (7,) each; NaN where not measured."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    halves: tuple[np.ndarray, np.ndarray]


def behavioural(model_logits: np.ndarray, data: TestData, meaning: Meaning, source: str) -> Seen:
    """The behavioural line on one model's outputs."""
    seen = presences_from_embeddings(data.whole.astype(float), meaning.template)
    if source == "attributes":
        seen = [
            presence_from_attribute(data.attributes[:, world.ATTRIBUTES.index(name)].astype(np.int8))
            if name in world.ATTRIBUTES
            else seen[place]
            for place, name in enumerate(meaning.ids)
        ]
    margin = behaviour.class_margin(model_logits, 1)

    def measured(rows: np.ndarray, draws: int) -> list[behaviour.Effect]:
        found = behaviour.effects(
            margin[rows], data.labels[rows], [presence.rows(rows) for presence in seen], bootstrap=draws,
            minimum_cell=10, minimum_samples=30, rng=np.random.default_rng(0),
        )  # fmt: skip
        return [found[place] for place in meaning.places()]

    whole, rows = measured(np.arange(len(margin)), 400), _halves(len(margin))
    nan = np.full(2, np.nan)
    ends = np.array([np.quantile(e.draws, [0.025, 0.975]) if e.value is not None else nan for e in whole])
    halves = [
        np.array([np.nan if e.value is None else e.value for e in measured(np.flatnonzero(part), 100)])
        for part in (rows, ~rows)
    ]
    value = np.array([np.nan if e.value is None else e.value for e in whole])
    return Seen(value, ends[:, 0], ends[:, 1], (halves[0], halves[1]))


@dataclass(frozen=True)
class Row:
    """All pairs under one definition."""

    score: np.ndarray
    halves: np.ndarray
    true: np.ndarray
    nonzero: np.ndarray
    held_back: np.ndarray


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def line(name: str, row: Row, parts: bool) -> str:
    """One line of a table; with `parts` thresholds come from the development part and all rates from the held-back one, without
    areas and correlations are those of all pairs."""
    score = np.nan_to_num(row.score, nan=0.0)
    free, relying, kept = row.true < FREE, row.true >= RELIES, row.held_back | (not parts)
    own = score[free & ~row.held_back]
    threshold = float(np.quantile(own, 1 - ALLOWED, method="higher")) if own.size else np.inf
    flags = np.nan_to_num(row.halves, nan=0.0) > threshold
    area, apart = auroc(score[kept], relying[kept]), auroc(score[kept & (free | relying)], relying[kept & (free | relying)])
    rank = spearman(score[kept & row.nonzero], row.true[kept & row.nonzero]) if (kept & row.nonzero).sum() > 2 else np.nan
    cells = [
        f"{area:.3f}" if area is not None else "-",
        f"{apart:.3f}" if apart is not None else "-",
        f"{rank:.2f}",
        *(_rates(score, flags, relying & kept, free & kept, kept, threshold) if parts else ["–"] * 4),
        str(int(kept.sum())),
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _rates(
    score: np.ndarray, flags: np.ndarray, relying: np.ndarray, free: np.ndarray, kept: np.ndarray, threshold: float
) -> list[str]:
    return [
        f"{threshold:.3f}",
        f"{100 * (score > threshold)[relying].mean():.0f} %",
        f"{100 * (score > threshold)[free].mean():.1f} %",
        f"{100 * (flags[0] != flags[1])[kept].mean():.1f} %",
    ]


HEADER = (
    "| definition | AUROC | with gap | rank | threshold | true positives | false positives | halves differ | pairs |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


class Comparison:
    """All definitions on all members."""

    def __init__(self, work: Path, keep: Path, samples: int) -> None:
        self.work, self.keep, self.samples = work, keep, samples
        self.dermoscopy = WORLDS["dermoscopy"]
        self.plan = self.dermoscopy.plan()
        self.eye = Eye(self.plan)
        self.meaning = Meaning.of(self.plan, self.eye)
        self.truth = truth_set(self.dermoscopy, 400, work / "truth", size=128)
        self.entrants = full([self.dermoscopy])
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def effects(self, entrant: Entrant) -> tuple[np.ndarray, np.ndarray]:
        """True effects in logits, and whether each differs from zero."""
        if entrant.name not in self._known:
            train_entrant(entrant, self.work)
            model = load(entrant, self.work)
            found, _ = true_effects(lambda pictures: training.logits(model, pictures), self.truth, 1)
            one = [found[name][0] for name in world.ARTEFACTS]
            value = np.array([e.value or 0.0 for e in one])
            zero = np.array([(e.low or 0.0) <= 0.0 <= (e.high or 0.0) for e in one])
            self._known[entrant.name] = value, ~zero
        return self._known[entrant.name]

    def data(self, kind: str, entrant: Entrant) -> tuple[TestData, np.ndarray]:
        """Test data of a kind, and which artefacts it is about."""
        if kind == "independent":
            return test_data(self.eye, self.keep, kind, {}, self.samples, DATA_SEED), np.ones(7, dtype=bool)
        tied = list(entrant.member.tied) or ["ruler"]
        spare = [name for name in world.ARTEFACTS if name not in tied]
        chosen = [*tied, spare[entrant.member.number % len(spare)]]
        chance = {"correlated": 0.95, "one class only": 1.0}[kind]
        name = f"{kind.replace(' ', '-')}-{entrant.member.number}"
        found = test_data(
            self.eye,
            self.keep,
            name,
            dict.fromkeys(chosen, (1 - chance, chance)),
            self.samples,
            DATA_SEED + entrant.member.number,
        )
        return found, np.array([a in chosen for a in world.ARTEFACTS])

    def rows(
        self, kind: str, variants: Iterable[tuple[str, int, str]], entrants: Iterable[Entrant], parts: bool = False
    ) -> Iterator[str]:
        """Lines for one kind of test data; variants are selection-attribution, position of the layer, and probe."""
        pairs: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]]] = {}
        covered: dict[str, list[np.ndarray]] = {}
        for entrant in entrants:
            data, about = self.data(kind, entrant)
            signed, nonzero = self.effects(entrant)
            true = abs(signed)
            kept = entrant.part == "held_back"
            layers = ARCHITECTURES[entrant.member.architecture].layers
            both: list[np.ndarray] = []
            outputs = training.logits(load(entrant, self.work), data.images)
            for source in ("foundation model", "attributes"):
                seen = behavioural(outputs, data, self.meaning, source)
                name = f"behavioural effect, presence from {source}"
                size, halves = np.abs(seen.value), np.abs(np.stack(seen.halves))
                pairs.setdefault(name, []).append((size[about], halves[:, about], true[about], nonzero[about], kept))
                inside = (seen.low <= signed) & (signed <= seen.high)
                covered.setdefault(name, []).append(inside[about & ~np.isnan(seen.value)])
                if source == "foundation model":
                    both = [size, halves]
            for variant, place, probe in variants:
                if variant.endswith("lrp") and entrant.member.architecture == "transformer":
                    continue
                found = evidence(self.eye, entrant, data, layers[place], variant, self.work, self.keep, STORED)
                label = f"{variant}, {('penultimate', 'last')[place]} layer" + (
                    ", difference of cosines" if probe == "cosine" else ""
                )
                for name, value in internal(found, data, self.meaning, probe):
                    whole, halves = value.whole, np.stack(value.halves)
                    pairs.setdefault(f"{name} [{label}]", []).append(
                        (whole[about], halves[:, about], true[about], nonzero[about], kept)
                    )
                    if "default" in name and name.startswith("share of"):
                        either = np.fmax(both[0], whole / 0.3), np.fmax(both[1], halves / 0.3)
                        pairs.setdefault(f"both lines: the larger of effect and share / 0.3 [{label}]", []).append(
                            (either[0][about], either[1][:, about], true[about], nonzero[about], kept)
                        )
        for name, found_in in pairs.items():
            row = Row(
                np.concatenate([p[0] for p in found_in]),
                np.concatenate([p[1] for p in found_in], axis=1),
                np.concatenate([p[2] for p in found_in]),
                np.concatenate([p[3] for p in found_in]),
                np.concatenate([np.full(len(p[0]), p[4]) for p in found_in]),
            )
            yield line(name, row, parts)
        for name, inside in covered.items():
            hits = np.concatenate(inside)
            held = (
                f"held the true effect in {hits.mean():.1%} of {len(hits)} measured pairs"
                if len(hits)
                else "not measured in any pair"
            )
            yield f"<!-- {kind}, {name}: interval {held} -->"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".semlens/qualification"), help="folder of the trained models")
    parser.add_argument("--keep", type=Path, default=Path(".semlens/candidates"), help="folder of what is computed")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--some", type=int, default=6, help="every how many-th model for the dearer variants")
    options = parser.parse_args()
    comparison = Comparison(options.work, options.keep, options.samples)
    everyone = comparison.entrants
    some = [entrant for entrant in everyone if entrant.member.number % options.some == 0]
    print(f"\n### Artefacts independent of the class, {len(everyone)} models\n\n{HEADER}", flush=True)
    main_variants = [("rel-lrp", 0, "template"), ("rel-axg", 0, "template")]
    for text in comparison.rows("independent", main_variants, everyone, parts=True):
        print(text, flush=True)
    print(f"\n### Other selections, attributions and layers, {len(some)} models\n\n{HEADER}", flush=True)
    dear = [("rel-lrp", 0, "template"), ("rel-lrp", 0, "cosine"), ("rel-lrp", 1, "template")]
    dear += [(variant, 0, "template") for variant in ("max-lrp", "mean-lrp", "rel-axg", "rel-ig")]
    for text in comparison.rows("independent", dear, some):
        print(text, flush=True)
    for kind in ("correlated", "one class only"):
        print(f"\n### Artefacts {kind}, {len(some)} models\n\n{HEADER}", flush=True)
        for text in comparison.rows(kind, [("rel-lrp", 0, "template"), ("rel-axg", 0, "template")], some):
            print(text, flush=True)


if __name__ == "__main__":
    main()
