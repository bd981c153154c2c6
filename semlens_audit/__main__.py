"""``python -m semlens_audit``: the command line."""

from __future__ import annotations

from semlens_audit.cli import main

main()
