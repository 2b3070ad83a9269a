"""What learners are given wrongly in a stream: each is a clear error, or is counted and left out."""

import msgspec
import numpy as np
import polars as pl
import pytest
from engine_run import SIDE, T0
from engine_run import Run as OneRun
from river import linear_model

from headrace import DeclarationError, Events, Labels, Pipeline, Predictions, numeric
from headrace.models import LogisticRegression, Prior, River, RunningMean, SoftmaxRegression, StandardScaler


class Visit(msgspec.Struct):
    id: str
    time: float
    price: float = 1.0
    colour: str | None = None
    sold: int | None = None
    paid: float | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    colour: str | None = None
    sold: int | None = None
    paid: float | None = None


def declare(value, model, delayed, **labels):
    where = ("sales", Sale) if delayed else ()
    more = dict(within="1h", **SIDE) if delayed else {}
    return Pipeline(
        name="odd", events=Events("visits", Visit, **SIDE), labels=Labels(*where, value=value, **more, **labels),
        features=[numeric("price"), numeric(pl.col("price").log(), name="log"), numeric(pl.col("price") * 1e38, name="great")],
        model=model, predictions=Predictions("scores"),
    )  # fmt: skip


COLOURS = ["red", "green"]
TASKS = {
    "classes": ("colour", dict(classes=COLOURS), Prior, ["red", "mauve", "", "green"], "'mauve' is not one of classes"),
    "binary": ("sold", dict(task="binary"), Prior, [1, 2, -1, 0], "the task is binary, expected 0 or 1, got 2"),
    "value": (pl.col("paid") * 1e300, {}, RunningMean, [0.0, 1.0, 1e300, 0.0], "the value is"),
}


class Run(OneRun):
    def feed(self, role, rows):
        return self.process(role, rows)[0]


def row(i, **more):
    return {"id": str(i), "time": T0 + i} | more


@pytest.mark.parametrize("task", TASKS)
def test_label_that_is_none_of_those_declared_is_a_dead_letter(task):
    value, settings, model, labels, reason = TASKS[task]
    field = value if isinstance(value, str) else "paid"
    run = Run(declare(value, model(), True, **settings))
    run.feed("events", [row(i) for i in range(5)])
    done = run.feed("labels", [row(i, **{field: label}) for i, label in enumerate([*labels, None])])
    assert [letter.record.offset for letter in done.dead] == [1, 2, 4]
    assert reason in done.dead[0].reason
    assert run.counts("labels", "examples", "bad_labels", "unusable") == (2, 2, 2 + 1, 0)


@pytest.mark.parametrize("task", TASKS)
def test_label_in_the_event_that_is_none_of_those_declared_is_counted_and_the_event_is_predicted(task):
    value, settings, model, labels, _ = TASKS[task]
    field = value if isinstance(value, str) else "paid"
    run, plain = (Run(declare(value, model(), False, **settings)) for _ in range(2))
    done = run.feed("events", [row(i, **{field: label}) for i, label in enumerate([*labels, None])])
    plain.feed("events", [row(i, **{field: label}) for i, label in enumerate([labels[0], None, None, labels[3], None])])
    assert not done.dead and len(done.predicted.out) == 5
    assert run.counts("events", "labels", "examples", "unusable") == (5, 2, 2, 2)
    assert plain.counts("events", "labels", "examples", "unusable") == (5, 2, 2, 0)
    for name, array in run.engine.arrays.items():
        if name.startswith(("model/", "metrics/")):
            np.testing.assert_array_equal(array, plain.engine.arrays[name], name)


@pytest.mark.parametrize("delayed", [True, False])
@pytest.mark.parametrize(
    "model", [StandardScaler() | LogisticRegression(bits=6), River(linear_model.LogisticRegression())]
)
def test_infinite_features_are_missing_and_counted(delayed, model):
    run, plain = (Run(declare("sold", model, delayed, task="binary")) for _ in range(2))
    prices = [1.0, 0.0, 500.0, 2.0]  # log(0) is infinite, and 5e40 is beyond a float32
    rows = [row(i, price=price, sold=1) for i, price in enumerate(prices)]
    out = run.feed("events", rows).predicted.out
    assert run.counts("infinite") == (2,)
    assert np.isfinite(out).all()
    hidden = plain.pipeline.features
    assert [feature.name for feature in hidden] == ["price", "log", "great"]
    batch = plain.batch("events", rows)
    assert np.isinf(batch.numeric).sum() == 2
    batch.numeric[np.isinf(batch.numeric)] = np.nan
    expected = plain.engine.process(batch, 0, 4).predicted.out
    assert plain.counts("infinite") == (0,)
    assert out.tobytes() == expected.tobytes()
    assert run.engine.look(batch).tobytes() == plain.engine.look(batch).tobytes()
    if delayed:
        for one in (run, plain):
            one.feed("labels", [row(i, sold=1) for i in range(4)])
            one.engine.end_cycle()
    for name, array in run.engine.arrays.items():
        if name.startswith("model/"):
            np.testing.assert_array_equal(array, plain.engine.arrays[name], name)


def test_infinite_features_are_counted_once_wherever_a_try_is_undone():
    run = Run(declare("sold", Prior(), False, task="binary"))
    undo = run.engine.undo_point()
    batch = run.batch("events", [row(0, price=0.0)])
    for _ in range(3):
        run.engine.process(batch, 0, 1)
        undo()
    run.engine.process(batch, 0, 1)
    assert run.counts("infinite") == (1,)


@pytest.mark.parametrize(
    ("model", "settings", "match"),
    [
        (SoftmaxRegression(class_weight=[1.0, 2.0, 3.0]), dict(classes=COLOURS), "class_weight"),
        (LogisticRegression(), dict(classes=COLOURS), "use SoftmaxRegression|binary"),
        (River(linear_model.LogisticRegression()), dict(classes=[*COLOURS, "blue"]), "two classes.*OneVsRest"),
    ],
)
def test_more_classes_than_a_model_can_tell_apart_are_refused(model, settings, match):
    with pytest.raises(DeclarationError, match=match):
        declare("colour", model, True, **settings)
