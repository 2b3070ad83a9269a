"""Passive-aggressive models: no step while a prediction is good enough, and otherwise one just as long as is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import DeclarationError
from . import passive_aggressive_kernels as kernels
from .base import Array, Link, Spec, check_number, register
from .linear_base import TableLearner


class PassiveAggressive(TableLearner):
    """What PAClassifier and PARegressor share: their state, and what the kernels are told."""

    kernels: ClassVar[Any] = kernels

    C: float
    mode: int
    learn_intercept: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_number(f"{name}(C=)", self.C, 0.0, above=True)
        if self.mode not in (1, 2):
            raise DeclarationError(f"{name}(mode=): expected 1 (PA-I) or 2 (PA-II), got {self.mode!r}")

    def link(self, spec: Spec) -> Link:
        return "logit" if self.task == "binary" else "identity"

    def tolerance(self) -> float:
        """How far a value may be off before anything is learned."""
        return 0.0

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model; raises DeclarationError when the task of spec is not that of the model."""
        self.check_task(spec)
        return {
            "columns": Array((len(spec.numeric), 1), self.dtype, axis="numeric", merge="mean"),
            "missing": Array((len(spec.numeric), 1), self.dtype, axis="numeric", merge="mean"),
            "table": Array((1 << self.bits, 1), self.dtype, rows="table", merge="mean"),
            "bias": Array((1, 1), self.dtype, merge="mean"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on state; touched["table"] gets a 1 for every 64 slots of which one was written."""
        binary, shift = self.task == "binary", np.uint64(64 - self.bits)
        weights = state["columns"], state["missing"], state["table"]
        rule = binary, int(self.mode), float(self.C), float(self.tolerance()), bool(self.learn_intercept)
        self._predict = (binary, shift, *weights, state["bias"])
        self._learn = (*rule, shift, *weights, touched["table"], state["bias"])
        self._unread = np.empty((0, 1), np.float32)


@register
@dataclass(eq=False)
class PAClassifier(PassiveAggressive):
    """Passive-aggressive classification, for a binary task: a margin of 1 on the right side, with the hinge loss.

    raw = w.x + bias, y = 1 or -1, loss = max(0, 1 - y raw), w += tau y x, bias += tau y.
    Features are those of LogisticRegression: numeric columns, an indicator where one is missing, categories by hash.

    C                how long a step may be, or how stiff the weights are: see mode
    mode             1 (PA-I): tau = min(C, loss / |x|^2), 0 where x is 0; 2 (PA-II): tau = loss / (|x|^2 + 1 / (2 C))
    learn_intercept  whether the bias moves; it is not counted in |x|^2
    bits             2**bits slots of 8 bytes (half of it with float32): 8 MiB at 20
    dtype            of the stored state, "float64" or "float32"

    Predicts the sigmoid of raw, as River does: the side is what was learned, the number is no probability that the
    stream bears out. The weight of an example multiplies C, as if its loss counted so many times. A step that was taken
    leaves no loss from which it could be known again: examples of a negative weight are not learned, so nothing is
    taken back. Nothing is forgotten but by what comes next: there is no half-life.

    Sequential: equal to learning one by one whatever the cuts. Scale numeric columns first (StandardScaler).
    Equal to River's PAClassifier of the same settings. Source: Crammer et al. (2006), Online passive-aggressive
    algorithms.
    """

    quick: ClassVar[bool] = True
    task: ClassVar[str] = "binary"
    instead: ClassVar[str] = "use PARegressor for a regression task, SoftmaxRegression for several classes"

    C: float = 1.0
    _: KW_ONLY
    mode: int = 1
    learn_intercept: bool = True
    bits: int = 20
    dtype: str = "float64"


@register
@dataclass(eq=False)
class PARegressor(PassiveAggressive):
    """Passive-aggressive regression: no step while the prediction is within eps of the label.

    raw = w.x + bias, loss = max(0, |y - raw| - eps), w += tau sign(y - raw) x; tau, C, mode and all else are those of
    PAClassifier.

    eps  how far off a prediction may be before anything is learned, in the unit of the label

    C (mode 1) is in the unit of the label too. Predicts raw.

    Equal to River's PARegressor with the loss of the paper. River 0.26's own takes the distance from 2 y - 1 instead of
    y, as if labels were classes, so it differs. Source: Crammer et al. (2006), Online passive-aggressive algorithms.
    """

    quick: ClassVar[bool] = True
    task: ClassVar[str] = "regression"
    instead: ClassVar[str] = "use PAClassifier for a binary task, SoftmaxRegression for several classes"

    C: float = 1.0
    _: KW_ONLY
    mode: int = 1
    eps: float = 0.1
    learn_intercept: bool = True
    bits: int = 20
    dtype: str = "float64"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("PARegressor(eps=)", self.eps, 0.0)

    def tolerance(self) -> float:
        return float(self.eps)
