"""ADWIN in Numba, for trees that watch their own errors: as in drift_kernels.py, one value at a time."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from .compiling import kernel

WIDTH, SUM, DEVIATIONS = range(3)  # places in the `window_sums` of ADWIN
LEVELS, BUCKETS = 48, 5  # of its window: a bucket of level k stands for 2**k values, so no stream is too long
CLOCK, GRACE, LEAST_PART = 32, 10.0, 5.0  # values between two looks; in the window before the first; in each part


@kernel
def find_cut(delta: float, totals: ndarray, held: ndarray, sums: ndarray) -> bool:
    """Whether the window falls into an older and a newer part whose means differ more than chance allows."""
    width = sums[WIDTH]
    variance = sums[DEVIATIONS] / width
    confidence = math.log(2.0 * math.log(width) / delta)
    older = older_total = 0.0
    newer, newer_total = width, sums[SUM]
    size = 2.0**LEVELS
    for level in range(LEVELS - 1, -1, -1):
        size *= 0.5
        for k in range(held[level]):
            older += size
            newer -= size
            older_total += totals[level, k]
            newer_total -= totals[level, k]
            if newer < 1.0:
                return False
            if older < LEAST_PART or newer < LEAST_PART:
                continue
            rarity = 1.0 / (older - LEAST_PART + 1.0) + 1.0 / (newer - LEAST_PART + 1.0)
            bound = math.sqrt(2.0 * rarity * variance * confidence) + 2.0 / 3.0 * confidence * rarity
            if abs(older_total / older - newer_total / newer) > bound:
                return True
    return False


@kernel
def hear(x: float, delta: float, totals: ndarray, held: ndarray, sums: ndarray) -> bool:
    """Add a value to a window; whether the values have changed, in which case it is empty again.

    totals  float64 (LEVELS, BUCKETS + 1)  sum of each bucket, the oldest first    changed in place
    held    int64 (LEVELS,)                buckets of each level                   changed in place
    sums    float64 (3,)                   width, sum, squared distances from the mean  changed in place

    Source: Bifet and Gavalda (2007), Learning from time-changing data with adaptive windowing.
    """
    count = sums[WIDTH] + 1.0
    if count > 1.0:
        from_mean = x - sums[SUM] / (count - 1.0)
        sums[DEVIATIONS] += (count - 1.0) * from_mean * from_mean / count
    sums[WIDTH] = count
    sums[SUM] += x
    totals[0, held[0]] = x
    held[0] += 1
    level = 0
    while held[level] > BUCKETS:
        totals[level + 1, held[level + 1]] = totals[level, 0] + totals[level, 1]
        held[level + 1] += 1
        held[level] -= 2
        for k in range(held[level]):
            totals[level, k] = totals[level, k + 2]
        level += 1
    if np.int64(count) % CLOCK != 0 or count <= GRACE or not find_cut(delta, totals, held, sums):
        return False
    totals[:] = 0.0
    held[:] = 0
    sums[:] = 0.0
    return True
