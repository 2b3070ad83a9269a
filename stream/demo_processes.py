"""The processes of the demo: each has a log of its own, and ends when the demo ends, however it ends."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..connectors import guard
from ..errors import StreamStopped

COMMAND_LINE = (sys.executable, "-c", "from headrace.stream.cli import main; main()")
PRODUCER = (sys.executable, "-m", "headrace.stream.demo_producer")
STOP_SECONDS = 25.0  # a worker finishes its cycle and publishes a last snapshot; its guard ends it after 15 s


class Process:
    """One process under a guard (connectors/guard.py), to be used in a `with` statement that ends it.

    name    in words, for messages
    folder  made if needed, holds `log`, which takes all that the process prints

    Ctrl-C in the terminal does not reach it.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        self.name, self.command, self.folder = name, command, folder
        self.log = folder / "log"
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(self.folder), "0", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        assert self._guard is not None
        return self._guard.poll()

    def stop(self) -> int:
        """SIGTERM, SIGKILL when that does not help; returns the exit status when the process is gone."""
        assert self._guard is not None
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.close()  # the guard takes the end of the pipe for the word
            return self._guard.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()  # and with it the process
            return self._guard.wait()

    def lines(self) -> list[str]:
        """What it has printed so far."""
        return self.log.read_text(errors="replace").splitlines()

    def failed(self, why: str) -> StreamStopped:
        """The error that says what happened to it, with its last lines."""
        last = "\n".join(f"    {line}" for line in self.lines()[-15:]) or "    (nothing)"
        return StreamStopped(f"the {self.name} {why}. The last it said:\n{last}")

    def expect_running(self) -> None:
        """Raises StreamStopped when it has ended."""
        if self.status is not None:
            raise self.failed(f"ended with status {self.status}")

    def expect_done(self) -> None:
        """Raises StreamStopped when it has ended with another status than 0."""
        if self.status:
            raise self.failed(f"ended with status {self.status}")


class Worker(Process):
    """A `headrace run`, with its metrics."""

    def __init__(self, name: str, file: Path, broker: str, redis: str, web_port: int, folder: Path) -> None:
        command = (*COMMAND_LINE, "run", str(file), "--broker", broker, "--redis", redis, "--web-port", str(web_port))
        super().__init__(name, command, folder)
        self.url = f"http://127.0.0.1:{web_port}/metrics"

    def metrics(self) -> dict[str, float]:
        """What it tells Prometheus, by name without `headrace_`; values with labels are summed.

        Empty while its web server is not up yet. Raises StreamStopped when it has ended.
        """
        self.expect_running()
        try:
            with urllib.request.urlopen(self.url, timeout=5.0) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return {}
        return parse_metrics(text)


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text format, summed over labels; the suffix `_total` of counters is left away."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("headrace_"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0].removeprefix("headrace_").removesuffix("_total")
            found[name] = found.get(name, 0.0) + float(value)
    return found
