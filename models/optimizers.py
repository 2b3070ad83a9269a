"""How a linear model moves its weights: settings of SGD, AdaGrad and FTRL. Their arithmetic is in weight_kernels.py."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from . import weight_kernels as kernels
from .base import LATER, Configured, check_number, register
from .durations import parse_duration

SOFTEST = 1e-30  # of FTRL's beta: with none at all, z / 0 is infinite where g^2 is too small to be stored


class Optimizer(Configured):
    """What the optimizers share: frozen dataclasses that check their settings."""

    kind: ClassVar[int]
    numbers: ClassVar[int]  # per weight: the weight alone, or the weight (FTRL: z) and its evidence
    half_life: str | None

    def settings(self) -> tuple[float, float, float, float]:
        """Step size; what keeps the first steps small (beta) or finite (eps); l1; l2."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        name = type(self).__name__
        for setting in ("lr", "alpha", "eps"):
            if hasattr(self, setting):
                check_number(f"{name}({setting}=)", getattr(self, setting), 0.0, above=True)
        for setting in ("beta", "l1", "l2"):
            if hasattr(self, setting):
                check_number(f"{name}({setting}=)", getattr(self, setting), 0.0)
        if self.half_life is not None:
            parse_duration(self.half_life, f"{name}(half_life=)")


@register
@dataclass(frozen=True)
class SGD(Optimizer):
    """Plain gradient descent: w -= lr (g + l2 w), for the features of the row.

    Has no evidence, so nothing of it decays; half_life concerns the learner's running base rate alone.
    A negative weight steps back along the gradient as it is now: exact only right after the step it takes back.
    Equal to River's optim.SGD with the learner's l2.

    momentum  for the dense weights of torch modules alone: v = momentum v + g + l2 w, w -= lr v
    """

    kind: ClassVar[int] = kernels.SGD
    numbers: ClassVar[int] = 1

    lr: float = 0.01
    _: KW_ONLY
    l2: float = 0.0
    half_life: str | None = None
    momentum: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("SGD(momentum=)", self.momentum, 0.0, high=1.0 - 1e-9)

    def settings(self) -> tuple[float, float, float, float]:
        return self.lr, 0.0, 0.0, self.l2


@register
@dataclass(frozen=True)
class AdaGrad(Optimizer):
    """Steps that shrink with the squared gradients of a weight: h = g + l2 w, n += h^2, w -= lr h / sqrt(n + eps).

    Decay scales n and leaves w: what is predicted stays, what comes next counts for more. A negative weight steps
    back along the gradient as it is now; n, the evidence, grows by it as by any other example.
    Equal to River's optim.AdaGrad with the learner's l2 (half_life=None). Source: Duchi, Hazan and Singer (2011).
    """

    kind: ClassVar[int] = kernels.ADAGRAD
    numbers: ClassVar[int] = 2

    lr: float = 0.1
    eps: float = 1e-8
    _: KW_ONLY
    l2: float = 0.0
    half_life: str | None = "30d"

    def settings(self) -> tuple[float, float, float, float]:
        return self.lr, self.eps, 0.0, self.l2


@register
@dataclass(frozen=True)
class FTRL(Optimizer):
    """Follow the regularised leader, per coordinate: sparse with l1, robust without a schedule.

    w = 0 while |z| <= l1, else -(z - sign(z) l1) / ((beta + sqrt n) / alpha + l2);
    then s = (sqrt(n + g^2) - sqrt n) / alpha, z += g - s w, n += g^2.

    Decay scales n, and z with it so that w stays; the z of a weight that l1 holds at zero stays. A negative weight
    takes the gradient as it is now out of z; n, the evidence, grows by it as by any other example.
    Source: McMahan et al. (2013), Ad click prediction: a view from the trenches, algorithm 1. (River 0.26's
    FTRLProximal takes the weights of the row before, so it differs.)
    """

    kind: ClassVar[int] = kernels.FTRL
    numbers: ClassVar[int] = 2

    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    _: KW_ONLY
    half_life: str | None = "30d"

    def settings(self) -> tuple[float, float, float, float]:
        return self.alpha, max(self.beta, SOFTEST), self.l1, self.l2
