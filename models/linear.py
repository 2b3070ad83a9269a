"""Linear models on numeric columns and a hashed table of categories, learned one row after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, cast

import numpy as np

from ..errors import DeclarationError
from . import linear_kernels as kernels
from . import weight_kernels
from .base import LATER, Array, Link, Spec, Truth, check_number, register
from .linear_base import OptimizedLearner, class_weights
from .measures import Measure
from .optimizers import FTRL, Optimizer

LOSSES = {
    "squared": kernels.SQUARED,
    "absolute": kernels.ABSOLUTE,
    "quantile": kernels.QUANTILE,
    "huber": kernels.HUBER,
    "poisson": kernels.POISSON,
}
BELOW = "labels_below_zero"  # the array, and the counter


class LinearModel(OptimizedLearner):
    """What LogisticRegression and LinearRegression share: their state, and what the kernels are told."""

    kernels: ClassVar[Any] = kernels

    def loss_code(self) -> int:
        """Which loss the kernels take, as a constant of linear_kernels.py."""
        raise NotImplementedError

    def loss_parameter(self) -> float:
        """The number of a loss that has one: its quantile, its delta."""
        return 0.5

    def first_mean(self) -> tuple[float, float]:
        """Running mean of the labels before any was seen, and for how many labels it counts."""
        return 0.0, 0.0

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not that of the model."""
        self.check_task(spec)
        numbers, slots, dtype = self.optimizer.numbers, 1 << self.bits, self.dtype
        merge: Literal["mean", "steps"] = "mean" if numbers == 1 else "steps"
        mean, count = self.first_mean()
        return {
            "columns": Array((len(spec.numeric), numbers), dtype, axis="numeric", merge=merge),
            "missing": Array((len(spec.numeric), numbers), dtype, axis="numeric", merge=merge),
            "table": Array((slots, numbers), dtype, rows="table", merge=merge),
            "used": Array((slots // 8,), "uint8", merge="max"),
            "bias": Array((1, numbers), dtype, merge=merge),
            "base_mean": Array((1,), "float64", mean, merge="moments", by="base_count"),
            "base_count": Array((1,), "float64", count, merge="sum"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on state; touched["table"] gets a 1 for every 64 slots of which one was written."""
        kind = self.optimizer.kind
        lr, beta, l1, l2 = self.optimizer.settings()
        settings = float(lr), float(beta), float(l1), float(l2)  # all floats: another type would be compiled anew
        bias_kind = kind if self.intercept_lr is None else weight_kernels.SGD
        bias_lr = float(lr) if self.intercept_lr is None else float(self.intercept_lr)
        shift = np.uint64(64 - self.bits)
        loss, base_rate = self.loss_code(), bool(self.base_rate)
        weights = state["columns"], state["missing"], state["table"]
        base = state["base_mean"], state["base_count"]
        scratch = np.empty(len(spec.numeric) + len(spec.categories)), np.empty(len(spec.categories), np.intp)

        self._predict = (kind, bias_kind, loss, settings, base_rate, shift, *weights, state["bias"], *base)
        self._learn = (
            kind, bias_kind, loss, self.loss_parameter(), settings, bias_lr, base_rate, shift,
            *weights, state["used"], touched["table"], state["bias"], *base, *scratch,
        )  # fmt: skip
        self._forget = (kind, bias_kind, settings, *weights, state["used"], touched["table"], state["bias"])
        self._count = state["base_count"]
        self._unread = np.empty((0, 1), np.float32)

    def decay(self, factor: float) -> None:
        kernels.forget(float(factor), *self._forget)
        self._count *= factor


@register
@dataclass(eq=False)
class LogisticRegression(LinearModel):
    """Logistic regression, for a binary task: P(true), learned with the log loss.

    raw = w.x + bias + base, P = 1 / (1 + exp(-raw)). Each numeric column has a weight and a second one that stands
    in where the value is missing (NaN); a category has the weight in slot hash(feature, value) of a table of 2**bits,
    shared with what collides there; a missing category adds nothing.

    optimizer     FTRL, AdaGrad or SGD; l1, l2 and half-life are its settings
    bits          2**bits slots of 16 bytes (SGD 8; half of it with float32): 16 MiB at 20
    base_rate     the raw score starts at the log-odds of the labels learned so far (with half a label of each kind
                  before the first), so that a cold model predicts the base rate and the weights learn the rest
    intercept_lr  None: the bias is learned as a weight whose feature is 1, without l1 and l2;
                  a number: by plain gradient descent with this step, as River does
    class_weight  {False: w, True: w}, or [w, w] in this order, by which the weights of examples are multiplied; None:
                  1 for both. Predictions, and the base rate, are then those of a stream in which the classes are so
                  many times as frequent: the odds are too high by the ratio of the weights
    dtype         of the stored state, "float64" or "float32"

    Sequential: equal to learning one by one whatever the cuts. Scale numeric columns first (StandardScaler).
    With base_rate=False, intercept_lr=0.01 and no half-life it equals River's LogisticRegression; with class_weight
    the one with losses.Log(weight_pos, weight_neg).
    """

    quick: ClassVar[bool] = True
    task: ClassVar[str] = "binary"
    instead: ClassVar[str] = "use LinearRegression for a regression task, SoftmaxRegression for several classes"

    optimizer: Optimizer = field(default_factory=FTRL)
    _: KW_ONLY
    bits: int = 20
    base_rate: bool = True
    intercept_lr: float | None = None
    class_weight: Mapping[bool, float] | Sequence[float] | None = field(default=None, metadata=LATER)  # kept as a list
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weight is not None:
            self.class_weight = class_weights("LogisticRegression(class_weight=)", self.class_weight, 2)

    def loss_code(self) -> int:
        return kernels.LOGISTIC

    def link(self, spec: Spec) -> Link:
        return "logit"

    def first_mean(self) -> tuple[float, float]:
        return 0.5, 1.0

    def example_weight(self, truth: Truth) -> np.ndarray:
        if self.class_weight is None:
            return truth.weight
        false, true = cast(list[float], self.class_weight)
        return np.where(truth.y[:, 0] >= 0.5, true, false) * truth.weight


@register
@dataclass(eq=False)
class LinearRegression(LinearModel):
    """Linear regression with a choice of losses.

    loss  "squared": the mean; "absolute": the median; "quantile": the `quantile`; "huber": squared within `delta` of
          the label and straight beyond it, so that a wild label pulls no harder than one at delta, in between mean and
          median; "poisson": the rate of a count, exp(raw)

    The other settings are those of LogisticRegression, but for base_rate: the raw score starts at the running mean of
    the labels (Poisson: its logarithm), and the first label does nothing but set it.

    A label below 0 is no count: Poisson learns nothing of its row, and counts it.

    Weights move in the unit of the label: with losses other than Poisson, give labels of a very large or small scale a
    matching step size, or scale them. With base_rate=False, intercept_lr=0.01 and no half-life it equals River's
    LinearRegression with optim.losses.Squared, Absolute, Quantile, Huber (its epsilon is delta) or Poisson.
    """

    quick: ClassVar[bool] = True
    task: ClassVar[str] = "regression"
    instead: ClassVar[str] = "use LogisticRegression for a binary task, SoftmaxRegression for several classes"

    optimizer: Optimizer = field(default_factory=FTRL)
    _: KW_ONLY
    loss: str = "squared"
    quantile: float = 0.5
    delta: float = field(default=1.0, metadata=LATER)
    bits: int = 20
    base_rate: bool = True
    intercept_lr: float | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise DeclarationError(f"LinearRegression(loss=): expected one of {', '.join(LOSSES)}, got {self.loss!r}")
        check_number("LinearRegression(quantile=)", self.quantile, 0.0, above=True, high=1.0)
        check_number("LinearRegression(delta=)", self.delta, 0.0, above=True)

    def link(self, spec: Spec) -> Link:
        return "log" if self.loss == "poisson" else "identity"

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not that of the model."""
        arrays = super().layout(spec)
        return arrays if self.loss != "poisson" else {**arrays, BELOW: Array((1,), "int64", merge="sum", late=True)}

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        super().bind(spec, state, touched)
        self._below = state[BELOW] if self.loss == "poisson" else None

    def example_weight(self, truth: Truth) -> np.ndarray:
        if self._below is None:
            return truth.weight
        below = (truth.y[:, 0] < 0) & np.isfinite(truth.y[:, 0]) & np.isfinite(truth.weight)
        self._below[0] += np.count_nonzero(below)
        return np.where(below, np.float32(np.nan), truth.weight)

    def counters(self) -> dict[str, int]:
        """Of a Poisson regression: labels below 0, of which it has learned nothing."""
        return {} if self._below is None else {BELOW: int(self._below[0])}

    def measure(self) -> Measure | None:
        measures = {"quantile": Measure("pinball", self.quantile), "poisson": Measure("poisson_deviance")}
        return measures.get(self.loss)

    def loss_code(self) -> int:
        return LOSSES[self.loss]

    def loss_parameter(self) -> float:
        return float(self.delta if self.loss == "huber" else self.quantile)

    def first_mean(self) -> tuple[float, float]:
        return (1.0, 0.0) if self.loss == "poisson" else (0.0, 0.0)
