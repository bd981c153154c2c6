"""Components of a layer that stand for two things, split by what drives them (PURE, Dreyer et al. 2024, arXiv 2404.06453).

A component over the declared polysemanticity is split where two groups of circuits of the samples that activate it most are clearer than
chance, and where they are distinct, by circuits or by looks. For clarity and looks, the reference samples of the index are divided as the
spliced network divides any sample, and held against random divisions. Being clearer than chance is not enough: k-means divides the
circuits of any component, and what divides them differs a little in looks too. Groups are distinct where circuits leave a valley between
them that circuits of one group would hardly leave (`semlens_audit.splitting.modes`), or where the foundation model finds samples of one
group far more alike than samples of different ones (`separation`). Either will do: that two things share what surrounds them is no reason
to take them for one. Both p-values are adjusted over all components that were looked at (Benjamini and Hochberg).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from semlens_audit import __version__
from semlens_audit.atlas.opening import Atlas, chosen_layers
from semlens_audit.devices import describe
from semlens_audit.draws import generator
from semlens_audit.errors import UsageError
from semlens_audit.evidence import LayerEvidence
from semlens_audit.plan import AuditPlan
from semlens_audit.polysemanticity import polysemanticity
from semlens_audit.progress import Progress
from semlens_audit.sae_header import LATENTS
from semlens_audit.splitting.division import Comparison, clarity_raised, divided, one_of_each, silhouette
from semlens_audit.splitting.modes import valley
from semlens_audit.splitting.samples import circuit_pass, top_samples
from semlens_audit.statistics import benjamini_hochberg
from semlens_audit.virtual.circuits import nearest, place_of
from semlens_audit.virtual_header import UNITS, SplitComponent, Splitting
from semlens_audit.work import Engine

__all__ = ["Fit", "Looked", "Settings", "bare", "fit", "judged", "write_fit"]


@dataclass(frozen=True)
class Settings:
    """How components are split.

    Parameters
    ----------
    layer
        Whose components; the audit's index has it.
    polysemanticity
        Components above it are looked at, 0 to 1.
    references
        Samples that activate a component most, whose circuits are divided.
    smallest
        Samples that each of the two groups has to have, and as large a share of the reference samples that are compared.
    level
        Highest adjusted p, of clarity and of circuits: most share of false ones among those that are significant, in expectation.
    separation
        Over which groups of reference samples are distinct even where those of circuits are not; see
        `semlens_audit.splitting.division.separation`.
    at_most
        Components that are looked at, the most polysemantic ones: each that is split costs a backward pass through the layer for every
        batch in which its virtual neurons are observed.
    """

    layer: str
    polysemanticity: float = 0.2
    references: int = 100
    smallest: int = 10
    level: float = 0.05
    separation: float = 0.3
    at_most: int = 64


@dataclass(frozen=True)
class Looked:
    """What came of one component over the declared polysemanticity.

    Parameters
    ----------
    component, polysemanticity
        Which one, and how polysemantic.
    sizes
        Samples in either group of circuits.
    silhouette
        Mean silhouette width of these groups; 0 where there are none.
    dip, p_dip
        Whether there is a valley between them, see `semlens_audit.splitting.modes.valley`; 0 and 1 where there are none.
    comparison
        Clarity of its reference samples; ``None`` where they could not be compared.
    adjusted, adjusted_dip
        p-values of the comparison and of the dip, adjusted; 1 where there is no comparison.
    reason
        Why it is not split, in a few words; empty where it is.
    centroids
        (2, C) float32 mean circuits.
    kept
        Whether it is split.
    """

    component: int
    polysemanticity: float
    sizes: tuple[int, int]
    silhouette: float
    dip: float
    p_dip: float
    comparison: Comparison | None
    reason: str
    centroids: np.ndarray
    adjusted: float = 1.0
    adjusted_dip: float = 1.0
    kept: bool = False


@dataclass(frozen=True)
class Fit:
    """What came of a layer.

    Parameters
    ----------
    settings
        How.
    components, judged
        Components of the layer, and those of them whose polysemanticity is defined.
    over
        Components over the declared polysemanticity.
    looked
        What came of those that were looked at, most polysemantic first.
    inputs
        Components of what the layer is given.
    compared
        Reference samples of each component that clarity was compared on, at most.
    """

    settings: Settings
    components: int
    judged: int
    over: int
    looked: tuple[Looked, ...]
    inputs: int
    compared: int

    @property
    def kept(self) -> list[Looked]:
        """Those that are split, by component."""
        return sorted((one for one in self.looked if one.kept), key=lambda one: one.component)

    @property
    def units(self) -> dict[int, tuple[int, int]]:
        """Component that is split -> its two virtual neurons, as they are numbered where they are spliced in."""
        return {one.component: (self.components + 2 * j, self.components + 2 * j + 1) for j, one in enumerate(self.kept)}


def bare(plan: AuditPlan, layer: str) -> AuditPlan:
    """The plan of one layer without anything spliced into the network: files that are going to be written need not be there.

    Raises
    ------
    UsageError
        ``unknown-layer``; ``cannot-split``: latents of an autoencoder, or virtual neurons.
    """
    chosen_layers(plan, layer)
    if layer.endswith((LATENTS, UNITS)):
        raise UsageError("cannot-split", f"{layer!r} is no layer of the network itself.", "Split the layer that it hangs below.")
    audit = plan.audit
    subject = audit.subject.model_copy(update={"autoencoders": (), "virtual_neurons": ()})
    sensitivity = audit.sensitivity.model_copy(update={"layers": ()})
    return plan.model_copy(
        update={"audit": audit.model_copy(update={"subject": subject, "layers": (layer,), "sensitivity": sensitivity})}
    )


def fit(atlas: Atlas, engine: Engine, settings: Settings, progress: Progress) -> Fit:
    """Look for components of a layer that stand for two things, and divide them.

    Parameters
    ----------
    atlas
        The index of the audit, see `bare`.
    engine
        Its bench has the model and the data.
    settings
        How.
    progress
        Where passes report.

    Raises
    ------
    UsageError
        ``too-small``: fewer than two groups of the smallest size can be had of so few reference samples.
    SubjectError
        See `semlens_audit.virtual.circuits.place_of`.
    """
    layer = settings.layer
    if settings.references < 2 * settings.smallest:
        raise UsageError(
            "too-small", f"{settings.references} samples cannot fall into two groups of {settings.smallest}.", "Lower --smallest."
        )
    bench, source = engine.bench, atlas.layers[layer]
    place = place_of(bench.subject.model, layer, atlas.plan.audit.subject.preprocessing.size)
    several = _polysemanticity(source, atlas.evidence.units)
    over = np.flatnonzero(np.nan_to_num(several, nan=-1.0) > settings.polysemanticity)
    chosen = over[np.argsort(-several[over], kind="stable")][: settings.at_most].tolist()
    # Whatever reference samples the index keeps are compared, also those beyond the declared number.
    stored = next((one for one in atlas.evidence.headroom if one.layer == layer), source)
    looked: tuple[Looked, ...] = ()
    if chosen:
        most = top_samples(atlas, engine, layer, chosen, settings.references, progress)
        shown = {component: stored.reference_ids[component] for component in chosen}
        asked = {component: np.union1d(most[component], shown[component][shown[component] >= 0]) for component in chosen}
        found = dict(_looked(atlas, stored, settings, several, most, asked, circuit_pass(engine, layer, place, asked, progress)))
        looked = judged([found[component] for component in chosen], settings)
    return Fit(
        settings, source.components, int(np.isfinite(several).sum()), len(over), looked, place.inputs, stored.reference_ids.shape[1]
    )


def _polysemanticity(source: LayerEvidence, units: np.ndarray) -> np.ndarray:
    """(K,) as `semlens-audit measures` has it; NaN for dead components."""
    present = source.reference_ids >= 0
    own = np.where(present, units[np.maximum(source.reference_ids, 0)], -1 - np.arange(present.shape[1]))
    return np.where(source.dead, np.nan, polysemanticity(source.embeddings, present, own))


def _looked(
    atlas: Atlas,
    stored: LayerEvidence,
    settings: Settings,
    several: np.ndarray,
    most: dict[int, np.ndarray],
    asked: dict[int, np.ndarray],
    passes: Iterator[tuple[int, np.ndarray]],
) -> Iterator[tuple[int, Looked]]:
    """Every component with its division and comparison, not judged yet."""
    units = atlas.evidence.units
    for component, circuits in passes:
        own = circuits[np.searchsorted(asked[component], most[component])]
        driven = np.abs(own).sum(axis=1) > 0
        own, owners = own[driven], units[most[component][driven]]
        value = float(several[component])
        if len(own) < 2 * settings.smallest:
            reason = f"only {len(own)} samples"
            nothing = np.zeros((2, circuits.shape[1]), dtype=np.float32)
            yield component, Looked(component, value, (len(own), 0), 0.0, 0.0, 1.0, None, reason, nothing)
            continue
        centroids, first = divided(own)
        sizes, distinct = (int(first.sum()), int((~first).sum())), silhouette(own, first)
        kept = centroids.astype(np.float32)
        if sizes[1] < settings.smallest:
            reason = "group too small"
            yield component, Looked(component, value, sizes, distinct, 0.0, 1.0, None, reason, kept)
            continue
        ranks = np.flatnonzero(stored.reference_ids[component] >= 0)
        ids = stored.reference_ids[component][ranks]
        ranks, ids = (part[one_of_each(units[ids])] for part in (ranks, ids))
        shown = torch.from_numpy(circuits[np.searchsorted(asked[component], ids)])
        gate = nearest(shown[:, None], torch.from_numpy(kept)[None])[:, 0].numpy()
        rng = generator(atlas.plan, "splitting", settings.layer, str(component))
        fewest = -(-settings.smallest * len(ids) // settings.references)
        comparison = clarity_raised(np.asarray(stored.embeddings[component])[ranks], gate, rng, fewest)
        yield component, Looked(
            component, value, sizes, distinct, *valley(own[one_of_each(owners)]), comparison, "" if comparison else "too few shown", kept
        )


def judged(looked: Sequence[Looked], settings: Settings) -> tuple[Looked, ...]:
    """The same with p-values adjusted over all of them, and what follows from these and from how distinct the groups are."""
    p = np.array([(1.0, 1.0) if one.comparison is None else (one.comparison.p, one.p_dip) for one in looked]).reshape(-1, 2)
    result = []
    for one, clearer, valley_left in zip(looked, *(benjamini_hochberg(side).tolist() for side in p.T), strict=True):
        reason = one.reason if one.comparison is None else ""
        if one.comparison is not None and clearer > settings.level:
            reason = "no clearer"
        elif one.comparison is not None and not (valley_left <= settings.level or one.comparison.separation > settings.separation):
            reason = "not distinct"
        result.append(replace(one, adjusted=clearer, adjusted_dip=valley_left, kept=not reason, reason=reason))
    return tuple(result)


def write_fit(atlas: Atlas, engine: Engine, found: Fit, out: Path) -> Splitting:
    """Write the file of virtual neurons, of which there must be some; the same fit gives the same bytes.

    Returns
    -------
    Splitting
        What it says.
    """
    bench, settings = engine.bench, found.settings
    splits = []
    for one in found.kept:
        assert one.comparison is not None
        splits.append(
            SplitComponent(
                component=one.component, polysemanticity=one.polysemanticity, sizes=one.sizes, clarity=one.comparison.before,
                clarity_split=one.comparison.after, silhouette=one.silhouette, separation=one.comparison.separation, p=one.adjusted,
                dip=one.dip, p_dip=one.adjusted_dip,
            )
        )
    said = Splitting(
        layer=settings.layer, width=found.components, inputs=found.inputs, subject=bench.subject.sha256,
        preprocessing=bench.subject.preprocessing, data=bench.data.sha256, foundation=str(atlas.evidence.foundation["sha256"]),
        polysemanticity=settings.polysemanticity, references=settings.references, smallest=settings.smallest, level=settings.level,
        separation=settings.separation, at_most=settings.at_most, seed=atlas.plan.audit.seed, looked_at=len(found.looked),
        splits=tuple(splits), device=describe(bench.device), tool=__version__,
    )  # fmt: skip
    tensors = {
        "components": torch.tensor([one.component for one in found.kept], dtype=torch.int64),
        "centroids": torch.from_numpy(np.stack([one.centroids for one in found.kept])),
    }
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(save(tensors, said.metadata()))
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(out)
    return said
