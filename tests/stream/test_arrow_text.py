"""Texts go to Polars and come back as they were, however Polars holds them."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.spans import Spans
from headrace.stream.arrow_text import series_of, spans_of

texts = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=30)


def read(series: pl.Series) -> list[str | None]:
    spans = spans_of(series)
    assert not spans.data[-64:].any(), "kernels read behind the last text"
    return [None if text is None else text.decode() for text in spans]


@settings(deadline=None)  # the first one compiles
@given(texts, texts, st.integers(0, 5))
def test_texts_come_back_as_they_were_from_series_of_every_shape(a, b, cut):
    one, other = (pl.Series("", values, pl.String) for values in (a, b))
    assert read(one) == a
    assert read(one[cut:]) == a[cut:]
    assert read(pl.concat([one, other, one[cut:]], rechunk=False)) == a + b + a[cut:]
    assert read(pl.concat([one, other]).str.to_uppercase()) == [v and v.upper() for v in a + b]
    assert read(pl.concat([one, other]).filter(pl.Series([v is not None for v in a + b], dtype=pl.Boolean))) == [
        v for v in a + b if v is not None
    ]


@settings(deadline=None)
@given(texts, st.integers(0, 5))
def test_texts_go_to_polars_as_they_are(values, cut):
    spans = Spans.of_texts(values).take(slice(cut, None))
    series = series_of(spans)
    assert series.dtype == pl.String
    assert series.to_list() == values[cut:]
    assert list(spans_of(series)) == list(spans)


@pytest.mark.parametrize("size", [0, 1, 4, 11, 12, 13, 31, 32, 33, 5_000_000])
def test_texts_of_every_length_come_back(size):
    values = ["é" + "x" * size, None, "", "y" * size]
    assert read(pl.Series(values * 3)) == values * 3


def test_many_buffers_of_text_are_read():
    parts = [pl.Series([f"a text of more than twelve bytes {i} {j}" for j in range(i)], dtype=pl.String) for i in range(60)]  # fmt: skip
    whole = pl.concat(parts)
    assert read(whole) == whole.to_list()


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="expected views"):
        spans_of(pl.Series([1, 2]))
