"""How the dense weights of a torch module are moved on a CPU: one call for each parameter and micro-batch.

In all of them g float32 (n,) is the slope of the summed loss; it is multiplied by `share` (1 / examples) and then set
to 0, for the next micro-batch is added to it. Weights and what the optimizer keeps are float32 (n,), changed in place.
Numbers are held within float32. Element by element: nothing depends on the order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from ..jit import njit

LARGEST = 3.4028234663852886e38
STEEPEST = np.float32(1e18)  # its square is a float32 still


@njit(cache=True, nogil=True, error_model="numpy")
def is_fine(g: ndarray) -> bool:
    """Whether all slopes are numbers within 1e18, whose squares float32 can hold; g float32 (n,)."""
    steep = np.uint32(0)
    for i in range(g.shape[0]):
        steep |= np.uint32(not (abs(g[i]) <= STEEPEST))
    return steep == 0


@njit(cache=True, nogil=True, error_model="numpy")
def held(w: float) -> float:
    """w as the nearest number of float32."""
    return min(max(w, -LARGEST), LARGEST)


@njit(cache=True, nogil=True, error_model="numpy")
def step_sgd(w: ndarray, g: ndarray, share: float, lr: float, l2: float) -> None:
    """w -= lr (g + l2 w)."""
    for i in range(w.shape[0]):
        h = share * g[i] + l2 * w[i]
        w[i] = held(w[i] - lr * h)
        g[i] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def step_momentum(
    w: ndarray, g: ndarray, velocity: ndarray, share: float, lr: float, l2: float, momentum: float
) -> None:
    """v = momentum v + g + l2 w, w -= lr v; as torch.optim.SGD without dampening."""
    for i in range(w.shape[0]):
        v = held(momentum * velocity[i] + share * g[i] + l2 * w[i])
        velocity[i] = v
        w[i] = held(w[i] - lr * v)
        g[i] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def step_adagrad(w: ndarray, g: ndarray, squares: ndarray, share: float, lr: float, eps: float, l2: float) -> None:
    """h = g + l2 w, n += h^2, w -= lr h / sqrt(n + eps). Source: Duchi, Hazan and Singer (2011)."""
    for i in range(w.shape[0]):
        h = share * g[i] + l2 * w[i]
        n = min(squares[i] + h * h, LARGEST)
        squares[i] = n
        w[i] = held(w[i] - lr * h / math.sqrt(n + eps))
        g[i] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def step_adam(
    w: ndarray, g: ndarray, mean: ndarray, square: ndarray, share: float,
    lr: float, beta1: float, beta2: float, eps: float, shrink: float, young1: float, young2: float,
) -> None:  # fmt: skip
    """w *= shrink, m and v follow g and g^2, w -= lr / young1 m / (sqrt(v / young2) + eps).

    young1, young2   1 - beta^t at step t, from 1

    Sources: Kingma and Ba (2015); Loshchilov and Hutter (2019) for shrink = 1 - lr * weight_decay.
    """
    for i in range(w.shape[0]):
        h = share * g[i]
        m = beta1 * mean[i] + (1.0 - beta1) * h
        v = min(beta2 * square[i] + (1.0 - beta2) * (h * h), LARGEST)
        mean[i], square[i] = m, v
        w[i] = held(shrink * w[i] - lr / young1 * m / (math.sqrt(v / young2) + eps))
        g[i] = 0.0
