"""River's models as learners: equal to River by hand, row by row; what it does not answer; what does not fit."""

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
from object_state import state_of
from river import (
    anomaly,
    base,
    cluster,
    compose,
    dummy,
    ensemble,
    forest,
    linear_model,
    multiclass,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    tree,
)

from headrace.errors import DeclarationError, SnapshotError
from headrace.models import LogisticRegression, River, Rows, Spec, StandardScaler, Truth, as_chain

NUMBERS = compose.SelectType(float)
TEXTS = compose.SelectType(str)
MODELS = {  # name: model of River, labels of the stream
    "logistic": (lambda: NUMBERS.clone() | linear_model.LogisticRegression(), "binary"),
    "scaled": (lambda: NUMBERS.clone() | preprocessing.StandardScaler() | linear_model.LogisticRegression(), "binary"),
    "one_hot": (lambda: TEXTS.clone() | preprocessing.OneHotEncoder() | linear_model.LogisticRegression(), "binary"),
    "tree": (lambda: tree.HoeffdingTreeClassifier(grace_period=30, delta=0.1), "binary"),
    "forest": (lambda: forest.ARFClassifier(n_models=3, seed=1, grace_period=30), "classes"),
    "naive_bayes": (lambda: NUMBERS.clone() | naive_bayes.GaussianNB(), "classes"),
    "softmax": (lambda: NUMBERS.clone() | linear_model.SoftmaxRegression(), "classes"),
    "neighbors": (lambda: NUMBERS.clone() | neighbors.KNNClassifier(engine=neighbors.LazySearch(50)), "classes"),
    "linear": (lambda: NUMBERS.clone() | preprocessing.StandardScaler() | linear_model.LinearRegression(), "value"),
    "regression_tree": (
        lambda: tree.HoeffdingAdaptiveTreeRegressor(grace_period=50, leaf_prediction="mean", seed=2),
        "value",
    ),
    "bagging": (lambda: ensemble.BaggingClassifier(tree.HoeffdingTreeClassifier(), n_models=2, seed=3), "binary"),
    "half_space": (lambda: NUMBERS.clone() | preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=4), "none"),
    "filter": (lambda: anomaly.QuantileFilter(NUMBERS.clone() | anomaly.OneClassSVM(), q=0.9), "none"),
}
TASKS = {"binary": "binary", "classes": "multiclass", "value": "regression", "none": None}


def dicts(x, spec):
    """Rows as River gets them."""
    for numbers, hashes in zip(x.numeric, x.categories):
        row = {name: float(v) for name, v in zip(spec.numeric, numbers) if np.isfinite(v)}
        yield row | {name: format(int(h), "016x") for name, h in zip(spec.categories, hashes) if h}


def by_hand(model, x, truth, spec):
    """What River says of each row before it learns it, as float32 (B, O); a half, or equal shares, where nothing."""
    out = np.zeros((len(x.numeric), spec.outputs), np.float32)
    for i, row in enumerate(dicts(x, spec)):
        y = truth.y[i, 0]
        if spec.task is None:
            out[i] = model.score_one(row)
            model.learn_one(row)
        elif spec.task == "regression":
            out[i] = model.predict_one(row)
            model.learn_one(row, float(y))
        elif spec.task == "binary":
            out[i] = model.predict_proba_one(row).get(True, 0.0) if i else 0.5
            model.learn_one(row, bool(y))
        else:
            said = model.predict_proba_one(row)
            out[i] = [said.get(c, 0.0) for c in range(spec.outputs)] if i else 1 / spec.outputs
            model.learn_one(row, int(y))
    return out


@pytest.fixture
def example(bind, stream):
    def example(name, rows, seed=0):
        make, labels = MODELS[name]
        chain = as_chain(River(make()))
        task = TASKS[labels]
        spec = Spec(("n0", "n1", "n2"), ("c0", "c1"), task, 3 if task == "multiclass" else 1)
        part = stream(rows, seed, "binary" if labels == "none" else labels)
        part.truth.weight[:] = 1
        return bound(chain, spec), part

    return example


def bound(chain, spec):
    from headrace.models import allocate

    chain.bind(spec, allocate(chain.layout(spec)), {})
    chain.spec = spec
    return chain


def bind_bare(model, numeric=("a",), categories=(), task="binary", outputs=1):
    return bound(as_chain(River(model)), Spec(numeric, categories, task, outputs))


def rows(*numbers):
    return Rows(np.array(numbers, np.float32).reshape(len(numbers), -1), np.empty((len(numbers), 0), np.uint64))


def truth(*y, weight=1.0):
    return Truth(np.array(y, np.float32).reshape(-1, 1), np.full(len(y), weight, np.float32))


def predict(chain, x):
    out = np.full((len(x.numeric), chain.spec.outputs), np.nan, np.float32)
    chain.predict(x, out)
    return out


# ---- equal to River


@pytest.mark.parametrize("name", MODELS)
def test_equals_river_by_hand_row_by_row_and_in_what_it_has_become(example, name):
    chain, part = example(name, 400)
    hand = MODELS[name][0]()
    out = np.empty((400, chain.spec.outputs), np.float32)
    if chain.spec.task is None:
        chain.predict_then_observe(part.x, out)
    else:
        chain.test_then_learn(part.x, part.truth, out)
    expected = by_hand(hand, part.x, part.truth, chain.spec)
    assert out.tobytes() == expected.tobytes()
    assert len(np.unique(out)) > 20
    assert state_of(chain.learner._work) == state_of(hand)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_dumped_and_loaded_goes_on_as_if_it_had_not_been(example, name):
    chain, part = example(name, 300)
    chain.test_then_learn(part.x, part.truth, np.empty((300, chain.spec.outputs), np.float32))
    other = bound(chain.unbound(), chain.spec)
    other.learner.load(chain.learner.dump())
    assert state_of(other.learner._work) == state_of(chain.learner._work)
    for array in ("_odd", "_counts", "_mean"):
        if getattr(chain.learner, array) is not None:
            getattr(other.learner, array)[:] = getattr(chain.learner, array)
    _, more = example(name, 200, seed=5)
    outs = [np.empty((200, chain.spec.outputs), np.float32) for _ in range(2)]
    for one, out in zip((chain, other), outs):
        one.test_then_learn(more.x, more.truth, out)
    assert outs[0].tobytes() == outs[1].tobytes()
    assert state_of(other.learner._work) == state_of(chain.learner._work)


def test_declared_model_is_never_changed_and_what_it_has_learned_before_is_kept():
    model = linear_model.LogisticRegression()
    for _ in range(50):
        model.learn_one({"a": 1.0}, True)
    before = state_of(model)
    chains = [bind_bare(model) for _ in range(2)]
    assert predict(chains[0], rows([1.0]))[0, 0] == np.float32(model.predict_proba_one({"a": 1.0})[True]) > 0.6
    chains[0].learn(rows([1.0]), truth(0))
    assert state_of(model) == before == state_of(chains[1].learner._work)


def test_weight_goes_to_a_model_that_takes_one_and_what_has_none_is_not_learned():
    chain, hand = bind_bare(linear_model.LogisticRegression()), linear_model.LogisticRegression()
    chain.learn(rows([1.0], [2.0]), truth(1, 0, weight=3.0))
    hand.learn_one({"a": 1.0}, True, w=3.0)
    hand.learn_one({"a": 2.0}, False, w=3.0)
    assert chain.learner._work.weights == hand.weights
    blind = bind_bare(naive_bayes.GaussianNB())
    blind.learn(rows([1.0], [2.0]), truth(1, 0, weight=3.0))
    assert blind.learner._work.class_counts == {True: 1, False: 1}
    for weight in (0.0, -1.0, np.nan, np.inf):
        before = state_of(chain.learner._work)
        chain.learn(rows([1.0]), truth(1, weight=weight))
        assert state_of(chain.learner._work) == before


def test_label_that_is_none_is_not_learned():
    chain = bind_bare(tree.HoeffdingTreeClassifier(), task="multiclass", outputs=3)
    before = state_of(chain.learner._work)
    chain.learn(rows([1.0], [1.0], [1.0], [1.0], [1.0]), truth(np.nan, 3, -1, 0.5, np.inf))
    assert state_of(chain.learner._work) == before
    chain.learn(rows([1.0]), truth(2))
    assert chain.learner._work.classes == {2}


def test_label_of_two_classes_is_true_from_a_half_on():
    chain = bind_bare(naive_bayes.GaussianNB())
    chain.learn(rows([1.0], [1.0], [1.0]), truth(0.4, 0.5, 1))
    assert chain.learner._work.class_counts == {False: 1, True: 2}


class Listens(dummy.NoChangeClassifier):
    seen: ClassVar = []

    def learn_one(self, x, y):
        Listens.seen.append(x)
        super().learn_one(x, y)


@pytest.mark.parametrize(("missing", "nothing"), [("omit", {}), ("none", {"a": None, "c": None})])
def test_missing_features_are_left_out_or_none(missing, nothing):
    chain = bound(as_chain(River(Listens(), missing=missing)), Spec(("a",), ("c",), "binary", 1))
    Listens.seen = []
    chain = bound(chain.unbound(), chain.spec)
    assert chain.config()["parts"][0].get("missing", "omit") == missing
    numeric = np.array([[np.inf], [np.nan], [1.0]], np.float32)
    chain.learn(Rows(numeric, np.array([[0], [0], [255]], np.uint64)), truth(1, 0, 1))
    assert Listens.seen == [nothing, nothing, {"a": 1.0, "c": "00000000000000ff"}]


# ---- what it does not answer


class Odd(base.Classifier):
    """Says what it is told to."""

    said: ClassVar = {}
    _multiclass = True
    label = None

    def learn_one(self, x, y):
        self.y = y

    def predict_proba_one(self, x):
        if type(self).said is NotImplementedError:
            raise NotImplementedError
        return type(self).said

    def predict_one(self, x):
        return type(self).label


class OddNumber(base.Regressor):
    said = None

    def learn_one(self, x, y):
        self.y = y

    def predict_one(self, x):
        return type(self).said


class OddScore(base.AnomalyDetector):
    said = None

    def learn_one(self, x):
        self.x = x

    def score_one(self, x):
        return type(self).said


@pytest.mark.parametrize(
    ("said", "out", "counted"),
    [
        ({}, [0.375, 0.625, 0.0], (1, 0)),
        (None, [0.375, 0.625, 0.0], (1, 0)),
        ({0: np.nan, 1: np.nan}, [0.375, 0.625, 0.0], (1, 0)),
        ({0: np.inf}, [0.375, 0.625, 0.0], (1, 0)),
        ({0: 0.0, 1: None}, [0.375, 0.625, 0.0], (1, 0)),
        ({0: 0.2, 2: 0.8}, [0.2, 0.0, 0.8], (0, 0)),
        ({0: 1, 2: 3}, [0.25, 0.0, 0.75], (0, 0)),
        ({0: 0.2, "other": 0.6, 1: 0.2}, [0.5, 0.5, 0.0], (0, 1)),
        ({7: 1.0}, [0.375, 0.625, 0.0], (1, 0)),
        ({np.int64(1): np.float64(1.0)}, [0.0, 1.0, 0.0], (0, 0)),
    ],
)
def test_what_is_no_answer_becomes_the_share_of_the_classes_so_far(said, out, counted):
    chain = bind_bare(Odd(), task="multiclass", outputs=3)
    chain.learner._counts[:] = [3, 5, 0]
    Odd.said = said
    got = np.empty((1, 3), np.float32)
    chain.predict(rows([1.0]), got)
    np.testing.assert_allclose(got[0], out, rtol=1e-6)
    assert tuple(chain.counters().values()) == (0, 0)  # what predicts for others counts nothing
    chain.predict_then_observe(rows([1.0]), got)
    assert chain.counters() == dict(zip(("unanswered", "undeclared"), counted))
    chain.test_then_learn(rows([1.0]), truth(np.nan), got)
    np.testing.assert_allclose(got[0], out, rtol=1e-6)
    assert tuple(chain.counters().values()) == (2 * counted[0], 2 * counted[1])


def test_share_of_the_classes_moves_with_the_labels_from_equal_shares():
    Odd.said = {}
    chain = bind_bare(Odd())
    assert predict(chain, rows([1.0])) == 0.5
    chain.learn(rows([1.0], [1.0], [1.0]), truth(1, 1, 0))
    assert predict(chain, rows([1.0])) == np.float32(2.5 / 4)


def test_weight_of_a_label_counts_in_what_is_said_where_river_says_nothing():
    Odd.said, OddNumber.said = {}, None
    share, mean = bind_bare(Odd()), bind_bare(OddNumber(), task="regression")
    share.learn(rows([1.0]), truth(1, weight=3.0))
    assert predict(share, rows([1.0])) == np.float32(3.5 / 4)
    mean.learn(rows([1.0]), truth(2, weight=3.0))
    mean.learn(rows([1.0]), truth(6, weight=1.0))
    assert predict(mean, rows([1.0])) == 3.0


def test_probabilities_that_all_but_add_up_to_1_are_left_as_river_says_them():
    Odd.said = {False: 0.7000004, True: 0.3}
    assert predict(bind_bare(Odd()), rows([1.0])) == np.float32(0.3)


def test_classifier_that_knows_no_probability_gets_all_of_it_for_what_it_says():
    Odd.said = NotImplementedError
    chain = bind_bare(Odd())
    for label, p in ((True, 1.0), (False, 0.0), (None, 0.5)):
        Odd.label = label
        assert predict(chain, rows([1.0])) == p
    one = bind_bare(multiclass.OneVsOneClassifier(linear_model.LogisticRegression()), task="multiclass", outputs=3)
    one.learn(rows([1.0], [-1.0], [0.0]), truth(0, 1, 2))
    assert sorted(predict(one, rows([1.0]))[0]) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("said", [None, np.nan, -np.inf, 1e300])
def test_value_that_is_no_number_becomes_the_mean_so_far_and_a_score_0(said):
    OddNumber.said = OddScore.said = said
    value, score = bind_bare(OddNumber(), task="regression"), bind_bare(OddScore(), task=None)
    assert predict(value, rows([1.0])) == 0.0
    value.learn(rows([1.0], [1.0]), truth(2, 5))
    assert predict(value, rows([1.0])) == 3.5
    out = np.empty((1, 1), np.float32)
    for chain, expected in ((value, 3.5), (score, 0.0)):
        chain.predict_then_observe(rows([1.0]), out)
        assert out == expected and chain.counters()["unanswered"] == 1


def test_what_river_raises_is_raised():
    chain = bind_bare(compose.Select("b") | preprocessing.StandardScaler() | linear_model.LogisticRegression())
    for method in (chain.learn, lambda x, y: chain.test_then_learn(x, y, np.empty((1, 1), np.float32))):
        with pytest.raises(KeyError, match="b"):
            method(rows([1.0]), truth(1))


# ---- anomaly detectors


def test_detector_learns_each_event_after_its_prediction_labelled_or_not(stream):
    x, labels = stream(200)
    model = anomaly.OneClassSVM()
    spec = Spec(("n0", "n1", "n2"), (), "binary", 1)
    x = Rows(x.numeric, np.empty((200, 0), np.uint64))
    labels.y[::2] = np.nan
    chains = [bound(as_chain(StandardScaler() | River(model)), spec) for _ in range(3)]
    outs = [np.empty((200, 1), np.float32) for _ in range(3)]
    chains[0].test_then_learn(x, labels, outs[0])
    chains[1].predict_then_observe(x, outs[1])
    for i in range(200):
        one = Rows(x.numeric[i : i + 1], x.categories[i : i + 1])
        chains[2].predict_then_observe(one, outs[2][i : i + 1])
        chains[2].learn(one, Truth(labels.y[i : i + 1], labels.weight[i : i + 1]))  # its label tells it nothing
    assert outs[0].tobytes() == outs[1].tobytes() == outs[2].tobytes()
    states = [state_of(chain.learner._work) for chain in chains]
    assert states[0] == states[1] == states[2] != state_of(model)
    assert chains[0].unsupervised and not as_chain(River(dummy.NoChangeClassifier())).unsupervised


class Remembers(base.AnomalyDetector):
    """Scores by the first number, and remembers what it was taught."""

    def __init__(self):
        self.taught = []

    def learn_one(self, x):
        self.taught.append(x["a"])

    def score_one(self, x):
        return x["a"]


def test_detector_learns_the_event_as_the_scaler_stands_once_it_has_seen_it():
    chain = bound(as_chain(StandardScaler(half_life=None) | River(Remembers())), Spec(("a",), (), None, 1))
    out = np.empty((2, 1), np.float32)
    chain.predict_then_observe(rows([2.0], [4.0]), out)
    assert chain.learner._work.taught == pytest.approx([0.0, 1.0])  # 2 of mean 2; 4 of mean 3, deviation 1
    assert out[1, 0] != pytest.approx(1.0)


# ---- settings, to compare


def test_config_tells_class_and_settings_and_is_equal_for_what_is_declared_alike():
    def declare(l2=0.1, lr=0.01):
        model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.Adam(lr), l2=l2)
        return River(model).config()

    told = declare()
    assert told["name"] == "River"
    assert told["model"]["class"] == "river.compose.pipeline.Pipeline"
    assert told["model"]["LogisticRegression"]["l2"] == 0.1
    assert told["model"]["LogisticRegression"]["optimizer"]["class"] == "river.optim.adam.Adam"
    assert told == declare() and told != declare(l2=0.2) and told != declare(lr=0.02)
    many = [
        River(ensemble.VotingClassifier([tree.HoeffdingTreeClassifier(max_depth=d), naive_bayes.GaussianNB()])).config()
        for d in (3, 3, 4)
    ]
    assert many[0] == many[1] != many[2]
    unions = [
        River(
            (preprocessing.StandardScaler(with_std=w) + compose.Select("a")) | linear_model.LinearRegression()
        ).config()
        for w in (True, False)
    ]
    assert unions[0] != unions[1]
    assert River(Remembers()).config()["model"] == {"class": "Remembers"}  # its module may go by another name


def test_repr_names_the_model():
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    assert repr(River(model)) == "River(StandardScaler | LogisticRegression)"
    assert repr(StandardScaler() | River(model)).startswith("StandardScaler(")


# ---- what does not fit


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: River(linear_model.LogisticRegression),
            r"got the class LogisticRegression; write LogisticRegression\(\)",
        ),
        (
            lambda: River(preprocessing.StandardScaler()),
            "classifier, a regressor or an anomaly detector.*got StandardScaler",
        ),
        (lambda: River(cluster.KMeans(seed=1)), "got KMeans"),
        (lambda: River(anomaly.GaussianScorer()), "got GaussianScorer.*only score what is labelled"),
        (lambda: River(anomaly.QuantileFilter(anomaly.GaussianScorer(), q=0.9)), "only score what is labelled"),
        (lambda: River(LogisticRegression()), "headrace.models.linear.LogisticRegression"),
        (lambda: River("tree"), "got tree, a builtins.str"),
        (lambda: River(forest.ARFClassifier()), r"ARFClassifier\(seed=\) is None.*seed=1"),
        (lambda: River(preprocessing.StandardScaler() | anomaly.HalfSpaceTrees()), r"HalfSpaceTrees\(seed=\) is None"),
        (
            lambda: River(
                ensemble.VotingClassifier([naive_bayes.GaussianNB(), tree.HoeffdingAdaptiveTreeClassifier()])
            ),
            r"HoeffdingAdaptiveTreeClassifier\(seed=\)",
        ),
        (lambda: River(compose.FuncTransformer(lambda x: x) | naive_bayes.GaussianNB()), "cannot be pickled.*a name"),
        (lambda: River(naive_bayes.GaussianNB(), missing="zero"), r"River\(missing=\).*'zero'"),
        (lambda: StandardScaler() | naive_bayes.GaussianNB(), "transforms and a learner"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_remedy(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()


@pytest.mark.parametrize(
    ("model", "spec", "match"),
    [
        (
            linear_model.LogisticRegression(),
            Spec(("a",), (), "regression", 1),
            "is a classifier, for binary and multiclass",
        ),
        (linear_model.LinearRegression(), Spec(("a",), (), "binary", 1), "is a regressor, for regression tasks"),
        (linear_model.LogisticRegression(), Spec(("a",), (), None, 1), "declares no labels"),
        (anomaly.OneClassSVM(), Spec(("a",), (), "regression", 1), "anomaly detector.*no labels, or binary ones"),
        (linear_model.LogisticRegression(), Spec(("a",), (), "multiclass", 3), "two classes.*OneVsRestClassifier"),
        (linear_model.LogisticRegression(), Spec(("a",), ("site",), "binary", 1), "category 'site'.*OneHotEncoder"),
        (anomaly.OneClassSVM(), Spec((), ("site",), None, 1), "category 'site'"),
    ],
)
def test_task_or_categories_that_do_not_fit_are_refused_with_the_remedy(model, spec, match):
    with pytest.raises(DeclarationError, match=match):
        as_chain(River(model)).layout(spec)


class Compares(base.Regressor):
    """Takes the first row as it is, and less than that each one after it."""

    first = None

    def learn_one(self, x, y):
        self.first = x if self.first is None else {name: x[name] - v for name, v in self.first.items()}

    def predict_one(self, x):
        return 0.0


def test_category_that_is_only_looked_at_once_something_was_learned_is_refused_too():
    as_chain(River(Compares())).layout(Spec(("a",), (), "regression", 1))
    with pytest.raises(DeclarationError, match=r"raised TypeError.*category 'site'"):
        as_chain(River(Compares())).layout(Spec(("a",), ("site",), "regression", 1))


def test_state_of_another_version_or_of_what_is_not_here_is_refused():
    chain = bind_bare(naive_bayes.GaussianNB())
    dump = chain.learner.dump()
    with pytest.raises(SnapshotError, match=r"kept by `headrace.River river=0.1.0`.*install the same version"):
        chain.learner.load(b"headrace.River river=0.1.0\n" + dump.partition(b"\n")[2])
    for harm in (dump[:-5], dump.replace(b"GaussianNB", b"GoneAwayNB")):
        with pytest.raises(SnapshotError, match="cannot be read"):
            chain.learner.load(harm)


def test_rehearsal_asks_nothing_of_river():
    chain = bind_bare(naive_bayes.GaussianNB())
    chain.learner._work = None
    chain.rehearse()
    out = np.empty((1, 1), np.float32)
    chain.test_then_learn(rows([1.0]), truth(1), out)
    chain.predict_then_observe(rows([1.0]), out)
    assert out == 0.5


RIVERLESS = """
import sys
sys.modules["river"] = None
from headrace import SetupError
from headrace.models import River
try:
    River(object())
except SetupError as error:
    print(error)
"""


def test_without_river_it_says_what_to_install_and_importing_headrace_does_not_import_it():
    done = subprocess.run([sys.executable, "-c", RIVERLESS], capture_output=True, text=True, timeout=60, check=True)
    assert "is not installed" in done.stdout and "headrace[river]" in done.stdout
    code = "import sys, headrace, headrace.models.river, headrace.stream.worker; print('river' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
