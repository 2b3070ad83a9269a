"""StandardScaler equals River's, forgets by its count, and leaves what is missing missing."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import preprocessing

from headrace.errors import DeclarationError
from headrace.models import Rows, Spec, StandardScaler, allocate

NONE = np.empty((0, 0), np.uint64)


def bound(columns, **options):
    scaler = StandardScaler(**options)
    spec = Spec(tuple(f"n{j}" for j in range(columns)), (), "binary", 1)
    state = allocate(scaler.layout(spec))
    scaler.bind(spec, state, {})
    return scaler, state


def around(scaler, numeric):
    """The rows as they are scaled before and after each was observed."""
    before, after = np.full(numeric.shape, -1.0), np.full(numeric.shape, -1.0)
    scaler.apply_around(Rows(numeric, NONE), Rows(numeric, NONE), Rows(before, NONE), Rows(after, NONE))
    return before, after


def test_scaler_equals_river_row_by_row(stream):
    x = stream(500, 7).x.numeric
    x[100:300, 1] = x[0, 1]  # a column that stands still for a while
    before, after = around(bound(3, half_life=None)[0], x)
    river = preprocessing.StandardScaler()
    for i, row in enumerate(x):
        known = {j: float(v) for j, v in enumerate(row) if not np.isnan(v)}
        assert before[i, list(known)] == pytest.approx(list(river.transform_one(known).values()), rel=1e-9, abs=1e-9)
        river.learn_one(known)
        assert after[i, list(known)] == pytest.approx(list(river.transform_one(known).values()), rel=1e-9, abs=1e-9)
    assert (np.isnan(before) == np.isnan(x)).all()


def test_moments_are_those_of_all_rows(stream):
    x = stream(300, 8).x.numeric
    scaler, state = bound(3)
    scaler.observe(Rows(x, NONE))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(state["mean"], np.nanmean(wide, 0), rtol=1e-12)
    np.testing.assert_allclose(state["variance"], np.nanvar(wide, 0), rtol=1e-12)
    assert state["count"].tolist() == (~np.isnan(x)).sum(0).tolist()


def test_decay_keeps_mean_and_variance_and_equals_weighted_moments(stream):
    x = stream(60, 9).x.numeric
    scaler, state = bound(3)
    weights = np.ones(60)
    for start in range(0, 60, 20):
        scaler.observe(Rows(x[start : start + 20], NONE))
        before = around(bound_to(scaler, state), x[:1])[0]
        kept = {name: state[name].copy() for name in ("mean", "variance")}
        scaler.decay(0.5)
        weights[: start + 20] *= 0.5
        assert all((state[name] == kept[name]).all() for name in kept)
        assert np.array_equal(around(bound_to(scaler, state), x[:1])[0], before, equal_nan=True)
    w = np.where(np.isnan(x), 0.0, weights[:, None])
    values = np.nan_to_num(x.astype(np.float64))
    mean = (w * values).sum(0) / w.sum(0)
    np.testing.assert_allclose(state["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(state["variance"], (w * (values - mean) ** 2).sum(0) / w.sum(0), rtol=1e-12)


def bound_to(scaler, state):
    """A scaler on a copy of state."""
    twin = StandardScaler()
    twin.bind(Spec(("a", "b", "c"), (), "binary", 1), {name: array.copy() for name, array in state.items()}, {})
    return twin


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_scaling_does_not_depend_on_the_cuts(stream, cuts):
    x = stream(40, 10).x.numeric
    whole, whole_state = bound(3)
    expected = around(whole, x)
    cut, cut_state = bound(3)
    edges = [0, *sorted(cuts), 40]
    pieces = [around(cut, x[a:b]) for a, b in pairwise(edges)]
    for want, got in zip(expected, zip(*pieces, strict=True), strict=True):
        assert np.concatenate(got).tobytes() == want.tobytes()
    assert all(whole_state[name].tobytes() == cut_state[name].tobytes() for name in whole_state)


def test_apply_is_pure_and_tells_what_apply_around_told_before(stream):
    x = stream(50, 11).x.numeric
    scaler, state = bound(3)
    scaler.observe(Rows(x[:49], NONE))
    bits = {name: array.tobytes() for name, array in state.items()}
    out = np.empty((1, 3))
    scaler.apply(Rows(x[49:], NONE), Rows(out, NONE))
    assert {name: array.tobytes() for name, array in state.items()} == bits
    assert out.tobytes() == around(scaler, x[49:])[0].tobytes()


def test_what_cannot_be_scaled_is_missing_and_what_never_varied_is_zero():
    scaler, state = bound(4)
    x = np.array([[np.nan, np.inf, 5, 3e38], [np.nan, -np.inf, 5, -3e38], [np.nan, 1, 5, 1e-38]], np.float32)
    before, after = around(scaler, x)
    assert np.isnan(before[:, 0]).all()
    assert np.isnan(after[:2, 1]).all()
    assert (after[:, 2] == 0).all()
    assert np.isfinite(after[:, 3]).all()
    assert state["count"].tolist() == [0, 1, 3, 3]
    assert all(np.isfinite(array).all() for array in state.values())


def test_clip_holds_scaled_values():
    scaler, _ = bound(1, clip=3.0)
    x = np.array([[0], [1], [1000], [-1e6]], np.float32)
    before, after = around(scaler, x)
    assert before[2, 0] == 3.0
    assert before[3, 0] == -3.0
    assert np.abs(after).max() <= 3.0


def test_no_rows_and_no_columns_are_fine():
    scaler, state = bound(3)
    around(scaler, np.empty((0, 3), np.float32))
    assert not state["count"].any()
    scaler, _ = bound(0)
    assert around(scaler, np.empty((5, 0), np.float32))[0].shape == (5, 0)


@pytest.mark.parametrize("options", [{"half_life": "soon"}, {"half_life": 30}, {"clip": 0}, {"clip": float("nan")}])
def test_a_setting_that_means_nothing_is_refused_by_name(options):
    with pytest.raises(DeclarationError, match=next(iter(options))):
        StandardScaler(**options)
