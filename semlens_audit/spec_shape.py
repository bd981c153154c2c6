"""The shape of a file against its pydantic model, each complaint as a plain sentence at its line and column."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from semlens_audit.errors import Problem
from semlens_audit.plan import Audit, Catalogue, Spec
from semlens_audit.yaml_source import MAX_PROBLEMS, KeyPath, Source

__all__ = ["nearest", "schemas", "validate"]

Model = TypeVar("Model", bound=BaseModel)

_UNION_MARKS = {"tuple[str, ...]", "str"}
_IDENTIFIER_HINT = "Use lower-case letters, digits, `_` and `-`, beginning with a letter or digit."
_LONG = 100
_MANY = 1000
_WHAT = {"concepts": "concept", "checks": "check", "waivers": "waiver"}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the nearest of `known`, or all of them where none is near."""
    names = [str(other) for other in known]
    folded = {other.casefold(): other for other in reversed(names) if len(other) <= _LONG}
    # finding what is near takes the product of both lengths for each name
    close = difflib.get_close_matches(name.casefold(), list(folded)[:_MANY], n=1, cutoff=0.6) if len(name) <= _LONG else []
    if close:
        return f"Did you mean `{folded[close[0]]}`?"
    listed = ", ".join(f"`{_show(other)}`" for other in names[:12])
    return f"There are: {listed}{', ...' if len(names) > 12 else ''}." if names else ""


def validate(model: type[Model], source: Source) -> Model | None:
    """Validate a file's value; complaints go to ``source.problems``.

    Parameters
    ----------
    model
        What the file holds: `Spec`, `Audit`, `Catalogue`.
    source
        The file as read. Its value must be there.

    Returns
    -------
    Model or None
        The validated value, or ``None`` where it does not fit.
    """
    if not isinstance(source.data, dict):
        source.complain(
            "wrong-type",
            (),
            f"the file must be a mapping (`key: value`), not {_kind(source.data)}.",
            "Start from `semlens-audit init`.",
        )
        return None
    try:
        # Strict JSON validation: lists become tuples, but no text becomes a number and no number becomes text.
        return model.model_validate_json(json.dumps(source.data), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        for problem in _problems(model, source, error):
            source.add(problem)
        return None


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (draft 2020-12) of the kinds of file: ``{"spec": ..., "audit": ..., "catalogue": ...}``."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in (("spec", Spec), ("audit", Audit), ("catalogue", Catalogue)):
        schema: dict[str, Any] = model.model_json_schema(by_alias=True)
        found[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return found


def _problems(model: type[BaseModel], source: Source, error: ValidationError) -> list[Problem]:
    found: dict[tuple[KeyPath, str], Problem] = {}
    for detail in error.errors(include_url=False):
        if len(found) > MAX_PROBLEMS:
            break
        path = _path(source.data, detail["loc"])
        if path is None or (detail["type"] == "too_short" and _at(source.data, path)):
            continue  # a list is also "too short" where each of its entries is wrong, which is said of the entries
        problem = _translate(model, source, path, dict(detail))
        found.setdefault((path, problem.slug), problem)
    return list(found.values())


def _path(data: Any, loc: tuple[str | int, ...]) -> KeyPath | None:
    """Key path of a pydantic location; ``None`` for the branch of a union that the value was not meant for."""
    mark = next((part for part in loc if part in _UNION_MARKS), None)
    if mark is not None:
        at = loc.index(mark)
        value = _at(data, loc[:at])
        if isinstance(value, list) != (mark != "str"):
            return None
        loc = loc[:at] + loc[at + 1 :]
    return tuple(part for part in loc if part != "[key]")


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        if isinstance(data, dict) and isinstance(part, str):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _translate(model: type[BaseModel], source: Source, path: KeyPath, detail: dict[str, Any]) -> Problem:
    kind, context, value = str(detail["type"]), detail.get("ctx", {}), _at(source.data, path)
    owner = _owner(source.data, path)
    name = str(path[-1]) if path and isinstance(path[-1], str) else "entry"
    add = source.places.problem
    if kind == "extra_forbidden":
        return add(
            "unknown-key", path, f"{owner}unknown key `{name}`.", nearest(name, _keys(model, path[:-1])), at_key=True
        )
    if kind == "missing" and isinstance(path[-1], int):
        length = len(_at(source.data, path[:-1]) or ())
        wanted = 4 if path[-2] == "box" else 3
        return add("wrong-length", path[:-1], f"{owner}`{path[-2]}` has {length} numbers, not {wanted}.")
    if kind == "missing":
        return _missing(source, path, owner, name)
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        field = next((part for part in reversed(path) if isinstance(part, str)), name)
        field = "role" if "roles" in path else field
        slug = f"unknown-{field}" if field in ("role", "kind", "severity", "source") else "unknown-value"
        listed = ", ".join(f"`{other}`" for other in allowed)
        guess = nearest(str(value), allowed) if isinstance(value, str) else ""
        hint = f"{guess} Allowed: {listed}." if guess.startswith("Did") else f"Allowed: {listed}."
        return add(slug, path, f"{owner}`{_show(value)}` is no {field} that exists.", hint)
    if kind == "string_pattern_mismatch":
        return add("bad-id", path, f"{owner}`{_show(value)}` cannot be used as an id.", _IDENTIFIER_HINT)
    return _value_problem(
        source, path, kind, context, f"{owner}`{name}`" if name != "entry" else f"{owner}the entry", value
    )


def _missing(source: Source, path: KeyPath, owner: str, name: str) -> Problem:
    if name == "rationale" and path[0] == "checks":
        return source.places.problem(
            "missing-rationale",
            path,
            f"{owner}no rationale.",
            "Say in `rationale:` why this threshold, and not another, is right for the intended purpose.",
        )
    hints = {
        "criterion": "Write `criterion: {at_most: 0.25}` or `criterion: {at_least: 0.1}`.",
        "statement": "Say in one sentence what is required of the model.",
        "role": "Say whether a decision may rest on it: `valid`, `spurious` or `neutral`.",
    }
    return source.places.problem(
        "missing-key", path, f"{owner}the key `{name}` is missing.", hints.get(name, f"Add `{name}:`.")
    )


def _value_problem(
    source: Source, path: KeyPath, kind: str, context: dict[str, Any], what: str, value: Any
) -> Problem:
    """A complaint about the type, length or range of the value at `path`."""
    add = source.places.problem
    if "type" in kind and value is None:
        return add("wrong-type", path, f"{what} is empty.", "Write a value, or leave the key out.")
    wanted = {
        "string_type": "text",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "tuple_type": "a list",
        "list_type": "a list",
        "dict_type": "a mapping (`key: value`)",
        "model_type": "a mapping (`key: value`)",
        "model_attributes_type": "a mapping (`key: value`)",
        "int_parsing_size": "a smaller number",
    }.get(kind)
    if wanted is not None:
        if path[-1:] == ("classes",) and kind == "string_type":
            wanted = "a list of names, or the path of a JSON list"
        hint = f'Put it in quotes: "{value}".' if wanted == "text" and isinstance(value, bool | int | float) else ""
        if wanted == "a list" and isinstance(value, str):
            hint = f"Write `[{_show(value)}]`, or one `- ...` per line."
        return add("wrong-type", path, f"{what} must be {wanted}, not {_kind(value)}.", hint)
    if kind == "finite_number":
        return add("out-of-range", path, f"{what} must be a finite number.")
    if kind in ("too_short", "string_too_short"):
        return add(
            "empty-value",
            path,
            f"{what} is empty.",
            "Write at least one entry." if kind == "too_short" else "Write a text.",
        )
    if kind == "string_too_long":
        return add(
            "too-long", path, f"{what} has {len(value)} characters; at most {context.get('max_length')} are allowed."
        )
    if kind == "too_long":
        most = int(context.get("max_length") or 0)
        bound = f"at most {most} are allowed" if most > 4 else f"not {most}"
        return add("wrong-length", path, f"{what} has {len(value)} entries{';' if most > 4 else ','} {bound}.")
    words = {
        "greater_than": ("greater than", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("less than", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in words:
        word, key = words[kind]
        return add("out-of-range", path, f"{what} is {_show(value)}, but must be {word} {context.get(key)}.")
    return add("invalid-value", path, f"{what} cannot be {_show(value)}.")


def _owner(data: Any, path: KeyPath) -> str:
    """``concept 'ruler': `` and the like, for the beginning of a sentence."""
    if len(path) >= 2 and path[0] in _WHAT and isinstance(path[1], int):
        entry = _at(data, path[:2])
        identifier = entry.get("id") if isinstance(entry, dict) else None
        word = _WHAT[str(path[0])]
        inner = "".join(f"{part}: " for part in path[2:-1] if isinstance(part, str))
        return f"{word} '{identifier}': {inner}" if isinstance(identifier, str) else f"{word} {path[1] + 1}: {inner}"
    return "".join(f"{part}: " for part in path[:-1] if isinstance(part, str))


def _keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Keys that the mapping at `path` may have."""
    annotation: Any = model
    for part in path:
        annotation = _step(annotation, part)
    found = next(
        (item for item in _flatten(annotation) if isinstance(item, type) and issubclass(item, BaseModel)), None
    )
    return [field.alias or name for name, field in found.model_fields.items()] if found is not None else []


def _flatten(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without `Annotated` and unions around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flatten(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [item for part in get_args(annotation) for item in _flatten(part)]
    return [annotation]


def _step(annotation: Any, part: str | int) -> Any:
    for item in _flatten(annotation):
        origin = get_origin(item)
        if origin is tuple and isinstance(part, int):
            return get_args(item)[0]
        if origin is dict and isinstance(part, str):
            return get_args(item)[1]
        if isinstance(item, type) and issubclass(item, BaseModel):
            for name, field in item.model_fields.items():
                if part in (name, field.alias):
                    return field.annotation
    return Literal[None]


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    for types_, word in ((str, "text"), (int | float, "a number"), (list, "a list"), (dict, "a mapping")):
        if isinstance(value, types_):
            return f"{word} ({_show(value)})" if word in ("text", "a number") else word
    return type(value).__name__


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
