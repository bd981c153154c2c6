"""What the results of a report can be filtered and sorted by, as values that a template prints."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.measured import State

__all__ = ["Facet", "Filters", "Marks", "Option"]


@dataclass(frozen=True)
class Marks:
    """What a reader can filter and sort a result by; the values stand in ``data-`` attributes and are not read as text."""

    finding: str
    """`Finding.id`."""
    state: State
    class_name: str
    layer: str
    """Empty where the result looks at no layer."""
    concepts: str
    """Ids, parted by spaces."""
    severity: str
    line: str
    release: str
    value: str
    """Decimal number in the measurement's unit; empty where nothing was measured."""
    clearance: str
    """Distance from the criterion in half widths of the interval, negative beyond it; empty where nothing was measured."""


@dataclass(frozen=True)
class Option:
    """One value of a facet."""

    value: str
    label: str
    number: str
    """Results that have it."""


@dataclass(frozen=True)
class Facet:
    """A property that results can be filtered by."""

    name: str
    """As in the ``data-`` attribute."""
    label: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Filters:
    """Controls over the results and their evidence; a page on paper has none."""

    states: Facet
    facets: tuple[Facet, ...]
    results: str
    """How many there are, in words."""
