"""Kernels of the detectors of drift: each hears one number after another, and says in which row the stream changed.

State is changed in place, and does not depend on where the rows are cut. A number that is NaN or infinite is not heard;
one beyond HUGE counts as HUGE, so that no square or sum of them overflows. `fired` gets where the stream changed,
`rose` where it changed to greater values. After a detection each begins anew.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from ..jit import njit
from .random_kernels import uniform

HUGE = 1e100
NEVER = 2.0**-24  # probabilities are held within [NEVER, 1 - NEVER], as the progressive metrics hold them

LOG_LOSS, ABSOLUTE, WRONG = range(3)  # what is watched
UP, DOWN = 1, 2  # what Page-Hinkley looks for, as bits

LEVELS = 62  # of ADWIN's window: a bucket of level k stands for 2**k values, so no stream is too long
WIDTH, TOTAL, SQUARES = range(3)  # places in ADWIN's `sums`
COUNT, MEAN, RISE, FALL, LEAST_RISE, MOST_FALL = range(6)  # places in Page-Hinkley's `sums`
LEAST_RATE, LEAST_SPREAD = 2, 3  # places in DDM's `sums`, beside COUNT and MEAN
NO_RATE = 2.0  # above every rate and its deviation: no least one is known yet


@njit(cache=True, nogil=True, error_model="numpy")
def losses(y: ndarray, prediction: ndarray, watched: int, out: ndarray) -> None:
    """Write the loss of each prediction to out.

    y           float32 (B,)    label; the index of the class where there are several
    prediction  float32 (B, O)  value, P(true), or P of each class
    watched     LOG_LOSS, ABSOLUTE error, or WRONG: 1 where another class was more likely (binary: from a half on, true)
    out         float64 (B,)    NaN where the label is NaN or no class
    """
    outputs = prediction.shape[1]
    for i in range(y.shape[0]):
        t = np.float64(y[i])
        if watched == ABSOLUTE:
            out[i] = abs(t - np.float64(prediction[i, 0]))
        elif t - t != 0.0 or (outputs > 1 and not 0.0 <= t < outputs):
            out[i] = np.nan
        elif watched == LOG_LOSS:
            p: float = np.float64(prediction[i, np.intp(t) if outputs > 1 else 0])
            p = min(max(p, NEVER), 1.0 - NEVER)
            out[i] = -math.log(p) if outputs > 1 else -(t * math.log(p) + (1.0 - t) * math.log1p(-p))
        elif outputs > 1:
            best = 0
            for c in range(1, outputs):
                if prediction[i, c] > prediction[i, best]:
                    best = c
            out[i] = 0.0 if best == np.intp(t) else 1.0
        else:
            out[i] = 0.0 if (prediction[i, 0] >= 0.5) == (t >= 0.5) else 1.0


# --- ADWIN


@njit(cache=True, nogil=True, error_model="numpy")
def add_to_window(x: float, totals: ndarray, held: ndarray, sums: ndarray) -> None:
    """Add a value to ADWIN's exponential histogram: where a level is over full, its two oldest buckets become one of
    the next level. The arrays are those of `adwin`."""
    count = sums[WIDTH] + 1.0
    if count > 1.0:
        from_mean = x - sums[TOTAL] / (count - 1.0)
        sums[SQUARES] += (count - 1.0) * from_mean * from_mean / count
    sums[WIDTH] = count
    sums[TOTAL] += x
    most = totals.shape[1] - 1
    totals[0, held[0]] = x
    held[0] += 1
    level = 0
    while held[level] > most:
        totals[level + 1, held[level + 1]] = totals[level, 0] + totals[level, 1]
        held[level + 1] += 1
        held[level] -= 2
        for k in range(held[level]):
            totals[level, k] = totals[level, k + 2]
        level += 1


@njit(cache=True, nogil=True, error_model="numpy")
def find_cut(totals: ndarray, held: ndarray, sums: ndarray, delta: float, least: float) -> int:
    """Whether the window falls into an older and a newer part whose means differ more than chance allows.

    1: the newer mean is the greater one, -1: the older one is, 0: there is no such cut. Cuts lie between buckets; the
    first that is found counts, from the oldest bucket on. The arrays are those of `adwin`.
    """
    width = sums[WIDTH]
    variance = sums[SQUARES] / width
    confidence = math.log(2.0 * math.log(width) / delta)
    older = older_total = 0.0
    newer, newer_total = width, sums[TOTAL]
    size = 2.0**LEVELS
    for level in range(held.shape[0] - 1, -1, -1):
        size *= 0.5
        for k in range(held[level]):
            older += size
            newer -= size
            older_total += totals[level, k]
            newer_total -= totals[level, k]
            if newer < 1.0:
                return 0
            if older < least or newer < least:
                continue
            rarity = 1.0 / (older - least + 1.0) + 1.0 / (newer - least + 1.0)
            bound = math.sqrt(2.0 * rarity * variance * confidence) + 2.0 / 3.0 * confidence * rarity
            apart = older_total / older - newer_total / newer
            if abs(apart) > bound:
                return -1 if apart > 0.0 else 1
    return 0


@njit(cache=True, nogil=True, error_model="numpy")
def adwin(
    values: ndarray, delta: float, clock: int, least: float, grace: float,
    totals: ndarray, held: ndarray, sums: ndarray, fired: ndarray, rose: ndarray,
) -> None:  # fmt: skip
    """Hear B values.

    values  float64 (B,); fired, rose bool (B,)
    delta   confidence; clock: values between two looks for a cut; least, grace: values in a part, in the window
    totals  float64 (LEVELS, max_buckets + 1)  sum of each bucket, the oldest first   changed in place
    held    int64 (LEVELS,)                    buckets of each level                  changed in place
    sums    float64 (3,)                       width, sum, squared distances from the mean  changed in place

    Source: Bifet and Gavalda (2007), Learning from time-changing data with adaptive windowing.
    """
    for i in range(values.shape[0]):
        x = values[i]
        fired[i] = rose[i] = False
        if x - x != 0.0:
            continue
        add_to_window(min(max(x, -HUGE), HUGE), totals, held, sums)
        width = sums[WIDTH]
        cut = find_cut(totals, held, sums, delta, least) if np.int64(width) % clock == 0 and width > grace else 0
        if cut != 0:
            fired[i], rose[i] = True, cut > 0
            totals[:] = 0.0
            held[:] = 0
            sums[:] = 0.0


# --- Page-Hinkley


@njit(cache=True, nogil=True, error_model="numpy")
def page_hinkley(
    values: ndarray, least: float, delta: float, threshold: float, alpha: float, mode: int,
    sums: ndarray, fired: ndarray, rose: ndarray,
) -> None:  # fmt: skip
    """Hear B values.

    values     float64 (B,); fired, rose bool (B,)
    least      values before the first detection; delta: distance from the mean that is let pass
    threshold  how far the sum of distances may leave its least (greatest) so far; alpha: what is kept of it each time
    mode       UP, DOWN, or both bits
    sums       float64 (6,)  values, mean, sum of distances upwards and downwards, their extremes  changed in place

    Source: Page (1954), Continuous inspection schemes.
    """
    for i in range(values.shape[0]):
        x = values[i]
        fired[i] = rose[i] = False
        if x - x != 0.0:
            continue
        x = min(max(x, -HUGE), HUGE)
        first = sums[COUNT] == 0.0
        sums[COUNT] += 1.0
        sums[MEAN] += 1.0 / sums[COUNT] * (x - sums[MEAN])
        distance = x - sums[MEAN]
        sums[RISE] = alpha * sums[RISE] + distance - delta
        sums[FALL] = alpha * sums[FALL] + distance + delta
        if first or sums[RISE] < sums[LEAST_RISE]:
            sums[LEAST_RISE] = sums[RISE]
        sums[MOST_FALL] = max(sums[FALL], sums[MOST_FALL])  # the first is delta, at least 0
        if sums[COUNT] < least:
            continue
        up = mode & UP != 0 and sums[RISE] - sums[LEAST_RISE] > threshold
        down = mode & DOWN != 0 and sums[MOST_FALL] - sums[FALL] > threshold
        if up or down:
            fired[i], rose[i] = True, up
            sums[:] = 0.0


# --- DDM


@njit(cache=True, nogil=True, error_model="numpy")
def ddm(values: ndarray, warm_start: float, threshold: float, sums: ndarray, fired: ndarray, rose: ndarray) -> None:
    """Hear B errors.

    values      float64 (B,)  1: an error, 0: none; held within [0, 1]; fired, rose bool (B,)
    warm_start  errors heard before the first detection
    threshold   deviations by which the rate may lie above its least so far
    sums        float64 (4,)  values, rate of errors, the least rate and its deviation  changed in place

    Source: Gama, Medas, Castillo and Rodrigues (2004), Learning with drift detection.
    """
    for i in range(values.shape[0]):
        x = values[i]
        fired[i] = rose[i] = False
        if x - x != 0.0:
            continue
        x = min(max(x, 0.0), 1.0)
        if sums[COUNT] == 0.0:
            sums[LEAST_RATE] = NO_RATE
        sums[COUNT] += 1.0
        sums[MEAN] += 1.0 / sums[COUNT] * (x - sums[MEAN])
        rate = sums[MEAN]
        spread = math.sqrt(rate * (1.0 - rate) / sums[COUNT])
        if sums[COUNT] <= warm_start:
            continue
        if rate + spread <= sums[LEAST_RATE] + sums[LEAST_SPREAD]:
            sums[LEAST_RATE] = rate
            sums[LEAST_SPREAD] = spread
        if rate + spread > sums[LEAST_RATE] + threshold * sums[LEAST_SPREAD]:
            fired[i] = rose[i] = True
            sums[:] = 0.0


# --- KSWIN


@njit(cache=True, nogil=True, error_model="numpy")
def draw(window: ndarray, oldest: int, key: np.uint64, drawn: ndarray, places: ndarray, out: ndarray) -> None:
    """Write R different values of the older part of a ring to out, each set of them as likely as any other.

    window  float64 (W,)  a ring that begins at `oldest`; its first P = W - R values are the older part
    key     names the sequence of random numbers
    drawn   uint64 (1,)   random numbers taken from it so far; changed in place
    places  intp (P,)     scratch
    out     float64 (R,)
    """
    size = window.shape[0]
    for k in range(places.shape[0]):
        places[k] = k
    for k in range(out.shape[0]):
        other = k + np.intp(uniform(key, drawn, 0) * (places.shape[0] - k))
        place = places[other]
        places[other] = places[k]
        place += oldest
        out[k] = window[place if place < size else place - size]


@njit(cache=True, nogil=True, error_model="numpy")
def sort(a: ndarray) -> None:
    """Sort a few numbers, float64 (R,), in place: by insertion, which beats a general sort of up to some dozens."""
    if a.shape[0] > 64:
        a.sort()
        return
    for k in range(1, a.shape[0]):
        x = a[k]
        at = k
        while at > 0 and a[at - 1] > x:
            a[at] = a[at - 1]
            at -= 1
        a[at] = x


@njit(cache=True, nogil=True, error_model="numpy")
def most_apart(a: ndarray, b: ndarray) -> int:
    """R times the Kolmogorov-Smirnov distance of two samples, float64 (R,) each, sorted."""
    size = a.shape[0]
    i = j = most = 0
    while i < size and j < size:
        x = min(a[i], b[j])
        while i < size and a[i] == x:
            i += 1
        while j < size and b[j] == x:
            j += 1
        most = max(most, abs(i - j))
    return most


@njit(cache=True, nogil=True, error_model="numpy")
def kswin(
    values: ndarray, critical: int, key: np.uint64,
    window: ndarray, heard: ndarray, drawn: ndarray,
    places: ndarray, older: ndarray, newer: ndarray, fired: ndarray, rose: ndarray,
) -> None:  # fmt: skip
    """Hear B values: compare the R newest of the last W with as many drawn from those before.

    values    float64 (B,); fired, rose bool (B,)
    critical  R times the distance from which on the two differ too much
    key       names the sequence of random numbers
    window    float64 (W,)  the last values, a ring                     changed in place
    heard     int64 (1,)    values since the beginning or a detection   changed in place
    drawn     uint64 (1,)   random numbers taken so far                 changed in place
    places, older, newer    intp (W - R,), float64 (R,), float64 (R,)   scratch

    Source: Raab, Heusinger and Schleif (2020), Reactive soft prototype computing for concept drift streams.
    """
    size, recent = window.shape[0], newer.shape[0]
    for i in range(values.shape[0]):
        x = values[i]
        fired[i] = rose[i] = False
        if x - x != 0.0:
            continue
        window[heard[0] % size] = min(max(x, -HUGE), HUGE)
        heard[0] += 1
        if heard[0] < size:
            continue
        oldest = heard[0] % size
        place = oldest - recent if oldest >= recent else oldest - recent + size
        for k in range(recent):
            newer[k] = window[place]
            place = place + 1 if place + 1 < size else 0
        draw(window, oldest, key, drawn, places, older)
        sort(older)
        sort(newer)
        if most_apart(older, newer) >= critical:
            fired[i], rose[i] = True, newer.sum() > older.sum()
            heard[0] = 0
