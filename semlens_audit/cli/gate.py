"""The gate: `gate`, `waiver add|list|check`."""

from __future__ import annotations

__all__: list[str] = []
