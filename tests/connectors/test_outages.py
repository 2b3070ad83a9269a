"""A commit over a broken line: it ends in success or in an error that says why, soon, and nothing is there twice.

The line is a proxy before a real broker. It breaks at the request that a test names, so that each step of a commit
meets each kind of failure.
"""

import asyncio
import contextlib
import functools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from kafka.admin import KafkaAdminClient

from headrace.connectors import embedded, transactions
from headrace.connectors.groups import CommitRefused, Member
from headrace.connectors.reading import RangeReader, read_range
from headrace.connectors.record_writer import Rows
from headrace.connectors.records import Partition
from headrace.connectors.spans import Spans
from headrace.connectors.topics import committed_by, committed_offsets, create_topics, end_offsets
from headrace.connectors.transactions import CycleProducer, Output, Records
from headrace.errors import Refused, Unreachable

# keys of requests in Kafka's protocol
PRODUCE, OFFSET_COMMIT, FIND_COORDINATOR = 0, 8, 10
ADD_PARTITIONS, ADD_OFFSETS, END_TXN, WRITE_MARKERS, TXN_OFFSET_COMMIT = 24, 25, 26, 27, 28

STEPS = {
    "before partitions are added": ADD_PARTITIONS,
    "as outputs are written": PRODUCE,
    "before offsets are added": ADD_OFFSETS,
    "as offsets are committed": TXN_OFFSET_COMMIT,
    "as the transaction ends": END_TXN,
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)

NOBODY = Member(-1, "")
COMMIT_SECONDS = 3.0


class Line:
    """A line to a broker that breaks when told to.

    at(key, act)  act before the next request of that kind goes through; what it returns is done with the request:
                  "pass" it on, "cut" the connection, "lose" the answer and then cut
    cut()         all connections break and none is taken any more, until mend()
    """

    def __init__(self) -> None:
        self.port = embedded.free_port()
        self.target = 0
        self._acts: dict[int, Callable[[], str]] = {}
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.mend()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def at(self, key: int, act: Callable[[], str]) -> None:
        self._acts[key] = act

    def met(self, key: int) -> bool:
        """Whether the request that was waited for has come."""
        return key not in self._acts

    def cut(self) -> None:
        with self._lock:
            listener, self._listener = self._listener, None
            sockets, self._sockets = self._sockets, set()
        for one in [*sockets, *([listener] if listener else [])]:
            hang_up(one)

    def outage(self) -> str:
        """An act: from this request on nothing goes through."""
        self.cut()
        return "cut"

    def mend(self) -> None:
        with self._lock:
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self.port))
                threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    hang_up(client)
                    continue
                with self._lock:
                    self._sockets |= {client, broker}
                    is_cut = self._listener is not listener  # while this one was on its way
                if is_cut:
                    hang_up(client), hang_up(broker)
                    return
                doomed: set[int] = set()  # requests whose answers are lost
                for work in (self._requests, self._answers):
                    threading.Thread(target=work, args=(client, broker, doomed), daemon=True).start()

    def _requests(self, client: socket.socket, broker: socket.socket, doomed: set[int]) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                frame = receive(client)
                key, _, correlation = struct.unpack_from(">hhi", frame)
                if (act := self._acts.pop(key, None)) is not None:
                    match act():
                        case "cut":
                            break
                        case "lose":
                            doomed.add(correlation)
                broker.sendall(struct.pack(">i", len(frame)) + frame)
        hang_up(client), hang_up(broker)

    def _answers(self, client: socket.socket, broker: socket.socket, doomed: set[int]) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                frame = receive(broker)
                if struct.unpack_from(">i", frame)[0] in doomed:
                    break
                client.sendall(struct.pack(">i", len(frame)) + frame)
        hang_up(client), hang_up(broker)


def receive(connection: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        data = connection.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise EOFError
        return data

    return exactly(*struct.unpack(">i", exactly(4)))


def hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@pytest.fixture(scope="module")
def wired() -> Iterator[tuple[Line, embedded.Kafka]]:
    line = Line()
    properties = {
        "advertised.listeners": f"PLAINTEXT://{line.address}",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
    }
    with embedded.kafka(properties=properties) as broker:
        line.target = broker.port
        yield line, broker
        line.cut()


@pytest.fixture
def line(wired: tuple[Line, embedded.Kafka]) -> Iterator[Line]:
    """A line that works, however the test before has left it."""
    line, broker = wired
    yield line
    line._acts.clear()
    line.mend()
    if not broker.running:
        broker.start()


@pytest.fixture
def broker(wired: tuple[Line, embedded.Kafka], line: Line) -> embedded.Kafka:
    return wired[1]


@pytest.fixture
def quick_to_end(monkeypatch: pytest.MonkeyPatch) -> float:
    """Less patience in closing; the seconds that it then takes at most."""
    monkeypatch.setattr(transactions, "END_SECONDS", 0.5)
    monkeypatch.setattr(transactions, "STOP_SECONDS", 1.5)
    return 2.0


class Commits:
    """Cycles of one worker without a consumer: cycle n writes the line n, and commits offset n.

    rows  whether the line is written as Rows
    """

    def __init__(self, line: Line, name: str, transactional: bool = True, rows: bool = False) -> None:
        self.address, self.name, self.transactional, self.rows = line.address, name, transactional, rows
        self.source, self.output = f"{name}.in", f"{name}.out"
        create_topics(self.address, {self.source: 1, self.output: 1})
        self.producer = self.new()

    def new(self, timeout: float = 10.0) -> CycleProducer:
        name = self.name if self.transactional else None
        return CycleProducer(self.address, transactional_id=name, transaction_timeout_seconds=timeout)

    def hurry(self) -> None:
        """From now on a commit must not take long."""
        self.producer.commit_seconds = COMMIT_SECONDS

    async def cycle(self, number: int) -> None:
        line: Output = (None, b"%d" % number, (), None)
        to = (self.output, 0)
        outputs: Mapping[Partition, Records] = {to: [line]}
        if self.rows:
            outputs = self.producer.write(Rows(Spans.none(1), Spans.of([line[1]])), {to: 1})
        await self.producer.commit_cycle(outputs, {(self.source, 0): number}, self.name, NOBODY, f"cycle {number}")

    async def over(self) -> None:
        """As the next worker does: end what was left open, so that all that is to be seen can be seen."""
        successor = self.new()
        await successor.start(30.0)
        await successor.close()

    def seen(self) -> tuple[list[bytes | None], int]:
        """What is committed: the lines of the output, and the offset."""
        end = end_offsets(self.address, [(self.output, 0)])[self.output, 0]
        lines = [record.value for record in read_range(self.address, self.output, 0, 0, end)]
        rows = committed_by(self.address, self.name)
        offset, metadata = rows.get((self.source, 0), (0, "cycle 0"))
        assert metadata == f"cycle {offset}"
        return lines, offset


@every_step
@pytest.mark.parametrize("rows", [False, True])
def test_a_connection_that_breaks_in_a_commit_is_got_over(line: Line, unique: str, step: int, rows: bool) -> None:
    worker = Commits(line, unique, rows=rows)

    async def work() -> None:
        await worker.producer.start()
        await worker.cycle(1)
        line.at(step, lambda: "cut")
        await worker.cycle(2)
        assert line.met(step)
        line.at(step, lambda: "lose")
        await worker.cycle(3)
        assert line.met(step)
        await worker.producer.close()
        await worker.over()

    asyncio.run(work())
    assert worker.seen() == ([b"1", b"2", b"3"], 3)


@every_step
def test_an_outage_that_begins_in_a_commit_is_waited_out(line: Line, unique: str, step: int) -> None:
    worker = Commits(line, unique)

    def outage() -> str:
        threading.Timer(1.5, line.mend).start()
        line.at(FIND_COORDINATOR, lambda: "lose")  # the broker is back, and not quite well yet
        line.cut()
        return "cut"

    async def work() -> None:
        await worker.producer.start()
        line.at(step, outage)
        await worker.cycle(1)
        assert line.met(step)
        await worker.cycle(2)
        await worker.producer.close()
        await worker.over()

    asyncio.run(work())
    assert worker.seen() == ([b"1", b"2"], 2)


@every_step
def test_an_outage_that_does_not_end_is_an_error_and_a_producer_can_be_closed_in_it(
    line: Line, unique: str, step: int, quick_to_end: float
) -> None:
    worker = Commits(line, unique)
    doing = {ADD_PARTITIONS: "writing outputs", PRODUCE: "writing outputs", END_TXN: "ending the transaction"}
    doing[ADD_OFFSETS] = "(writing outputs|committing the offsets)"  # the group is added beside the outputs

    async def work() -> None:
        await worker.producer.start()
        await worker.cycle(1)
        worker.hurry()
        line.at(step, line.outage)
        said = f"broker {line.address} did not end a commit within 3 s, and hangs in "
        with pytest.raises(Unreachable, match=said + doing.get(step, "committing the offsets")):
            async with asyncio.timeout(COMMIT_SECONDS + 3):
                await worker.cycle(2)
        with pytest.raises(Refused, match="did not end; restart"):
            await worker.cycle(2)
        async with asyncio.timeout(quick_to_end + 3):
            await worker.producer.close()
        line.mend()
        await worker.over()

    asyncio.run(work())
    assert worker.seen() == ([b"1"], 1)


def test_closing_takes_ten_seconds_at_most() -> None:
    assert transactions.END_SECONDS + transactions.STOP_SECONDS < 10


def test_an_answer_that_was_lost_for_good_leaves_a_cycle_that_is_committed_whole(
    line: Line, unique: str, quick_to_end: float
) -> None:
    """Nobody knows until the next worker looks: this is why an error in a commit is answered by starting over."""
    worker = Commits(line, unique)

    def lose_and_cut() -> str:
        line.at(END_TXN, line.outage)  # aiokafka asks again
        return "lose"

    async def work() -> None:
        await worker.producer.start()
        worker.hurry()
        line.at(END_TXN, lose_and_cut)
        with pytest.raises(Unreachable):
            await worker.cycle(1)
        await worker.producer.close()
        line.mend()
        await worker.over()

    asyncio.run(work())
    assert worker.seen() == ([b"1"], 1)


@every_step
def test_a_transaction_that_outlived_its_time_is_refused(line: Line, unique: str, step: int) -> None:
    """As when the process was frozen: the broker has ended the transaction before the next request comes."""
    if step == ADD_PARTITIONS:
        return  # nothing is open yet
    worker = Commits(line, unique)
    worker.producer = worker.new(timeout=0.5)

    def freeze() -> str:
        time.sleep(1.5)
        return "pass"

    async def work() -> None:
        await worker.producer.start()
        line.at(step, freeze)
        with pytest.raises(CommitRefused, match=f"id {unique} was fenced .* or the transaction outlived its 0.5 s"):
            await worker.cycle(1)
        await worker.producer.close()
        await worker.over()

    asyncio.run(work())
    assert worker.seen() == ([], 0)


def test_a_topic_that_takes_no_records_is_named(line: Line, unique: str, quick_to_end: float) -> None:
    worker = Commits(line, unique)

    async def work() -> None:
        await worker.producer.start()
        await worker.cycle(1)
        worker.hurry()
        await asyncio.to_thread(delete_topic, line.address, worker.output)
        with pytest.raises(Unreachable, match=f"hangs in writing outputs to {worker.output}: .* too few replicas"):
            await worker.cycle(2)
        await worker.producer.close()

    asyncio.run(work())
    assert committed_offsets(line.address, unique) == {(worker.source, 0): 1}


def delete_topic(address: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.delete_topics([topic])
    admin.close()


def test_at_least_once_offsets_are_committed_again_over_a_new_connection(line: Line, unique: str) -> None:
    worker = Commits(line, unique, transactional=False)
    failures = [(step, failure) for step in (OFFSET_COMMIT, PRODUCE, FIND_COORDINATOR) for failure in ("cut", "lose")]

    async def work() -> None:
        await worker.producer.start()
        for number, (step, failure) in enumerate(failures, start=1):
            line.at(step, functools.partial(str, failure))
            if step == FIND_COORDINATOR:
                line.at(OFFSET_COMMIT, lambda: "cut")  # or there is no need to look for it again
            await worker.cycle(number)
            assert line.met(step)
        await worker.producer.close()

    asyncio.run(work())
    assert worker.seen() == ([b"%d" % number for number in range(1, 7)], 6)


@pytest.mark.parametrize("step", [PRODUCE, OFFSET_COMMIT])
def test_at_least_once_does_not_wait_for_ever(line: Line, unique: str, step: int, quick_to_end: float) -> None:
    worker = Commits(line, unique, transactional=False)

    async def work() -> None:
        await worker.producer.start()
        worker.hurry()
        line.at(step, line.outage)
        with pytest.raises(Unreachable, match="did not end a commit within 3 s"):
            async with asyncio.timeout(COMMIT_SECONDS + 3):
                await worker.cycle(1)
        async with asyncio.timeout(quick_to_end + 3):
            await worker.producer.close()

    asyncio.run(work())


def test_a_successor_waits_until_the_transaction_before_it_has_ended(line: Line, unique: str) -> None:
    worker = Commits(line, unique)
    markers = threading.Event()

    def hold() -> str:
        markers.wait(20)
        return "pass"

    async def work() -> None:
        await worker.producer.start()
        line.at(WRITE_MARKERS, hold)
        await worker.cycle(1)
        with pytest.raises(Unreachable, match=f"did not give out transactional id {unique} within 3 s: a transaction"):
            await worker.new().start(patience_seconds=3.0)
        threading.Timer(1.0, markers.set).start()
        await worker.over()
        await worker.producer.close()

    asyncio.run(work())
    assert worker.seen() == ([b"1"], 1)


@pytest.mark.parametrize("rows", [False, True])
def test_a_broker_that_is_killed_and_started_again_loses_and_doubles_nothing(
    line: Line, broker: embedded.Kafka, unique: str, rows: bool
) -> None:
    worker = Commits(line, unique, rows=rows)
    worker.producer = worker.new(timeout=40.0)
    done = 0

    async def work() -> None:
        nonlocal done
        await worker.producer.start()
        back = asyncio.create_task(asyncio.to_thread(restart))
        while not back.done() or done < 20:
            await worker.cycle(done + 1)
            done += 1
            await asyncio.sleep(0.01)
        await back
        await worker.cycle(done + 1)
        done += 1
        await worker.producer.close()
        await worker.over()

    def restart() -> None:
        broker.kill()
        broker.start()

    asyncio.run(work())
    assert worker.seen() == ([b"%d" % number for number in range(1, done + 1)], done)


def test_a_reader_says_that_the_broker_went_away(line: Line, unique: str) -> None:
    worker = Commits(line, unique)

    async def work() -> None:
        await worker.producer.start()
        await worker.cycle(1)
        await worker.producer.close()
        await worker.over()

    asyncio.run(work())
    with RangeReader(line.address, {(worker.output, 0): 0}, patience_seconds=3.0) as reader:
        assert [record.value for record in reader.read(worker.output, 0, 1)] == [b"1"]
        line.cut()
        with pytest.raises(
            Unreachable, match=f"broker {line.address} does not answer, or sent nothing of {worker.output}"
        ):
            reader.read(worker.output, 0, 9)
