"""Words for components that nobody has listed: proposed by a generator that looks at their crops, and tested on crops it has not seen.

A generator, such as an image-captioning model, is shown a grid of what drives a component and, in audits with contrastive embeddings,
a grid of the contrastive crops (contrastive semantic projection, arXiv 2604.22477). It is asked by `label` only, and only if it is
named; no audit's result ever depends on one. Its words become a vocabulary, and are tested like any other's: against the whole
vocabulary, over all components of the layer.

Words that were chosen by looking at crops fit those crops, whatever they are of: tested on the same ones, chance would be understated.
The reference samples that a generator has seen are therefore left out of the test, with all of the same independent units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from semlens_audit.atlas.candidate_grids import component_grids, shown_references
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.query_images import image_key
from semlens_audit.atlas.vocabulary import Gathering, Vocabulary, VocabularyError, complaint, fold
from semlens_audit.errors import SubjectError, UsageError
from semlens_audit.foundation import has_text_tower
from semlens_audit.plain_text import one_line
from semlens_audit.progress import Progress, SilentProgress

__all__ = ["CandidateGenerator", "Candidates", "Proposal", "candidate_values", "check_target", "propose", "require_text", "vocabulary_text"]

_TOLD = 3


class CandidateGenerator(Protocol):
    """Whatever proposes words for what it is shown."""

    @property
    def name(self) -> str:
        """What it calls itself."""
        ...

    @property
    def version(self) -> str:
        """Which version of it."""
        ...

    def candidates(
        self, positive: Image.Image, contrastive: Image.Image | None, *, layer: str, component: int
    ) -> Sequence[str]:
        """Words or phrases for what the pictures have in common.

        Parameters
        ----------
        positive
            Crops that drive the component, see `semlens_audit.atlas.candidate_grids.ComponentGrids`.
        contrastive
            Crops that look alike and do not drive it, each at the place of the one it is like; ``None`` where there are none.
        layer, component
            Which.
        """
        ...


@dataclass(frozen=True)
class Proposal:
    """What a generator proposed for one component.

    Parameters
    ----------
    words
        In its order; those that no vocabulary can hold are left out.
    positive, contrastive
        SHA-256 of the pixels of the grids that it was shown; ``None`` without contrastive crops.
    """

    words: tuple[str, ...]
    positive: str
    contrastive: str | None


@dataclass(frozen=True)
class Candidates:
    """What a generator proposed.

    Parameters
    ----------
    name, version
        Of the generator.
    shown
        Reference samples of each component, the first, that it was shown: labels are tested on the others.
    proposals
        (layer, component) -> what was proposed.
    notes
        What was done about words that no vocabulary can hold, for the reader.
    """

    name: str
    version: str
    shown: int
    proposals: Mapping[tuple[str, int], Proposal]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"

    def words_of(self, layer: str, component: int) -> tuple[str, ...] | None:
        """What was proposed for a component; ``None`` for one that was not asked about."""
        found = self.proposals.get((layer, component))
        return None if found is None else found.words

    def vocabulary(self) -> Vocabulary:
        """All words as one vocabulary.

        Raises
        ------
        VocabularyError
            ``no-candidates``: nothing usable was proposed.
        """
        gathered = Gathering()
        for proposal in self.proposals.values():
            for word in proposal.words:
                gathered.add(word, None, self.title, 0)
        if not gathered.words:
            raise VocabularyError(
                "no-candidates", f"{self.title} proposed no usable word.", "Name a vocabulary, or mend the generator.",
            )  # fmt: skip
        gathered.repeats = 0  # that components share words is no mistake
        return gathered.made(f"candidates of {self.title}")


def require_text(atlas: Atlas) -> None:
    """Refuse audits whose foundation model cannot test a word.

    Raises
    ------
    SubjectError
        ``no-text-tower``.
    UsageError
        ``too-few-references``: too few reference samples for some to be shown and others tested on.
    """
    if not has_text_tower(atlas.plan):
        raise SubjectError(
            "no-text-tower",
            f"The foundation model {atlas.evidence.foundation['name']} cannot read, so that no proposed word could be tested.",
            "Use a foundation model of source open_clip, or a vocabulary with example images (a table word,image,box).",
        )
    references = atlas.plan.audit.measurement.reference_samples
    if references - shown_references(references) < 2 or not shown_references(references):
        raise UsageError(
            "too-few-references",
            f"Of {references} reference samples none can be shown and two others kept for the test.",
            "Index with more reference_samples.",
        )


def propose(
    atlas: Atlas, generator: CandidateGenerator, components: Mapping[str, Sequence[int]], progress: Progress | None = None
) -> Candidates:
    """Ask a generator for words.

    Parameters
    ----------
    atlas
        Open index.
    generator
        Is asked once for each component, in the order given.
    components
        Layer -> components; those without reference samples are passed over.
    progress
        Told of components that are done with.

    Raises
    ------
    SubjectError, UsageError
        See `require_text`.
    """
    require_text(atlas)
    progress, proposals, wrong = progress or SilentProgress(), dict[tuple[str, int], Proposal](), list[str]()
    with progress.stage(f"Candidates, {generator.name}", sum(map(len, components.values()))) as advance:
        for layer, numbers in components.items():
            for component in numbers:
                grids = component_grids(atlas, layer, component)
                if grids is not None:
                    words = generator.candidates(grids.positive, grids.contrastive, layer=layer, component=component)
                    kept, refused = _usable(words, f"{layer}:{component}")
                    wrong += refused
                    contrastive = None if grids.contrastive is None else image_key(grids.contrastive)
                    proposals[layer, component] = Proposal(kept, image_key(grids.positive), contrastive)
                advance(1)
    return Candidates(
        generator.name,
        generator.version,
        shown_references(atlas.plan.audit.measurement.reference_samples),
        proposals,
        _left_out(wrong),
    )


def _usable(words: Sequence[str], place: str) -> tuple[tuple[str, ...], list[str]]:
    """Words that a vocabulary can hold, each once, and what is wrong with the others."""
    kept, wrong = dict[str, str](), list[str]()
    for word in words:
        problem = complaint(word, place, None)
        if problem is not None:
            wrong.append(f"{place}: {problem.message}")
        elif word.lstrip().startswith("#") or " #" in " ".join(word.split()):
            wrong.append(f"{place}: {one_line(word, 60)!r} holds a #, which begins a comment in a vocabulary.")
        else:
            kept.setdefault(fold(word), " ".join(word.split()))
    return tuple(kept.values()), wrong


def _left_out(wrong: Sequence[str]) -> tuple[str, ...]:
    if not wrong:
        return ()
    more = f" ... and {len(wrong) - _TOLD:,} more" if len(wrong) > _TOLD else ""
    return (f"{len(wrong):,} proposed {'word was' if len(wrong) == 1 else 'words were'} left out: {' '.join(wrong[:_TOLD])}{more}",)


def check_target(path: Path) -> None:
    """Refuse a file that `vocabulary_text` could not be read back from.

    Raises
    ------
    UsageError
        ``bad-candidates-file``.
    """
    if path.suffix.lower() in (".csv", ".yaml", ".yml"):
        raise UsageError(
            "bad-candidates-file", f"Candidates are written with a word on each line, which {path.name} would not be read as.",
            "Name a file that ends in .txt.",
        )  # fmt: skip


def vocabulary_text(found: Candidates) -> str:
    """What was proposed as a vocabulary file: a word on each line, with the components that it was proposed for as a comment."""
    places: dict[str, list[str]] = {}
    for (layer, component), proposal in found.proposals.items():
        for word in proposal.words:
            places.setdefault(fold(word), []).append(f"{layer}:{component}")
    lines = [
        f"# Words that {one_line(found.title)} proposed.",
        f"# It has looked at the first {found.shown} reference samples of the components named behind each word.",
        f"# These are left out of the test, as they have to be, by: label --vocabulary THIS-FILE --leave-out {found.shown}",
    ]
    lines += [f"{word}  # {', '.join(places[fold(word)])}" for word in found.vocabulary().words]
    return "\n".join(lines) + "\n"


def candidate_values(found: Candidates) -> dict[str, Any]:
    """As JSON-ready values."""
    return {
        "generator": {"name": found.name, "version": found.version},
        "shown_references": found.shown,
        "components": [
            {
                "layer": layer,
                "component": component,
                "words": list(one.words),
                "grids_sha256": {"positive": one.positive, "contrastive": one.contrastive},
            }
            for (layer, component), one in found.proposals.items()
        ],
        "notes": list(found.notes),
    }
