"""Progressive metrics: how good the predictions were that were made before their labels came, each beside its baseline.

State is arrays that the engine owns, as for models, so metrics are saved in snapshots and go on after a restart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from ..errors import DeclarationError
from ..jit import njit
from .base import Array
from .measures import LABELS as MEASURED
from .measures import OWN, Measure

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
# of the baselines of a regression; a state of before has none of these. A new place goes to the end
KNOWN, BEFORE, MEAN_LOSS, MEAN_SQUARES, CHANGE_LOSS, CHANGE_SQUARES = range(9, 15)
SUMS = {"binary": 9, "multiclass": 9, "regression": 15}


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
def update_multiclass(y: ndarray, p: ndarray, sums: ndarray, counts: ndarray) -> None:
    """Count B predictions in order.

    y     float32 (B,)     class index; a row whose label is NaN or no index of a class is skipped
    p     float32 (B, C)   P of each class; a row in which one is not finite is skipped
    sums  float64 (9,); counts int64 (C,)  labels of each class  changed in place

    Each P is taken relative to their sum, one below 0 as 0; where all are 0, as 1 / C.
    """
    C = counts.shape[0]
    for i in range(y.shape[0]):
        t = np.float64(y[i])
        if not (t >= 0.0 and t < C and t == math.floor(t)):
            continue
        label, best, whole, finite = np.intp(t), 0, 0.0, True
        for c in range(C):
            one = np.float64(p[i, c])
            finite = finite and one - one == 0.0
            whole += max(one, 0.0)
            if p[i, c] > p[i, best]:
                best = c
        if not finite:
            continue
        q = max(np.float64(p[i, label]), 0.0) / whole if whole > 0.0 else 1.0 / C
        loss = -math.log(min(max(q, NEVER), 1.0 - NEVER))
        sums[LOSS] += loss
        sums[RECENT_LOSS] += (loss - sums[RECENT_LOSS]) / min(sums[LABELS] + 1.0, RECENT)
        if best == label:
            sums[CORRECT] += 1.0
        if sums[LABELS] > 0.0 and sums[PREVIOUS] == t:
            sums[SAME] += 1.0
        sums[PREVIOUS] = t
        sums[LABELS] += 1.0
        counts[label] += 1


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
    sums  float64 (15,)  changed in place
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
        if n > 0:  # before the first label no baseline could have said anything
            change = t - sums[BEFORE]
            sums[MEAN_LOSS] += abs(d)
            sums[MEAN_SQUARES] += d * d
            sums[CHANGE_LOSS] += abs(change)
            sums[CHANGE_SQUARES] += change * change
        sums[BEFORE] = t
        sums[KNOWN] += 1.0
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
    """Progressive metrics of a task, each beside its baselines: known in hindsight, or sayable before each label.

    binary      log_loss (probabilities held within [2**-24, 1 - 2**-24]) beside log_loss_constant, that of the best
                constant in hindsight, and log_loss_prior, that of the running frequencies with half a label of each
                class before the first (Krichevsky and Trofimov); auc (in 16,384 bins of the logit, a tie counts half);
                accuracy beside accuracy_majority, that of the most frequent class in hindsight, and
                accuracy_no_change, that of saying what the label before was
    multiclass  the same but auc. The probabilities of a row are divided by their sum before they are held within these
                bounds; one below 0 is taken as 0, and where all are 0 each is 1 / C: a stream is not stopped for it
                What is said is the class with the greatest, of equals the first
    regression  mae and rmse beside ..._constant, that of the median of all labels (from a sketch of 2 % bins around the
                median of the first 1,024 labels, within 0.5 % for labels that do not wander far from there) and that of
                their mean; ..._running_mean, that of the mean of the labels before; and ..._no_change, that of the
                label before
    recent_...  the loss of about the last 10,000 labels, for progress lines

    With a measure a regression has that loss as well, by its name, beside ..._constant (that quantile of all labels, as
    exact as the median; or their mean), ..._running_mean and ..._no_change. Where its state began later than the rest,
    as with another quantile, it is over the labels since, and the constant of a quantile is None.

    The baselines ..._no_change and ..._running_mean are over all labels but the first. Those of a regression are None
    for good in a state that an earlier version has begun without them.

    A label whose prediction is not finite is not counted.

    outputs  the classes of a multiclass task; else 1
    measure  a loss of its own by which a regression is judged, or None

    Raises DeclarationError for other tasks, and for outputs or a measure that do not fit.
    """

    def __init__(self, task: str, outputs: int = 1, measure: Measure | None = None) -> None:
        if task not in SUMS:
            raise DeclarationError(f"Metrics: expected the task 'binary', 'multiclass' or 'regression', got {task!r}")
        if (outputs < 2) if task == "multiclass" else (outputs != 1):
            expected = "2 or more classes" if task == "multiclass" else "1 output"
            raise DeclarationError(f"Metrics: a {task} task has {expected}, got outputs={outputs}")
        if measure is not None and task != "regression":
            raise DeclarationError(f"Metrics: {measure} is for a regression, got the task {task!r}; leave it away")
        self.task, self.outputs, self.measure = task, outputs, measure

    def __repr__(self) -> str:
        return f"Metrics({self.task!r}{f', {self.outputs}' if self.task == 'multiclass' else ''})"

    def layout(self) -> dict[str, Array]:
        """The arrays, as a model's layout says them. A state of before may hold fewer `sums`."""
        own = {} if self.measure is None else {self.measure.array: Array((OWN,), "float64", late=True)}
        return self._of_task() | own

    def _of_task(self) -> dict[str, Array]:
        sums = {"sums": Array((SUMS[self.task],), "float64")}
        if self.task == "binary":
            return sums | {name: Array((LOGIT_BINS,), "int64", merge="sum") for name in ("positives", "negatives")}
        if self.task == "multiclass":
            return sums | {"counts": Array((self.outputs,), "int64", axis="outputs", merge="sum")}
        return sums | {
            "first": Array((FIRST,), "float64"),
            "counts": Array((2 * SIDE + 1,), "int64"),
            "totals": Array((2 * SIDE + 1,), "float64"),
        }

    def bind(self, state: Mapping[str, ndarray]) -> None:
        """Work in place on arrays as `layout()` says."""
        self._sums = state["sums"]
        self._arrays = tuple(state[name] for name in self._of_task())
        self._own = np.empty(0) if self.measure is None else state[self.measure.array]

    def update(self, y: ndarray, p: ndarray) -> None:
        """Count labels and the predictions made for them, in order of the labels.

        y  float32 (B,) or (B, 1)
        p  float32 (B, O); (B,) where O is 1

        The result does not depend on where the stream is cut.
        """
        labels, predictions = np.array(y, np.float32).ravel(), np.array(p, np.float32, order="C")
        if self.outputs == 1:
            predictions = predictions.ravel()
        if len(labels) != len(predictions):
            raise ValueError(f"metrics: {len(labels)} labels and {len(predictions)} predictions")
        if self.outputs > 1 and predictions.shape[1:] != (self.outputs,):
            raise ValueError(f"metrics: expected a P for each of {self.outputs} classes, got {predictions.shape}")
        update: Any = {"binary": update_binary, "multiclass": update_multiclass, "regression": update_regression}
        update[self.task](labels, predictions, *self._arrays)
        if self.measure is not None:
            self.measure.update(labels, predictions, self._own)

    def warm_up(self) -> None:
        """Compile (or load from Numba's cache) what `update` calls; bound arrays are left alone."""
        twin = Metrics(self.task, self.outputs, self.measure)
        twin.bind({name: np.zeros(array.shape, array.dtype) for name, array in self.layout().items()})
        twin.update(np.zeros(1), np.zeros((1, self.outputs)))

    def results(self) -> dict[str, float | int | None]:
        """All metrics by name; None where no label has told yet."""
        return self._regression() if self.task == "regression" else self._classes()

    def _classes(self) -> dict[str, float | int | None]:
        sums, n = self._sums, self._sums[LABELS]
        area: dict[str, float | None] = {}
        if self.task == "binary":
            _, positives, negatives = self._arrays
            counts = [float(negatives.sum()), float(positives.sum())]
            rate = _ratio(sums[TRUE], n) or 0.0
            rates = [1.0 - rate, rate]
            area = {"auc": _ratio(ordered_pairs(positives, negatives), counts[0] * counts[1])}
        else:
            counts = self._arrays[1].astype(np.float64).tolist()
            rates = [count / max(n, 1.0) for count in counts]
        return {
            "labels": int(n),
            "log_loss": _ratio(sums[LOSS], n),
            "log_loss_constant": _entropy(rates) if n else None,
            "log_loss_prior": _prior_loss(counts) if n else None,
            **area,
            "accuracy": _ratio(sums[CORRECT], n),
            "accuracy_majority": max(rates) if n else None,
            "accuracy_no_change": _ratio(sums[SAME], n - 1.0),
            "recent_log_loss": float(sums[RECENT_LOSS]) if n else None,
        }

    def _regression(self) -> dict[str, float | int | None]:
        sums, n = self._sums, self._sums[LABELS]
        later = n - 1.0 if sums[KNOWN] == n else 0.0  # labels that the baselines were told, and could foretell
        own: dict[str, float | None] = {}
        if self.measure is not None:
            whole = self.measure.name == "pinball" and self._own[MEASURED] == n
            own = self.measure.results(self._own, self._pinball_constant(self.measure.quantile) if whole else None)
        return {
            "labels": int(n),
            "mae": _ratio(sums[LOSS], n),
            "mae_constant": self._mae_constant(),
            "mae_running_mean": _ratio(sums[MEAN_LOSS], later),
            "mae_no_change": _ratio(sums[CHANGE_LOSS], later),
            "rmse": _root(sums[SQUARES], n),
            "rmse_constant": _root(sums[SPREAD], n),
            "rmse_running_mean": _root(sums[MEAN_SQUARES], later),
            "rmse_no_change": _root(sums[CHANGE_SQUARES], later),
            "recent_mae": float(sums[RECENT_LOSS]) if n else None,
            **own,
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

    def _pinball_constant(self, quantile: float) -> float | None:
        """Mean pinball loss of the quantile of the labels; they are taken as all alike within a bin."""
        _, first, counts, totals = self._arrays
        n = int(self._sums[LABELS])
        if not n:
            return None
        if n <= FIRST:
            above = first[:n] - np.quantile(first[:n], quantile, method="inverted_cdf")
        else:
            at = int(np.searchsorted(np.cumsum(counts), n * quantile))
            above = totals - totals[at] / counts[at] * counts
        return float(np.maximum(quantile * above, (quantile - 1.0) * above).sum() / n)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _root(squares: float, whole: float) -> float | None:
    return math.sqrt(squares / whole) if whole > 0 else None


def _entropy(rates: Sequence[float]) -> float:
    return -sum(q * math.log(q) for q in rates if q > 0.0)


def _prior_loss(counts: Sequence[float]) -> float:
    """Mean log loss of P = (labels of the class so far + 1/2) / (labels so far + C/2), said before each label.

    The product of these P is a quotient of gamma functions: it depends on the counts alone, not on the order.
    Source: Krichevsky and Trofimov (1981), The performance of universal encoding.
    """
    n, C = sum(counts), len(counts)
    some = sum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in counts)
    return (math.lgamma(n + C / 2) - math.lgamma(C / 2) - some) / n
