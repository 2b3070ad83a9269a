"""Hoeffding trees that watch their own errors, and replace the parts of them that no longer hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np

from . import adaptive_regression_tree_kernels as value_kernels
from . import adaptive_tree_kernels as kernels
from . import adwin_kernels as adwin
from . import alternate_kernels as alternates
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
class AdaptiveTree(HoeffdingTree):
    """What the two share: how they watch and replace, in settings and arrays. Stands before the tree that they are."""

    _: KW_ONLY
    bootstrap_sampling: bool = True
    drift_window_threshold: float = 300
    switch_significance: float = 0.05
    drift_delta: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_number(f"{name}(drift_window_threshold=)", self.drift_window_threshold, 1.0)
        check_number(f"{name}(switch_significance=)", self.switch_significance, 0.0, above=True, high=1.0)
        check_number(f"{name}(drift_delta=)", self.drift_delta, 0.0, above=True, high=1.0)
        check_whole(f"{name}(seed=)", self.seed, 0, 2**63 - 1)
        check_flag(f"{name}(bootstrap_sampling=)", self.bootstrap_sampling)

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        nodes, slots = self.max_nodes, (self.max_nodes + 1) // 2
        return {
            **super().layout(spec),
            "alternate": Array((nodes,), "int32"),
            "errors": Array((nodes, 3), "float64"),
            "window_totals": Array((nodes, adwin.LEVELS, adwin.BUCKETS + 1), "float64"),
            "window_held": Array((nodes, adwin.LEVELS), "int64"),
            "window_sums": Array((nodes, 3), "float64"),
            "free": Array((2,), "int64"),
            "free_nodes": Array((slots,), "int32"),
            "free_slots": Array((slots,), "int32"),
            "changes": Array((3,), "int64"),
            "drawn": Array((1,), "uint64"),
        }

    def choices(self) -> alternates.AdaptiveSettings:
        """What the kernels are told beside the settings of a tree."""
        return alternates.AdaptiveSettings(
            drift_delta=float(self.drift_delta),
            window=float(self.drift_window_threshold),
            significance=float(self.switch_significance),
            bootstrap=self.bootstrap_sampling,
            key=np.uint64(self.seed),
        )


@register
@dataclass(eq=False)
class HoeffdingAdaptiveTreeClassifier(AdaptiveTree, HoeffdingTreeClassifier):
    """A Hoeffding tree that adapts (HAT), for a binary or a multiclass task: out is P(true), or P of each class.

    It grows as HoeffdingTreeClassifier, whose settings it shares. Beside that every node watches with ADWIN whether the
    tree is wrong about the examples that come by. When a branch gets worse, a leaf begins to learn beside it; that leaf
    takes the place of the branch and of all below it as soon as it splits, or once it is wrong significantly less often
    than the branch. It is given up if it is wrong significantly more often. Until then both predict together, each the
    more the less it errs.

    bootstrap_sampling      a leaf learns every example with a weight drawn from a Poisson distribution of rate 1 (1
                            where that is 0), as in online bagging
    drift_window_threshold  examples that a branch and the leaf beside it must both have seen before they are compared
    switch_significance     chance that a difference between them is none
    drift_delta             of ADWIN: the smaller, the fewer false alarms
    seed                    of the draws; the same seed gives the same bits

    Memory, whole from the start: that of HoeffdingTreeClassifier and, with M = max_nodes and S = (M + 1) // 2,
    48 + M 2,740 + S 8 bytes more, in use only where there are nodes. Nodes and slots of parts that were replaced are
    used again. Leaves beside branches take two nodes of max_nodes each, and the last four are kept for them; where
    there is no room for one, none begins, and that is counted in size[2]. In the state `changes` counts the leaves
    begun beside branches, those taken by comparison, and those given up.

    Missing values, order, weights, features that change: as in HoeffdingTreeClassifier, except that a row that lacks
    what a branch asks may be the cause of a split. Sequential. It forgets what it replaces. Merge: owner.

    With bootstrap_sampling=False it equals River's HoeffdingAdaptiveTreeClassifier of the same settings, node by node
    and swap by swap, as HoeffdingTreeClassifier equals River's; with it but for the draws. One thing is otherwise: a
    leaf beside the root that finds all its examples of one class goes on observing, where River's never learns again.
    Source: Bifet and Gavalda (2009), Adaptive learning from evolving data streams.
    """

    quick: ClassVar[bool] = True
    instead: ClassVar[str] = "HoeffdingAdaptiveTreeRegressor"

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        tree = nodes.Tree(*(state[name] for name in nodes.Tree._fields))
        adaptive = alternates.Adaptive(*(state[name] for name in alternates.Adaptive._fields))
        choices = self.choices()
        scratch, path = scratch_of(spec, tree.counts.shape[1]), np.empty((3, self.max_nodes), np.int32)
        self._adaptive = tree, adaptive, self.settings(0), choices, columns_of(spec), scratch, path
        self._room = self.room_to_explain(spec, tree.counts)
        self._none = np.empty((0, spec.outputs), np.float32)

    def predict(self, x: Rows, out: np.ndarray) -> None:
        kernels.predict_adaptive(x.numeric, x.categories, *self._adaptive, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        self.test_then_learn(x, truth, self._none)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        kernels.learn_adaptive(x.numeric, after, x.categories, truth.y, truth.weight, *self._adaptive, out)

    def explain(self, x: Rows, out: np.ndarray) -> None:
        tree, adaptive, settings, _, columns, scratch, _ = self._adaptive
        parts = tree, adaptive, settings, columns, scratch, self._room
        explaining.explain_adaptive(x.numeric, x.categories, *parts, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        explaining.explain_then_learn_adaptive(
            x.numeric, after, x.categories, truth.y, truth.weight, *self._adaptive, self._room, out, contributions
        )


@register
@dataclass(eq=False)
class HoeffdingAdaptiveTreeRegressor(AdaptiveTree, HoeffdingTreeRegressor):
    """A Hoeffding tree that adapts (HAT), for a regression task.

    It grows as HoeffdingTreeRegressor, whose settings it shares, and replaces branches as
    HoeffdingAdaptiveTreeClassifier does. Its errors are absolute; a branch and the leaf beside it are compared by a
    z-test of their mean errors, and the mean of what both predict is the prediction. A leaf begins beside a branch only
    where there is none yet.

    bootstrap_sampling, drift_window_threshold, switch_significance, drift_delta, seed
                            as in HoeffdingAdaptiveTreeClassifier

    ADWIN's bound is meant for errors up to about 1: scale a target of another unit. Memory: that of
    HoeffdingTreeRegressor and, with M = max_nodes and S = (M + 1) // 2, 48 + M 2,740 + S 8 bytes more.

    With bootstrap_sampling=False it equals River's HoeffdingAdaptiveTreeRegressor of the same settings, as
    HoeffdingTreeRegressor equals River's; with it but for the draws.
    Source: Bifet and Gavalda (2009), Adaptive learning from evolving data streams.
    """

    quick: ClassVar[bool] = True
    instead: ClassVar[str] = "HoeffdingAdaptiveTreeClassifier"

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        super().bind(spec, state, touched)
        self._adaptive = alternates.Adaptive(*(state[name] for name in alternates.Adaptive._fields))
        self._choices = self.choices()
        places = np.empty(len(spec.numeric) + len(spec.categories), np.int32)
        self._ways = places, np.empty((3, self.max_nodes), np.int32)

    def predict(self, x: Rows, out: np.ndarray) -> None:
        tree, settings, columns = self._parts
        value_kernels.predict_adaptive_values(x.numeric, x.categories, tree, self._adaptive, settings, columns, out)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        tree, settings, columns = self._parts
        value_kernels.learn_adaptive_values(
            x.numeric, after, x.categories, truth.y, truth.weight, tree, self._adaptive, settings, self._choices,
            columns, *self._scratch, *self._ways, out,
        )  # fmt: skip

    def explain(self, x: Rows, out: np.ndarray) -> None:
        tree, settings, columns = self._parts
        parts = tree, self._adaptive, settings, columns, self._room
        explaining_values.explain_adaptive_values(x.numeric, x.categories, *parts, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        tree, settings, columns = self._parts
        explaining_values.explain_then_learn_adaptive_values(
            x.numeric, after, x.categories, truth.y, truth.weight, tree, self._adaptive, settings, self._choices,
            columns, *self._scratch, *self._ways, self._room, out, contributions,
        )  # fmt: skip
