"""When a snapshot is prepared, and when it is taken: between two cycles, or at the end of one."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection

from .process import undisturbed
from .publisher import SnapshotPublisher
from .snapshot import NAN_ALLOWED, pack, place
from .standing import Standing


class SnapshotSchedule:
    """What is due, and how long the last snapshot held up the stream.

    due_at         by the monotonic clock
    wanted         one was due, and what is large of it is copied beside the stream: the rest is at the end of a cycle
    taken          one is copied, and the cycle that it was copied after is not committed yet
    stall_seconds  how long the last one took of the time of the stream
    """

    def __init__(
        self, every_seconds: float, enter: Callable[[str], None], waiting: Callable[[], Collection[int]]
    ) -> None:
        """
        enter    told that the stage of the copy begins
        waiting  gives the partitions that go live once a snapshot is published: while there are any, it comes sooner
        """
        self._every_seconds, self._enter, self._waiting = every_seconds, enter, waiting
        self.due_at = 0.0
        self.wanted = self.taken = False
        self.stall_seconds = 0.0

    def next(self) -> None:
        """From now on the time runs to the one after."""
        every = self._every_seconds
        self.due_at = time.monotonic() + (min(every, 1.0) if self._waiting() else every)

    def prepare_if_due(self, publisher: SnapshotPublisher) -> None:
        """The stream is busy: what is large is copied beside it, the rest at the end of a cycle soon."""
        if time.monotonic() >= self.due_at and not publisher.busy and not self.taken:
            self.next()
            self.wanted = publisher.prepare()

    async def take_if_due(
        self,
        publisher: SnapshotPublisher,
        standing: Standing,
        in_compute: Callable[[Callable[[], bool]], Awaitable[bool]],
        force: bool = False,
    ) -> None:
        """Take a snapshot between two cycles and publish it; nothing may be computing or committing.

        What is large is copied before, beside the stream, which may go on at any moment; not with `force`.
        """
        token = standing.position.journal - 1
        due = force or self.wanted or time.monotonic() >= self.due_at
        if due and not publisher.busy and token > publisher.token:
            if not (force or publisher.ready):
                self.wanted = publisher.prepare()
                return
            self.next()
            await in_compute(lambda: self._take(publisher, standing))
            publisher.publish(token, **place(standing.position))
        elif due and not publisher.busy and token >= 0:
            self.next()
            publisher.check()

    def waits_for_cycle(self, publisher: SnapshotPublisher) -> bool:
        """Whether a snapshot waits for the end of the cycle that is being computed."""
        return self.wanted and publisher.prepared

    def end_cycle(self, publisher: SnapshotPublisher, standing: Standing) -> bool:
        """At the end of a cycle, by who computes: take what waits for it; True: `publish` it when that is committed."""
        if not self.waits_for_cycle(publisher):
            return False
        if not publisher.ready:
            publisher.prepare()
            return False
        self.taken = self._take(publisher, standing)
        return self.taken

    def _take(self, publisher: SnapshotPublisher, standing: Standing) -> bool:
        """Copy the state as it is now."""
        self._enter("snapshot")
        began = time.perf_counter()
        with undisturbed():
            taken = publisher.take(*pack(standing), NAN_ALLOWED)
        self.stall_seconds = time.perf_counter() - began
        self.wanted = self.wanted and not taken
        return taken
