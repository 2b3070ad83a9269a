"""Naive Bayes: what was counted in each class says how likely each class makes a row, one column after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from ..errors import DeclarationError
from . import bayes_kernels as kernels
from .base import (
    Array,
    Configured,
    Decay,
    Explainer,
    Link,
    Rows,
    Spec,
    Truth,
    check_number,
    check_whole,
    declared_task,
    register,
)
from .durations import parse_duration


class Kernels(NamedTuple):
    """What one kind of naive Bayes calls, from bayes_kernels.py."""

    predict: Any
    learn: Any
    progress: Any
    explain: Any
    explain_then_learn: Any


class NaiveBayes(Configured, Explainer):
    """What GaussianNB and MultinomialNB share: settings, classes, their counts, and the hashed table of categories.

    `bind` of a subclass sets what its kernels take behind the rows: `_predict` and `_learn`; `_terms`, room to explain
    in; and what forgets: `_counts`, and `_table` with its marks.
    """

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1

    kernels: ClassVar[Kernels]

    alpha: float
    bits: int
    half_life: str | None

    _predict: tuple[Any, ...]
    _learn: tuple[Any, ...]
    _terms: np.ndarray
    _counts: tuple[np.ndarray, ...]
    _table: tuple[np.ndarray, np.ndarray, np.ndarray]

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_number(f"{name}(alpha=)", self.alpha, 1e-9, high=1e9)
        check_whole(f"{name}(bits=)", self.bits, 6, 30)
        if self.half_life is not None:
            parse_duration(self.half_life, f"{name}(half_life=)")

    def classes(self, spec: Spec) -> int:
        """C of spec; raises DeclarationError when its task has no classes."""
        if spec.task == "binary" and spec.outputs == 1:
            return 2
        if spec.task == "multiclass" and spec.outputs > 1:
            return spec.outputs
        raise DeclarationError(
            f"{type(self).__name__} learns a binary task with one output or a multiclass task with one per class, the "
            f"pipeline declares {declared_task(spec)}; use LinearRegression for a regression task"
        )

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not binary or multiclass."""
        classes, slots = self.classes(spec), 1 << self.bits
        return {
            "class_count": Array((classes,), "float64", axis="outputs" if classes == spec.outputs else "", merge="sum"),
            "table": Array((slots, classes), "float64", rows="table", merge="sum"),
            "seen": Array((slots,), "uint8", rows="table", merge="max"),
        }

    def link(self, spec: Spec) -> Link:
        return "logit" if spec.task == "binary" else "softmax"

    def decays(self) -> list[Decay]:
        return [] if self.half_life is None else [(parse_duration(self.half_life), self.decay)]

    def decay(self, factor: float) -> None:
        """Scale all counts by factor; means and variances stay."""
        for counts in self._counts:
            counts *= factor
        kernels.forget_table(float(factor), *self._table)

    def predict(self, x: Rows, out: np.ndarray) -> None:
        self.kernels.predict(x.numeric, x.categories, *self._predict, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        self.kernels.learn(x.numeric, x.categories, truth.y, truth.weight, *self._learn)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        self.kernels.progress(x.numeric, after, x.categories, truth.y, truth.weight, *self._predict, out)

    def explain(self, x: Rows, out: np.ndarray) -> None:
        self.kernels.explain(x.numeric, x.categories, *self._predict, self._terms, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        rows = x.numeric, after, x.categories, truth.y, truth.weight
        self.kernels.explain_then_learn(*rows, self._predict, self._terms, out, contributions)


@register
@dataclass(eq=False)
class GaussianNB(NaiveBayes):
    """Naive Bayes for numbers, by their mean and variance in each class, and for categories, by their frequency.

    P(c | row) ~ n_c * product of (1e-9 + normal density of x_j with the mean and variance of column j in class c)
                     * product of (n_vc + alpha) / (n_kc + alpha (V_k + 1))

    n_c is the count of class c, n_vc how often value v was seen in it, n_kc how often any value of category k; V_k is
    the number of different values of k so far, and the 1 a share for those to come. Counts are sums of weights, the
    variance is that of the population. Values of all categories share 2**bits slots; those that meet in one are counted
    as one.

    alpha      smoothing of categories, from 1e-9: so often each value was seen in each class before the first row
    bits       2**bits slots of 8 bytes per class, and 1 more: 4.3 MB for a binary task at 18
    half_life  of the counts in event time; None: never forget. Decay scales the counts. What numbers say stays and
               follows new rows sooner; what categories say draws near to knowing nothing, since alpha does not decay

    Tasks binary (P(true); a label counts as true from a half on) and multiclass (P of each class; a label that is no
    class index is not learned). Before the first label all classes are alike; after it, one that was not seen has
    probability 0, as River has it. A column without a variance in a class adds log(1e-9) there, a missing number or
    category nothing. Numbers are taken within +-1e100. Scaling changes nothing but how much 1e-9 is beside a density.

    A row is learned as often as its weight says, one of weight 0 not at all. A negative weight takes back what was
    learned, in any order and exact but for rounding; counts never fall below zero, and V_k stays.

    Sequential: equal to learning one by one whatever the cuts. Not promised: that probabilities are calibrated; columns
    that tell the same thing make them too sure.
    Without categories and with half_life=None equal to River's naive_bayes.GaussianNB, which has neither.
    """

    quick: ClassVar[bool] = True
    kernels: ClassVar[Kernels] = Kernels(
        kernels.predict_gaussian,
        kernels.learn_gaussian,
        kernels.progress_gaussian,
        kernels.explain_gaussian,
        kernels.explain_then_learn_gaussian,
    )

    _: KW_ONLY
    alpha: float = 1.0
    bits: int = 18
    half_life: str | None = "30d"

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        arrays = super().layout(spec)
        numbers, values, classes = len(spec.numeric), len(spec.categories), self.classes(spec)
        return {
            **arrays,
            "count": Array((numbers, classes), "float64", axis="numeric", merge="sum"),
            "mean": Array((numbers, classes), "float64", axis="numeric", merge="moments", by="count"),
            "variance": Array((numbers, classes), "float64", axis="numeric", merge="moments", by="count"),
            "value_count": Array((values, classes), "float64", axis="categories", merge="sum"),
            "distinct": Array((values,), "float64", axis="categories", merge="max"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on state; touched["table"] gets a 1 for every 64 slots of which one was written."""
        classes = self.classes(spec)
        place = spec.task == "binary", np.uint64(64 - self.bits)
        moments = state["count"], state["mean"], state["variance"]
        values = state["table"], state["seen"], touched["table"], state["value_count"], state["distinct"]
        arrays = state["class_count"], moments, values
        scratch = np.empty((len(spec.numeric), classes, 2)), np.empty(classes), np.empty(classes), np.empty(classes)
        self._predict = (*place, float(self.alpha), *arrays, scratch)
        self._terms = np.empty((len(spec.numeric) + len(spec.categories) + 1, classes))
        self._learn = (*place, *arrays)
        self._counts = state["class_count"], state["count"], state["value_count"]
        self._table = state["table"], state["seen"], touched["table"]


@register
@dataclass(eq=False)
class MultinomialNB(NaiveBayes):
    """Naive Bayes for bags of tokens, such as the words of a text: how often each occurs tells the class.

    P(c | row) ~ n_c * product over tokens of ((n_tc + alpha) / (n_.c + alpha V)) ** occurrences of t in the row

    n_c is the count of class c, n_tc how often token t occurred in it, n_.c how often any did, V the number of
    different tokens so far; counts are sums of weights. A numeric column counts the occurrences of a token of its own,
    which need not be whole; a missing number or one below zero is no occurrence. A category is a token that occurs
    once, and one of 2**bits slots stands for it; tokens that meet in one are counted as one.

    alpha      smoothing, from 1e-9: so often each token occurred in each class before the first row
    bits       2**bits slots of 8 bytes per class, and 1 more: 4.3 MB for a binary task at 18
    half_life  of the counts in event time; None: never forget. Decay scales the counts: what comes next counts for
               more, and what was said draws near to knowing nothing but the classes, since alpha does not decay

    Tasks binary (P(true); a label counts as true from a half on) and multiclass (P of each class; a label that is no
    class index is not learned). Before the first label all classes are alike; after it, one that was not seen has
    probability 0, as River has it. Numbers are taken up to 1e100.

    A row is learned as often as its weight says, one of weight 0 not at all. A negative weight takes back what was
    learned, in any order and exact but for rounding; counts never fall below zero, and V stays.

    Sequential: equal to learning one by one whatever the cuts. Not promised: that probabilities are calibrated; long
    rows make them too sure. Do not scale the columns first: a scaler makes numbers below zero.
    With numeric columns alone, none below zero, and half_life=None equal to River's naive_bayes.MultinomialNB.
    """

    quick: ClassVar[bool] = True
    kernels: ClassVar[Kernels] = Kernels(
        kernels.predict_multinomial,
        kernels.learn_multinomial,
        kernels.progress_multinomial,
        kernels.explain_multinomial,
        kernels.explain_then_learn_multinomial,
    )

    alpha: float = 1.0
    _: KW_ONLY
    bits: int = 18
    half_life: str | None = "30d"

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        arrays = super().layout(spec)
        numbers, classes = len(spec.numeric), self.classes(spec)
        return {
            **arrays,
            "column_count": Array((numbers, classes), "float64", axis="numeric", merge="sum"),
            "known": Array((numbers,), "uint8", axis="numeric", merge="max"),
            "distinct": Array((1,), "float64", merge="max"),
            "length": arrays["class_count"],
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on state; touched["table"] gets a 1 for every 64 slots of which one was written."""
        classes = self.classes(spec)
        place = spec.task == "binary", np.uint64(64 - self.bits)
        tokens = (
            state["column_count"], state["known"], state["table"], state["seen"], touched["table"],
            state["distinct"], state["length"],
        )  # fmt: skip
        arrays = state["class_count"], tokens
        scratch = np.empty((len(spec.numeric), classes)), *(np.empty(classes) for _ in range(4))
        self._predict = (*place, float(self.alpha), *arrays, scratch)
        self._terms = np.empty((len(spec.numeric) + len(spec.categories) + 1, classes))
        self._learn = (*place, *arrays)
        self._counts = state["class_count"], state["column_count"], state["length"]
        self._table = state["table"], state["seen"], touched["table"]
