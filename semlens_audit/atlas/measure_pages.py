"""Interpretability measures as a page: one figure a measure, layers and models under one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semlens_audit.atlas.comparison_words import cosine
from semlens_audit.atlas.measure_figures import Dot, DotRow, Span, dots
from semlens_audit.atlas.measures import QUANTITIES, MeasureRow, MeasureTable, Quantity
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.pages import render_page, sources
from semlens_audit.figures import SCREEN, Figure
from semlens_audit.pages import Fact, Table
from semlens_audit.wording import format_number, join

__all__ = ["measures_page"]

_MEANING: dict[Quantity, str] = {
    "clarity": "How alike the crops are that drive a component: their mean pairwise cosine. 1: all show the same; what random crops "
    "reach: they have nothing more in common than any crops of these data.",
    "polysemanticity": "How far apart the two groups lie into which a component's crops fall: 1 minus the cosine of their centres. "
    "0: one meaning; towards 1: two that have nothing in common. Crops without any meaning fall apart, too: see what random crops reach.",
    "redundancy": "How similar a component is to the one most similar to it in its layer, as a cosine. 1: another says the same. Random "
    "crops all mean the same, the average of the data, and so are highly redundant.",
}  # fmt: skip


@dataclass(frozen=True)
class _Section:
    """One measure."""

    name: str
    meaning: str
    figure: Figure
    table: Table


def measures_page(atlases: Sequence[Atlas], found: MeasureTable) -> str:
    """Measures as one offline HTML file.

    Parameters
    ----------
    atlases
        The indexes they were made from, in the order of the rows.
    found
        What was measured.
    """
    made = [
        Fact(f"{fact.term}, {atlas.plan.audit.audit}" if len(atlases) > 1 else fact.term, fact.text)
        for atlas in atlases
        for fact in sources(atlas)
    ]
    weightings = list(dict.fromkeys(row.weighting for row in found.rows if row.weighting is not None))
    return render_page(
        "atlas/measures.html.j2",
        "How interpretable the components are",
        {"measure_sections": tuple(_section(found, name) for name in QUANTITIES), "remarks": found.remarks, "weighting": join(weightings)},
        sources=made,
    )


def _section(found: MeasureTable, quantity: Quantity) -> _Section:
    rows = [row for row in found.rows if row.quantity == quantity]
    places = list(dict.fromkeys((row.audit, row.layer) for row in rows))
    several = len({audit for audit, _ in places}) > 1
    drawn = []
    for place in places:
        own = [row for row in rows if (row.audit, row.layer) == place]
        marks = tuple(
            Dot(row.measurement, row.population, row.weighting is None, "ink" if row.weighting is None else "valid") for row in own
        )
        drawn.append(DotRow(" · ".join(place) if several else place[1], marks, own[0].chance))
    ends = [
        value
        for row in rows
        if row.population is not None
        for value in (row.population.low, row.population.high, *([row.chance] if row.chance is not None else []))
    ]
    alt = f"{quantity.capitalize()} with intervals: " + "; ".join(_said(row, several=several) for row in rows) + "."
    figure = dots(drawn, Span.holding("cosine", ends), SCREEN, alt)
    return _Section(quantity.capitalize(), _MEANING[quantity], figure, _table(rows, several=several))


def _said(row: MeasureRow, *, several: bool) -> str:
    where = f"{row.audit}, {row.layer}" if several else row.layer
    by = "" if row.weighting is None else f", weighted by relevance for {row.weighting}"
    return f"{where}{by} {row.measurement.not_measured or cosine(row.measurement.value, row.measurement.interval)}"


def _table(rows: Sequence[MeasureRow], *, several: bool) -> Table:
    head = ("Audit",) * several + ("Layer", "Components by", "Value, interval", "Other components", "Random crops", "Components")
    cells = [
        (row.audit,) * several
        + (
            row.layer,
            "count" if row.weighting is None else f"relevance, {row.weighting}",
            row.measurement.not_measured or cosine(row.measurement.value, row.measurement.interval),
            "–" if row.population is None else f"{format_number(row.population.low, 2)} to {format_number(row.population.high, 2)}",
            "–" if row.chance is None else format_number(row.chance, 2),
            f"{row.measurement.n:,} of {row.components:,}" + (f", {row.dead:,} dead" if row.dead else ""),
        )
        for row in rows
    ]
    numeric = tuple(place + several for place in (4, 5))
    return Table(caption=f"{rows[0].quantity.capitalize()}, mean over components", head=head, rows=tuple(cells), numeric=numeric)
