"""Models that are added, removed, renamed or put in another order between two runs: what was learned goes on by name."""

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

from headrace import Best, SnapshotError, category, numeric
from headrace.models import FTRL, SGD, LogisticRegression, PageHinkley, Prior, StandardScaler
from headrace.stream.engine import Engine
from headrace.stream.remap import carry_over


def test_same_models_take_the_state_as_it_is():
    first = learned(a=FTRLS, b=SGDS)
    engine, notes = taken_over(first, a=FTRLS, b=SGDS)
    assert notes == []
    served = go_on(first, engine)
    np.testing.assert_array_equal(*served)
    assert_same(engine.arrays, first.arrays)


def test_new_model_begins_beside_the_others_and_is_not_scored_for_what_it_did_not_say():
    first = learned(a=FTRLS)
    engine, notes = taken_over(first, a=FTRLS, b=SGDS, drift=None)
    assert notes == ["model `b` is new"]
    assert np.isnan(engine.partitions[0].state()["pending/said"][:, 1]).all()
    served = go_on(first, engine)
    np.testing.assert_array_equal(*served)
    assert_same(under(engine, "model/a/"), under(first, "model/a/"))
    told = engine.results_of_models()
    assert told["a"] == first.results_of_models()["a"]
    assert told["b"]["labels"] == 20  # of 60, 40 were predicted before it came
    assert under(engine, "model/b/")["1/base_count"][0] > 55  # and learned nevertheless: features wait for all


def test_detector_of_a_new_model_hears_nothing_of_what_it_did_not_say():
    detector = PageHinkley(min_instances=5, threshold=1.0)
    engine, _ = taken_over(learned(a=FTRLS, drift=detector), a=FTRLS, b=SGDS, drift=detector)
    feed(engine, "labels", 160, 40)
    engine.end_cycle()
    fresh = under(Engine(engine.pipeline), "drift/b/detector/")
    assert_same(under(engine, "drift/b/detector/"), fresh)
    assert any((array != fresh[name]).any() for name, array in under(engine, "drift/a/detector/").items())


def test_model_that_is_gone_is_told_and_the_rest_goes_on():
    first = learned(a=FTRLS, b=SGDS, c=Prior())
    engine, notes = taken_over(first, a=FTRLS, c=Prior())
    assert notes == ["model `b` is gone"]
    go_on(first, engine)
    for name in ("a", "c"):
        assert_same(under(engine, f"model/{name}/"), under(first, f"model/{name}/"))
        assert engine.results_of_models()[name] == first.results_of_models()[name]
    assert not [name for name in engine.arrays if "/b/" in name]


def test_another_first_serves_from_now_on_with_what_it_learned():
    first = learned(a=FTRLS, b=SGDS)
    engine, notes = taken_over(first, b=SGDS, a=FTRLS)
    assert notes == ["`b` serves from now on"]
    waits = engine.partitions[0].state(), first.partitions[0].state()
    np.testing.assert_array_equal(waits[0]["pending/said"], waits[1]["pending/said"][:, ::-1])
    np.testing.assert_array_equal(waits[0]["pending/prediction"], waits[1]["pending/prediction"])
    served = go_on(engine, first)[0]
    np.testing.assert_array_equal(served, first.partitions[0].state()["pending/said"][-30:, 1])
    assert_same(under(engine, "model/"), under(first, "model/"))
    told = engine.results_of_models(), first.results_of_models()
    assert told[0]["a"]["served"] == 200 and told[0]["b"]["served"] == 30
    assert told[0]["b"]["log_loss"] == told[1]["b"]["log_loss"]
    sums = engine.arrays["metrics/sums"], first.arrays["metrics/sums"]
    assert sums[0][0] == sums[1][0] and sums[0][1] != sums[1][1]  # as many labels, of what was served


def test_challengers_in_another_order_change_nothing():
    first = learned(a=FTRLS, b=SGDS, c=Prior(), serve=Best("1h", lead=0.0))
    engine, notes = taken_over(first, a=FTRLS, c=Prior(), b=SGDS, serve=Best("1h", lead=0.0))
    assert notes == []
    names = {engine.contest.names[engine.contest.serves], first.contest.names[first.contest.serves]}
    assert len(names) == 1
    served = go_on(first, engine)
    np.testing.assert_array_equal(*served)
    assert engine.results_of_models() == first.results_of_models()


def test_one_model_becomes_one_of_several_and_one_of_several_the_only_one():
    alone = learned(model=FTRLS)
    contest, notes = taken_over(alone, new=SGDS, old=FTRLS)
    assert notes == ["model `new` is new", "the only model goes on as `old`", "`new` serves from now on"]
    waits = contest.partitions[0].state()
    np.testing.assert_array_equal(waits["pending/said"][:, 1], waits["pending/prediction"])
    assert np.isnan(waits["pending/said"][:, 0]).all()
    told = contest.results_of_models()["old"]
    assert told["log_loss"] == alone.results()["log_loss"] and told["served"] == 200
    go_on(contest, alone)
    assert_same(under(contest, "model/old/"), under(alone, "model/"))
    assert_same(under(contest, "contest/old/"), under(alone, "metrics/"))

    back, notes = taken_over(contest, model=FTRLS)
    assert notes == ["model `old` goes on as the only one", "model `new` is gone"]
    assert_same(under(back, "model/"), under(alone, "model/"))
    assert "pending/said" not in back.partitions[0].state()


def test_one_model_with_other_settings_becomes_the_first():
    other = StandardScaler() | LogisticRegression(FTRL(alpha=0.5), bits=8)
    alone = learned(model=FTRLS)
    contest, notes = taken_over(alone, now=other, b=SGDS)
    assert "the only model goes on as `now`" in notes
    assert_same(under(contest, "model/now/"), under(alone, "model/"))


def test_model_made_of_other_parts_begins_anew_under_its_name():
    first = learned(a=FTRLS, b=SGDS)
    engine, notes = taken_over(first, a=FTRLS, b=Prior())
    assert notes == ["model `b` is made of other parts and begins anew"]
    assert engine.results_of_models()["b"]["labels"] == 0
    assert_same(under(engine, "model/a/"), under(first, "model/a/"))
    settled, notes = taken_over(first, a=FTRLS, b=StandardScaler() | LogisticRegression(SGD(0.3), bits=8))
    assert notes == ["model `b` is declared otherwise"]
    assert_same(under(settled, "model/b/"), under(first, "model/b/"))


def test_table_of_another_size_is_refused_by_its_name():
    engine = Engine(declared(a=FTRLS, b=StandardScaler() | LogisticRegression(SGD(0.01), bits=9)))
    state, _ = carry_over(state_of(learned(a=FTRLS, b=SGDS)), engine)
    with pytest.raises(SnapshotError, match=r"array `model/b/1/\w+`.*another table size"):
        engine.load(state)


def test_features_may_change_with_the_models():
    first = learned(a=FTRLS, b=SGDS)
    features = (category("site"), numeric("price"), numeric("price", name="again"), FEATURES[2])
    engine, notes = taken_over(first, features, b=SGDS, c=FTRLS)
    assert set(notes) == {
        "model `c` is new", "model `a` is gone", "`b` serves from now on", "`again` is new",
    }  # fmt: skip
    columns = under(engine, "model/b/")["1/columns"], under(first, "model/b/")["1/columns"]
    np.testing.assert_array_equal(columns[0][[0, 2]], columns[1])
    assert not columns[0][1].any()
    feed(engine, "labels", 160, 40)


@pytest.mark.parametrize("serve", [None, Best("30m", lead=0.0)])
def test_who_is_best_goes_on_and_begins_anew_where_it_was_not_asked(serve):
    best = Best("1h", lead=0.0)
    first = learned(a=Prior(), b=FTRLS, c=SGDS, serve=serve)
    engine, notes = taken_over(first, c=SGDS, b=FTRLS, serve=best)
    assert "model `a` is gone" in notes
    assert ("the best of late serves now" if serve is None else "serve is declared otherwise") in notes
    gained = engine.arrays["contest/gained"]
    if serve is None:
        assert not gained.any() and engine.contest.serves == 0
    else:
        assert gained[0, 1] == first.arrays["contest/gained"][2, 1] != 0
        served = first.contest.names[first.contest.serves]
        assert engine.contest.names[engine.contest.serves] == (served if served != "a" else "c")
    feed(engine, "labels", 160, 40)


def test_model_whose_state_is_opaque_comes_goes_and_goes_on_by_its_name():
    river = pytest.importorskip("river")
    from river import compose, linear_model

    from headrace.models import River

    assert river.__version__
    models = dict(a=FTRLS, r=River(compose.SelectType(float) | linear_model.LogisticRegression()))
    first = learned(**models)
    assert [name for name in first.state().shared if name.startswith("opaque/")] == ["opaque/r/0/river"]
    engine, notes = taken_over(first, **models)
    assert notes == []
    go_on(first, engine)
    assert engine.results_of_models() == first.results_of_models()
    alone, notes = taken_over(first, a=FTRLS)
    assert notes == ["model `r` is gone"] and "opaque" not in alone.state().meta
    again, notes = taken_over(alone, s=models["r"], a=FTRLS)
    assert notes == ["model `s` is new", "`s` serves from now on"]
    feed(again, "labels", 160, 40)
    _, notes = taken_over(first, model=models["r"])
    assert notes == ["model `r` goes on as the only one", "model `a` is gone"]
    with pytest.raises(SnapshotError, match="holds the state of another model"):
        taken_over(first, a=FTRLS, r=River(compose.SelectType(float) | linear_model.LogisticRegression(l2=0.5)))
