"""Detectors fire in the same rows as River's; KSWIN, which draws at random, within the spread of River's seeds."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import datasets, drift, linear_model, preprocessing
from scipy import stats

from headrace.errors import DeclarationError
from headrace.models import ADWIN, DDM, KSWIN, Detector, PageHinkley, Spec, allocate, build
from headrace.models import drift_kernels as kernels
from headrace.models.drift import critical_distance, watched

SPEC = Spec((), (), "binary")

# ours, and River's
DETECTORS = {
    "adwin": (ADWIN(), drift.ADWIN),
    "adwin, quick": (
        ADWIN(0.05, clock=1, max_buckets=2, min_window_length=2, grace_period=1),
        lambda: drift.ADWIN(0.05, clock=1, max_buckets=2, min_window_length=2, grace_period=1),
    ),
    "adwin, fine": (
        ADWIN(0.3, clock=7, max_buckets=9, min_window_length=30, grace_period=100),
        lambda: drift.ADWIN(0.3, clock=7, max_buckets=9, min_window_length=30, grace_period=100),
    ),
    "page-hinkley": (PageHinkley(), drift.PageHinkley),
    "page-hinkley, quick": (
        PageHinkley(5, 0.1, 2.0, 0.9),
        lambda: drift.PageHinkley(5, 0.1, 2.0, 0.9),
    ),
    "page-hinkley, up": (PageHinkley(threshold=8.0, mode="up"), lambda: drift.PageHinkley(threshold=8.0, mode="up")),
    "page-hinkley, down": (
        PageHinkley(threshold=8.0, mode="down"),
        lambda: drift.PageHinkley(threshold=8.0, mode="down"),
    ),
    # all of the older half is drawn, in whatever order
    "kswin, half": (KSWIN(0.001, 40, 20), lambda: drift.KSWIN(0.001, 40, 20)),
    "kswin, ninth": (KSWIN(0.05, 24, 12), lambda: drift.KSWIN(0.05, 24, 12)),
}
ERRORS = {
    "ddm": (DDM(), drift.binary.DDM),
    "ddm, quick": (DDM(5, 1.0), lambda: drift.binary.DDM(5, drift_threshold=1.0)),
    "ddm, slow": (DDM(200, 2.5), lambda: drift.binary.DDM(200, drift_threshold=2.5)),
}
MEANS = {
    "none": lambda at: np.zeros_like(at),
    "abrupt": lambda at: np.where(at < 0.5, 0.0, 1.5),
    "gradual": lambda at: 1.5 * np.clip(3 * at - 1, 0, 1),
    "recurring": lambda at: 1.5 * (np.floor(4 * at) % 2),
}
SETTINGS = DETECTORS | ERRORS


def rises(kind, seed, count=1_500):
    """Values whose mean changes so; of every other seed with ties, of some very far from zero."""
    rng = np.random.default_rng(seed)
    values = MEANS[kind](np.linspace(0, 1, count)) + rng.normal(size=count)
    return np.round(values) * 10.0 ** (seed % 3 - 1) if seed % 2 else values


def errors(kind, seed, count=1_500):
    """0 and 1; the share of the ones changes so."""
    rng = np.random.default_rng(seed)
    return (rng.random(count) < 0.1 + 0.05 * (seed % 3) + 0.15 * MEANS[kind](np.linspace(0, 1, count))).astype(float)


def bound(detector, spec=SPEC):
    detector = build(detector.config())
    state = allocate(detector.layout(spec))
    detector.bind(spec, state, {})
    return detector, state


def rows_of(detector, values):
    """The rows in which ours fires, told all values at once."""
    fired = np.ones(len(values), bool)
    bound(detector)[0].update(np.asarray(values, float), fired)
    return np.flatnonzero(fired).tolist()


def rows_of_river(detector, values):
    rows = []
    for i, value in enumerate(values):
        detector.update(value)
        if detector.drift_detected:
            rows.append(i)
    return rows


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("name", DETECTORS)
def test_fires_in_the_rows_in_which_that_of_river_does(name, kind):
    ours, river = DETECTORS[name]
    found = 0
    for seed in range(3 if name.startswith("kswin") else 24):
        values = rises(kind, seed, 300 if name.startswith("kswin") else 1_500)
        rows = rows_of(ours, values)
        assert rows == rows_of_river(river(), values.tolist()), seed
        found += len(rows)
    assert found > 0 or kind == "none" or (name.startswith("kswin") and kind == "gradual")


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("name", ERRORS)
def test_rate_of_errors_fires_in_the_rows_in_which_that_of_river_does(name, kind):
    ours, river = ERRORS[name]
    found = 0
    for seed in range(24):
        values = errors(kind, seed)
        rows = rows_of(ours, values)
        assert rows == rows_of_river(river(), values.tolist()), seed
        found += len(rows)
    assert found > 0 or kind == "none"


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(
    "series",
    [drift.datasets.AirlinePassengers, drift.datasets.Apple, drift.datasets.Bitcoin, drift.datasets.UKCoalEmploy],
)
def test_fires_on_the_series_that_river_brings_as_river_does(series, name):
    ours, river = DETECTORS[name]
    values = [float(next(iter(y.values())) if isinstance(y, dict) else y) for _, y in series()][
        : 250 if name.startswith("kswin") else 800
    ]
    values = np.asarray(values) / max(values)
    assert rows_of(ours, values) == rows_of_river(river(), values.tolist())


@pytest.mark.parametrize("stream", [datasets.Bananas, datasets.Phishing])
def test_errors_and_losses_of_a_model_of_river_are_heard_as_river_hears_them(stream):
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    y, p = [], []
    for x, label in stream():
        p.append(model.predict_proba_one(x).get(True, 0.0))
        y.append(label)
        model.learn_one(x, label)
    y, p = np.array(y, np.float32), np.array(p, np.float32)[:, None]
    wrong, loss = watched("error", "binary", y, p), watched("loss", "binary", y, p)
    np.testing.assert_array_equal(wrong, (p[:, 0] >= 0.5) != (y >= 0.5))
    for name, (ours, river) in DETECTORS.items():
        if not name.startswith("kswin"):
            assert rows_of(ours, loss) == rows_of_river(river(), loss.tolist()), name
    for name, (ours, river) in ERRORS.items():
        assert rows_of(ours, wrong) == rows_of_river(river(), wrong.tolist()), name


# --- KSWIN


@pytest.mark.parametrize(("kind", "changes"), [("abrupt", [200]), ("recurring", [100, 200, 300]), ("none", [])])
def test_number_and_places_of_detections_lie_within_the_spread_of_ten_seeds_of_river(kind, changes):
    values = 2 * MEANS[kind](np.linspace(0, 1, 400)) + np.random.default_rng(5).normal(size=400)
    theirs = [rows_of_river(drift.KSWIN(seed=seed), values.tolist()) for seed in range(10)]
    ours = [rows_of(KSWIN(seed=seed), values) for seed in range(10)]
    assert ours[0] == rows_of(KSWIN(seed=0), values)  # the same seed, the same rows
    counts = [len(rows) for rows in theirs]
    assert min(counts) <= np.median([len(rows) for rows in ours]) <= max(counts)
    for change in changes:  # how long after a change each fires first
        late = [[next(row for row in rows if row >= change) - change for rows in of] for of in (theirs, ours)]
        assert min(late[0]) <= np.median(late[1]) <= max(late[0])


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.005, 1e-4, 1e-9])
@pytest.mark.parametrize("size", [5, 10, 30, 75, 400])
def test_critical_distance_is_the_least_that_scipys_exact_test_takes_for_significant(size, alpha):
    def p_value(h):
        return stats.ks_2samp(np.arange(size), np.arange(size) + h - 0.5, method="exact")

    critical = critical_distance(size, alpha)
    if critical <= size:
        assert p_value(critical).statistic == pytest.approx(critical / size)
        assert p_value(critical).pvalue <= alpha and critical / size > 0.1
    assert critical == size // 10 + 1 or p_value(critical - 1).pvalue > alpha


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20))
def test_distance_of_two_samples_is_the_greatest_between_their_shares(pairs):
    a, b = (np.sort(np.array(side, float)) for side in zip(*pairs))
    assert kernels.most_apart(a, b) == round(len(a) * max(abs((a <= x).mean() - (b <= x).mean()) for x in {*a, *b}))


def test_draws_are_different_values_of_the_older_part_all_equally_often():
    window = np.arange(10.0)
    drawn, places, out = np.zeros(1, np.uint64), np.empty(7, np.intp), np.empty(3)
    counts, firsts = np.zeros(10), np.zeros(10)
    for _ in range(7_000):
        kernels.draw(window, 4, np.uint64(3), drawn, places, out)
        assert len(set(out)) == 3
        counts[out.astype(int)] += 1
        firsts[int(out[0])] += 1
    assert (counts[[1, 2, 3]] == 0).all()  # 4 is the oldest, so 1, 2 and 3 are the newest
    older = [4, 5, 6, 7, 8, 9, 0]
    assert stats.chisquare(counts[older]).pvalue > 0.001 and stats.chisquare(firsts[older]).pvalue > 0.001
    assert drawn[0] == 21_000


# --- all


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), max_size=6), seed=st.integers(0, 50))
@pytest.mark.parametrize("name", SETTINGS)
def test_results_do_not_depend_on_the_cuts(name, cuts, seed):
    values = (errors if name in ERRORS else rises)("recurring", seed, 900)
    whole, state = bound(SETTINGS[name][0])
    cut, other = bound(SETTINGS[name][0])
    fired, pieces = np.empty(900, bool), np.empty(900, bool)
    whole.update(values, fired)
    for a, b in pairwise([0, *sorted(cuts), 900]):
        cut.update(values[a:b], pieces[a:b])
    np.testing.assert_array_equal(fired, pieces)
    assert all(array.tobytes() == other[key].tobytes() for key, array in state.items())


@pytest.mark.parametrize("name", SETTINGS)
def test_state_moves_to_another_process_bit_for_bit(name):
    values = (errors if name in ERRORS else rises)("recurring", 1)
    first, state = bound(SETTINGS[name][0])
    fired = np.empty(len(values), bool)
    first.update(values[:777], fired[:777])
    second = build(json.loads(json.dumps(first.config())))
    moved = {key: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape).copy() for key, a in state.items()}
    second.bind(SPEC, moved, {})
    second.update(values[777:], fired[777:])
    assert np.flatnonzero(fired).tolist() == rows_of(SETTINGS[name][0], values)
    assert isinstance(first, Detector)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_not_finite_is_not_heard_and_what_is_huge_leaves_the_state_finite(name):
    detector = SETTINGS[name][0]
    values = (errors if name in ERRORS else rises)("abrupt", 2)
    rows = rows_of(detector, values)
    where = np.repeat(np.arange(len(values)), 2)
    holed = values[where]
    holed[1::2] = np.random.default_rng(0).choice([np.nan, np.inf, -np.inf], len(values))
    assert rows_of(detector, holed) == [2 * row for row in rows]
    hearing, state = bound(detector)
    rng = np.random.default_rng(1)
    huge = rng.choice([0, 1, -1, 1e308, -1e308, 1e-308, np.nan, np.inf], 5_000)
    hearing.update(huge, np.empty(5_000, bool))
    hearing.update(np.empty(0), np.empty(0, bool))
    assert all(np.isfinite(array).all() for array in state.values())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_change_to_greater_values_is_told_from_one_to_lesser_ones(name):
    detector, _ = bound(SETTINGS[name][0])
    flips = np.arange(1_200) // 300 % 2
    random = np.random.default_rng(3)
    values = (
        (random.random(1_200) < 0.05 + 0.9 * flips).astype(float)
        if name in ERRORS
        else 4 * flips + random.normal(size=1_200)
    )
    fired, rose = np.empty((2, 1_200), bool)
    detector.hear(values, fired, rose)
    assert not (rose & ~fired).any()
    for start in (300, 600, 900):
        first = start + int(np.argmax(fired[start : start + 300]))
        if fired[first] and (start != 600 or name not in ERRORS):  # a rate of errors is only heard to rise
            assert rose[first] == (start != 600)
    assert fired[300:600].any() or "down" in name


def test_window_of_a_long_quiet_stream_keeps_its_size_and_still_hears():
    detector, state = bound(ADWIN())
    quiet, fired = np.random.default_rng(0).random(300_000) * 0.2, np.empty(300_000, bool)
    detector.update(quiet, fired)
    assert not fired.any() and state["sums"][0] == 300_000
    sizes = state["held"] * 2.0 ** np.arange(kernels.LEVELS)
    total = sum(of[:held].sum() for of, held in zip(state["totals"], state["held"]))
    assert sizes.sum() == 300_000 and total == pytest.approx(quiet.sum())
    detector.update(quiet[:200] + 0.5, fired[:200])
    assert fired[:200].any()


@pytest.mark.parametrize(
    ("on", "task", "y", "p", "expected"),
    [
        ("loss", "binary", [1, 0, 1, np.nan], [[0.8], [0.8], [0.0], [0.5]], [-np.log(0.8), -np.log(0.2), 24 * np.log(2), np.nan]),
        ("error", "binary", [1, 0, 1, np.nan], [[0.5], [0.4], [0.2], [0.5]], [0, 0, 1, np.nan]),
        ("loss", "multiclass", [2, 0, 7], [[0.1, 0.2, 0.7]] * 3, [-np.log(0.7), -np.log(0.1), np.nan]),
        ("error", "multiclass", [2, 1, -1], [[0.1, 0.2, 0.7]] * 3, [0, 1, np.nan]),
        ("loss", "regression", [1, -2, np.nan], [[3.0], [0.5], [1.0]], [2, 2.5, np.nan]),
    ],
)  # fmt: skip
def test_what_is_heard_is_the_loss_of_the_task(on, task, y, p, expected):
    heard = watched(on, task, np.array(y, np.float32), np.array(p, np.float32))
    np.testing.assert_allclose(heard, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: ADWIN(0.0), r"ADWIN\(delta=\): expected a number above 0"),
        (lambda: ADWIN(clock=0), r"ADWIN\(clock=\): expected a whole number, 1 or more, got 0"),
        (lambda: ADWIN(max_buckets=1.5), r"max_buckets=\): expected a whole number from 2 to 1,000, got 1.5"),
        (lambda: ADWIN(on="accuracy"), r"ADWIN\(on=\): expected one of loss, error, got 'accuracy'"),
        (lambda: ADWIN(action=None), r"action=\): expected one of report, boost, reset"),
        (lambda: ADWIN(boost=1.0), r"boost=\): keeps all evidence"),
        (lambda: PageHinkley(mode="sideways"), r"mode=\): expected one of up, down, both"),
        (lambda: DDM(on="loss"), r"DDM\(on=\): hears errors alone"),
        (lambda: KSWIN(window_size=50), r"stat_size=\): 30 newest values.*60 or more, got 50"),
        (lambda: KSWIN(seed=None), r"seed=\): expected a whole number"),
        (lambda: ADWIN(on="error").layout(SPEC._replace(task="regression")), "counts wrong classes.*use on='loss'"),
        (lambda: DDM().layout(SPEC._replace(task="regression")), "use ADWIN or PageHinkley"),
        (lambda: ADWIN().layout(SPEC._replace(task=None)), "without labels"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_remedy(declare, words):
    with pytest.raises(DeclarationError, match=words):
        declare()


def test_arrays_of_another_type_are_refused_and_views_are_taken():
    detector, _ = bound(ADWIN())
    with pytest.raises(ValueError, match=r"expected float64 \(B,\) and bool \(B,\), got float32"):
        detector.update(np.zeros(3, np.float32), np.empty(3, bool))
    with pytest.raises(ValueError, match="fired must be contiguous"):
        detector.update(np.zeros(3), np.empty(6, bool)[::2])
    values = rises("abrupt", 0)
    fired, view = np.empty(len(values), bool), np.repeat(values, 2)[::2]
    detector.update(view, fired)
    assert np.flatnonzero(fired).tolist() == rows_of(ADWIN(), values)


PLAIN = """
import sys, numpy as np
np.seterr(over="ignore")
from headrace.models import *
rng = np.random.default_rng(5)
spec = Spec((), (), "binary")
values = rng.normal(size=500) + 2 * (np.arange(500) // 150 % 2)
for detector in (ADWIN(), PageHinkley(threshold=10), DDM(), KSWIN()):
    state = allocate(detector.layout(spec))
    detector.bind(spec, state, {})
    fired = np.empty(500, bool)
    detector.update((values > 1).astype(float) if isinstance(detector, DDM) else values, fired)
    print(np.flatnonzero(fired).tolist(), *(float(v).hex() for a in state.values() for v in a.ravel()))
"""


def test_kernels_do_the_same_with_the_jit_off():
    outputs = []
    for jit in ("0", "1"):
        env = os.environ | {"NUMBA_DISABLE_JIT": jit}
        done = subprocess.run([sys.executable, "-c", PLAIN], env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and outputs[0].count("\n") == 4
