"""Text on a terminal: whatever a record or a file says, it moves no cursor, sets no title and hides nothing."""

from __future__ import annotations

from typing import Any

from rich import text as rich_text
from rich.style import Style

from semlens_audit.plain_text import visible

__all__ = ["Text"]


class Text(rich_text.Text):
    """A text of rich with hidden characters written out; see `semlens_audit.plain_text.visible`.

    A terminal obeys escape sequences wherever they come from (CWE-150), so that a file name could clear the screen, or a concept's
    title show another verdict.
    """

    def __init__(self, text: str = "", style: str | Style = "", **settings: Any) -> None:
        super().__init__(visible(text), style, **settings)

    def append(self, text: rich_text.Text | str, style: str | Style | None = None) -> Text:
        """Add text, hidden characters written out."""
        super().append(visible(text) if isinstance(text, str) else text, style)
        return self
