"""Signing and verifying: `sign`, `attest`, `verify`."""

from __future__ import annotations

__all__: list[str] = []
