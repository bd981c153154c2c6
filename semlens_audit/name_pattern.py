"""Regular expressions that an audit file brings along: bounded before they meet a file name.

Python's ``re`` backtracks, so that a pattern of a few characters can take centuries over one name (CWE-1333). Patterns with at most
one repetition cannot. Every other one is tried beforehand, in a process of its own with a limit of time, on the very names that it
will meet; the outcome for these names is the same afterwards.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection
from typing import Any

__all__ = ["pattern_complaint"]

_LONGEST = 300
_SECONDS = 0.5
_WALL_SECONDS = 20.0
_MOST_REPEATS = 100
_SAMPLES = ("a" * 100 + "!", "0" * 100 + "!", "a0_" * 30 + "!", "_" * 100 + "!", "." * 100 + "!", "a" * 50 + "0" * 50 + "!")
_TRIAL = """
import json, re, signal, sys
pattern, names, seconds = json.load(sys.stdin)
if hasattr(signal, "setitimer"):
    # of computing, not of waiting; nobody listens, so that the signal ends the process, even within the matching itself
    signal.setitimer(signal.ITIMER_PROF, seconds)
search = re.compile(pattern).search
for name in names:
    search(name)
"""


def pattern_complaint(pattern: str, names: Collection[str]) -> tuple[str, str, str] | None:
    """What is wrong with a pattern that is to find the class in file names.

    Parameters
    ----------
    pattern
        Regular expression as people wrote it; it must have a group ``class_index``.
    names
        File names that it will be matched against.

    Returns
    -------
    tuple or None
        Slug, message and hint; ``None`` for a pattern that is fine.
    """
    if len(pattern) > _LONGEST:
        return (
            "bad-pattern",
            f"the pattern has {len(pattern)} characters; at most {_LONGEST} are allowed.",
            "Write a shorter one.",
        )
    try:
        expression = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return "bad-pattern", f"the pattern is no regular expression: {error}.", ""
    if "class_index" not in expression.groupindex:
        return "bad-pattern", "the pattern has no group `class_index`.", r"Write for example `(?P<class_index>\d+)_.*`."
    if _repeats(pattern) > 1 and not _ends_in_time(pattern, names):
        return (
            "slow-pattern",
            f"the pattern takes more than {_SECONDS:g} seconds of computing over the file names.",
            r"Do not repeat what is repeated already, as in `(\d+)+`; begin with `^`, and repeat narrow sets such as `[^_]+`.",
        )
    return None


def _repeats(pattern: str) -> int:
    """Number of repetitions in a pattern; one within another counts as many."""
    # the parser's own tree, since counting signs would miss escapes and sets
    from re import _constants as codes  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]

    repeating = {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}
    count = 0
    waiting: list[tuple[Any, bool]] = [(parser.parse(pattern), False)]
    while waiting:
        node, within = waiting.pop()
        if isinstance(node, tuple) and len(node) == 2 and node[0] in repeating:
            count += _MOST_REPEATS if within else 1
            waiting.append((node[1][2], True))
        elif isinstance(node, tuple) and node and node[0] in (codes.BRANCH, codes.GROUPREF) and within:
            count += _MOST_REPEATS
        elif isinstance(node, (tuple, list, parser.SubPattern)):
            waiting += [(part, within) for part in node]
    return count


def _ends_in_time(pattern: str, names: Collection[str]) -> bool:
    """Whether the pattern is through with all names within `_SECONDS`, and with names that are made to slow it down."""
    question = json.dumps([pattern, [*sorted(names), *_SAMPLES], _SECONDS])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            input=question, capture_output=True, text=True, timeout=_WALL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
