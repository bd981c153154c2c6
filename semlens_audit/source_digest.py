"""Digest of what a module does: of its source without comments, docstrings and blank lines."""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

from semlens_audit.digest import digest_bytes

__all__ = ["code", "essence"]


def code(source: str) -> str:
    """Source text without comments, docstrings, blank lines and trailing spaces.

    Raises
    ------
    SyntaxError
        If it is no Python.
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        # A string that stands alone: docstrings of modules, classes and functions, and those of attributes.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


@cache
def essence(path: Path) -> str:
    """First 16 digits of the SHA-256 of a module's `code`; read once a process."""
    return digest_bytes(code(path.read_text(encoding="utf-8")).encode("utf-8"))[:16]
