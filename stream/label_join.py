"""The label join of one partition: predictions wait for their label, and labels for their event, in event time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .align import BEFORE_ALL
from .declaration import Pipeline
from .decode import Batch
from .ring import ABSENT, FLAG, SETTLED, Columns, Ring

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]

TICKS = 96  # waits end at multiples of within / TICKS of the watermark
GONE = 1 << 16  # keys remembered after their row has left, to tell late and repeated labels from unknown ones


@dataclass(frozen=True)
class Terms:
    """On which terms predictions and labels wait; times in microseconds."""

    within: int  # a prediction for its label
    tick: int  # waits end at multiples of it
    early: int  # a label for its event
    otherwise: float  # the label of a prediction whose wait is over; NaN: none
    weighted: bool  # labels have weights
    values: int  # columns of Batch.values of labels
    pending: Columns  # what a prediction waits with

    @classmethod
    def of(cls, pipeline: Pipeline, values: int, pending: Columns) -> Terms:
        """Those that a pipeline declares."""
        labels = pipeline.labels
        weighted = labels is not None and labels.weight is not None
        if labels is None or not pipeline.delayed:
            return cls(0, 1, 0, math.nan, weighted, values, pending)
        otherwise = math.nan
        if (value := labels.otherwise) is not None:
            otherwise = float(pipeline.classes.index(value) if isinstance(value, str) else value)
        tick = max(1, (labels.within_us or 1) // TICKS)
        return cls(labels.within_us, tick, labels.early_us, otherwise, weighted, values, pending)


class Met(NamedTuple):
    """Predictions that have met their label, in this order."""

    rows: U64  # (B, W) as they waited in pending
    time: I64  # (B,)
    y: F32  # (B,)
    values: NDArray[np.float64]  # (B, V)
    weight: F32 | None = None  # (B,); None: 1 each


class PartitionState:
    """What belongs to one partition: clocks, predictions that wait, early labels, keys that are gone."""

    def __init__(self, terms: Terms, count: Callable[[str, int], None]) -> None:
        """count  told (name, how many), of the names of counters.py"""
        self.terms, self._count = terms, count
        self.pending = Ring(terms.pending)
        self.early = Ring(
            {
                "clock": ("int64", ()),
                "time": ("int64", ()),
                "y": ("float32", ()),
                "values": ("float64", (terms.values,)),
                **({"weight": ("float32", ())} if terms.weighted else {}),
            }
        )
        self.gone = Ring({})
        # clock of events, clock of labels, tick up to which waits have ended, end mark of events, end mark of labels
        self.clocks: I64 = np.array([BEFORE_ALL, BEFORE_ALL, BEFORE_ALL, 0, 0], np.int64)

    def state(self) -> dict[str, NDArray]:
        """Copies of all of it."""
        arrays = {"clocks": self.clocks.copy()}
        for name in ("pending", "early", "gone"):
            ring: Ring = getattr(self, name)
            arrays |= {f"{name}/{column}": array for column, array in ring.state().items()}
        return arrays

    def load(self, arrays: Mapping[str, NDArray]) -> None:
        """Take over what `state` gave."""
        self.clocks[:] = arrays["clocks"]
        tick = min(self.clocks[:2]) // self.terms.tick
        self.clocks[2] = min(self.clocks[2], tick)  # the wait may have been declared anew
        for name in ("pending", "early", "gone"):
            ring: Ring = getattr(self, name)
            prefix = f"{name}/"
            ring.load({key[len(prefix) :]: a for key, a in arrays.items() if key.startswith(prefix)})

    def join(self, batch: Batch, a: int, b: int, clock: I64, all_parts: Iterable[PartitionState]) -> Met:
        """Labels have come, rows [a, b) of a batch, at these clocks int64 (b - a,): what they meet here.

        The others are late, repeated, misplaced (their event waits in another of all_parts), or early, and wait.
        """
        found, rows = self.pending.claim(batch.key_hash[a:b])
        if len(rows) == b - a:
            at: Any = slice(a, b)
        else:
            at = a + np.flatnonzero(found >= 0)
            self._count("duplicates", int((found == SETTLED).sum()))
            absent = found == ABSENT
            if absent.any():
                self._unmet(batch, a + np.flatnonzero(absent), clock[absent], all_parts)
        self._count("joined", len(rows))
        weight = batch.weights(at) if self.terms.weighted else None
        return Met(rows, batch.time[at], batch.y[at], batch.values[at], weight)

    def _unmet(self, batch: Batch, rows: I64, clock: I64, all_parts: Iterable[PartitionState]) -> None:
        """Labels whose event does not wait here: late, repeated, misplaced, or early."""
        keys = batch.key_hash[rows]
        gone = self.gone.find(keys)
        known = gone >= 0
        settled = int(self.gone.column["settled"][gone[known] & self.gone.mask].sum())
        self._count("duplicates", settled)
        self._count("late", int(known.sum()) - settled)
        elsewhere = np.zeros(len(rows), bool)
        for other in all_parts:
            if other is not self and len(other.pending):
                elsewhere |= other.pending.find(keys) >= 0
        elsewhere &= ~known
        self._count("misplaced", int(elsewhere.sum()))
        rest = ~known & ~elsewhere
        if rest.any():
            at = rows[rest]
            new = self.early.blank(len(at))
            columns = self.early.named(new)
            columns["key"], columns["clock"], columns["time"] = keys[rest], clock[rest], batch.time[at]
            columns["y"], columns["values"] = batch.y[at], batch.values[at]
            if self.terms.weighted:
                columns["weight"] = batch.weights(at)
            self._count("duplicates", len(at) - self.early.append(new))

    def early_matches(self, batch: Batch, lo: int, hi: int) -> set[int]:
        """Rows of the batch whose label is here already, or was."""
        if not len(self.early):
            return set()
        return set((lo + np.flatnonzero(self.early.find(batch.key_hash[lo:hi]) >= 0)).tolist())

    def settle_early(self, batch: Batch, row: int) -> Met | None:
        """An event has come whose label was here before it, and its prediction waits in pending."""
        key = batch.key_hash[row : row + 1]
        _, labels = self.early.claim(key)
        if not len(labels):
            return None  # its wait ended at a tick just now, or an event before this one has it
        _, rows = self.pending.claim(key)  # one: a label that finds its event does not wait here
        self._count("joined", 1)
        label = self.early.named(labels)
        names = ("time", "y", "values", "weight") if self.terms.weighted else ("time", "y", "values")
        return Met(rows, *(np.ascontiguousarray(label[name]) for name in names))

    def pass_tick(self, tick: int) -> Met | None:
        """End the waits that are over at this tick."""
        self.clocks[2] = tick
        met = None
        if len(self.pending):
            met = self._expire(self.pending.first_after("clock", tick * self.terms.tick - self.terms.within))
        if len(self.early):
            self._forget_early(self.early.first_after("clock", tick * self.terms.tick - self.terms.early))
        return met

    def end(self) -> Met | None:
        """End every wait."""
        met = self._expire(self.pending.end)
        self._forget_early(self.early.end)
        return met

    def _forget_early(self, until: int) -> None:
        rows = self.early.rows(self.early.begin, until)
        self._count("orphans", int((rows[:, FLAG] == 0).sum()))
        self.early.leave(until)

    def _expire(self, until: int) -> Met | None:
        """Let predictions go whose wait is over; those without a label are learned as `otherwise`, if declared."""
        pending, met = self.pending, None
        if until == pending.begin:
            return None
        if not math.isnan(self.terms.otherwise):
            rows = pending.rows(pending.begin, until)
            left = rows[rows[:, FLAG] == 0]
            y = np.full(len(left), self.terms.otherwise, np.float32)
            time = np.full(len(left), int(self.clocks[2]) * self.terms.tick)
            met = Met(left, time, y, np.full((len(left), self.terms.values), np.nan))
        self._count("expired", pending.move(until, self.gone, GONE))
        return met
