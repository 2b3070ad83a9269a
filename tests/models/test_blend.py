"""The blend of learners: their mean, in which each weighs the more the less it erred of late."""

import json

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.models import (
    FTRL,
    SGD,
    Blend,
    LogisticRegression,
    NoChange,
    Prior,
    RunningMean,
    SoftmaxRegression,
    StandardScaler,
    Truth,
    build,
)

LINEAR = {"bits": 6}


class Batches(NoChange):
    updates = "micro_batch"
    batch_size = 8


def plain():
    return LogisticRegression(FTRL(), **LINEAR)


def scaled():
    return StandardScaler() | LogisticRegression(SGD(0.01), **LINEAR)


def outs(bound, part, method="test_then_learn"):
    out = np.empty((len(part.truth.y), bound.spec.outputs), np.float32)
    rows = (part.x, part.truth) if method == "test_then_learn" else (part.x,)
    getattr(bound.chain, method)(*rows, out)
    return out


def loss(out, y, classes):
    """Of each row: log loss, or absolute error."""
    if not classes:
        return np.abs(out[:, 0].astype(float) - y)
    of_class = np.stack([1.0 - out[:, 0].astype(float), out[:, 0]], 1) if out.shape[1] == 1 else out.astype(float)
    return -np.log(np.clip(of_class[np.arange(len(y)), np.maximum(y, 0).astype(int)], 1e-6, 1.0))


def blended(each, losses, counts, fades, sharpness):
    """A plain account of a blend: each (L, B, O), losses (L, B), counts (B,) the weight of each row as a judge."""
    sums, out = np.zeros(len(each)), np.empty(each.shape[1:])
    for i in range(each.shape[1]):
        weights = np.ones(len(each)) if not sums.any() else np.array([min(sums) / s if s else 1.0 for s in sums])
        out[i] = np.average(each[:, i].astype(float), axis=0, weights=weights**sharpness)
        if counts[i] > 0:
            sums = fades * sums + counts[i] * losses[:, i]
    return out, sums


@pytest.mark.parametrize(
    ("labels", "task", "makes"),
    [
        ("binary", "binary", [plain, Prior, NoChange]),
        ("classes", "multiclass", [lambda: SoftmaxRegression(**LINEAR), Prior]),
        ("value", "regression", [RunningMean, NoChange]),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"memory": 10, "sharpness": 1.5}])
def test_weights_are_by_the_losses_of_late_and_each_learns_as_alone(bind, stream, labels, task, makes, settings):
    part = stream(300, 1, labels)
    part.truth.y[::7] = np.nan
    part.truth.weight[5::11] = -1.0
    part.truth.weight[6::11] = 0.0
    part.truth.weight[7::11] = np.nan
    blend, alone = (
        bind(Blend(*(make() for make in makes), **settings), task=task),
        [bind(m(), task=task) for m in makes],
    )
    each = np.array([outs(bound, part) for bound in alone])
    y = np.nan_to_num(part.truth.y[:, 0].astype(float))
    counts = np.where(np.isnan(part.truth.y[:, 0]), 0.0, np.nan_to_num(part.truth.weight.astype(float)))
    fades, sharpness = 1 - 1 / settings.get("memory", 50), settings.get("sharpness", 8)
    losses = np.array([loss(out, y, task != "regression") for out in each])
    expected, sums = blended(each, losses, counts, fades, sharpness)
    np.testing.assert_allclose(outs(blend, part), expected, rtol=2e-6)
    np.testing.assert_allclose(blend.state["0/losses"], sums, rtol=1e-9)
    for i, bound in enumerate(alone):
        for name, array in bound.state.items():
            np.testing.assert_array_equal(blend.state[f"0/{i}/{name}"], array)


def test_labels_in_another_unit_change_no_weight(bind, stream):
    part = stream(200, 2, "value")
    larger = part._replace(truth=Truth(part.truth.y * 1024, part.truth.weight))
    plain_unit, other_unit = (bind(Blend(RunningMean(), NoChange()), task="regression") for _ in range(2))
    np.testing.assert_array_equal(outs(other_unit, larger), outs(plain_unit, part) * 1024)


def test_before_the_first_label_all_weigh_the_same_and_one_without_errors_then_speaks_alone(bind, stream):
    part = stream(40, 3, "value")
    part.truth.y[:] = 7.0
    bound = bind(Blend(RunningMean(), NoChange()), task="regression")
    first = outs(bound, part.piece(0, 1))
    said = [outs(bind(make(), task="regression"), part.piece(0, 1)) for make in (RunningMean, NoChange)]
    np.testing.assert_array_equal(first, np.mean(said, axis=0))
    bound.state["0/losses"][:] = 0.0, 3.0
    bound.state["0/1/0/last"][...] = 100.0
    assert outs(bound, part.piece(1, 2), "predict").tolist() == [[7.0]]


def test_what_was_thought_impossible_costs_a_bounded_loss(bind, stream):
    part = stream(61, 4)
    part.truth.y[:, 0], part.truth.weight[:] = 1.0, 1.0
    part.truth.y[60] = 0.0  # after 60 labels that were all true
    bound = bind(Blend(Prior(start=0.0), LogisticRegression(**LINEAR), memory=5), task="binary")
    outs(bound, part)
    assert -np.log(1e-6) <= bound.state["0/losses"][0] < -np.log(1e-6) + 0.1


def test_configuration_is_the_way_there_and_back():
    blend = Blend(scaled(), Blend(plain(), Prior()), memory=20, sharpness=2)
    again = build(json.loads(json.dumps(blend.config())))
    assert again.config() == blend.config() == blend.unbound().config()
    assert repr(again) == repr(blend)
    assert repr(blend).startswith("Blend(StandardScaler(") and repr(blend).endswith(", memory=20, sharpness=2)")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Blend(), r"Blend\(\): expected one learner or more"),
        (lambda: Blend(plain(), Batches()), "learns in micro-batches, and a blend judges row by row; take Average"),
        (lambda: Blend(plain(), memory=0.5), r"Blend\(memory=\): expected a number of at least 1, got 0.5"),
        (lambda: Blend(plain(), sharpness=-1), r"Blend\(sharpness=\): expected a number of at least 0 and at most 100"),
    ],
)
def test_a_blend_declared_wrongly_says_what_was_expected(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()
