"""Softmax regression: a linear model for several classes, on numeric columns and a hashed table of categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import DeclarationError
from . import softmax_kernels as kernels
from . import weight_kernels
from .base import Array, Link, Spec, register
from .linear_base import OptimizedLearner, class_weights
from .optimizers import FTRL, Optimizer


@register
@dataclass(eq=False)
class SoftmaxRegression(OptimizedLearner):
    """Softmax regression, for a multiclass task: P(class), learned with the cross entropy.

    raw_c = w_c.x + bias_c + base_c, P_c = exp(raw_c) / sum of exp(raw). Each class has weights of its own, for features
    as LogisticRegression has them: numeric columns, an indicator where one is missing, categories by their hash.

    optimizer     FTRL, AdaGrad or SGD; l1, l2 and half-life are its settings
    bits          2**bits slots, each with 16 bytes per class (SGD 8; half of it with float32): 4 MiB per class at 18
    base_rate     the raw scores start at the logarithms of the frequencies of the classes so far (with half a label of
                  each class before the first; none below 1e-6)
    intercept_lr  None: the biases are learned as weights whose feature is 1, without l1 and l2;
                  a number: by plain gradient descent with this step; 0: they stay 0
    class_weight  a number for each class, in their order, by which the weights of examples are multiplied; None: 1.
                  Predictions, and the base rate, are then those of a stream in which the classes are so many times as
                  frequent
    dtype         of the stored state, "float64" or "float32"

    Sequential: equal to learning one by one whatever the cuts. Scale numeric columns first (StandardScaler). A label
    that is no class of the task is not learned.
    With base_rate=False, intercept_lr=0.0 and no half-life it equals River's SoftmaxRegression from when that has seen
    each class on, or all along when its weights know the classes beforehand (it learns them as they come). River's
    CrossEntropy(class_weight) is another rule: it multiplies what is learned about a class, not the examples of it.
    """

    quick: ClassVar[bool] = True
    kernels: ClassVar[Any] = kernels
    task: ClassVar[str] = "multiclass"
    instead: ClassVar[str] = "use LogisticRegression for a binary task, LinearRegression for a regression task"

    optimizer: Optimizer = field(default_factory=FTRL)
    _: KW_ONLY
    bits: int = 18
    base_rate: bool = True
    intercept_lr: float | None = None
    class_weight: Sequence[float] | None = None  # kept as a list
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weight is not None:
            self.class_weight = class_weights("SoftmaxRegression(class_weight=)", self.class_weight)

    def link(self, spec: Spec) -> Link:
        return "softmax"

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task or the classes of spec are not those of it."""
        self.check_task(spec)
        classes = spec.outputs
        if self.class_weight is not None and len(self.class_weight) != classes:
            raise DeclarationError(
                f"SoftmaxRegression(class_weight=): {len(self.class_weight)} weights, the pipeline declares {classes} "
                "classes; give one for each, in their order"
            )
        numbers, slots, dtype = self.optimizer.numbers, 1 << self.bits, self.dtype
        merge: Literal["mean", "steps"] = "mean" if numbers == 1 else "steps"
        of_columns = Array((len(spec.numeric), classes, numbers), dtype, axis="numeric", merge=merge)
        return {
            "columns": of_columns,
            "missing": of_columns,
            "table": Array((slots * classes, numbers), dtype, rows="table", merge=merge),
            "used": Array((slots // 8,), "uint8", merge="max"),
            "bias": Array((classes, numbers), dtype, axis="outputs", merge=merge),
            "base_count": Array((classes,), "float64", 0.5, axis="outputs", merge="sum"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on state; touched["table"] gets a 1 for every 64 rows of which one was written."""
        n, k, classes = len(spec.numeric), len(spec.categories), spec.outputs
        kind = self.optimizer.kind
        lr, beta, l1, l2 = self.optimizer.settings()
        settings = float(lr), float(beta), float(l1), float(l2)  # all floats: another type would be compiled anew
        bias_kind = kind if self.intercept_lr is None else weight_kernels.SGD
        bias_lr = float(lr) if self.intercept_lr is None else float(self.intercept_lr)
        shift, base_rate = np.uint64(64 - self.bits), bool(self.base_rate)
        by_class = np.ones(classes) if self.class_weight is None else np.array(self.class_weight, np.float64)
        flat = n * classes, self.optimizer.numbers
        weights = state["columns"].reshape(flat), state["missing"].reshape(flat), state["table"]
        bias, count = state["bias"], state["base_count"]
        scores, firsts = np.empty((3, classes)), np.empty(k, np.intp)

        self._predict = (kind, bias_kind, settings, base_rate, shift, *weights, bias, count, scores, firsts)
        self._learn = (
            kind, bias_kind, settings, bias_lr, base_rate, by_class, shift,
            *weights, state["used"], touched["table"], bias, count, scores, np.empty((classes, n + k + 1)), firsts,
        )  # fmt: skip
        self._forget = (kind, bias_kind, settings, classes, *weights, state["used"], touched["table"], bias)
        self._count = count
        self._unread = np.empty((0, classes), np.float32)

    def decay(self, factor: float) -> None:
        kernels.forget(float(factor), *self._forget)
        self._count *= factor
