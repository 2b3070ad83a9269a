"""The transport in a real worker: over restarts, kills and rebalances each record is echoed once, in order."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.admin import KafkaAdminClient
from kafka.structs import OffsetAndMetadata

from headrace.connectors import embedded
from headrace.connectors.reading import read_range
from headrace.connectors.records import Record
from headrace.connectors.topics import ask, committed_offsets, create_topics, end_offsets, remove_member
from headrace.connectors.transport import QUIET_MAX_WAIT_MS, ConsumerThread, Settings

ECHO = Path(__file__).parent / "echo_worker.py"
PATIENCE_SECONDS = 45.0

Echo = Callable[..., "Worker"]


class Worker:
    """An echo worker as a process, with the lines it has printed."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(ECHO), *arguments],
            cwd=folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)  # line by line

    def wait_for(self, *words: str, times: int = 1) -> None:
        """Until so many lines with one of the words were printed."""

        def seen() -> bool:
            return self.told(*words) >= times

        wait_until(lambda: seen() or self.process.poll() is not None, f"{words} in {self.lines}")
        assert seen(), "".join(self.lines)

    def told(self, *words: str) -> int:
        """How many lines with one of the words were printed so far."""
        return sum(any(word in line for word in words) for line in list(self.lines))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def echo(kafka: str, tmp_path: Path) -> Iterator[Echo]:
    """echo(group, input, output, slot) -> a running worker, killed at the end of the test."""
    workers: list[Worker] = []

    def start(*arguments: str, **environment: str) -> Worker:
        workers.append(Worker(tmp_path, kafka, *arguments, **environment))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def wait_until(happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def produce(address: str, topic: str, values: list[list[bytes]], seconds: float = 0.0, **options: object) -> None:
    """Write values[p] to partition p, over so many seconds."""

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=address, max_batch_size=1 << 18, **options) as producer:
            longest, parts = max(map(len, values)), 20 if seconds else 1
            for part in range(parts):
                begin, end = longest * part // parts, longest * (part + 1) // parts
                for partition, rows in enumerate(values):
                    for value in rows[begin:end]:
                        await producer.send(topic, value, partition=partition)
                await producer.flush()
                await asyncio.sleep(seconds / parts)

    asyncio.run(send())


def rows(partitions: int, count: int) -> list[list[bytes]]:
    return [[b"%d/%d" % (partition, row) for row in range(count)] for partition in range(partitions)]


def committed(address: str, topic: str, partitions: int) -> list[list[Record]]:
    """What a reader of committed records sees of each partition."""
    ends = end_offsets(address, [(topic, partition) for partition in range(partitions)])
    return [list(read_range(address, topic, partition, 0, end)) for (_, partition), end in sorted(ends.items())]


def echoed(address: str, topic: str, partitions: int) -> list[list[int]]:
    """The input offsets that the committed output holds, in its order."""
    found = committed(address, topic, partitions)
    return [[int((record.value or b"").split()[2]) for record in records] for records in found]


def wait_for_echoes(address: str, topic: str, partitions: int, count: int) -> list[list[int]]:
    wait_until(lambda: sum(map(len, echoed(address, topic, partitions))) >= count, f"{count} records on {topic}")
    time.sleep(1.0)  # doubled ones would come now, and the last marker
    return echoed(address, topic, partitions)


def test_each_record_is_echoed_once_over_a_stop_and_a_kill(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    source, output = create_topic("in", 2), create_topic("out", 2)
    count = 6000
    producing = threading.Thread(target=produce, args=(kafka, source, rows(2, count), 4.0))
    producing.start()
    first = echo(unique, source, output, "slot")
    first.wait_for("assigned 2")
    wait_until(lambda: sum(map(len, echoed(kafka, output, 2))) > 0, "a first cycle")
    assert first.end(signal.SIGTERM) == 0, "".join(first.lines)
    second = echo(unique, source, output, "slot")
    second.wait_for("assigned 2")
    time.sleep(0.5)
    second.end(signal.SIGKILL)
    third = echo(unique, source, output, "slot")
    producing.join()
    assert wait_for_echoes(kafka, output, 2, 2 * count) == [list(range(count))] * 2
    third.wait_for("at end")
    assert third.end() == 0
    assert "bye in hand 0\n" in first.lines
    assert committed_offsets(kafka, unique) == {(source, 0): count, (source, 1): count}


def test_each_record_is_echoed_once_while_a_second_worker_joins_and_leaves(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    source, output = create_topic("in", 4), create_topic("out", 4)
    count = 3000
    given = rows(4, count)

    def produce_part(part: int, seconds: float) -> threading.Thread:
        values = [row[part * 1000 : (part + 1) * 1000] for row in given]
        producing = threading.Thread(target=produce, args=(kafka, source, values, seconds))
        producing.start()
        return producing

    parts = [produce_part(0, 2.0)]
    stays = echo(unique, source, output, "stays")
    stays.wait_for("assigned 4")
    guest = echo(unique, source, output, "guest")
    guest.wait_for("assigned 2")
    stays.wait_for("assigned 2")
    parts.append(produce_part(1, 2.0))  # whoever is slow to join finds work
    guest.wait_for("cycle of", times=5)  # two for each cycle: two were committed
    assert guest.end() == 0
    assert remove_member(kafka, unique, "guest")  # a static member does not leave by itself
    parts.append(produce_part(2, 0.0))
    stays.wait_for("assigned 4", times=2)
    for producing in parts:
        producing.join()
    assert wait_for_echoes(kafka, output, 4, 4 * count) == [list(range(count))] * 4
    assert stays.end() == 0
    workers = {(record.value or b"").split()[3] for records in committed(kafka, output, 4) for record in records}
    assert len(workers) == 2, "the guest worked, too"


@pytest.mark.parametrize(("raw", "came_as"), [("1", "RecordBatches"), ("0", "list")])
def test_records_of_an_aborted_transaction_are_passed_over_and_the_end_is_found(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo, raw: str, came_as: str
) -> None:
    source, output = create_topic("in", 2), create_topic("out", 2)  # partition 1 stays empty

    async def write() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=unique)
        await producer.start()
        for commits in (True, False, True, False):
            await producer.begin_transaction()
            await producer.send_and_wait(source, b"yes" if commits else b"no", partition=0)
            await (producer.commit_transaction() if commits else producer.abort_transaction())
        await producer.stop()

    asyncio.run(write())
    worker = echo(unique, source, output, "slot", RAW=raw)
    worker.wait_for("at end 8")  # four records, four markers
    assert wait_for_echoes(kafka, output, 2, 2) == [[0, 4], []]
    assert {line for line in worker.lines if line.startswith("came as")} == {f"came as {came_as}\n"}


def test_at_least_once_echoes_without_transactions(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    source, output = create_topic("in", 2), create_topic("out", 2)
    produce(kafka, source, rows(2, 500))
    worker = echo(unique, source, output)
    worker.wait_for("at end 1000")
    assert worker.end() == 0
    assert echoed(kafka, output, 2) == [list(range(500))] * 2
    assert end_offsets(kafka, [(output, 0)]) == {(output, 0): 500}, "a transaction would have left a marker"
    assert committed_offsets(kafka, unique) == {(source, 0): 500, (source, 1): 500}


def sizes(worker: Worker, partition: int) -> list[list[int]]:
    """Per cycle the sizes of the runs of one partition."""
    cycles = [line.split()[2:] for line in worker.lines if line.startswith("cycle of")]
    return [list(map(int, runs)) for number, *runs in cycles if int(number) == partition]


def test_what_is_in_hand_is_bounded_for_each_partition(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    source, output = create_topic("in", 2), create_topic("out", 2)
    produce(kafka, source, rows(2, 5000), seconds=0.5)  # batches of 250 records
    worker = echo(unique, source, output, "slot", BYTES="80000", HOLD="2")
    worker.wait_for("at end 10000")
    assert "held None\n" in worker.lines, "when nothing is asked of the broker, it is not silent"
    for partition in range(2):
        cycles = sizes(worker, partition)
        largest = max(size for runs in cycles for size in runs)
        assert sum(map(sum, cycles)) > 5000 * 64, "a row of a table each"
        assert max(map(sum, cycles)) < 40_000 + largest
    assert wait_for_echoes(kafka, output, 2, 10_000) == [list(range(5000))] * 2


def crashes(worker: Worker) -> list[str]:
    """The errors that ended a worker: what was told to the app."""
    return [line.removeprefix("crash ") for line in worker.lines if line.startswith("crash ")]


@pytest.fixture
def half_gone(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> Callable[..., tuple[Worker, str, str]]:
    """half_gone(LOST=...) -> a worker that left at offset 100 of 200, of which 150 are gone when it starts again; topics."""

    def start(**environment: str) -> tuple[Worker, str, str]:
        source, output = create_topic("in"), create_topic("out")
        produce(kafka, source, rows(1, 100))
        worker = echo(unique, source, output, "slot")
        worker.wait_for("at end 100")
        worker.end()
        produce(kafka, source, rows(1, 100))
        admin = KafkaAdminClient(bootstrap_servers=kafka)
        admin.delete_records({TopicPartition(source, 0): 150})
        admin.close()
        return echo(unique, source, output, "slot", **environment), source, output

    return start


def test_lost_records_stop_the_worker(
    kafka: str, unique: str, half_gone: Callable[..., tuple[Worker, str, str]]
) -> None:
    worker, source, output = half_gone()
    assert worker.process.wait(PATIENCE_SECONDS) != 0
    (said,) = crashes(worker)
    assert said.startswith(f"StreamStopped records that group {unique} has not read are gone")
    assert f": 50 of {source}[0] from offset 100 on. To go on from the earliest that is left: --lost earliest" in said
    assert wait_for_echoes(kafka, output, 1, 100) == [list(range(100))]


def test_a_worker_that_may_lose_records_goes_on_from_the_earliest(
    kafka: str, half_gone: Callable[..., tuple[Worker, str, str]]
) -> None:
    worker, _, output = half_gone(LOST="earliest")
    worker.wait_for("begins 0 at 150 committed by slot gone 50")
    assert wait_for_echoes(kafka, output, 1, 150) == [[*range(100), *range(150, 200)]]
    assert worker.end() == 0


def test_a_topic_that_ends_before_what_was_read_of_it_stops_the_worker(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    source, output = create_topic("in"), create_topic("out")
    produce(kafka, source, rows(1, 5))
    seven = {TopicPartition(source, 0): OffsetAndMetadata(7, "", None)}

    def write(admin: KafkaAdminClient) -> None:
        for error in admin.alter_group_offsets(unique, seven).values():
            if error.errno:
                raise error  # a young broker is not ready for groups: ask again

    ask(kafka, write)
    worker = echo(unique, source, output, "slot", LOST="earliest")
    assert worker.process.wait(PATIENCE_SECONDS) != 0
    (said,) = crashes(worker)
    assert said.startswith(f"StreamStopped {source}[0] ends at offset 5, group {unique} has read it up to 7")


def test_an_error_in_joining_the_group_is_told(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    """aiokafka keeps it for the next poll; none comes, for Faust waits for partitions."""
    source, output = create_topic("in"), create_topic("out")

    async def meet() -> Worker:
        options = {"group_id": unique, "partition_assignment_strategy": [RoundRobinPartitionAssignor]}
        async with AIOKafkaConsumer(source, bootstrap_servers=kafka, **options) as stranger:
            while not stranger.assignment():
                await asyncio.sleep(0.05)
            worker = echo(unique, source, output, "slot")
            assert await asyncio.to_thread(worker.process.wait, PATIENCE_SECONDS) != 0
        return worker

    (said,) = crashes(asyncio.run(meet()))
    assert said.startswith(f"Refused group {unique}: broker {kafka} refused to go on: ")
    assert "InconsistentGroupProtocolError" in said


def test_an_ordinary_agent_in_the_same_app_gets_records_one_by_one(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
) -> None:
    source, output, other = create_topic("in"), create_topic("out"), create_topic("other")
    produce(kafka, other, [[b"a", b"b", b"c"]])
    worker = echo(unique, source, output, "slot", OTHER=other)
    worker.wait_for("other", times=3)
    assert [line.split()[1] for line in worker.lines if line.startswith("other")] == ["a", "b", "c"]
    wait_until(lambda: committed_offsets(kafka, unique).get((other, 0)) == 3, "Faust's own commit")
    assert worker.end() == 0


# outages: with a broker of their own


@pytest.fixture(scope="module")
def frail_server() -> Iterator[embedded.Kafka]:
    with embedded.kafka(properties={"group.min.session.timeout.ms": "1000"}) as server:
        yield server


@pytest.fixture
def frail(frail_server: embedded.Kafka) -> Iterator[embedded.Kafka]:
    """A broker to be killed; the next test finds it running."""
    yield frail_server
    if not frail_server.running:
        frail_server.start()


@pytest.fixture
def frail_echo(frail: embedded.Kafka, tmp_path: Path) -> Iterator[Echo]:
    """As echo, at the frail broker."""
    workers: list[Worker] = []

    def start(*arguments: str, **environment: str) -> Worker:
        workers.append(Worker(tmp_path, frail.address, *arguments, **environment))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def test_workers_outlive_an_outage_and_say_that_they_hear_nothing(
    frail: embedded.Kafka, unique: str, frail_echo: Echo
) -> None:
    source, output = f"{unique}.in", f"{unique}.out"
    create_topics(frail.address, {source: 2, output: 2})
    produce(frail.address, source, rows(2, 500))
    first = frail_echo(unique, source, output, "first")
    first.wait_for("at end 1000")
    assert "silent\n" not in first.lines
    frail.kill()
    second = frail_echo(unique, source, output, "second")  # starts without a broker
    first.wait_for("silent")
    frail.start()
    first.wait_for("heard")
    second.wait_for("assigned 1")
    first.wait_for("assigned 1")
    produce(frail.address, source, rows(2, 500))
    assert wait_for_echoes(frail.address, output, 2, 2000) == [list(range(1000))] * 2
    assert (first.end(), second.end()) == (0, 0)


def test_a_worker_can_be_stopped_while_the_broker_is_away(frail: embedded.Kafka, unique: str, frail_echo: Echo) -> None:
    source, output = f"{unique}.in", f"{unique}.out"
    create_topics(frail.address, {source: 3, output: 3})
    workers = [frail_echo(unique, source, output, slot) for slot in "abc"]  # stopped at different moments
    for worker in workers:
        worker.wait_for("assigned")
    frail.kill()
    for worker in workers:
        worker.wait_for("silent", "crash")
        worker.process.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.process.wait(PATIENCE_SECONDS)


def test_a_broker_that_goes_away_while_start_offsets_are_asked_for_ends_the_worker(
    frail: embedded.Kafka, unique: str, frail_echo: Echo
) -> None:
    source, output = f"{unique}.in", f"{unique}.out"
    create_topics(frail.address, {source: 2, output: 2})
    worker = frail_echo(unique, source, output, "slot", SEEK="1", PATIENCE="8")
    worker.wait_for("seeking")
    frail.kill()
    assert worker.process.wait(PATIENCE_SECONDS) != 0
    (said,) = crashes(worker)
    assert said.startswith(f"Unreachable no start offsets for group {unique} within 7.2 s")


def test_each_record_is_echoed_once_though_a_worker_freezes_beyond_its_session(
    frail: embedded.Kafka, unique: str, frail_echo: Echo
) -> None:
    source, output = f"{unique}.in", f"{unique}.out"
    create_topics(frail.address, {source: 4, output: 4})
    count = 4000
    producing = threading.Thread(target=produce, args=(frail.address, source, rows(4, count), 12.0))
    producing.start()
    freezes, stays = (frail_echo(unique, source, output, slot, SESSION="2") for slot in ("freezes", "stays"))
    for worker in (freezes, stays):
        worker.wait_for("assigned 2")
    freezes.wait_for("cycle of", times=4)
    alone = stays.told("assigned 4")  # it may have begun before the other
    freezes.process.send_signal(signal.SIGSTOP)
    stays.wait_for("assigned 4", times=alone + 1)
    freezes.process.send_signal(signal.SIGCONT)
    freezes.wait_for("assigned 2", "crash", times=2)  # the latter when it was caught in a commit
    producing.join()
    assert wait_for_echoes(frail.address, output, 4, 4 * count) == [list(range(count))] * 4


def test_a_fetch_waits_for_a_first_record_and_longer_in_silence() -> None:
    thread: Any = SimpleNamespace(consumer=SimpleNamespace(settings=Settings(frozenset(), max_wait_ms=40)))
    fetcher: Any = SimpleNamespace(_records={})

    async def asked(seconds: float) -> int:
        """Milliseconds that the next fetch may wait, so long after the last take."""
        thread._drained = asyncio.get_running_loop().time() - seconds
        ConsumerThread._set_wait(thread, fetcher)
        return int(fetcher._fetch_max_wait_ms)

    async def ask() -> None:
        assert await asked(0.005) == 40
        assert await asked(2.0) == QUIET_MAX_WAIT_MS
        fetcher._records = {"t": "not taken yet"}
        assert await asked(2.0) == 40

    asyncio.run(ask())


def test_the_next_fetch_is_a_moment_after_a_take_unless_the_owner_is_behind() -> None:
    patience = 0.0
    owner = SimpleNamespace(patience=lambda: patience)
    consumer = SimpleNamespace(
        settings=Settings(frozenset(), collect_seconds=0.5), transport=SimpleNamespace(owner=owner)
    )
    thread: Any = SimpleNamespace(consumer=consumer)
    fetcher: Any = SimpleNamespace(_get_actions_per_node=lambda assignment: f"fetch {assignment}")

    async def ask() -> None:
        nonlocal patience
        ConsumerThread._fetch_later(thread, fetcher)
        thread._drained = asyncio.get_running_loop().time() - 0.1
        fetches, resets, seconds, invalid, futures = fetcher._get_actions_per_node("all")
        assert (fetches, resets, invalid, futures) == ([], {}, False, [])
        assert 0.3 < seconds <= 0.4
        patience = 0.02
        assert fetcher._get_actions_per_node("all") == "fetch all"
        patience = 0.0
        thread._drained -= 0.4
        assert fetcher._get_actions_per_node("all") == "fetch all"

    asyncio.run(ask())
