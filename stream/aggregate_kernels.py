"""The arithmetic of aggregates in Numba: find each row's slot, read what the rows before it left, fold it in.

Shapes: B rows, C capacity, P panes of a window, G groups, F aggregates. Times are int64 microseconds since the epoch.
"""

from __future__ import annotations

import numpy as np
from numba import carray, uint64  # type: ignore[attr-defined]

from ..connectors.memory import floats_at, ints32_at, ints_at, words_at
from ..jit import njit
from ..models.prefetch import AHEAD, prefetch

NEVER = -(2**62)  # a pane or a time that lies before all others
PANES = 12  # a window of 1 h covers the current pane of 5 minutes and the 11 before it: 55 to 60 minutes

NEAR = 4096  # slots in use that the cache holds: to look ahead costs more than it gives

# Which kernel an aggregate needs, and what it folds in: a column of values, or one of these.
TOTALS, STD, EXTREME, DECAYED, LATEST = range(5)
THE_LABEL, NO_VALUE = -1, -2

# of meta: the most and the least recently used slot plus one (0: none), slots in use, keys evicted
NEWEST, OLDEST, SIZE, EVICTED = 0, 1, 2, 3


@njit(cache=True, nogil=True)
def _find(key, keys, index):
    """The place in the index where the key's slot stands, or where it would stand."""
    mask = index.shape[0] - 1
    at = np.intp((key * uint64(0x9E3779B97F4A7C15)) >> uint64(32)) & mask
    while index[at] != 0 and keys[index[at] - 1] != key:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _remove(at, keys, index):
    """Take one place out of the index, moving back what was pushed past it."""
    mask = index.shape[0] - 1
    hole = at
    at = (at + 1) & mask
    while index[at] != 0:
        home = np.intp((keys[index[at] - 1] * uint64(0x9E3779B97F4A7C15)) >> uint64(32)) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            index[hole] = index[at]
            hole = at
        at = (at + 1) & mask
    index[hole] = 0


@njit(cache=True, nogil=True)
def _unlink(slot, older, newer, meta):
    if newer[slot] >= 0:
        older[newer[slot]] = older[slot]
    else:
        meta[NEWEST] = older[slot] + 1
    if older[slot] >= 0:
        newer[older[slot]] = newer[slot]
    else:
        meta[OLDEST] = newer[slot] + 1


@njit(cache=True, nogil=True)
def _link_first(slot, older, newer, meta):
    first = np.int32(meta[NEWEST] - 1)
    older[slot] = first
    newer[slot] = -1
    if first >= 0:
        newer[first] = slot
    else:
        meta[OLDEST] = slot + 1
    meta[NEWEST] = slot + 1


@njit(cache=True, nogil=True)
def look_ahead(key, i, g, keys, index, older, newer, ahead):
    """Have fetched what row i + ahead will need of the table, and row i + 2 ahead of the index."""
    mask = index.shape[0] - 1
    if i + 2 * ahead < key.shape[0]:
        home = np.intp((key[i + 2 * ahead, g] * uint64(0x9E3779B97F4A7C15)) >> uint64(32)) & mask
        prefetch(index.ctypes.data + 4 * home)
    if i + ahead < key.shape[0]:
        slot = index[np.intp((key[i + ahead, g] * uint64(0x9E3779B97F4A7C15)) >> uint64(32)) & mask] - 1
        if slot >= 0:
            prefetch(keys.ctypes.data + 8 * slot)
            prefetch(older.ctypes.data + 4 * slot)
            prefetch(newer.ctypes.data + 4 * slot)


@njit(cache=True, nogil=True)
def look_ahead_at(slots, i, ahead, array):
    """Have fetched what row i + ahead will need of an array with a row for each slot."""
    if i + ahead < slots.shape[0] and slots[i + ahead] >= 0:
        address = array.ctypes.data + slots[i + ahead] * array.strides[0]
        for line in range(0, array.strides[0], 64):
            prefetch(address + line)
        prefetch(address + array.strides[0] - 1)


@njit(cache=True, nogil=True)
def locate(key, g, write, keys, index, older, newer, meta, ahead, read_slot, write_slot, fresh):
    """Find each row's slot.

    key     uint64 (B, G), its column g  0: missing, the row has no slot
    write   bool  insert keys that are new, mark them as used
    keys    uint64 (C,)  index int32 (power of two,)  older, newer int32 (C,)  meta int64 (4,)  changed in place
    read_slot, write_slot  int32 (B,)  filled: the slot before the row's own insertion, and after; -1: none
    fresh   bool (B,)    filled: the slot begins anew with this row
    ahead   rows to look ahead, so that memory is on its way; B: not at all
    """
    capacity = keys.shape[0]
    for i in range(key.shape[0]):
        look_ahead(key, i, g, keys, index, older, newer, ahead)
        read_slot[i] = -1
        write_slot[i] = -1
        fresh[i] = False
        if key[i, g] == uint64(0):
            continue
        at = _find(key[i, g], keys, index)
        if index[at] != 0:
            slot = index[at] - 1
            read_slot[i] = slot
            if not write:
                continue
            if meta[NEWEST] != slot + 1:
                _unlink(slot, older, newer, meta)
                _link_first(slot, older, newer, meta)
        else:
            if not write:
                continue
            if meta[SIZE] < capacity:
                slot = np.int32(meta[SIZE])
                meta[SIZE] += 1
            else:
                slot = np.int32(meta[OLDEST] - 1)
                _remove(_find(keys[slot], keys, index), keys, index)
                _unlink(slot, older, newer, meta)
                meta[EVICTED] += 1
                at = _find(key[i, g], keys, index)
            keys[slot] = key[i, g]
            index[at] = slot + 1
            _link_first(slot, older, newer, meta)
            fresh[i] = True
        write_slot[i] = slot


@njit(cache=True, nogil=True)
def reindex(keys, index):
    """Fill an empty index with keys, uint64 (size,), that are all different; changed in place."""
    for slot in range(keys.shape[0]):
        index[_find(keys[slot], keys, index)] = slot + 1


# The passes below read into column j of out, float32 (B, N), unless j is -1; then they fold in value, float64 (B,), if
# `fold`; else the rows only read, and slots that begin anew are cleared. A block and a column's number rather than a
# column: its memory layout changes with B, and each layout would be compiled anew.


@njit(cache=True, nogil=True, error_model="numpy")
def window_totals(time, value, read_slot, write_slot, fresh, ahead, fold, width, kind, pane, n, s, out, j):
    """count (kind 0), sum (1), mean (2) over a window of PANES panes of `width` microseconds.

    pane int64 (C, P) absolute number of the pane a place holds, NEVER: none; n, s float64 (C, P)   changed in place
    A count is of rows, sum and mean skip NaN. Unknown keys: 0 for count and sum, NaN for mean.
    """
    panes = pane.shape[1]
    for i in range(time.shape[0]):
        look_ahead_at(read_slot, i, ahead, pane)
        look_ahead_at(read_slot, i, ahead, n)
        look_ahead_at(read_slot, i, ahead, s)
        now = time[i] // width
        if j >= 0:
            total = 0.0
            rows = 0.0
            slot = read_slot[i]
            if slot >= 0:
                for p in range(panes):
                    if now - panes < pane[slot, p] <= now:
                        rows += n[slot, p]
                        total += s[slot, p]
            out[i, j] = rows if kind == 0 else (total if kind == 1 else (total / rows if rows > 0 else np.nan))
        slot = write_slot[i]
        if slot < 0:
            continue
        if fresh[i]:
            for p in range(panes):
                pane[slot, p] = NEVER
        if not fold or value[i] != value[i]:
            continue
        p = now % panes
        if pane[slot, p] < now:
            pane[slot, p] = now
            n[slot, p] = 0.0
            s[slot, p] = 0.0
        if pane[slot, p] == now:
            n[slot, p] += 1.0
            s[slot, p] += value[i]


@njit(cache=True, nogil=True, error_model="numpy")
def window_std(time, value, read_slot, write_slot, fresh, ahead, fold, width, pane, n, mean, m2, out, j):
    """Standard deviation (of the population) over a window; NaN below two values. Panes merge by Chan's formula."""
    panes = pane.shape[1]
    for i in range(time.shape[0]):
        look_ahead_at(read_slot, i, ahead, pane)
        look_ahead_at(read_slot, i, ahead, n)
        look_ahead_at(read_slot, i, ahead, mean)
        look_ahead_at(read_slot, i, ahead, m2)
        now = time[i] // width
        if j >= 0:
            rows = 0.0
            centre = 0.0
            spread = 0.0
            slot = read_slot[i]
            if slot >= 0:
                for p in range(panes):
                    if now - panes < pane[slot, p] <= now and n[slot, p] > 0:
                        both = rows + n[slot, p]
                        delta = mean[slot, p] - centre
                        spread += m2[slot, p] + delta * delta * rows * n[slot, p] / both
                        centre += delta * n[slot, p] / both
                        rows = both
            out[i, j] = np.sqrt(spread / rows) if rows > 1 else np.nan
        slot = write_slot[i]
        if slot < 0:
            continue
        if fresh[i]:
            for p in range(panes):
                pane[slot, p] = NEVER
        if not fold or value[i] != value[i]:
            continue
        p = now % panes
        if pane[slot, p] < now:
            pane[slot, p] = now
            n[slot, p] = 0.0
            mean[slot, p] = 0.0
            m2[slot, p] = 0.0
        if pane[slot, p] == now:
            n[slot, p] += 1.0
            delta = value[i] - mean[slot, p]
            mean[slot, p] += delta / n[slot, p]
            m2[slot, p] += delta * (value[i] - mean[slot, p])


@njit(cache=True, nogil=True, error_model="numpy")
def window_extreme(time, value, read_slot, write_slot, fresh, ahead, fold, width, sign, pane, extreme, out, j):
    """Greatest (sign 1) or least (sign -1) value over a window; NaN where there is none."""
    panes = pane.shape[1]
    for i in range(time.shape[0]):
        look_ahead_at(read_slot, i, ahead, pane)
        look_ahead_at(read_slot, i, ahead, extreme)
        now = time[i] // width
        if j >= 0:
            best = np.nan
            slot = read_slot[i]
            if slot >= 0:
                for p in range(panes):
                    if now - panes < pane[slot, p] <= now:
                        e = extreme[slot, p]
                        if best != best or sign * e > sign * best:
                            best = e
            out[i, j] = best
        slot = write_slot[i]
        if slot < 0:
            continue
        if fresh[i]:
            for p in range(panes):
                pane[slot, p] = NEVER
        if not fold or value[i] != value[i]:
            continue
        p = now % panes
        if pane[slot, p] < now:
            pane[slot, p] = now
            extreme[slot, p] = value[i]
        elif pane[slot, p] == now and sign * value[i] > sign * extreme[slot, p]:
            extreme[slot, p] = value[i]


@njit(cache=True, nogil=True, error_model="numpy")
def decayed(time, value, read_slot, write_slot, fresh, ahead, fold, half_life, kind, since, n, mean, m2, out, j):
    """count (0), sum (1), mean (2), std (3) where a value's weight halves every half_life microseconds.

    since int64 (C,) time up to which n (the weight) is decayed; n, mean, m2 float64 (C,)   changed in place
    A row earlier than `since` is folded in with the weight it would have by then.
    Source: Finch (2009), Incremental calculation of weighted mean and variance.
    """
    for i in range(time.shape[0]):
        look_ahead_at(read_slot, i, ahead, since)
        look_ahead_at(read_slot, i, ahead, n)
        look_ahead_at(read_slot, i, ahead, mean)
        look_ahead_at(read_slot, i, ahead, m2)
        slot = read_slot[i]
        if j >= 0:
            weight = 0.0
            if slot >= 0:
                weight = n[slot] * 2.0 ** (-max(time[i] - since[slot], 0) / half_life)
            if kind == 0:
                out[i, j] = weight
            elif kind == 1:
                out[i, j] = weight * mean[slot] if weight > 0 else 0.0
            elif weight <= 0:
                out[i, j] = np.nan
            else:
                out[i, j] = mean[slot] if kind == 2 else np.sqrt(m2[slot] / n[slot])
        slot = write_slot[i]
        if slot < 0:
            continue
        if fresh[i]:
            since[slot] = time[i]
            n[slot] = 0.0
            mean[slot] = 0.0
            m2[slot] = 0.0
        if not fold or value[i] != value[i]:
            continue
        weight = 1.0
        if time[i] >= since[slot]:
            fade = 2.0 ** (-(time[i] - since[slot]) / half_life)
            n[slot] *= fade
            m2[slot] *= fade
            since[slot] = time[i]
        else:
            weight = 2.0 ** (-(since[slot] - time[i]) / half_life)
        n[slot] += weight
        delta = value[i] - mean[slot]
        mean[slot] += delta * weight / n[slot]
        m2[slot] += weight * delta * (value[i] - mean[slot])


@njit(cache=True, nogil=True, error_model="numpy")
def latest(time, value, read_slot, write_slot, fresh, ahead, fold, over, kind, seen, last, out, j):
    """The last value (kind 0) or the seconds since the last row (kind 1); NaN when older than `over` (0: no limit).

    seen int64 (C,) time of the last value, NEVER: none; last float64 (C,)   changed in place
    """
    for i in range(time.shape[0]):
        look_ahead_at(read_slot, i, ahead, seen)
        look_ahead_at(read_slot, i, ahead, last)
        slot = read_slot[i]
        if j >= 0:
            out[i, j] = np.nan
            if slot >= 0 and seen[slot] > NEVER and (over == 0 or time[i] - seen[slot] <= over):
                out[i, j] = last[slot] if kind == 0 else max(time[i] - seen[slot], 0) / 1e6
        slot = write_slot[i]
        if slot < 0:
            continue
        if fresh[i]:
            seen[slot] = NEVER
        if fold and value[i] == value[i] and time[i] >= seen[slot]:
            seen[slot] = time[i]
            last[slot] = value[i]


@njit(cache=True, nogil=True)
def fold_rows(groups, folds, time, key, values, label, out):
    """Pass over B rows with every aggregate of every group: read into out, then fold in.

    groups  int64 (G, 9)   column of key, whether new keys are inserted, C, places of the index, addresses of keys,
                           index, older, newer and meta
    folds   int64 (F, 11)  row of groups (rising), kernel, its kind and span, whether it folds in, and what (a column of
                           values, THE_LABEL or NO_VALUE), column of out (-1: nothing is read), addresses of 4 arrays
    time int64 (B,)  key uint64 (B, columns)  values float64 (B, V)  label float32 (B,)  out float32 (B, N)

    Addresses rather than arrays: a pipeline has dozens of arrays, and each would cost a call 0.2 us.
    """
    rows = time.shape[0]
    read_slot, write_slot = np.empty(rows, np.int32), np.empty(rows, np.int32)
    fresh, value = np.empty(rows, np.bool_), np.empty(rows)
    f = 0
    for g in range(groups.shape[0]):
        column, write, capacity, places, at_keys, at_index, at_older, at_newer, at_meta = groups[g]
        keys, index = carray(words_at(at_keys), (capacity,)), carray(ints32_at(at_index), (places,))
        older, newer = carray(ints32_at(at_older), (capacity,)), carray(ints32_at(at_newer), (capacity,))
        meta = carray(ints_at(at_meta), (4,))
        ahead = AHEAD if meta[SIZE] > NEAR else rows
        locate(key, column, write != 0, keys, index, older, newer, meta, ahead, read_slot, write_slot, fresh)
        while f < folds.shape[0] and folds[f, 0] == g:
            _, kernel, kind, span, moves, what, j, first, second, third, fourth = folds[f]
            f += 1
            fold = moves != 0
            for i in range(rows):
                value[i] = values[i, what] if what >= 0 else (np.float64(label[i]) if what == THE_LABEL else 0.0)
            panes = (capacity, PANES)
            if kernel == TOTALS:
                n, s = carray(floats_at(second), panes), carray(floats_at(third), panes)
                pane = carray(ints_at(first), panes)
                window_totals(time, value, read_slot, write_slot, fresh, ahead, fold, span, kind, pane, n, s, out, j)
            elif kernel == STD:
                n, mean = carray(floats_at(second), panes), carray(floats_at(third), panes)
                pane, m2 = carray(ints_at(first), panes), carray(floats_at(fourth), panes)
                window_std(time, value, read_slot, write_slot, fresh, ahead, fold, span, pane, n, mean, m2, out, j)
            elif kernel == EXTREME:
                pane, extreme = carray(ints_at(first), panes), carray(floats_at(second), panes)
                window_extreme(
                    time, value, read_slot, write_slot, fresh, ahead, fold, span, kind, pane, extreme, out, j
                )
            elif kernel == DECAYED:
                since, n = carray(ints_at(first), (capacity,)), carray(floats_at(second), (capacity,))
                mean, m2 = carray(floats_at(third), (capacity,)), carray(floats_at(fourth), (capacity,))
                decayed(time, value, read_slot, write_slot, fresh, ahead, fold, span, kind, since, n, mean, m2, out, j)
            else:
                seen, last = carray(ints_at(first), (capacity,)), carray(floats_at(second), (capacity,))
                latest(time, value, read_slot, write_slot, fresh, ahead, fold, span, kind, seen, last, out, j)
