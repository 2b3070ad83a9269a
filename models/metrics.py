"""Progressive metrics: how good the predictions were that were made before their labels came, each beside its baseline.

State is arrays that the engine owns, as for models, so metrics are saved in snapshots and go on after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy import ndarray

from ..errors import DeclarationError
from .base import Array

NEVER = 2.0**-24  # probabilities are held within [NEVER, 1 - NEVER]: float32 knows no step closer to 1
RECENT = 10_000  # labels that the recent loss stands for

LOGIT_BINS = 1 << 14
LARGEST_LOGIT = 17.0

FIRST = 1024  # labels kept as they are, before the sketch is centred on their median
OCTAVE = 32  # bins per doubling of the distance from the centre: 2.2 % wide
OCTAVES = 64
LOWEST = -12  # the lowest octave of distance, in units of the scale
SIDE = OCTAVE * OCTAVES  # bins on either side of the centre; bin SIDE is the centre's

# places in `sums`
LABELS, LOSS, TRUE, CORRECT, SAME, PREVIOUS, RECENT_LOSS, RECENT_LABELS = range(8)
SQUARES, MEAN, SPREAD, CENTRE, SCALE = 2, 3, 4, 5, 8  # regression; the others as above


@njit(cache=True, nogil=True, error_model="numpy")
def update_binary(y: ndarray, p: ndarray, sums: ndarray, positives: ndarray, negatives: ndarray) -> None:
    """Count B predictions in order.

    y, p  float32 (B,)  label 0 or 1 (a label between counts as true from a half on) and P(true); NaN: skipped
    sums  float64 (9,); positives, negatives int64 (LOGIT_BINS,)  by the logit of p  changed in place
    """
    for i in range(y.shape[0]):
        t = np.float64(y[i])
        q: float = np.float64(p[i])
        if t - t != 0.0 or q - q != 0.0:
            continue
        q = min(max(q, NEVER), 1.0 - NEVER)
        loss = -(t * math.log(q) + (1.0 - t) * math.log1p(-q))
        true = t >= 0.5
        sums[LOSS] += loss
        sums[TRUE] += t
        sums[RECENT_LOSS] += (loss - sums[RECENT_LOSS]) / min(sums[LABELS] + 1.0, RECENT)
        if (q >= 0.5) == true:
            sums[CORRECT] += 1.0
        if sums[LABELS] > 0.0 and (sums[PREVIOUS] >= 0.5) == true:
            sums[SAME] += 1.0
        sums[PREVIOUS] = t
        sums[LABELS] += 1.0
        place = (math.log(q) - math.log1p(-q) + LARGEST_LOGIT) * (LOGIT_BINS / (2.0 * LARGEST_LOGIT))
        b = min(max(int(place), 0), LOGIT_BINS - 1)
        if true:
            positives[b] += 1
        else:
            negatives[b] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def bin_of(distance: float, scale: float) -> int:
    """Bin of a label by its distance from the centre: the sign and the logarithm."""
    size = abs(distance) / scale
    if size < 2.0**LOWEST:
        return SIDE
    octaves = math.log2(size) - LOWEST
    b = min(int(octaves * OCTAVE), SIDE - 1) + 1
    return SIDE + b if distance > 0.0 else SIDE - b


@njit(cache=True, nogil=True, error_model="numpy")
def update_regression(y: ndarray, p: ndarray, sums: ndarray, first: ndarray, counts: ndarray, totals: ndarray) -> None:
    """Count B predictions in order.

    y, p  float32 (B,)  label and prediction; NaN in either: skipped
    sums  float64 (9,)  changed in place
    first float64 (FIRST,)  the first labels; counts int64, totals float64 (2 SIDE + 1,)  the later ones, by `bin_of`;
                            changed in place
    """
    for i in range(y.shape[0]):
        t = np.float64(y[i])
        q: float = np.float64(p[i])
        if t - t != 0.0 or q - q != 0.0:
            continue
        error = abs(t - q)
        sums[LOSS] += error
        sums[SQUARES] += error * error
        sums[RECENT_LOSS] += (error - sums[RECENT_LOSS]) / min(sums[LABELS] + 1.0, RECENT)
        n = np.intp(sums[LABELS])
        if n == FIRST:
            centre = np.median(first)
            scale = np.mean(np.abs(first - centre))
            sums[CENTRE] = centre
            sums[SCALE] = scale if scale > 0.0 else max(abs(centre), 1.0) * 2.0**-20
            for k in range(FIRST):
                b = bin_of(first[k] - centre, sums[SCALE])
                counts[b] += 1
                totals[b] += first[k]
        if n < FIRST:
            first[n] = t
        else:
            b = bin_of(t - sums[CENTRE], sums[SCALE])
            counts[b] += 1
            totals[b] += t
        sums[LABELS] += 1.0
        d = t - sums[MEAN]
        sums[MEAN] += d / sums[LABELS]
        sums[SPREAD] += d * (t - sums[MEAN])


@njit(cache=True)
def ordered_pairs(positives: ndarray, negatives: ndarray) -> float:
    """Pairs of a positive and a negative of which the positive lies in a higher bin; those in the same bin count half.

    positives, negatives  int64 (bins,)  labels of each kind whose prediction fell into a bin
    """
    ordered = below = 0.0  # np.dot would wake the threads of a BLAS, and the stream would wait for them
    for b in range(positives.shape[0]):
        ordered += positives[b] * (below + 0.5 * negatives[b])
        below += negatives[b]
    return ordered


class Metrics:
    """Progressive metrics of a binary or a regression task.

    binary      log_loss (probabilities held within [2**-24, 1 - 2**-24]) beside that of the best constant in
                hindsight; auc (in 16,384 bins of the logit, a tie counts half); accuracy beside that of the majority
                and of saying what the label before was (over all labels but the first)
    regression  mae beside that of the median of all labels (from a sketch of 2 % bins around the median of the first
                1,024 labels, within 0.5 % for labels that do not wander far from there); rmse beside that of their mean
    recent_...  the loss of about the last 10,000 labels, for progress lines

    A label whose prediction is not finite is not counted. Raises DeclarationError for other tasks.
    """

    def __init__(self, task: str) -> None:
        if task not in ("binary", "regression"):
            raise DeclarationError(f"Metrics: expected the task 'binary' or 'regression', got {task!r}")
        self.task = task

    def __repr__(self) -> str:
        return f"Metrics({self.task!r})"

    def layout(self) -> dict[str, Array]:
        """The arrays, as a model's layout says them."""
        sums = {"sums": Array((9,), "float64")}
        if self.task == "binary":
            return sums | {name: Array((LOGIT_BINS,), "int64", merge="sum") for name in ("positives", "negatives")}
        return sums | {
            "first": Array((FIRST,), "float64"),
            "counts": Array((2 * SIDE + 1,), "int64"),
            "totals": Array((2 * SIDE + 1,), "float64"),
        }

    def bind(self, state: Mapping[str, ndarray]) -> None:
        """Work in place on arrays as `layout()` says."""
        self._sums = state["sums"]
        self._arrays = tuple(state[name] for name in self.layout())

    def update(self, y: ndarray, p: ndarray) -> None:
        """Count labels and the predictions made for them, float32 (B,) or (B, 1), in order of the labels.

        The result does not depend on where the stream is cut.
        """
        labels, predictions = np.array(y, np.float32).ravel(), np.array(p, np.float32).ravel()
        if len(labels) != len(predictions):
            raise ValueError(f"metrics: {len(labels)} labels and {len(predictions)} predictions")
        (update_binary if self.task == "binary" else update_regression)(labels, predictions, *self._arrays)

    def warm_up(self) -> None:
        """Compile (or load from Numba's cache) what `update` calls; bound arrays are left alone."""
        twin = Metrics(self.task)
        twin.bind({name: np.zeros(array.shape, array.dtype) for name, array in self.layout().items()})
        twin.update(np.zeros(1), np.zeros(1))

    def results(self) -> dict[str, float | int | None]:
        """All metrics by name; None where no label has told yet."""
        return self._binary() if self.task == "binary" else self._regression()

    def _binary(self) -> dict[str, float | int | None]:
        _, positives, negatives = self._arrays
        sums, n = self._sums, self._sums[LABELS]
        rate = _ratio(sums[TRUE], n)
        ordered = ordered_pairs(positives, negatives)
        return {
            "labels": int(n),
            "log_loss": _ratio(sums[LOSS], n),
            "log_loss_constant": None if rate is None else _entropy(rate),
            "auc": _ratio(ordered, float(positives.sum()) * float(negatives.sum())),
            "accuracy": _ratio(sums[CORRECT], n),
            "accuracy_majority": None if rate is None else max(rate, 1.0 - rate),
            "accuracy_no_change": _ratio(sums[SAME], n - 1.0),
            "recent_log_loss": float(sums[RECENT_LOSS]) if n else None,
        }

    def _regression(self) -> dict[str, float | int | None]:
        sums, n = self._sums, self._sums[LABELS]
        mean_square, variance = _ratio(sums[SQUARES], n), _ratio(sums[SPREAD], n)
        return {
            "labels": int(n),
            "mae": _ratio(sums[LOSS], n),
            "mae_constant": self._mae_constant(),
            "rmse": None if mean_square is None else math.sqrt(mean_square),
            "rmse_constant": None if variance is None else math.sqrt(variance),
            "recent_mae": float(sums[RECENT_LOSS]) if n else None,
        }

    def _mae_constant(self) -> float | None:
        """Mean distance of the labels from their median."""
        _, first, counts, totals = self._arrays
        n = int(self._sums[LABELS])
        if n <= FIRST:
            return float(np.abs(first[:n] - np.median(first[:n])).mean()) if n else None
        middle = int(np.searchsorted(np.cumsum(counts), n / 2))
        median = totals[middle] / counts[middle]
        return float(np.abs(totals - median * counts).sum() / n)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _entropy(rate: float) -> float:
    return -sum(q * math.log(q) for q in (rate, 1.0 - rate) if q > 0.0)
