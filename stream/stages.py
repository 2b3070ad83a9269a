"""Where the time of a worker goes: the stages of its work, and the processor time of the threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ..connectors.transport import FETCH_THREAD

STAGES = (
    "wait",  # for records, for the commit before
    "unpack",  # record batches: checksums, decompression, where each record lies
    "decode",  # JSON to columns, expressions, hashes
    "align",  # which piece of which partition comes next
    "features",  # aggregates
    "model",  # predict, learn, metrics
    "labels",  # predictions that wait for their label: kept, joined, expired
    "check",  # whether the model is finite
    "encode",  # predictions to JSON
    "snapshot",  # copied beside the stream
)
COMPUTE_THREAD = "headrace-compute"
_THREADS = {"MainThread": "send", FETCH_THREAD: "fetch", f"{COMPUTE_THREAD}_0": "compute"}
_TICKS = os.sysconf("SC_CLK_TCK")


class Stages:
    """Seconds that a worker has spent in each stage; who works calls `enter`, others may look at any time.

    A stage lasts until the next is entered, so nothing is counted twice and nothing is left out.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._stage, self._since = "wait", time.perf_counter()

    def enter(self, stage: str) -> None:
        """What comes now belongs to this stage."""
        now = time.perf_counter()
        self._seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def seconds(self) -> dict[str, float]:
        """So far, by stage."""
        stage, since = self._stage, self._since
        seconds = dict(self._seconds)
        seconds[stage] += time.perf_counter() - since
        return seconds


def cpu_seconds() -> dict[str, float]:
    """Processor time of this process so far: fetch, compute, send (the event loop), other. Empty but on Linux."""
    seconds: dict[str, float] = {}
    for thread in threading.enumerate():
        if (name := _THREADS.get(thread.name)) is not None:
            try:
                stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
            except OSError:
                continue
            user, system = stat.rpartition(")")[2].split()[11:13]
            seconds[name] = (int(user) + int(system)) / _TICKS
    if seconds:
        seconds["other"] = max(0.0, time.process_time() - sum(seconds.values()))
    return seconds


class Profile:
    """Lines for `headrace run --profile`: each tells of the time since the one before."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._before = stages.seconds(), cpu_seconds()

    def line(self) -> str:
        """Shares of the time in each stage, and of a core for each thread."""
        before, now = self._before, (self._stages.seconds(), cpu_seconds())
        self._before = now
        spent, used = (_since(was, new) for was, new in zip(before, now, strict=True))
        wall = sum(spent.values()) or 1.0
        stages = [f"{stage} {seconds / wall:.0%}" for stage, seconds in spent.items() if seconds >= 0.005 * wall]
        threads = [f"{thread} {seconds / wall:.2f}" for thread, seconds in used.items()]
        cores = f"; cores: {', '.join(threads)}" if threads else ""
        return f"time: {', '.join(stages)}{cores}"


def _since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in now.items()}
