"""How the dense weights of a torch module are moved: SGD, AdaGrad and Adam on arrays of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from ..errors import DeclarationError
from . import dense_kernels as kernels
from .base import Array, Configured, check_number, register
from .optimizers import SGD, AdaGrad

STEPS = "steps"  # the name of the array that counts steps: int64 (1,)


@register
@dataclass(frozen=True)
class Adam(Configured):
    """Adam, with weight_decay AdamW: for the dense weights of torch modules.

    w -= lr weight_decay w; m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2;
    w -= lr m' / (sqrt v' + eps), where m' and v' make up for m and v having begun at 0.

    g is the mean slope over the micro-batch. m and v forget by themselves, so nothing decays in event time.
    Sources: Kingma and Ba (2015); Loshchilov and Hutter (2019). Equal to torch.optim.AdamW.
    """

    lr: float = 0.001
    _: KW_ONLY
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_number("Adam(lr=)", self.lr, 0.0, above=True)
        check_number("Adam(eps=)", self.eps, 0.0, above=True)
        check_number("Adam(weight_decay=)", self.weight_decay, 0.0)
        for name in ("beta1", "beta2"):
            check_number(f"Adam({name}=)", getattr(self, name), 0.0, high=1.0 - 1e-9)


DenseOptimizer = SGD | AdaGrad | Adam


def check_dense(optimizer: object) -> None:
    """Raise DeclarationError unless this is an optimizer of dense weights."""
    if not isinstance(optimizer, DenseOptimizer):
        raise DeclarationError(
            f"Torch(optimizer=): expected Adam(0.001), AdaGrad(0.05) or SGD(0.01, momentum=0.9), got {optimizer!r}"
        )


def moments_of(optimizer: DenseOptimizer) -> tuple[str, ...]:
    """The names of the arrays that the optimizer keeps for each parameter, of the parameter's shape."""
    if isinstance(optimizer, Adam):
        return "mean", "square"
    if isinstance(optimizer, AdaGrad):
        return ("squares",)
    return ("velocity",) if optimizer.momentum else ()


def layout_of(optimizer: DenseOptimizer, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The arrays of an optimizer: moments of each parameter, by name and shape; how many steps were made."""
    return {
        f"{moment}/{name}": Array(shape, axis="features", merge="mean")
        for name, shape in parameters.items()
        for moment in moments_of(optimizer)
    } | {STEPS: Array((1,), "int64", axis="features", merge="max")}


def stepper_of(
    optimizer: DenseOptimizer, parameters: Mapping[str, np.ndarray], slopes: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray],
) -> Callable[[int], None]:  # fmt: skip
    """A function that makes one step, in place, and sets the slopes to 0; it is told how many examples they sum.

    parameters, slopes  float32, by name; state: arrays as `layout_of` says
    """
    count = state[STEPS]
    flat = [
        (w.reshape(-1), slopes[name].reshape(-1), *(state[f"{m}/{name}"].reshape(-1) for m in moments_of(optimizer)))
        for name, w in parameters.items()
    ]
    kernel, settings_at = _kernel_of(optimizer)

    def step(examples: int) -> None:
        count[0] += 1
        settings = settings_at(int(count[0]))
        for arrays in flat:
            kernel(*arrays, 1.0 / examples, *settings)

    return step


def _kernel_of(optimizer: DenseOptimizer) -> tuple[Any, Callable[[int], tuple[float, ...]]]:
    """The kernel of an optimizer, and the settings it takes at the t-th step, from 1."""
    lr = float(optimizer.lr)
    if isinstance(optimizer, SGD):
        if optimizer.momentum:
            return kernels.step_momentum, lambda t: (lr, float(optimizer.l2), float(optimizer.momentum))
        return kernels.step_sgd, lambda t: (lr, float(optimizer.l2))
    if isinstance(optimizer, AdaGrad):
        return kernels.step_adagrad, lambda t: (lr, float(optimizer.eps), float(optimizer.l2))
    beta1, beta2 = float(optimizer.beta1), float(optimizer.beta2)
    fixed = lr, beta1, beta2, float(optimizer.eps), 1.0 - lr * optimizer.weight_decay
    return kernels.step_adam, lambda t: (*fixed, 1.0 - beta1**t, 1.0 - beta2**t)
