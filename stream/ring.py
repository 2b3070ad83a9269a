"""A queue of rows that can be found by key: first in, first out, with an index of 128-bit keys.

Three things of a partition wait in such queues: predictions for their label, early labels for their event, and the keys
that are gone, so that a late label can be told from an unknown one. A row's number never changes; rows keep their place
until they leave at the old end, so what an older part of the queue holds does not move.

A row is W words of 64 bits that lie together: its key (two words), whether it is settled (one), then its columns. So
few misses of the cache reach all of it, and one call copies it whatever its columns are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from ..jit import njit
from ..models.prefetch import AHEAD, prefetch
from .hashing import U64

I64 = NDArray[np.int64]
Columns = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape of one row

FIRST_CAPACITY = 64
ABSENT, SETTLED = -1, -2  # in the place of a row number
FLAG = 2  # the word that says whether a row is settled


@njit(cache=True, nogil=True)
def _place(high, low, words, index):
    """The place in the index where the key's row number stands, or where it would stand."""
    mask = index.shape[0] - 1
    rows = words.shape[0] - 1
    at = np.intp(high >> uint64(20)) & mask
    while index[at] != 0:
        row = (index[at] - 1) & rows
        if words[row, 0] == high and words[row, 1] == low:
            break
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _look_ahead(wanted, i, words, index):
    """Have fetched what row i + AHEAD will need of the rows, and row i + 2 AHEAD of the index."""
    mask = index.shape[0] - 1
    if i + 2 * AHEAD < wanted.shape[0]:
        prefetch(index.ctypes.data + 8 * (np.intp(wanted[i + 2 * AHEAD, 0] >> uint64(20)) & mask))
    if i + AHEAD < wanted.shape[0]:
        row = index[np.intp(wanted[i + AHEAD, 0] >> uint64(20)) & mask] - 1
        if row >= 0:
            address = words.ctypes.data + (row & (words.shape[0] - 1)) * words.strides[0]
            for line in range(0, words.strides[0], 64):
                prefetch(address + line)


@njit(cache=True, nogil=True)
def _find(wanted, words, index, found):
    """found int64 (B,): the number of the row with the key, -1: none."""
    for i in range(wanted.shape[0]):
        found[i] = index[_place(wanted[i, 0], wanted[i, 1], words, index)] - 1


@njit(cache=True, nogil=True)
def _claim(wanted, words, index, found, rows):
    """As _find, settle what is found, and copy it to rows (B, W), one after another; returns how many.

    found is ABSENT where no row waits, SETTLED where it was settled before.
    """
    mask = words.shape[0] - 1
    n = 0
    for i in range(wanted.shape[0]):
        _look_ahead(wanted, i, words, index)
        row = index[_place(wanted[i, 0], wanted[i, 1], words, index)] - 1
        if row >= 0:
            at = row & mask
            if words[at, FLAG] != 0:
                row = -2
            else:
                words[at, FLAG] = 1
                for w in range(words.shape[1]):
                    rows[n, w] = words[at, w]
                n += 1
        found[i] = row
    return n


@njit(cache=True, nogil=True)
def _append(new, words, index, end):
    """Give each new row (B, W) whose key does not wait yet the next number; returns the end."""
    mask = words.shape[0] - 1
    for i in range(new.shape[0]):
        if i + AHEAD < new.shape[0]:
            home = np.intp(new[i + AHEAD, 0] >> uint64(20)) & (index.shape[0] - 1)
            prefetch(index.ctypes.data + 8 * home)
        place = _place(new[i, 0], new[i, 1], words, index)
        if index[place] != 0:
            continue
        at = end & mask
        for w in range(new.shape[1]):
            words[at, w] = new[i, w]
        end += 1
        index[place] = end
    return end


@njit(cache=True, nogil=True)
def _leave(begin, end, words, index):
    """Take rows [begin, end) out of the index, moving back what was pushed past them."""
    mask = index.shape[0] - 1
    rows = words.shape[0] - 1
    for row in range(begin, end):
        if row + AHEAD < end:
            prefetch(index.ctypes.data + 8 * (np.intp(words[(row + AHEAD) & rows, 0] >> uint64(20)) & mask))
        hole = _place(words[row & rows, 0], words[row & rows, 1], words, index)
        at = (hole + 1) & mask
        while index[at] != 0:
            home = np.intp(words[(index[at] - 1) & rows, 0] >> uint64(20)) & mask
            if ((at - home) & mask) >= ((at - hole) & mask):
                index[hole] = index[at]
                hole = at
            at = (at + 1) & mask
        index[hole] = 0


@njit(cache=True, nogil=True)
def _move(begin, until, words, index, to_words, to_index, to_begin, to_end, most):
    """Take rows [begin, until) out; their keys and flags go behind the rows of another queue, of at most `most` rows.

    Returns how many of them were not settled, and begin and end of the other queue.
    """
    unsettled = 0
    for row in range(begin, until):
        unsettled += words[row & (words.shape[0] - 1), FLAG] == 0
    _leave(begin, until, words, index)
    begin = max(begin, until - most)
    over = to_end - to_begin + until - begin - most
    if over > 0:
        _leave(to_begin, to_begin + over, to_words, to_index)
        to_begin += over
    for row in range(begin, until):
        at = row & (words.shape[0] - 1)
        to_end = _append(words[at : at + 1, : FLAG + 1], to_words, to_index, to_end)
    return unsettled, to_begin, to_end


def row_of(columns: Columns) -> np.dtype:
    """The layout of one row: `key`, `settled`, then the columns, in whole words."""
    names, formats, offsets = ["key", "settled"], [("uint64", (2,)), "uint8"], [0, 8 * FLAG]
    at = 8 * (FLAG + 1)
    for name, of in sorted(columns.items(), key=lambda column: -np.dtype(column[1][0]).itemsize):
        names.append(name)
        formats.append(of)  # type: ignore[arg-type]
        offsets.append(at)
        at += np.dtype(of).itemsize
    layout: dict[str, Any] = {"names": names, "formats": formats, "offsets": offsets, "itemsize": -(-at // 8) * 8}
    return np.dtype(layout)  # type: ignore[call-overload]


class Ring:
    """Rows [begin, end) with their keys, whether they are settled, and columns.

    columns: name -> (dtype, shape of a row). Rows come and go as blocks of words, uint64 (B, W); `Ring.named` gives a
    block's columns by name, without a copy.
    """

    def __init__(self, columns: Columns) -> None:
        self.row = row_of(columns)
        self.width = self.row.itemsize // 8
        self.begin = self.end = 0
        self._allocate(FIRST_CAPACITY)

    def __len__(self) -> int:
        return self.end - self.begin

    def _allocate(self, capacity: int) -> None:
        self.mask = capacity - 1
        self.words: U64 = np.zeros((capacity, self.width), np.uint64)
        self.index: I64 = np.zeros(4 * capacity, np.int64)
        self.column = self.named(self.words)

    def blank(self, rows: int) -> U64:
        """A block of rows to be filled in."""
        return np.zeros((rows, self.width), np.uint64)

    def named(self, block: U64) -> NDArray:
        """A block's columns by name: a structured array (B,) over the same memory."""
        return block.view(self.row)[:, 0]

    def find(self, keys: U64) -> I64:
        """The row number of each key, -1 where it does not wait. keys uint64 (B, 2)."""
        found = np.empty(len(keys), np.int64)
        _find(keys, self.words, self.index, found)
        return found

    def claim(self, keys: U64) -> tuple[I64, U64]:
        """Settle rows, in order: the row number of each key, and the rows themselves, as they were before.

        The number is ABSENT where no row waits, SETTLED where it was settled; there is no row for these.
        """
        found, rows = np.empty(len(keys), np.int64), np.empty((len(keys), self.width), np.uint64)
        n = _claim(keys, self.words, self.index, found, rows)
        return found, rows[:n]

    def append(self, rows: U64) -> int:
        """Add rows but for those whose key waits already; returns how many were added."""
        self.reserve(len(self) + len(rows))
        end = _append(rows, self.words, self.index, self.end)
        added, self.end = end - self.end, end
        return added

    def leave(self, until: int) -> None:
        """Let rows [begin, until) go."""
        _leave(self.begin, until, self.words, self.index)
        self.begin = until

    def move(self, until: int, to: Ring, most: int) -> int:
        """As `leave`, but the rows go to the end of a queue without columns, from which its oldest rows leave.

        `to` holds `most` rows at most. Returns how many of the rows were not settled.
        """
        to.reserve(min(most, len(to) + until - self.begin))
        unsettled, to.begin, to.end = _move(
            self.begin, until, self.words, self.index, to.words, to.index, to.begin, to.end, most
        )
        self.begin = until
        return int(unsettled)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows."""
        if rows > self.mask + 1:
            held = self.rows(self.begin, self.end)
            self._allocate(1 << (rows - 1).bit_length())
            self._fill(held)

    def rows(self, begin: int, end: int) -> U64:
        """A copy of rows [begin, end), oldest first."""
        return self.words[np.arange(begin, end) & self.mask]

    def unsettled(self) -> int:
        """Rows that are not settled."""
        return len(self) - int(self.rows(self.begin, self.end)[:, FLAG].sum())

    def first_after(self, name: str, limit: int) -> int:
        """The first row whose value in a column that never falls is greater than limit; `end` if there is none."""
        values, low, high = self.column[name], self.begin, self.end
        while low < high:
            middle = (low + high) // 2
            if values[middle & self.mask] > limit:
                high = middle
            else:
                low = middle + 1
        return low

    def _fill(self, rows: U64) -> None:
        if _append(rows, self.words, self.index, self.begin) != self.end:
            raise ValueError("a key stands twice in a queue of waiting rows")

    def state(self) -> dict[str, NDArray]:
        """Copies of all rows by column, oldest first, with their keys and the number of the first."""
        rows = self.named(self.rows(self.begin, self.end))
        columns = {name: np.ascontiguousarray(rows[name]) for name in self.row.names or ()}
        return columns | {"begin": np.array([self.begin])}

    def load(self, state: Mapping[str, NDArray]) -> None:
        """Take over what `state` gave."""
        self.begin = int(state["begin"][0])
        self.end = self.begin + len(state["key"])
        self._allocate(max(FIRST_CAPACITY, 1 << max(0, len(self) - 1).bit_length()))
        rows = self.blank(len(self))
        named = self.named(rows)
        for name in self.row.names or ():
            named[name] = state[name]
        self._fill(rows)

    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.words.nbytes + self.index.nbytes
