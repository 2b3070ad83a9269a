"""How learners are mixed and their weights found, in Numba: what follows is one example after another. No fastmath.

Scores are what is added up, each times the weight of its learner: values themselves; log-odds of P; logarithms of P of
several classes less their mean. P is held off 0 and 1 first.

Letters: L learners, B rows, O outputs, M memories.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from ..jit import njit

VALUES, BINARY, CLASSES = range(3)

SURE = 1e-3  # P below this, or above 1 less this, counts as this; of more than two classes less, so that they add up
LEAST = 1e-6  # of P in a log loss: one example that was thought impossible does not silence a memory for good
PRIOR_OF_VALUES, PRIOR_OF_CLASSES = 1.0, 10.0  # how firmly weights are held to the plain mean
COMPARED = 10_000.0  # examples over which the memories are compared
SINGULAR = 1e-12  # pivots below this share of their diagonal are rounding


@njit(cache=True, nogil=True, error_model="numpy")
def score(said: ndarray, kind: int, out: ndarray) -> None:
    """Write the scores of predictions, float32 (L, B, O), to out, float64 (L, B, O)."""
    outputs = said.shape[2]
    least = SURE if kind == BINARY else 2.0 * SURE / outputs
    for i in range(said.shape[0]):
        for row in range(said.shape[1]):
            if kind == VALUES:
                for o in range(outputs):
                    out[i, row, o] = np.float64(said[i, row, o])
                continue
            mean = 0.0
            for o in range(outputs):
                p = min(max(np.float64(said[i, row, o]), least), 1.0 - least)
                out[i, row, o] = math.log(p / (1.0 - p)) if kind == BINARY else math.log(p)
                mean += out[i, row, o] / outputs
            if kind == CLASSES:
                out[i, row] -= mean


@njit(cache=True, nogil=True, error_model="numpy")
def predict_of(raw: ndarray, kind: int, out: ndarray) -> None:
    """Write what raw scores (O,) predict to out (O,)."""
    if kind == VALUES:
        out[:] = raw
        return
    if kind == BINARY:
        out[0] = 1.0 / (1.0 + math.exp(-raw[0]))
        return
    most, total = raw.max(), 0.0
    for o in range(raw.shape[0]):
        out[o] = math.exp(raw[o] - most)
        total += out[o]
    out /= total


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(weights: ndarray, trust: ndarray, out: ndarray) -> None:
    """Write the weights of the learners to out (L,): the mean of those of each memory (M, L), by their trust (M,)."""
    most, total = trust.max(), 0.0
    out[:] = 0.0
    for m in range(weights.shape[0]):
        share = math.exp(trust[m] - most)
        total += share
        for i in range(out.shape[0]):
            out[i] += share * weights[m, i]
    for i in range(out.shape[0]):
        out[i] /= total


@njit(cache=True, nogil=True, error_model="numpy")
def mix(scores: ndarray, row: int, weights: ndarray, raw: ndarray) -> None:
    """Write the sum of the scores (L, B, O) of a row, each times its weight (L,), to raw (O,)."""
    for o in range(raw.shape[0]):
        raw[o] = 0.0
        for i in range(weights.shape[0]):
            raw[o] += weights[i] * scores[i, row, o]


@njit(cache=True, nogil=True, error_model="numpy")
def blend(scores: ndarray, weights: ndarray, trust: ndarray, kind: int, out: ndarray, alone: ndarray) -> None:
    """Write what is predicted of rows of these scores, float64 (L, B, O), to out, float (B, O); all else as it is.

    weights  float64 (M, L), trust float64 (M,)
    alone    float32 (M, B, O)  what it would be by each memory alone; (0, B, O) where nobody asks
    """
    used, raw, said = np.empty(weights.shape[1]), np.empty(out.shape[1]), np.empty(out.shape[1])
    weigh(weights, trust, used)
    for row in range(out.shape[0]):
        mix(scores, row, used, raw)
        predict_of(raw, kind, said)
        out[row] = said
    for m in range(alone.shape[0]):
        for row in range(out.shape[0]):
            mix(scores, row, weights[m], raw)
            predict_of(raw, kind, said)
            alone[m, row] = said


@njit(cache=True, nogil=True, error_model="numpy")
def step(curvature: ndarray, prior: float, slope: ndarray, room: ndarray, weights: ndarray) -> None:
    """Add (curvature + prior I)^-1 slope to the weights (L,). curvature (L, L): its lower half; room (L, L): scratch.

    By a factoring without roots: all in another unit gives the same bits, where that unit is a power of two.
    """
    L = weights.shape[0]
    for j in range(L):
        pivot = curvature[j, j] + prior
        least = SINGULAR * pivot
        for k in range(j):
            pivot -= room[j, k] * room[j, k] * room[k, k]
        room[j, j] = max(pivot, least)
        for i in range(j + 1, L):
            rest = curvature[i, j]
            for k in range(j):
                rest -= room[i, k] * room[j, k] * room[k, k]
            room[i, j] = rest / room[j, j]
    for j in range(L):
        for k in range(j):
            slope[j] -= room[j, k] * slope[k]
    for j in range(L - 1, -1, -1):
        slope[j] /= room[j, j]
        for k in range(j + 1, L):
            slope[j] -= room[k, j] * slope[k]
    for j in range(L):
        weights[j] += slope[j]


@njit(cache=True, nogil=True, error_model="numpy")
def is_usable(scores: ndarray, row: int, y: float, weight: float, kind: int) -> bool:
    """Whether a row judges: a label that is known and can be, a weight above 0, predictions that are finite."""
    if y - y != 0.0 or not (weight > 0.0 and weight - weight == 0.0):
        return False
    if kind == CLASSES and (y < 0.0 or y >= scores.shape[2] or y != math.floor(y)):
        return False
    for i in range(scores.shape[0]):
        for o in range(scores.shape[2]):
            if not abs(scores[i, row, o]) <= 3.5e38:
                return False
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def learn_class(
    scores: ndarray, row: int, y: float, weight: float, kind: int, fades: float, weights: ndarray, curvature: ndarray,
    raw: ndarray, said: ndarray, slope: ndarray, room: ndarray,
) -> None:  # fmt: skip
    """One memory (its weights (L,), its curvature (L, L)) learns a class. raw, said (O,), slope, room: scratch."""
    L, outputs = scores.shape[0], scores.shape[2]
    mix(scores, row, weights, raw)
    predict_of(raw, kind, said)
    if kind == BINARY:
        true = y >= 0.5
        wrong = 1.0 - said[0] if true else said[0]
        p = said[0] * (1.0 - 0.5 * wrong) + (0.5 * wrong if true else 0.0)
        pull, bend = (wrong if true else -wrong), p * (1.0 - p)
        for i in range(L):
            slope[i] = weight * pull * scores[i, row, 0]
            for j in range(i + 1):
                curvature[i, j] = fades * curvature[i, j] + weight * bend * scores[i, row, 0] * scores[j, row, 0]
    else:
        of = int(y)
        half = 0.5 * (1.0 - said[of])
        for i in range(L):
            mean = 0.0
            for o in range(outputs):
                mean += said[o] * scores[i, row, o]
            slope[i] = weight * (scores[i, row, of] - mean)
        said *= 1.0 - half
        said[of] += half
        for i in range(L):  # room[i, i]: the mean of the scores of a learner
            room[i, i] = 0.0
            for o in range(outputs):
                room[i, i] += said[o] * scores[i, row, o]
        for i in range(L):
            for j in range(i + 1):
                bend = 0.0
                for o in range(outputs):
                    bend += said[o] * (scores[i, row, o] - room[i, i]) * (scores[j, row, o] - room[j, j])
                curvature[i, j] = fades * curvature[i, j] + weight * bend
    for i in range(L):
        slope[i] += (1.0 - fades) * PRIOR_OF_CLASSES * (1.0 / L - weights[i])
    step(curvature, PRIOR_OF_CLASSES, slope, room, weights)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_value(
    scores: ndarray, row: int, y: float, weight: float, fades: float, weights: ndarray, curvature: ndarray,
    error: ndarray, slope: ndarray, room: ndarray,
) -> None:  # fmt: skip
    """One memory learns a value; error (2,): its mean absolute error, and of how many examples.

    Weights go on to add up to 1: what is learned from are differences from the mean of the learners, which add up to 0.
    """
    L = scores.shape[0]
    middle = 0.0
    for i in range(L):
        middle += scores[i, row, 0] / L
    off = y - middle
    for i in range(L):
        off -= weights[i] * (scores[i, row, 0] - middle)
    error[1] = fades * error[1] + weight
    error[0] += weight / error[1] * (abs(off) - error[0])
    for i in range(L):
        for j in range(i + 1):
            curvature[i, j] *= fades
    if not error[0] > 0.0:  # there was nothing to learn from yet
        return
    near = weight / max(abs(off), error[0])
    prior = PRIOR_OF_VALUES * error[0]
    for i in range(L):
        from_middle = scores[i, row, 0] - middle
        slope[i] = near * off * from_middle + (1.0 - fades) * prior * (1.0 / L - weights[i])
        for j in range(i + 1):
            curvature[i, j] += near * from_middle * (scores[j, row, 0] - middle)
    step(curvature, prior, slope, room, weights)


@njit(cache=True, nogil=True, error_model="numpy")
def loss_of(said: ndarray, y: float, kind: int) -> float:
    """Log loss of P (O,), or the absolute error of a value (1,)."""
    if kind == VALUES:
        return abs(said[0] - y)
    if kind == BINARY:
        p = said[0] if y >= 0.5 else 1.0 - said[0]
    else:
        p = said[int(y)]
    return -math.log(min(max(p, LEAST), 1.0))


@njit(cache=True, nogil=True, error_model="numpy")
def blend_then_learn(
    scores: ndarray, alone: ndarray, y: ndarray, weight: ndarray, kind: int, fades: ndarray,
    weights: ndarray, curvature: ndarray, error: ndarray, trust: ndarray, weighed: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: write the blend to out[i], then learn from the label what the weights should have been.

    scores     float64 (L, B, O)  of what each learner said of the row when it was predicted
    alone      float32 (M, B, O)  what would have been predicted then by each memory alone; (M, 0, O), or NaN, where
                                  that is not known: then what it would be now
    y, weight  float32 (B, 1), (B,)  a row whose label is not known, or whose weight is not above 0, teaches nothing
    fades      float64 (M,)       what examples still count once there is another one
    weights    float64 (M, L)     of each memory                                   changed in place
    curvature  float64 (M, L, L)  lower half of what its examples bent the loss    changed in place
    error      float64 (M, 2)     of values: mean absolute error, examples         changed in place
    trust      float64 (M,)       log of what each memory counts                   changed in place
    weighed    float64 (L, B)     the weights of each row; (L, 0) where nobody asks   changed in place
    out        float (B, O); (0, O) where nothing is to be predicted

    Result does not depend on where the stream is cut.
    """
    L, M, outputs = scores.shape[0], weights.shape[0], scores.shape[2]
    used, slope, room = np.empty(L), np.empty(L), np.empty((L, L))
    raw, said, lost = np.empty(outputs), np.empty(outputs), np.empty(M)
    for row in range(y.shape[0]):
        if out.shape[0] > 0:
            weigh(weights, trust, used)
            mix(scores, row, used, raw)
            predict_of(raw, kind, said)
            out[row] = said
            for i in range(L if weighed.shape[1] > 0 else 0):
                weighed[i, row] = used[i]
        label, w = np.float64(y[row, 0]), np.float64(weight[row])
        if not is_usable(scores, row, label, w, kind):
            continue
        for m in range(M):
            if alone.shape[1] > 0 and alone[m, row, 0] == alone[m, row, 0]:
                for o in range(outputs):
                    said[o] = np.float64(alone[m, row, o])
            else:
                mix(scores, row, weights[m], raw)
                predict_of(raw, kind, said)
                for o in range(outputs):
                    said[o] = np.float64(np.float32(said[o]))  # as it would have waited
            lost[m] = loss_of(said, label, kind)
            if kind == VALUES:
                learn_value(scores, row, label, w, fades[m], weights[m], curvature[m], error[m], slope, room)
            else:
                learn_class(scores, row, label, w, kind, fades[m], weights[m], curvature[m], raw, said, slope, room)
        unit = error[0, 0] if kind == VALUES else 1.0
        if M > 1 and unit > 0.0:
            for m in range(M):
                trust[m] = (1.0 - 1.0 / COMPARED) * trust[m] - w * lost[m] / unit
            trust -= trust.max()


@njit(cache=True, nogil=True, error_model="numpy")
def score_of(raw: ndarray, linked: bool, kind: int, said: ndarray, scores: ndarray) -> None:
    """Write the score of raw (O,) to scores (1, 1, O); linked: raw is to be turned into P first. said: scratch."""
    if linked:
        predict_of(raw, kind, scores[0, 0])
        said[0, 0] = scores[0, 0]
    else:
        said[0, 0] = raw
    score(said, kind, scores)


@njit(cache=True, nogil=True, error_model="numpy")
def add_scores(contributions: ndarray, linked: bool, kind: int, weights: ndarray, out: ndarray) -> None:
    """Add to out, times the weight of the row, what each feature changes of the scores of a learner of classes.

    contributions  float32 (B, O, F + 1)  to its raw scores; last is the base
    linked         whether P is the logistic function, or the softmax, of these; else they are P
    weights        float64 (B,)
    out            float64 (B, O, F + 1)  last is the score of the base; changed in place

    Each feature gets what it changes when the features are heard one after another, on average over the order in which
    they are declared and the reverse, as in `average_kernels.add_changes`. So a row of out adds up to the score.
    """
    outputs, F = contributions.shape[1], contributions.shape[2] - 1
    said, scores = np.empty((1, 1, outputs), np.float32), np.empty((1, 1, outputs))
    raw, before = np.empty(outputs), np.empty(outputs)
    for i in range(contributions.shape[0]):
        for way in range(2):
            raw[:] = contributions[i, :, F]
            score_of(raw, linked, kind, said, scores)
            before[:] = scores[0, 0]
            if way == 0:
                out[i, :, F] += weights[i] * before
            for at in range(F):
                f = at if way == 0 else F - 1 - at
                raw += contributions[i, :, f]
                score_of(raw, linked, kind, said, scores)
                out[i, :, f] += weights[i] * (0.5 * (scores[0, 0] - before))
                before[:] = scores[0, 0]
