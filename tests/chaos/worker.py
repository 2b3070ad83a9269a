"""A worker of headrace as a process, which may be killed, frozen and told to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from headrace.connectors import embedded

TAIL_LINES = 40


class Finding(AssertionError):
    """What a run found wrong before anything was read back; its text says what and where to look."""


class Worker:
    """One process of `headrace run`; what it prints goes to a file of its own.

    fates: the statuses it may end with; None: any; empty: it must not end.
    """

    fates: tuple[int, ...] | None = ()

    def __init__(self, number: int, log: Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self.number, self.log = number, log
        self.port = embedded.free_port()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--web-port", str(self.port)], cwd=log.parent, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, env=os.environ | environment, preexec_fn=die_with_us,
            )  # fmt: skip

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid}, {self.log.name})"

    def state(self, seconds: float = 1.0) -> str:
        """ "ready", what it says it does or waits for, or "starting" while it says nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=seconds):
                return "ready"
        except urllib.error.HTTPError as error:
            return error.read().decode() or f"status {error.code}"
        except (OSError, HTTPException):
            return "starting"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def tell_to_stop(self) -> None:
        """SIGTERM. It must end with status 0; one that has hardly begun does not know the signal yet."""
        self.fates = (0, -signal.SIGTERM) if self.state() == "starting" else (0,)
        self.signal(signal.SIGTERM)

    def judge(self) -> None:
        """Raise Finding when it has ended and should not have, or not like that."""
        status = self.process.poll()
        if status is not None and self.fates is not None and status not in self.fates:
            how = "was told to stop and" if self.fates else "by itself"
            raise Finding(f"{self} {how} ended with status {status}")


def tail(log: Path) -> str:
    """The last lines; without those in which aiokafka says again and again that a broker is away."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if ": aiokafka: " not in line][-TAIL_LINES:])


def die_with_us() -> None:
    """In a child, on Linux: SIGKILL when the thread that started it ends, however it ends. It outlives os.execv."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
