"""Aggregated Mondrian forests: trees that split at random, where every node on the way of a row has a say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np

from ..errors import DeclarationError
from . import mondrian_explain_kernels as explaining
from . import mondrian_kernels as kernels
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
from .trees import columns_of


class MondrianForest(Configured, Explainer):
    """What the two share: checks of settings, arrays, and how the kernels are called."""

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1
    quick: ClassVar[bool] = False  # ten trees need tens of microseconds a row

    n_estimators: int
    step: float
    use_aggregation: bool
    max_nodes: int
    seed: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_whole(f"{name}(n_estimators=)", self.n_estimators, 1, 500)
        check_number(f"{name}(step=)", self.step, 0.0, above=True, high=1e6)
        check_flag(f"{name}(use_aggregation=)", self.use_aggregation)
        check_whole(f"{name}(max_nodes=)", self.max_nodes, 1, 1 << 20)
        check_whole(f"{name}(seed=)", self.seed, 0, 2**63 - 1)

    def told(self, spec: Spec) -> int:
        """How many numbers a node keeps of the labels; raises DeclarationError when spec is not what it learns."""
        raise NotImplementedError

    def settings(self) -> kernels.Settings:
        """What the kernels are told."""
        raise NotImplementedError

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not that of the model."""
        told, trees, n, k = self.told(spec), self.n_estimators, len(spec.numeric), len(spec.categories)
        nodes = trees * self.max_nodes
        return {
            "size": Array((trees,), "int64"),
            "drawn": Array((trees,), "uint64"),
            "links": Array((nodes, 2), "int32"),
            "numbers": Array((nodes, 5), "float64"),
            "column": Array((nodes,), "uint64"),
            "threshold": Array((nodes,), "float64"),
            "told": Array((nodes, told), "float64"),
            "ranges": Array((n, nodes, 2), "float64", axis="numeric"),
            "known": Array((n, nodes), "uint8", axis="numeric"),
            "buckets": Array((k, nodes), "uint64", axis="categories"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        columns = kernels.Columns(*columns_of(spec))
        self._parts = kernels.Nodes(*(state[name] for name in kernels.Nodes._fields)), self.settings(), columns
        told, features = state["told"].shape[1], len(spec.numeric) + len(spec.categories)
        self._room = explaining.Explaining(
            whole=np.empty((spec.outputs, features + 1)), above=np.empty(spec.outputs), sums=np.empty((1, told))
        )
        self._none = np.empty((0, spec.outputs), np.float32)
        self._nothing = Truth(np.empty((0, 1), np.float32), np.empty(0, np.float32))

    def predict(self, x: Rows, out: np.ndarray) -> None:
        rows = x.numeric, x.categories, *self._nothing
        kernels.predict_mondrian(*rows, *self._parts, self._sums_of(out), out)

    def learn(self, x: Rows, truth: Truth) -> None:
        self.test_then_learn(x, truth, self._none)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, x.categories, truth.y, truth.weight
        kernels.learn_mondrian(*rows, *self._parts, self._sums_of(out), out)

    def _sums_of(self, out: np.ndarray) -> np.ndarray:
        """Room to add up what the trees say of so many rows in."""
        return np.empty((len(out), self._parts[0].told.shape[1]))

    def link(self, spec: Spec) -> Link:
        """It says what adds up to P, or to the value."""
        return "identity"

    def explain(self, x: Rows, out: np.ndarray) -> None:
        explaining.explain_mondrian(x.numeric, x.categories, *self._parts, self._room, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, x.categories, truth.y, truth.weight
        explaining.explain_then_learn_mondrian(*rows, *self._parts, self._room, out, contributions)


@register
@dataclass(eq=False)
class AMFClassifier(MondrianForest):
    """An aggregated Mondrian forest (AMF), for a binary or a multiclass task: out is P(true), or P of each class.

    A node of a tree knows the box of the rows that came by. A row outside of it may split the node, the sooner the
    farther outside it lies: at a column drawn by how far the row lies outside there, and at a threshold drawn between
    box and row. No split is looked for, and none waits for evidence. A tree predicts the mean over all its prunings,
    each weighted by how well it would have predicted so far, which costs no more than the way to a leaf: every node on
    it has a say. The forest predicts the mean of its trees.

    n_estimators     trees
    step             of the weights: a pruning weighs exp(-step * its log loss so far)
    use_aggregation  False: leaves alone predict
    dirichlet        what each class is thought to have been seen before it was
    split_pure       whether a node splits that has seen no class but that of the row
    max_nodes        room for so many branches and leaves in each tree. When it is full nothing splits any more; boxes,
                     counts and weights go on. `size` in the state is how many each tree has
    seed             of the draws; the same seed gives the same bits

    Columns are compared by how far a row lies outside: scale them (StandardScaler), or see that a unit of each is as
    large as it matters. A category is as an indicator (0 or 1) for each of 64 buckets of its values, so that a bucket
    that a box has not seen lies 1 outside; more than 64 values share them.

    Memory is bounded, and whole from the start (zeros cost none until they are written). For N numeric columns,
    K categories, C classes, M = max_nodes, in bytes: n_estimators (16 + M (64 + 8 C + 17 N + 8 K)).

    Missing: a number that is NaN or infinite and a category 0 lie in every box, and extend none; at a branch that asks
    for them the row goes to the child that has seen more weight. A split on a feature that is gone from the declaration
    sends every row there too; one that is added begins with the row that comes next in every box.

    A row of weight w counts w times, all at once. Sequential: equal to learning one by one whatever the cuts. Each
    tree has a generator of its own (SplitMix64), whose state is how many numbers it has drawn: a replay draws the same
    ones. It does not forget. A row whose weight is not above 0 is predicted and not learned. Merge: owner. Before the
    first label every class is as likely as another.

    It equals River's AMFClassifier of the same settings node by node but for the draws, on a table whose classes River
    has all met and which lacks no values: where the column of a branch is missing, River takes the child
    with the smaller loss so far. An even max_nodes is one less; River goes one above.
    Source: Mourtada, Gaiffas and Scornet (2021), AMF: Aggregated Mondrian forests for online learning.
    """

    _: KW_ONLY
    n_estimators: int = 10
    step: float = 1.0
    use_aggregation: bool = True
    dirichlet: float = 0.5
    split_pure: bool = False
    max_nodes: int = 2047
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("AMFClassifier(dirichlet=)", self.dirichlet, 0.0, above=True, high=1e6)
        check_flag("AMFClassifier(split_pure=)", self.split_pure)

    def told(self, spec: Spec) -> int:
        classes = 2 if spec.task == "binary" else spec.outputs
        if spec.task not in ("binary", "multiclass") or classes < 2 or (spec.task == "binary" and spec.outputs != 1):
            raise DeclarationError(
                f"AMFClassifier learns a binary or a multiclass task, the pipeline declares {declared_task(spec)}; "
                "use AMFRegressor for a regression task"
            )
        return classes

    def settings(self) -> kernels.Settings:
        return kernels.Settings(
            classes=True,
            seed=np.uint64(self.seed),
            step=float(self.step),
            dirichlet=float(self.dirichlet),
            aggregates=self.use_aggregation,
            split_pure=self.split_pure,
        )


@register
@dataclass(eq=False)
class AMFRegressor(MondrianForest):
    """An aggregated Mondrian forest (AMF) for a regression task: the mean of what its trees predict.

    A node predicts the mean of its labels; in all else the trees are those of AMFClassifier. They split at every row
    that lies outside the box of its leaf, so they are full after max_nodes / 2 rows or more, and go on as they are.

    step  of the weights: a pruning weighs exp(-step * half its squared error so far), in the unit of the label squared:
          of large labels the best pruning soon decides alone
    n_estimators, use_aggregation, max_nodes, seed
          as in AMFClassifier

    Memory, as in AMFClassifier: n_estimators (16 + M (72 + 17 N + 8 K)) bytes.

    Scales, categories, missing values, weights, features, draws: as there. Before the first label it predicts 0.
    Predictions are held within +-1e30. Merge: owner.

    It equals River's AMFRegressor of the same settings as AMFClassifier equals River's.
    Source: Mourtada, Gaiffas and Scornet (2021), AMF: Aggregated Mondrian forests for online learning.
    """

    _: KW_ONLY
    n_estimators: int = 10
    step: float = 1.0
    use_aggregation: bool = True
    max_nodes: int = 8191
    seed: int = 0

    def told(self, spec: Spec) -> int:
        if spec.task != "regression" or spec.outputs != 1:
            raise DeclarationError(
                f"AMFRegressor learns a regression task with one output, the pipeline declares {declared_task(spec)}; "
                "use AMFClassifier for a binary or a multiclass task"
            )
        return 1

    def settings(self) -> kernels.Settings:
        return kernels.Settings(
            classes=False,
            seed=np.uint64(self.seed),
            step=float(self.step),
            dirichlet=0.0,
            aggregates=self.use_aggregation,
            split_pure=True,
        )
