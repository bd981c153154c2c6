"""A spec with concepts added to its text: what people wrote there, comments included, stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from semlens_audit.errors import UsageError
from semlens_audit.yaml_source import parse

__all__ = ["with_concepts"]


def with_concepts(text: str, file: str, make: Callable[[int], str]) -> str:
    """The text of a spec with more items at the end of its list of concepts.

    Parameters
    ----------
    text
        A spec that was read without problems.
    file
        Its path, for complaints.
    make
        Gives the items as YAML for a number of spaces before their dashes, see `semlens_audit.atlas.draft.entries`.

    Returns
    -------
    str
        Read again, it says what it said before and the new concepts: that is checked.

    Raises
    ------
    UsageError
        ``no-block-list``: the list of concepts is written in brackets, as in JSON.
    """
    listed = _concepts(text)
    if not isinstance(listed, SequenceNode) or listed.flow_style or not listed.value:
        raise _not_a_list(file)
    indent = int(listed.start_mark.column)
    lines = text.splitlines(keepends=True)
    place = _line_after(listed.value[-1])
    while place > 0 and not lines[place - 1].strip():
        place -= 1
    before = lines[:place]
    if before and not before[-1].endswith("\n"):
        before[-1] += "\n"
    made = "".join(before) + "\n" + make(indent) + "".join(lines[place:])
    old, new, added = (parse(part.encode("utf-8"), file).data for part in (text, made, make(0)))
    if not isinstance(new, dict) or new != {**old, "concepts": [*old["concepts"], *added]}:
        raise _not_a_list(file)
    return made


def _concepts(text: str) -> Any:
    root = YAML(typ="safe", pure=True).compose(text)
    if not isinstance(root, MappingNode):
        return None
    return next((value for key, value in root.value if isinstance(key, ScalarNode) and key.value == "concepts"), None)


def _line_after(node: Node) -> int:
    """Index of the first line after the last thing that the node holds; the end of a block collection lies beyond comments."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        return _line_after(node.value[-1][1])
    if isinstance(node, SequenceNode) and not node.flow_style and node.value:
        return _line_after(node.value[-1])
    return int(node.end_mark.line) + (1 if node.end_mark.column > 0 else 0)


def _not_a_list(file: str) -> UsageError:
    return UsageError(
        "no-block-list",
        "The list `concepts` is not written with a dash for each concept, so that nothing can be added to its text.",
        "Write it with dashes, or leave --out away and copy the printed concepts.",
        file=file,
    )
