"""Trees that grow with the stream: a leaf splits once it has seen enough to be sure which column to ask."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import DeclarationError
from . import regression_tree_explain_kernels as explaining_values
from . import regression_tree_kernels as value_kernels
from . import tree_explain_kernels as explaining
from . import tree_kernels as kernels
from . import tree_nodes as nodes
from .base import (
    Array,
    Configured,
    Explainer,
    Link,
    Rows,
    Spec,
    Truth,
    check_flag,
    check_number,
    check_whole,
    declared_task,
    register,
)

PREDICTIONS = {"mc": nodes.MAJORITY, "nb": nodes.BAYES, "nba": nodes.ADAPTIVE}
CRITERIA = {"info_gain": nodes.INFO_GAIN, "gini": nodes.GINI}
VALUES = {"mean": nodes.MEAN_ONLY, "model": nodes.MODEL_ONLY, "adaptive": nodes.MEAN_OR_MODEL}
NO_LIMIT = 2**31 - 1


class HoeffdingTree(Configured, Explainer):
    """What the trees share: settings and their checks, and what a prediction is made of."""

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1

    grace_period: float
    delta: float
    tau: float
    max_depth: int | None
    leaf_prediction: str
    merit_preprune: bool
    max_nodes: int
    category_values: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_number(f"{name}(grace_period=)", self.grace_period, 0.0, above=True)
        check_number(f"{name}(delta=)", self.delta, 0.0, above=True, high=1.0)
        check_number(f"{name}(tau=)", self.tau, 0.0)
        check_whole(f"{name}(max_nodes=)", self.max_nodes, 1, 1 << 24)
        check_whole(f"{name}(category_values=)", self.category_values, 1, 1 << 16)
        if self.max_depth is not None:
            check_whole(f"{name}(max_depth=)", self.max_depth, 1, NO_LIMIT)
        check_flag(f"{name}(merit_preprune=)", self.merit_preprune)

    def arrays(self, spec: Spec, trees: int) -> dict[str, Array]:
        """Arrays that so many trees share in equal parts; raises DeclarationError when spec is not what they learn."""
        raise NotImplementedError

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not that of the model."""
        return self.arrays(spec, 1)

    def link(self, spec: Spec) -> Link:
        return "identity"

    def room_to_explain(self, spec: Spec, sums: np.ndarray, serving: int = 1) -> explaining.Explaining:
        """Zeros, which cost no memory until something is explained, for sums of all nodes of all trees.

        serving  how many trees predict together
        """
        columns, classes = len(spec.numeric) + len(spec.categories) + 1, sums.shape[1]
        return explaining.Explaining(
            order=np.zeros(self.max_nodes, np.int32),
            sums=np.zeros(sums.shape),
            terms=np.zeros((columns, classes)),
            votes=np.zeros(classes),
            shares=np.zeros((2, classes)),
            way=np.zeros((spec.outputs, columns)),
            whole=np.zeros((spec.outputs, columns)),
            served=np.zeros(serving, np.int64),
            counted=np.zeros(serving, np.int64),
            values=np.zeros((1, serving)),
            weights=np.zeros(serving),
        )


@register
@dataclass(eq=False)
class HoeffdingTreeClassifier(HoeffdingTree):
    """A Hoeffding tree (VFDT), for a binary or a multiclass task: out is P(true), or P of each class.

    A leaf looks for a split after every `grace_period` of weight. It splits on the best column if the merit of that is
    larger than the second best by sqrt(R**2 ln(1 / delta) / (2 n)), n the weight of the leaf and R the range of the
    merit (log2 of its classes; 1 for Gini), or if that bound is below `tau`. Every split has two sides: a number is at
    most the threshold or not, a category is the value or not.

    grace_period         weight of the examples between two attempts to split a leaf
    delta                chance that a split is not the best one
    tau                  below this bound the best column wins even if the second is as good
    max_depth            leaves this deep do not split, and predict their majority; None: no limit
    leaf_prediction      "mc": the shares of the classes; "nb": naive Bayes; "nba": whichever was right more often
    nb_threshold         weight below which "nb" predicts as "mc"
    split_criterion      "info_gain" or "gini"
    n_splits             thresholds tried per numeric column, evenly between its lowest and highest value
    min_branch_fraction  share of the examples that either side of a split must have
    max_share_to_split   a leaf does not split when one class has more than this share of it
    merit_preprune       not to split is a candidate too
    max_nodes            room for so many branches and leaves. When it is full the leaves go on learning and nothing
                         splits any more; attempts that found no room are counted in the state, size[2]
    category_values      room for so many values per category and leaf; one that finds none takes the place of the
                         lightest if that weighs no more than itself, and counts as "another value" if not

    A leaf keeps the moments, the lowest and the highest value of each numeric column per class, and takes each class
    as Gaussian. Memory, whole from the start (zeros cost none until they are written), for N numeric columns,
    K categories, C classes, M = max_nodes, S = (M + 1) // 2, V = category_values, in bytes:
    24 + M (76 + 12 C) + S (4 + N (4 + 48 C) + K (4 + 16 C + V (8 + 8 C))).

    Missing: a number that is NaN or infinite and a category 0 add nothing to what a leaf observes; at a branch that
    asks for them the row goes to the child that has seen more weight, and is learned there without being a cause to
    split. A split on a feature that is gone from the declaration sends every row to the heavier child.

    Sequential: equal to learning one by one whatever the cuts. It does not forget. A row whose weight is not above 0 is
    predicted and not learned: a tree cannot take back what it has split on. No scaling is needed. Merge: owner.
    Before the first label every class is as likely as another.

    On numeric columns it equals River's HoeffdingTreeClassifier of the same settings node by node, with a
    GaussianSplitter(n_splits); with categories as its nominal_attributes that of binary_split=True, as long as no leaf
    meets more than category_values values. River's memory estimate (max_size) and remove_poor_attrs have no
    counterpart.
    Source: Domingos and Hulten (2000), Mining high-speed data streams.
    """

    quick: ClassVar[bool] = True
    instead: ClassVar[str] = "HoeffdingTreeRegressor"

    _: KW_ONLY
    grace_period: float = 200
    delta: float = 1e-7
    tau: float = 0.05
    max_depth: int | None = None
    leaf_prediction: str = "nba"
    nb_threshold: float = 0
    split_criterion: str = "info_gain"
    n_splits: int = 10
    min_branch_fraction: float = 0.01
    max_share_to_split: float = 0.99
    merit_preprune: bool = True
    max_nodes: int = 2047
    category_values: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_number(f"{name}(nb_threshold=)", self.nb_threshold, 0.0)
        check_number(f"{name}(min_branch_fraction=)", self.min_branch_fraction, 0.0, high=0.5)
        check_number(f"{name}(max_share_to_split=)", self.max_share_to_split, 0.0, high=1.0)
        check_whole(f"{name}(n_splits=)", self.n_splits, 1, 10_000)
        _check_choices(self, leaf_prediction=PREDICTIONS, split_criterion=CRITERIA)

    def arrays(self, spec: Spec, trees: int) -> dict[str, Array]:
        classes = 2 if spec.task == "binary" else spec.outputs
        if spec.task not in ("binary", "multiclass") or classes < 2 or (spec.task == "binary" and spec.outputs != 1):
            raise DeclarationError(
                f"{type(self).__name__} learns a binary or a multiclass task, the pipeline declares "
                f"{declared_task(spec)}; use {self.instead} for a regression task"
            )
        nodes, slots, values = trees * self.max_nodes, trees * ((self.max_nodes + 1) // 2), self.category_values
        n, k = len(spec.numeric), len(spec.categories)
        return _branches(nodes) | {
            "counts": Array((nodes, classes), "float64"),
            "classes": Array((nodes, classes), "int32"),
            "seen": Array((slots,), "int32"),
            "first": Array((n, slots), "int32", axis="numeric"),
            "gaussians": Array((n, slots, classes, 6), "float64", axis="numeric"),
            "category_first": Array((k, slots), "int32", axis="categories"),
            "category_totals": Array((k, slots, classes, 2), "float64", axis="categories"),
            "values": Array((k, slots, values), "uint64", axis="categories"),
            "value_counts": Array((k, slots, values, classes), "float64", axis="categories"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        tree = nodes.Tree(*(state[name] for name in nodes.Tree._fields))
        scratch = scratch_of(spec, tree.counts.shape[1])
        self._parts = tree, self.settings(0), columns_of(spec), scratch
        self._room = self.room_to_explain(spec, tree.counts)
        self._none = np.empty((0, spec.outputs), np.float32)

    def settings(self, features: int) -> nodes.Settings:
        """What the kernels are told, of a tree whose leaves draw so many columns; 0: they observe all."""
        return nodes.Settings(
            prediction=PREDICTIONS[self.leaf_prediction],
            criterion=CRITERIA[self.split_criterion],
            grace_period=float(self.grace_period),
            log_confidence=math.log(1.0 / self.delta),
            tau=float(self.tau),
            max_depth=NO_LIMIT if self.max_depth is None else self.max_depth,
            nb_threshold=float(self.nb_threshold),
            n_splits=self.n_splits,
            min_branch_fraction=float(self.min_branch_fraction),
            max_share_to_split=float(self.max_share_to_split),
            merit_preprune=self.merit_preprune,
            features=features,
        )

    def predict(self, x: Rows, out: np.ndarray) -> None:
        kernels.predict_rows(x.numeric, x.categories, *self._parts, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        kernels.learn_rows(x.numeric, x.numeric, True, x.categories, truth.y, truth.weight, *self._parts, self._none)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        same = after is x.numeric
        kernels.learn_rows(x.numeric, after, same, x.categories, truth.y, truth.weight, *self._parts, out)

    def explain(self, x: Rows, out: np.ndarray) -> None:
        explaining.explain_rows(x.numeric, x.categories, *self._parts[:3], self._room, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, after is x.numeric, x.categories, truth.y, truth.weight
        explaining.explain_then_learn_rows(*rows, *self._parts, self._room, out, contributions)


@register
@dataclass(eq=False)
class HoeffdingTreeRegressor(HoeffdingTree):
    """A Hoeffding tree for a regression task (FIMT): leaves predict the mean of their targets, or a linear model.

    A leaf looks for a split after every `grace_period` of weight. The merit of a split is by how much it reduces the
    variance of the target. The leaf splits on the best column if the second best has less than 1 - e of its merit, or
    if e is below `tau`, with e = sqrt(ln(1 / delta) / (2 n)) and n the weight of the leaf. Every split has two sides: a
    number is at most the threshold or not, a category is the value or not.

    grace_period          weight of the examples between two attempts to split a leaf
    delta                 chance that a split is not the best one
    tau                   below this bound the best column wins even if the second is as good
    max_depth             leaves this deep do not split; None: no limit
    leaf_prediction       "mean"; "model": linear regression on the numeric columns by plain gradient descent;
                          "adaptive": whichever had the smaller squared error of late
    model_selector_decay  by what "adaptive" scales the errors so far at every example
    lr, intercept_lr      steps of the linear model; children begin with the model of their parent
    min_samples_split     weight that either side of a split must have
    digits                numbers are rounded to so many decimals before they are thresholds
    merit_preprune        not to split is a candidate too
    max_nodes             room for so many branches and leaves. When it is full the leaves go on learning and nothing
                          splits any more; attempts that found no room are counted in the state, size[2]
    max_values            room for so many thresholds per numeric column and leaf; a number that finds none is counted
                          on its side of the others and can itself be no threshold
    category_values       as in HoeffdingTreeClassifier

    A leaf keeps a binary search tree per numeric column (E-BST): each number that came, rounded, with the moments of
    the targets at it or below. Memory, whole from the start (zeros cost none until they are written), for N numeric
    columns, K categories, M = max_nodes, S = (M + 1) // 2, V = max_values, W = category_values, in bytes:
    24 + M 100 + S (12 + N (16 + 40 V) + K (4 + 32 W)).

    Missing values, order, weights, features that change: as in HoeffdingTreeClassifier; a missing number and all
    categories add nothing to the linear models. Scale numeric columns first (StandardScaler): the models step in the
    unit of the column, and `digits` counts in it. Merge: owner. Before the first label it predicts 0.

    On numeric columns it equals River's HoeffdingTreeRegressor of the same settings node by node, with
    TEBSTSplitter(digits) and leaf_model LinearRegression(SGD(lr), intercept_lr=intercept_lr), as long as no leaf meets
    more than max_values numbers of a column; with categories as its nominal_attributes, leaf_prediction "mean", that of
    binary_split=True. River's memory estimate (max_size) and remove_poor_attrs have no counterpart.
    Source: Ikonomovska, Gama and Dzeroski (2011), Learning model trees from evolving data streams.
    """

    quick: ClassVar[bool] = True
    instead: ClassVar[str] = "HoeffdingTreeClassifier"

    _: KW_ONLY
    grace_period: float = 200
    delta: float = 1e-7
    tau: float = 0.05
    max_depth: int | None = None
    leaf_prediction: str = "adaptive"
    model_selector_decay: float = 0.95
    lr: float = 0.01
    intercept_lr: float = 0.01
    min_samples_split: float = 5
    digits: int = 1
    merit_preprune: bool = True
    max_nodes: int = 255
    max_values: int = 256
    category_values: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_number(f"{name}(model_selector_decay=)", self.model_selector_decay, 0.0, high=1.0)
        check_number(f"{name}(lr=)", self.lr, 0.0)
        check_number(f"{name}(intercept_lr=)", self.intercept_lr, 0.0)
        check_number(f"{name}(min_samples_split=)", self.min_samples_split, 1.0)
        check_whole(f"{name}(digits=)", self.digits, 0, 15)
        check_whole(f"{name}(max_values=)", self.max_values, 2, 1 << 24)
        _check_choices(self, leaf_prediction=VALUES)

    def arrays(self, spec: Spec, trees: int) -> dict[str, Array]:
        if spec.task != "regression" or spec.outputs != 1:
            raise DeclarationError(
                f"{type(self).__name__} learns a regression task with one output, the pipeline declares "
                f"{declared_task(spec)}; use {self.instead} for a binary or a multiclass task"
            )
        nodes, slots, room = trees * self.max_nodes, trees * ((self.max_nodes + 1) // 2), self.max_values
        n, k, kept = len(spec.numeric), len(spec.categories), self.category_values
        return _branches(nodes) | {
            "targets": Array((nodes, 3), "float64"),
            "intercepts": Array((slots,), "float64"),
            "coefficients": Array((n, slots), "float64", axis="numeric"),
            "seen": Array((slots,), "int32"),
            "first": Array((n, slots), "int32", axis="numeric"),
            "used": Array((n, slots), "int32", axis="numeric"),
            "values": Array((n, slots, room), "float64", axis="numeric"),
            "children": Array((n, slots, room, 2), "int32", axis="numeric"),
            "moments": Array((n, slots, room, 3), "float64", axis="numeric"),
            "category_first": Array((k, slots), "int32", axis="categories"),
            "categories": Array((k, slots, kept), "uint64", axis="categories"),
            "category_moments": Array((k, slots, kept, 3), "float64", axis="categories"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        tree = nodes.RegressionTree(*(state[name] for name in nodes.RegressionTree._fields))
        room = self.max_values
        self._parts = tree, self.settings(0), columns_of(spec)
        self._room = self.room_to_explain(spec, tree.targets[:, :2])
        self._scratch = np.empty((4 * room + 4, 2), np.int32), np.empty((room, 6))
        self._none = np.empty((0, 1), np.float32)

    def settings(self, features: int) -> nodes.RegressionSettings:
        """What the kernels are told, of a tree whose leaves draw so many columns; 0: they observe all."""
        return nodes.RegressionSettings(
            prediction=VALUES[self.leaf_prediction],
            grace_period=float(self.grace_period),
            log_confidence=math.log(1.0 / self.delta),
            tau=float(self.tau),
            max_depth=NO_LIMIT if self.max_depth is None else self.max_depth,
            min_samples_split=float(self.min_samples_split),
            factor=10.0**self.digits,
            model_selector_decay=float(self.model_selector_decay),
            lr=float(self.lr),
            intercept_lr=float(self.intercept_lr),
            merit_preprune=self.merit_preprune,
            features=features,
        )

    def predict(self, x: Rows, out: np.ndarray) -> None:
        value_kernels.predict_values(x.numeric, x.categories, *self._parts, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        self.test_then_learn(x, truth, self._none)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, after is x.numeric, x.categories, truth.y, truth.weight
        value_kernels.learn_values(*rows, *self._parts, *self._scratch, out)

    def explain(self, x: Rows, out: np.ndarray) -> None:
        explaining_values.explain_values(x.numeric, x.categories, *self._parts, self._room, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, after is x.numeric, x.categories, truth.y, truth.weight
        explaining_values.explain_then_learn_values(*rows, *self._parts, *self._scratch, self._room, out, contributions)


def _branches(nodes: int) -> dict[str, Array]:
    """The arrays that all trees have."""
    return {
        "size": Array((3,), "int64"),
        "links": Array((nodes, 5), "int32"),
        "column": Array((nodes,), "uint64"),
        "threshold": Array((nodes,), "float64"),
        "value": Array((nodes,), "uint64"),
        "weights": Array((nodes, 4), "float64"),
    }


def _check_choices(model: Any, **choices: Mapping[str, int]) -> None:
    """Raise DeclarationError unless these settings are among their choices."""
    for setting, known in choices.items():
        if getattr(model, setting) not in known:
            raise DeclarationError(
                f"{type(model).__name__}({setting}=): expected one of {', '.join(known)}, "
                f"got {getattr(model, setting)!r}"
            )


def key_of(kind: str, name: str) -> np.uint64:
    """What a branch stores of the column it asks, so that it finds it again when features come and go."""
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{kind}/{name}".encode(), digest_size=8).digest(), "little"))


def columns_of(spec: Spec) -> nodes.Columns:
    """The columns of spec, to be found by their keys."""
    names = [("numeric", name) for name in spec.numeric] + [("category", name) for name in spec.categories]
    by_place = np.array([key_of(*name) for name in names], np.uint64)
    room = 2 << len(names).bit_length()  # at most half of it is taken, so that a search for what is not there ends
    keys, places = np.zeros(room, np.uint64), np.full(room, -1, np.int32)
    for place, key in enumerate(by_place):
        h = int(key) & (room - 1)
        while places[h] >= 0:
            h = (h + 1) & (room - 1)
        keys[h], places[h] = key, place
    return nodes.Columns(by_place, keys, places)


def scratch_of(spec: Spec, classes: int) -> nodes.Scratch:
    """Room for the kernels of trees with so many classes."""
    floats, ints = np.empty((6, classes)), np.empty((3, classes), np.int32)
    return nodes.Scratch(
        votes=floats[0],
        order=ints[0],
        deviations=floats[1],
        left=floats[2],
        left_classes=ints[1],
        right=floats[3],
        right_classes=ints[2],
        found=np.empty(len(spec.categories), np.int32),
        other_votes=floats[4],
        sums=floats[5],
        places=np.empty(len(spec.numeric) + len(spec.categories), np.int32),
    )
