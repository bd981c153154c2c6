"""An audit's components with their labels: what the verb ``label`` lists."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from semlens_audit.atlas.candidates import Candidates, candidate_values
from semlens_audit.atlas.embedded_words import embed_words
from semlens_audit.atlas.labels import Label, best_label, label_components, random_sets
from semlens_audit.atlas.opening import Atlas, chosen_class, chosen_layers
from semlens_audit.atlas.rows import ComponentRow, own_row
from semlens_audit.atlas.vocabulary import SPEC, Vocabulary, joined, of_spec
from semlens_audit.atlas.vocabulary_files import read_vocabulary
from semlens_audit.errors import UsageError
from semlens_audit.foundation import has_text_tower
from semlens_audit.plan import AuditPlan
from semlens_audit.progress import Progress

__all__ = [
    "GENERAL",
    "LabelledLayer",
    "LabelledRow",
    "Labelling",
    "chosen_vocabulary",
    "csv_text",
    "first",
    "label",
    "most_relevant",
    "values",
]

GENERAL = "general"
"""Vocabulary of foundation models that read, unless another is named."""


@dataclass(frozen=True)
class LabelledRow:
    """A component with the words nearest to it.

    Parameters
    ----------
    row
        The component.
    labels
        The nearest words by z, highest first, significant or not; empty for a component that can have none.
    """

    row: ComponentRow
    labels: tuple[Label, ...]

    @property
    def best(self) -> Label | None:
        """Its label; ``None``: no label fits."""
        return best_label(self.labels)


@dataclass(frozen=True)
class LabelledLayer:
    """What a layer's components were labelled with.

    Parameters
    ----------
    layer
        Its name.
    components, tested, labelled
        Its components; those that can have a label; those that have one.
    rows
        The components asked for, most relevant for the class first.
    """

    layer: str
    components: int
    tested: int
    labelled: int
    rows: tuple[LabelledRow, ...]

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        without = self.components - self.tested
        rest = f"; {without:,} never active or with too few samples" if without else ""
        return f"{self.layer}: {self.labelled:,} of {self.tested:,} components have a label{rest}."


@dataclass(frozen=True)
class Labelling:
    """Labels of an audit's components, and what they were chosen from.

    Parameters
    ----------
    class_name
        Class of the spec whose relevance orders the components.
    layers
        Layer by layer.
    vocabulary, words, sha256
        Its name, how many words it holds, digest of them.
    probes
        Digest of the words as the foundation model embeds them.
    level
        False-discovery rate over each layer's components.
    sets
        Random sets of reference samples that every word was held against.
    gamma
        How much of the contrastive crops the concept embeddings lack, 0 to 1; ``None`` where they are means of crops alone.
    leave_out
        Reference samples of each component, the first, that no word was tested on.
    candidates
        What a generator proposed, where one was asked.
    notes
        Of the vocabulary, for the reader.
    """

    class_name: str
    layers: tuple[LabelledLayer, ...]
    vocabulary: str
    words: int
    sha256: str
    probes: str
    level: float
    sets: int
    notes: tuple[str, ...]
    gamma: float | None = None
    leave_out: int = 0
    candidates: Candidates | None = None


def chosen_vocabulary(plan: AuditPlan, names: Sequence[str]) -> Vocabulary:
    """The vocabularies that were named, as one; without any, one that the foundation model can embed.

    Parameters
    ----------
    plan
        The audit.
    names
        Files, names of those that come with the tool, or ``spec`` for the concepts of the audit's spec. Empty: ``general`` for a
        foundation model with a text tower, else ``spec``.

    Raises
    ------
    VocabularyError
        See `semlens_audit.atlas.vocabulary_files.read_vocabulary`.
    """
    text = has_text_tower(plan)
    chosen = list(dict.fromkeys(names)) or [GENERAL if text else SPEC]
    return joined([of_spec(plan, text=text) if name == SPEC else read_vocabulary(name) for name in chosen])


def label(
    atlas: Atlas, vocabulary: Vocabulary, *, layer: str | None = None, class_name: str | None = None, top: int = 3,
    level: float = 0.05, count: int | None = None, leave_out: int = 0, candidates: Candidates | None = None,
    progress: Progress | None = None,
) -> Labelling:  # fmt: skip
    """Label the components of an audit's layers.

    Parameters
    ----------
    atlas
        Open index.
    vocabulary
        Words to choose from.
    layer
        One of the audit's layers; ``None``: each of them.
    class_name
        Class of the spec whose relevance orders the components; ``None``: the first.
    top
        Words for each component.
    level
        False-discovery rate over each layer's components.
    count
        Components of each layer to return, the most relevant; ``None``: all.
    leave_out
        Reference samples of each component, the first, that the words were chosen by looking at.
    candidates
        What a generator proposed of the words; what it has seen is left out, too.

    Raises
    ------
    UsageError
        ``unknown-layer``, ``unknown-class``, ``bad-level``, ``too-many-left-out``.
    """
    if not 0.0 < level < 1.0:
        raise UsageError("bad-level", f"A false-discovery rate of {level:g} cannot be.", "Write one above 0 and below 1, such as 0.05.")
    chosen, leave_out = chosen_class(atlas.plan, class_name), max(leave_out, 0 if candidates is None else candidates.shown)
    references = atlas.plan.audit.measurement.reference_samples
    if not 0 <= leave_out <= references - 2:
        raise UsageError(
            "too-many-left-out", f"Of {references} reference samples {leave_out} cannot be left out.", f"At most {references - 2} can."
        )
    embedded, settings = embed_words(atlas, vocabulary, progress), atlas.plan.audit.measurement
    found = []
    for name, order in most_relevant(atlas, layer, chosen, count).items():
        labels = label_components(atlas, name, embedded, top=top, level=level, leave_out=leave_out, progress=progress)
        found.append(
            LabelledLayer(
                name,
                len(labels),
                sum(bool(one) for one in labels),
                sum(best_label(one) is not None for one in labels),
                tuple(LabelledRow(own_row(atlas, name, component), tuple(labels[component])) for component in order),
            )
        )
    return Labelling(
        chosen,
        tuple(found),
        vocabulary.name,
        len(vocabulary.words),
        vocabulary.sha256,
        embedded.sha256,
        level,
        random_sets(len(vocabulary.words)),
        (
            *vocabulary.notes,
            *_own_pictures(embedded.from_data, len(vocabulary.words)),
            *_seen(leave_out, references),
            *(candidates.notes if candidates is not None else ()),
        ),
        settings.gamma if settings.concept_embedding == "contrastive" else None,
        leave_out,
        candidates,
    )


def most_relevant(atlas: Atlas, layer: str | None, class_name: str | None, count: int | None) -> dict[str, list[int]]:
    """Layer -> its components, most relevant for a class first, at most `count`; see `label` for what may be left open."""
    place = list(atlas.plan.spec.classes).index(chosen_class(atlas.plan, class_name))
    layers = chosen_layers(atlas.plan, layer)
    return {name: np.argsort(-atlas.shares(name)[place], kind="stable")[:count].tolist() for name in layers}


def _seen(leave_out: int, references: int) -> tuple[str, ...]:
    if not leave_out:
        return ()
    return (
        f"Words were chosen by looking at the first {leave_out:,} of {references:,} reference samples of components; labels are tested on "
        "the others.",
    )


def _own_pictures(words: int, every: int) -> tuple[str, ...]:
    if not words:
        return ()
    return (
        f"{words:,} of {every:,} words are given by pictures of the audited data themselves: for components that have such a picture among "
        "their reference samples chance is understated. Pictures from elsewhere avoid this.",
    )


def first(found: Labelling, count: int) -> Labelling:
    """The same with at most `count` components of each layer."""
    return replace(found, layers=tuple(replace(one, rows=one.rows[:count]) for one in found.layers))


def values(found: Labelling) -> dict[str, Any]:
    """Give labels as JSON-ready values."""
    return {
        "class": found.class_name,
        "vocabulary": {"name": found.vocabulary, "words": found.words, "sha256": found.sha256, "probes_sha256": found.probes},
        "false_discovery_rate": found.level,
        "random_sets": found.sets,
        "concept_embedding": {"kind": "mean" if found.gamma is None else "contrastive", "gamma": found.gamma},
        "left_out_references": found.leave_out,
        "candidates": None if found.candidates is None else candidate_values(found.candidates),
        "notes": list(found.notes),
        "layers": [
            {
                "layer": one.layer,
                "components": one.components,
                "tested": one.tested,
                "labelled": one.labelled,
                "rows": [
                    {
                        "component": each.row.component,
                        "label": None if each.best is None else each.best.word,
                        "words": [asdict(word) for word in each.labels],
                        "share": each.row.share,
                        "dead": each.row.dead,
                        "references": [asdict(reference) for reference in each.row.references],
                    }
                    for each in one.rows
                ],
            }
            for one in found.layers
        ],
    }


def csv_text(found: Labelling) -> str:
    """Labels as a table for a spreadsheet: a row for each component and word, or one without a word where there is none.

    ``label`` is empty where no label fits; ``word`` is the nearest word even then. Cells that a spreadsheet would take for a formula
    begin with an apostrophe.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    classes = list(dict.fromkeys(name for one in found.layers for each in one.rows for name in each.row.share))
    shares = [_cell(f"relevance for {name}") for name in classes]
    table.writerow(["layer", "component", "label", "rank", "word", "alignment", "z", "p", "significant", *shares])
    for one in found.layers:
        for each in one.rows:
            best = "" if each.best is None else _cell(each.best.word)
            share = [f"{each.row.share.get(name, 0.0):.6g}" for name in classes]
            start = [_cell(one.layer), each.row.component, best]
            if not each.labels:
                table.writerow([*start, "", "", "", "", "", "", *share])
            for rank, word in enumerate(each.labels, start=1):
                numbers = [f"{word.alignment:.6g}", f"{word.z:.6g}", f"{word.p:.6g}", "yes" if word.significant else "no"]
                table.writerow([*start, rank, _cell(word.word), *numbers, *share])
    return out.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
