"""Baselines: what can be said without a look at the features. A model that is no better has learned nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy import ndarray

from ..errors import DeclarationError
from ..jit import njit
from .base import Array, Configured, Decay, Learner, Rows, Spec, Truth, check_number, declared_task, register
from .durations import parse_duration
from .label_kernels import class_of

LARGEST = 3.4028234663852886e38  # float32 knows no larger number

# Letters: B rows, O outputs, C classes. A binary task has two classes and one output, the P of the second.


@njit(cache=True, nogil=True, error_model="numpy")
def say_prior(counts: ndarray, out: ndarray, i: int) -> None:
    """Write the share of each class to row i of out (B, O); 1 / C each where nothing is counted."""
    C = counts.shape[0]
    first = C - out.shape[1]
    total = 0.0
    for c in range(C):
        total += counts[c]
    for c in range(first, C):
        out[i, c - first] = counts[c] / total if total > 0.0 else 1.0 / C


@njit(cache=True, nogil=True, error_model="numpy")
def predict_prior(counts: ndarray, out: ndarray) -> None:
    """Write the shares of the classes to each row of out (B, O); nothing else is changed."""
    for i in range(out.shape[0]):
        say_prior(counts, out, i)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_prior(y: ndarray, weight: ndarray, counts: ndarray, out: ndarray) -> None:
    """Row by row: write the shares of the classes to out[i], then count label i.

    y, weight  float32 (B, 1), (B,)  a row whose label names no class, or whose weight is not finite, is not counted
    counts     float64 (C,)          weight of the labels of each class, never below 0   changed in place
    out        float (B, O); (0, O) where nothing is to be predicted

    Result does not depend on where the stream is cut.
    """
    for i in range(y.shape[0]):
        if out.shape[0] > 0:
            say_prior(counts, out, i)
        c = class_of(np.float64(y[i, 0]), counts.shape[0], out.shape[1] == 1)
        v = np.float64(weight[i])
        if c >= 0 and v - v == 0.0:
            counts[c] = max(counts[c] + v, 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_mean(y: ndarray, weight: ndarray, mean: ndarray, count: ndarray, out: ndarray) -> None:
    """Row by row: write the mean to out[i], then fold label i into it.

    y, weight    float32 (B, 1), (B,)  a row where either is not finite is not learned
    mean, count  float64 (1,)          of the labels so far, and their weight   changed in place
    out          float (B, 1); (0, 1) where nothing is to be predicted

    Result does not depend on where the stream is cut.
    """
    for i in range(y.shape[0]):
        if out.shape[0] > 0:
            out[i, 0] = mean[0]
        t, v = np.float64(y[i, 0]), np.float64(weight[i])
        if t - t != 0.0 or v - v != 0.0:
            continue
        n = count[0] + v
        if n > 0.0:
            mean[0] = min(max(mean[0] + v / n * (t - mean[0]), -LARGEST), LARGEST)
            count[0] = n
        else:
            mean[0] = count[0] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def say_last(last: float, seen: int, C: int, eps: float, out: ndarray, i: int) -> None:
    """Write the last label to row i of out (B, 1), or where there are C > 0 classes the P of each to (B, O)."""
    if C == 0:
        out[i, 0] = last
        return
    first = C - out.shape[1]
    for c in range(first, C):
        if seen == 0:
            out[i, c - first] = 1.0 / C
        else:
            out[i, c - first] = 1.0 - eps if c == last else eps / (C - 1)


@njit(cache=True, nogil=True, error_model="numpy")
def predict_last(last: ndarray, seen: ndarray, C: int, eps: float, out: ndarray) -> None:
    """Write what the last label says to each row of out (B, O); nothing else is changed."""
    for i in range(out.shape[0]):
        say_last(np.float64(last[0]), seen[0], C, eps, out, i)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_last(
    y: ndarray, weight: ndarray, last: ndarray, seen: ndarray, C: int, eps: float, out: ndarray
) -> None:  # fmt: skip
    """Row by row: write what the last label says to out[i], then remember label i.

    y, weight  float32 (B, 1), (B,)  a row whose label is not finite or names no class, or whose weight is not a finite
                                     number above 0, is not remembered
    last       float32 (1,)  the last label, of classes its index; seen uint8 (1,) 1: there is one   changed in place
    C          classes; 0: the label is a value
    eps        what of a P of 1 is given to the other classes
    out        float (B, O); (0, O) where nothing is to be predicted

    Result does not depend on where the stream is cut.
    """
    for i in range(y.shape[0]):
        if out.shape[0] > 0:
            say_last(np.float64(last[0]), seen[0], C, eps, out, i)
        t, v = np.float64(y[i, 0]), np.float64(weight[i])
        if t - t != 0.0 or v - v != 0.0 or v <= 0.0:
            continue
        if C > 0:
            c = class_of(t, C, out.shape[1] == 1)
            if c < 0:
                continue
            t = np.float64(c)
        last[0] = t
        seen[0] = 1


class Baseline(Configured, Learner):
    """What the baselines share: they learn one row after another, from labels alone."""

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1

    tasks: ClassVar[tuple[str, ...]]
    instead: ClassVar[str]  # what to use for the other tasks

    def _classes(self, spec: Spec) -> int:
        """How many classes the labels have, 0 where they are values. Raises DeclarationError for other tasks."""
        fits = spec.outputs > 1 if spec.task == "multiclass" else spec.outputs == 1
        if spec.task not in self.tasks or not fits:
            raise DeclarationError(
                f"{type(self).__name__} learns {' and '.join(self.tasks)} tasks, the pipeline declares "
                f"{declared_task(spec)}; {self.instead}"
            )
        return {"binary": 2, "multiclass": spec.outputs, "regression": 0}[spec.task]

    def learn(self, x: Rows, truth: Truth) -> None:
        self.test_then_learn(x, truth, self._nowhere)

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on state."""
        self._nowhere = np.empty((0, spec.outputs), np.float32)


@register
@dataclass(eq=False)
class Prior(Baseline):
    """The running frequencies of the classes, for a binary or multiclass task.

    P(c) = (labels of class c so far + start) / (labels so far + C start), of C classes; a binary task has two, and
    its label is true from a half on.

    start      what each class counts for before its first label; it fades as they do. A half is the estimate of
               Krichevsky and Trofimov (1981). 0: a class that was never seen has P 0, as in River
    half_life  of the counts in event time, so that the frequencies follow the stream; None: never forget

    A negative weight takes back what was learned, exactly where nothing was forgotten since; no count falls below 0.
    Sequential: equal to learning one by one whatever the cuts. Features are not looked at. With start=0 and
    half_life=None equal to River's dummy.PriorClassifier, which has no answer before the first label, where this says
    1 / C for each class.
    """

    quick: ClassVar[bool] = True
    featureless: ClassVar[bool] = True  # type: ignore[misc]
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass")
    instead: ClassVar[str] = "use RunningMean for a regression task"

    start: float = 0.5
    half_life: str | None = "30d"

    def __post_init__(self) -> None:
        check_number("Prior(start=)", self.start, 0.0, high=1e30)
        if self.half_life is not None:
            parse_duration(self.half_life, "Prior(half_life=)")

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """The counts; raises DeclarationError for a task without classes."""
        axis: Literal["", "outputs"] = "outputs" if spec.task == "multiclass" else ""
        return {"counts": Array((self._classes(spec),), "float64", float(self.start), axis=axis, merge="sum")}

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on state."""
        super().bind(spec, state, touched)
        self._counts = state["counts"]

    def predict(self, x: Rows, out: ndarray) -> None:
        predict_prior(self._counts, out)

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        learn_prior(truth.y, truth.weight, self._counts, out)

    def decays(self) -> list[Decay]:
        return [] if self.half_life is None else [(parse_duration(self.half_life), self.decay)]

    def decay(self, factor: float) -> None:
        """Scale the counts by factor: the frequencies stay, and follow new labels sooner."""
        self._counts *= factor


@register
@dataclass(eq=False)
class RunningMean(Baseline):
    """The mean of the labels so far, for a regression task; 0 before the first.

    half_life  of the weight of what was learned, in event time; None: never forget, the plain mean of all

    A negative weight takes back what was learned, exactly where nothing was forgotten since; where no weight is left
    the mean begins anew at 0. Sequential: equal to learning one by one whatever the cuts. Features are not looked at.
    With half_life=None equal to River's dummy.StatisticRegressor(stats.Mean()).
    """

    quick: ClassVar[bool] = True
    featureless: ClassVar[bool] = True  # type: ignore[misc]
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    instead: ClassVar[str] = "use Prior for classes"

    half_life: str | None = "30d"

    def __post_init__(self) -> None:
        if self.half_life is not None:
            parse_duration(self.half_life, "RunningMean(half_life=)")

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Mean and count; raises DeclarationError for a task with classes."""
        self._classes(spec)
        return {
            "mean": Array((1,), "float64", merge="moments", by="count"),
            "count": Array((1,), "float64", merge="sum"),
        }

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on state."""
        super().bind(spec, state, touched)
        self._mean, self._count = state["mean"], state["count"]

    def predict(self, x: Rows, out: ndarray) -> None:
        out[:] = self._mean[0]

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        learn_mean(truth.y, truth.weight, self._mean, self._count, out)

    def decays(self) -> list[Decay]:
        return [] if self.half_life is None else [(parse_duration(self.half_life), self.decay)]

    def decay(self, factor: float) -> None:
        """Scale the weight of what was learned by factor: the mean stays, and follows new labels sooner."""
        self._count *= factor


@register
@dataclass(eq=False)
class NoChange(Baseline):
    """What the last label was that was learned, for any task: hard to beat where labels come in runs.

    Of classes the last one has P = 1 - eps and the others share eps, so that the log loss of a change is finite; before
    the first label each has 1 / C. A regression gets the last label itself, 0 before the first.

    eps  from 0 to a half. The log loss is least where it is the share of labels that differ from the one before. With 0
         the P are 1 and 0; the metrics then take a change as 2**-24

    A label with a weight of 0 or less is passed over: what was remembered before the last label is gone, so nothing can
    be taken back. Forgets nothing. Sequential: equal to learning one by one whatever the cuts. Features are not looked
    at. With eps=0 equal to River's dummy.NoChangeClassifier, which has no answer before the first label.
    """

    quick: ClassVar[bool] = True
    featureless: ClassVar[bool] = True  # type: ignore[misc]
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "regression")
    instead: ClassVar[str] = "declare labels"

    eps: float = 0.01

    def __post_init__(self) -> None:
        check_number("NoChange(eps=)", self.eps, 0.0, high=0.5)

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """The last label, and whether there is one; raises DeclarationError where there are no labels."""
        self._classes(spec)
        return {"last": Array((1,)), "seen": Array((1,), "uint8")}

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on state."""
        super().bind(spec, state, touched)
        self._last = state["last"], state["seen"], self._classes(spec), float(self.eps)

    def predict(self, x: Rows, out: ndarray) -> None:
        predict_last(*self._last, out)

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        learn_last(truth.y, truth.weight, *self._last, out)
