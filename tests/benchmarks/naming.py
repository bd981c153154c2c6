"""Whether components fire for what their labels say: SemanticLens, CSP and CLIP-Dissect on the same components.

    .venv/bin/python -m tests.benchmarks.naming --write         # a quarter of an hour of processor time

Every component of two layers of the phantom's models gets a label from a vocabulary of things that the renderer can switch on and
off. New lesions are then rendered with and without each of them, all else equal, and the component's pooled activation on either is
compared. Photographs, where the data are at hand, are compared as they were found (`tests.benchmarks.naming_photographs`). Prints
Markdown; ``--write`` puts it into the README and draws ``naming.svg``. Indexes are built into a temporary folder, or into
``--folder``, where they are kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semlens_audit import index
from semlens_audit.atlas.embedded_words import EmbeddedWords, embed_words
from semlens_audit.atlas.labels import Label, label_components
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.vocabulary import Vocabulary, of_words
from semlens_audit.components import capture, pool
from semlens_audit.devices import on_device
from semlens_audit.execution import Execution
from semlens_audit.phantom.render import ATTRIBUTES, render
from semlens_audit.phantom.world import Population, sample
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import LineProgress
from semlens_audit.scores import unit
from semlens_audit.spec import read_plan
from semlens_audit.views import normalised
from semlens_audit.work import Bench
from tests.benchmarks import naming_scores
from tests.benchmarks.dissect import soft_wpmi
from tests.benchmarks.naming_scores import Naming, Truth

ROOT = Path(__file__).resolve().parents[2]
README = Path(__file__).with_name("README.md")
MODELS = ("phantom-shortcut", "phantom-clean")
LAYERS = ("layer3", "layer4")
SEED = 31
"""Of the lesions that labels are tested on: the models were trained on 11 and measured on 12 and 13, the audits' data are 20240."""
SELECTIONS = ("relevance", "activation")
"""How reference samples are chosen: as the audits are shipped, and as published."""
ROWS = 64

WORDS: dict[str, tuple[str, bool, str]] = {
    "an asymmetric lesion": ("asymmetry", True, "a lopsided lesion"),
    "an irregular border": ("irregular_border", True, "jagged edges"),
    "several colours": ("several_colours", True, "a multicoloured lesion"),
    "a blue-white veil": ("blue_white_veil", True, "a bluish haze"),
    "a large lesion": ("large_diameter", True, "a big mole"),
    "a symmetric lesion": ("asymmetry", False, "an even, round mole"),
    "a smooth border": ("irregular_border", False, "an even outline"),
    "one colour": ("several_colours", False, "a uniformly brown mole"),
    "a small lesion": ("large_diameter", False, "a tiny mole"),
    "a ruler": ("ruler", True, "tick marks of a ruler"),
    "a plaster": ("plaster", True, "a band-aid"),
    "hair": ("hair", True, "dark hairs on skin"),
    "pen marks": ("pen_ink", True, "purple ink"),
    "dark corners": ("dark_corners", True, "a vignette"),
    "red skin": ("red_skin", True, "erythema"),
    "a colour chart": ("colour_chart", True, "calibration patches"),
}
"""Word -> the renderer's attribute, whether the word says that it is there or that it is not, and the same said otherwise."""

OURS = "SemanticLens"
COSINE = ", largest cosine"
CENTRED = f"{OURS} less the mean of random crops{COSINE}"


@dataclass(frozen=True)
class Cell:
    """One layer of one index with its labels.

    Parameters
    ----------
    title
        Of its table.
    namings
        One for each method.
    reworded
        The same with the vocabulary's second wording; empty where it has none.
    truth
        What components do when what a word says is there.
    relevance
        (K,) mean share of the relevance for the audited class; None where labels are not weighted by it.
    """

    title: str
    namings: tuple[Naming, ...]
    reworded: tuple[Naming, ...]
    truth: Truth
    relevance: np.ndarray | None

    @property
    def chosen(self) -> np.ndarray:
        """Components that every method gives a word, and that are not the same on every image without some attribute."""
        given = np.all([one.words >= 0 for one in self.namings], axis=0)
        return np.flatnonzero(given & np.isfinite(self.truth.difference).all(axis=1))


def contrastive(plan: AuditPlan, layers: Sequence[str], store: Path, **settings: object) -> AuditPlan:
    """The plan of an index of `layers` with contrastive crops, in a store of its own."""
    measured = plan.audit.measurement.model_copy(update={"concept_embedding": "contrastive", **settings})
    update = {
        "layers": tuple(layers), "measurement": measured, "store": str(store),
        "sensitivity": plan.audit.sensitivity.model_copy(update={"layers": ()}),
    }  # fmt: skip
    return plan.model_copy(update={"audit": plan.audit.model_copy(update=update)})


def embedding(plan: AuditPlan, gamma: float) -> AuditPlan:
    """The same index with another concept embedding: gamma 0 is the mean of crops as SemanticLens has it."""
    update: dict[str, object] = {"concept_embedding": "contrastive", "gamma": gamma} if gamma else {"concept_embedding": "mean"}
    measured = plan.audit.measurement.model_copy(update=update)
    return plan.model_copy(update={"audit": plan.audit.model_copy(update={"measurement": measured})})


def activations(bench: Bench, layers: Sequence[str], views: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Pooled activations in single precision: layer -> (N, K) for N views, (S, S, 3) uint8 each."""
    audit, parts, batch = bench.plan.audit, {layer: list[np.ndarray]() for layer in layers}, list[np.ndarray]()

    def run() -> None:
        images = on_device(normalised(np.stack(batch), audit.subject.preprocessing), bench.device)
        with torch.inference_mode(), capture(bench.subject.model, list(layers)) as seen:
            bench.subject.model(images)
            for layer in layers:
                parts[layer].append(pool(seen[layer], audit.measurement.pooling).cpu().numpy())
        batch.clear()

    for view in views:
        batch.append(view)
        if len(batch) == ROWS:
            run()
    if batch:
        run()
    return {layer: np.concatenate(some) for layer, some in parts.items()}


def lesions(count: int) -> Iterator[np.ndarray]:
    """Views of new lesions: each as it is drawn, then with each attribute switched to what it was not."""
    for case in sample(Population(), count, SEED):
        yield case.scene().image
        for name in ATTRIBUTES:
            yield render(case.lesion, case.attributes.switched(name, not case.attributes.has(name))).image


def switched(found: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Areas and differences, (K, A) each, of activations on `lesions`: the same lesions without and with each attribute."""
    by_lesion = found.reshape(count, 1 + len(ATTRIBUTES), -1)
    cases = sample(Population(), count, SEED)
    area, difference = [], []
    for place, name in enumerate(ATTRIBUTES):
        has = np.array([case.attributes.has(name) for case in cases])[:, None]
        drawn, other = by_lesion[:, 0], by_lesion[:, 1 + place]
        without, present = np.where(has, other, drawn), np.where(has, drawn, other)
        area.append(naming_scores.areas(without, present))
        difference.append(naming_scores.differences(without, present))
    return np.stack(area, axis=1), np.stack(difference, axis=1)


def of_index(found: np.ndarray, has: np.ndarray) -> np.ndarray:
    """(K, A) areas on the images of the index, (N, K) activations, by what they are known to show, (N, A)."""
    return np.stack([naming_scores.areas(found[~column], found[column]) for column in has.T.astype(bool)], axis=1)


def by_labels(method: str, labels: Sequence[Sequence[Label]], place: dict[str, int]) -> tuple[Naming, Naming]:
    """Labels ranked by z, as this project does, and by the largest cosine, as published."""
    first = [place[one[0].word] if one else -1 for one in labels]
    nearest = [place[max(one, key=lambda label: label.alignment).word] if one else -1 for one in labels]
    significant = np.array([bool(one) and one[0].significant for one in labels])
    return Naming(method, np.array(first), significant), Naming(method + COSINE, np.array(nearest))


def read_similarity(atlas: Atlas, words: Sequence[str]) -> np.ndarray:
    """(N, V) cosines of whole images with words, as CLIP-Dissect has them: no templates, nothing taken away."""
    return np.asarray(np.asarray(atlas.evidence.image_embeddings[:]) @ unit(atlas.foundation.embed_texts(list(words)).astype(np.float64)).T)


def pictured_similarity(atlas: Atlas, embedded: EmbeddedWords) -> np.ndarray:
    """(N, V) the same where words are given by pictures, in the order of the vocabulary: cosines from the mean image."""
    images = np.asarray(atlas.evidence.image_embeddings[:]).astype(np.float64)
    centre = images.mean(axis=0)
    return np.asarray(unit(images - centre) @ np.concatenate([block.directions for block in embedded.blocks(centre)]).T)


def names(
    plan: AuditPlan, layer: str, vocabulary: Vocabulary, order: Sequence[str], found: np.ndarray, best: np.ndarray | None
) -> tuple[Naming, ...]:
    """What each method calls the components of a layer.

    Parameters
    ----------
    vocabulary, order
        Words, and the order in which they are numbered.
    found
        (N, K) pooled activations on the images of the index.
    best
        (K,) the word that tells best which images of the index activate a component, by what these are known to show.
    """
    place, namings = {word: at for at, word in enumerate(order)}, list[Naming]()
    for gamma in (0.0, 0.5, 1.0):
        with Atlas(embedding(plan, gamma)) as atlas:
            embedded = embed_words(atlas, vocabulary)
            labels = label_components(atlas, layer, embedded, top=len(order))
            namings += by_labels(f"CSP, γ = {gamma:g}" if gamma else OURS, labels, place)
            if not gamma:
                if embedded.read:
                    centred = unit(atlas.concept_embeddings(layer, "centred").astype(np.float64))
                    directions = np.concatenate([block.directions for block in embedded.blocks(atlas.centre(layer))])
                    nearest = np.argmax(centred @ directions.T, axis=1).tolist()
                    namings.append(Naming(CENTRED, np.array([place[embedded.words[word]] for word in nearest], dtype=np.int64)))
                inner = [place[word] for word in embedded.words]
                seen = read_similarity(atlas, embedded.words) if embedded.read else pictured_similarity(atlas, embedded)
    score = soft_wpmi(found, seen)
    score[:, inner] = score.copy()
    namings.append(Naming("CLIP-Dissect", np.asarray(score.argmax(axis=1))))
    namings.append(Naming("a word drawn at random", np.asarray(np.random.default_rng(0).integers(len(order), size=found.shape[1]))))
    if best is not None:
        namings.append(Naming("the best word, by the index's images", best))
    return tuple(namings)


def phantom(model: str, views: np.ndarray, folder: Path) -> dict[str, list[Cell]]:
    """Both layers of a phantom model, for either way of choosing reference samples.

    Parameters
    ----------
    views
        Those of `lesions`.
    """
    audit, where, cells = read_plan(ROOT / "audits" / f"{model}.yaml"), Execution(device="cpu"), dict[str, list[Cell]]()
    count = len(views) // (1 + len(ATTRIBUTES))
    words = [(ATTRIBUTES.index(name), present) for name, present, _ in WORDS.values()]
    order, others = list(WORDS), [said for _, _, said in WORDS.values()]
    seen: dict[str, np.ndarray] = {}
    tested: dict[str, np.ndarray] = {}
    for selection in SELECTIONS:
        plan = contrastive(audit, LAYERS, folder / f"{model}-{selection}.duckdb", selection=selection)
        index.build(plan, progress=LineProgress(sys.stderr), execution=where)
        with Atlas(plan) as atlas:
            bench = Bench(plan, atlas.data, execution=where)
            assert atlas.data.attributes is not None
            has = np.stack([atlas.data.attributes[name] == 1 for name in ATTRIBUTES], axis=1)
            relevance = {layer: atlas.shares(layer)[0] for layer in LAYERS}
        if not seen:  # what the network does is the same whichever reference samples are chosen
            seen = activations(bench, LAYERS, (bench.views[one.id] for one in bench.data.samples))
            tested = activations(bench, LAYERS, views)
        cells[selection] = []
        for layer in LAYERS:
            known = of_index(seen[layer], has)
            best = np.asarray(naming_scores.signed(known, known, words).area.argmax(axis=1))
            truth = naming_scores.signed(*switched(tested[layer], count), words)
            first = names(plan, layer, of_words(order), order, seen[layer], best)
            second = names(plan, layer, of_words(others), others, seen[layer], None)
            cells[selection].append(Cell(f"{model}, `{layer}`", first, second, truth, relevance[layer]))
    return cells


def table(cell: Cell) -> list[str]:
    """Lines of Markdown for one layer."""
    chosen, base = cell.chosen, cell.namings[0]
    again = {one.method: one.words for one in cell.reworded}
    heads = [*naming_scores.HEAD, "the same in other words"]
    lines = [f"**{cell.title}**, {len(chosen)} of {len(base.words)} components", ""]
    lines += [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for naming in cell.namings:
        cells = naming_scores.row(naming, base, cell.truth, chosen, cell.relevance)
        same = again.get(naming.method)
        said = "–" if same is None or "random" in naming.method else f"{100 * np.mean((same == naming.words)[chosen]):.0f} %"
        lines.append(f"| {' | '.join((*cells, said))} |")
    return [*lines, ""]


def summary(cells: Sequence[Cell]) -> list[str]:
    """Mean area and its paired difference by method, a column for each layer."""
    lines = [f"| method | {' | '.join(cell.title for cell in cells)} |", f"| --- |{' --- |' * len(cells)}"]
    for place, naming in enumerate(cells[0].namings):
        said = []
        for cell in cells:
            cut = naming_scores.row(cell.namings[place], cell.namings[0], cell.truth, cell.chosen, None)
            said.append(cut[1] if place == 0 else f"{cut[1]}; {cut[2]}")
        lines.append(f"| {naming.method} | {' | '.join(said)} |")
    return [*lines, ""]


def draw(cells: Sequence[Cell]) -> str:
    """Distributions of the area over components as SVG: a panel for each layer, a box for each method."""
    import io

    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({
        "svg.hashsalt": "naming", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#999999", "xtick.color": "#555555", "ytick.color": "#222222",
        "text.color": "#222222", "axes.labelcolor": "#222222",
    })  # fmt: skip
    from matplotlib import pyplot

    kept = [place for place, one in enumerate(cells[0].namings) if COSINE not in one.method]
    figure, panels = pyplot.subplots(1, len(cells), figsize=(2.6 * len(cells) + 1.6, 2.6), sharey=True, squeeze=False)
    for panel, cell in zip(panels[0], cells, strict=True):
        values = [cell.truth.area[cell.chosen, cell.namings[place].words[cell.chosen]] for place in kept]
        boxes = panel.boxplot(
            values, orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.6, patch_artist=True,
            medianprops={"color": "#1b1f24", "linewidth": 1.4}, whiskerprops={"color": "#57606a"}, capprops={"color": "#57606a"},
        )  # fmt: skip
        for box, place in zip(boxes["boxes"], kept, strict=True):
            method = cell.namings[place].method
            colour = "#c4c9cf" if "word" in method else "#d55e00" if "Dissect" in method else "#0072b2"
            box.set(facecolor=colour, edgecolor="#57606a", alpha=0.75)
        panel.axvline(0.5, color="#999999", linewidth=0.8, linestyle=":")
        panel.set_title(cell.title.replace("`", ""), fontsize=9)
        panel.set_xlim(0, 1)
        panel.set_xlabel("AUROC of the label")
    panels[0, 0].set_yticks(range(1, len(kept) + 1), [cells[0].namings[place].method for place in kept])
    panels[0, 0].invert_yaxis()
    figure.tight_layout()
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Title": "AUROC of labels by method"})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def section(found: Sequence[dict[str, list[Cell]]], photographs: Sequence[Cell]) -> list[str]:
    """Lines of Markdown: a table for each layer as shipped, one for all with reference samples as published, the photographs'."""
    shipped, published = ([cell for cells in found for cell in cells[selection]] for selection in SELECTIONS)
    lines = [line for cell in shipped for line in table(cell)]
    lines += ["**Reference samples by activation**, as published: mean AUROC; against SemanticLens, paired", "", *summary(published)]
    return lines + [line for cell in photographs for line in table(cell)]


def main() -> None:
    """See the module."""
    from tests.benchmarks import naming_photographs, peer_world
    from tests.benchmarks.bench import machine
    from tests.benchmarks.versus import write_section

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--lesions", type=int, default=300, help="rendered with and without every attribute")
    parser.add_argument("--no-photographs", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into the README, the picture beside it")
    asked = parser.parse_args()
    begun, data = time.perf_counter(), peer_world.test_data()
    real = not asked.no_photographs and (data / "imagenet_samples").is_dir()
    with ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        views = np.stack(list(lesions(asked.lesions)))
        found = [phantom(model, views, folder.resolve()) for model in asked.models]
        photographs = naming_photographs.photographs(data, folder.resolve()) if real else []
    lines = [f"Measured on: {machine()}; {asked.lesions} lesions, rendered {1 + len(ATTRIBUTES)} times each.", ""]
    lines += section(found, photographs)
    print("\n".join(lines))
    if asked.write:
        write_section("naming", lines)
        README.with_name("naming.svg").write_text(draw([cell for cells in found for cell in cells["relevance"]]), encoding="utf-8")
    print(f"{time.perf_counter() - begun:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
