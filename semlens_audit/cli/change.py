"""What changed between two records: `diff`."""

from __future__ import annotations

__all__: list[str] = []
