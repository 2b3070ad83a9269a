"""What it costs that nothing is lost and nothing comes twice: `python -m benchmarks.durability` writes its table into
benchmarks/README.md.

Each part starts a Kafka and a Redis of its own, fills the topic of `clicks.py` and runs `headrace run` on `durable.py`
as a process; it sees of the worker what a user sees: predictions, /metrics, its memory. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.load import cpu_seconds, fill, make_batches, pouring
from benchmarks.run import README, machine, today, write_section
from benchmarks.throughput import PARTITIONS, TOPIC, say
from kafka import KafkaConsumer, TopicPartition

from headrace.connectors import embedded
from headrace.connectors.topics import create_topics, end_offsets

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 90.0  # for anything that a worker is waited for
LOOK_SECONDS = 0.05
DEAD_SECONDS = 0.2  # after a SIGKILL what the dead one had sent may still be appended; a new one takes longer to start
WARM_EVENTS = 100_000  # predicted before a rate is taken


class Ground:
    """A broker and a Redis with an empty topic of views, and a folder for what workers print."""

    def __init__(self, broker: str, redis: str, folder: Path, partitions: int) -> None:
        self.broker, self.redis, self.folder, self.partitions = broker, redis, folder, partitions

    def written(self, topic: str) -> int:
        """Records of a topic; with transactions also their few markers."""
        return sum(end_offsets(self.broker, [(topic, p) for p in range(self.partitions)]).values())


@contextlib.contextmanager
def fresh_ground(partitions: int = PARTITIONS) -> Iterator[Ground]:
    with (
        embedded.kafka(properties={"log.message.timestamp.type": "LogAppendTime"}) as broker,
        embedded.redis(properties={"appendonly": "no"}) as redis,  # or its file grows by a snapshot a second
        tempfile.TemporaryDirectory() as folder,
    ):
        create_topics(broker.address, {TOPIC: partitions})
        yield Ground(broker.address, redis.url, Path(folder), partitions)


class Worker:
    """`headrace run durable.py` as a process; `changes` are the environment of durable.py."""

    def __init__(self, ground: Ground, name: str, **changes: str) -> None:
        self.ground, self.name, self.predictions = ground, name, f"{name}.predictions"
        self.port = embedded.free_port()
        self.log = ground.folder / f"{name}.log"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._environment = os.environ | {"NAME": name, "PYTHONPATH": path} | changes
        self._process: subprocess.Popen[bytes] | None = None
        create_topics(ground.broker, {self.predictions: ground.partitions})

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "headrace"), "run", str(ROOT / "benchmarks" / "durable.py")]
        command += ["--broker", self.ground.broker, "--redis", self.ground.redis, "--slot", "0"]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--web-port", str(self.port)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end, which comes by SIGKILL if it must."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def metrics(self) -> dict[str, float]:
        """The figures of /metrics that have no labels; empty while there is no page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as page:
                lines = page.read().decode().splitlines()
        except OSError:
            return {}
        pairs = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#" and "{" not in line)
        return {name.removeprefix("headrace_").removesuffix("_total"): float(value) for name, value in pairs}

    def until(self, reached: Callable[[], object], what: str) -> None:
        """Wait until reached() is true; raises RuntimeError when the worker ends or it takes too long."""
        patience = time.monotonic() + PATIENCE_SECONDS
        while not reached():
            assert self._process is not None
            status = self._process.poll()
            if status is not None or time.monotonic() > patience:
                why = "took too long" if status is None else f"ended with status {status}"
                raise RuntimeError(f"{self.name}: {why} while waiting for {what}\n{self.log.read_text()[-3_000:]}")
            time.sleep(LOOK_SECONDS)

    def until_predicted(self, events: int) -> None:
        written = self.ground.written
        self.until(lambda: written(self.predictions) >= events, f"{events:,} predictions")

    def until_caught_up(self, rate: int) -> None:
        """Until it runs and less than a second of the load is left to do."""

        def caught_up() -> bool:
            if not self.metrics().get("running"):
                return False
            return self.ground.written(TOPIC) - self.metrics().get("events", 0) < rate

        self.until(caught_up, "the end of the topic")

    def until_at_the_end(self, events: int) -> None:
        """Until the ends of both topics are less than so many records apart."""
        written = self.ground.written
        self.until(lambda: written(TOPIC) - written(self.predictions) < events, "the end of the topic")

    def memory(self) -> tuple[int, int]:
        """Bytes of memory in use (resident), and the most that ever were."""
        assert self._process is not None
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Vm")}
        return sizes["VmRSS"], sizes["VmHWM"]

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return cpu_seconds(self._process.pid)


@contextlib.contextmanager
def working(ground: Ground, name: str, **changes: str) -> Iterator[Worker]:
    """A worker that has been started; it ends with the `with` block."""
    worker = Worker(ground, name, **changes)
    worker.start()
    try:
        yield worker
    finally:
        worker.end(signal.SIGTERM)


class Reader:
    """Sees of a topic what a read_committed reader sees."""

    def __init__(self, broker: str, topic: str) -> None:
        self._partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        self._consumer = KafkaConsumer(
            bootstrap_servers=broker, isolation_level="read_committed", enable_auto_commit=False, fetch_max_wait_ms=50
        )
        self._consumer.assign(self._partitions)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def go_to_end(self) -> None:
        """What comes from now on is read."""
        self._consumer.seek_to_end(*self._partitions)
        for partition in self._partitions:
            self._consumer.position(partition)

    def sees_newer(self, than: float) -> bool:
        """Whether a record has come that the broker appended after this wall time; waits a moment for one."""
        polled = self._consumer.poll(timeout_ms=50)
        return any(record.timestamp > than * 1000 for records in polled.values() for record in records)


# ---- the parts


def restart(chosen: argparse.Namespace) -> str:
    """SIGKILL, and start again at once, under load and with a snapshot a second."""
    draw, took = random.Random(1), []
    with (
        fresh_ground() as ground,
        working(ground, "restart", EVERY="1s") as worker,
        Reader(ground.broker, worker.predictions) as reader,
        pouring(ground.broker, TOPIC, chosen.rate),
    ):
        for number in range(chosen.kills):
            worker.until_caught_up(chosen.rate)
            time.sleep(draw.uniform(1.0, 3.0))
            reader.go_to_end()
            began, wall = time.monotonic(), time.time()
            worker.end(signal.SIGKILL)
            worker.start()
            worker.until(partial(reader.sees_newer, wall + DEAD_SECONDS), "a prediction")
            took.append(time.monotonic() - began)
            say(f"  {number + 1}: {took[-1]:.2f} s")
    return (
        f"median {statistics.median(took):.1f} s, worst {max(took):.1f} s, of {len(took)} SIGKILLs "
        f"under {chosen.rate:,} events/s"
    )


def start(chosen: argparse.Namespace) -> str:
    """A worker that was told to stop is started again, with kernels in the cache and 1,000 events to do."""
    batches, took = make_batches(4_000, 250), []
    with (
        fresh_ground() as ground,
        working(ground, "start") as worker,
        Reader(ground.broker, worker.predictions) as reader,
    ):
        for number in range(chosen.starts + 1):
            fill(ground.broker, TOPIC, 1_000, batches)
            worker.until_predicted((number + 1) * 1_000)
            worker.end(signal.SIGTERM)
            fill(ground.broker, TOPIC, 1_000, batches)
            reader.go_to_end()
            began, wall = time.monotonic(), time.time()
            worker.start()
            worker.until(partial(reader.sees_newer, wall), "a prediction")
            took.append(time.monotonic() - began)
            say(f"  {number}: {took[-1]:.2f} s")
    took = took[1:]  # the first may compile
    return f"median {statistics.median(took):.1f} s, worst {max(took):.1f} s, of {len(took)} starts"


def exactly_once(chosen: argparse.Namespace) -> str:
    """Throughput with and without transactions, in turns: as fast as it goes, and at a pace that both bear."""
    modes = ("at_least_once", "exactly_once")
    with fresh_ground() as ground:
        fill(ground.broker, TOPIC, chosen.events, make_batches(200_000, 5_000))
        flat_out: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
        paced: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
        with working(ground, "warm", DELIVERY=modes[0]) as worker:  # a fresh broker is faster for its first run
            say(f"  not counted: {told(take_rate(worker, chosen.seconds))}")
        for turn in range(chosen.turns):
            for mode in modes[:: 1 if turn % 2 else -1]:
                with working(ground, f"{mode}-{turn}", DELIVERY=mode) as worker:
                    flat_out[mode].append(take_rate(worker, chosen.seconds))
                    if ground.written(worker.predictions) >= ground.written(TOPIC):
                        raise RuntimeError(f"{worker.name}: nothing was left to do; give more --events")
                say(f"  {mode}, as fast as it goes: {told(flat_out[mode][-1])}")
    told_flat = compare(flat_out)
    if min(rate for found in flat_out.values() for rate, _ in found) < 1.1 * chosen.pace:
        return f"as fast as it goes {told_flat}; this machine does not bear {chosen.pace:,} events/s with a margin"
    for turn in range(chosen.turns):
        for mode in modes:
            with (
                fresh_ground() as ground,
                pouring(ground.broker, TOPIC, chosen.pace),
                working(ground, f"{mode}-{turn}", DELIVERY=mode) as worker,
            ):
                worker.until_caught_up(chosen.pace)
                worker.until_at_the_end(chosen.pace // 5)
                paced[mode].append(take_rate(worker, chosen.seconds))
            say(f"  {mode}, paced: {told(paced[mode][-1])}")
    return f"as fast as it goes {told_flat}; at {chosen.pace:,} events/s {compare(paced)}"


def take_rate(worker: Worker, seconds: float) -> tuple[float, float]:
    """(predictions a second, microseconds of the worker's CPU for each) over so many seconds, after the first ones."""
    worker.until_predicted(WARM_EVENTS)
    began, written, cpu = time.monotonic(), worker.ground.written(worker.predictions), worker.cpu_seconds()
    time.sleep(seconds)
    predicted = worker.ground.written(worker.predictions) - written
    took, used = time.monotonic() - began, worker.cpu_seconds() - cpu
    return predicted / took, used / predicted * 1e6


def told(figure: tuple[float, float]) -> str:
    return f"{figure[0]:,.0f} events/s, {figure[1]:.1f} us of CPU each"


def compare(found: dict[str, list[tuple[float, float]]]) -> str:
    """Both modes by the mean of their turns, and what the second costs."""
    means = [tuple(statistics.mean(column) for column in zip(*turns, strict=True)) for turns in found.values()]
    (without, cpu_without), (with_it, cpu_with) = means
    return (
        f"{without:,.0f} events/s at least once, {with_it:,.0f} exactly once: {1 - with_it / without:+.1%} "
        f"(CPU of an event {cpu_without:.1f} and {cpu_with:.1f} us)"
    )


def stall(chosen: argparse.Namespace) -> str:
    """How long a snapshot of a large table holds up the stream, by the worker's own metric, once a second."""
    stalls: list[float] = []
    with (
        fresh_ground() as ground,
        working(ground, "stall", EVERY="1s", BITS=str(chosen.bits)) as worker,
        pouring(ground.broker, TOPIC, chosen.rate),
    ):
        worker.until_caught_up(chosen.rate)
        last, until = worker.metrics().get("snapshot_stall_seconds"), time.monotonic() + chosen.seconds * 3
        while time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            now = worker.metrics().get("snapshot_stall_seconds", last)
            if now is not None and now != last:
                stalls.append(now)
            last = now
        worker.until_caught_up(chosen.rate)  # or it was no steady load
    if not stalls:
        raise RuntimeError("no snapshot was taken")
    most = statistics.quantiles(stalls, n=10)[-1]
    return (
        f"median {statistics.median(stalls) * 1e3:.1f} ms, 90 % within {most * 1e3:.1f} ms, worst "
        f"{max(stalls) * 1e3:.1f} ms, of {len(stalls)} snapshots with 2^{chosen.bits} slots under "
        f"{chosen.rate:,} events/s"
    )


def backlog(chosen: argparse.Namespace) -> str:
    """A start with millions of records behind: when the first prediction comes, and how much memory is used."""
    with fresh_ground() as ground:
        with working(ground, "idle") as idle:
            idle.until(lambda: idle.metrics().get("running"), "its partitions")
            time.sleep(5)
            base = idle.memory()[0]
        size = fill(ground.broker, TOPIC, chosen.events, make_batches(200_000, 5_000))
        say(f"  {chosen.events:,} records of {size / chosen.events:.0f} bytes; idle: {mib(base)}")
        began, wall = time.monotonic(), time.time()
        with working(ground, "backlog") as worker, Reader(ground.broker, worker.predictions) as reader:
            worker.until(lambda: reader.sees_newer(wall), "a prediction")
            first = time.monotonic() - began
            reader.go_to_end()
            written = ground.written(worker.predictions)
            began = time.monotonic()
            while time.monotonic() - began < 2 * chosen.seconds:
                time.sleep(1.0)
            now, most = worker.memory()
            rate = (ground.written(worker.predictions) - written) / (time.monotonic() - began)
    return (
        f"first prediction after {first:.1f} s; memory at most {mib(most)}, {mib(most - base)} above a worker with "
        f"nothing to do ({mib(now)} at the end); {chosen.events:,} records of {size / chosen.events:.0f} bytes behind, "
        f"{rate:,.0f} events/s"
    )


def mib(size: float) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def replay(chosen: argparse.Namespace) -> str:
    """A SIGKILL long after the last snapshot: the journal is replayed, how fast?"""
    with fresh_ground() as ground:
        fill(ground.broker, TOPIC, chosen.events // 2, make_batches(200_000, 5_000))
        with working(ground, "replay", EVERY="1h") as worker:
            live, _ = take_rate(worker, chosen.seconds)
            worker.end(signal.SIGKILL)
            worker.start()
            seen: list[tuple[float, float]] = []

            def replayed() -> bool:
                figures = worker.metrics()
                events = figures.get("events", 0.0)
                if events and not figures["running"] and (not seen or events > seen[-1][1]):
                    seen.append((time.monotonic(), events))
                return figures.get("running", 0.0) > 0

            worker.until(replayed, "the end of the replay")
    if len(seen) < 3:
        raise RuntimeError(f"replay was over too soon to be measured: {seen}; give more --seconds")
    (began, first), (ended, last) = seen[0], seen[-1]
    rate = (last - first) / (ended - began)
    return f"{rate:,.0f} events/s, {rate / live:.1f} times the {live:,.0f} of catching up; {last:,.0f} replayed"


# ---- the table

PARTS: dict[str, tuple[str, str, Callable[[argparse.Namespace], str]]] = {
    "restart": ("SIGKILL and restart, until the next committed prediction is readable", "", restart),
    "start": ("start with kernels in the cache, until the first prediction is readable", "<= 3 s", start),
    "exactly-once": ("exactly once against at least once", "<= 5 %", exactly_once),
    "stall": ("the stream stands still for a snapshot", "<= 5 ms", stall),
    "backlog": ("start with a backlog", "<= 10 s, <= 1 GiB", backlog),
    "replay": ("replay of the journal", ">= 1.5 times", replay),
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=PARTS, help="one part")
    arguments.add_argument("--print", action="store_true", help="do not write the table")
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--starts", type=int, default=10)
    arguments.add_argument("--turns", type=int, default=4, help="of exactly-once, each with and without")
    arguments.add_argument("--rate", type=int, default=20_000, help="events a second of restart and stall")
    arguments.add_argument("--pace", type=int, default=100_000, help="events a second of exactly-once")
    arguments.add_argument(
        "--events", type=int, default=16_000_000, help="of the backlog and of exactly-once; replay: half"
    )
    arguments.add_argument("--seconds", type=float, default=10.0, help="of a measurement; stall 3, backlog 2 times")
    arguments.add_argument("--bits", type=int, default=22, help="of the table of stall")
    chosen = arguments.parse_args()
    for name, (what, _, measure) in PARTS.items():
        if chosen.only in (None, name):
            say(f"{name}: {what}")
            figure = measure(chosen)
            say(f"  {figure}")
            if not chosen.print:
                write_row(name, figure)
    return 0


def write_row(name: str, figure: str) -> None:
    """Replace the row of one part in the table, the others stay."""
    section = README.read_text().split("<!-- durability: written by the benchmark -->")[1].split("<!-- end of")[0]
    rows = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("| ")}
    what, wanted, _ = PARTS[name]
    rows[what] = f"| {what} | {wanted} | {figure} | {today()} |"
    ordered = [rows[what] for what, _, _ in PARTS.values() if what in rows]
    write_section(
        "durability", "\n".join(["| | to reach | measured | on |", "|---|---|---|---|", *ordered, "", f"{machine()}."])
    )


if __name__ == "__main__":
    raise SystemExit(main())
