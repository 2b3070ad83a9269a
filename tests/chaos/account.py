"""What should come of the records and the journal of a chaos run: a plain account, one record after another.

Nothing here is shared with headrace; its rules are written down once more, from its documentation, for the pipeline of
shop.py. `Join` follows the journal and says which label met which event; learning.py says what the models of the slots
make of that. All times are microseconds since the epoch.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

HOUR = 3_600_000_000
WITHIN, EARLY, AHEAD = HOUR, HOUR // 6, HOUR
TICK = WITHIN // 96  # waits end at multiples of it
GONE = 1 << 16  # keys remembered after their wait has ended
NEVER = -(2**62)
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_000_000  # years 1 to 9999

COUNTERS = (
    "events", "predictions", "labels", "examples", "joined", "expired", "orphans", "late", "duplicates", "misplaced",
    "repeated", "dead_letters", "bad_events", "bad_labels",
)  # fmt: skip


# --- what is read


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float | None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool | None


class Raw(NamedTuple):
    """A record as it lies in a topic."""

    offset: int
    timestamp: int  # milliseconds
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Input:
    """The records of one partition of one topic: rows that are valid, by column, and those that are bad."""

    def __init__(self, role: str, end: int) -> None:
        self.role, self.end = role, end  # end: the offset behind the last record
        self._decode = msgspec.json.Decoder(Visit if role == "events" else Sale).decode
        self._offset, self._time, self._truth, self._bad = array("q"), array("q"), array("d"), array("q")
        self.key: list[str] = []
        self.record_key: list[bytes | None] = []
        self.site: list[str] = []
        self.bad: list[Raw] = []

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_decode"}

    def add(self, records: Iterable[Raw]) -> None:
        """Take the next records of the partition."""
        for record in records:
            row = self._valid(record)
            if row is None:
                self.bad.append(record)
                self._bad.append(record.offset)
                continue
            self._offset.append(record.offset)
            self._time.append(round(row.time * 1e6))
            self.key.append(row.id)
            self.record_key.append(record.key)
            if self.role == "events":
                self.site.append(row.site)
                self._truth.append(math.nan if row.price is None else row.price)
            else:
                self._truth.append(row.sold)

    def _valid(self, record: Raw) -> Any:
        """The row of a record, None for one that belongs among the dead letters."""
        if not record.value:
            return None
        try:
            row = self._decode(record.value)
        except (msgspec.DecodeError, ValueError):
            return None
        when = round(row.time * 1e6) if math.isfinite(row.time) else LATEST + 1
        if not EARLIEST <= when <= LATEST or when - record.timestamp * 1000 > AHEAD:
            return None
        return None if self.role == "labels" and row.sold is None else row

    def __len__(self) -> int:
        return len(self._offset)

    @property
    def offset(self) -> I64:
        return np.frombuffer(self._offset, np.int64)

    @property
    def bad_offset(self) -> I64:
        return np.frombuffer(self._bad, np.int64)

    @property
    def time(self) -> I64:
        return np.frombuffer(self._time, np.int64)

    @property
    def truth(self) -> F64:
        """The price of each event, NaN where it has none; the label of each sale, 0 or 1."""
        return np.frombuffer(self._truth, np.float64)


class Cycle(NamedTuple):
    """A record of the journal: pieces are (role, partition, start, next); at is its own offset."""

    at: int
    slot: int
    number: int
    pieces: Sequence[tuple[str, int, int, int]]


# --- which label meets which event


class Waiting(NamedTuple):
    """What waited in one partition at one moment; rows by their number, in order of arrival."""

    pending: list[int]  # events
    settled: list[bool]
    early: list[int]  # labels
    early_settled: list[bool]
    clocks: tuple[int, int]  # of events and of labels


@dataclass
class _Partition:
    events: Input
    labels: Input
    event_base: int  # the number of its first event among those of all partitions
    label_base: int
    pending: dict[str, int] = field(default_factory=dict)
    early: dict[str, int] = field(default_factory=dict)
    gone: OrderedDict[str, bool] = field(default_factory=OrderedDict)
    event_clock: int = NEVER
    label_clock: int = NEVER
    tick: int = NEVER


class Join:
    """Follows the journal record by record: who predicted what, which label met which event, and what waits.

    Events, and labels, are numbered over all partitions: those of partition 0 first. Whatever waits in a partition
    belongs to the partition, whichever slot works on it; the counts belong to the slot.

    slot, event, label  one entry per thing done, in order: a prediction for `event` (label -1), or an example of both
    """

    def __init__(self, inputs: Mapping[tuple[str, int], Input], partitions: int) -> None:
        self.partitions: list[_Partition] = []
        events = labels = 0
        for p in range(partitions):
            part = _Partition(inputs["events", p], inputs["labels", p], events, labels)
            self.partitions.append(part)
            events, labels = events + len(part.events), labels + len(part.labels)
        self.slot, self.event, self.label = array("i"), array("i"), array("i")
        self.counts: dict[int, dict[str, int]] = {}
        self.learned = array("i", [-1]) * events  # the label that each event was learned with
        self.label_settled = bytearray(labels)
        self._clock = array("q", [NEVER]) * events  # of its partition when an event began to wait
        self._label_clock = array("q", [NEVER]) * labels

    def follow(self, cycle: Cycle) -> None:
        """Do what a cycle did."""
        counts = self.counts.setdefault(cycle.slot, dict.fromkeys(COUNTERS, 0))
        for role, number, start, next in cycle.pieces:
            part = self.partitions[number]
            rows = part.events if role == "events" else part.labels
            first, last = np.searchsorted(rows.bad_offset, (start, next)).tolist()
            counts["dead_letters"] += last - first
            counts[f"bad_{role}"] += last - first
            lo, hi = np.searchsorted(rows.offset, (start, next)).tolist()
            (self._events if role == "events" else self._labels)(cycle.slot, counts, part, lo, hi)

    def _events(self, slot: int, counts: dict[str, int], part: _Partition, lo: int, hi: int) -> None:
        time, keys = part.events.time[lo:hi].tolist(), part.events.key
        for i, now in enumerate(time, lo):
            part.event_clock = max(part.event_clock, now)
            self._pass_tick(counts, part)
            event, key = part.event_base + i, keys[i]
            self._do(slot, event, -1)
            if key in part.pending:
                counts["repeated"] += 1
            else:
                part.pending[key] = event
                self._clock[event] = part.event_clock
            label = part.early.get(key, -1)
            if label >= 0 and not self.label_settled[label]:
                self.label_settled[label] = 1
                self._meet(slot, counts, part.pending[key], label)
        counts["events"] += len(time)
        counts["predictions"] += len(time)

    def _labels(self, slot: int, counts: dict[str, int], part: _Partition, lo: int, hi: int) -> None:
        time, keys = part.labels.time[lo:hi].tolist(), part.labels.key
        for i, now in enumerate(time, lo):
            part.label_clock = max(part.label_clock, now)
            self._pass_tick(counts, part)
            label, key = part.label_base + i, keys[i]
            if key in part.pending:
                self._meet(slot, counts, part.pending[key], label)
            elif key in part.gone:
                counts["duplicates" if part.gone[key] else "late"] += 1
            elif key in part.early:
                counts["duplicates"] += 1
            else:
                part.early[key] = label
                self._label_clock[label] = part.label_clock
        counts["labels"] += len(time)

    def _meet(self, slot: int, counts: dict[str, int], event: int, label: int) -> None:
        if self.learned[event] >= 0:
            counts["duplicates"] += 1
            return
        self.learned[event] = label
        counts["joined"] += 1
        counts["examples"] += 1
        self._do(slot, event, label)

    def _do(self, slot: int, event: int, label: int) -> None:
        self.slot.append(slot)
        self.event.append(event)
        self.label.append(label)

    def _pass_tick(self, counts: dict[str, int], part: _Partition) -> None:
        """End what has waited long enough, where the watermark has passed a tick."""
        tick = min(part.event_clock, part.label_clock) // TICK
        if tick <= part.tick:
            return
        part.tick = tick
        over = leading(part.pending, lambda event: self._clock[event] <= tick * TICK - WITHIN)
        counts["expired"] += sum(self.learned[part.pending[key]] < 0 for key in over)
        for _ in range(len(part.gone) + len(over[-GONE:]) - GONE):
            part.gone.popitem(last=False)
        for key in over[-GONE:]:
            part.gone.setdefault(key, self.learned[part.pending[key]] >= 0)
        for key in over:
            del part.pending[key]
        over = leading(part.early, lambda label: self._label_clock[label] <= tick * TICK - EARLY)
        counts["orphans"] += sum(not self.label_settled[part.early[key]] for key in over)
        for key in over:
            del part.early[key]

    def waiting(self, number: int) -> Waiting:
        """What waits in a partition now."""
        part = self.partitions[number]
        pending, early = list(part.pending.values()), list(part.early.values())
        return Waiting(
            pending, [self.learned[event] >= 0 for event in pending],
            early, [bool(self.label_settled[label]) for label in early],
            (part.event_clock, part.label_clock),
        )  # fmt: skip

    def must_be_learned(self) -> dict[int, int]:
        """Event -> the label that it has to be learned with, however the workers cut their cycles.

        Those whose key is that of one event alone, and whose first label lies, by the clocks of both topics, so far
        inside the wait on either side that no order of reading can miss it.
        """
        found: dict[int, int] = {}
        for part in self.partitions:
            event_clock = np.maximum.accumulate(part.events.time) if len(part.events) else part.events.time
            label_clock = np.maximum.accumulate(part.labels.time) if len(part.labels) else part.labels.time
            event_of: dict[str, int] = {}
            repeated = set()
            for i, key in enumerate(part.events.key):
                if event_of.setdefault(key, i) != i:
                    repeated.add(key)
            first: dict[str, int] = {}
            for i, key in enumerate(part.labels.key):
                first.setdefault(key, i)
            keys = [key for key in first if key in event_of and key not in repeated]
            events = np.array([event_of[key] for key in keys], np.int64)
            labels = np.array([first[key] for key in keys], np.int64)
            wait = label_clock[labels] - event_clock[events]
            sure = (wait > -EARLY) & (wait < WITHIN)
            found |= dict(zip((part.event_base + events[sure]).tolist(), (part.label_base + labels[sure]).tolist()))
        return found


def leading(waiting: Mapping[str, int], over: Callable[[int], bool]) -> list[str]:
    """The keys at the front for which `over` holds; arrival follows the clock, so the first that stays ends them."""
    keys = []
    for key, row in waiting.items():
        if not over(row):
            break
        keys.append(key)
    return keys
