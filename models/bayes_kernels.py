"""The arithmetic of naive Bayes in Numba: predict, learn row by row, forget.

No fastmath: NaN means missing, and results are the same bits whatever the cuts. All arithmetic and state is float64.

Letters: B rows, N numeric columns, K categories, C classes, R = 2**bits slots of the table. What depends on the state
alone (logarithms, heights of bells) is made once a call and kept up to date row by row, in scratch: of a learned row
only the numbers of its class change.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from ..jit import njit
from .label_kernels import class_of
from .prefetch import AHEAD
from .slot_kernels import look_ahead, slot_of

Arrays = tuple[ndarray, ...]

LARGEST = 1e100  # numbers are held within these, so that a square of one is finite
LEAST_DENSITY = 1e-9  # added to each density, as River does: a value far off, or of a column not seen, costs log(1e-9)
LEAST_VARIANCE = 1e-300  # a column that varies less is constant: it has no density
ROUNDING = 1e-9  # a count of which no more than this part is left has been taken back: the rest is rounding
TAU = 2.0 * math.pi
LARGEST_RAW = 1e30  # contributions to raw scores are held within these
SMALL, LARGE = 1e-140, 1e140  # a product between these can be multiplied once more without leaving float64


@njit(cache=True, nogil=True, error_model="numpy")
def added(count: float, weight: float) -> float:
    """count + weight, never below zero, and zero where only rounding would be left."""
    total = count + weight
    return total if total > ROUNDING * count else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def log_count(count: float) -> float:
    """Logarithm of a class's count: its prior, less what is the same for all classes; 0 where it has none."""
    return math.log(count) if count > 0.0 else 0.0


# A likelihood is exp(scores[c]) * products[c]: one logarithm for many factors, each of which lies between 1e-150 and
# 1e150. The arrays are not handed to a helper for it: counting their references would take longer than the arithmetic.
@njit(cache=True, nogil=True, error_model="numpy")
def is_full(product: float) -> bool:
    """Whether the logarithm of a product must be taken before it is multiplied again."""
    return product < SMALL or product > LARGE


@njit(cache=True, nogil=True, error_model="numpy")
def write_probabilities(i: int, class_count: ndarray, scores: ndarray, binary: bool, out: ndarray) -> None:
    """Write the softmax of scores (C,), which is overwritten, to out[i]: P of each class, in a binary task P(true).

    A class without a count has probability 0; where none has one, all are alike.
    """
    C = class_count.shape[0]
    best = -math.inf
    for c in range(C):
        if class_count[c] > 0.0:
            best = max(best, scores[c])
    total = 0.0
    for c in range(C):
        if best == -math.inf:
            scores[c] = 1.0
        else:
            scores[c] = math.exp(scores[c] - best) if class_count[c] > 0.0 else 0.0
        total += scores[c]
    if binary:
        out[i, 0] = scores[1] / total
    else:
        for c in range(C):
            out[i, c] = scores[c] / total


@njit(cache=True, nogil=True, error_model="numpy")
def write_contributions(i: int, class_count: ndarray, terms: ndarray, binary: bool, out: ndarray) -> None:
    """Write what each feature adds to the raw scores to out[i], (1, F) in a binary task, else (C, F).

    terms   float64 (F, C)  logarithms that add up to a class's prior times likelihood; the last is the prior's

    Binary: the log-odds of the second class. Otherwise each term less its mean over the classes that were seen, for
    what is the same for all does not tell them apart. A class without a count has a base of -1e30, and nothing else.
    """
    F, C = terms.shape
    seen = 0
    for c in range(C):
        seen += class_count[c] > 0.0
    for c in range(out.shape[1]):
        of = 1 if binary else c
        for f in range(F):
            part = 0.0
            if binary and seen == 2:
                part = terms[f, 1] - terms[f, 0]
            elif not binary and class_count[c] > 0.0:
                mean = 0.0
                for other in range(C):
                    if class_count[other] > 0.0:
                        mean += terms[f, other]
                part = terms[f, c] - mean / seen
            out[i, c, f] = min(max(part, -LARGEST_RAW), LARGEST_RAW)
        if seen > 0 and class_count[of] == 0.0:
            out[i, c, F - 1] = -LARGEST_RAW
        elif binary and seen == 1:
            out[i, c, F - 1] = LARGEST_RAW


@njit(cache=True, nogil=True, error_model="numpy")
def forget_table(factor: float, table: ndarray, seen: ndarray, touched: ndarray) -> None:
    """Scale the counts of table (R, C) by factor, in place; only slots that were ever written (`seen`) are visited."""
    for r in range(table.shape[0]):
        if seen[r] != 0:
            for c in range(table.shape[1]):
                table[r, c] *= factor
            touched[r >> 6] = 1


# --- Gaussian: numbers by their mean and variance in each class, categories by their frequency in it
#
# moments: count, mean, variance      float64 (N, C)       of what was seen of a column in a class; population variance
# values:  table                      float64 (R, C)       how often a value (of any column) was seen in a class
#          seen, touched              uint8 (R,), (R / 64,)  slots written, ever and since the engine asked
#          value_count                float64 (K, C)       values seen of a column in a class
#          distinct                   float64 (K,)         slots that a value of the column was first to write
# scratch: bells float64 (N, C, 2), prior, scores, products float64 (C,)


@njit(cache=True, nogil=True, error_model="numpy")
def draw_bell(bells: ndarray, j: int, c: int, moments: Arrays) -> None:
    """Set what the density of column j in class c is made of: -1 / (2 variance), and its height; 0: has none."""
    count, _, variance = moments
    v = variance[j, c]
    if count[j, c] > 0.0 and v > LEAST_VARIANCE:
        bells[j, c, 0] = -0.5 / v
        bells[j, c, 1] = 1.0 / math.sqrt(TAU * v)
    else:
        bells[j, c, 0] = 0.0
        bells[j, c, 1] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def draw_all(class_count: ndarray, moments: Arrays, scratch: Arrays) -> None:
    """Set bells and prior from the state."""
    bells, prior, _, _ = scratch
    for c in range(class_count.shape[0]):
        prior[c] = log_count(class_count[c])
    for j in range(bells.shape[0]):
        for c in range(bells.shape[1]):
            draw_bell(bells, j, c, moments)


@njit(cache=True, nogil=True, error_model="numpy")
def score_gaussian(
    i: int, numeric: ndarray, categories: ndarray, shift: np.uint64, alpha: float,
    moments: Arrays, values: Arrays, scratch: Arrays,
) -> None:  # fmt: skip
    """Set scores to the log of prior times likelihood of row i, but for a constant that all classes share."""
    _, mean, _ = moments
    table, _, _, value_count, distinct = values
    bells, prior, scores, products = scratch
    C = prior.shape[0]
    for c in range(C):
        scores[c] = prior[c]
        products[c] = 1.0
    for j in range(numeric.shape[1]):
        x: float = np.float64(numeric[i, j])
        if x - x == 0.0:
            x = min(max(x, -LARGEST), LARGEST)
            for c in range(C):
                d = x - mean[j, c]
                density = math.exp(d * d * bells[j, c, 0]) * bells[j, c, 1]
                product = products[c] * (LEAST_DENSITY + density)
                if is_full(product):
                    scores[c] += math.log(product)
                    product = 1.0
                products[c] = product
    for k in range(categories.shape[1]):
        if categories[i, k] != 0:
            r = slot_of(categories[i, k], shift)
            extra = alpha * (distinct[k] + 1.0)
            for c in range(C):
                product = products[c] * ((table[r, c] + alpha) / (value_count[k, c] + extra))
                if is_full(product):
                    scores[c] += math.log(product)
                    product = 1.0
                products[c] = product
    for c in range(C):
        scores[c] += math.log(products[c])


@njit(cache=True, nogil=True, error_model="numpy")
def fold_number(x: float, w: float, j: int, c: int, moments: Arrays) -> None:
    """Fold x with weight w, below zero to take it back, into the moments of column j in class c.

    Source: West (1979), Updating mean and variance estimates: an improved method.
    """
    count, mean, variance = moments
    before = count[j, c]
    after = added(before, w)
    count[j, c] = after
    if before == 0.0 or after == 0.0:
        mean[j, c] = x if after > 0.0 else 0.0
        variance[j, c] = 0.0
        return
    part = w / after
    d = x - mean[j, c]
    m = min(max(mean[j, c] + part * d, -LARGEST), LARGEST)
    v = variance[j, c] + part * (d * (x - m) - variance[j, c])
    mean[j, c] = m
    variance[j, c] = min(max(v, 0.0), LARGEST * LARGEST)


@njit(cache=True, nogil=True, error_model="numpy")
def fold_gaussian(
    i: int, numeric: ndarray, categories: ndarray, c: int, w: float, shift: np.uint64,
    class_count: ndarray, moments: Arrays, values: Arrays,
) -> None:  # fmt: skip
    """Learn row i as one of class c with weight w, not zero."""
    table, seen, touched, value_count, distinct = values
    class_count[c] = added(class_count[c], w)
    for j in range(numeric.shape[1]):
        x = np.float64(numeric[i, j])
        if x - x == 0.0:
            fold_number(min(max(x, -LARGEST), LARGEST), w, j, c, moments)
    for k in range(categories.shape[1]):
        if categories[i, k] != 0:
            r = slot_of(categories[i, k], shift)
            if w > 0.0 and seen[r] == 0:
                seen[r] = 1
                distinct[k] += 1.0
            taken = max(w, -table[r, c])
            table[r, c] = added(table[r, c], w)
            value_count[k, c] = added(value_count[k, c], taken)
            touched[r >> 6] = 1


@njit(cache=True, nogil=True, error_model="numpy")
def predict_gaussian(
    numeric: ndarray, categories: ndarray, binary: bool, shift: np.uint64, alpha: float,
    class_count: ndarray, moments: Arrays, values: Arrays, scratch: Arrays, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1 or C); but for scratch nothing else is changed.

    Arguments as in `progress_gaussian`.
    """
    draw_all(class_count, moments, scratch)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, values[0], shift)
        score_gaussian(i, numeric, categories, shift, alpha, moments, values, scratch)
        write_probabilities(i, class_count, scratch[2], binary, out)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_gaussian(
    numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, binary: bool, shift: np.uint64,
    class_count: ndarray, moments: Arrays, values: Arrays,
) -> None:  # fmt: skip
    """Learn B rows in order, without a prediction. Arguments as in `progress_gaussian`."""
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, values[0], shift)
        w = np.float64(weight[i])
        c = class_of(np.float64(y[i, 0]), class_count.shape[0], binary)
        if c >= 0 and w - w == 0.0 and w != 0.0:
            fold_gaussian(i, numeric, categories, c, w, shift, class_count, moments, values)


@njit(cache=True, nogil=True, error_model="numpy")
def progress_gaussian(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray,
    binary: bool, shift: np.uint64, alpha: float,
    class_count: ndarray, moments: Arrays, values: Arrays, scratch: Arrays, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing, adds nothing
    categories       uint64  (B, K)  0: missing, adds nothing
    y, weight        float32 (B, 1), (B,)  a row where either is not finite, or y is no class, is predicted and not
                                           learned; weight below zero takes the row back
    binary           whether C = 2 and out has one column, P(true)
    shift, alpha     uint64, 64 - bits; smoothing of categories
    class_count      float64 (C,)                                changed in place
    moments, values  tuples of arrays as told above              changed in place
    scratch          tuple of arrays as told above
    out              float (B, 1) or (B, C)

    Result does not depend on where the stream is cut.
    """
    bells, prior, scores, _ = scratch
    draw_all(class_count, moments, scratch)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, values[0], shift)
        score_gaussian(i, before, categories, shift, alpha, moments, values, scratch)
        write_probabilities(i, class_count, scores, binary, out)
        w = np.float64(weight[i])
        c = class_of(np.float64(y[i, 0]), class_count.shape[0], binary)
        if c >= 0 and w - w == 0.0 and w != 0.0:
            fold_gaussian(i, numeric, categories, c, w, shift, class_count, moments, values)
            prior[c] = log_count(class_count[c])
            for j in range(numeric.shape[1]):
                draw_bell(bells, j, c, moments)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_gaussian(
    numeric: ndarray, categories: ndarray, binary: bool, shift: np.uint64, alpha: float,
    class_count: ndarray, moments: Arrays, values: Arrays, scratch: Arrays, terms: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the raw scores of B rows to out (B, 1 or C, N + K + 1); but for scratch nothing
    else is changed.

    terms  float64 (N + K + 1, C)  scratch; other arguments as in `progress_gaussian`
    """
    _, mean, _ = moments
    table, _, _, value_count, distinct = values
    bells, prior, _, _ = scratch
    N, K, C = numeric.shape[1], categories.shape[1], prior.shape[0]
    draw_all(class_count, moments, scratch)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        terms[:] = 0.0
        terms[N + K] = prior
        for j in range(N):
            x: float = np.float64(numeric[i, j])
            if x - x == 0.0:
                x = min(max(x, -LARGEST), LARGEST)
                for c in range(C):
                    d = x - mean[j, c]
                    terms[j, c] = math.log(LEAST_DENSITY + math.exp(d * d * bells[j, c, 0]) * bells[j, c, 1])
        for k in range(K):
            if categories[i, k] != 0:
                r = slot_of(categories[i, k], shift)
                extra = alpha * (distinct[k] + 1.0)
                for c in range(C):
                    terms[N + k, c] = math.log((table[r, c] + alpha) / (value_count[k, c] + extra))
        write_contributions(i, class_count, terms, binary, out)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_then_learn_gaussian(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, told: Any, terms: ndarray,
    out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `progress_gaussian`.

    told   a tuple: what that takes between weight and out
    terms  as in `explain_gaussian`
    """
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_gaussian(before[row], categories[row], *told, terms, contributions[row])  # type: ignore[call-arg]
        rows = before[row], numeric[row], categories[row], y[row], weight[row]
        progress_gaussian(*rows, *told, out[row])  # type: ignore[call-arg]


# --- multinomial: each row is a bag of tokens; numeric columns count theirs, a category is a token that occurs once
#
# tokens:  column_count               float64 (N, C)       occurrences of a column's token in a class
#          known                      uint8 (N,)           columns of which a value was learned, 0 too
#          table                      float64 (R, C)       occurrences of a category in a class
#          seen, touched              uint8 (R,), (R / 64,)  slots written, ever and since the engine asked
#          distinct                   float64 (1,)         slots ever written
#          length                     float64 (C,)         occurrences of all tokens in a class
# scratch: logs float64 (N, C), spread, prior, scores, products float64 (C,)


@njit(cache=True, nogil=True, error_model="numpy")
def occurrences(number: float) -> float:
    """How often the token of a numeric column occurs: its value, 0 where that is missing or below zero."""
    x = np.float64(number)
    return min(max(x, 0.0), LARGEST) if x - x == 0.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def terms_of(tokens: Arrays) -> float:
    """The different tokens learned so far, at least 1."""
    _, known, _, _, _, distinct, _ = tokens
    terms = distinct[0]
    for j in range(known.shape[0]):
        terms += known[j]
    return max(terms, 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def take_logs(alpha: float, class_count: ndarray, tokens: Arrays, scratch: Arrays) -> None:
    """Set logs, spread and prior from the state."""
    column_count, _, _, _, _, _, length = tokens
    logs, spread, prior, _, _ = scratch
    terms = terms_of(tokens)
    for c in range(prior.shape[0]):
        prior[c] = log_count(class_count[c])
        spread[c] = math.log(length[c] + alpha * terms)
    for j in range(logs.shape[0]):
        for c in range(logs.shape[1]):
            logs[j, c] = math.log(column_count[j, c] + alpha)


@njit(cache=True, nogil=True, error_model="numpy")
def score_multinomial(
    i: int, numeric: ndarray, categories: ndarray, shift: np.uint64, alpha: float, tokens: Arrays, scratch: Arrays
) -> None:
    """Set scores to the log of prior times likelihood of row i, but for a constant that all classes share."""
    table = tokens[2]
    logs, spread, prior, scores, products = scratch
    C = prior.shape[0]
    for c in range(C):
        scores[c] = prior[c]
        products[c] = 1.0
    drawn = 0.0
    for j in range(numeric.shape[1]):
        x = occurrences(numeric[i, j])
        if x > 0.0:
            drawn += x
            for c in range(C):
                scores[c] += x * logs[j, c]
    for k in range(categories.shape[1]):
        if categories[i, k] != 0:
            drawn += 1.0
            r = slot_of(categories[i, k], shift)
            for c in range(C):
                product = products[c] * (table[r, c] + alpha)
                if is_full(product):
                    scores[c] += math.log(product)
                    product = 1.0
                products[c] = product
    for c in range(C):
        scores[c] += math.log(products[c]) - drawn * spread[c]


@njit(cache=True, nogil=True, error_model="numpy")
def fold_multinomial(
    i: int, numeric: ndarray, categories: ndarray, c: int, w: float, shift: np.uint64,
    class_count: ndarray, tokens: Arrays,
) -> bool:  # fmt: skip
    """Learn row i as one of class c with weight w, not zero; whether it had a token that was not known."""
    column_count, known, table, seen, touched, distinct, length = tokens
    fresh = False
    class_count[c] = added(class_count[c], w)
    for j in range(numeric.shape[1]):
        x = np.float64(numeric[i, j])
        if x - x == 0.0:
            if w > 0.0 and known[j] == 0:
                known[j] = 1
                fresh = True
            more = occurrences(x) * w
            length[c] = added(length[c], max(more, -column_count[j, c]))
            column_count[j, c] = added(column_count[j, c], more)
    for k in range(categories.shape[1]):
        if categories[i, k] != 0:
            r = slot_of(categories[i, k], shift)
            if w > 0.0 and seen[r] == 0:
                seen[r] = 1
                distinct[0] += 1.0
                fresh = True
            length[c] = added(length[c], max(w, -table[r, c]))
            table[r, c] = added(table[r, c], w)
            touched[r >> 6] = 1
    return fresh


@njit(cache=True, nogil=True, error_model="numpy")
def predict_multinomial(
    numeric: ndarray, categories: ndarray, binary: bool, shift: np.uint64, alpha: float,
    class_count: ndarray, tokens: Arrays, scratch: Arrays, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1 or C); but for scratch nothing else is changed.

    Arguments as in `progress_multinomial`.
    """
    take_logs(alpha, class_count, tokens, scratch)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, tokens[2], shift)
        score_multinomial(i, numeric, categories, shift, alpha, tokens, scratch)
        write_probabilities(i, class_count, scratch[3], binary, out)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_multinomial(
    numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, binary: bool, shift: np.uint64,
    class_count: ndarray, tokens: Arrays,
) -> None:  # fmt: skip
    """Learn B rows in order, without a prediction. Arguments as in `progress_multinomial`."""
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, tokens[2], shift)
        w = np.float64(weight[i])
        c = class_of(np.float64(y[i, 0]), class_count.shape[0], binary)
        if c >= 0 and w - w == 0.0 and w != 0.0:
            fold_multinomial(i, numeric, categories, c, w, shift, class_count, tokens)


@njit(cache=True, nogil=True, error_model="numpy")
def progress_multinomial(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray,
    binary: bool, shift: np.uint64, alpha: float,
    class_count: ndarray, tokens: Arrays, scratch: Arrays, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    Arguments as in `progress_gaussian`, but for
    before, numeric  float (B, N)  how often a token occurs; below zero: not at all
    tokens           tuple of arrays as told above   changed in place
    scratch          tuple of arrays as told above

    Result does not depend on where the stream is cut.
    """
    logs, spread, prior, scores, _ = scratch
    column_count, length = tokens[0], tokens[6]
    C = class_count.shape[0]
    take_logs(alpha, class_count, tokens, scratch)
    terms = terms_of(tokens)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, tokens[2], shift)
        score_multinomial(i, before, categories, shift, alpha, tokens, scratch)
        write_probabilities(i, class_count, scores, binary, out)
        w = np.float64(weight[i])
        c = class_of(np.float64(y[i, 0]), C, binary)
        if c >= 0 and w - w == 0.0 and w != 0.0:
            if fold_multinomial(i, numeric, categories, c, w, shift, class_count, tokens):
                terms = terms_of(tokens)
                for other in range(C):
                    spread[other] = math.log(length[other] + alpha * terms)
            prior[c] = log_count(class_count[c])
            spread[c] = math.log(length[c] + alpha * terms)
            for j in range(numeric.shape[1]):
                logs[j, c] = math.log(column_count[j, c] + alpha)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_multinomial(
    numeric: ndarray, categories: ndarray, binary: bool, shift: np.uint64, alpha: float,
    class_count: ndarray, tokens: Arrays, scratch: Arrays, terms: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the raw scores of B rows to out (B, 1 or C, N + K + 1); but for scratch nothing
    else is changed.

    terms  float64 (N + K + 1, C)  scratch; other arguments as in `progress_multinomial`
    """
    table = tokens[2]
    logs, spread, prior, _, _ = scratch
    N, K, C = numeric.shape[1], categories.shape[1], prior.shape[0]
    take_logs(alpha, class_count, tokens, scratch)
    for i in range(numeric.shape[0]):
        look_ahead(categories, i + AHEAD, table, shift)
        terms[:] = 0.0
        terms[N + K] = prior
        for j in range(N):
            x = occurrences(numeric[i, j])
            if x > 0.0:
                for c in range(C):
                    terms[j, c] = x * (logs[j, c] - spread[c])
        for k in range(K):
            if categories[i, k] != 0:
                r = slot_of(categories[i, k], shift)
                for c in range(C):
                    terms[N + k, c] = math.log(table[r, c] + alpha) - spread[c]
        write_contributions(i, class_count, terms, binary, out)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_then_learn_multinomial(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, told: Any, terms: ndarray,
    out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `progress_multinomial`.

    told   a tuple: what that takes between weight and out
    terms  as in `explain_multinomial`
    """
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_multinomial(before[row], categories[row], *told, terms, contributions[row])  # type: ignore[call-arg]
        rows = before[row], numeric[row], categories[row], y[row], weight[row]
        progress_multinomial(*rows, *told, out[row])  # type: ignore[call-arg]
