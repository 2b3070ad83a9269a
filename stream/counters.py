"""What an engine counts, since the beginning of the stream."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# examples + unlearned = joined + those expired that `otherwise` gives a label. A new counter goes to the end: a state
# of before has none of it.
COUNTERS = (
    "events",  # records of the events topic that were predicted
    "predictions",
    "labels",  # records of the labels topic that held a label, and labels in events
    "examples",  # rows learned from
    "joined",  # labels that met their prediction
    "expired",  # predictions whose wait ran out
    "orphans",  # labels whose event never came
    "late",  # labels after their event's wait ran out
    "duplicates",  # labels for an event that has its label
    "misplaced",  # labels whose event waits in another partition
    "repeated",  # events whose key waits already: predicted, not learned from
    "dead_letters",
    "bad_events",
    "bad_labels",
    "unlearned",  # rows that would be examples, but their weight is 0, or label or end of wait came while muted
    "drifts",  # times that the detector of drift fired
    "infinite",  # numeric features of events that were infinite, and taken as missing
    "unusable",  # labels in events that name no class or are not finite: the event is predicted, not learned from
)

COUNTER_AT = {name: at for at, name in enumerate(COUNTERS)}


class Counters:
    """Counts by name, over an array that the engine owns."""

    def bind(self, array: NDArray[np.int64]) -> None:
        """Count in array int64 (len(COUNTERS),), in place."""
        self._array = array

    def add(self, name: str, n: int) -> None:
        """Count n more."""
        self._array[COUNTER_AT[name]] += n

    def now(self, name: str) -> int:
        """One of the counts; cheap."""
        return int(self._array[COUNTER_AT[name]])

    def all(self) -> dict[str, int]:
        """All of them."""
        return dict(zip(COUNTERS, self._array.tolist(), strict=True))
