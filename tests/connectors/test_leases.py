"""Leases of slots against a real Redis, between threads and between real processes that are killed and frozen."""

import logging
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
import redis

from headrace.connectors import embedded
from headrace.connectors.leases import Holder, Lease, Slots, SlotTaken, _stat, _this_process, acquire
from headrace.connectors.store import SnapshotStore
from headrace.errors import Refused, StreamStopped, Unreachable

SHORT = 0.5  # seconds that a lease lives in these tests
PATIENT = 2.0  # the same where a busy machine must not let it lapse
LONG = 600.0  # one that does not lapse while a test runs

PROGRAM = """
import os, sys
from headrace.connectors.leases import acquire

url, pipeline, slot, seconds = sys.argv[1:]
def tell(word):
    return lambda what: print(word, what, flush=True)

tell("ready")(os.getpid())
sys.stdin.readline()
lease = acquire(
    url, pipeline, None if slot == "-" else int(slot),
    say=tell("waits"), on_lost=tell("lost"), ttl_seconds=float(seconds),
)
tell("holds")(lease.slot)
if sys.stdin.readline() == "again\\n":
    os.execv(sys.executable, sys.orig_argv)
"""


class Process:
    """A worker as far as leases are concerned: it acquires when told to, then holds until it is killed."""

    def __init__(
        self, url: str, pipeline: str, slot: int | str = "-", seconds: float = LONG, within: tuple[str, ...] = ()
    ) -> None:
        command = [*within, sys.executable, "-c", PROGRAM, url, pipeline, str(slot), str(seconds)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.told: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [self.told.put(line) for line in self.process.stdout], daemon=True).start()
        self.expect("ready")

    def tell(self, word: str = "go") -> None:
        self.process.stdin.write(word + "\n")

    def expect(self, word: str) -> str:
        """What the process says next, which must begin with this word."""
        line = self.told.get(timeout=30)
        assert line.startswith(word), line
        return line.removeprefix(word).strip()

    def holds(self) -> int:
        self.tell()
        return int(self.expect("holds"))

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Bench:
    """One pipeline in one Redis."""

    url: str
    pipeline: str
    said: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    opened: ExitStack = field(default_factory=ExitStack)

    def acquire(self, slot: int | None = None, seconds: float = LONG, **options: object) -> Lease:
        options = {"say": self.said.append, "on_lost": self.lost.append} | options
        lease = acquire(self.url, self.pipeline, slot, ttl_seconds=seconds, **options)
        self.opened.callback(lease.release)
        return lease

    def process(self, slot: int | str = "-", seconds: float = LONG, within: tuple[str, ...] = ()) -> Process:
        process = Process(self.url, self.pipeline, slot, seconds, within)
        self.opened.callback(process.end)
        return process

    def publish(self, *slots: int) -> None:
        for slot in slots:
            SnapshotStore(self.url, self.pipeline, slot).publish({"w": np.zeros(3)}, {}, 1)

    def write(self, slot: int, seconds: float = LONG, **changes: object) -> Holder:
        """A lease as a process elsewhere wrote it before it crashed."""
        elsewhere = {"host": "elsewhere", "machine": "elsewhere", "pid": 7, "id": os.urandom(8).hex()}
        holder = msgspec.structs.replace(_this_process(), **elsewhere | changes)
        self.client.set(self.key(slot), msgspec.json.encode(holder), px=round(seconds * 1000))
        self.client.sadd(f"headrace:{{{self.pipeline}}}:slots", slot)
        return holder

    def lapse_when_said(self, slot: int) -> Callable[[str], None]:
        """A `say` after which the lease of a crashed process soon lapses."""

        def say(what: str) -> None:
            self.said.append(what)
            self.client.pexpire(self.key(slot), 300)

        return say

    def key(self, slot: int) -> str:
        return f"headrace:{{{self.pipeline}}}:lease:{slot}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    @property
    def slots(self) -> Slots:
        return Slots(self.url, self.pipeline)

    def live(self) -> dict[int, int]:
        return {slot: holder.pid for slot, holder in self.slots.live().items()}


@pytest.fixture
def bench(redis_url: str, unique: str) -> Iterator[Bench]:
    bench = Bench(redis_url, unique)
    with bench.opened:
        yield bench


@pytest.fixture
def own(unique: str) -> Iterator[tuple[embedded.Redis, Bench]]:
    """A Redis to be killed; it restarts empty."""
    with embedded.redis(properties={"appendonly": "no"}) as server:
        bench = Bench(server.url, unique)
        with bench.opened:
            yield server, bench


def wait_for(met: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- which slot


def test_processes_that_start_at_once_get_the_lowest_slots_and_nobody_waits(bench: Bench) -> None:
    processes = [bench.process() for _ in range(4)]
    for process in processes:
        process.tell()
    assert sorted(process.expect("holds") for process in processes) == ["0", "1", "2", "3"]
    assert sorted(bench.live().values()) == sorted(process.process.pid for process in processes)


def test_threads_never_hold_one_slot_twice(bench: Bench) -> None:
    start, leases = threading.Barrier(12), []

    def work() -> None:
        start.wait()
        leases.append(bench.acquire())

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.slot for lease in leases) == list(range(12))
    assert bench.said == []


def test_slot_that_was_released_is_free_at_once(bench: Bench) -> None:
    leases = [bench.acquire() for _ in range(3)]
    leases[1].release()
    assert list(bench.slots.live()) == [0, 2]
    assert bench.acquire().slot == 1
    leases[0].release()
    leases[0].release()
    assert bench.acquire(0).slot == 0
    assert bench.said == []


def test_release_leaves_the_slot_to_whom_it_belongs_now(bench: Bench) -> None:
    lease = bench.acquire()
    bench.write(0)
    lease.release()
    assert bench.live() == {0: 7}


def test_slot_that_exists_goes_before_a_lower_one_that_would_be_new(bench: Bench) -> None:
    bench.publish(1)
    bench.acquire(1).release()
    assert [bench.acquire(seconds=SHORT).slot for _ in range(2)] == [1, 0]


def test_slots_of_pipelines_are_apart(bench: Bench) -> None:
    other = Bench(bench.url, bench.pipeline + "0")
    with other.opened:
        assert [bench.acquire().slot, other.acquire().slot, bench.acquire(7).slot] == [0, 0, 7]
        assert (list(bench.slots.live()), list(other.slots.live())) == ([0, 7], [0])


def test_slots_tell_which_exist_and_which_are_held(bench: Bench) -> None:
    assert (bench.slots.live(), bench.slots.existing()) == ({}, [])
    bench.publish(0, 1, 10)  # 10 was never leased, and is out of sight
    assert bench.slots.existing() == [0, 1]
    bench.acquire(10)
    assert (list(bench.slots.live()), bench.slots.existing()) == ([10], [0, 1, 10])
    assert bench.slots.live()[10].host == os.uname().nodename
    names = SnapshotStore(bench.url, bench.pipeline).neighbours()
    assert [slot for pipeline, slot in names if pipeline == bench.pipeline] == [0, 1, 10]


# ---- holders that died


@pytest.mark.parametrize("reaped", [True, False])
@pytest.mark.parametrize("slot", [0, None])
def test_slot_of_a_process_that_was_killed_here_is_taken_at_once(bench: Bench, slot: int | None, reaped: bool) -> None:
    bench.publish(0)
    killed = bench.process()
    assert killed.holds() == 0
    killed.send(signal.SIGKILL)
    if reaped:
        killed.process.wait()
    else:
        os.waitid(os.P_PID, killed.process.pid, os.WEXITED | os.WNOWAIT)
    assert bench.acquire(slot).slot == 0
    assert bench.said == []
    assert bench.live() == {0: os.getpid()}


def test_process_that_replaced_itself_goes_on_with_its_slot(bench: Bench) -> None:
    bench.publish(0, 1)
    first, again = bench.process(), bench.process()
    assert (first.holds(), again.holds()) == (0, 1)
    raw = bench.client.get(bench.key(1))
    for _ in range(2):
        again.tell("again")
        again.expect("ready")
        assert again.holds() == 1
        first.end()  # leaves a lower slot to be had
    assert bench.live()[1] == again.process.pid
    assert bench.client.get(bench.key(1)) == raw


def test_process_that_replaced_itself_goes_on_though_redis_is_full(own: tuple[embedded.Redis, Bench]) -> None:
    _, bench = own
    process = bench.process()
    assert process.holds() == 0
    bench.client.config_set("maxmemory", 1)
    process.tell("again")
    process.expect("ready")
    assert process.holds() == 0


def test_lease_of_the_former_self_that_could_not_be_renewed_at_once_is_ours_still(
    own: tuple[embedded.Redis, Bench],
) -> None:
    _, bench = own
    bench.publish(0)
    here = _this_process()
    bench.write(0, host=here.host, machine=here.machine, pid=here.pid)
    bench.client.replicaof("127.0.0.1", 1)
    with pytest.raises(Refused, match="it is a replica"):
        bench.acquire()
    bench.client.replicaof("no", "one")
    assert bench.acquire().slot == 0
    assert bench.said == []


def test_pid_that_is_in_use_again_is_told_by_its_start(bench: Bench) -> None:
    here, running = _this_process(), bench.process()
    same = {"host": here.host, "machine": here.machine, "pid": running.process.pid}
    bench.write(0, **same, started=here.started - 1)
    assert bench.acquire(0).slot == 0
    bench.write(1, **same, started=_stat(running.process.pid)[1])
    with pytest.raises(SlotTaken):
        bench.acquire(1, seconds=SHORT)


@pytest.mark.parametrize("changes", [{"machine": "another"}, {"machine": None}, {"host": "another"}])
def test_pid_of_another_machine_tells_nothing(bench: Bench, changes: dict) -> None:
    """A container may have this host's name, and a copy of a virtual machine its kernel's id."""
    here, dead = _this_process(), subprocess.Popen(["true"])
    dead.wait()
    same = {"host": here.host, "machine": here.machine, "pid": dead.pid}
    bench.write(0, **same)
    assert bench.acquire(0).slot == 0
    bench.write(1, **same | changes)
    with pytest.raises(SlotTaken):
        bench.acquire(1, seconds=SHORT)


@pytest.mark.parametrize("own_proc", [("--mount-proc",), ()], ids=["own proc", "proc of the host"])
def test_containers_that_share_host_name_and_pids_are_not_taken_for_each_other(
    bench: Bench, own_proc: tuple[str, ...]
) -> None:
    container = ("unshare", "--pid", "--fork", "--kill-child", *own_proc)
    if not shutil.which("unshare") or subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("making a pid namespace takes root")
    processes = [bench.process(within=container) for _ in range(2)]
    assert [process.holds() for process in processes] == [0, 1]
    assert [(holder.host, holder.pid) for holder in bench.slots.live().values()] == [(os.uname().nodename, 1)] * 2


def test_new_slot_is_founded_only_after_the_time_in_which_crashed_holders_lapse(bench: Bench) -> None:
    bench.publish(0, 1)
    bench.acquire(0)
    bench.write(1)
    assert bench.acquire(seconds=PATIENT, say=bench.lapse_when_said(1)).slot == 1
    assert bench.acquire(seconds=SHORT).slot == 2
    assert len(bench.said) == 2
    since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(
        rf"slots 0, 1 are held by pid {os.getpid()} on \S+ {since}; pid 7 on elsewhere {since}; "
        r"waiting 2\.2 s whether one becomes free before a new one is founded",
        bench.said[0],
    )


def test_stand_ins_of_one_crashed_worker_share_what_is_there(bench: Bench) -> None:
    """One takes over its slot, the other founds a new one: both wait, and neither is refused."""
    processes = [bench.process(seconds=PATIENT) for _ in range(2)]
    bench.publish(0)
    bench.write(0)
    for process in processes:
        process.tell()
    for process in processes:
        assert process.expect("waits").startswith("slot 0 is held by pid 7")
    bench.client.pexpire(bench.key(0), 1)
    assert sorted(process.expect("holds") for process in processes) == ["0", "1"]


def test_slot_that_is_asked_for_is_waited_for_until_its_lease_lapses(bench: Bench) -> None:
    bench.write(3)
    assert bench.acquire(3, seconds=PATIENT, say=bench.lapse_when_said(3)).slot == 3
    assert len(bench.said) == 1
    assert "slot 3 is held by pid 7 on elsewhere since" in bench.said[0]
    assert bench.said[0].endswith("waiting 2.2 s whether it becomes free")


def test_slot_that_is_held_is_refused_with_its_holder_and_the_remedy(bench: Bench) -> None:
    holder = bench.process(0)
    assert holder.holds() == 0
    with pytest.raises(
        SlotTaken,
        match=rf"slot 0 of pipeline {bench.pipeline} is held by pid {holder.process.pid} on {os.uname().nodename} "
        r"since \d{4}-.*; give another --slot, or none: then the lowest free one is taken",
    ):
        bench.acquire(0, seconds=SHORT)
    assert bench.live() == {0: holder.process.pid}


def test_waiting_ends_when_it_is_told_to(bench: Bench) -> None:
    stop = threading.Event()
    bench.write(0)
    with pytest.raises(StreamStopped, match="told to stop while waiting for a slot"):
        acquire(bench.url, bench.pipeline, 0, say=lambda _: stop.set(), stop=stop)
    assert bench.live() == {0: 7}


# ---- holders that were away


def test_frozen_process_finds_its_slot_lost_and_says_who_has_it(bench: Bench) -> None:
    frozen = bench.process(0, SHORT)
    assert frozen.holds() == 0
    frozen.send(signal.SIGSTOP)
    wait_for(lambda: not bench.live())
    lease = bench.acquire(0)
    frozen.send(signal.SIGCONT)
    told = frozen.expect("lost")
    assert told.startswith(
        f"slot 0 of pipeline {bench.pipeline} is held by {lease.holder}; this process had not renewed"
    )
    assert bench.live() == {0: os.getpid()}


def test_frozen_process_goes_on_when_nobody_took_its_slot(bench: Bench) -> None:
    frozen = bench.process(0, SHORT)
    assert frozen.holds() == 0
    frozen.send(signal.SIGSTOP)
    wait_for(lambda: not bench.live())
    frozen.send(signal.SIGCONT)
    wait_for(bench.live)
    assert frozen.told.empty()


def test_lease_that_another_took_is_lost_once_and_its_release_does_no_harm(bench: Bench) -> None:
    lease = bench.acquire(seconds=SHORT)
    assert lease.lost is None
    bench.write(0)
    wait_for(lambda: bench.lost)
    assert bench.lost == [lease.lost]
    assert "is held by pid 7 on elsewhere" in lease.lost
    time.sleep(SHORT)
    lease.release()
    assert len(bench.lost) == 1
    assert bench.live() == {0: 7}


def test_lease_outlives_its_time_while_it_is_renewed(bench: Bench) -> None:
    lease = bench.acquire(seconds=PATIENT)
    first = bench.client.get(bench.key(0))
    time.sleep(1.5 * PATIENT)
    assert bench.client.get(bench.key(0)) == first
    assert (lease.lost, lease.problem) == (None, None)


# ---- faults of Redis


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "headrace.connectors.leases"]


def test_redis_that_was_killed_or_emptied_is_no_loss(own: tuple[embedded.Redis, Bench], caplog) -> None:
    caplog.set_level(logging.INFO)
    server, bench = own
    lease = bench.acquire(seconds=SHORT)
    bench.acquire(4, seconds=SHORT).release()
    for _ in range(2):
        caplog.clear()
        server.kill()
        wait_for(lambda: lease.problem)
        assert "does not answer" in lease.problem
        time.sleep(SHORT)
        server.start()
        wait_for(lambda: lease.problem is None)
        assert (bench.live(), lease.lost) == ({0: os.getpid()}, None)
        assert re.fullmatch(
            r"the lease of slot 0 waits: Redis at \S+ does not answer: .*\nslot 0 is leased again",
            "\n".join(told(caplog)),
        )
    bench.client.flushall()
    wait_for(bench.live)
    assert bench.client.smembers(f"headrace:{{{bench.pipeline}}}:slots") == {b"0"}
    assert bench.lost == []


def test_full_redis_ends_no_lease(own: tuple[embedded.Redis, Bench], caplog) -> None:
    caplog.set_level(logging.INFO)
    _, bench = own
    lease = bench.acquire(seconds=PATIENT)
    bench.client.config_set("maxmemory", 1)
    time.sleep(1.5 * PATIENT)
    assert (bench.live(), lease.problem) == ({0: os.getpid()}, None)
    bench.client.delete(bench.key(0))
    wait_for(lambda: lease.problem)
    assert "it is full: raise its maxmemory" in lease.problem
    time.sleep(0.3)  # it tries several times
    bench.client.config_set("maxmemory", 0)
    wait_for(lambda: lease.problem is None)
    assert (bench.live(), lease.lost) == ({0: os.getpid()}, None)
    assert len(told(caplog)) == 2


def test_redis_that_takes_no_writes_ends_no_lease(own: tuple[embedded.Redis, Bench], caplog) -> None:
    caplog.set_level(logging.INFO)
    _, bench = own
    lease = bench.acquire(seconds=SHORT)
    bench.client.replicaof("127.0.0.1", 1)
    wait_for(lambda: lease.problem)
    assert "it is a replica" in lease.problem
    time.sleep(2 * SHORT)
    bench.client.replicaof("no", "one")
    wait_for(lambda: lease.problem is None)
    assert (bench.live(), lease.lost) == ({0: os.getpid()}, None)
    assert len(told(caplog)) == 2


def test_redis_that_hangs_ends_no_lease(own: tuple[embedded.Redis, Bench]) -> None:
    server, bench = own
    lease = bench.acquire(seconds=SHORT, timeout=0.2)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: lease.problem)
        time.sleep(SHORT)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    wait_for(lambda: lease.problem is None)
    assert (bench.live(), lease.lost) == ({0: os.getpid()}, None)


def test_release_without_redis_is_told_and_not_raised(own: tuple[embedded.Redis, Bench], caplog) -> None:
    server, bench = own
    lease = bench.acquire()
    server.kill()
    lease.release()
    assert re.match(r"slot 0 stays held for up to 600 s: Redis at \S+ does not answer", told(caplog)[-1])


@pytest.mark.parametrize("slot", [0, None])
def test_slot_cannot_be_had_without_redis_or_from_one_that_says_no(
    own: tuple[embedded.Redis, Bench], slot: int | None
) -> None:
    server, bench = own
    bench.client.config_set("maxmemory", 1)
    with pytest.raises(Refused, match="it is full: raise its maxmemory") as caught:
        bench.acquire(slot)
    assert not isinstance(caught.value, SlotTaken)
    bench.client.config_set("maxmemory", 0)
    assert bench.acquire(slot).slot == 0
    server.kill()
    with pytest.raises(Unreachable, match=r"Redis at 127\.0\.0\.1:\d+/0 does not answer.*check --redis"):
        bench.acquire(slot)


def test_lease_that_cannot_be_read_is_held(bench: Bench) -> None:
    bench.client.set(bench.key(0), "mine")
    assert bench.acquire().slot == 1
    with pytest.raises(SlotTaken, match="held by pid 0 on an unknown machine"):
        bench.acquire(0, seconds=SHORT)


def test_cluster_holds_the_slots_of_a_pipeline_on_one_node(unique: str) -> None:
    with embedded.redis(properties={"cluster-enabled": "yes"}) as own:
        client = redis.Redis.from_url(own.url)
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")).replace("': '", ":"):
            time.sleep(0.1)
        bench = Bench(own.url, unique)
        with bench.opened:
            bench.publish(0)
            leases = [bench.acquire(seconds=SHORT) for _ in range(3)]
            assert [lease.slot for lease in leases] == [0, 1, 2]
            time.sleep(2 * SHORT)
            assert list(bench.live()) == [0, 1, 2]
            leases[1].release()
            assert list(bench.live()) == [0, 2]
