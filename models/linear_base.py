"""What the linear learners share: the settings of a hashed table and of an optimizer, and the task they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from ..errors import DeclarationError
from .base import Configured, Decay, Learner, Spec, check_number
from .durations import parse_duration
from .optimizers import Optimizer


class TableLearner(Configured, Learner):
    """A learner with weights in a hashed table of 2**bits slots, which learns one row after another."""

    updates: Literal["sequential", "micro_batch"] = "sequential"
    batch_size: int = 1

    task: ClassVar[str]
    instead: ClassVar[str]  # what to use for the other tasks

    bits: int
    dtype: str

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.bits, int) or not 6 <= self.bits <= 30:
            raise DeclarationError(f"{name}(bits=): expected a whole number from 6 to 30, got {self.bits!r}")
        if self.dtype not in ("float64", "float32"):
            raise DeclarationError(f"{name}(dtype=): expected 'float64' or 'float32', got {self.dtype!r}")

    def check_task(self, spec: Spec) -> None:
        """Raise DeclarationError when the task of spec is not that of the model."""
        several = self.task == "multiclass"
        if spec.task == self.task and (spec.outputs > 1) == several:
            return
        came = "no labels" if spec.task is None else f"a {spec.task} task with {spec.outputs} output(s)"
        outputs = "two outputs or more" if several else "one output"
        raise DeclarationError(
            f"{type(self).__name__} learns a {self.task} task with {outputs}, the pipeline declares {came}; "
            f"{self.instead}"
        )


class OptimizedLearner(TableLearner):
    """A table learner whose weights an optimizer moves, and whose evidence decays with the optimizer's half-life."""

    optimizer: Optimizer
    base_rate: bool
    intercept_lr: float | None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.optimizer, Optimizer):
            raise DeclarationError(f"{name}: expected an optimizer such as FTRL(alpha=0.1), got {self.optimizer!r}")
        super().__post_init__()
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
