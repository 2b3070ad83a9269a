"""A queue of rows that can be found by key: first in, first out, with an index of 128-bit keys.

Three things of a partition wait in such queues: predictions for their label, early labels for their event, and the keys
that are gone, so that a late label can be told from an unknown one. A row's number never changes; rows keep their place
until they leave at the old end, so what an older part of the queue holds does not move.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from .hashing import U64

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Columns = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape of one row

FIRST_CAPACITY = 64
ABSENT, SETTLED = -1, -2  # in the place of a row number


@njit(cache=True, nogil=True)
def _place(high, low, keys, index):
    """The place in the index where the key's row number stands, or where it would stand."""
    mask = index.shape[0] - 1
    rows = keys.shape[0] - 1
    at = np.intp(high >> uint64(20)) & mask
    while index[at] != 0:
        row = (index[at] - 1) & rows
        if keys[row, 0] == high and keys[row, 1] == low:
            break
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True)
def _find(wanted, keys, index, found):
    """found int64 (B,): the number of the row with the key, -1: none."""
    for i in range(wanted.shape[0]):
        found[i] = index[_place(wanted[i, 0], wanted[i, 1], keys, index)] - 1


@njit(cache=True, nogil=True)
def _claim(wanted, keys, index, settled, found):
    """As _find, and settle what is found; found is ABSENT where no row waits, SETTLED where it was settled before."""
    mask = keys.shape[0] - 1
    for i in range(wanted.shape[0]):
        row = index[_place(wanted[i, 0], wanted[i, 1], keys, index)] - 1
        if row >= 0 and settled[row & mask]:
            row = -2
        elif row >= 0:
            settled[row & mask] = 1
        found[i] = row


@njit(cache=True, nogil=True)
def _append(new, keys, index, end, rows):
    """Give each new key a row number from `end` on; rows int64 (B,): the number, or -1 where the key waits already."""
    mask = keys.shape[0] - 1
    for i in range(new.shape[0]):
        at = _place(new[i, 0], new[i, 1], keys, index)
        if index[at] != 0:
            rows[i] = -1
            continue
        keys[end & mask, 0] = new[i, 0]
        keys[end & mask, 1] = new[i, 1]
        index[at] = end + 1
        rows[i] = end
        end += 1
    return end


@njit(cache=True, nogil=True)
def _leave(begin, end, keys, index):
    """Take rows [begin, end) out of the index, moving back what was pushed past them."""
    mask = index.shape[0] - 1
    rows = keys.shape[0] - 1
    for row in range(begin, end):
        hole = _place(keys[row & rows, 0], keys[row & rows, 1], keys, index)
        at = (hole + 1) & mask
        while index[at] != 0:
            home = np.intp(keys[(index[at] - 1) & rows, 0] >> uint64(20)) & mask
            if ((at - home) & mask) >= ((at - hole) & mask):
                index[hole] = index[at]
                hole = at
            at = (at + 1) & mask
        index[hole] = 0


class Ring:
    """Rows [begin, end) with their keys and columns.

    columns: name -> (dtype, shape of a row). `column[name][row & mask]` is row's value; use `gather` for many.
    """

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.begin = self.end = 0
        self._allocate(FIRST_CAPACITY)

    def __len__(self) -> int:
        return self.end - self.begin

    def _allocate(self, capacity: int) -> None:
        self.mask = capacity - 1
        self.keys: U64 = np.zeros((capacity, 2), np.uint64)
        self.index: I64 = np.zeros(4 * capacity, np.int64)
        self.column: dict[str, NDArray] = {
            name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in self.columns.items()
        }

    def find(self, keys: U64) -> I64:
        """The row number of each key, -1 where it does not wait. keys uint64 (B, 2)."""
        found = np.empty(len(keys), np.int64)
        _find(keys, self.keys, self.index, found)
        return found

    def claim(self, keys: U64) -> I64:
        """Settle rows, in order: the row number of each key, ABSENT where none waits, SETTLED where it was settled.

        For queues with a uint8 column `settled`.
        """
        found = np.empty(len(keys), np.int64)
        _claim(keys, self.keys, self.index, self.column["settled"], found)
        return found

    def append(self, keys: U64, columns: Mapping[str, NDArray]) -> Bools:
        """Add rows; False where the key waits already, and that row is not added. Columns hold one value a key."""
        if len(self) + len(keys) > self.mask + 1:
            self._grow(len(self) + len(keys))
        rows = np.empty(len(keys), np.int64)
        end = _append(keys, self.keys, self.index, self.end, rows)
        added = rows >= 0
        if end - self.end == len(keys):
            to = rows & self.mask
            for name, values in columns.items():
                self.column[name][to] = values
        else:
            to = rows[added] & self.mask
            for name, values in columns.items():
                self.column[name][to] = values[added]
        self.end = int(end)
        return added

    def leave(self, until: int) -> None:
        """Let rows [begin, until) go."""
        _leave(self.begin, until, self.keys, self.index)
        self.begin = until

    def gather(self, name: str, rows: I64) -> NDArray:
        """A copy of the column at these row numbers."""
        return self.column[name][rows & self.mask]

    def span(self, name: str) -> NDArray:
        """A copy of the whole column, oldest row first."""
        return self.gather(name, np.arange(self.begin, self.end))

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

    def _grow(self, rows: int) -> None:
        state = self.state()
        self._allocate(1 << (rows - 1).bit_length())
        self._fill(state)

    def _fill(self, state: Mapping[str, NDArray]) -> None:
        keys = state["key"]
        to = np.arange(self.begin, self.end) & self.mask
        for name in self.columns:
            self.column[name][to] = state[name]
        rows = np.empty(len(keys), np.int64)
        _append(keys, self.keys, self.index, self.begin, rows)
        if (rows < 0).any():
            raise ValueError("a key stands twice in a queue of waiting rows")

    def state(self) -> dict[str, NDArray]:
        """Copies of all rows, oldest first, with their keys and the number of the first."""
        rows = np.arange(self.begin, self.end) & self.mask
        return {"key": self.keys[rows], "begin": np.array([self.begin])} | {
            name: column[rows] for name, column in self.column.items()
        }

    def load(self, state: Mapping[str, NDArray]) -> None:
        """Take over what `state` gave."""
        self.begin = int(state["begin"][0])
        self.end = self.begin + len(state["key"])
        self._allocate(max(FIRST_CAPACITY, 1 << max(0, len(self) - 1).bit_length()))
        self._fill(state)

    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.index.nbytes + sum(c.nbytes for c in self.column.values())
