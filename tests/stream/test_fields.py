"""The values of decoded records by field."""

import numpy as np
import polars as pl
import pytest

from headrace.stream.fields import Field


@pytest.mark.parametrize(
    ("dtype", "values"),
    [(pl.Float64(), [1.5, None, -0.0]), (pl.Int64(), [2**62, None, -1]), (pl.Boolean(), [True, None, False])],
    ids=str,
)
def test_what_is_null_is_nan_among_floats(dtype, values):
    field = Field.of(dtype, values)
    expected = np.array([np.nan if value is None else float(value) for value in values])
    assert field.floats().tobytes() == expected.tobytes()
    assert field.take(np.array([0, 2])).floats().tobytes() == expected[[0, 2]].tobytes()
