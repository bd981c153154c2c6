"""Where values of a JSON document stand, against what the standard library reads there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semlens_audit.json_places import odd_number, place_of, repeated_key


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in members:
        yield (*path, name)
        if isinstance(inner, (dict, list)):
            yield from leaves(inner, (*path, name))


class TestPlaces:
    json_values = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
        max_leaves=12,
    )

    @settings(max_examples=40, deadline=None)
    @given(value=json_values, indent=st.one_of(st.none(), st.integers(0, 2)), ascii_only=st.booleans())
    def test_the_value_stands_where_it_is_said_to(self, value: Any, indent: int | None, *, ascii_only: bool) -> None:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
        assert repeated_key(text) is None
        for path in [(), *(leaves(value) if isinstance(value, (dict, list)) else ())]:
            wanted = value
            for step in path:
                wanted = wanted[step]
            line, column = place_of(text, path)
            rest = "\n".join(text.split("\n")[line - 1 :])[column - 1 :]
            assert json.JSONDecoder().raw_decode(rest)[0] == wanted

    def test_a_path_that_ends_nowhere_is_told_as_far_as_it_goes(self) -> None:
        assert place_of('{"a": [1,\n 2]}', ["a", 1]) == (2, 2)
        assert place_of('{"a": [1,\n 2]}', ["a", 7, "b"]) == (1, 7)

    def test_a_key_that_is_there_twice(self) -> None:
        assert repeated_key('{"a": 1,\n "b": [{"c": 1, "c": 2}], "a": 3}') == ("a", 2, 27)
        assert repeated_key('[{"b": [{"c": 1, "c": 2}]}]') == ("c", 1, 18)

    @pytest.mark.parametrize("odd", ["NaN", "-Infinity", "1e999", "2e12", "9" * 20, "-9223372036854775809"])
    def test_a_number_that_is_none(self, odd: str) -> None:
        assert odd_number(f'{{"a 1e99": [1, -2.5, true, null,\n  {odd}]}}', 1e12) == (2, 3)
        assert odd_number('{"NaN": ["1e99", 9223372036854775807, 1e12]}', 1e12) is None
