"""What each learner of a blend said of an event waits with it: by that the blend judges it when the label comes."""

from dataclasses import replace

import numpy as np
import pytest
from succession_run import (
    FEATURES,
    FTRLS,
    SGDS,
    assert_same,
    declared,
    feed,
    go_on,
    learned,
    state_of,
    taken_over,
    under,
)

from headrace import Predictions, numeric
from headrace.models import Average, Blend, NoChange, PageHinkley, Rows, Spec, allocate, allocate_touched
from headrace.stream import deferred
from headrace.stream.engine import Engine
from headrace.stream.learning import Learning
from headrace.stream.remap import carry_over

BLEND = Blend(FTRLS, SGDS, NoChange())
NARROW = Blend(SGDS, FTRLS, memories=[20])
DRIFT = PageHinkley(min_instances=5, threshold=0.5, action="reset")


def fed(pipeline, step):
    """An engine that has learned of events and labels that came in turns of 40, in pieces of so many, each at once."""
    engine = Engine(pipeline)
    engine.own(0)
    for first in range(0, 240, 40):
        feed(engine, "events", first, 40, step)
        for label in range(first - 40, first, step) if first else ():
            feed(engine, "labels", label, step)
            engine.counters()  # what was taken is learned
    engine.end_cycle()
    return engine


def waiting(engine):
    """The state of the partition, and where in it the rows are that still wait for their label."""
    waits = engine.partitions[0].state()
    return waits, waits["pending/settled"] == 0


def told_labels(*engines, first=160):
    for engine in engines:
        feed(engine, "labels", first, 40)
        engine.end_cycle()


def trusted(trust, alone, first=160):
    """What memories count after the labels from `first` on, by what each had said (B, M): log, the greatest is 0."""
    for i, said in enumerate(alone.astype(float), first):  # row i is true where it is odd
        trust = (1 - 1e-4) * trust + np.log(said if i % 2 else 1 - said)
        trust = trust - trust.max()
    return trust


def said_now(engine, waits, row):
    """What each learner of a blend would say of a waiting row [i], and what each memory would by its weights."""
    x, each = Rows(waits["pending/numeric"][row], waits["pending/categories"][row]), np.empty((3, 1, 1), np.float32)
    for chain, out in zip(engine.model.learner.learners, each, strict=True):
        chain.predict(x, out)
    p = np.clip(each[:, 0, 0].astype(float), 0.001, 0.999)
    return np.append(each, 1 / (1 + np.exp(-under(engine, "model/0/")["weights"] @ np.log(p / (1 - p)))))


def test_each_learner_of_a_blend_is_heard_as_if_it_were_a_model_of_its_own():
    engine = learned(a=FTRLS, b=SGDS, c=NoChange(), mean=Average(SGDS, BLEND), blend=BLEND)
    waits = engine.partitions[0].state()
    said, voices = waits["pending/said"][:, :3, 0], waits["pending/voices"]
    assert len(voices) >= 40 and voices.shape[1] == 2 * (3 + 2)  # learners and memories of two blends
    np.testing.assert_array_equal(voices[:, :3], said)
    np.testing.assert_array_equal(voices[:, 5:8], said)
    np.testing.assert_array_equal(voices[:, :5], voices[:, 5:])
    assert_same(under(engine, "model/blend/0/"), under(engine, "model/mean/0/1/0/"))


def test_a_blend_within_another_model_hears_its_own_voices():
    engine = learned(a=NARROW, c=BLEND, mean=Average(NARROW, BLEND), outer=Blend(SGDS, NARROW))
    go_on(engine)
    for name, inner in (("a", "mean/0/0"), ("c", "mean/0/1"), ("a", "outer/0/1")):
        assert_same(under(engine, f"model/{name}/0/"), under(engine, f"model/{inner}/0/"))


@pytest.mark.parametrize("drift", [None, DRIFT])
def test_each_model_of_a_contest_hears_its_own_voices(drift):
    alone = {name: learned(model=model, drift=drift) for name, model in (("a", NARROW), ("c", BLEND))}
    engine = learned(a=NARROW, b=FTRLS, c=BLEND, drift=drift)
    assert engine.partitions[0].pending.row["voices"].shape == (3 + 5,)
    go_on(engine, *alone.values())
    for name, one in alone.items():
        assert_same(under(engine, f"model/{name}/"), under(one, "model/"))


@pytest.mark.parametrize("drift", [None, DRIFT])
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


@pytest.mark.parametrize("drift", [None, replace(DRIFT, action="report")])
def test_memories_are_trusted_by_what_they_said_also_where_the_row_has_moved_to_another_engine(drift):
    stays, comes = learned(model=BLEND, drift=drift), Engine(declared(model=BLEND, drift=drift))
    waits, wait = waiting(stays)
    alone, given = waits["pending/voices"][wait, 3:], {name: array.copy() for name, array in waits.items()}
    comes.load_partition(0, given)
    assert_same(given, waits)
    for engine, trust in ((stays, under(stays, "model/0/")["trust"].copy()), (comes, np.zeros(2))):
        told_labels(engine)
        expected = trusted(trust, alone)
        assert expected.min() < trust.min() - 0.01
        np.testing.assert_allclose(under(engine, "model/0/")["trust"], expected, rtol=1e-6)


def test_a_partition_that_goes_and_comes_back_takes_its_voices_along():
    stays, goes = learned(model=BLEND), learned(model=BLEND)
    goes.load_partition(0, goes.disown(0))
    go_on(stays, goes)
    assert_same(goes.arrays, stays.arrays)
    assert_same(goes.partitions[0].state(), stays.partitions[0].state())


def test_where_it_is_not_known_what_was_said_it_counts_what_is_said_right_before_the_row_is_learned():
    engine, known = learned(model=BLEND), learned(model=BLEND)
    for one in (engine, known):
        one.mute({("events", 0): 220})  # rows 200 to 219 are predicted by what stands still
        feed(one, "events", 200, 40)
        told_labels(one)
    waits, wait = waiting(engine)
    assert np.isnan(waits["pending/voices"][wait]).any(1).tolist() == [True] * 20 + [False] * 20
    told_labels(engine, first=200)
    for label in range(200, 240):
        waits, wait = waiting(known)
        row = np.flatnonzero(wait)[:1]
        if label < 220:
            waits["pending/voices"][row] = said_now(known, waits, row)
        known.load_partition(0, waits)
        feed(known, "labels", label, 1)
        known.end_cycle()
    for name, array in under(known, "model/").items():
        np.testing.assert_allclose(under(engine, "model/")[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


def test_partitions_from_before_there_were_voices_are_taken_over_and_left_as_they_are():
    first, engine = learned(model=BLEND), learned(model=BLEND)
    old = {name: array for name, array in first.disown(0).items() if name != "pending/voices"}
    engine.load_partition(0, old)
    assert "pending/voices" not in old
    assert np.isnan(engine.partitions[0].state()["pending/voices"]).all()
    first.load_partition(0, old | {"pending/voices": np.full((len(old["pending/key"]), 4), 0.5, np.float32)})
    go_on(first, engine)  # those of another number of learners are not heard either
    assert_same(first.arrays, engine.arrays)


@pytest.mark.parametrize("features", [FEATURES[1:], (*FEATURES, numeric("price", name="again"))])
def test_voices_stay_where_features_come_or_go(features):
    first = learned(model=BLEND)
    waits, wait = waiting(first)
    engine, _ = taken_over(first, features, model=BLEND)
    np.testing.assert_array_equal(engine.partitions[0].state()["pending/voices"], waits["pending/voices"])
    trust = under(engine, "model/0/")["trust"].copy()
    told_labels(engine)
    expected = trusted(trust, waits["pending/voices"][wait, 3:])
    np.testing.assert_allclose(under(engine, "model/0/")["trust"], expected, rtol=1e-6)


def test_a_model_keeps_its_voices_where_others_come_or_go():
    first = learned(a=NARROW, b=FTRLS, c=BLEND)
    engine, _ = taken_over(first, c=BLEND, new=NARROW, d=SGDS)
    voices, now = waiting(first)[0]["pending/voices"], waiting(engine)[0]["pending/voices"]
    np.testing.assert_array_equal(now[:, :5], voices[:, 3:])
    assert now.shape[1] == 5 + 3 and np.isnan(now[:, 5:]).all()
    alone, _ = taken_over(first, model=NARROW)
    again, _ = taken_over(alone, x=BLEND, y=NARROW)
    only_one, _ = taken_over(first, model=FTRLS)
    assert "pending/voices" not in waiting(only_one)[0]
    go_on(first, engine, alone, again)
    assert_same(under(engine, "model/c/"), under(first, "model/c/"))
    for name, one in (("model/", alone), ("model/y/", again)):
        assert_same(under(one, name), under(first, "model/a/"))


def test_a_contest_that_did_not_tell_how_many_voices_each_model_has_goes_on_without():
    state = state_of(learned(a=NARROW, c=BLEND))
    del state.meta["voices"]
    engine = Engine(declared(c=BLEND, a=NARROW))
    engine.load(carry_over(state, engine)[0])
    assert np.isnan(waiting(engine)[0]["pending/voices"]).all()
    told_labels(engine)


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
