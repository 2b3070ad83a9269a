"""How long a cycle takes: no longer than an event may wait, and longer while a worker is behind, which is cheaper."""

from __future__ import annotations

BEHIND_SECONDS = 0.1  # a cycle may take so long while more waits than it takes; the latency, if that is longer
TAKE_SECONDS = 0.02  # between two takes of what was fetched, where the worker is behind


class Pace:
    """Changed by who computes; others may look at any time.

    behind         more waited for the last cycle than it took
    cycle_seconds  how long the next cycle may take
    """

    def __init__(self, latency_seconds: float) -> None:
        self._latency_seconds = self.cycle_seconds = latency_seconds
        self.behind = False

    def adapt(self, behind: bool) -> None:
        """A cycle ends within the pipeline's latency; while the worker is behind each may take twice as long."""
        aim, self.behind = self._latency_seconds, behind
        self.cycle_seconds = min(2 * self.cycle_seconds, max(aim, BEHIND_SECONDS)) if behind else aim

    @property
    def patience_seconds(self) -> float:
        """From one take of what was fetched to the next: nothing waits while there is nothing else to do."""
        return TAKE_SECONDS if self.behind else 0.0
