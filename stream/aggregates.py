"""Aggregates over the stream, by key: each row reads them as the rows before it left them, then is folded in.

A group holds the keys (least recently used evicted at capacity); each aggregate of the group keeps arrays with a slot
per key. The arithmetic is in aggregate_kernels.py: rows are folded in one by one, so results do not depend on where the
stream is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..models.base import Array
from . import aggregate_kernels as kernels
from .aggregate_kernels import NEVER, PANES
from .features import Aggregate
from .hashing import U64

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def group_layout(capacity: int) -> dict[str, Array]:
    """The arrays of a group of keys."""
    index = 1 << max(4, (2 * capacity - 1).bit_length())
    return {
        "keys": Array((capacity,), "uint64"),
        "index": Array((index,), "int32"),
        "older": Array((capacity,), "int32", -1),
        "newer": Array((capacity,), "int32", -1),
        "meta": Array((4,), "int64"),
    }


KINDS = {"count": 0, "sum": 1, "mean": 2, "std": 3, "ewm": 2, "max": 1, "min": -1, "last": 0, "seconds_since": 1}


@dataclass(frozen=True)
class Fold:
    """One aggregate bound to its kernel."""

    feature: Aggregate

    def layout(self) -> dict[str, Array]:
        """The arrays of this aggregate, in the order in which its kernel takes them; C is the group's capacity."""
        f = self.feature
        rows, panes = (f.capacity,), (f.capacity, PANES)
        pane = Array(panes, "int64", NEVER)
        if f.kind in ("last", "seconds_since"):
            return {"seen": Array(rows, "int64", NEVER), "last": Array(rows, "float64")}
        if f.half_life:
            return {"since": Array(rows, "int64")} | {name: Array(rows, "float64") for name in ("n", "mean", "m2")}
        if f.kind in ("min", "max"):
            return {"pane": pane, "extreme": Array(panes, "float64")}
        if f.kind == "std":
            return {"pane": pane} | {name: Array(panes, "float64") for name in ("n", "mean", "m2")}
        return {"pane": pane, "n": Array(panes, "float64"), "s": Array(panes, "float64")}

    def row(self, arrays: Mapping[str, NDArray], g: int, moves: bool, what: int, column: int) -> list[int]:
        """What `fold_rows` has to know of it; the arrays stay where they are for as long as that is used."""
        f = self.feature
        width = max(1, (f.over or 0) // PANES)
        if f.kind in ("last", "seconds_since"):
            kernel, span = kernels.LATEST, f.over or 0
        elif f.half_life:
            kernel, span = kernels.DECAYED, f.half_life
        elif f.kind in ("min", "max"):
            kernel, span = kernels.EXTREME, width
        else:
            kernel, span = kernels.STD if f.kind == "std" else kernels.TOTALS, width
        addresses = [arrays[name].ctypes.data for name in self.layout()]
        return [g, kernel, KINDS[f.kind], span, int(moves), what, column, *addresses, *[0] * (4 - len(addresses))]


SLOTTED = ("keys", "older", "newer")  # arrays of a group with a row for each slot


@dataclass
class GroupTable:
    """The keys of a group and the aggregates that hang on them, over arrays that the engine owns."""

    keys: U64
    index: I32
    older: I32
    newer: I32
    meta: I64

    def row(self, column: int, write: bool) -> list[int]:
        """What `fold_rows` has to know of it: where its keys stand in a block, and whether new ones are inserted."""
        arrays = self.keys, self.index, self.older, self.newer, self.meta
        return [column, int(write), len(self.keys), len(self.index), *(array.ctypes.data for array in arrays)]

    @property
    def size(self) -> int:
        """Slots in use; they are the first ones."""
        return int(self.meta[kernels.SIZE])

    @property
    def evicted(self) -> int:
        """Keys that had to go, so far."""
        return int(self.meta[kernels.EVICTED])

    def reindex(self) -> None:
        """Make the index from the keys."""
        self.index[:] = 0
        kernels.reindex(self.keys[: self.size], self.index)


class FoldPlan:
    """Which aggregates move, by what, and where they are read: one call passes over rows with all of them."""

    def __init__(self, groups: list[list[int]], folds: list[list[int]]) -> None:
        self._groups = np.array(groups, np.int64).reshape(-1, 9)
        self._folds = np.array(folds, np.int64).reshape(-1, 11)

    def run(self, time: I64, key: U64, values: F64, label: F32, out: F32) -> None:
        """Row by row: read into out, then fold in.

        time int64 (B,)   key uint64 (B, columns)   values float64 (B, V)   label float32 (B,)
        out  float32 (B, N), its columns of aggregates changed in place
        """
        if len(self._groups):
            kernels.fold_rows(self._groups, self._folds, time, key, values, label, out)
