"""What each learner of a blend said of an event waits with it: by that the blend judges it when the label comes."""

from dataclasses import replace

import numpy as np
import pytest
from succession_run import FTRLS, SGDS, assert_same, declared, feed, go_on, learned, taken_over, under

from headrace import Predictions
from headrace.models import Average, Blend, NoChange, PageHinkley, Rows, Spec, allocate, allocate_touched
from headrace.stream import deferred
from headrace.stream.engine import Engine
from headrace.stream.learning import Learning

BLEND = Blend(FTRLS, SGDS, NoChange())


def fed(pipeline, step):
    """An engine that has learned of events and labels that came in turns of 40, in pieces of so many."""
    engine = Engine(pipeline)
    engine.own(0)
    for first in range(0, 240, 40):
        feed(engine, "events", first, 40, step)
        if first:
            feed(engine, "labels", first - 40, 40, step)
    engine.end_cycle()
    return engine


def test_each_learner_of_a_blend_is_heard_as_if_it_were_a_model_of_its_own():
    engine = learned(a=FTRLS, b=SGDS, c=NoChange(), mean=Average(SGDS, BLEND), blend=BLEND)
    waits = engine.partitions[0].state()
    said, voices = waits["pending/said"][:, :3, 0], waits["pending/voices"]
    assert len(voices) >= 40 and voices.shape[1] == 2 * (3 + 2)  # learners and memories of two blends
    np.testing.assert_array_equal(voices[:, :3], said)
    np.testing.assert_array_equal(voices[:, 5:8], said)
    np.testing.assert_array_equal(voices[:, :5], voices[:, 5:])
    assert_same(under(engine, "model/blend/0/"), under(engine, "model/mean/0/1/0/"))


@pytest.mark.parametrize("drift", [None, PageHinkley(min_instances=5, threshold=0.5, action="reset")])
@pytest.mark.parametrize("explain", [None, 1])
def test_result_is_the_same_wherever_pieces_are_cut(drift, explain, monkeypatch):
    monkeypatch.setattr(deferred, "rows_at_one_go", lambda *of: 7)
    pipeline = replace(declared(model=BLEND, drift=drift), predictions=Predictions("scores", explain=explain))
    whole, cut = fed(pipeline, 40), fed(pipeline, 5)
    assert_same(whole.arrays, cut.arrays)
    assert_same(whole.partitions[0].state(), cut.partitions[0].state())
    assert drift is None or whole.counters()["drifts"] > 1
    plain = fed(declared(model=BLEND, drift=drift), 40)
    assert_same(under(whole, "model/"), under(plain, "model/"))


def test_voices_are_in_snapshots_and_those_of_other_models_are_not_heard():
    first = learned(model=BLEND)
    engine, notes = taken_over(first, model=BLEND)
    assert notes == []
    go_on(first, engine)
    assert_same(engine.arrays, first.arrays)
    for models in ({"a": FTRLS, "b": BLEND}, {"b": Blend(SGDS, NoChange(), FTRLS), "a": FTRLS}):
        engine, _ = taken_over(learned(a=FTRLS) if "b" in list(models)[1:] else learned(a=FTRLS, b=BLEND), **models)
        assert np.isnan(engine.partitions[0].state()["pending/voices"]).all()
        feed(engine, "labels", 160, 40)
        engine.end_cycle()
        assert engine.results_of_models()["a"]["labels"] == 200
        assert np.abs(under(engine, "model/b/")["0/weights"] - 1 / 3).max() > 0.01


def test_examples_without_weight_take_their_voices_with_them():
    spec, rng = Spec(("a",), (), "binary"), np.random.default_rng(1)
    x = rng.normal(size=(60, 1)).astype(np.float32)
    y, weight = (x[:, 0] > 0).astype(np.float32), rng.choice([0.0, 1.0], 60).astype(np.float32)
    voices = rng.uniform(0.1, 0.9, (60, 5)).astype(np.float32)
    none, time = np.empty((60, 0), np.uint64), np.zeros(60, np.int64)
    states = []
    for rows in (slice(None), weight > 0):
        learning = Learning(BLEND, spec, None, lambda *of: None)
        layout = learning.model.layout(spec)
        arrays = allocate(learning.arrays())
        learning.bind(arrays, allocate_touched(layout))
        said = np.ascontiguousarray(y[rows, None])
        learning.learn(Rows(x[rows], none[rows]), y[rows], said, time[rows], weight[rows], voices=voices[rows])
        states.append(arrays)
    assert_same(*states)
    assert np.abs(states[0]["model/0/weights"] - 1 / 3).max() > 0.01


def test_a_waiting_row_is_larger_by_what_is_said():
    sizes = []
    for model in (FTRLS, BLEND):
        engine = Engine(declared(model=model))
        engine.own(0)
        sizes.append(engine.partitions[0].pending.row.itemsize)
    assert abs(sizes[1] - sizes[0] - 4 * 5) < 8  # in whole words
