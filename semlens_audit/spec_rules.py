"""What must hold inside one spec beyond its shape.

The rules read the plain values, not the validated model, so that a misspelt key in one place does not hide a mistake
in another.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import PurePosixPath
from typing import Any, get_args

from semlens_audit.plan import CheckKind, Role
from semlens_audit.spec_shape import nearest
from semlens_audit.yaml_source import KeyPath, Source

__all__ = ["check_spec", "mappings", "texts"]

_SHARE = ("a share of relevance", 0.0, 1.0)
_DIFFERENCE = ("a difference of two shares", 0.0, 1.0)
_RULES: dict[str, tuple[str, tuple[str, float, float]]] = {
    "spurious_reliance": ("at_most", _SHARE),
    "valid_reliance": ("at_least", _SHARE),
    "unexplained_relevance": ("at_most", _SHARE),
    "concept_used": ("at_least", _SHARE),
    "concept_not_used": ("at_most", _SHARE),
    "behavioural_effect": ("at_most", ("an effect in logits", 0.0, float("inf"))),
    "clarity": ("at_least", ("a cosine", -1.0, 1.0)),
    "polysemanticity": ("at_most", ("1 minus a cosine of 0 or more", 0.0, 1.0)),
    "redundancy": ("at_most", ("a cosine", -1.0, 1.0)),
    "subgroup_gap": ("at_most", _DIFFERENCE),
    "concept_presence": ("at_most", _DIFFERENCE),
    "pair_effect": ("at_most", ("an effect in logits", 0.0, float("inf"))),
}
"""kind -> the bound it takes and (what the quantity is, least value, greatest value)."""
_NEEDS_CONCEPTS = {"concept_used", "concept_not_used", "behavioural_effect", "pair_effect"}
_WITHOUT_CONCEPTS = {"clarity", "polysemanticity", "redundancy", "unexplained_relevance"}
_ROLES_OF: dict[str, tuple[str, ...]] = {
    "spurious_reliance": ("spurious",),
    "valid_reliance": ("valid",),
    "concept_used": ("valid", "neutral"),
    "concept_not_used": ("spurious", "neutral"),
    "behavioural_effect": ("spurious", "neutral"),
    "subgroup_gap": ("spurious", "neutral"),
    "concept_presence": ("spurious", "neutral"),
    "pair_effect": ("spurious", "neutral"),
}
"""kind -> roles that the concepts it names may have for its class."""
_WITHOUT_LAYERS = {
    "behavioural_effect": "a behavioural effect is measured at the output, not in a layer.",
    "subgroup_gap": "a subgroup gap is measured at the output, not in a layer.",
    "concept_presence": "the presence of a concept is counted in the test data, not in a layer.",
    "pair_effect": "a pair effect is measured at the output, not in a layer.",
}
"""kind -> why it takes no layers."""


def check_spec(source: Source) -> None:
    """Add to ``source.problems`` every rule that the spec breaks."""
    data = source.data
    if not isinstance(data, dict):
        return
    _duplicates(source, "concepts", "concept")
    _duplicates(source, "checks", "check")
    _templates(source)
    classes = list(data["classes"]) if isinstance(data.get("classes"), dict) else []
    roles = {
        text: entry for _, entry in mappings(data, "concepts") if (text := entry.get("id")) and isinstance(text, str)
    }
    for index, concept in mappings(data, "concepts"):
        _concept(source, ("concepts", index), concept, classes)
    for index, check in mappings(data, "checks"):
        _check(source, ("checks", index), check, classes, roles)


def mappings(data: Any, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The entries of the list ``data[key]`` that are mappings, with their index."""
    entries = data.get(key) if isinstance(data, dict) else None
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, dict):
            yield index, entry


def texts(data: Any, key: str) -> list[tuple[int, str]]:
    """The entries of the list ``data[key]`` that are text, with their index."""
    entries = data.get(key) if isinstance(data, dict) else None
    return [
        (index, entry)
        for index, entry in enumerate(entries if isinstance(entries, list) else [])
        if isinstance(entry, str)
    ]


def _duplicates(source: Source, key: str, word: str) -> None:
    first: dict[str, int] = {}
    for index, entry in mappings(source.data, key):
        identifier = entry.get("id")
        if not isinstance(identifier, str):
            continue
        path: KeyPath = (key, index, "id")
        if identifier in first:
            line = source.places.value((key, first[identifier], "id"))[0]
            source.complain(
                "duplicate-id",
                path,
                f"the {word} id `{identifier}` is taken on line {line}.",
                "Give each its own id.",
            )
        first.setdefault(identifier, index)


def _templates(source: Source) -> None:
    for index, template in texts(source.data, "templates"):
        if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
            source.complain(
                "bad-template",
                ("templates", index),
                f"the template `{template}` must hold `{{}}` exactly once.",
                "The description takes its place: `a photo of {}`.",
            )
    if source.data.get("templates") == []:
        source.complain("empty-value", ("templates",), "`templates` is empty.", "Leave the key out for the default.")


def _concept(source: Source, at: KeyPath, concept: dict[str, Any], classes: list[str]) -> None:
    name = concept.get("id", f"number {int(at[1]) + 1}")
    if not concept.get("descriptions") and not concept.get("examples"):
        source.complain(
            "empty-concept",
            at,
            f"concept '{name}' has neither descriptions nor examples.",
            "Describe in `descriptions:` what is seen, or give example images in `examples:`.",
        )
    for index, description in texts(concept, "descriptions"):
        if description and not description.strip():
            source.complain(
                "empty-value",
                (*at, "descriptions", index),
                f"concept '{name}': a description is blank.",
                "Write a text.",
            )
    exceptions = concept.get("roles")
    for key in exceptions if isinstance(exceptions, dict) else ():
        if key not in classes:
            source.complain(
                "unknown-class",
                (*at, "roles", key),
                f"concept '{name}': `{key}` is no class of this spec.",
                nearest(key, classes),
                at_key=True,
            )
    for index, example in mappings(concept, "examples"):
        _example(source, (*at, "examples", index), example, str(name))


def _example(source: Source, at: KeyPath, example: dict[str, Any], name: str) -> None:
    image = example.get("image")
    if isinstance(image, str) and image:
        posix = PurePosixPath(image.replace("\\", "/"))
        if posix.is_absolute() or ".." in posix.parts or image[1:2] == ":" or "${" in image:
            source.complain(
                "example-path",
                (*at, "image"),
                f"concept '{name}': the example `{image}` must be a path inside `examples_root`.",
                "Write it relative, without `..`; the audit's `examples_root` says where the images lie.",
            )
    box = example.get("box")
    if isinstance(box, list) and len(box) == 4 and all(type(side) is int for side in box):
        x0, y0, x1, y1 = box
        if x0 < 0 or y0 < 0 or x1 <= x0 or y1 <= y0:
            source.complain(
                "bad-box",
                (*at, "box"),
                f"concept '{name}': the box {box} is empty or negative.",
                "Write x0, y0, x1, y1 in pixels from the top left corner, with x0 < x1 and y0 < y1.",
            )


def _check(
    source: Source, at: KeyPath, check: dict[str, Any], classes: list[str], concepts: dict[str, dict[str, Any]]
) -> None:
    name, kind, wanted = check.get("id", f"number {int(at[1]) + 1}"), check.get("kind"), check.get("class")
    kind = kind if kind in get_args(CheckKind) else None
    if isinstance(wanted, str) and classes and wanted not in classes:
        source.complain(
            "unknown-class",
            (*at, "class"),
            f"check '{name}': `{wanted}` is no class of this spec.",
            nearest(wanted, classes),
        )
    if isinstance(check.get("rationale"), str) and check["rationale"] and len(check["rationale"].split()) < 3:
        source.complain(
            "missing-rationale",
            (*at, "rationale"),
            f"check '{name}': `{check['rationale']}` is no rationale.",
            "Say why this threshold, and not another, is right for the intended purpose.",
        )
    _criterion(source, (*at, "criterion"), check.get("criterion"), f"check '{name}'", kind)
    _check_concepts(source, at, check, str(name), kind, concepts)
    if kind in _WITHOUT_LAYERS and check.get("layers"):
        source.complain(
            "layers-not-used",
            (*at, "layers"),
            f"check '{name}': {_WITHOUT_LAYERS[kind]}",
            "Leave `layers` out.",
            at_key=True,
        )


def _criterion(source: Source, at: KeyPath, criterion: Any, owner: str, kind: str | None) -> None:
    if not isinstance(criterion, dict):
        return
    bounds = {key: criterion[key] for key in ("at_most", "at_least") if criterion.get(key) is not None}
    wanted, (quantity, low, high) = _RULES[kind] if kind else ("at_most", ("", float("-inf"), float("inf")))
    if not bounds:
        example = f"{{{wanted}: 0.25}}"
        source.complain(
            "missing-bound", at, f"{owner}: the criterion has no bound.", f"Write `criterion: {example}`."
        )
    if len(bounds) == 2:
        source.complain(
            "two-bounds",
            at,
            f"{owner}: the criterion has two bounds.",
            "Keep one, and write a second check for the other.",
        )
        return
    for key, value in bounds.items():
        if kind is None or isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            continue
        if key != wanted:
            source.complain(
                "wrong-bound",
                (*at, key),
                f"{owner}: `{kind}` takes `{wanted}`, not `{key}`.",
                f"Write `{wanted}: {value}`.",
                at_key=True,
            )
        elif not low <= value <= high:
            limit = f"between {low:g} and {high:g}" if high < float("inf") else f"{low:g} or more"
            source.complain("threshold-range", (*at, key), f"{owner}: {value} is not {quantity}, which is {limit}.")
        elif value == (high if wanted == "at_most" else low):
            source.complain(
                "threshold-cannot-fail",
                (*at, key),
                f"{owner}: with `{key}: {value}` the check can never fail.",
                "Write a threshold that decides.",
            )


def _check_concepts(
    source: Source,
    at: KeyPath,
    check: dict[str, Any],
    name: str,
    kind: str | None,
    concepts: dict[str, dict[str, Any]],
) -> None:
    """The concepts that a check names: defined, wanted by its kind, and of a role that its kind can speak of."""
    named = texts(check, "concepts")
    for position, (index, concept) in enumerate(named):
        if concept not in concepts:
            source.complain(
                "undefined-concept",
                (*at, "concepts", index),
                f"check '{name}': the concept `{concept}` is not defined.",
                nearest(concept, concepts),
            )
        elif concept in (other for _, other in named[:position]):
            source.complain(
                "duplicate-id", (*at, "concepts", index), f"check '{name}': names `{concept}` twice.", "Keep one."
            )
    if kind is None:
        return
    if kind in _NEEDS_CONCEPTS and not check.get("concepts"):
        source.complain(
            "missing-concepts",
            at,
            f"check '{name}': `{kind}` needs `concepts`.",
            f"Name at least one: {nearest('', concepts)}",
        )
    if kind in _WITHOUT_CONCEPTS and check.get("concepts"):
        source.complain(
            "concepts-not-used",
            (*at, "concepts"),
            f"check '{name}': `{kind}` looks at the whole layer, not at named concepts.",
            "Leave `concepts` out.",
            at_key=True,
        )
    allowed = _ROLES_OF.get(kind)
    if allowed is None:
        return
    known = [
        (path, concept, _role(concepts[concept], check.get("class")))
        for path, concept in named
        if concept in concepts
    ]
    for index, concept, role in known:
        if role in get_args(Role) and role not in allowed:
            source.complain(
                "role-mismatch",
                (*at, "concepts", index),
                f"check '{name}': `{kind}` cannot be asked of `{concept}`, which is {role} for this class.",
                f"It speaks of concepts that are {' or '.join(allowed)}; change the check's kind or the concept's role.",
            )
    if check.get("concepts") or kind in _NEEDS_CONCEPTS or not isinstance(check.get("class"), str):
        return
    roles = [_role(entry, check["class"]) for entry in concepts.values()]
    # A misspelt role has been complained about, and may be the one that is missed here.
    if not any(role in allowed or role not in get_args(Role) for role in roles):
        source.complain(
            "missing-concepts",
            at,
            f"check '{name}': no concept of this spec is {allowed[0]} for this class.",
            f"Define a concept with `role: {allowed[0]}`, or leave the check out.",
        )


def _role(concept: dict[str, Any], class_name: Any) -> Any:
    """Role of a raw concept for a class."""
    exceptions = concept.get("roles")
    if isinstance(exceptions, dict) and isinstance(class_name, str) and class_name in exceptions:
        return exceptions[class_name]
    return concept.get("role")
