"""A start waits for the servers that it needs, and says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import HeadraceError
from .health import waiting
from .preflight import can_pass

log = logging.getLogger("headrace")

Answer = TypeVar("Answer")

SILENCE_SECONDS = 8.0  # after that a question without an answer is spoken of
SAY_SECONDS = 30.0
FIRST_SECONDS, LONGEST_SECONDS = 0.2, 5.0  # between two questions


class Waiting:
    """Asks until it is answered. `reasons` is what is waited for at present and why, by its name."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._said = -SAY_SECONDS

    async def until_answered(self, name: str, address: str, question: Callable[[], Answer]) -> Answer:
        """What question() returns, asked in a thread and again and again as long as its error can pass.

        Raises the error that cannot.
        """
        pause = FIRST_SECONDS
        self._said = -SAY_SECONDS
        while True:
            answer = asyncio.ensure_future(in_a_thread(question))
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it then
            try:
                await asyncio.wait({answer}, timeout=SILENCE_SECONDS)
                while not answer.done():
                    if name in self.reasons or not self.reasons:  # else the question has said what it waits for
                        self._wait_for(name, self.reasons.get(name, f"no answer of {address} yet; is it well?"))
                    await asyncio.wait({answer}, timeout=SAY_SECONDS)
                done = answer.result()
            except HeadraceError as error:
                if not can_pass(error):
                    raise
                self._wait_for(name, str(error))
            else:
                self.reasons.pop(name, None)
                return done
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_SECONDS)

    def _wait_for(self, name: str, why: str) -> None:
        self.reasons[name] = why
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            log.warning("%s", waiting(name, why))


async def in_a_thread(work: Callable[[], Answer]) -> Answer:
    """What work() returns, from a thread that the end of the process does not wait for: it may hang."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def tell(done: Callable[[Any], None], what: Any) -> None:
        if not future.done():
            done(what)

    def run() -> None:
        try:
            told: tuple[Callable[[Any], None], Any] = future.set_result, work()
        except BaseException as error:
            told = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for it
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=run, name="headrace-question", daemon=True).start()
    return await future
