"""Pre-registration: `lock`, `reproduce`."""

from __future__ import annotations

__all__: list[str] = []
