"""Linear models on numeric columns and a hashed table of categories, learned one row after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal

import numpy as np

from ..errors import DeclarationError
from . import linear_kernels as kernels
from .base import Array, Configured, Decay, Learner, Rows, Spec, Truth, check_number, register
from .durations import parse_duration
from .optimizers import FTRL, Optimizer

LOSSES = {
    "squared": kernels.SQUARED,
    "absolute": kernels.ABSOLUTE,
    "quantile": kernels.QUANTILE,
    "poisson": kernels.POISSON,
}


class LinearModel(Configured, Learner):
    """What LogisticRegression and LinearRegression share: their state, and the calls of the kernels."""

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1

    task: ClassVar[str]
    instead: ClassVar[str]  # what to use for the other tasks

    optimizer: Optimizer
    bits: int
    base_rate: bool
    intercept_lr: float | None
    dtype: str

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.optimizer, Optimizer):
            raise DeclarationError(f"{name}: expected an optimizer such as FTRL(alpha=0.1), got {self.optimizer!r}")
        if not isinstance(self.bits, int) or not 6 <= self.bits <= 30:
            raise DeclarationError(f"{name}(bits=): expected a whole number from 6 to 30, got {self.bits!r}")
        if self.dtype not in ("float64", "float32"):
            raise DeclarationError(f"{name}(dtype=): expected 'float64' or 'float32', got {self.dtype!r}")
        if self.intercept_lr is not None:
            check_number(f"{name}(intercept_lr=)", self.intercept_lr, 0.0)

    def loss_code(self) -> int:
        """Which loss the kernels take, as a constant of linear_kernels.py."""
        raise NotImplementedError

    def loss_quantile(self) -> float:
        """The quantile of the loss, where it has one."""
        return 0.5

    def first_mean(self) -> tuple[float, float]:
        """Running mean of the labels before any was seen, and for how many labels it counts."""
        return 0.0, 0.0

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not that of the model."""
        if spec.task != self.task or spec.outputs != 1:
            came = "no labels" if spec.task is None else f"a {spec.task} task with {spec.outputs} output(s)"
            raise DeclarationError(
                f"{type(self).__name__} learns a {self.task} task with one output, the pipeline declares {came}; "
                f"{self.instead}"
            )
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
        bias_kind = kind if self.intercept_lr is None else kernels.SGD
        bias_lr = float(lr) if self.intercept_lr is None else float(self.intercept_lr)
        shift = np.uint64(64 - self.bits)
        loss, base_rate = self.loss_code(), bool(self.base_rate)
        weights = state["columns"], state["missing"], state["table"]
        base = state["base_mean"], state["base_count"]
        scratch = np.empty(len(spec.numeric) + len(spec.categories)), np.empty(len(spec.categories), np.intp)

        self._predict = (kind, bias_kind, loss, settings, base_rate, shift, *weights, state["bias"], *base)
        self._learn = (
            kind, bias_kind, loss, self.loss_quantile(), settings, bias_lr, base_rate, shift,
            *weights, state["used"], touched["table"], state["bias"], *base, *scratch,
        )  # fmt: skip
        self._forget = (kind, bias_kind, settings, *weights, state["used"], touched["table"], state["bias"])
        self._count = state["base_count"]
        self._unread = np.empty((0, 1), np.float32)

    def predict(self, x: Rows, out: np.ndarray) -> None:
        kernels.predict_rows(x.numeric, x.categories, *self._predict, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        if len(self._unread) < len(truth.y):
            self._unread = np.empty((len(truth.y), 1), np.float32)
        kernels.learn_rows(x.numeric, x.numeric, x.categories, truth.y, truth.weight, *self._learn, self._unread)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        kernels.learn_rows(x.numeric, after, x.categories, truth.y, truth.weight, *self._learn, out)

    def decays(self) -> list[Decay]:
        half_life = self.optimizer.half_life
        return [] if half_life is None else [(parse_duration(half_life), self.decay)]

    def decay(self, factor: float) -> None:
        """Scale the evidence of weights and base rate by factor; weights and base rate stay."""
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
    dtype         of the stored state, "float64" or "float32"

    Sequential: equal to learning one by one whatever the cuts. Scale numeric columns first (StandardScaler).
    With base_rate=False, intercept_lr=0.01 and no half-life it equals River's LogisticRegression.
    """

    quick: ClassVar[bool] = True
    task: ClassVar[str] = "binary"
    instead: ClassVar[str] = "use LinearRegression for a regression task"

    optimizer: Optimizer = field(default_factory=FTRL)
    _: KW_ONLY
    bits: int = 20
    base_rate: bool = True
    intercept_lr: float | None = None
    dtype: str = "float64"

    def loss_code(self) -> int:
        return kernels.LOGISTIC

    def first_mean(self) -> tuple[float, float]:
        return 0.5, 1.0


@register
@dataclass(eq=False)
class LinearRegression(LinearModel):
    """Linear regression with a choice of losses.

    loss  "squared": the mean; "absolute": the median; "quantile": the `quantile`; "poisson": the rate of a count,
          exp(raw). The other settings are those of LogisticRegression, but for base_rate: the raw score starts at the
          running mean of the labels (Poisson: its logarithm), and the first label does nothing but set it.

    Weights move in the unit of the label: with losses other than Poisson, give labels of a very large or small scale a
    matching step size, or scale them. With base_rate=False, intercept_lr=0.01 and no half-life it equals River's
    LinearRegression with optim.losses.Squared, Absolute, Quantile or Poisson.
    """

    quick: ClassVar[bool] = True
    task: ClassVar[str] = "regression"
    instead: ClassVar[str] = "use LogisticRegression for a binary task"

    optimizer: Optimizer = field(default_factory=FTRL)
    _: KW_ONLY
    loss: str = "squared"
    quantile: float = 0.5
    bits: int = 20
    base_rate: bool = True
    intercept_lr: float | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in LOSSES:
            raise DeclarationError(f"LinearRegression(loss=): expected one of {', '.join(LOSSES)}, got {self.loss!r}")
        check_number("LinearRegression(quantile=)", self.quantile, 0.0, above=True, high=1.0)

    def loss_code(self) -> int:
        return LOSSES[self.loss]

    def loss_quantile(self) -> float:
        return float(self.quantile)

    def first_mean(self) -> tuple[float, float]:
        return (1.0, 0.0) if self.loss == "poisson" else (0.0, 0.0)
