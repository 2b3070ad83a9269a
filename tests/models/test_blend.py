"""The blend of learners: the mix of what they say that would have been best."""

import json

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.models import (
    FTRL,
    SGD,
    Blend,
    LinearRegression,
    LogisticRegression,
    NoChange,
    Prior,
    Rows,
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


def scores_of(said, task):
    """Log-odds, or logarithms of P less their mean, of what is said (..., O), or values as they are."""
    said = said.astype(float)
    if task == "regression":
        return said
    least = 0.002 / max(2, said.shape[-1])
    p = np.clip(said, least, 1 - least)
    return np.log(p / (1 - p)) if task == "binary" else np.log(p) - np.log(p).mean(-1, keepdims=True)


def predicted(scores, weights, task):
    """What is predicted of scores (L, O) with weights (L,)."""
    raw = weights @ scores
    if task == "regression":
        return raw
    return 1 / (1 + np.exp(-raw)) if task == "binary" else np.exp(raw) / np.exp(raw).sum()


class Memory:
    """A plain account of the weights of one memory."""

    def __init__(self, memory, learners, task):
        self.fades, self.task = 1 - 1 / memory, task
        self.start = self.weights = np.full(learners, 1 / learners)
        self.curvature, self.error, self.examples = np.zeros((learners, learners)), 0.0, 0.0

    def learn(self, scores, y, weight):
        if self.task == "regression":
            x = scores[:, 0] - scores[:, 0].mean()
            off = y - scores[:, 0].mean() - self.weights @ x
            self.examples = self.fades * self.examples + weight
            self.error += weight / self.examples * (abs(off) - self.error)
            near, prior = weight / max(abs(off), self.error), self.error
            slope, bent = near * off * x, near * np.outer(x, x)
        else:
            p, of = predicted(scores, self.weights, self.task), int(y)
            if self.task == "binary":  # two classes, the second of which is true
                p, scores = np.array([1 - p[0], p[0]]), np.stack([-scores[:, 0] / 2, scores[:, 0] / 2], 1)
            truth = np.eye(len(p))[of]
            slope = weight * scores @ (truth - p)
            p = p + (1 - p[of]) / 2 * (truth - p)  # the more wrong, the nearer to what is true
            bent, prior = weight * (scores * p) @ scores.T - weight * np.outer(scores @ p, scores @ p), 10.0
        slope = slope + (1 - self.fades) * prior * (self.start - self.weights)
        self.curvature = self.fades * self.curvature + bent
        self.weights = self.weights + np.linalg.solve(self.curvature + prior * np.eye(len(slope)), slope)


def blended(each, y, weight, task, memories):
    """A plain account of a blend of what is said (L, B, O); NaN in y (B,): not known. And its last weights."""
    scores = scores_of(each, task)
    all_memories, trust = [Memory(memory, len(each), task) for memory in memories], np.zeros(len(memories))
    out, used = np.empty(each.shape[1:]), np.empty(each.shape[:2])
    for i in range(len(y)):
        share = np.exp(trust - trust.max())
        used[:, i] = share / share.sum() @ [memory.weights for memory in all_memories]
        out[i] = predicted(scores[:, i], used[:, i], task)
        if not (weight[i] > 0) or np.isnan(y[i]):
            continue
        said = np.array([predicted(scores[:, i], memory.weights, task) for memory in all_memories])
        for memory in all_memories:
            memory.learn(scores[:, i], y[i], float(weight[i]))
        if task == "regression":
            lost = np.abs(said[:, 0] - y[i]) / all_memories[0].error
        else:
            p = said[:, int(y[i])] if task == "multiclass" else np.where(y[i] == 1, said[:, 0], 1 - said[:, 0])
            lost = -np.log(np.maximum(p, 1e-6))
        trust = (1 - 1e-4) * trust - weight[i] * lost
    return out, np.array([memory.weights for memory in all_memories]), used


@pytest.mark.parametrize(
    ("labels", "task", "makes"),
    [
        ("binary", "binary", [plain, Prior, NoChange]),
        ("classes", "multiclass", [lambda: SoftmaxRegression(**LINEAR), Prior]),
        ("value", "regression", [lambda: LinearRegression(**LINEAR), RunningMean, NoChange]),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"memories": [10]}])
def test_weights_are_what_would_have_been_best_and_each_learns_as_alone(bind, stream, labels, task, makes, settings):
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
    y, weight = part.truth.y[:, 0].astype(float), np.nan_to_num(part.truth.weight.astype(float))
    expected, weights, used = blended(each, y, weight, task, settings.get("memories", [50, 100_000]))
    assert np.abs(used[:, -1] - used[:, 0]).max() > 0.1
    np.testing.assert_allclose(outs(blend, part), expected, rtol=2e-6)
    np.testing.assert_allclose(blend.state["0/weights"], weights, rtol=1e-7, atol=1e-9)
    for i, bound in enumerate(alone):
        for name, array in bound.state.items():
            np.testing.assert_array_equal(blend.state[f"0/{i}/{name}"], array)


def test_weights_of_values_add_up_to_1_and_labels_from_another_zero_change_nothing(bind):
    rng = np.random.default_rng(2)
    said, y = rng.normal(size=(500, 3)), rng.normal(size=500)
    said[100, 1], said[200] = 1e20, [1e8, 0.9e8, 0.0]
    said[400:] = 7.0
    np.testing.assert_allclose(told(bind, said, y, "regression")[400:], 7.0, rtol=1e-6)
    said = said[201:400] * 4
    moved = told(bind, said + 1024, y[201:400] + 1024, "regression") - 1024
    np.testing.assert_allclose(moved, told(bind, said, y[201:400], "regression"), atol=0.05)


def test_labels_in_another_unit_change_no_weight(bind, stream):
    part = stream(200, 2, "value")
    larger = part._replace(truth=Truth(part.truth.y * 2048, part.truth.weight))
    plain_unit, other_unit = (bind(Blend(RunningMean(), NoChange()), task="regression") for _ in range(2))
    np.testing.assert_array_equal(outs(other_unit, larger), outs(plain_unit, part) * 2048)


BY_TASK = pytest.mark.parametrize(
    ("labels", "task", "make"),
    [
        ("binary", "binary", LogisticRegression),
        ("classes", "multiclass", SoftmaxRegression),
        ("value", "regression", LinearRegression),
    ],
)


@BY_TASK
def test_what_was_said_of_a_row_is_judged_and_not_what_would_be_said_when_its_label_comes(
    bind, stream, labels, task, make
):
    part = stream(300, 4, labels)
    part.truth.weight[:] = 1.0
    makes = [lambda: make(**LINEAR), NoChange]
    blend = bind(Blend(*(make() for make in makes)), task=task)
    alone = [bind(make(), task=task) for make in makes]
    outputs = blend.spec.outputs
    said = np.empty((2, 300, outputs), np.float32)
    for a in range(0, 300, 50):  # labels come when 50 rows have been predicted
        rows, late = part.piece(a, a + 50), slice(a, a + 50)
        voices = np.empty((50, blend.chain.voices(blend.spec)), np.float32)
        blend.chain.predict_then_observe(rows.x, np.empty((50, outputs), np.float32), voices=voices)
        for own, bound in zip(said, alone):
            bound.chain.predict(rows.x, own[late])
            bound.chain.learn(rows.x, rows.truth)
        assert voices[:, : 2 * outputs].tobytes() == said[:, late].transpose(1, 0, 2).tobytes()
        blend.chain.learn(rows.x, rows.truth, voices=voices)
    _, weights, _ = blended(said, part.truth.y[:, 0].astype(float), part.truth.weight, task, [50, 100_000])
    np.testing.assert_allclose(blend.state["0/weights"], weights, rtol=1e-7, atol=1e-9)


@BY_TASK
def test_memories_are_trusted_by_what_each_had_said_of_the_row(bind, stream, labels, task, make):
    part = stream(60, 4, labels)
    part.truth.weight[:] = 1.0
    blend = bind(Blend(make(**LINEAR), NoChange(), memories=[5, 50]), task=task)
    outs(blend, stream(60, 5, labels))
    outputs, trust = blend.spec.outputs, blend.state["0/trust"].copy()
    voices = np.empty((60, 4 * outputs), np.float32)
    blend.chain.predict_then_observe(part.x, np.empty((60, outputs), np.float32), voices=voices)
    for i, y in enumerate(part.truth.y[:, 0].astype(float)):  # labels come when all rows have been predicted
        one = part.piece(i, i + 1)
        blend.chain.learn(one.x, one.truth, voices=voices[i : i + 1])
        said = voices[i, 2 * outputs :].reshape(2, outputs).astype(float)
        if task == "regression":
            lost = np.abs(said[:, 0] - y) / blend.state["0/error"][0, 0]
        else:
            p = said[:, int(y)] if task == "multiclass" else np.where(y == 1, said[:, 0], 1 - said[:, 0])
            lost = -np.log(np.maximum(p, 1e-6))
        trust = (1 - 1e-4) * trust - lost
    np.testing.assert_allclose(blend.state["0/trust"], trust - trust.max(), rtol=1e-6)


def test_rows_of_which_it_is_not_known_what_was_said_are_judged_as_they_are_learned(bind, stream):
    part = stream(60, 5)
    bounds = [bind(Blend(plain(), Prior()), task="binary") for _ in range(3)]
    bounds[0].chain.learn(*part)
    bounds[1].chain.learn(*part, voices=np.full((60, bounds[1].chain.voices(bounds[1].spec)), np.nan, np.float32))
    outs(bounds[2], part)
    assert bounds[0].bits() == bounds[1].bits() == bounds[2].bits()


class Says(NoChange):
    """Says what stands in a numeric column."""

    def __init__(self, column=0):
        super().__init__()
        self.column = column

    def predict(self, x, out):
        out[:, 0] = x.numeric[:, self.column]

    def test_then_learn(self, x, truth, out, learned=None):
        self.predict(x, out)

    def learn(self, x, truth):
        pass


def told(bind, numeric, y, task="binary", **settings):
    """What a blend says of rows of which its learners say what stands in the columns."""
    bound = bind(Blend(*(Says(i) for i in range(numeric.shape[1])), **settings), numeric.shape[1], 0, task=task)
    x = Rows(numeric.astype(np.float32), np.zeros((len(y), 0), np.uint64))
    out = np.empty((len(y), 1), np.float32)
    bound.chain.test_then_learn(x, Truth(y.astype(np.float32)[:, None], np.ones(len(y), np.float32)), out)
    return out[:, 0].astype(float)


def log_loss(p, y):
    return -np.log(np.where(y == 1, p, 1 - p))


@pytest.mark.parametrize("seed", range(3))
def test_loss_comes_to_that_of_the_best_learner(bind, seed):
    """Beside it learners that say something else: after T rows the whole costs no more than 10 + 2 L log T nats."""
    rng = np.random.default_rng(seed)
    right = rng.uniform(0.02, 0.98, 20_000)
    y = rng.random(20_000) < right
    others = rng.uniform(0.02, 0.98, (20_000, 3))
    others[:, 0] = np.clip(right + rng.normal(0, 0.2, 20_000), 0.02, 0.98)  # nearly as good
    said = np.column_stack([others, right])
    cost = (log_loss(told(bind, said, y), y) - log_loss(right, y)).cumsum()
    assert cost[-1] < 10 + 2 * 4 * np.log(20_000)
    assert cost[-1] - cost[9_999] < 10  # .001 a row
    values = np.column_stack([rng.normal(size=(20_000, 2)), y + rng.laplace(size=20_000)])
    error = np.abs(told(bind, values, y, "regression") - y)[1_000:].mean()
    assert error < 1.002 * np.abs(values[:, 2] - y)[1_000:].mean()


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_where_another_learner_becomes_the_best_the_blend_follows(bind, task):
    rng = np.random.default_rng(7)
    right = rng.uniform(0.02, 0.98, 9_000)
    said = rng.uniform(0.02, 0.98, (9_000, 2))
    said[:6_000, 0], said[6_000:, 1] = right[:6_000], right[6_000:]
    if task == "binary":
        y = (rng.random(9_000) < right).astype(float)
        lost, best = log_loss(told(bind, said, y), y), log_loss(right, y)
    else:
        y = right + rng.normal(0, 0.1, 9_000)
        lost, best = np.abs(told(bind, said, y, task) - y), np.abs(right - y)
    assert lost[5_000:6_000].mean() < 1.02 * best[5_000:6_000].mean()
    assert lost[6_000:6_050].mean() > 1.3 * best[6_000:6_050].mean()
    assert lost[8_000:].mean() < 1.05 * best[8_000:].mean()


def test_learners_that_are_less_sure_than_they_could_be_make_a_blend_that_is_as_sure(bind):
    rng = np.random.default_rng(3)
    odds = rng.normal(0, 3, 5_000)
    y = rng.random(5_000) < 1 / (1 + np.exp(-odds))
    timid = 1 / (1 + np.exp(-odds[:, None] * [0.3, 0.5]))
    lost = log_loss(told(bind, timid, y), y)[1_000:].mean()
    assert lost < 1.01 * log_loss(1 / (1 + np.exp(-odds)), y)[1_000:].mean()
    assert lost < 0.9 * log_loss(timid[:, 1], y)[1_000:].mean()


def test_before_the_first_label_all_weigh_the_same(bind):
    said = np.array([[0.2, 0.9, 0.9], [0.2, 0.9, 0.9]])
    odds = np.log(said[0] / (1 - said[0])).mean()
    np.testing.assert_allclose(told(bind, said, np.array([np.nan, np.nan])), 1 / (1 + np.exp(-odds)), rtol=1e-6)
    np.testing.assert_allclose(told(bind, said, np.array([np.nan, np.nan]), "regression"), 2 / 3, rtol=1e-6)


def test_learners_that_were_never_wrong_teach_nothing_until_they_are(bind):
    said, y = np.full((12, 2), 3.0), np.full(12, 3.0)
    said[10:] = [3.0, 4.0]
    y[10:] = 4.0
    out = told(bind, said, y, "regression")
    np.testing.assert_array_equal(out[:11], [3.0] * 10 + [3.5])
    assert 3.5 < out[11] <= 4.5


def test_one_wild_example_does_not_turn_weights_over(bind):
    sure = np.full((2, 3), 1e-9)  # and it was true
    after = told(bind, sure, np.array([1.0, np.nan]))
    assert after[0] < 0.002 and after[1] < 0.2
    values = np.column_stack([np.arange(60.0), np.arange(60.0) + 4.0])
    y = np.arange(60.0) + 1.0
    y[50] = 1e30
    assert np.abs(told(bind, values, y, "regression") - y)[51:].max() < 8.0


def test_learners_without_a_finite_prediction_and_labels_of_no_class_teach_nothing(bind):
    rows = np.full((4, 2), 0.3)
    rows[1, 0] = np.nan
    bound = bind(Blend(Says(0), Says(1)), 2, 0, task="binary")
    before, x = bound.bits(), Rows(rows.astype(np.float32), np.zeros((4, 0), np.uint64))
    weight = np.array([0.0, 1.0, -1.0, 1.0], np.float32)
    bound.chain.learn(x, Truth(np.array([[1], [1], [1], [np.inf]], np.float32), weight))
    assert bound.bits() == before
    several = bind(Blend(Prior(), NoChange()), 2, 0, task="multiclass")
    before = {name: several.state[f"0/{name}"].copy() for name in ("weights", "curvature", "trust")}
    several.chain.learn(x, Truth(np.array([[3], [-1], [0.5], [3e38]], np.float32), np.ones(4, np.float32)))
    for name, array in before.items():
        np.testing.assert_array_equal(several.state[f"0/{name}"], array)


def test_configuration_is_the_way_there_and_back():
    blend = Blend(scaled(), Blend(plain(), Prior(), memories=[20]), memories=(20, 3000.5))
    again = build(json.loads(json.dumps(blend.config())))
    assert again.config() == blend.config() == blend.unbound().config()
    assert repr(again) == repr(blend)
    assert repr(blend).startswith("Blend(StandardScaler(") and repr(blend).endswith(", memories=[20, 3000.5])")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Blend(), r"Blend\(\): expected one learner or more"),
        (lambda: Blend(plain(), Batches()), "learns in micro-batches, and a blend judges row by row; take Average"),
        (lambda: Blend(plain(), memories=[0.5]), r"Blend\(memories=\)\[0\]: expected a number of at least 1, got 0.5"),
        (
            lambda: Blend(plain(), memories=[]),
            r"Blend\(memories=\): expected a list of 1 to 8 numbers of examples, got",
        ),
        (lambda: Blend(plain(), memories=50), r"expected a list of 1 to 8 numbers of examples, got 50"),
    ],
)
def test_a_blend_declared_wrongly_says_what_was_expected(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()
