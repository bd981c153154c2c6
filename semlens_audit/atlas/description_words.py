"""What is said of a description, on a terminal and on a page alike."""

from __future__ import annotations

from collections.abc import Mapping

from semlens_audit.atlas.description import Described, Group, LayerDescription
from semlens_audit.wording import NARROW, count, format_measured, format_number, format_share, join

__all__ = ["direction", "group_name", "likeness_text", "meaning", "percent", "sentences", "shown_groups"]


def percent(share: float) -> str:
    """``12.3 %``, and ``0.04 %`` below a thousandth."""
    return format_share(share)


def shown_groups(found: LayerDescription, top: int) -> tuple[list[Group], list[Group]]:
    """The groups that are shown, and those left out: the first `top`, and in any case what nothing is said of."""
    shown = [group for place, group in enumerate(found.groups) if place < top or group.kind == "unclear"]
    return shown, [group for group in found.groups if group not in shown]


def direction(signed: float, class_name: str) -> str:
    """Whether components speak for a class: ``for melanoma``, ``mostly against melanoma``, ``both for and against melanoma``."""
    if abs(signed) < 0.2:
        return f"both for and against {class_name}"
    return f"{'' if abs(signed) >= 0.8 else 'mostly '}{'for' if signed > 0 else 'against'} {class_name}"


def group_name(group: Group) -> str:
    """What a group is called: ``ruler (spurious)``, ``“pigment network”``, ``nameless, like component 12``."""
    if group.kind == "concept":
        return f"{group.name} ({group.role})"
    if group.kind == "label":
        return f"“{group.name}”"
    if group.kind == "alike":
        return f"nameless, {group.name}" if len(group.components) > 1 else f"nameless, component {group.components[0]}"
    return "nameless, with nothing in common"


def meaning(one: Described, titles: Mapping[str, str]) -> str:
    """What a component means: its concept (`titles` by id), its label, or why it has none."""
    if one.concept is not None:
        return titles.get(one.concept, one.concept)
    if one.label is not None:
        return f"“{one.label.word}”"
    return "nameless" if one.clear else "nameless, unclear"


def sentences(found: LayerDescription, class_name: str, *, run: bool) -> tuple[str, ...]:
    """What the layer comes to, in sentences.

    Parameters
    ----------
    found
        The layer.
    class_name
        Whose relevance it is.
    run
        Whether a run has assigned concepts.
    """
    if not found.carriers:
        return (f"No relevance for {class_name} flows through {found.layer}.",)
    carried = join([f"{number:,} carry {100 * part:.0f}{NARROW}%" for part, number in found.carriers])
    said = [
        f"Of {count(found.components, 'component')} of {found.layer}, {carried} of the relevance for {class_name}"
        f" ({count(found.samples, 'sample')})."
    ]
    if found.grouped_share < 0.949:
        said.append(f"Grouped are the {found.grouped:,} most relevant ones, which carry {percent(found.grouped_share)}.")
    if not run:
        said.append("No run of this spec and audit has assigned concepts yet: `semlens-audit run` says what is explained.")
    elif found.unexplained is not None:
        if found.unexplained.value is None:
            said.append(f"How much is unexplained was not measured: {found.unexplained.not_measured}.")
        else:
            said.append(f"No concept of the spec explains {format_measured(found.unexplained)} of it.")
        said.append(
            "Below, a component counts wholly for the concept that it means most. The checks divide it among all that it means: their "
            "shares differ from these, and they decide."
        )
    nameless = [group for group in found.groups if group.kind == "alike"]
    unclear = next((group for group in found.groups if group.kind == "unclear"), None)
    if nameless:
        several = [group for group in nameless if len(group.components) > 1]
        share = percent(sum(group.share for group in nameless))
        alike = f", {count(len(several), 'group')} of which look alike" if several else ""
        number = count(sum(len(group.components) for group in nameless), "component")
        said.append(f"{share} flows through {number} without a name whose crops have something in common{alike}.")
    if unclear is not None:
        number = count(len(unclear.components), "component")
        said.append(f"{percent(unclear.share)} flows through {number} whose crops are no more alike than random ones: no one concept fits.")
    return tuple(said)


def likeness_text(group: Group) -> str:
    """Mean cosine within a group, or a dash."""
    return "–" if group.likeness is None else format_number(group.likeness, 2)
