"""Byte strings in one buffer, against lists of bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.spans import Spans

strings = st.binary(max_size=12) | st.text("ab", max_size=12).map(str.encode)


@settings(deadline=None)  # the first one compiles
@given(st.lists(strings | st.none(), max_size=8), strings.filter(len))
def test_a_text_is_found_wherever_it_is_and_not_across_strings(values, text):
    assert Spans.of(values).holding(text).tolist() == [value is not None and text in value for value in values]


@pytest.mark.parametrize("rows", [slice(1, None), [2, 0]])
def test_some_strings_are_searched_where_they_lie(rows):
    assert Spans.of([b"ab", b"b", b"xaab"]).take(rows).holding(b"ab").tolist() == ([False, True] if rows == slice(1, None) else [True, True])  # fmt: skip
