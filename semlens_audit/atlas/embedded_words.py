"""Vocabularies as a foundation model embeds them, kept beside the store so that no word is embedded twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from semlens_audit import scores
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.vocabulary import Vocabulary, WordExample
from semlens_audit.atlas.word_alignment import WordBlock
from semlens_audit.component_search import cache_folder
from semlens_audit.digest import digest, digest_file
from semlens_audit.errors import DataError, StoreError, SubjectError
from semlens_audit.foundation import VERSION, has_text_tower
from semlens_audit.image_parts import image_part
from semlens_audit.probe_texts import prompts
from semlens_audit.progress import Progress, SilentProgress

__all__ = ["CHUNK", "EmbeddedWords", "embed_words"]

CHUNK = 2048
"""Words that are embedded, kept and compared together."""

_FEW = 16
"""Words whose prompts are embedded between two reports of progress."""

_IN_MEMORY = 512 << 20
"""Bytes of probes that are held; of longer vocabularies they are read again when they are compared."""


@dataclass(frozen=True)
class EmbeddedWords:
    """A vocabulary's probes.

    Parameters
    ----------
    words
        (V,) as in the vocabulary.
    read
        How many of them, the first, were read by the foundation model; the others are given by example images.
    parts
        Each gives the probes of the next `CHUNK` words, or fewer where those that are read end, as (n, d) float32: of read words
        what a unit-length embedding is multiplied with, of the others the mean embedding of their images.
    sha256
        Digest of everything that the probes depend on: foundation model, templates, kind of probe, words, images.
    from_data
        Words with an example image that is a sample of the audited data, too. They are easier to get than p says: a component that has
        the very picture among its reference samples stands out, and only a few of the random crops were taken from it.
    """

    words: Sequence[str]
    read: int
    parts: Sequence[Callable[[], np.ndarray]]
    sha256: str
    from_data: int = 0

    def blocks(self, centre: np.ndarray) -> Iterator[WordBlock]:
        """All words, some at a time.

        Parameters
        ----------
        centre
            (d,) mean embedding of a layer's random crops: what example images are differences to.
        """
        first = 0
        for part in self.parts:
            directions, pictured = part(), first >= self.read
            if pictured:
                directions = scores.unit(directions.astype(np.float64) - centre).astype(np.float32)
            yield WordBlock(first, directions, pictured)
            first += len(directions)


def embed_words(atlas: Atlas, vocabulary: Vocabulary, progress: Progress | None = None) -> EmbeddedWords:
    """Embed a vocabulary with the audit's foundation model, or read what was kept of it.

    Words are probes as the audit's concepts are: in the spec's templates, as the difference to the empty prompt that the audit
    declares (SemanticLens, arXiv 2501.05398, or arXiv 2505.20229). What has been embedded is written beside the store some thousand
    words at a time, under a digest of all it depends on; an interrupted run goes on from there. The foundation model is loaded only
    if anything is missing.

    Raises
    ------
    SubjectError
        ``no-text-tower``: words without images, and the foundation model cannot read.
    DataError
        An example image cannot be read, or its box lies outside.
    """
    progress = progress or SilentProgress()
    if vocabulary.read and not has_text_tower(atlas.plan):
        raise SubjectError(
            "no-text-tower",
            f"The foundation model {atlas.evidence.foundation['name']} cannot read, and {vocabulary.read:,} words of the vocabulary "
            f"{vocabulary.name} have no example images.",
            "Use a vocabulary with example images (a table word,image,box), `--vocabulary spec` for the spec's own examples, or a "
            "foundation model of source open_clip.",
        )
    common = [VERSION, str(atlas.evidence.foundation["sha256"])]
    probing = [*common, list(atlas.plan.spec.templates), atlas.plan.audit.measurement.probe]
    words, parts, keys = vocabulary.words, [], []
    dimension = int(atlas.evidence.image_embeddings.shape[1])
    held = 4 * dimension * len(words) <= _IN_MEMORY
    texts, pictures = _TextProbes(atlas), _PictureProbes(atlas)
    spans = [(start, min(start + CHUNK, vocabulary.read)) for start in range(0, vocabulary.read, CHUNK)]
    spans += [(start, min(start + CHUNK, len(words))) for start in range(vocabulary.read, len(words), CHUNK)]
    with progress.stage("Words", len(words)) as advance:
        for start, end in spans:
            some = words[start:end]
            if start < vocabulary.read:
                key, compute = digest([*probing, list(some)]), _bound(texts, some)
            else:
                examples = [vocabulary.examples[word] for word in some]
                key, compute = digest([*common, "examples", pictures.identity(examples)]), _bound(pictures, examples)
            parts.append(_kept(cache_folder(atlas.store.path) / f"{key[:32]}.words", (len(some), dimension), compute, advance, held))
            keys.append(key)
    return EmbeddedWords(words, vocabulary.read, parts, digest([keys, list(words)]), pictures.from_data)


def _bound(probes: Callable[..., np.ndarray], items: Sequence[object]) -> Callable[[Callable[[int], object]], np.ndarray]:
    return lambda advance: probes(items, advance)


class _TextProbes:
    """Probes of words that the foundation model reads."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        self._empty: np.ndarray | None = None

    def __call__(self, words: Sequence[str], advance: Callable[[int], object]) -> np.ndarray:
        """(n, d) float32, ready to be multiplied with unit-length embeddings."""
        foundation, templates = self._atlas.foundation, self._atlas.plan.spec.templates
        if self._empty is None:
            self._empty = foundation.embed_texts(prompts(templates, [""])).astype(np.float64)
        out = np.empty((len(words), foundation.dimension), dtype=np.float32)
        for start in range(0, len(words), _FEW):
            some = list(words[start : start + _FEW])
            text = foundation.embed_texts(prompts(templates, some)).astype(np.float64).reshape(len(some), len(templates), -1)
            if self._atlas.plan.audit.measurement.probe == "template_difference":
                out[start : start + len(some)] = scores.unit(scores.template_probes(text, self._empty))
            else:
                out[start : start + len(some)] = scores.unit(text.mean(axis=1)) - scores.unit(self._empty.mean(axis=0))
            advance(len(some))
        return out


class _PictureProbes:
    """Mean embeddings of example images."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        self._digests: dict[Path, str] = {}
        self.from_data = 0

    def identity(self, examples: Sequence[Sequence[WordExample]]) -> list[list[tuple[str, object]]]:
        """Content of the images, with their boxes; counts the words whose images are among the data."""
        self.from_data += sum(any(self._digest(one) in self._data for one in some) for some in examples)
        return [[(self._digest(one), list(one.box) if one.box else None) for one in some] for some in examples]

    @cached_property
    def _data(self) -> frozenset[str]:
        return frozenset(sample.sha256 for sample in self._atlas.data.samples)

    def _digest(self, example: WordExample) -> str:
        if example.image not in self._digests:
            try:
                self._digests[example.image] = digest_file(example.image)
            except OSError as error:
                raise DataError(
                    "missing-image",
                    f"The example image {example.image} cannot be opened: {error.strerror or error}.",
                    "Paths of images are relative to the vocabulary's folder.",
                    file=example.file or None,
                    line=example.line or None,
                ) from error
        return self._digests[example.image]

    def __call__(self, examples: Sequence[Sequence[WordExample]], advance: Callable[[int], object]) -> np.ndarray:
        """(n, d) float32."""
        out = np.empty((len(examples), self._atlas.foundation.dimension), dtype=np.float32)
        for start in range(0, len(examples), _FEW):
            some = examples[start : start + _FEW]
            embedded = self._atlas.foundation.embed_images([_picture(one) for each in some for one in each])
            ends = np.cumsum([len(each) for each in some])
            for place, vectors in enumerate(np.split(embedded, ends[:-1])):
                out[start + place] = vectors.astype(np.float64).mean(axis=0)
            advance(len(some))
        return out


def _picture(example: WordExample) -> Image.Image:
    return image_part(
        example.image, example.box, name=example.image.name, hint="Mend the box: x0, y0, x1, y1 in pixels.",
        file=example.file or None, line=example.line or None,
    )  # fmt: skip


def _kept(
    path: Path, shape: tuple[int, int], compute: Callable[[Callable[[int], object]], np.ndarray],
    advance: Callable[[int], object], held: bool,
) -> Callable[[], np.ndarray]:  # fmt: skip
    """The probes kept in a file, or computed and kept there if the folder can be written; held in memory or read when asked for."""
    found = _read(path, shape)
    if found is not None:
        advance(shape[0])
    else:
        found = np.ascontiguousarray(compute(advance), dtype="<f4")
        if found.shape != shape:
            raise ValueError(f"probes of shape {found.shape} instead of {shape}")
        if not _write(path, found):
            held = True
    if held:
        return lambda: found
    return lambda: _again(path, shape)


def _again(path: Path, shape: tuple[int, int]) -> np.ndarray:
    found = _read(path, shape)
    if found is None:
        raise StoreError(
            "words-changed", "Embedded words beside the store were removed or changed while they were in use.", "Run it again.",
            file=str(path),
        )  # fmt: skip
    return found


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    values = content[32:]
    if len(values) != 4 * shape[0] * shape[1] or hashlib.sha256(path.name.encode() + values).digest() != content[:32]:
        return None
    return np.frombuffer(values, dtype="<f4").reshape(shape)


def _write(path: Path, values: np.ndarray) -> bool:
    raw = values.tobytes()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(hashlib.sha256(path.name.encode() + raw).digest() + raw)
        os.replace(temporary, path)
    except OSError:  # a folder that cannot be written: words are embedded again the next time
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True
