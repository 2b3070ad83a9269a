"""What a plan plays on: brokers, Redis, workers and the load; what is done to them, and undone in time."""

from __future__ import annotations

import heapq
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import redis as redis_client
from chaos.cluster import Brokers
from chaos.plan import BROKER_KINDS, REDIS_KINDS, Fault, Plan
from chaos.shop import INPUTS, PARTITIONS, write_pipeline
from chaos.worker import Finding, Worker, tail
from kafka import TopicPartition
from kafka.admin import OffsetSpec

from headrace.connectors import embedded

TESTS = Path(__file__).parents[1]
READY_SECONDS = 180.0  # from any fault to a worker that works: sessions, leases and transactions have to run out first
STUCK_SECONDS = 120.0  # without a single offset committed, while there is something to do
END_SECONDS = 90.0  # from SIGTERM to the end
ZOMBIE_SECONDS = 10.0  # for which one may go on, before it is told to stop


class Stage:
    """Brokers and Redis are there; load and workers come and go. `stop` ends whatever is left of them."""

    def __init__(
        self, plan: Plan, folder: Path, name: str, brokers: Brokers, redis: embedded.Redis, options: Sequence[str]
    ) -> None:
        self.plan, self.folder, self.name, self.brokers, self.redis = plan, folder, name, brokers, redis
        self.file = write_pipeline(folder, name)
        scripts = Path(sys.executable).parent
        self.command = [str(scripts / "headrace"), "run", str(self.file), *options]
        self.environment = {
            "HEADRACE_BROKER": brokers.address, "HEADRACE_REDIS": redis.url, "PYTHONUNBUFFERED": "1",
        } | ({"HEADRACE_SLOT": "0"} if plan.slot else {})  # fmt: skip
        self.workers: dict[int, Worker] = {}
        self.leaving: list[Worker] = []  # and zombies
        self.load: subprocess.Popen[bytes] | None = None
        self.figures: Counter[str] = Counter()
        self.began = time.monotonic()
        self._runs: Counter[int] = Counter()
        self._undo: list[tuple[float, int, tuple[str, int], Callable[[], None]]] = []  # when, order, whose, what
        self._order = count()

    # -- what is started, and stopped

    def start_load(self, rate: int, events: int) -> None:
        words = (self.brokers.address, self.name, self.plan.seed, rate, events)
        with (self.folder / "load.log").open("wb") as log:
            self.load = subprocess.Popen(
                [sys.executable, "-m", "chaos.load", *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, env=os.environ | {"PYTHONPATH": str(TESTS)},
            )  # fmt: skip

    def end_load(self, seconds: float) -> None:
        """No more events; waits until the labels that are still due are sent."""
        assert self.load is not None
        assert self.load.stdin is not None
        self.load.stdin.close()
        self.pass_until(lambda: self.load is None or self.load.poll() is not None, seconds, lambda: "the load goes on")
        load, self.load = self.load, None
        assert load.stdout is not None
        self._judge_load(load)
        self.figures.update({f"sent to {topic}": n for topic, n in json.loads(load.stdout.read()).items()})

    def start_worker(self, number: int) -> Worker:
        self._runs[number] += 1
        log = self.folder / f"worker-{number}-{self._runs[number]}.log"
        self.workers[number] = worker = Worker(number, log, self.command, self.environment)
        return worker

    def end_workers(self) -> None:
        """SIGTERM to all; each must end with status 0."""
        self._wait_for([self._tell_to_stop(number) for number in list(self.workers)])

    def see_off(self) -> None:
        """Wait until those that left have ended, and the zombies."""
        self.undo_all()
        self._wait_for(self.leaving)

    def stop(self) -> None:
        """SIGKILL to everything that still runs, and its end."""
        processes = [worker.process for worker in [*self.workers.values(), *self.leaving]]
        if self.load is not None:
            processes.append(self.load)
        for process in processes:
            if process.poll() is None:
                process.kill()
        for process in processes:
            process.wait()
        self._undo.clear()

    # -- time

    def pass_time(self, seconds: float) -> None:
        """Let time pass: what is due is undone, what ends by itself is found."""
        until = time.monotonic() + seconds
        while True:
            while self._undo and self._undo[0][0] <= time.monotonic():
                heapq.heappop(self._undo)[3]()
            self._look()
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def pass_until(self, condition: Callable[[], bool], seconds: float, state: Callable[[], str]) -> None:
        """Let time pass until something is true. Raises Finding with `state()` when it is not in time."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise Finding(f"{state()}, after {seconds:g} s")
            self.pass_time(0.1)

    def undo_all(self) -> None:
        """Wait until nobody is frozen or away any more."""
        while self._undo:
            self.pass_time(max(0.0, self._undo[0][0] - time.monotonic()))

    def wait_until_ready(self) -> None:
        self.undo_all()
        self.pass_until(
            lambda: all(worker.state() == "ready" for worker in self.workers.values()),
            READY_SECONDS,
            lambda: "not ready: " + "; ".join(f"{w} is {w.state()}" for w in self.workers.values()),
        )

    def _look(self) -> None:
        for worker in [*self.workers.values(), *self.leaving]:
            worker.judge()
        if self.load is not None and self.load.poll() is not None:
            self._judge_load(self.load)

    def _judge_load(self, load: subprocess.Popen[bytes]) -> None:
        if load.returncode:
            log = (self.folder / "load.log").read_text()
            raise Finding(f"the load itself failed with status {load.returncode}, the workers are not to blame:\n{log}")

    def _later(self, seconds: float, whose: tuple[str, int], what: Callable[[], None]) -> None:
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._order), whose, what))

    # -- faults

    def suffer(self) -> None:
        """All faults of the plan, in order."""
        began = time.monotonic()
        for number, fault in enumerate(self.plan.faults, 1):
            if fault.settled:
                self.wait_until_ready()
                began = time.monotonic()
            self.pass_time(max(0.0, began + fault.after - time.monotonic()))
            fault = self._ready_for(fault)
            began = time.monotonic()
            print(f"{began - self.began:8.1f} s  {number:3d}. {fault}", flush=True)
            self.figures[fault.kind] += 1
            getattr(self, f"_{fault.kind.replace('-', '_')}")(fault)

    def _ready_for(self, fault: Fault) -> Fault:
        """Wait until what it will hit is well again; returns it with the broker that is meant."""
        if fault.kind in BROKER_KINDS:
            self._undo_of("broker")
            self.brokers.wait_until_in_sync()  # with two of three away nothing could be written
            found: int | None = fault.target
            if fault.kind == "leader-kill":
                found = self.brokers.leader_of(f"{self.name}.visits", fault.target % PARTITIONS)
            elif fault.kind == "coordinator-kill":
                found = self.brokers.transactions_of(f"headrace.{self.name}-0")
            return replace(fault, target=found or 0)
        if fault.kind in REDIS_KINDS:
            self._undo_of("redis")
        else:
            self._undo_of("worker", fault.target)
        return fault

    def _undo_of(self, what: str, number: int | None = None) -> None:
        """Wait until what was done to this is undone."""
        while any(whose[0] == what and number in (None, whose[1]) for _, _, whose, _ in self._undo):
            self.pass_time(0.05)

    def _kill(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        state = worker.state(0.3)
        self.figures[f"killed while {re.split(r'[^a-z]', state)[0] or 'busy'}"] += 1
        worker.signal(signal.SIGKILL)
        worker.process.wait()
        self.start_worker(fault.target)

    def _term(self, fault: Fault) -> None:
        self._wait_for([self._tell_to_stop(fault.target)])
        self.start_worker(fault.target)

    def _leave(self, fault: Fault) -> None:
        self._tell_to_stop(fault.target)

    def _tell_to_stop(self, number: int) -> Worker:
        worker = self.workers.pop(number)
        self.leaving.append(worker)
        worker.tell_to_stop()
        return worker

    def _wait_for(self, workers: Sequence[Worker]) -> None:
        self.pass_until(
            lambda: all(worker.process.poll() is not None for worker in workers),
            END_SECONDS,
            lambda: "told to stop, and still there: " + "; ".join(f"{w} is {w.state()}" for w in workers),
        )

    def _join(self, fault: Fault) -> None:
        self.start_worker(fault.target)

    def _freeze(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        worker.signal(signal.SIGSTOP)
        self._later(fault.seconds, ("worker", fault.target), lambda: worker.signal(signal.SIGCONT))

    def _zombie(self, fault: Fault) -> None:
        old = self.workers.pop(fault.target)
        old.signal(signal.SIGSTOP)
        old.fates = None
        self.leaving.append(old)
        new = self.start_worker(fault.target)
        self.pass_until(
            lambda: new.state() == "ready", READY_SECONDS, lambda: f"{new} does not take over: {new.state()}"
        )

        def wake() -> None:
            old.signal(signal.SIGCONT)
            self._later(ZOMBIE_SECONDS, ("worker", fault.target), bury)

        def bury() -> None:
            if old.process.poll() is None:
                self.figures["zombies that went on"] += 1
                old.signal(signal.SIGTERM)

        self._later(fault.seconds, ("worker", fault.target), wake)

    def _broker_kill(self, fault: Fault) -> None:
        self._stop_broker(fault, "kill")

    _leader_kill = _coordinator_kill = _broker_kill

    def _broker_restart(self, fault: Fault) -> None:
        self._stop_broker(fault, "stop")

    def _stop_broker(self, fault: Fault, how: str) -> None:
        broker = self.brokers[fault.target]
        getattr(broker, how)()
        self._later(fault.seconds, ("broker", fault.target), broker.start)

    def _broker_freeze(self, fault: Fault) -> None:
        self._freeze_server(self.brokers[fault.target], fault, ("broker", fault.target))

    def _redis_freeze(self, fault: Fault) -> None:
        self._freeze_server(self.redis, fault, ("redis", 0))

    def _freeze_server(self, server: embedded.Server, fault: Fault, whose: tuple[str, int]) -> None:
        pid = server.pid
        assert pid is not None, f"{server.name} does not run"
        os.kill(pid, signal.SIGSTOP)
        self._later(fault.seconds, whose, lambda: os.kill(pid, signal.SIGCONT))

    def _redis_kill(self, fault: Fault) -> None:
        self.redis.kill()
        self._later(fault.seconds, ("redis", 0), self.redis.start)

    def _redis_wipe(self, fault: Fault) -> None:
        self.redis.kill()
        for data in [*self.redis.folder.glob("appendonly*"), *self.redis.folder.glob("dump*")]:
            shutil.rmtree(data) if data.is_dir() else data.unlink()
        self._later(fault.seconds, ("redis", 0), self.redis.start)

    # -- how far it is

    def wait_until_processed(self, seconds: float) -> None:
        """Until the group has committed all that was sent. Raises Finding when that stops, or takes too long."""
        until, best, moved = time.monotonic() + seconds, None, time.monotonic()
        while missing := self._missing():
            left = sum(missing.values())
            if best is None or left < best:
                best, moved = left, time.monotonic()
            stuck = time.monotonic() - moved > STUCK_SECONDS
            if stuck or time.monotonic() > until:
                how = f"nothing was committed for {STUCK_SECONDS:g} s" if stuck else f"not done within {seconds:g} s"
                states = "; ".join(f"{w} is {w.state()}" for w in self.workers.values())
                raise Finding(f"{how}, {left:,} records are missing: {missing}; {states}")
            self.pass_time(0.5)

    def _missing(self) -> dict[str, int]:
        """Records of each partition that are not committed, where there are any."""
        partitions = [TopicPartition(f"{self.name}.{topic}", p) for topic in INPUTS for p in range(PARTITIONS)]
        group = f"headrace.{self.name}"
        ends = self.brokers.ask(
            lambda admin: admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
        )
        committed = self.brokers.ask(lambda admin: admin.list_group_offsets(group)).get(group, {})
        left = {tp: ends[tp].offset - max(0, committed[tp].offset if tp in committed else 0) for tp in partitions}
        return {f"{tp.topic}[{tp.partition}]": n for tp, n in left.items() if n}

    def slots(self) -> list[int]:
        """The slots that are held now: the last snapshot of each will hold all that it has learned."""
        if self.plan.slot:
            return [0]
        with redis_client.Redis.from_url(self.redis.url) as client:
            return sorted(int(key.rpartition(b":")[2]) for key in client.scan_iter(f"headrace:{{{self.name}}}:lease:*"))

    def tails(self) -> str:
        """The ends of the logs that tell most: of the last runs, and of those with a stack in them."""
        logs = sorted(self.folder.glob("worker-*.log"), key=lambda log: log.stat().st_mtime)
        told = [log for log in logs[:-4] if "Traceback" in log.read_text(errors="replace")][-3:] + logs[-4:]
        return "\n".join(f"--- {log}\n{tail(log)}" for log in told)
