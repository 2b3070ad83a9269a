"""A table of embeddings in slots of eight rows: looked up by hash, taken for learning, stepped by row-wise AdaGrad.

Letters: B rows of features, K categories, R rows of the table, D numbers of each, U rows that a micro-batch touches.
The table of R = 8 * 2**s rows has 2**s slots of eight rows; a hash lives in any row of its slot; its tag says where.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import uint64
from numpy import ndarray

from ..jit import njit
from .prefetch import AHEAD, prefetch

WAYS = 8
ABSENT = -1
LARGEST = np.float32(3.4028234663852886e38)  # float32 knows no larger number
ZERO = np.float32(0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def mix(h: Any) -> Any:
    """Bits of a hash, each of which depends on all of them. Source: Steele et al. (2014), SplitMix64."""
    z = uint64(h)
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    return z ^ (z >> uint64(31))


@njit(cache=True, nogil=True, error_model="numpy")
def write_start(h: int, seed: int, start: float, out: ndarray) -> None:
    """Write the numbers a new row begins with to out float32 (D,): even in [-start, start], by hash and seed alone."""
    for d in range(out.shape[0]):
        z = mix(uint64(h) + uint64(seed) + uint64(d + 1) * uint64(0x9E3779B97F4A7C15))
        out[d] = start * (np.float64(z >> uint64(11)) * (2.0 / 9007199254740992.0) - 1.0)


@njit(cache=True, nogil=True, error_model="numpy")
def slot_of(h: Any, shift: int) -> Any:
    """The first row of a hash's slot."""
    return np.intp(mix(h) >> uint64(shift)) * WAYS


@njit(cache=True, nogil=True, error_model="numpy")
def find(h: int, tags: ndarray, first: int) -> int:
    """The row of a hash in its slot, or ABSENT."""
    for row in range(first, first + WAYS):
        if tags[row] == h:
            return row
    return ABSENT


@njit(cache=True, nogil=True, error_model="numpy")
def look_ahead(categories: ndarray, order: ndarray, i: int, shift: int, tags: ndarray, slots: ndarray) -> None:
    """Have the tags of row i of features fetched, if there is one, and keep its slots in slots intp (AHEAD, K)."""
    if i < categories.shape[0]:
        for k in range(order.shape[0]):
            first = slot_of(categories[i, order[k]], shift)
            slots[i % AHEAD, k] = first
            prefetch(tags.ctypes.data + 8 * first)


@njit(cache=True, nogil=True, error_model="numpy")
def fetch_row(weight: ndarray, row: int) -> None:
    """Have a row's numbers fetched, of which no more than two cache lines are waited for."""
    first = weight.ctypes.data + np.intp(row) * weight.strides[0]
    prefetch(first)
    prefetch(first + weight.strides[0] - 1)


@njit(cache=True, nogil=True, error_model="numpy")
def look_up(
    categories: ndarray, order: ndarray, shift: int, seed: int, start: float, tags: ndarray, weight: ndarray,
    out: ndarray,
) -> None:  # fmt: skip
    """Write the embeddings of categories to out; nothing else is changed.

    categories  uint64  (B, K)     hashes; 0: missing, whose embedding is 0
    order       intp    (K,)       which column of categories goes to which of out
    tags        uint64  (R,)       hash of each row, 0: free; shift = 64 - log2(R / 8)
    weight      float32 (R, D)
    out         float32 (B, K, D)  of a hash without a row, what a new row would begin with
    """
    B, K, D = out.shape
    slots, rows = np.empty((2, AHEAD, K), np.intp)
    for i in range(-2 * AHEAD, B):
        for k in range(K if i >= 0 else 0):
            h, row = categories[i, order[k]], rows[i % AHEAD, k]
            if row != ABSENT:
                for d in range(D):
                    out[i, k, d] = weight[row, d]
            elif h != 0:
                write_start(h, seed, start, out[i, k])
            else:
                for d in range(D):
                    out[i, k, d] = ZERO
        j = i + AHEAD
        for k in range(K if 0 <= j < B else 0):
            h = categories[j, order[k]]
            row = find(h, tags, slots[j % AHEAD, k]) if h != 0 else ABSENT
            rows[j % AHEAD, k] = row
            fetch_row(weight, row)
        look_ahead(categories, order, i + 2 * AHEAD, shift, tags, slots)


@njit(cache=True, nogil=True, error_model="numpy")
def oldest(first: int, now: int, tags: ndarray, stamps: ndarray) -> int:
    """The row of a slot to put a hash in: a free one, else the least recently used; ABSENT: `now` uses all eight."""
    found, least = ABSENT, now
    for row in range(first, first + WAYS):
        if tags[row] == 0:
            return row
        if stamps[row] < least:
            found, least = row, stamps[row]
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def take_rows(
    categories: ndarray, order: ndarray, live: ndarray, now: int, shift: int, tags: ndarray, stamps: ndarray,
    marks: ndarray, dirty: ndarray, counts: ndarray, none: int, rows: ndarray, new: ndarray,
) -> int:  # fmt: skip
    """Give every category of a micro-batch its row; how many rows are new.

    categories, order  as in look_up
    live        uint8   (B,)    rows of features that are learned; the others take no rows
    now         int64           number of this micro-batch, greater than any before
    tags, stamps  uint64, int64 (R,)  hash of each row, 0: free; micro-batch that used it last   changed in place
    marks, dirty  uint8 (R/64,) set to 1 for every 64 rows of which one was taken
    counts      int64   (2,)    rows evicted; categories that found no row, for all of their slot were in use
    rows        int32   (B, K)  the row of each category; `none`: it has none
    new         int32   (B K,)  the rows that are new, `begin_rows` is for them   first ones changed

    No row that this micro-batch uses is evicted by it: those that are there are taken first.
    """
    B, K, U = live.shape[0], order.shape[0], 0
    absent = 0
    slots = np.empty((AHEAD, K), np.intp)
    for i in range(-AHEAD, B):
        for k in range(K if i >= 0 else 0):
            h = categories[i, order[k]]
            rows[i, k] = none
            if h == 0 or live[i] == 0:
                continue
            row = find(h, tags, slots[i % AHEAD, k])
            if row == ABSENT:
                absent += 1
                continue
            stamps[row] = now
            marks[row >> 6] = 1
            dirty[row >> 6] = 1
            rows[i, k] = row
        look_ahead(categories, order, i + AHEAD, shift, tags, slots)
        for k in range(K if i + AHEAD < B else 0):
            prefetch(stamps.ctypes.data + 8 * slots[i % AHEAD, k])
    if absent == 0:
        return U
    for i in range(B):
        for k in range(K):
            h = categories[i, order[k]]
            if h == 0 or live[i] == 0 or rows[i, k] != none:
                continue
            first = slot_of(h, shift)
            row = find(h, tags, first)
            if row == ABSENT:
                row = oldest(first, now, tags, stamps)
                if row == ABSENT:
                    counts[1] += 1
                    continue
                if tags[row] != 0:
                    counts[0] += 1
                tags[row] = h
                stamps[row] = now
                marks[row >> 6] = 1
                dirty[row >> 6] = 1
                new[U] = row
                U += 1
            rows[i, k] = row
    return U


@njit(cache=True, nogil=True, error_model="numpy")
def begin_rows(
    new: ndarray, U: int, tags: ndarray, seed: int, start: float, weight: ndarray, evidence: ndarray
) -> None:  # fmt: skip
    """Write what new rows begin with to weight float32 (R, D) and evidence (R,)."""
    for u in range(U):
        row = new[u]
        evidence[row] = ZERO
        write_start(tags[row], seed, start, weight[row])


@njit(cache=True, nogil=True, error_model="numpy")
def write_starts(new: ndarray, U: int, tags: ndarray, seed: int, start: float, begun: ndarray) -> None:
    """Write what new rows begin with to begun float32 (>= U, D), in their order, for a device that holds the table."""
    for u in range(U):
        write_start(tags[new[u]], seed, start, begun[u])


@njit(cache=True, nogil=True, error_model="numpy")
def number_rows(rows: ndarray, place: ndarray, taken: ndarray, of: ndarray) -> int:
    """Give each row that was taken a number from 0 to U - 1; returns U.

    rows   int32 (B, K)  as take_rows wrote them, or ABSENT
    place  int32 (R,)    scratch: the number of each row; what it holds of before does no harm
    taken  int32 (B K,)  the row of each number   first U changed
    of     int32 (B, K)  the number of each category's row, or ABSENT
    """
    U = 0
    for i in range(rows.shape[0]):
        if i + AHEAD < rows.shape[0]:
            for k in range(rows.shape[1]):
                prefetch(place.ctypes.data + 4 * np.intp(rows[i + AHEAD, k]))
        for k in range(rows.shape[1]):
            row = rows[i, k]
            of[i, k] = ABSENT
            if row == ABSENT:
                continue
            u = place[row]
            if u >= U or taken[u] != row:
                u = U
                place[row] = u
                taken[u] = row
                U += 1
            of[i, k] = u
    return U


@njit(cache=True, nogil=True, error_model="numpy")
def gather(rows: ndarray, weight: ndarray, out: ndarray) -> None:
    """Write the embeddings in rows int32 (B, K) to out float32 (B, K, D); 0 where ABSENT."""
    for i in range(out.shape[0]):
        if i + AHEAD < out.shape[0]:
            for k in range(out.shape[1]):
                fetch_row(weight, rows[i + AHEAD, k])
        for k in range(out.shape[1]):
            row = rows[i, k]
            if row == ABSENT:
                for d in range(out.shape[2]):
                    out[i, k, d] = ZERO
            else:
                for d in range(out.shape[2]):
                    out[i, k, d] = weight[row, d]


@njit(cache=True, nogil=True, error_model="numpy")
def learn_rows(
    rows: ndarray, U: int, of: ndarray, slope: ndarray, lr: float, eps: float,
    weight: ndarray, evidence: ndarray, sums: ndarray,
) -> None:  # fmt: skip
    """One step of row-wise AdaGrad: g = sum of the row's slopes, n += mean(g^2), w -= lr g / (sqrt(n) + eps).

    rows, of    int32   (U,), (B, K)  as number_rows wrote them: `taken`, `of`
    slope       float32 (B, K, D)     of the summed loss; finite
    weight, evidence  float32 (R, D), (R,)   w and n   changed in place
    sums        float32 (>= U, D)     scratch

    Slopes of a row are added in the order of the rows of features, so the sum has the same bits each time.
    Source: Gupta et al. (2014), Training highly multiclass classifiers (one AdaGrad rate for a row of an embedding).
    """
    D = slope.shape[2]
    for u in range(U):
        for d in range(D):
            sums[u, d] = ZERO
    for i in range(of.shape[0]):
        for k in range(of.shape[1]):
            u = of[i, k]
            if u != ABSENT:
                for d in range(D):
                    sums[u, d] += slope[i, k, d]
    for u in range(U):
        if u + AHEAD < U:
            fetch_row(weight, rows[u + AHEAD])
            prefetch(evidence.ctypes.data + 4 * np.intp(rows[u + AHEAD]))
        row, squares = rows[u], 0.0
        for d in range(D):
            g = np.float64(sums[u, d])
            squares += g * g
        n = min(np.float64(evidence[row]) + squares / D, np.float64(LARGEST))
        evidence[row] = n
        step = lr / (math.sqrt(n) + eps)
        for d in range(D):
            moved = weight[row, d] - step * sums[u, d]
            weight[row, d] = min(max(moved, -np.float64(LARGEST)), np.float64(LARGEST))


@njit(cache=True, nogil=True, error_model="numpy")
def forget_rows(factor: float, tags: ndarray, evidence: ndarray, marks: ndarray) -> None:
    """Scale the evidence of all rows in use by factor; marks as in take_rows."""
    for row in range(tags.shape[0]):
        if tags[row] != 0:
            evidence[row] *= factor
            marks[row >> 6] = 1


@njit(cache=True, nogil=True, error_model="numpy")
def find_rows(
    categories: ndarray, order: ndarray, shift: int, seed: int, start: float, tags: ndarray, zero: int,
    rows: ndarray, begun: ndarray,
) -> int:  # fmt: skip
    """Say where the embeddings of categories lie, for a device that holds the table; how many have no row.

    zero   int            the row of missing categories
    rows   int32 (B, K)   the row; of a hash without one zero + 1 + u, where u counts them
    begun  float32 (U, D) what the u-th of these would begin with   first rows changed
    """
    (B, K), U = rows.shape, 0
    slots = np.empty((AHEAD, K), np.intp)
    for i in range(-AHEAD, B):
        for k in range(K if i >= 0 else 0):
            h = categories[i, order[k]]
            rows[i, k] = zero
            if h == 0:
                continue
            row = find(h, tags, slots[i % AHEAD, k])
            if row == ABSENT:
                write_start(h, seed, start, begun[U])
                row = zero + 1 + U
                U += 1
            rows[i, k] = row
        look_ahead(categories, order, i + AHEAD, shift, tags, slots)
    return U
