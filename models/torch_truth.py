"""What labels ask of raw scores: which rows are learned, the base the scores stand on, the slope of the loss."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from ..jit import njit

BINARY, MULTICLASS, REGRESSION = range(3)
LOG, CROSS_ENTROPY, SQUARED, ABSOLUTE, HUBER = range(5)
LARGEST = 3.4028234663852886e38

LEAST = 1e-6  # share of a class on which scores stand

# Letters: B rows, O outputs, C classes. The base is the share of each class (C,), a binary task has two; of a
# regression the mean of the labels (1,), beside their variance (1,). It stands on `count` (1,), a sum of weights.


@njit(cache=True, nogil=True, error_model="numpy")
def take_truth(task: int, y: ndarray, weight: ndarray, outputs: int, live: ndarray) -> int:
    """Mark in live uint8 (B,) the rows that are learned; how many they are.

    y, weight  float32 (B, 1), (B,)  left out: a label that is not finite or, of classes, names none; a weight that is
                                     0 or not finite
    """
    n = 0
    for i in range(y.shape[0]):
        t, v = np.float64(y[i, 0]), np.float64(weight[i])
        good = t - t == 0.0 and v - v == 0.0 and v != 0.0
        if task == MULTICLASS:
            good = good and 0.0 <= t < outputs and t == math.floor(t)
        live[i] = good
        n += good
    return n


@njit(cache=True, nogil=True, error_model="numpy")
def observe(
    task: int, y: ndarray, weight: ndarray, live: ndarray, base: ndarray, variance: ndarray, count: ndarray
) -> None:  # fmt: skip
    """Fold the labels of a micro-batch into the base, float64 (C,) or (1,), the variance and the count, (1,) each.

    What a negative weight takes back leaves no share below 0; labels of a regression are taken in alone.
    Source: Welford (1962), Note on a method for calculating corrected sums of squares and products.
    """
    for i in range(y.shape[0]):
        t, v = np.float64(y[i, 0]), np.float64(weight[i])
        n = count[0] + v
        if live[i] == 0 or n <= 0.0 or (task == REGRESSION and v < 0.0):
            continue
        count[0] = n
        if task == REGRESSION:
            d = t - base[0]
            base[0] += v / n * d
            variance[0] += v / n * (d * (t - base[0]) - variance[0])
        else:
            named = np.intp(t >= 0.5) if task == BINARY else np.intp(t)
            for c in range(base.shape[0]):
                share = base[c] + v / n * (np.float64(c == named) - base[c])
                base[c] = min(max(share, 0.0), 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def write_offsets(task: int, on: bool, base: ndarray, variance: ndarray, offsets: ndarray) -> None:
    """Write to offsets float64 (O + 1,) what is added to each raw score, and the unit the scores are in."""
    offsets[:] = 0.0
    offsets[-1] = 1.0
    if not on:
        return
    if task == BINARY:
        offsets[0] = math.log(max(base[1], LEAST) / max(base[0], LEAST))
    elif task == MULTICLASS:
        for c in range(base.shape[0]):
            offsets[c] = math.log(max(base[c], LEAST))
    else:
        offsets[0] = base[0]
        if variance[0] > 0.0:
            offsets[1] = max(math.sqrt(variance[0]), 1e-30)


@njit(cache=True, nogil=True, error_model="numpy")
def sigmoid(s: float) -> float:
    """1 / (1 + exp(-s)), without overflow."""
    e = math.exp(-abs(s))
    return 1.0 / (1.0 + e) if s >= 0.0 else e / (1.0 + e)


@njit(cache=True, nogil=True, error_model="numpy")
def top_and_total(raw: ndarray, offsets: ndarray, outputs: int) -> tuple[float, float]:
    """The largest score of a row (O,), and the sum of the exponentials of all less that one."""
    top, total = -np.inf, 0.0
    for c in range(outputs):
        top = max(top, raw[c] + offsets[c])
    for c in range(outputs):
        total += math.exp(raw[c] + offsets[c] - top)
    return top, total


@njit(cache=True, nogil=True, error_model="numpy")
def write_predictions(task: int, raw: ndarray, offsets: ndarray, out: ndarray) -> None:
    """Write P(true), P of each class or values to out (B, O), of raw scores float32 (>= B, O)."""
    outputs = out.shape[1]
    for i in range(out.shape[0]):
        if task == BINARY:
            out[i, 0] = sigmoid(np.float64(raw[i, 0]) + offsets[0])
        elif task == MULTICLASS:
            top, total = top_and_total(raw[i], offsets, outputs)
            for c in range(outputs):
                out[i, c] = math.exp(raw[i, c] + offsets[c] - top) / total
        else:
            value = offsets[0] + offsets[1] * raw[i, 0]
            out[i, 0] = value if value - value != 0.0 else min(max(value, -LARGEST), LARGEST)


@njit(cache=True, nogil=True, error_model="numpy")
def write_slopes(
    loss: int, raw: ndarray, y: ndarray, weight: ndarray, live: ndarray, offsets: ndarray, out: ndarray
) -> bool:  # fmt: skip
    """Write to out float32 (B, O) the slope of each row's weighted loss in its raw scores; whether all are finite.

    log, cross entropy  P - label
    squared             e = raw - (label - mean) / deviation, of a loss of e^2 / 2
    absolute, huber     sign of e; e within 1, its sign beyond

    0 for rows that are not learned: they are masked.
    """
    outputs = out.shape[1]
    fine = True
    for i in range(out.shape[0]):
        for c in range(outputs):
            out[i, c] = 0.0
        if live[i] == 0:
            continue
        t, v = np.float64(y[i, 0]), np.float64(weight[i])
        if loss == LOG:
            out[i, 0] = v * (sigmoid(np.float64(raw[i, 0]) + offsets[0]) - np.float64(t >= 0.5))
        elif loss == CROSS_ENTROPY:
            top, total = top_and_total(raw[i], offsets, outputs)
            for c in range(outputs):
                out[i, c] = v * (math.exp(raw[i, c] + offsets[c] - top) / total - np.float64(c == np.intp(t)))
        else:
            e = np.float64(raw[i, 0]) - (t - offsets[0]) / offsets[1]
            if loss == ABSOLUTE:
                e = np.float64(e > 0.0) - np.float64(e < 0.0) if e - e == 0.0 else e
            elif loss == HUBER:
                e = min(max(e, -1.0), 1.0) if e - e == 0.0 else e
            out[i, 0] = v * e
        for c in range(outputs):
            fine = fine and abs(raw[i, c]) <= 1e18 and abs(out[i, c]) <= 1e18
    return fine


@njit(cache=True, nogil=True, error_model="numpy")
def write_targets(
    task: int, y: ndarray, weight: ndarray, live: ndarray, offsets: ndarray, target: ndarray, scale: ndarray
) -> None:  # fmt: skip
    """What a device needs of labels: target float32 (>= B,), in the unit of raw scores; scale (>= B,), 0: masked."""
    target[:] = 0.0
    scale[:] = 0.0
    for i in range(y.shape[0]):
        if live[i]:
            t = np.float64(y[i, 0])
            target[i] = (t - offsets[0]) / offsets[1] if task == REGRESSION else t
            scale[i] = weight[i]
