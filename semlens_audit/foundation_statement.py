"""What a foundation model can and cannot tell, in words for the report, where the audit gives none."""

from __future__ import annotations

__all__ = ["statement"]

_TEXT = (
    "This model embeds images and text in one space, so concepts may be given in words. It can tell apart what its "
    "training pairs named; a concept that they did not name, or named rarely, may be missed or confused with its "
    "neighbours. Where the data says which samples hold a concept, the report prints how well this model recognises it."
)
_IMAGE_ONLY = (
    "This model embeds images only, so concepts are given by example crops. It tells apart textures, colours and shapes "
    "as far as its own training taught it to; two concepts that look alike to it cannot be told apart, and a crop that "
    "shares background or lighting with the examples may be taken for the concept."
)


def statement(text: bool) -> str:
    """Statement for a model with (`text`) or without a text tower."""
    return _TEXT if text else _IMAGE_ONLY
