"""A comparison of components in a file that someone hands over (`compare --json`): read, held against two records, condensed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from semlens_audit.atlas.compared import SCHEMA_VERSION, ComparedLayer, Comparison, LayerComparison
from semlens_audit.atlas.comparison_words import sentences
from semlens_audit.atlas.telling import REFERENCES, kinds, shown, telling
from semlens_audit.bounded import JsonLimits, LimitError, read_bytes, read_json
from semlens_audit.component_changes import MOST_LAYERS, ComponentChanges, LayerChanges, Portrait
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import AuditError, IntegrityError, UsageError
from semlens_audit.json_places import odd_number, place_of, repeated_key
from semlens_audit.picture_budget import compressed
from semlens_audit.plain_text import one_line
from semlens_audit.record_images import wrong_image
from semlens_audit.records import AuditRecord
from semlens_audit.wording import join, shorten

__all__ = ["BUDGET", "LIMITS", "Changes", "Sheet", "compared", "condense", "gather", "held_against", "read_sheet"]

LIMITS = JsonLimits(size=64_000_000, values=3_000_000, depth=20, largest=1e12)
"""What a file may have at most; that of two layers of 64 components has 0.1 MB, with pictures 0.4 MB."""
BUDGET = 240_000
"""Most bytes of all pictures of components that a record keeps of a comparison, beside those of its findings."""
_MOST_TEXT = 2_000
_FEWEST = 2
"""Reference samples of a component that are shown, at the least, where the budget asks for fewer."""


@dataclass(frozen=True)
class Sheet:
    """A comparison as it was read.

    Parameters
    ----------
    found
        What it says.
    file
        Where it is from, for the messages of errors.
    sha256
        Of its bytes.
    text
        Its text, in which places are looked up.
    """

    found: Comparison
    file: str
    sha256: str
    text: str

    def refused(self, slug: str, message: str, hint: str, path: Sequence[int | str]) -> UsageError:
        """What is said of the value at `path`, with its line and column."""
        line, column = place_of(self.text, path)
        return UsageError(slug, message, hint, file=self.file, line=line, column=column)


@dataclass(frozen=True)
class Changes:
    """What a record keeps of comparisons.

    Parameters
    ----------
    components
        What was found.
    images
        SHA-256 of each picture's file -> JPEG, base64.
    """

    components: ComponentChanges
    images: dict[str, str]


def read_sheet(path: Path) -> Sheet:
    """Read what `compare --json` wrote.

    Raises
    ------
    UsageError
        ``no-comparison``: the file cannot be read or is too large; ``comparison-version``.
    IntegrityError
        ``invalid-comparison``: it is not of that form, each complaint with its line and column.
    """
    hint = "Give a file that `semlens-audit compare OLD.yaml NEW.yaml --json` wrote."
    try:
        data = read_bytes(path, LIMITS.size)
    except OSError as error:
        said = f"The comparison cannot be read: {error.strerror}."
        raise UsageError("no-comparison", said, hint, file=str(path)) from error
    except ValueError as error:
        raise UsageError("no-comparison", f"The comparison cannot be read: {error}.", hint, file=str(path)) from error
    try:
        value = read_json(data, LIMITS)
        text = data.decode("utf-8")
    except LimitError as error:
        raise _unfit(str(error), str(path), *_where(data, error)) from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        line, column = place_of(text, ["schema_version"])
        raise UsageError(
            "comparison-version",
            f"The comparison is not of schema version {SCHEMA_VERSION}, but of version {version}.",
            "Compare again with this version of semlens-audit.",
            file=str(path), line=line, column=column,
        )  # fmt: skip
    long = next(_long(value), None)
    if long is not None:
        raise _unfit(f"{_named(long)}: a text of more than {_MOST_TEXT:,} characters", str(path), *place_of(text, long))
    try:
        found = Comparison.model_validate_json(text)
    except ValidationError as error:
        problems = [
            _unfit(f"{_named(one['loc'])}: {one['msg']}", str(path), *place_of(text, _within(one["loc"]))).problems[0]
            for one in error.errors(include_url=False)[:5]
        ]
        first = problems[0]
        raise IntegrityError(first.slug, first.message, first.hint, problems=tuple(problems)) from error
    wrong = wrong_image(found.images)
    if wrong is not None:
        raise _unfit(wrong, str(path), *place_of(text, ["images"]))
    places = ((i, j, one) for i, portrait in enumerate(found.portraits) for j, one in enumerate(portrait.references))
    absent = next(((i, j) for i, j, one in places if one.image not in found.images), None)
    if absent is not None:
        where = ("portraits", absent[0], "references", absent[1], "image")
        raise _unfit(f"{_named(where)}: there is no such image", str(path), *place_of(text, where))
    return Sheet(found, str(path), digest_bytes(data), text)


def _unfit(why: str, file: str, line: int | None, column: int | None) -> IntegrityError:
    said = f"The comparison is damaged or was changed: {one_line(why, 300)}."
    hint = "Take the file as `semlens-audit compare --json` wrote it."
    return IntegrityError("invalid-comparison", said, hint, file=file, line=line, column=column)


def _where(data: bytes, error: LimitError) -> tuple[int | None, int | None]:
    """Line and column of what is no JSON, a key that is there twice, or a number that is none, as far as it has a place."""
    cause = error.__cause__
    if isinstance(cause, JSONDecodeError):
        return cause.lineno, cause.colno
    if isinstance(cause, UnicodeDecodeError):
        before = data[: cause.start]
        return before.count(b"\n") + 1, cause.start - (before.rfind(b"\n") + 1) + 1
    if len(data) > LIMITS.size or data.count(b",") + data.count(b"[") + data.count(b"{") > LIMITS.values:
        return None, None
    text = data.decode("utf-8")
    twice = repeated_key(text) if "twice" in str(error) else None
    return (twice[1], twice[2]) if twice is not None else odd_number(text, LIMITS.largest) or (None, None)


def _within(path: Sequence[int | str]) -> Sequence[int | str]:
    """A path of pydantic as one into the document."""
    return [step for step in path if step != "[key]"]


def _named(path: Sequence[int | str]) -> str:
    return ".".join(str(step) for step in path) or "the whole"


def _long(value: Any) -> Iterator[tuple[int | str, ...]]:
    """Paths of texts that are too long for a page; pictures are none."""
    waiting: list[tuple[tuple[int | str, ...], Any]] = [((), value)]
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, str) and len(one) > _MOST_TEXT:
            yield path
        elif isinstance(one, list):
            waiting += [((*path, i), inner) for i, inner in enumerate(one)]
        elif isinstance(one, dict):
            waiting += [((*path, key), inner) for key, inner in one.items() if (*path, key) != ("images",)]


def held_against(sheet: Sheet, old: AuditRecord, new: AuditRecord) -> None:
    """Refuse a comparison that is not of the indexes that two records rest on.

    Raises
    ------
    UsageError
        ``comparison-reversed``: the second side is the baseline; ``other-comparison``: of another model, other data, another
        foundation model, another layer, or an index made otherwise; ``unknown-class``, ``unknown-concept``.
    """
    for place, layer in enumerate(sheet.found.layers):
        _require_side(sheet, place, "first", layer.first, old, new)
        _require_side(sheet, place, "second", layer.second, new, old)
        where = ("layers", place)
        for record, who in ((old, "baseline"), (new, "new record")):
            classes = {one.class_name for one in record.class_layers}
            if layer.class_name is not None and layer.class_name not in classes:
                raise sheet.refused(
                    "unknown-class",
                    f"The {who} has no class {layer.class_name!r}.",
                    f"Compare with --class and one of {join(sorted(classes))}.",
                    (*where, "class_name"),
                )
            known = {one.id for one in record.concepts}
            strange = next((name for name in _concepts(layer) if name not in known), None)
            if strange is not None:
                said = f"The {who} has no concept {strange!r}, which the comparison names."
                raise sheet.refused("unknown-concept", said, _again(old, new), (*where, "concepts"))


def compared(old: AuditRecord, new: AuditRecord, files: Sequence[Path]) -> ComponentChanges:
    """What files say of the components of two records, without pictures; raises as `read_sheet`, `held_against`, `condense`."""
    sheets = [read_sheet(path) for path in files]
    for sheet in sheets:
        held_against(sheet, old, new)
    return condense(sheets).components.model_copy(update={"portraits": ()})


def _concepts(layer: LayerComparison) -> Iterator[str]:
    yield from layer.concepts
    named = [*(one.concept for one in layer.singles), *(one.concept for one in layer.concept_shares)]
    named += [name for pair in layer.pairs for name in (pair.first_concept, pair.second_concept)]
    yield from (name for name in named if name is not None)


def _require_side(sheet: Sheet, place: int, side: str, own: ComparedLayer, record: AuditRecord, other: AuditRecord) -> None:
    who = "baseline" if side == "first" else "new record"
    before, after = (record, other) if side == "first" else (other, record)
    where = ("layers", place, side)
    differs = _different(own, record)
    if differs is None:
        return
    if _different(own, other) is None:
        raise sheet.refused(
            "comparison-reversed",
            f"The {side} side of the comparison is {'the new record' if side == 'first' else 'the baseline'}.",
            f"Name the baseline first: {_again(before, after)}",
            (*where, "audit"),
        )
    field, said = differs
    message = f"The comparison is not of the {who}: its {side} side, {own.layer} of {own.audit}, {said}."
    raise sheet.refused("other-comparison", message, _again(before, after), (*where, *field))


def _different(own: ComparedLayer, record: AuditRecord) -> tuple[tuple[str, ...], str] | None:
    """The field in which a side is another than the record's, and a clause that says so."""
    pairs = (
        ("weights_sha256", "weights", own.weights_sha256, record.subject.weights_sha256),
        ("data_sha256", "test data", own.data_sha256, record.data.sha256),
        ("foundation_sha256", "a foundation model", own.foundation_sha256, record.foundation_model.sha256),
    )
    for field, what, stated, wanted in pairs:
        if stated != wanted:
            return (field,), f"has {what} of SHA-256 {shorten(stated or 'unknown')}, and the record {shorten(wanted)}"
    held = next((one for one in record.layers if one.layer == own.layer), None)
    if held is None:
        return ("layer",), "is a layer that the record has not"
    if held.components != own.components:
        return ("components",), f"has {own.components:,} components, and the record {held.components:,}"
    stages = {name: key for name, key in record.stages.items() if ":" not in name or name.endswith(f":{own.layer}")}
    apart = sorted(name for name in stages.keys() | own.stages.keys() if stages.get(name) != own.stages.get(name))
    if apart:
        return ("stages",), f"was made from an index measured otherwise, with other settings or another version of the tool ({apart[0]})"
    return None


def _again(old: AuditRecord, new: AuditRecord) -> str:
    """How a comparison that belongs to two records is made."""
    files = [one_line(str(record.audit.detail.get("file", record.audit.name)), 200) for record in (old, new)]
    return (
        f"Run both audits with this version of semlens-audit, then `semlens-audit compare {files[0]} {files[1]} --json --pictures`, "
        "and give what it prints as a file."
    )


def condense(sheets: Sequence[Sheet]) -> Changes:
    """What a record keeps of comparisons: counts of all components, those that tell most, and their pictures within a budget.

    Parameters
    ----------
    sheets
        Of the same two records, e.g. one for each class.

    Raises
    ------
    UsageError
        ``compared-twice``: two of them are of the same layers for the same class; ``too-many-layers``.
    """
    seen: set[tuple[str, str, str | None]] = set()
    for sheet in sheets:
        for place, layer in enumerate(sheet.found.layers):
            key = (layer.first.layer, layer.second.layer, layer.class_name)
            if key in seen:
                said = f"{key[0]} and {key[1]} are compared for {layer.class_name or 'no class'} twice."
                raise sheet.refused("compared-twice", said, "Give a file for each class, each once.", ("layers", place))
            seen.add(key)
    if len(seen) > MOST_LAYERS:
        raise UsageError("too-many-layers", f"{len(seen)} layers and classes are compared.", f"Give at most {MOST_LAYERS}.")
    changes = gather([sheet.found for sheet in sheets])
    kept = changes.components.model_copy(update={"source": "files", "files": tuple(sheet.sha256 for sheet in sheets)})
    return Changes(kept, changes.images)


def gather(comparisons: Sequence[Comparison]) -> Changes:
    """`condense` of comparisons that were made from the store."""
    layers = [layer for found in comparisons for layer in found.layers]
    # in turn from each layer, so that no layer loses all its pictures to the budget
    turns = zip_longest(*(shown(telling(layer), (layer.first.layer, layer.second.layer)) for layer in layers))
    wanted = dict.fromkeys(place for turn in turns for place in turn if place is not None)
    held = {(one.side, one.layer, one.component): one for found in comparisons for one in found.portraits}
    portraits = [held[place] for place in wanted if place in held]
    images = {key: text for found in comparisons for key, text in found.images.items()}
    kept, pictures = _within_budget(portraits, images)
    components = ComponentChanges(
        source="store",
        layers=tuple(map(_condensed, layers)),
        portraits=kept,
        remarks=tuple(dict.fromkeys(remark for found in comparisons for remark in found.remarks)),
    )
    return Changes(components, pictures)


def _condensed(layer: LayerComparison) -> LayerChanges:
    every, most = kinds(layer), telling(layer)
    return LayerChanges(
        first=layer.first,
        second=layer.second,
        class_name=layer.class_name,
        paired_samples=layer.paired_samples,
        concepts=layer.concepts,
        similarities=layer.similarities,
        shares=layer.shares,
        concept_shares=layer.concept_shares,
        pairs=len(layer.pairs),
        shifted=len(every.became),
        changed=sum(pair.changed for pair in layer.pairs),
        reweighted=len(every.moved),
        learned=most.learned,
        lost=most.lost,
        became=most.became,
        moved=most.moved,
        sentences=tuple(sentences(layer)),
    )


def _within_budget(portraits: Sequence[Portrait], images: dict[str, str]) -> tuple[tuple[Portrait, ...], dict[str, str]]:
    """Portraits with pictures that weigh at most `BUDGET` bytes: compressed more strongly, then fewer of each, then of fewer."""
    try:
        for most in (REFERENCES, _FEWEST):
            cut = [one.model_copy(update={"references": one.references[:most]}) for one in portraits]
            kept, lighter = _compressed(cut, images)
            if _weight(lighter) <= BUDGET:
                return kept, lighter
        while cut and _weight(lighter) > BUDGET:
            cut = cut[: len(cut) * 3 // 4]
            kept, lighter = _compressed(cut, images)
    except OSError as error:  # a file that is a JPEG by its frame only
        raise AuditError("unreadable-picture", "A picture of a component cannot be read.", "Compare again with --pictures.") from error
    return kept, lighter


def _compressed(portraits: Sequence[Portrait], images: dict[str, str]) -> tuple[tuple[Portrait, ...], dict[str, str]]:
    used = {r.image: images[r.image] for one in portraits for r in one.references}
    keys, lighter = compressed(used, BUDGET)
    return tuple(
        one.model_copy(
            update={"references": tuple(r.model_copy(update={"image": keys.get(r.image, r.image)}) for r in one.references)}
        )
        for one in portraits
    ), dict(sorted(lighter.items()))


def _weight(images: dict[str, str]) -> int:
    return sum(len(text) * 3 // 4 for text in images.values())
