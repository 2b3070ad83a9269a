"""What each feature changes of a prediction itself, in Numba, from what it adds to the raw score.

Predictions of several learners can be averaged, their raw scores cannot. No fastmath.

Letters: B rows, O outputs, F features.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from ..jit import njit
from .linear_kernels import LARGEST_LOG

IDENTITY, LOGIT, LOG, SOFTMAX = range(4)


@njit(cache=True, nogil=True, error_model="numpy")
def predict_of(raw: ndarray, link: int, out: ndarray) -> None:
    """Write what raw scores (O,) predict to out (O,)."""
    most = raw.max()
    total = 0.0
    for o in range(raw.shape[0]):
        if link == LOGIT:
            out[o] = 1.0 / (1.0 + math.exp(-raw[o]))
        elif link == LOG:
            out[o] = math.exp(min(raw[o], LARGEST_LOG))
        else:
            out[o] = math.exp(raw[o] - most)
            total += out[o]
    if link == SOFTMAX:
        out /= total


@njit(cache=True, nogil=True, error_model="numpy")
def add_changes(contributions: ndarray, link: int, weights: ndarray, out: ndarray) -> None:
    """Add to out, times the weight of the row, what each feature changes of the predictions of B rows.

    contributions  float32 (B, O, F + 1)  to the raw scores; last is the base
    link           IDENTITY, LOGIT, LOG, SOFTMAX: what makes predictions of raw scores
    weights        float64 (B,)
    out            float64 (B, O, F + 1)  last is the prediction of the base; changed in place

    Each feature gets what it changes when the features are heard one after another, on average over the order in which
    they are declared and the reverse. So a row of out adds up to the prediction.
    Source: Strumbelj and Kononenko (2010), An efficient explanation of individual classifications using game theory,
    who draw orders by chance; of two features these two are all there are.
    """
    F = contributions.shape[2] - 1
    room = np.empty((3, contributions.shape[1]))
    raw, before, after = room[0], room[1], room[2]
    for i in range(contributions.shape[0]):
        weight = weights[i]
        if link == IDENTITY:
            out[i] += weight * contributions[i].astype(np.float64)
            continue
        for way in range(2):
            raw[:] = contributions[i, :, F]
            predict_of(raw, link, before)
            if way == 0:
                out[i, :, F] += weight * before
            for step in range(F):
                f = step if way == 0 else F - 1 - step
                raw += contributions[i, :, f]
                predict_of(raw, link, after)
                out[i, :, f] += weight * (0.5 * (after - before))
                before[:] = after
