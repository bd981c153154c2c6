"""What a module does, told from how it is written: held against Python's own tokenizer."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import semlens_audit
from semlens_audit.source_digest import code
from semlens_audit.standing import code_digests

TRICKY = r'''
x = "# no comment"  # a comment with "quotes"
y = 'it''s # none' + r"\" # none" + "\\"  # it's one
z = """a # none
"" # none \""" # none"""  # one
w = f"{x!r} # none" + b'# none'.decode() + '"' + "'"  # one
def f(a=lambda: 0 if x else 1):  # one
    "A docstring # of its own."
    match a:
        case 1:
            """A string that stands alone."""
        case _:
            try:
                pass  # one
            except* ValueError:
                "alone"
            else:
                return "not alone"
            finally:
                """alone
                # too"""
class A:
    b: int = 3
    """What b is."""
'''


def by_tokenizer(source: str) -> str:
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


@pytest.mark.parametrize("name", sorted(code_digests()))
def test_every_module_that_measures_is_read_as_the_tokenizer_reads_it(name: str) -> None:
    source = (Path(semlens_audit.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    assert code(source) == by_tokenizer(source)


def test_strings_and_comments_that_look_like_each_other() -> None:
    found = code(TRICKY)
    assert found == by_tokenizer(TRICKY)
    assert "one" not in found.replace("none", "").replace("alone", "")
    assert found.count("# no") == 8
    assert 'return "not alone"' in found
