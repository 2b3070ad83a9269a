"""Load for a topic: views of `throughput.py` in whole record batches, made once and written many times.

A Python producer that makes each record anew would take a core from the worker that is measured; writing the same bytes
again takes next to nothing. So views come again after some hundred thousand, each time under new offsets.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple, Self

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from benchmarks.throughput import PARTITIONS, Views

IN_FLIGHT = 8  # batches sent and not answered yet
LIMIT_SECONDS = 60.0  # for an answer


class Batch(NamedTuple):
    """Records of one partition as they lie in the log."""

    partition: int
    records: int
    data: bytes


def make_batches(views: int, records: int) -> list[Batch]:
    """`views` views in batches of so many records, the partitions in turn; what does not fill a batch is left out."""
    now, batches = int(time.time() * 1000), []
    builders = [_builder() for _ in range(PARTITIONS)]
    held = [0] * PARTITIONS
    for _, partition, key, value in Views(views).records():
        builders[partition].append(held[partition], now, key, value, [])
        held[partition] += 1
        if held[partition] == records:
            batches.append(Batch(partition, records, bytes(builders[partition].build())))
            builders[partition], held[partition] = _builder(), 0
    return batches


def _builder() -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)


class Writer:
    """Writes batches to the one broker at `address` over a connection of its own, to be used in a `with` statement.

    Speaks Produce version 3 with acks=1 and keeps some requests in flight. Raises RuntimeError when one is refused.
    """

    def __init__(self, address: str, topic: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a small batch waits 40 ms for an ACK
        self._topic = topic.encode()
        self._unanswered: deque[int] = deque()
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def write(self, batch: Batch) -> None:
        """Send a batch; may wait for the answer to an earlier one."""
        if len(self._unanswered) >= IN_FLIGHT:
            self._answer()
        topic, data = self._topic, batch.data
        head = struct.pack(">hhih4s", 0, 3, self._number, 4, b"load")
        head += struct.pack(f">hhiih{len(topic)}s", -1, 1, int(LIMIT_SECONDS * 1000), 1, len(topic), topic)
        head += struct.pack(">iii", 1, batch.partition, len(data))
        self._socket.sendall(struct.pack(">i", len(head) + len(data)) + head)
        self._socket.sendall(data)
        self._unanswered.append(self._number)
        self._number += 1

    def finish(self) -> None:
        """Wait until everything is written."""
        while self._unanswered:
            self._answer()

    def _answer(self) -> None:
        (size,) = struct.unpack(">i", self._receive(4))
        answer = self._receive(size)
        number, _, length = struct.unpack_from(">iih", answer)
        _, _, code = struct.unpack_from(">iih", answer, 10 + length)
        if number != self._unanswered.popleft() or code:
            raise RuntimeError(f"{self._topic.decode()}: the broker refused a batch with error code {code}")

    def _receive(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if len(data) != size:
            raise RuntimeError(f"{self._topic.decode()}: the broker closed the connection")
        return data


def fill(address: str, topic: str, events: int, batches: Sequence[Batch]) -> int:
    """Write at least so many events as fast as it goes, the batches again and again; returns the bytes written."""
    written = size = 0
    with Writer(address, topic) as writer:
        while written < events:
            for batch in batches:
                writer.write(batch)
                written, size = written + batch.records, size + len(batch.data)
                if written >= events:
                    break
        writer.finish()
    return size


@contextlib.contextmanager
def pouring(address: str, topic: str, rate: int, views: int = 200_000) -> Iterator[None]:
    """So many events a second into the topic, by a process of its own, until the `with` block ends.

    Begins when the batches are made. Raises RuntimeError at the end if the process has failed or could not keep up.
    """
    spawn = multiprocessing.get_context("spawn")
    begun, stop = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_pour, args=(address, topic, rate, views, begun, stop), daemon=True)
    process.start()
    try:
        if not begun.wait(LIMIT_SECONDS):
            raise RuntimeError(f"{topic}: the load did not begin within {LIMIT_SECONDS:g} s")
        yield
    finally:
        stop.set()
        process.join(LIMIT_SECONDS)
        process.kill()
    if process.exitcode:
        raise RuntimeError(f"{topic}: {rate:,} events a second could not be written; see above")


def _pour(address: str, topic: str, rate: int, views: int, begun: Event, stop: Event) -> None:
    batches = make_batches(views, max(20, rate // 100))
    with Writer(address, topic) as writer:
        start, written = time.monotonic(), 0
        begun.set()
        while not stop.is_set():
            for batch in batches:
                time.sleep(max(0.0, start + written / rate - time.monotonic()))
                writer.write(batch)
                written += batch.records
                if stop.is_set():
                    break
        writer.finish()
        behind = time.monotonic() - start - written / rate
        if behind > 1.0:
            raise RuntimeError(f"{topic}: the load is {behind:.1f} s behind")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, with the system's for it; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
