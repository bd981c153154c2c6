"""Surprising components as a page: how many there are of each layer, and what drives each of them."""

from __future__ import annotations

from dataclasses import dataclass

from semlens_audit.atlas.cards import ComponentCard, card
from semlens_audit.atlas.opening import Atlas
from semlens_audit.atlas.pages import longest_share, percent, render_page, sources
from semlens_audit.atlas.surprising import Surprise, Surprises
from semlens_audit.pages import Fact
from semlens_audit.wording import NARROW, count, format_number

__all__ = ["EXPECTED", "layer_sentences", "surprising_page"]

EXPECTED = {"declared": "every concept of the spec", "valid": "the concepts that a decision for the class may rest on"}
"""What is expected, in words."""


@dataclass(frozen=True)
class _Row:
    """One surprising component, as the page shows it."""

    card: ComponentCard
    relevance: str
    interval: str
    clarity: str
    nearest: str
    z: str
    means: str


def layer_sentences(found: Surprises) -> tuple[str, ...]:
    """What was found in each layer, in words."""
    return tuple(
        f"{layer}: of {count(components, 'component')} {relevant:,} carry {100 * found.carried:g} % of the relevance for "
        f"{found.class_name}, {clear:,} of these are clear, and {surprising:,} of these mean nothing expected: "
        f"{100 * share:.1f} % of the relevance."
        for layer, (components, relevant, clear, surprising, share) in found.layers.items()
    )


def surprising_page(atlas: Atlas, found: Surprises, top: int | None = None) -> str:
    """Surprising components as one offline HTML file.

    Parameters
    ----------
    atlas
        The opened index.
    found
        What to show.
    top
        Most components to show; ``None``: all.
    """
    rows = tuple(_row(atlas, found, one) for one in found.found[:top])
    return render_page(
        "atlas/surprising.html.j2",
        f"What nobody expected of {found.class_name}",
        {
            "found": found,
            "sentences": layer_sentences(found),
            "rows": rows,
            "rest": len(found.found) - len(rows),
            "longest": longest_share(row.card for row in rows),
            "expected": EXPECTED[found.expected],
            "concepts": tuple(
                concept.label
                for concept in atlas.plan.spec.concepts
                if found.expected == "declared" or concept.role_for(found.class_name) == "valid"
            ),
            "selection": atlas.plan.audit.measurement.selection,
        },
        sources=(
            *sources(atlas),
            Fact("Asked", f"{100 * found.carried:g}{NARROW}% of the relevance, clarity of at least {found.clarity:g}"),
        ),
    )


def _row(atlas: Atlas, found: Surprises, one: Surprise) -> _Row:
    labels = {concept.id: concept.label for concept in atlas.plan.spec.concepts}
    z = "–" if one.z is None else format_number(one.z, 1, sign=True)
    nearest = "–" if one.nearest is None else labels[one.nearest]
    means = "–" if one.means is None else labels[one.means]
    interval = f"{100 * one.interval.low:.1f}–{100 * one.interval.high:.1f}{NARROW}%"
    facts = [(f"relevance for {found.class_name}", f"{percent(one.share)} ({interval})")]
    facts += [("nearest expected concept", f"{nearest}, z {z}")] if one.nearest is not None else []
    facts += [("means", f"{means}, which is not expected")] if one.means is not None else []
    shown = card(atlas, one.layer, one.component, facts=facts)
    return _Row(shown, percent(one.share), interval, format_number(one.clarity, 2), nearest, z, means)
