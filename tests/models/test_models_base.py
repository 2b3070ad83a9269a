"""Durations, and the allocation of declared arrays."""

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.models import Array, LinearRegression, LogisticRegression, allocate, allocate_touched, build
from headrace.models.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("250us", 250), ("5ms", 5_000), ("90s", 90_000_000), ("15m", 900_000_000), ("1.5h", 5_400_000_000),
     ("30d", 2_592_000_000_000), ("2w", 1_209_600_000_000), (" 1 h ", 3_600_000_000)],
)  # fmt: skip
def test_duration_is_text_and_becomes_microseconds(text, microseconds):
    assert parse_duration(text) == microseconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "0s", "1h30m", "1e3s", "99999999w", 60, None, "0.1us"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(DeclarationError, match=r"over: expected a duration above zero such as '90s'.*got"):
        parse_duration(text, "over")


def test_arrays_start_at_their_fill_and_row_groups_have_a_bit_per_64_rows():
    layout = {
        "a": Array((3, 2), "float64", 1.5),
        "b": Array((130, 2), rows="table"),
        "c": Array((130,), "uint8", rows="table"),
    }
    state = allocate(layout)
    assert state["a"].tolist() == [[1.5, 1.5]] * 3
    assert state["a"].dtype == np.float64
    assert state["b"].dtype == np.float32
    assert not state["b"].any()
    touched = allocate_touched(layout)
    assert list(touched) == ["table"]
    assert touched["table"].shape == (3,)
    assert touched["table"].dtype == np.uint8


def test_a_setting_that_came_later_is_written_down_only_where_it_is_set():
    """Or a reader would refuse the snapshots of a version before."""
    assert "class_weight" not in LogisticRegression().config()
    assert "delta" not in LinearRegression().config()
    weighted = LogisticRegression(class_weight=[1.0, 5.0])
    assert weighted.config()["class_weight"] == [1.0, 5.0]
    assert build(weighted.config()).class_weight == [1.0, 5.0]
    assert build(LinearRegression(delta=2.0).config()).delta == 2.0
    assert build(LogisticRegression().config()).class_weight is None
