"""Standardised numeric columns: less the mean, by the standard deviation, both learned from the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy import ndarray

from ..jit import njit
from .base import Array, Configured, Decay, Rows, Spec, Transform, check_number, register
from .durations import parse_duration


@njit(cache=True, nogil=True, error_model="numpy")
def scaled(x: float, mean: float, deviation: float, clip: float) -> float:
    """x standardised and held within [-clip, clip]; 0 where nothing varied yet, NaN where x is missing."""
    if x - x != 0.0:  # NaN or infinite
        return np.nan
    if deviation == 0.0:
        return 0.0
    return min(max((x - mean) / deviation, -clip), clip)


@njit(cache=True, nogil=True, error_model="numpy")
def scale(numeric: ndarray, mean: ndarray, variance: ndarray, clip: float, out: ndarray) -> None:
    """Write numeric (B, N) scaled to out (B, N); the moments (N,) are only read."""
    for j in range(numeric.shape[1]):
        deviation = math.sqrt(variance[j])
        for i in range(numeric.shape[0]):
            out[i, j] = scaled(np.float64(numeric[i, j]), mean[j], deviation, clip)


@njit(cache=True, nogil=True, error_model="numpy")
def scale_around(
    before: ndarray, after: ndarray, count: ndarray, mean: ndarray, variance: ndarray, clip: float,
    out_before: ndarray, out_after: ndarray,
) -> None:  # fmt: skip
    """Row by row: scale before[i] to out_before[i], observe after[i], scale it to out_after[i].

    before, after   float (B, N)  NaN or infinite: missing, NaN comes out and nothing is observed
    count, mean, variance  float64 (N,)  moments of what was observed  changed in place
    out_before, out_after  float64 (B, N)

    Result does not depend on where the stream is cut. Population variance.
    Source: Welford (1962), Note on a method for calculating corrected sums of squares and products.
    """
    for j in range(before.shape[1]):
        c = count[j]
        m = mean[j]
        v = variance[j]
        deviation = math.sqrt(v)
        for i in range(before.shape[0]):
            out_before[i, j] = scaled(np.float64(before[i, j]), m, deviation, clip)
            x = np.float64(after[i, j])
            if x - x == 0.0:
                c += 1.0
                d = x - m
                m += d / c
                v += (d * (x - m) - v) / c
                deviation = math.sqrt(v)
            out_after[i, j] = scaled(x, m, deviation, clip)
        count[j] = c
        mean[j] = m
        variance[j] = v


@register
@dataclass(eq=False)
class StandardScaler(Configured, Transform):
    """Each numeric column less its running mean, by its running standard deviation; float64 out.

    half_life  of the moments in event time; None: never forget. Decay scales the count they stand on, so mean and
               variance stay until new rows move them
    clip       holds scaled values within [-clip, clip]; None: not held

    A missing value stays missing and is not observed. A column that never varied gives 0. Categories are left as they
    are. With half_life=None equal to River's StandardScaler.
    """

    quick: ClassVar[bool] = True

    half_life: str | None = "30d"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.half_life is not None:
            parse_duration(self.half_life, "StandardScaler(half_life=)")
        if self.clip is not None:
            check_number("StandardScaler(clip=)", self.clip, 0.0, above=True)

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        n = len(spec.numeric)
        return {
            "count": Array((n,), "float64", axis="numeric", merge="sum"),
            "mean": Array((n,), "float64", axis="numeric", merge="moments", by="count"),
            "variance": Array((n,), "float64", axis="numeric", merge="moments", by="count"),
        }

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        self._clip = math.inf if self.clip is None else float(self.clip)
        self._count, self._mean, self._variance = state["count"], state["mean"], state["variance"]
        self._unread = np.empty((0, len(spec.numeric)))

    def apply(self, x: Rows, out: Rows) -> None:
        scale(x.numeric, self._mean, self._variance, self._clip, out.numeric)

    def observe(self, x: Rows) -> None:
        if len(self._unread) < len(x.numeric):
            self._unread = np.empty(x.numeric.shape)
        unread = Rows(self._unread, x.categories)
        self.apply_around(x, x, unread, unread)

    def apply_around(self, before: Rows, after: Rows, out_before: Rows, out_after: Rows) -> None:
        moments = self._count, self._mean, self._variance
        scale_around(before.numeric, after.numeric, *moments, self._clip, out_before.numeric, out_after.numeric)

    def decays(self) -> list[Decay]:
        return [] if self.half_life is None else [(parse_duration(self.half_life), self.decay)]

    def decay(self, factor: float) -> None:
        """Scale the count by factor: mean and variance stay, and follow new rows sooner."""
        self._count *= factor
