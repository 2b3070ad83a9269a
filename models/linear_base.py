"""What the linear learners share: the settings of a hashed table and of an optimizer, and the task they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from ..errors import DeclarationError
from .base import Configured, Decay, Explainer, Rows, Spec, Truth, came, check_number, check_whole, declared_task
from .durations import parse_duration
from .optimizers import Optimizer


class TableLearner(Configured, Explainer):
    """A learner with weights in a hashed table of 2**bits slots, which learns one row after another.

    `bind` of a subclass sets what its kernels take behind the rows: `_predict` before out, which `explain_rows` takes
    too, `_learn` before out, and `_unread`, a buffer for predictions that nobody reads.
    """

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1

    kernels: ClassVar[Any]  # the module of predict_rows, learn_rows, explain_rows and explain_then_learn_rows
    task: ClassVar[str]
    instead: ClassVar[str]  # what to use for the other tasks

    bits: int
    dtype: str

    _predict: tuple[Any, ...]
    _learn: tuple[Any, ...]
    _unread: np.ndarray

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_whole(f"{name}(bits=)", self.bits, 6, 30)
        if self.dtype not in ("float64", "float32"):
            raise DeclarationError(f"{name}(dtype=): expected 'float64' or 'float32', got {self.dtype!r}")

    def check_task(self, spec: Spec) -> None:
        """Raise DeclarationError when the task of spec is not that of the model."""
        several = self.task == "multiclass"
        if spec.task == self.task and (spec.outputs > 1) == several:
            return
        outputs = "two outputs or more" if several else "one output"
        raise DeclarationError(
            f"{type(self).__name__} learns a {self.task} task with {outputs}, the pipeline declares "
            f"{declared_task(spec)}; {self.instead}"
        )

    def example_weight(self, truth: Truth) -> np.ndarray:
        """The weights with which examples are learned, float (B,); NaN: not learned. Asked once for each example."""
        return truth.weight

    def predict(self, x: Rows, out: np.ndarray) -> None:
        self.kernels.predict_rows(x.numeric, x.categories, *self._predict, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        if len(self._unread) < len(truth.y):
            self._unread = np.empty((len(truth.y), self._unread.shape[1]), np.float32)
        self.test_then_learn(x, truth, self._unread)

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        after = x.numeric if learned is None else learned.numeric
        weight = self.example_weight(truth)
        self.kernels.learn_rows(x.numeric, after, x.categories, truth.y, weight, *self._learn, out)

    def explain(self, x: Rows, out: np.ndarray) -> None:
        self.kernels.explain_rows(x.numeric, x.categories, *self._predict, out)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        after = x.numeric if learned is None else learned.numeric
        weight = self.example_weight(truth)
        rows = x.numeric, after, x.categories, truth.y, weight
        self.kernels.explain_then_learn_rows(*rows, self._predict, self._learn, out, contributions)


class OptimizedLearner(TableLearner):
    """A table learner whose weights an optimizer moves, and whose evidence decays with the optimizer's half-life."""

    optimizer: Optimizer
    base_rate: bool
    intercept_lr: float | None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.optimizer, Optimizer):
            raise DeclarationError(f"{name}: expected an optimizer such as FTRL(alpha=0.1), got {came(self.optimizer)}")
        super().__post_init__()
        if getattr(self.optimizer, "momentum", 0.0):
            raise DeclarationError(f"{name}: momentum is for torch modules, leave it away; got {self.optimizer!r}")
        if self.intercept_lr is not None:
            check_number(f"{name}(intercept_lr=)", self.intercept_lr, 0.0)

    def decays(self) -> list[Decay]:
        half_life = self.optimizer.half_life
        return [] if half_life is None else [(parse_duration(half_life), self.decay)]

    def decay(self, factor: float) -> None:
        """Scale the evidence of weights and base rate by factor; weights and base rate stay."""
        raise NotImplementedError


def class_weights(what: str, given: Mapping[bool, float] | Sequence[float], classes: int = 0) -> list[float]:
    """Weights in the order of the classes (false, true) of a setting; JSON-able, and taken as it is by this function.

    given    a list; of a binary task also {False: w, True: w}, in which a class left out has weight 1
    classes  how many there must be; 0: any number from two on

    Raises DeclarationError, which calls the setting `what`, for anything else.
    """
    if isinstance(given, Mapping) and classes == 2 and set(given) <= {False, True}:
        given = [given.get(False, 1.0), given.get(True, 1.0)]
    if not isinstance(given, list | tuple) or len(given) < 2 or (classes and len(given) != classes):
        binary = "{False: 1.0, True: 5.0} or [1.0, 5.0]"
        expected = binary if classes == 2 else "a list with a weight for each class, in their order"
        raise DeclarationError(f"{what}: expected {expected}, got {given!r}")
    for weight in given:
        check_number(what, weight, 0.0)
    return [float(weight) for weight in given]
