"""Partitions that another slot worked on before: their states are fetched beside the stream, one slot at a time.

begin          a partition was assigned to us, and the group says that slot k has committed it
arrived        its state is here, as it stood at the committed offsets: it is taken in between two cycles
taken_in       the journal says so; now a snapshot has to hold it, or a crash would lose it
published      the snapshot is there: the partition is live
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping

from ..errors import Refused, Unreachable
from .slices import Role
from .standing import Left

log = logging.getLogger("headrace")

Fetch = Callable[[int, Mapping[int, Mapping[Role, int]], Callable[[int, int], bool]], dict[int, Left]]

RETRY_SECONDS = 1.0


class Adoption:
    """What is on its way to us. Methods are called in the event loop; `fetch` runs in a thread of its own.

    sources  partition -> the slot it comes from, until it is live
    problem  why a state cannot be fetched now, although it can be later; None: all is well
    error    why it never can be
    """

    def __init__(self, fetch: Fetch, wake: Callable[[], None]) -> None:
        self._fetch, self._wake = fetch, wake
        self.sources: dict[int, int] = {}
        self.problem: str | None = None
        self.error: BaseException | None = None
        self._arrived: dict[int, Left] = {}
        self._tokens: dict[int, int] = {}  # taken in: a snapshot with at least this token holds it
        self._task: asyncio.Task[None] | None = None
        self._epoch = 0

    def begin(self, wanted: Mapping[int, tuple[int, Mapping[Role, int]]], waiting: Collection[int]) -> None:
        """Fetch the states of partitions {number: (slot, committed offsets)}.

        `waiting`: partitions that were taken in before this assignment; those that no snapshot holds yet still wait.
        """
        self._tokens = {number: token for number, token in self._tokens.items() if number in waiting}
        self.sources = {number: slot for number, (slot, _) in wanted.items()}
        if wanted:
            self._task = asyncio.create_task(self._run(wanted, self._epoch))

    async def _run(self, wanted: Mapping[int, tuple[int, Mapping[Role, int]]], epoch: int) -> None:
        for slot in sorted(set(self.sources.values())):
            offsets = {number: at for number, (of, at) in wanted.items() if of == slot}
            numbers = ", ".join(map(str, sorted(offsets)))
            log.info("fetching what waits in partitions %s from slot %d", numbers, slot)
            while epoch == self._epoch:
                try:
                    states = await asyncio.to_thread(self._fetch, slot, offsets, lambda *_: epoch == self._epoch)
                except (Unreachable, Refused) as error:
                    if self.problem is None:
                        log.warning("partitions %s wait for their state: %s; trying again", numbers, error)
                    self.problem = str(error)
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                except Exception as error:
                    self.error = error
                    self._wake()
                    return
                self.problem = None
                if epoch == self._epoch:
                    self._arrived |= states
                    self._wake()
                break

    def arrived(self) -> dict[int, Left]:
        """The states that came since this was asked last; raises what makes it impossible to have them."""
        if self.error is not None:
            raise self.error
        arrived, self._arrived = self._arrived, {}
        return arrived

    def taken_in(self, numbers: Collection[int], token: int) -> None:
        """The journal record at offset `token` says that these partitions are ours with their states."""
        self._tokens |= dict.fromkeys(numbers, token)

    def unpublished(self) -> set[int]:
        """Partitions that were taken in, and that no snapshot holds yet."""
        return set(self._tokens)

    def published(self, token: int) -> list[int]:
        """The partitions that are live from now on, for a snapshot with this token is published."""
        live = sorted(number for number, at in self._tokens.items() if at <= token)
        for number in live:
            del self._tokens[number]
            self.sources.pop(number, None)
        return live

    def abandon(self) -> None:
        """The assignment is over: what is being fetched is not wanted any more."""
        self._epoch += 1
        if self._task is not None:
            self._task.cancel()
        self._task = self.error = self.problem = None
        self.sources, self._arrived = {}, {}
