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

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from headrace.connectors.reading import read_range
from headrace.connectors.records import Record
from headrace.connectors.topics import committed_offsets, end_offsets, remove_member

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
            return sum(any(word in line for word in words) for line in list(self.lines)) >= times

        wait_until(lambda: seen() or self.process.poll() is not None, f"{words} in {self.lines}")
        assert seen(), "".join(self.lines)

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
    wait_until(
        lambda: sum(end_offsets(address, [(topic, partition) for partition in range(partitions)]).values()) >= count,
        f"{count} records on {topic}",
    )
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


def test_records_of_an_aborted_transaction_are_passed_over_and_the_end_is_found(
    kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo
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
    worker = echo(unique, source, output, "slot")
    worker.wait_for("at end 8")  # four records, four markers
    assert wait_for_echoes(kafka, output, 2, 2) == [[0, 4], []]


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
    produce(kafka, source, rows(2, 5000))
    worker = echo(unique, source, output, "slot", BYTES="200000")
    worker.wait_for("at end 10000")
    for partition in range(2):
        cycles = sizes(worker, partition)
        largest = max(size for runs in cycles for size in runs)
        assert sum(map(sum, cycles)) > 1_000_000
        assert max(map(sum, cycles)) < 100_000 + largest
    assert wait_for_echoes(kafka, output, 2, 10_000) == [list(range(5000))] * 2


def test_lost_records_stop_the_worker(kafka: str, unique: str, create_topic: Callable[..., str], echo: Echo) -> None:
    from kafka.admin import KafkaAdminClient

    source, output = create_topic("in"), create_topic("out")
    produce(kafka, source, rows(1, 100))
    worker = echo(unique, source, output, "slot")
    worker.wait_for("at end 100")
    worker.end()
    produce(kafka, source, rows(1, 100))
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_records({TopicPartition(source, 0): 150})
    admin.close()
    worker = echo(unique, source, output, "slot")
    worker.wait_for(f"{source}[0] goes on at offset 150, expected 100")
    assert worker.process.wait(PATIENCE_SECONDS) != 0
    assert wait_for_echoes(kafka, output, 1, 100) == [list(range(100))]


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
