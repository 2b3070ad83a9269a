"""Count, mean and sum of squares in Numba: folded in, added, taken away."""

from __future__ import annotations

from numpy import ndarray

from .compiling import kernel

Moments = tuple[float, float, float]  # count, mean, sum of squares


@kernel
def fold_in(y: float, weight: float, row: ndarray) -> None:
    """Fold a number into count, mean and sum of squares, (3,)."""
    row[0] += weight
    before = row[1]
    row[1] += weight / row[0] * (y - before)
    row[2] += weight * (y - before) * (y - row[1])


@kernel
def added(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squares of two samples together.

    Source: Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance.
    """
    n = a[0] + b[0]
    if n == 0.0:
        return a
    d = a[1] - b[1]
    return n, (a[0] * a[1] + b[0] * b[1]) / n, a[2] + b[2] + d * d * a[0] * b[0] / n


@kernel
def taken_away(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squares of a sample without a part of it: the way back from `added`."""
    n = a[0] - b[0]
    mean = (a[0] * a[1] - b[0] * b[1]) / n if n > 0.0 else 0.0
    n = max(n, 0.0)
    d = mean - b[1]
    whole = n + b[0]
    return n, mean, a[2] - b[2] - (d * d * n * b[0] / whole if whole != 0.0 else 0.0)


@kernel
def variance_of(a: Moments) -> float:
    """Sample variance; 0 of fewer than two."""
    return a[2] / (a[0] - 1.0) if a[0] > 1.0 else 0.0


@kernel
def moments_at(row: ndarray) -> Moments:
    """Count, mean and sum of squares in a row of three."""
    return row[0], row[1], row[2]
