"""How concepts become prompts, and example regions become names: shared by writing and reading of the index."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ALTERNATIVE_TEMPLATES", "alternatives", "box_text", "prompts"]

ALTERNATIVE_TEMPLATES = (
    "a picture of {}",
    "a photograph of {}",
    "an image of {}",
    "a cropped photo of {}",
    "a detail with {}",
)
"""Common phrasings that a spec's own prompt templates are exchanged for, to see whether the verdict hangs on the wording."""


def alternatives(templates: Sequence[str]) -> list[str]:
    """Those of `ALTERNATIVE_TEMPLATES` that are not among the declared templates."""
    return [template for template in ALTERNATIVE_TEMPLATES if template not in templates]


def prompts(templates: Sequence[str], descriptions: Sequence[str]) -> list[str]:
    """Every description in every template, description by description; ``{}`` is what a template's description replaces."""
    return [template.replace("{}", description) for description in descriptions for template in templates]


def box_text(box: Sequence[int] | None) -> str:
    """The box as the store names it: ``x0,y0,x1,y1``, or nothing for the whole image."""
    return ",".join(str(value) for value in box) if box else ""
