"""Any doubt about what is committed is answered by starting over: the same command, in the same process.

To the broker and to Redis that is a SIGKILL and a restart, which recovery is made for. What one start tells the next
goes through the environment: how many there were, and how many of them in a row came to nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from aiokafka.errors import ConsumerStoppedError, KafkaError

from ..errors import HeadraceError, Refused, Unreachable

log = logging.getLogger("headrace")

VARIABLE = "HEADRACE_STARTED_OVER"
FIRST_SECONDS, LONGEST_SECONDS = 0.2, 15.0
REFUSALS = 10  # so many in a row are no accident
ENDING = (signal.SIGTERM, signal.SIGINT)


class StartOver(HeadraceError):
    """The worker starts over by its own will; `environment` is what the next start is told."""

    def __init__(self, reason: str, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.environment = dict(environment or {})


class Starts(NamedTuple):
    """The starts over of this process.

    total      all of them
    fruitless  those since a cycle was committed last: the next one waits the longer
    refused    of these, how many in a row were due to a server that said no
    """

    total: int = 0
    fruitless: int = 0
    refused: int = 0

    @classmethod
    def so_far(cls) -> Starts:
        """As the environment tells."""
        return cls(*map(int, os.environ.get(VARIABLE, "").split()))

    def write(self) -> None:
        os.environ[VARIABLE] = " ".join(map(str, self))

    @property
    def pause_seconds(self) -> float:
        """How long the next start over waits."""
        return min(FIRST_SECONDS * 2.0**self.fruitless, LONGEST_SECONDS)

    def after(self, error: BaseException) -> Starts:
        """The books once this error has led to another one."""
        return Starts(self.total + 1, self.fruitless + 1, self.refused + 1 if is_refusal(error) else 0)


def succeeded() -> None:
    """A cycle was committed: whatever comes next is a new trouble."""
    starts = Starts.so_far()
    if starts.fruitless:
        Starts(starts.total).write()


def can_help(error: BaseException) -> bool:
    """Whether starting over can help: not against bad input, a stop, or a fault of ours."""
    if isinstance(error, HeadraceError):
        return isinstance(error, (Unreachable, Refused, StartOver))
    return isinstance(error, (KafkaError, ConsumerStoppedError, ConnectionError, TimeoutError, socket.gaierror))


def is_refusal(error: BaseException) -> bool:
    """Whether a server said no, and not merely that it cannot now: in a row that is a wrong setting."""
    told = error.__cause__ if isinstance(error, HeadraceError) and error.__cause__ is not None else error
    return isinstance(error, (Refused, KafkaError)) and not getattr(told, "retriable", False)


def too_often(error: BaseException) -> bool:
    """Whether one more start over would only be refused again."""
    return Starts.so_far().after(error).refused >= REFUSALS


def announce(error: BaseException) -> float:
    """Say that the worker starts over because of this, and write it down; returns the seconds to wait before it."""
    starts = Starts.so_far()
    seconds = starts.pause_seconds
    log.warning("%s. Starting over in %.1f s", str(error).rstrip(".") or repr(error), seconds)
    starts.after(error).write()
    if isinstance(error, StartOver):
        os.environ.update(error.environment)
    return seconds


def run_again() -> NoReturn:
    """Become the same command anew. In the main thread; nothing is closed, and no file stays open.

    A signal that comes before the next start can take it waits until `take_signals`.
    """
    flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)  # else another thread would take it, and it would be lost
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError as error:
        log.critical("%s cannot be started again: %s", sys.executable, error)
        os._exit(1)


def take_signals() -> None:
    """Those that came since the last `run_again` come now; call it once they have their handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def flush() -> None:
    """What was printed and logged is out: the process ends without Python's end."""
    for out in (*logging.root.handlers, sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            out.flush()
