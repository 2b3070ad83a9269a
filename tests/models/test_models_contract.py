"""What every model promises: pure predictions, the same bits whatever the cuts, state that can be moved."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, linear_model, preprocessing, tree

from headrace.errors import DeclarationError
from headrace.models import (
    DCN,
    FTRL,
    MLP,
    SGD,
    AdaGrad,
    Adam,
    AMFClassifier,
    AMFRegressor,
    ARFClassifier,
    ARFRegressor,
    Average,
    Blend,
    Chain,
    DeepFM,
    Embeddings,
    GaussianNB,
    HoeffdingAdaptiveTreeClassifier,
    HoeffdingAdaptiveTreeRegressor,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    LinearRegression,
    LogisticRegression,
    MultinomialNB,
    NoChange,
    PAClassifier,
    PARegressor,
    Prior,
    River,
    Rows,
    RunningMean,
    SoftmaxRegression,
    Spec,
    StandardScaler,
    Torch,
    Truth,
    allocate,
    allocate_touched,
    as_chain,
    build,
)

SMALL = {"bits": 6}  # 64 slots: categories collide, in the stream and within rows
TREE = {"grace_period": 20, "delta": 0.1, "max_nodes": 31, "category_values": 4}  # splits early and is soon full
NET = {  # of torch modules: rows of embeddings are evicted, and weights of 1e30 make no step
    "embeddings": Embeddings(4, 6, half_life=None), "half_life": None, "max_skipped": 10_000,
}  # fmt: skip
FADING_NET = NET | {"embeddings": Embeddings(4, 6), "half_life": "30d"}
RESTLESS = {"drift_window_threshold": 50, "drift_delta": 0.02}  # soon finds what has drifted
MODELS = {
    "ftrl": lambda: StandardScaler() | LogisticRegression(FTRL(0.2, l1=0.5, l2=0.1), **SMALL),
    "adagrad": lambda: StandardScaler() | LogisticRegression(AdaGrad(0.1, l2=0.01), dtype="float32", **SMALL),
    "sgd": lambda: LogisticRegression(SGD(0.001), intercept_lr=0.01, base_rate=False, **SMALL),
    "squared": lambda: StandardScaler(clip=5.0) | LinearRegression(FTRL(), **SMALL),
    "quantile": lambda: StandardScaler() | LinearRegression(AdaGrad(), loss="quantile", quantile=0.9, **SMALL),
    "poisson": lambda: StandardScaler() | StandardScaler() | LinearRegression(FTRL(0.05), loss="poisson", **SMALL),
    "huber": lambda: StandardScaler() | LinearRegression(FTRL(), loss="huber", delta=2.0, **SMALL),
    "weighted": lambda: StandardScaler() | LogisticRegression(FTRL(), class_weight={True: 1.5}, **SMALL),
    "softmax": lambda: StandardScaler() | SoftmaxRegression(FTRL(0.2, l1=0.5, l2=0.1), **SMALL),
    "softmax_weighted": lambda: StandardScaler() | SoftmaxRegression(AdaGrad(0.1), class_weight=[1, 1.5, 1], **SMALL),
    "passive_aggressive": lambda: StandardScaler(half_life=None) | PAClassifier(0.01, **SMALL),
    "passive_aggressive_value": lambda: StandardScaler(half_life=None) | PARegressor(0.1, mode=2, **SMALL),
    "gaussian_nb": lambda: GaussianNB(**SMALL),
    "multinomial_nb": lambda: StandardScaler(clip=1.0) | MultinomialNB(**SMALL),  # above the mean is an occurrence
    "tree": lambda: HoeffdingTreeClassifier(**TREE),
    "scaled_tree": lambda: (
        StandardScaler() | HoeffdingTreeClassifier(grace_period=50, max_nodes=31, leaf_prediction="mc")
    ),
    "regression_tree": lambda: StandardScaler() | HoeffdingTreeRegressor(**TREE, tau=0.3, max_values=16),
    "river": lambda: StandardScaler() | River(compose.SelectType(float) | linear_model.LogisticRegression()),
    # of numbers alone: where a tree of River is asked about a category, it makes room for it, and so is not pure
    "river_tree": lambda: River(
        compose.SelectType(float) | tree.HoeffdingTreeClassifier(50, delta=0.1, leaf_prediction="mc")
    ),
    "river_pipeline": lambda: River(
        (compose.SelectType(float) | preprocessing.StandardScaler())
        + (compose.SelectType(str) | preprocessing.OneHotEncoder())
        | linear_model.LinearRegression()
    ),
    "river_classes": lambda: River(tree.HoeffdingTreeClassifier()),
    "adaptive_tree": lambda: HoeffdingAdaptiveTreeClassifier(**TREE, **RESTLESS),
    "forest": lambda: ARFClassifier(n_models=3, warning_delta=0.5, **TREE | {"drift_delta": 0.3}),
    "adaptive_regression_tree": lambda: (
        StandardScaler() | HoeffdingAdaptiveTreeRegressor(**TREE, **RESTLESS, tau=0.3, max_values=16)
    ),
    "regression_forest": lambda: StandardScaler() | ARFRegressor(n_models=3, max_values=16, **TREE),
    "scaled_forest": lambda: StandardScaler() | ARFClassifier(n_models=3, max_nodes=31, seed=2),
    "mondrian": lambda: AMFClassifier(n_estimators=3, split_pure=True, max_nodes=255),
    "scaled_mondrian": lambda: StandardScaler() | AMFClassifier(n_estimators=3, max_nodes=63, seed=2),
    "regression_mondrian": lambda: StandardScaler() | AMFRegressor(n_estimators=3, step=0.1, max_nodes=255),
    "average": lambda: Average(LogisticRegression(FTRL(), **SMALL), StandardScaler() | PAClassifier(0.01, **SMALL)),
    "average_of_values": lambda: (
        StandardScaler()
        | Average(StandardScaler() | LinearRegression(FTRL(), **SMALL), RunningMean(), weights=[3.0, 0.5])
    ),
    "average_of_kinds": lambda: (
        StandardScaler()
        | Average(
            Average(
                StandardScaler() | SoftmaxRegression(FTRL(), **SMALL),
                HoeffdingTreeClassifier(**TREE),
                weights=[9.0, 1.0],
            ),
            GaussianNB(**SMALL),
            weights=[3.0, 0.2],
        )
    ),
    "average_of_rates": lambda: Average(
        StandardScaler() | LinearRegression(FTRL(0.05), loss="poisson", **SMALL), LinearRegression(SGD(1e-4), **SMALL)
    ),
    "average_of_classes": lambda: (
        StandardScaler() | Average(Average(SoftmaxRegression(FTRL(), **SMALL), Prior()), SoftmaxRegression(**SMALL))
    ),
    "blend": lambda: Blend(StandardScaler() | LogisticRegression(FTRL(), **SMALL), HoeffdingTreeClassifier(**TREE)),
    "blend_of_values": lambda: (
        StandardScaler() | Blend(StandardScaler() | LinearRegression(FTRL(), **SMALL), NoChange(), memories=[5])
    ),
    "blend_of_classes": lambda: Blend(
        StandardScaler() | Blend(StandardScaler() | SoftmaxRegression(FTRL(), **SMALL), Prior()),
        SoftmaxRegression(**SMALL),
        memories=[10, 100, 1000],
    ),
    "mlp": lambda: StandardScaler() | Torch(MLP([16]), optimizer=Adam(0.01), batch_size=4, **NET),
    "dcn": lambda: StandardScaler() | Torch(DCN(1, [8]), optimizer=AdaGrad(0.05), batch_size=5, **FADING_NET),
    "deepfm": lambda: StandardScaler() | Torch(DeepFM([16]), "huber", SGD(0.02, momentum=0.5), batch_size=3, **NET),
}
BARE = {
    "bare_ftrl": lambda: LogisticRegression(FTRL(), dtype="float32", **SMALL),
    "bare_ftrl_of_no_beta": lambda: LogisticRegression(FTRL(beta=0.0), dtype="float32", **SMALL),
    "bare_adagrad": lambda: LinearRegression(AdaGrad(), dtype="float32", **SMALL),
    "bare_sgd": lambda: LinearRegression(SGD(1.0), loss="poisson", dtype="float32", **SMALL),
    "bare_huber": lambda: LinearRegression(SGD(1.0), loss="huber", delta=1e30, dtype="float32", **SMALL),
    "bare_softmax": lambda: SoftmaxRegression(SGD(1.0), dtype="float32", **SMALL),
    "bare_softmax_ftrl": lambda: SoftmaxRegression(
        FTRL(beta=0.0), class_weight=[1e30, 0.0, 1e-30], dtype="float32", **SMALL
    ),
    "bare_passive_aggressive": lambda: PAClassifier(1e300, dtype="float32", **SMALL),
    "bare_passive_aggressive_value": lambda: PARegressor(1e300, mode=2, eps=0.0, dtype="float32", **SMALL),
    "bare_multinomial_nb": lambda: MultinomialNB(**SMALL),
}
LABELS = {  # of the streams they learn; the others are binary
    "squared": "value",
    "quantile": "value",
    "poisson": "count",
    "huber": "value",
    "softmax": "classes",
    "softmax_weighted": "classes",
    "passive_aggressive_value": "value",
    "regression_tree": "value",
    "river_pipeline": "value",
    "river_classes": "classes",
    "adaptive_tree": "classes",
    "adaptive_regression_tree": "value",
    "regression_forest": "value",
    "scaled_forest": "classes",
    "scaled_mondrian": "classes",
    "regression_mondrian": "value",
    "average_of_values": "value",
    "average_of_kinds": "classes",
    "average_of_rates": "count",
    "average_of_classes": "classes",
    "blend_of_values": "value",
    "blend_of_classes": "classes",
    "dcn": "classes",
    "deepfm": "value",
    "prior_of_classes": "classes",
    "running_mean": "value",
    "no_change_of_classes": "classes",
    "no_change_of_values": "value",
    "bare_adagrad": "value",
    "bare_sgd": "count",
    "bare_huber": "value",
    "bare_softmax": "classes",
    "bare_softmax_ftrl": "classes",
    "bare_passive_aggressive_value": "value",
}
FORGETS_NOTHING = {
    "river", "river_tree", "river_pipeline", "river_classes",
    "tree", "scaled_tree", "regression_tree", "mlp", "deepfm",
    "blend", "blend_of_classes", "blend_of_values",  # their learners do; but weights move as well, away from what moves too much
    "adaptive_tree", "forest", "scaled_forest",
    "adaptive_regression_tree", "regression_forest",
    "mondrian", "scaled_mondrian", "regression_mondrian",
    "sgd", "passive_aggressive", "passive_aggressive_value", "no_change", "no_change_of_classes", "no_change_of_values",
}  # fmt: skip
NEVER_TAKES_BACK = {  # a row of negative weight, or of none, is not learned
    "adaptive_tree", "forest", "scaled_forest", "adaptive_regression_tree", "regression_forest",
    "tree", "scaled_tree", "regression_tree", "no_change", "no_change_of_classes", "no_change_of_values",
    "mondrian", "scaled_mondrian", "regression_mondrian",
    "passive_aggressive", "passive_aggressive_value", "river", "river_tree", "river_pipeline", "river_classes",
}  # fmt: skip
CHANGES_ITS_MIND = {"river_classes"}  # a leaf of River turns from naive Bayes to shares and back
WEIGHS_NOTHING = {"no_change", "no_change_of_classes", "no_change_of_values"}
NASTY_LABELS = {"binary": [0, 1], "classes": [0, 1, 2, 3, -1, 3e38, np.nan, np.inf]}
BASELINES = {  # they do not look at the features, so their loss does not fall below that of a constant
    "prior": lambda: StandardScaler() | Prior(),
    "prior_of_classes": lambda: Prior(start=0.0),
    "running_mean": lambda: StandardScaler() | RunningMean(),
    "no_change": lambda: NoChange(),
    "no_change_of_classes": lambda: StandardScaler() | NoChange(0.1),
    "no_change_of_values": lambda: NoChange(),
}
TASKS = {"classes": "multiclass", "value": "regression", "count": "regression"}  # of labels; else binary
MODELS |= BASELINES
FADES = {
    "gaussian_nb",
    "multinomial_nb",
    "average_of_kinds",
}  # counts decay and their smoothing does not: categories come to say nothing
BY_WHEN = (
    "embeddings/evidence",
    "embeddings/stamp",
    "embeddings/counts",
    "steps",
    "batches",
)  # not what, but after what
MOMENTS = {"count", "mean", "variance", "base_count", "base_mean", "base_variance", "class_count", "column_count"}
UNLIKE_THE_WHOLE = {  # the scaler knows less of a half: other numbers are above its mean
    "multinomial_nb": ("table", "length"),
}
every_model = pytest.mark.parametrize("name", MODELS)
EXPLAIN_NOTHING = {"river", "river_tree", "river_pipeline", "river_classes"}  # beside the baselines
EXPLAINERS = [name for name in MODELS | BARE if name not in BASELINES | dict.fromkeys(EXPLAIN_NOTHING)]
HARDLY_LOOK = {"scaled_tree", "mondrian"}  # at the features of a stream so short: it is slow to split, its roots decide
NETS = {"mlp", "dcn", "deepfm"}  # explained by an integral, in micro-batches: test_torch.py says how exactly
every_explainer = pytest.mark.parametrize("name", EXPLAINERS)
INVERSE = {  # of links: predictions of raw scores (B, O)
    "identity": lambda raw: raw,
    "logit": lambda raw: 1 / (1 + np.exp(-raw)),
    "log": np.exp,
    "softmax": lambda raw: np.exp(raw - raw.max(1, keepdims=True)) / np.exp(raw - raw.max(1, keepdims=True)).sum(1, keepdims=True),
}  # fmt: skip


def made(bind, name):
    """A model of the table, bound for the task that its labels make."""
    return bind((MODELS | BARE)[name](), task=TASKS.get(LABELS.get(name, ""), "binary"))


@pytest.fixture
def fresh(bind):
    return lambda name: made(bind, name)


@pytest.fixture
def examples(stream):
    def examples(name, rows, seed=0):
        x, truth = stream(rows, seed, LABELS.get(name, "binary"))
        truth.y[::7] = np.nan
        truth.weight[3::11] = -1.0
        return type(stream(0))(x, truth)

    return examples


def run(bound, method, part, voices=None):
    """Call one method on a piece of a stream; what it predicted. voices: what waits from the one call to the other."""
    out = np.full((len(part.truth.y), bound.spec.outputs), np.nan, np.float32)
    told = {} if voices is None else {"voices": voices}
    if method == "learn":
        bound.chain.learn(part.x, part.truth, **told)
    elif method == "test_then_learn":
        bound.chain.test_then_learn(part.x, part.truth, out)
    else:
        getattr(bound.chain, method)(part.x, out, **told)
    return out


def held_bytes():
    """What the process holds in memory at the moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def voices_of(bound, rows):
    """Room for what waits with so many rows for their labels, beside their predictions; None where nothing does."""
    many = bound.chain.voices(bound.spec)
    return np.full((rows, many), np.nan, np.float32) if many else None


@every_model
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), seed=st.integers(0, 3))
@pytest.mark.parametrize("method", ["predict_then_observe", "learn", "test_then_learn"])
def test_results_do_not_depend_on_the_cuts(bind, stream, name, method, cuts, seed):
    part = stream(60, seed, LABELS.get(name, "binary"))
    part.truth.y[::7] = np.nan
    bounds = made(bind, name), made(bind, name)
    for bound in bounds:
        run(bound, "test_then_learn", stream(50, 9, LABELS.get(name, "binary")))
    if method != "predict_then_observe":
        cuts = [cut // bounds[0].chain.batch_size * bounds[0].chain.batch_size for cut in cuts]
    whole = run(bounds[0], method, part)
    pieces = [run(bounds[1], method, part.piece(a, b)) for a, b in pairwise([0, *sorted(cuts), 60])]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()
    assert bounds[0].bits() == bounds[1].bits()
    assert all((bounds[0].touched[g] == bounds[1].touched[g]).all() for g in bounds[0].touched)


@every_model
def test_row_is_predicted_before_it_is_learned(fresh, examples, name):
    part = examples(name, 40)
    whole, by_row = fresh(name), fresh(name)
    out = run(whole, "test_then_learn", part)
    size = whole.chain.batch_size  # rows of one step, 1 but for micro-batches
    for i in range(0, 40, size):
        one = part.piece(i, i + size)
        assert run(by_row, "predict", part.piece(i, i + 1)).tobytes() == out[i : i + 1].tobytes()
        voices = voices_of(by_row, len(one.truth.y))
        assert run(by_row, "predict_then_observe", one, voices).tobytes() == out[i : i + size].tobytes()
        run(by_row, "learn", one, voices)
    assert whole.bits() == by_row.bits()


@every_model
def test_predict_changes_nothing(fresh, examples, name):
    bound, part = fresh(name), examples(name, 200)
    run(bound, "test_then_learn", part)
    bits = bound.bits()
    touched = {group: array.tobytes() for group, array in bound.touched.items()}
    first = run(bound, "predict", part)
    assert run(bound, "predict", part).tobytes() == first.tobytes()
    assert bound.bits() == bits
    assert {group: array.tobytes() for group, array in bound.touched.items()} == touched


@every_model
def test_same_stream_gives_same_bits(fresh, examples, name):
    bounds = fresh(name), fresh(name)
    outs = [run(bound, "test_then_learn", examples(name, 300)).tobytes() for bound in bounds]
    assert outs[0] == outs[1]
    assert bounds[0].bits() == bounds[1].bits()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in BASELINES])
def test_loss_falls_with_the_stream(fresh, stream, name):
    _, truth = part = stream(8000, 1, LABELS.get(name, "binary"))
    outs = run(fresh(name), "test_then_learn", part).astype(np.float64)
    out = outs[:, 0]
    y = truth.y[:, 0].astype(np.float64)
    if LABELS.get(name) == "classes":
        loss = -np.log(np.clip(np.take_along_axis(outs, truth.y.astype(int), 1)[:, 0], 1e-7, 1))
        constant = -np.log(np.bincount(y.astype(int)) / 8000)[y.astype(int)]
    elif name in LABELS:
        start = np.full(8000, y[:500].mean())
        weight = np.where(y > out, 0.9, 0.1) if name == "quantile" else 1.0
        start_weight = np.where(y > start, 0.9, 0.1) if name == "quantile" else 1.0
        loss, constant = weight * abs(y - out), start_weight * abs(y - start)
    else:
        loss = -np.log(np.clip(np.where(y == 1, out, 1 - out), 1e-7, 1))
        constant = np.full(8000, -np.log(0.5))
    assert loss[-2000:].mean() < 0.95 * constant[-2000:].mean()
    assert loss[-2000:].mean() < loss[:200].mean() or name == "squared"


@every_model
def test_state_moves_to_another_process_bit_for_bit(fresh, examples, name):
    first, part = fresh(name), examples(name, 100)
    run(first, "test_then_learn", part.piece(0, 60))
    config = json.loads(json.dumps(first.chain.config()))
    chain = first.chain.unbound() if first.chain.opaque() else build(config)
    layout = chain.layout(first.spec)
    state, touched = allocate(layout), allocate_touched(layout)
    chain.bind(first.spec, state, touched)
    for array_name, array in state.items():
        array[...] = np.frombuffer(first.state[array_name].tobytes(), array.dtype).reshape(array.shape)
    for at, opaque in first.chain.opaque().items():
        chain.opaque()[at].load(opaque.dump())
    second = first._replace(chain=chain, state=state, touched=touched)
    rest = part.piece(60, 100)
    assert run(second, "test_then_learn", rest).tobytes() == run(first, "test_then_learn", rest).tobytes()
    for bound in (first, second):
        for _, decay in bound.chain.decays():
            decay(0.5)
    assert first.bits() == second.bits()


@every_model
def test_forgetting_keeps_what_is_predicted_and_quickens_what_comes(fresh, examples, name):
    keeping, forgetting, part = fresh(name), fresh(name), examples(name, 400)
    for bound in (keeping, forgetting):
        run(bound, "test_then_learn", part)
    before = run(forgetting, "predict", part)
    for _, decay in forgetting.chain.decays():
        decay(0.05)
    after = run(forgetting, "predict", part)
    if name not in FADES:
        np.testing.assert_allclose(after, before, rtol=1e-5)
    new = examples(name, 50, seed=99)
    moved = [np.abs(run_and_predict(bound, new, part) - before).mean() for bound in (keeping, forgetting)]
    assert bool(forgetting.chain.decays()) or name in FORGETS_NOTHING
    if name not in FORGETS_NOTHING:
        assert moved[1] > 1.2 * moved[0]


def run_and_predict(bound, new, part):
    run(bound, "test_then_learn", new)
    return run(bound, "predict", part)


@every_model
def test_warm_up_leaves_the_state_alone(fresh, examples, name):
    bound = fresh(name)
    run(bound, "test_then_learn", examples(name, 30))
    bits, before = bound.bits(), run(bound, "predict", examples(name, 30))
    touched = {group: array.tobytes() for group, array in bound.touched.items()}
    bound.chain.warm_up()
    assert bound.bits() == bits
    assert {group: array.tobytes() for group, array in bound.touched.items()} == touched
    assert run(bound, "predict", examples(name, 30)).tobytes() == before.tobytes()


@every_model
def test_no_rows_are_fine(fresh, examples, name):
    bound, none = fresh(name), examples(name, 0)
    bits = bound.bits()
    for method in ("predict", "predict_then_observe", "learn", "test_then_learn"):
        assert run(bound, method, none).shape == (0, bound.spec.outputs)
    assert bound.bits() == bits


@pytest.mark.parametrize("name", MODELS | BARE)
def test_finite_input_never_makes_a_prediction_or_a_state_that_is_not(fresh, name):
    bound, labels = fresh(name), LABELS.get(name, "binary")
    rng = np.random.default_rng(0)
    for _ in range(30):
        numeric = rng.choice(np.float32([0, 1, -1, 3e38, -3e38, 1e-38, 1e-45, np.nan, np.inf]), (20, 3))
        hashes = rng.choice(np.array([0, 1, 2**64 - 1], np.uint64), (20, 2))
        y = rng.choice(np.float32(NASTY_LABELS.get(labels, [0, 3e38, -3e38, np.nan, np.inf])), (20, 1))
        weight = rng.choice(np.float32([1, -1, 0, 1e30, np.nan]), 20)
        x, truth = Rows(numeric, hashes), Truth(y, weight)
        out = np.empty((20, bound.spec.outputs), np.float32)
        with (
            suppress(ArithmeticError, TypeError, ValueError) if bound.chain.opaque() else nullcontext()
        ):  # a raise of River's makes a dead letter
            bound.chain.test_then_learn(x, truth, out)
            assert np.isfinite(out).all()
        with suppress(ArithmeticError, TypeError, ValueError) if bound.chain.opaque() else nullcontext():
            bound.chain.learn(x, truth)
        for _, decay in bound.chain.decays():
            decay(1e-3)
    assert all(np.isfinite(array).all() for array in bound.state.values())


def blank_contributions(bound, part):
    features = len(bound.spec.numeric) + len(bound.spec.categories)
    return np.full((len(part.truth.y), bound.spec.outputs, features + 1), np.nan, np.float32)


@pytest.mark.parametrize("name", sorted({*MODELS} & {*EXPLAINERS} - NETS))
def test_contributions_add_up_to_the_raw_score_and_explaining_is_pure(fresh, examples, name):
    bound, part = fresh(name), examples(name, 300)
    for learned in (False, True):
        bits, touched = bound.bits(), {group: array.tobytes() for group, array in bound.touched.items()}
        contributions = blank_contributions(bound, part)
        bound.chain.explain(part.x, contributions)
        again = blank_contributions(bound, part)
        bound.chain.explain(part.x, again)
        assert contributions.tobytes() == again.tobytes()
        out = run(bound, "predict", part)
        raw = contributions.astype(np.float64).sum(2)
        np.testing.assert_allclose(INVERSE[bound.chain.explainer.link(bound.spec)](raw), out, rtol=3e-5, atol=2e-6)
        assert bound.bits() == bits
        assert {group: array.tobytes() for group, array in bound.touched.items()} == touched
        if learned and name not in HARDLY_LOOK:
            assert np.abs(contributions[:, :, :-1]).max() > 0.01
        run(bound, "test_then_learn", examples(name, 500, seed=3))


@pytest.mark.parametrize("name", sorted({*MODELS} & {*EXPLAINERS} - NETS))
def test_row_is_explained_as_it_is_predicted_and_all_else_stays_the_same(fresh, examples, name):
    plain, whole, by_row, cut = (fresh(name) for _ in range(4))
    for bound in (plain, whole, by_row, cut):
        run(bound, "test_then_learn", examples(name, 150, seed=5))
    part = examples(name, 60)
    for method, more in (("test_then_learn", (part.truth,)), ("predict_then_observe", ())):
        out = run(plain, method, part)
        contributions, said = blank_contributions(whole, part), np.empty_like(out)
        getattr(whole.chain, method)(part.x, *more, said, contributions=contributions)
        assert said.tobytes() == out.tobytes()
        for a, b in pairwise([0, 7, 8, 31, 60]):
            piece, told = part.piece(a, b), blank_contributions(cut, part.piece(a, b))
            getattr(cut.chain, method)(
                piece.x, *(piece.truth,)[: len(more)], np.empty_like(out[a:b]), contributions=told
            )
            assert told.tobytes() == contributions[a:b].tobytes()
        for i in range(60):
            one, told = part.piece(i, i + 1), blank_contributions(by_row, part.piece(i, i + 1))
            by_row.chain.explain(one.x, told)
            assert told.tobytes() == contributions[i : i + 1].tobytes()
            run(by_row, method, one)
        assert plain.bits() == whole.bits() == by_row.bits() == cut.bits()


@pytest.mark.parametrize("name", sorted({*MODELS} - {*EXPLAINERS}))
def test_model_that_does_not_explain_is_refused(fresh, name):
    with pytest.raises(DeclarationError, match="cannot say what each feature adds"):
        fresh(name).chain.explainer  # noqa: B018


@every_explainer
def test_finite_input_never_makes_a_contribution_that_is_not(fresh, name):
    bound, rng = fresh(name), np.random.default_rng(0)
    labels = NASTY_LABELS.get(LABELS.get(name, "binary"), [0, 3e38, -3e38])
    for _ in range(20):
        numeric = rng.choice(np.float32([0, 1, -1, 3e38, -3e38, 1e-38, 1e-45, np.nan, np.inf]), (20, 3))
        x = Rows(numeric, rng.choice(np.array([0, 1, 2**64 - 1], np.uint64), (20, 2)))
        truth = Truth(rng.choice(np.float32(labels), (20, 1)), rng.choice(np.float32([1, -1, 0, 1e30]), 20))
        contributions = np.empty((20, bound.spec.outputs, 6), np.float32)
        bound.chain.test_then_learn(
            x, truth, np.empty((20, bound.spec.outputs), np.float32), contributions=contributions
        )
        assert (np.abs(contributions) <= np.float32(1e30)).all()


@every_model
def test_infinite_features_are_missing(fresh, examples, name):
    bounds, parts = (fresh(name), fresh(name)), (examples(name, 200), examples(name, 200))
    parts[0].x.numeric[::5, 1], parts[0].x.numeric[::7, 2] = np.inf, -np.inf
    parts[1].x.numeric[::5, 1], parts[1].x.numeric[::7, 2] = np.nan, np.nan
    outs = [run(bound, "test_then_learn", part) for bound, part in zip(bounds, parts)]
    assert outs[0].tobytes() == outs[1].tobytes()
    assert bounds[0].bits() == bounds[1].bits()


@every_model
def test_label_that_is_not_known_or_names_no_class_teaches_nothing(fresh, examples, name):
    bound, part = fresh(name), examples(name, 100)
    run(bound, "test_then_learn", part)
    before = bound.bits()
    odd = [np.nan] if LABELS.get(name) != "classes" else [np.nan, 3.0, -1.0, 0.5, 1e9, np.inf]
    part.truth.y[:, 0] = np.resize(np.float32(odd), 100)
    run(bound, "learn", part)
    assert bound.bits() == before


@every_model
def test_weight_that_is_no_number_or_may_not_be_negative_teaches_nothing(fresh, examples, name):
    bound, part = fresh(name), examples(name, 100)
    run(bound, "test_then_learn", part)
    before = bound.bits()
    part.truth.weight[:] = np.resize(np.float32([np.nan, 0.0, -1.0] if name in NEVER_TAKES_BACK else [np.nan]), 100)
    run(bound, "learn", part)
    assert bound.bits() == before


@pytest.mark.parametrize("name", [name for name in MODELS if name not in CHANGES_ITS_MIND])
def test_learning_moves_the_prediction_toward_the_label(fresh, stream, name):
    bound, rows = fresh(name), stream(40, 7, LABELS.get(name, "binary"))
    run(bound, "learn", stream(100, 0, LABELS.get(name, "binary")))
    rows.truth.weight[:] = 1.0
    before, after = [], []
    for one in (rows.piece(i, i + 1) for i in range(40)):
        for gaps in (before, after):
            out = run(bound, "predict", one)
            label = np.eye(3)[one.truth.y[:, 0].astype(int)] if LABELS.get(name) == "classes" else one.truth.y
            gaps.append(np.abs(out - label).mean())
            run(bound, "learn", one)
    assert np.mean(after) < np.mean(before)


@every_model
def test_weight_of_two_counts_for_more(fresh, stream, name):
    """By how much is each learner's: a step twice as long, or evidence twice as heavy; a single label has no weight."""
    part, moved = stream(60, 5, LABELS.get(name, "binary")), []
    for weight in (1.0, 2.0):
        bound = fresh(name)
        run(bound, "learn", stream(200, 0, LABELS.get(name, "binary")))
        before = run(bound, "predict", part).astype(float)
        part.truth.weight[:] = weight
        run(bound, "learn", part)
        moved.append(np.abs(run(bound, "predict", part) - before).mean())
    if name in WEIGHS_NOTHING:
        assert moved[0] == moved[1]
    else:
        assert moved[0] != moved[1] > 0


def merged(declared, first, second, begun, name):
    """What two models that began alike know together, of arrays that are counts, their moments, or flags; else None."""
    array = declared[name]
    a, b, before = (state[name].astype(np.float64) for state in (first, second, begun))
    if array.merge == "sum":
        return a + b - before
    if array.merge == "max":
        return np.maximum(a, b)
    counts = [state[array.by] for state in (first, second, begun)]
    n, m, k = counts
    seen = np.maximum(n + m - k, 1e-300)
    if not name.endswith("variance"):
        return (n * a + m * b - k * before) / seen
    mean = name.removesuffix("variance") + "mean"
    middle = merged(declared, first, second, begun, mean)
    squares = [
        count * (array + (state[mean] - middle) ** 2)
        for count, array, state in zip(counts, (a, b, before), (first, second, begun), strict=True)
    ]
    return (squares[0] + squares[1] - squares[2]) / seen


@every_model
def test_merge_follows_the_declared_rule(fresh, stream, name):
    """Counts, moments and flags of two halves give those of the whole; all else says by what it would be merged."""
    part = stream(120, 9, LABELS.get(name, "binary"))
    whole, first, second, begun = (fresh(name) for _ in range(4))
    whole.chain.learn(*part)
    first.chain.learn(*part.piece(0, 50))
    second.chain.learn(*part.piece(50, 120))
    declared = whole.chain.layout(whole.spec)
    for array, rule in declared.items():
        if array.rpartition("/")[2] in MOMENTS and not name.startswith("river"):
            assert rule.merge in ("sum", "moments"), array
        if rule.merge in ("moments", "steps"):
            evidence = declared[rule.by] if rule.by else rule
            assert evidence.shape[0] in (1, rule.shape[0]), array
            assert rule.by or (rule.merge == "steps" and rule.shape[-1] == 2), array
        if rule.merge in ("owner", "mean", "steps") or array.endswith(UNLIKE_THE_WHOLE.get(name, BY_WHEN)):
            continue
        expected = merged(declared, first.state, second.state, begun.state, array)
        np.testing.assert_allclose(expected, whole.state[array], rtol=1e-9, atol=1e-9, err_msg=array)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("river")])
def test_features_may_be_moved_added_and_removed(fresh, stream, name):
    bound, part = fresh(name), stream(60, 3, LABELS.get(name, "binary"))
    run(bound, "learn", stream(300, 0, LABELS.get(name, "binary")))
    x, before = part.x, run(bound, "predict", part)
    again, out = bound.declared_anew(("n2", "n0", "n1"), ("c1", "c0")), np.empty_like(before)
    again.chain.predict(Rows(x.numeric[:, [2, 0, 1]].copy(), x.categories[:, [1, 0]].copy()), out)
    np.testing.assert_allclose(out, before, rtol=1e-4, atol=1e-5)
    more = bound.declared_anew(("n0", "new", "n1", "n2"), ("c0", "c1", "unknown"))
    more.chain.predict(Rows(np.insert(x.numeric, 1, np.nan, 1), np.insert(x.categories, 2, 0, 1)), out)
    if name not in NETS:  # whose dense weights begin anew
        np.testing.assert_allclose(out, before, rtol=1e-4, atol=1e-5)
    fewer = bound.declared_anew(("n1",), ())
    for now, rows in (
        (more, Rows(np.insert(x.numeric, 1, 7.0, 1), np.insert(x.categories, 2, 9, 1))),
        (fewer, Rows(x.numeric[:, [1]].copy(), x.categories[:, :0])),
    ):
        now.chain.test_then_learn(rows, part.truth, out)
        assert np.isfinite(out).all() and all(np.isfinite(array).all() for array in now.state.values())


@pytest.mark.parametrize("name", MODELS | BARE)
def test_columns_that_never_change_and_categories_never_seen_are_predicted_and_learned(fresh, stream, name):
    bound, part = fresh(name), stream(120, 2, LABELS.get(name, "binary"))
    part.x.numeric[:] = 3.0, 0.0, -1e6
    part.x.categories[:] = np.arange(1, 241, dtype=np.uint64).reshape(120, 2) << np.uint64(40)
    out = run(bound, "test_then_learn", part)
    assert np.isfinite(out).all() and all(np.isfinite(array).all() for array in bound.state.values())
    if LABELS.get(name, "classes") == "classes":
        assert (out >= 0).all() and (out <= 1).all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the size of the process from /proc")
# without those of torch: test_embeddings.py has a million for their table, and nothing else of them sees a category
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("river") and name not in NETS])
def test_a_million_categories_take_no_more_memory(bind, stream, name):
    """A million of the pairs of feature and value: 200 columns of 5,000 values each, of which none comes twice."""
    task = TASKS.get(LABELS.get(name, ""), "binary")
    bound, rng, columns = bind(MODELS[name](), 1, 200, task), np.random.default_rng(0), 200
    size = sum(array.nbytes for array in bound.state.values())
    for i in range(10):
        if i == 2:
            held = held_bytes()
        hashes = np.arange(1 + i * 100_000, 1 + (i + 1) * 100_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = Rows(rng.normal(size=(500, 1)).astype(np.float32), hashes.reshape(500, columns))
        y = rng.integers(0, 2, (500, 1)).astype(np.float32)
        run(bound, "test_then_learn", type(stream(0))(x, Truth(y, np.ones(500, np.float32))))
    assert held_bytes() - held < 3_000_000  # of the hashes that came meanwhile alone 6.4 MB
    assert sum(array.nbytes for array in bound.state.values()) == size


def test_missing_category_adds_nothing_and_missing_number_has_a_weight_of_its_own(bind):
    bound = bind(LogisticRegression(FTRL(), base_rate=False, bits=6), 2, 2)
    x = Rows(np.array([[np.nan, 1.0]], np.float32), np.array([[0, 5]], np.uint64))
    truth = Truth(np.ones((1, 1), np.float32), np.ones(1, np.float32))
    bound.chain.learn(x, truth)
    assert (bound.state["0/columns"][:, 1] > 0).tolist() == [False, True]
    assert (bound.state["0/missing"][:, 1] > 0).tolist() == [True, False]
    assert np.count_nonzero(bound.state["0/table"][:, 1]) == 1
    none, unknown = (
        Rows(x.numeric, np.zeros((1, 2), np.uint64)),
        Truth(np.full((1, 1), np.nan, np.float32), truth.weight),
    )
    predicted = []
    for z in (0.0, -5.0):  # of every slot, that of hash 0 too
        bound.state["0/table"][:, 0] = z
        out = np.empty((2, 1))
        bound.chain.predict(none, out[:1])
        bound.chain.test_then_learn(none, unknown, out[1:])
        predicted += out.ravel().tolist()
    assert len(set(predicted)) == 1


def test_touched_and_used_say_which_slots_were_written(bind, stream):
    bound = bind(LogisticRegression(FTRL(), bits=12))
    part = stream(30, 3)
    bound.chain.learn(part.x, part.truth)
    written = np.flatnonzero(bound.state["0/table"][:, 1])
    assert np.flatnonzero(bound.touched["0/table"]).tolist() == sorted({r >> 6 for r in written})
    assert np.flatnonzero(bound.state["0/used"]).tolist() == sorted({r >> 3 for r in written})
    bound.touched["0/table"][:] = 0
    evidence = bound.state["0/table"][:, 1].copy()
    bound.chain.decays()[0][1](0.5)
    assert np.array_equal(bound.state["0/table"][:, 1], evidence / 2)
    assert np.flatnonzero(bound.touched["0/table"]).tolist() == sorted({r >> 6 for r in written})


def test_cold_model_predicts_the_running_base_rate(bind):
    bound = bind(StandardScaler() | LogisticRegression(FTRL(alpha=1e-9), bits=6), 0, 0)
    y = (np.random.default_rng(0).random(1000) < 0.05).astype(np.float32)
    out = np.empty((1000, 1), np.float32)
    x = Rows(np.empty((1000, 0), np.float32), np.empty((1000, 0), np.uint64))
    bound.chain.test_then_learn(x, Truth(y.reshape(-1, 1), np.ones(1000, np.float32)), out)
    seen = np.arange(1000)
    np.testing.assert_allclose(out[:, 0], (np.cumsum(y) - y + 0.5) / (seen + 1), rtol=1e-4)


@pytest.mark.parametrize(("loss", "first"), [("squared", 0.0), ("absolute", 0.0), ("huber", 0.0), ("poisson", 1.0)])
def test_first_label_of_a_regression_sets_its_base_and_no_weight(bind, loss, first):
    bound = bind(LinearRegression(FTRL(), loss=loss, bits=6), 1, 1)
    x = Rows(np.ones((2, 1), np.float32), np.ones((2, 1), np.uint64))
    out = np.empty((2, 1), np.float32)
    bound.chain.test_then_learn(x, Truth(np.full((2, 1), 5000, np.float32), np.ones(2, np.float32)), out)
    assert out[:, 0] == pytest.approx([first, 5000.0], rel=1e-6)
    assert bound.state["0/table"].max() < 1e-6 or loss == "absolute"


def test_negative_weight_takes_back_what_was_just_learned(bind):
    x = Rows(np.full((1, 1), 0.5, np.float32), np.ones((1, 1), np.uint64))
    false, true = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    plus, minus = np.ones(1, np.float32), -np.ones(1, np.float32)
    for optimizer in (SGD(0.1), AdaGrad(0.1), FTRL(0.1)):
        bound = bind(LogisticRegression(optimizer, bits=6), 1, 1)
        out = np.empty((4, 1))
        bound.chain.predict(x, out[0:1])
        bound.chain.learn(x, Truth(false, plus))
        bound.chain.predict(x, out[1:2])
        bound.chain.learn(x, Truth(false, minus))
        bound.chain.predict(x, out[2:3])
        bound.chain.learn(x, Truth(true, plus))
        bound.chain.predict(x, out[3:4])
        assert out[1] < out[2] - 0.01
        assert abs(out[2] - out[0]) < 0.2 * abs(out[1] - out[0])
        assert out[3] > out[0]
        assert bound.state["0/base_count"][0] == 2.0


def test_default_scale_and_labels_later_learn_the_features_as_the_scaler_then_stands(bind, stream):
    x, truth = part = stream(50, 4)
    bound = bind(MODELS["ftrl"]())
    run(bound, "predict_then_observe", part)
    twin = bind(MODELS["ftrl"]())
    for name in ("0/count", "0/mean", "0/variance"):
        twin.state[name][:] = bound.state[name]
    scaled = np.empty(x.numeric.shape)
    twin.chain.parts[0].apply(x, Rows(scaled, x.categories))
    twin.chain.parts[1].learn(Rows(scaled, x.categories), truth)
    bound.chain.learn(x, truth)
    assert bound.bits() == twin.bits()


# --- declarations


def test_configuration_and_repr_tell_the_whole_model():
    model = StandardScaler(half_life="7d") | LogisticRegression(FTRL(alpha=0.2, l1=1.0), bits=18)
    assert "half_life='7d'" in repr(model)
    assert "alpha=0.2" in repr(model)
    again = build(json.loads(json.dumps(model.config())))
    assert again.config() == model.config()
    assert repr(again) == repr(model)
    assert build(LinearRegression(SGD(0.5)).config()).optimizer == SGD(0.5)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"name": "Perceptron"}, "Perceptron.*known are.*LogisticRegression"),
        ({"name": "SGD", "rate": 1}, "SGD.*rate.*another version"),
        ({}, "None"),
    ],
)
def test_configuration_that_is_not_known_is_refused(config, match):
    with pytest.raises(DeclarationError, match=match):
        build(config)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FTRL(alpha=0), r"FTRL\(alpha=\).*above 0"),
        (lambda: FTRL(l1=-1), r"FTRL\(l1=\)"),
        (lambda: FTRL(half_life="30 days"), r"FTRL\(half_life=\).*'30d'"),
        (lambda: AdaGrad(eps=0), r"AdaGrad\(eps=\)"),
        (lambda: SGD(lr=float("inf")), r"SGD\(lr=\)"),
        (lambda: LogisticRegression(0.1), "expected an optimizer"),
        (lambda: LogisticRegression(bits=3), r"LogisticRegression\(bits=\)"),
        (lambda: LogisticRegression(dtype="float16"), r"dtype="),
        (lambda: LinearRegression(loss="hinge"), "squared, absolute, quantile, huber, poisson.*'hinge'"),
        (lambda: LinearRegression(delta=0), r"LinearRegression\(delta=\).*above 0"),
        (lambda: LogisticRegression(class_weight={"true": 2}), r"class_weight=\).*\{False: 1.0, True: 5.0\}.*'true'"),
        (lambda: LogisticRegression(class_weight=[1.0]), r"class_weight=\)"),
        (lambda: LogisticRegression(class_weight=[1.0, -1.0]), r"class_weight=\).*at least 0, got -1.0"),
        (lambda: SoftmaxRegression(class_weight=5.0), r"SoftmaxRegression\(class_weight=\).*each class.*5.0"),
        (lambda: SoftmaxRegression(class_weight={False: 1.0}), r"SoftmaxRegression\(class_weight=\)"),
        (lambda: SoftmaxRegression("sgd"), "expected an optimizer.*'sgd'"),
        (lambda: SoftmaxRegression(bits=3), r"SoftmaxRegression\(bits=\)"),
        (lambda: AMFClassifier(n_estimators=0), r"AMFClassifier\(n_estimators=\).*from 1 to 500, got 0"),
        (lambda: AMFClassifier(dirichlet=0), r"AMFClassifier\(dirichlet=\).*above 0.*got 0"),
        (lambda: AMFClassifier(split_pure=1), r"AMFClassifier\(split_pure=\): expected True or False, got 1"),
        (lambda: AMFClassifier(use_aggregation=None), r"AMFClassifier\(use_aggregation=\): expected True or False"),
        (lambda: AMFRegressor(step=0), r"AMFRegressor\(step=\).*above 0"),
        (lambda: AMFRegressor(max_nodes=0), r"AMFRegressor\(max_nodes=\).*from 1 to 1,048,576, got 0"),
        (lambda: AMFRegressor(seed=-1), r"AMFRegressor\(seed=\).*from 0"),
        (lambda: PAClassifier(C=0), r"PAClassifier\(C=\).*above 0"),
        (lambda: PAClassifier(mode=3), r"PAClassifier\(mode=\).*PA-II.*got 3"),
        (lambda: PARegressor(eps=-1), r"PARegressor\(eps=\)"),
        (lambda: PARegressor(dtype="int8"), r"PARegressor\(dtype=\)"),
        (lambda: LinearRegression(quantile=1.5), r"quantile=\).*at most 1"),
        (lambda: LinearRegression(intercept_lr=-1), r"intercept_lr="),
        (lambda: Prior(start=-1), r"Prior\(start=\).*at least 0"),
        (lambda: Prior(half_life="soon"), r"Prior\(half_life=\)"),
        (lambda: RunningMean(half_life=30), r"RunningMean\(half_life=\)"),
        (lambda: NoChange(eps=0.6), r"NoChange\(eps=\).*at most 0.5"),
        (lambda: LogisticRegression() | StandardScaler(), "only the last part"),
        (lambda: Average(), r"Average\(\): expected one learner or more"),
        (lambda: Average(StandardScaler()), "ends without a learner"),
        (lambda: Average("ftrl"), "transforms and a learner.*got 'ftrl'"),
        (lambda: Average(Prior(), weights=[1, 2]), "2 weights for 1 learners"),
        (lambda: Average(Prior(), weights=[0]), r"Average\(weights=\)\[0\].*above 0, got 0"),
        (lambda: Average(Prior(), weights=2.0), r"Average\(weights=\): expected a number for each learner, got 2.0"),
        (lambda: StandardScaler() | 3, "transforms and a learner.*got 3"),
        (lambda: as_chain("ftrl"), "transforms and a learner.*got 'ftrl'"),
    ],
)
def test_a_model_declared_wrongly_says_what_to_write(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()


@pytest.mark.parametrize(
    ("model", "task", "match"),
    [
        (LogisticRegression(), "regression", "binary.*a regression task.*use LinearRegression"),
        (LinearRegression(), "binary", "regression.*a binary task.*use LogisticRegression"),
        (SoftmaxRegression(), "binary", "multiclass.*two outputs or more.*a binary task.*use LogisticRegression"),
        (SoftmaxRegression(), "multiclass", "multiclass.*two outputs or more.*with 1 output"),
        (PAClassifier(), "regression", "binary.*a regression task.*use PARegressor"),
        (AMFClassifier(), "regression", "AMFClassifier.*binary or a multiclass.*a regression task.*use AMFRegressor"),
        (AMFClassifier(), "multiclass", "AMFClassifier.*a multiclass task with 1 output"),
        (AMFRegressor(), "binary", "AMFRegressor.*one output.*a binary task.*use AMFClassifier"),
        (PARegressor(), "multiclass", "regression.*a multiclass task.*SoftmaxRegression"),
        (Prior(), "regression", "Prior learns binary and multiclass tasks.*a regression task.*use RunningMean"),
        (Prior(), "multiclass", "a multiclass task with 1 output"),
        (RunningMean(), "binary", "RunningMean learns regression tasks.*a binary task.*use Prior"),
        (NoChange(), None, "no labels; declare labels"),
        (LogisticRegression(), None, "no labels"),
        (StandardScaler(), "binary", "ends without a learner"),
    ],
)
def test_task_that_does_not_fit_the_model_is_refused_with_the_remedy(model, task, match):
    with pytest.raises(DeclarationError, match=match):
        as_chain(model).layout(Spec(("a",), (), task, 1))


def test_features_and_state_of_another_model_are_refused(bind, stream):
    bound = bind(LogisticRegression(bits=6))
    x, truth = stream(5, 0)
    out = np.empty((5, 1), np.float32)
    with pytest.raises(ValueError, match=r"numeric features: expected float32 \(5, 3\), got float32 \(5, 2\)"):
        bound.chain.predict(Rows(x.numeric[:, :2].copy(), x.categories), out)
    with pytest.raises(ValueError, match="categories: expected uint64"):
        bound.chain.predict(Rows(x.numeric, x.categories.astype(np.int64)), out)
    with pytest.raises(ValueError, match=r"labels: expected float32 \(5, 1\), got float32 \(5,\)"):
        bound.chain.learn(x, Truth(truth.y[:, 0].copy(), truth.weight))
    with pytest.raises(ValueError, match="weights: expected float32"):
        bound.chain.learn(x, Truth(truth.y, np.ones(4, np.float32)))
    with pytest.raises(ValueError, match="out: expected a writable"):
        bound.chain.predict(x, out[:4])
    with pytest.raises(DeclarationError, match=r"0/table.*expected float64 \(128, 2\)"):
        as_chain(LogisticRegression(bits=7)).bind(bound.spec, bound.state, bound.touched)


def test_views_and_read_only_rows_are_taken_as_they_are(bind, stream):
    bounds = bind(MODELS["ftrl"]()), bind(MODELS["ftrl"]())
    x, truth = part = stream(20, 0)
    expected = run(bounds[0], "test_then_learn", part)
    x = Rows(np.asfortranarray(x.numeric), x.categories.copy())
    x.categories.flags.writeable = False
    truth = Truth(truth.y.copy(), np.repeat(truth.weight, 2)[::2])
    assert run(bounds[1], "test_then_learn", type(part)(x, truth)).tobytes() == expected.tobytes()
    assert bounds[0].bits() == bounds[1].bits()


def test_chain_grows_its_buffers_and_goes_on(bind, stream):
    small, large = bind(MODELS["ftrl"]()), bind(MODELS["ftrl"]())
    large.chain.predict(*_predictable(stream(5000, 1)))
    for rows in (1, 3, 700, 2):
        part = stream(rows, rows)
        assert run(small, "test_then_learn", part).tobytes() == run(large, "test_then_learn", part).tobytes()
    assert small.bits() == large.bits()


def _predictable(part):
    return part.x, np.empty((len(part.truth.y), 1), np.float32)


def test_learner_of_ones_own_fits_a_chain_without_a_fused_kernel(bind, stream):
    """A learner that only predicts and learns gets test_then_learn, row by row, from the protocol."""
    from headrace.models import Array, Learner

    class Mean(Learner):
        updates, batch_size = "sequential", 1

        def layout(self, spec):
            return {"sums": Array((3,), "float64")}

        def bind(self, spec, state, touched):
            self.sums = state["sums"]

        def predict(self, x, out):
            out[:] = self.sums[0] / max(self.sums[1], 1)

        def learn(self, x, truth):
            known = ~np.isnan(truth.y[:, 0])
            self.sums += truth.y[known].sum(), known.sum(), np.nansum(x.numeric)

    x, truth = part = stream(20, 0)
    bound = bind(Chain(StandardScaler(), Mean()))
    out = run(bound, "test_then_learn", part)
    y = truth.y[:, 0]
    np.testing.assert_allclose(out[1:, 0], np.cumsum(y)[:-1] / np.arange(1, 20), rtol=1e-6)
    assert bound.state["0/count"].sum() == np.count_nonzero(~np.isnan(x.numeric))
    before, after = np.empty((2, *x.numeric.shape))
    scaler = bind(Chain(StandardScaler(), Mean())).chain.parts[0]
    scaler.apply_around(x, x, Rows(before, x.categories), Rows(after, x.categories))
    assert bound.state["1/sums"][2] == pytest.approx(np.nansum(after))
    assert abs(np.nansum(after) - np.nansum(before)) > 0.1


# --- kernels without Numba

PLAIN = """
import sys, numpy as np
np.seterr(over="ignore", invalid="ignore")
from headrace.models import *
rng = np.random.default_rng(5)
for task, model in (
    ("binary", StandardScaler() | LogisticRegression(FTRL(0.2, l1=0.1), bits=6)),
    ("binary", StandardScaler() | LogisticRegression(AdaGrad(0.2, l2=0.1), bits=6, base_rate=False)),
    ("regression", LinearRegression(SGD(0.01), loss="poisson", bits=6)),
    ("regression", LinearRegression(SGD(0.01), loss="huber", bits=6)),
    ("multiclass", StandardScaler() | SoftmaxRegression(FTRL(0.2, l1=0.1), bits=6)),
    ("multiclass", SoftmaxRegression(AdaGrad(0.2, l2=0.1), bits=6, base_rate=False)),
    ("binary", PAClassifier(0.1, bits=6)),
    ("regression", PARegressor(0.1, mode=2, bits=6)),
    ("multiclass", Prior(half_life="1h")),
    ("multiclass", NoChange()),
    ("regression", StandardScaler() | RunningMean()),
    ("binary", GaussianNB(bits=6)),
    ("binary", MultinomialNB(bits=6)),
    ("binary", HoeffdingTreeClassifier(grace_period=10, delta=0.5, max_nodes=15)),
    ("regression", HoeffdingTreeRegressor(grace_period=10, delta=0.5, max_nodes=15, max_values=8)),
    ("multiclass", AMFClassifier(n_estimators=2, max_nodes=31)),
    ("regression", StandardScaler() | AMFRegressor(n_estimators=2, max_nodes=31)),
    ("binary", StandardScaler() | Average(LogisticRegression(bits=6), StandardScaler() | Prior())),
):
    outputs = 3 if task == "multiclass" else 1
    spec = Spec(("a", "b"), ("c",), task, outputs)
    chain = as_chain(model)
    layout = chain.layout(spec)
    state = allocate(layout)
    chain.bind(spec, state, allocate_touched(layout))
    metrics = Metrics(task, outputs)
    counts = allocate(metrics.layout())
    metrics.bind(counts)
    x = Rows(rng.normal(size=(40, 2)).astype("f4"), rng.integers(0, 5, (40, 1), dtype=np.uint64))
    x.numeric[::9] = np.nan
    truth = Truth((rng.random((40, 1)) < 0.4).astype("f4"), np.ones(40, "f4"))
    out = np.empty((40, outputs))
    chain.test_then_learn(x, truth, out)
    for _, decay in chain.decays():
        decay(0.9)
    chain.predict_then_observe(x, out)
    chain.learn(x, truth)
    metrics.update(truth.y, out)
    for array in (*state.values(), *counts.values(), out):
        print(*(float(v).hex() for v in array.ravel() if v))
"""


def test_kernels_do_the_same_with_the_jit_off(tmp_path: Path):
    outputs = []
    for jit in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PLAIN],
            env=os.environ | {"NUMBA_DISABLE_JIT": jit},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append([[float.fromhex(v) for v in line.split()] for line in done.stdout.splitlines()])
    assert sum(map(len, outputs[0])) > 300
    for compiled, plain in zip(*outputs, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-12)


def test_importing_models_needs_neither_torch_nor_kafka_and_compiles_nothing():
    code = (
        "import sys, headrace.models as m\n"
        "from headrace.models import baselines as b, linear_kernels as k, scaler as s, metrics as x\n"
        "from headrace.models import bayes_kernels as b, linear_kernels as k, scaler as s, metrics as x\n"
        "bad = [n for n in ('torch', 'river', 'polars', 'faust', 'aiokafka', 'redis') if n in sys.modules]\n"
        "kernels = [f for module in (b, k, s, x) for f in vars(module).values() if hasattr(f, 'signatures')]\n"
        "print(bad, len(kernels) > 10, any(f.signatures for f in kernels))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[] True False"
