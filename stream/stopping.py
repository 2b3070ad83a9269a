"""What stops a stream: most records bad, labels in another partition than their event, more waits than declared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..models.base import Array
from .counters import Counters
from .declaration import Pipeline
from .decode import Batch
from .slices import DeadLetter, Role

BAD_WINDOW = 1_000  # records over which the share of bad ones is taken
MISPLACED_WINDOW = 1_000
MISPLACED_SHARE = 0.2


class Stops:
    """Says why a stream is to stop here, in words for its user; over arrays that the engine owns."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def layout(self) -> dict[str, Array]:
        """The arrays."""
        return {
            "bad": Array((BAD_WINDOW,), "uint8"),  # the last records: 1 is bad
            "bad_at": Array((1,), "int64"),  # records so far: the next one goes there, modulo BAD_WINDOW
            "forgiven": Array((1,), "uint8"),  # 1: told to go on although labels are misplaced
        }

    def bind(self, arrays: Mapping[str, NDArray]) -> None:
        """Work in place on arrays as `layout()` says."""
        self._bad, self._bad_at, self._forgiven = (arrays[name] for name in self.layout())

    def forgive(self) -> None:
        """Go on after a stop: the share of bad records is taken anew, misplaced labels are only counted."""
        self._bad[:] = 0
        self._forgiven[:] = 1

    def watch_bad_share(self, batch: Batch, lo: int, hi: int, dead: list[DeadLetter]) -> tuple[int, str] | None:
        """Count the records of a piece, good ones and bad ones, in their order.

        Where too many of the last BAD_WINDOW are bad, returns the offset behind the first bad record at which they are,
        and what to say; then only the records up to there are counted.
        """
        window, at = self._bad, self._bad_at
        if not dead:
            if np.count_nonzero(window.view(np.bool_)):
                window[(at[0] + np.arange(hi - lo))[-BAD_WINDOW:] % BAD_WINDOW] = 0
            at[0] += hi - lo
            return None
        offsets = np.concatenate([batch.offset[lo:hi], np.array([letter.record.offset for letter in dead], np.int64)])
        order = np.argsort(offsets, kind="stable")
        bad = (order >= hi - lo).astype(np.uint8)
        sums = np.cumsum(np.concatenate([[0], np.roll(window, -at[0] % BAD_WINDOW), bad]), dtype=np.int64)
        limit = self._pipeline.max_bad_share
        of_last = sums[BAD_WINDOW + 1 :] - sums[1:-BAD_WINDOW]  # bad ones among the last BAD_WINDOW, after each record
        over = np.flatnonzero(bad & (of_last > limit * BAD_WINDOW))
        found = None
        if len(over):
            last = int(over[0])
            letter, count = dead[order[last] - (hi - lo)], int(of_last[last])
            why = (
                f"{count} of the last {BAD_WINDOW:,} records were bad, {count / BAD_WINDOW:.0%} where max_bad_share is "
                f"{limit:.0%}: has a schema changed? "
                f"The last: {self._topic(batch.role)}[{letter.partition}]@{letter.record.offset}: "
                f"{letter.reason}{f' at `{letter.path}`' if letter.path else ''}"
            )
            bad, found = bad[: last + 1], (letter.record.offset + 1, why)
        window[(at[0] + np.arange(len(bad)))[-BAD_WINDOW:] % BAD_WINDOW] = bad[-BAD_WINDOW:]
        at[0] += len(bad)
        return found

    def _topic(self, role: Role) -> str:
        labels = self._pipeline.labels
        return str(labels.topic) if role == "labels" and labels is not None else self._pipeline.events.topic

    def too_many_wait(self, rows: int) -> str:
        """What to say when so many predictions wait for their label."""
        labels = self._pipeline.labels
        assert labels is not None
        return (
            f"{rows:,} predictions wait for their label, pending_limit is {self._pipeline.pending_limit:,}: do labels "
            f"arrive on {labels.topic}? Otherwise wait less long (within={labels.within!r}) or raise the limit"
        )

    def watch_misplaced(self, counters: Counters) -> str | None:
        """What to say where too many of the first MISPLACED_WINDOW labels lie in another partition than their event."""
        misplaced = counters.now("misplaced")
        if not misplaced or self._forgiven[0]:
            return None
        seen = misplaced + counters.now("joined")
        if misplaced <= MISPLACED_SHARE * MISPLACED_WINDOW or seen > MISPLACED_WINDOW:
            return None
        events, labels = self._pipeline.events, self._pipeline.labels
        assert labels is not None
        return (
            f"{misplaced} of the first {seen} labels lie in another partition than their event: {events.topic} and "
            f"{labels.topic} are not partitioned alike. Produce both with the record key `{events.key}`, the same "
            "partitioner and the same number of partitions"
        )
