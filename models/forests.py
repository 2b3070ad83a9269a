"""Adaptive random forests: trees on random examples and columns, each replaced when it no longer holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import DeclarationError
from . import adwin_kernels as adwin
from . import forest_kernels as kernels
from . import regression_forest_kernels as value_kernels
from . import regression_tree_explain_kernels as explaining_values
from . import tree_explain_kernels as explaining
from . import tree_nodes as nodes
from .base import Array, Rows, Spec, Truth, check_flag, check_number, check_whole, register
from .trees import (
    HoeffdingTree,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    columns_of,
    scratch_of,
)


@dataclass(eq=False)
class Forest(HoeffdingTree):
    """What the two share: how trees draw and are replaced, in settings and arrays. Stands before the tree they grow."""

    _: KW_ONLY
    grace_period: float = 50
    delta: float = 0.01
    n_models: int = 10
    max_features: str | int | float | None = "sqrt"
    lambda_value: float = 6
    warning_delta: float | None = 0.01
    drift_delta: float | None = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_whole(f"{name}(n_models=)", self.n_models, 1, 500)
        check_whole(f"{name}(max_nodes=)", self.max_nodes, 1, 1 << 20)
        check_whole(f"{name}(seed=)", self.seed, 0, 2**63 - 1)
        check_number(f"{name}(lambda_value=)", self.lambda_value, 0.0, above=True, high=100.0)
        for setting in ("warning_delta", "drift_delta"):
            if getattr(self, setting) is not None:
                check_number(f"{name}({setting}=)", getattr(self, setting), 0.0, above=True, high=1.0)
        wanted = self.max_features
        if isinstance(wanted, float) and 0.0 < wanted <= 1.0:
            return
        if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1:
            return
        if wanted is not None and wanted not in ("sqrt", "log2"):
            raise DeclarationError(
                f"{name}(max_features=): expected 'sqrt', 'log2', a number of columns, a share of them up to 1.0, or "
                f"None, got {wanted!r}"
            )

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        many = self.n_models
        return {
            **self.arrays(spec, 2 * many),
            "size": Array((2 * many, 3), "int64"),
            "members": Array((many, 2), "int32"),
            "changes": Array((many, 2), "int64"),
            "window_totals": Array((many, 2, adwin.LEVELS, adwin.BUCKETS + 1), "float64"),
            "window_held": Array((many, 2, adwin.LEVELS), "int64"),
            "window_sums": Array((many, 2, 3), "float64"),
            "drawn": Array((many,), "uint64"),
        }

    def choices(self) -> dict[str, Any]:
        """What the kernels of both are told beside the settings of a tree."""
        return {
            "seed": np.uint64(self.seed),
            "least": math.exp(-self.lambda_value),
            "warning_delta": float(self.warning_delta or 0.0),
            "drift_delta": float(self.drift_delta or 0.0),
        }

    def room_to_explain(self, spec: Spec, sums: np.ndarray, serving: int = 0) -> explaining.Explaining:
        return super().room_to_explain(spec, sums, serving or self.n_models)

    def features_of(self, spec: Spec) -> int:
        """How many of the columns of spec a leaf draws; 0: it observes all."""
        wanted, columns = self.max_features, len(spec.numeric) + len(spec.categories)
        if wanted is None:
            return 0
        if wanted == "sqrt":
            many = round(math.sqrt(columns))
        elif wanted == "log2":
            many = round(math.log2(max(columns, 1)))
        else:
            many = int(wanted * columns) if isinstance(wanted, float) else int(wanted)
        return max(1, min(many, columns))


@register
@dataclass(eq=False)
class ARFClassifier(Forest, HoeffdingTreeClassifier):
    """An adaptive random forest (ARF), for a binary or a multiclass task: out is P(true), or P of each class.

    Every tree learns an example with a weight drawn from a Poisson distribution, and every leaf observes only columns
    it has drawn; in all else they are HoeffdingTreeClassifier, whose settings they share. Each tree watches with ADWIN
    whether it is wrong: a warning begins a new tree in the background, a drift puts that one (or, where there is none,
    an empty one) in its place. The trees predict together, each counting by the share of examples that it got right.

    n_models               trees that predict; there is room for as many in the background
    max_features           columns that a leaf draws, of those that its first row has: "sqrt" or "log2" of all columns,
                           a number of them, a share of them (a float up to 1.0), or None: it observes all
    lambda_value           rate of the Poisson distribution: the mean weight of an example
    disable_weighted_vote  all trees count the same
    warning_delta          of ADWIN, for the warnings; None: no trees in the background
    drift_delta            of ADWIN, for the drifts; None: no tree is ever replaced
    seed                   of the draws; the same seed gives the same bits
    max_nodes              room for so many branches and leaves in each tree

    Memory is bounded, and whole from the start (zeros cost none until they are written). For T = 2 n_models trees,
    N numeric columns, K categories, C classes, M = max_nodes, S = (M + 1) // 2, V = category_values, in bytes:
    T (M (76 + 12 C) + S (4 + N (4 + 48 C) + K (4 + 16 C + V (8 + 8 C))) + 24) + n_models 5,472.
    In the state `changes` counts the warnings and the drifts of each tree, size[:, 2] attempts to split that found no
    room.

    Each tree has a generator of its own (SplitMix64), whose state is how many numbers it has drawn: a replay draws the
    same ones. Missing values, order, weights, features that change: as in HoeffdingTreeClassifier; a feature that is
    added is seen by the leaves that begin after that. Sequential. It forgets the trees that it replaces. Merge: owner.

    It equals River's ARFClassifier of the same settings row by row, but for the draws, and for max_features=None, where
    River's leaves never see a column that their first row lacks.
    Source: Gomes and others (2017), Adaptive random forests for evolving data stream classification.
    """

    quick: ClassVar[bool] = False  # ten trees need five microseconds a row and more
    instead: ClassVar[str] = "ARFRegressor"

    _: KW_ONLY
    disable_weighted_vote: bool = False
    max_nodes: int = 1023

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("ARFClassifier(disable_weighted_vote=)", self.disable_weighted_vote)

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        return {**super().layout(spec), "scores": Array((self.n_models, 2), "float64")}

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        tree = nodes.Tree(*(state[name] for name in nodes.Tree._fields))
        forest = kernels.Forest(*(state[name] for name in kernels.Forest._fields))
        choices = kernels.ForestSettings(weighted=not self.disable_weighted_vote, **self.choices())
        settings = self.settings(self.features_of(spec))
        self._forest = tree, forest, settings, choices, columns_of(spec), scratch_of(spec, tree.counts.shape[1])
        self._room = self.room_to_explain(spec, tree.counts)
        self._none = np.empty((0, spec.outputs), np.float32)

    def predict(self, x: Rows, out: np.ndarray) -> None:
        kernels.predict_forest(x.numeric, x.categories, *self._forest, self._sums_of(out), out)

    def learn(self, x: Rows, truth: Truth) -> None:
        self.test_then_learn(x, truth, self._none)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        same = after is x.numeric
        rows = x.numeric, after, same, x.categories, truth.y, truth.weight
        kernels.learn_forest(*rows, *self._forest, self._sums_of(out), out)

    def _sums_of(self, out: np.ndarray) -> np.ndarray:
        """Room to add up the votes for so many rows in."""
        return np.empty((len(out), self._forest[0].counts.shape[1]))

    def explain(self, x: Rows, out: np.ndarray) -> None:
        explaining.explain_forest(x.numeric, x.categories, *self._forest, self._room, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, after is x.numeric, x.categories, truth.y, truth.weight
        explaining.explain_then_learn_forest(*rows, *self._forest, self._room, out, contributions)


@register
@dataclass(eq=False)
class ARFRegressor(Forest, HoeffdingTreeRegressor):
    """An adaptive random forest (ARF) for a regression task: the median, or the mean, of what its trees predict.

    Its trees are HoeffdingTreeRegressor, whose settings they share; examples, columns, warnings and drifts are as in
    ARFClassifier. What a tree hears with ADWIN is how far it was off, as (d + 3 s) / (6 s) for the deviation d of label
    from prediction and the standard deviation s of all of them so far.

    aggregation_method     "median" or "mean"
    n_models, max_features, lambda_value, warning_delta, drift_delta, seed, max_nodes
                           as in ARFClassifier; the linear models of leaves see all columns

    Memory is bounded, and whole from the start (zeros cost none until they are written). For T = 2 n_models trees,
    N numeric columns, K categories, M = max_nodes, S = (M + 1) // 2, V = max_values, W = category_values, in bytes:
    T (24 + M 100 + S (12 + N (16 + 40 V) + K (4 + 32 W))) + n_models 5,480.

    Scale numeric columns first (StandardScaler), as for HoeffdingTreeRegressor. A tree that begins anew predicts 0
    until it has learned. Generators, missing values, order, weights, features: as in ARFClassifier. Merge: owner.

    It equals River's ARFRegressor of the same settings row by row, but for the draws, as HoeffdingTreeRegressor equals
    River's, and but for max_features=None, where River's leaves never see a column that their first row lacks. River's
    disable_weighted_vote=False has no counterpart.
    Source: Gomes and others (2018), Adaptive random forests for data stream regression.
    """

    quick: ClassVar[bool] = False
    instead: ClassVar[str] = "ARFClassifier"

    _: KW_ONLY
    aggregation_method: str = "median"
    max_nodes: int = 127
    max_values: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation_method not in ("median", "mean"):
            raise DeclarationError(
                f"ARFRegressor(aggregation_method=): expected 'median' or 'mean', got {self.aggregation_method!r}"
            )

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        return {**super().layout(spec), "deviations": Array((self.n_models, 3), "float64")}

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        super().bind(spec, state, touched)
        choices = value_kernels.RegressionForestSettings(median=self.aggregation_method == "median", **self.choices())
        forest = value_kernels.RegressionForest(*(state[name] for name in value_kernels.RegressionForest._fields))
        settings = self.settings(self.features_of(spec))
        self._forest = self._parts[0], forest, settings, choices, self._parts[2]
        self._places = np.empty(len(spec.numeric) + len(spec.categories), np.int32)

    def predict(self, x: Rows, out: np.ndarray) -> None:
        value_kernels.predict_forest_values(x.numeric, x.categories, *self._forest, self._values_of(out), out)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        value_kernels.learn_forest_values(
            x.numeric, after, after is x.numeric, x.categories, truth.y, truth.weight, *self._forest, *self._scratch,
            self._places, self._values_of(out), out,
        )  # fmt: skip

    def _values_of(self, out: np.ndarray) -> np.ndarray:
        """Room for what each member predicts of so many rows."""
        return np.empty((len(out), self.n_models))

    def explain(self, x: Rows, out: np.ndarray) -> None:
        explaining_values.explain_forest_values(x.numeric, x.categories, *self._forest, self._room, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        explaining_values.explain_then_learn_forest_values(
            x.numeric, after, after is x.numeric, x.categories, truth.y, truth.weight, *self._forest, *self._scratch,
            self._places, self._room, out, contributions,
        )  # fmt: skip
