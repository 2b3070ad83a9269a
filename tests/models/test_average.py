"""The average of learners: what it says is the mean of what they say alone, and each learns as it would alone."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.models import (
    FTRL,
    SGD,
    Average,
    LinearRegression,
    LogisticRegression,
    Prior,
    Rows,
    RunningMean,
    SoftmaxRegression,
    StandardScaler,
    Truth,
    build,
)
from headrace.models.base import Array, Configured, Learner, register

LINEAR = {"bits": 6}


def scaled():
    return StandardScaler() | LogisticRegression(SGD(0.01), **LINEAR)


def plain():
    return LogisticRegression(FTRL(), **LINEAR)


def outs(bound, part, method="test_then_learn"):
    out = np.empty((len(part.truth.y), bound.spec.outputs), np.float32)
    if method == "test_then_learn":
        bound.chain.test_then_learn(part.x, part.truth, out)
    else:
        getattr(bound.chain, method)(part.x, out)
    return out


@pytest.mark.parametrize("weights", [None, [2.0, 0.5, 1.0]])
def test_average_is_the_mean_of_what_its_learners_say_and_each_learns_as_alone(bind, stream, weights):
    part = stream(200, 1)
    part.truth.y[::7] = np.nan
    average = bind(Average(plain(), scaled(), Prior(), weights=weights))
    alone = [bind(make) for make in (plain(), scaled(), Prior())]
    for method in ("test_then_learn", "predict_then_observe", "predict"):
        each = np.array([outs(bound, part, method) for bound in alone], np.float64)
        expected = np.average(each, axis=0, weights=weights)
        np.testing.assert_allclose(outs(average, part, method), expected, rtol=1e-7)
    average.chain.learn(part.x, part.truth)
    for i, bound in enumerate(alone):
        bound.chain.learn(part.x, part.truth)
        for name, array in bound.state.items():
            np.testing.assert_array_equal(average.state[f"0/{i}/{name}"], array)
        for name, marks in bound.touched.items():
            np.testing.assert_array_equal(average.touched[f"0/{i}/{name}"], marks)


def test_average_of_equal_learners_is_that_learner_to_the_bit(bind, stream):
    part = stream(300, 2, "classes")
    one = outs(bind(SoftmaxRegression(**LINEAR), task="multiclass"), part)
    for models in (1, 3):
        learners = [SoftmaxRegression(**LINEAR) for _ in range(models)]
        average = outs(bind(Average(*learners), task="multiclass"), part)
        np.testing.assert_array_equal(average, one)
    assert average.sum(1) == pytest.approx(1, abs=1e-6)


def test_scaler_before_the_average_stands_before_each_learner(bind, stream):
    part = stream(200, 3, "value")
    shared = bind(StandardScaler() | Average(LinearRegression(FTRL(), **LINEAR), RunningMean(), weights=[3, 1]))
    alone = bind(StandardScaler() | LinearRegression(FTRL(), **LINEAR)), bind(RunningMean())
    expected = np.average([outs(bound, part).astype(float) for bound in alone], axis=0, weights=[3, 1])
    np.testing.assert_allclose(outs(shared, part), expected, rtol=1e-6)
    np.testing.assert_array_equal(shared.state["1/0/0/table"], alone[0].state["1/table"])


def test_scaler_in_a_learner_sees_rows_as_the_scaler_before_it_left_them(bind, stream):
    part = stream(200, 4)
    nested = bind(StandardScaler(clip=2.0) | Average(scaled()))
    straight = bind(StandardScaler(clip=2.0) | scaled())
    for method in ("test_then_learn", "predict_then_observe", "predict"):
        np.testing.assert_array_equal(outs(nested, part, method), outs(straight, part, method))
    nested.chain.learn(part.x, part.truth)
    straight.chain.learn(part.x, part.truth)
    before, after = list(straight.state.values()), list(nested.state.values())
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_scaler_in_a_learner_observes_rows_without_a_label(bind, stream):
    part = stream(50, 5)
    bound = bind(Average(scaled(), plain()))
    outs(bound, part, "predict_then_observe")
    np.testing.assert_array_equal(bound.state["0/0/0/count"], np.isfinite(part.x.numeric).sum(0))


def test_configuration_is_the_way_there_and_back():
    average = StandardScaler() | Average(scaled(), Average(plain(), Prior()), weights=(2, 1))
    again = build(json.loads(json.dumps(average.config())))
    assert again.config() == average.config()
    assert repr(again) == repr(average)
    assert "Average(StandardScaler" in repr(average) and "weights=[2.0, 1.0]" in repr(average)
    assert average.quick and again.unbound().config() == average.config()


@register
@dataclass(eq=False)
class Batches(Configured, Learner):
    updates: str = "micro_batch"
    batch_size: int = 8

    def layout(self, spec):
        return {"learned": Array((2,), "int64")}

    def bind(self, spec, state, touched):
        self.learned = state["learned"]

    def predict(self, x, out):
        out[:] = 0.5

    def learn(self, x, truth):
        self.learned += 1, len(truth.y)


def test_average_with_micro_batches_learns_in_them(bind, stream):
    average = Average(plain(), Batches())
    assert (average.updates, average.batch_size) == ("micro_batch", 8)
    assert not (StandardScaler() | average).quick  # a learner of a user may do anything
    with pytest.raises(DeclarationError, match="micro-batches of 8 and 16; give them one batch_size"):
        Average(Batches(), Batches(batch_size=16))
    bound = bind(average)
    part = stream(8, 1)
    bound.chain.learn(part.x, part.truth)
    assert bound.state["0/1/0/learned"].tolist() == [1, 8]


def test_a_task_that_one_learner_does_not_learn_is_refused(bind):
    with pytest.raises(DeclarationError, match="LinearRegression learns a regression task"):
        bind(Average(plain(), LinearRegression()), task="binary")


def test_raw_rows_of_float64_are_refused_as_ever(bind, stream):
    part = stream(5, 1)
    bound = bind(Average(plain()))
    with pytest.raises(ValueError, match="numeric features: expected float32"):
        bound.chain.learn(Rows(part.x.numeric.astype(np.float64), part.x.categories), Truth(*part.truth))
