"""Draft of the missing lines of a spec: concepts for what carries relevance and no concept explains. Their roles are the expert's.

A group of `semlens_audit.atlas.description` becomes a concept: one with a significant label by that word, where the foundation model
reads; any other by example images, the crops of its components. Such examples say what the components respond to and not what it is:
the components will align with them whatever they show. The role is written as `UNDECIDED`, which `semlens-audit lint` refuses.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semlens_audit.atlas.description import Described, Description, Group, LayerDescription
from semlens_audit.atlas.description_words import direction, percent
from semlens_audit.atlas.image_boxes import image_box
from semlens_audit.atlas.opening import Atlas
from semlens_audit.errors import UsageError
from semlens_audit.images import read_image
from semlens_audit.paths import examples_root
from semlens_audit.plain_text import find_hidden, one_line
from semlens_audit.plan import Example
from semlens_audit.wording import count, format_number, join

__all__ = ["UNDECIDED", "DraftedConcept", "draft_concepts", "draft_values", "entries"]

VERSION = 1
"""Of the shape of `draft_values`."""

UNDECIDED = "undecided"
"""What stands for a role that nobody has given yet; no role of that name exists."""

_WIDTH = 118
_LONGEST_ID = 56


@dataclass(frozen=True)
class DraftedConcept:
    """A proposed concept.

    Parameters
    ----------
    id
        New in the spec.
    title
        Its label; ``None``: nothing says what it is.
    layer, components
        Where it comes from, most relevant first.
    share, signed
        Of the class's relevance, see `semlens_audit.atlas.description.Group`.
    clarity
        Lowest and highest of its components.
    likeness
        See `semlens_audit.atlas.description.Group`.
    descriptions, examples
        What defines it. Both empty where the foundation model cannot be told by either: then it has to be described by hand.
    """

    id: str
    title: str | None
    layer: str
    components: tuple[int, ...]
    share: float
    signed: float
    clarity: tuple[float, float] | None
    likeness: float | None
    descriptions: tuple[str, ...]
    examples: tuple[Example, ...]


def draft_concepts(atlas: Atlas, found: Description, *, top: int = 5, examples: int = 10) -> tuple[DraftedConcept, ...]:
    """Concepts for the groups that carry most of what no concept of the spec explains.

    Components whose crops have nothing in common are left out: no one concept fits them.

    Parameters
    ----------
    atlas
        The opened index.
    found
        What the class rests on, with the concepts of a run.
    top
        Most concepts, over all layers of `found`.
    examples
        Most example images of a concept: reference samples of its components in turn, no two of one independent unit.

    Raises
    ------
    UsageError
        ``no-run``: no run has told what is explained; ``nothing-to-draft``; ``examples-elsewhere``: the test data does not lie in the
        audit's `examples_root`.
    """
    if found.run is None:
        raise UsageError(
            "no-run",
            "No run of this very spec, audit and index has told what is explained.",
            "Run `semlens-audit run` with the audit first; what was written elsewhere with --out is not looked for.",
        )
    groups = [(layer, group) for layer in found.layers for group in layer.groups if group.kind in ("label", "alike")]
    groups.sort(key=lambda one: -one[1].share)
    if not groups:
        unclear = sum(group.share for layer in found.layers for group in layer.groups if group.kind == "unclear")
        raise UsageError(
            "nothing-to-draft",
            f"No component that carries relevance for {found.class_name} is unexplained and has crops with something in common"
            f" ({percent(unclear)} flows through components without anything in common).",
            "Look at them with `semlens-audit describe`.",
        )
    taken = {concept.id for concept in atlas.plan.spec.concepts}
    made = []
    for layer, group in groups[:top]:
        made.append(_concept(atlas, layer, group, taken, examples))
        taken.add(made[-1].id)
    return tuple(made)


def draft_values(concepts: Sequence[DraftedConcept], found: Description) -> dict[str, Any]:
    """A draft as JSON-ready values: ``{"document": "concept-draft", "version": 1, ...}``, each concept with its YAML."""
    values = [{**asdict(one), "examples": [example.model_dump(mode="json") for example in one.examples]} for one in concepts]
    for value, one in zip(values, concepts, strict=True):
        value["yaml"] = entries([one], found)
    return {"document": "concept-draft", "version": VERSION, "audit": found.audit, "class_name": found.class_name, "concepts": values}


def entries(concepts: Iterable[DraftedConcept], found: Description, indent: int = 2) -> str:
    """Concepts as YAML: items of the list ``concepts:`` of a spec, with `UNDECIDED` as the role of each.

    Parameters
    ----------
    indent
        Spaces before the dash of an item.
    """
    parts = []
    for one in concepts:
        lines = [f"# {line}" for line in _wrapped(_comment(one, found), _WIDTH - indent)]
        lines += [f"- id: {one.id}", f"  title: {_text(one.title)}" if one.title else "  # title: what the crops show, in a few words"]
        lines.append(f"  role: {UNDECIDED}  # valid, spurious or neutral: people decide")
        if one.descriptions:
            lines += ["  descriptions:", *(f"    - {_text(text)}" for text in one.descriptions)]
        else:
            lines += ["  # descriptions:", '  #   - "..."']
        if one.examples:
            lines += ["  examples:", *(f"    - {_example(example)}" for example in one.examples)]
        lines.append("  # source: who says that a decision may, or must not, rest on it?")
        parts.append("".join(" " * indent + line + "\n" for line in lines))
    return "\n".join(parts)


def _comment(one: DraftedConcept, found: Description) -> str:
    members = join([str(number) for number in one.components[:8]])
    if len(one.components) > 8:
        members = ", ".join(str(number) for number in one.components[:8]) + f" and {len(one.components) - 8:,} more"
    named = "component" if len(one.components) == 1 else "components"
    said = [
        f"Drafted from {named} {members} of {one.layer}: {percent(one.share)} of the relevance for {found.class_name}, which no concept"
        f" of the spec explained; {'it speaks' if len(one.components) == 1 else 'they speak'} {direction(one.signed, found.class_name)}."
    ]
    if one.clarity is not None:
        low, high = (format_number(value, 2) for value in one.clarity)
        said.append(f"Clarity {low}" + (f" to {high}" if high != low else "") + ("" if one.likeness is None else ",")
                    + ("" if one.likeness is None else f" likeness {format_number(one.likeness, 2)}") + ".")  # fmt: skip
    if one.examples:
        said.append(
            f"Defined by {count(len(one.examples), 'crop')} of their own, so that they align with it whatever it is: say what the crops"
            " show, and take out those that do not show it. Other components may align with it too."
        )
    elif not one.descriptions:
        said.append("Describe in words what the crops of `semlens-audit describe` show.")
    else:
        said.append("The word is the nearest of the vocabulary: look at the crops, and describe what they show in several ways.")
    return one_line(" ".join(said))


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _text(text: str) -> str:
    """A quoted scalar that every YAML reader takes for this very text; what would not be seen is written out."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(one if one.isprintable() and find_hidden(one) is None else f"\\U{ord(one):08x}" for one in quoted)


def _example(example: Example) -> str:
    box = "" if example.box is None else f", box: [{', '.join(map(str, example.box))}]"
    return f"{{image: {_text(example.image)}{box}}}"


def _concept(atlas: Atlas, layer: LayerDescription, group: Group, taken: set[str], examples: int) -> DraftedConcept:
    members = [layer.component(number) for number in group.components]
    reads = bool(atlas.evidence.foundation["text"])
    labelled = group.kind == "label"
    pictured = () if labelled and reads else _examples(atlas, layer.layer, members, examples)
    clarity = [one.clarity for one in members if one.clarity is not None]
    return DraftedConcept(
        id=_identifier(group.name if labelled else f"{layer.layer}-c{group.components[0]}", taken),
        title=group.name[:120] if labelled else None,
        layer=layer.layer,
        components=group.components,
        share=group.share,
        signed=group.signed,
        clarity=(min(clarity), max(clarity)) if clarity else None,
        likeness=group.likeness,
        descriptions=(group.name,) if labelled and reads else (),
        examples=pictured,
    )


def _identifier(text: str, taken: set[str]) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_LONGEST_ID].strip("-") or "concept"
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def _examples(atlas: Atlas, layer: str, members: Sequence[Described], wanted: int) -> tuple[Example, ...]:
    """Reference samples of the components in turn, highest rank first, no two of one unit; none where the images are rendered."""
    if atlas.plan.audit.data.rendered:
        return ()
    source, units = atlas.layers[layer], atlas.evidence.units
    chosen: dict[int, tuple[int, tuple[int, ...]]] = {}
    for rank in range(source.reference_ids.shape[1]):
        for one in members:
            sample = int(source.reference_ids[one.component, rank])
            if sample >= 0 and len(chosen) < wanted:
                chosen.setdefault(int(units[sample]), (sample, tuple(source.boxes[one.component, rank].tolist())))
    root = examples_root(atlas.plan)
    return tuple(_example_of(atlas, root, sample, box) for sample, box in chosen.values())


def _example_of(atlas: Atlas, root: Path, sample: int, box: tuple[int, ...]) -> Example:
    path = atlas.data.file(atlas.data.samples[sample])
    try:
        image = path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError as error:
        raise UsageError(
            "examples-elsewhere",
            f"The test data ({atlas.data.root}) does not lie in the folder of example images, so that a spec cannot name its images.",
            f"Set `examples_root` in the audit to a folder that holds both (now {root}).",
            file=atlas.plan.audit_file,
        ) from error
    x0, y0, x1, y1 = box
    return Example(image=image, box=image_box((x0, y0, x1, y1), read_image(path).size, atlas.plan.audit.subject.preprocessing))
