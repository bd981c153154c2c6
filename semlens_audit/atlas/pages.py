"""Pages of the atlas: one offline HTML file each, in the report's style.

A page is a template in ``templates/atlas`` that begins with ``{% extends "atlas/base.html.j2" %}`` and fills the block ``content``;
`render_page` gives it as text. What a template may use:

``context``
    Every key of the `context` that `render_page` is given, by its own name.
``title``, ``sources``
    Title of the page, and what it was made from (see `sources`), which the base prints at the end.
``{% import "atlas/macros.j2" as a with context %}``
    ``a.component_card(card, level, longest)``: a `semlens_audit.atlas.cards.ComponentCard` under a heading of that level, its bars of
    relevance drawn as parts of the `longest` share (`longest_share`). As ``{% call a.component_card(card, 3, longest) %}`` ...
    ``{% endcall %}`` it takes more content between its facts and its pictures. ``a.picture(jpeg, alt)``: one JPEG.
    ``a.pictures(references, component)``: a row of them.
``percent(share)``
    A share as a reader meets it, see `percent`.
``{% import "macros.j2" as m with context %}``
    The report's: ``m.table(Table)``, ``m.facts(tuple of Fact)``, ``m.figure(Figure)``.

Everything is escaped, hidden characters are written out, and an unknown name is an error. A page runs no script. Pictures are given
as JPEG bytes; where those of a page weigh more than the budget, all are compressed more strongly, alike. The same values give the
same bytes: rendering reads no clock.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from semlens_audit import __version__
from semlens_audit.atlas.cards import ComponentCard
from semlens_audit.atlas.opening import Atlas
from semlens_audit.digest import digest_bytes
from semlens_audit.errors import UsageError
from semlens_audit.pages import Fact
from semlens_audit.picture_budget import compressed
from semlens_audit.plan import MeasurementSettings
from semlens_audit.rendering import ON_SCREEN, render, replace
from semlens_audit.ties import remark, tied_of
from semlens_audit.wording import count, format_share, shorten

__all__ = ["BUDGET", "longest_share", "percent", "render_page", "sources", "write_page"]

BUDGET = 6_000_000
"""Most bytes of all JPEG files of a page together, as long as the qualities of `semlens_audit.picture_budget` reach it."""

_PLACE = re.compile(r"picture:([0-9a-f]{64})")


class _Pictures:
    """The JPEG files that a page asks for while it is rendered, put in afterwards, when it is known what they weigh together."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}

    def place(self, jpeg: bytes) -> Markup:
        """What stands for a picture until the page is complete."""
        key = digest_bytes(jpeg)
        self._files.setdefault(key, base64.b64encode(jpeg).decode("ascii"))
        return Markup(f"picture:{key}")

    def put_in(self, page: str, budget: int) -> str:
        """The page with its pictures as ``data:`` URIs."""
        keys, files = compressed(self._files, budget)

        def uri(found: re.Match[str]) -> str:
            key = keys.get(found[1], found[1])
            return f"data:image/jpeg;base64,{files[key]}" if key in files else found[0]

        return _PLACE.sub(uri, page)


def render_page(
    template: str, title: str, context: Mapping[str, Any], *, sources: Sequence[Fact] = (), budget: int = BUDGET
) -> str:
    """A page of the atlas as one HTML file that needs no other file and makes no request.

    Parameters
    ----------
    template
        Name of its template, e.g. ``atlas/search.html.j2``.
    title
        Title and first heading.
    context
        What the template prints, by name.
    sources
        What the page was made from, see `sources`.
    budget
        Most bytes of all pictures together.
    """
    pictures = _Pictures()
    made = render(
        template,
        (*ON_SCREEN, "atlas/atlas.css"),
        **context,
        title=title,
        sources=tuple(sources),
        tool=f"semlens-audit {__version__}",
        jpeg=pictures.place,
        percent=percent,
    )
    return pictures.put_in(made, budget)


def sources(atlas: Atlas) -> tuple[Fact, ...]:
    """What a page of this atlas was made from: audit, model, data, foundation model."""
    audit, evidence = atlas.plan.audit, atlas.evidence
    model, meaning = evidence.subject, evidence.foundation
    tied = remark(tied_of(atlas.layers.values()), audit.measurement)
    weights = f"weights {shorten(str(model['weights_sha256']))}" if "weights_sha256" in model else ""
    return (
        Fact("Audit", f"{audit.audit}: {audit.title}"),
        Fact("Model", ", ".join(part for part in (f"{audit.subject.name} {audit.subject.version or ''}".strip(), weights) if part)),
        Fact("Layers", ", ".join(f"{name} ({count(layer.components, 'component')})" for name, layer in atlas.layers.items())),
        Fact("Data", f"{count(len(evidence.paths), 'sample')}, digest {shorten(atlas.data.sha256)}"),
        Fact("Foundation model", f"{meaning['name']}, digest {shorten(str(meaning['sha256']))}"),
        Fact("Concept embedding", _concept_embedding(audit.measurement)),
        Fact("Reference samples", f"{audit.measurement.reference_samples} of each component, chosen by {audit.measurement.selection}"),
        *([Fact("Tied", tied.replace("`", ""))] if tied else []),
    )


def _concept_embedding(settings: MeasurementSettings) -> str:
    if settings.concept_embedding == "mean":
        return "mean of the embeddings of a component's crops"
    return (
        f"contrastive, gamma {settings.gamma:g}: each crop without what it shares with its contrastive crop, the most similar random crop "
        "of a sample that drives the component below average (contrastive semantic projection, arXiv 2604.22477)"
    )


def longest_share(cards: Iterable[ComponentCard]) -> float:
    """The largest share of relevance on any of the cards: what the longest bar stands for; 1 where none has any."""
    return max((value for one in cards for value in (one.share or {}).values()), default=0.0) or 1.0


def percent(share: float) -> str:
    """``12.3 %``; two decimals below a thousandth, which is much in a layer of a thousand components: ``0.04 %``."""
    return format_share(share)


def write_page(path: Path, page: str) -> None:
    """Write a page in one step.

    Raises
    ------
    UsageError
        ``page-not-written``: the folder is missing or cannot be written.
    """
    try:
        replace(path, page.encode("utf-8"))
    except OSError as error:
        raise UsageError(
            "page-not-written", f"The page cannot be written: {error.strerror or error}.", "Name a file in a folder that exists.",
            file=str(path),
        ) from error  # fmt: skip
