"""The runner alone, without a broker: what it does between two cycles."""

import asyncio
import gc
import time
from collections import deque

import msgspec
import numpy as np
import pytest

from headrace.connectors.records import Fetched, Record
from headrace.connectors.store import SnapshotStore
from headrace.errors import InputError, Unreachable
from headrace.stream.align import Aligner
from headrace.stream.cycle import Cycle
from headrace.stream.engine import Engine
from headrace.stream.publisher import SnapshotPublisher, Table
from headrace.stream.runner import Runner
from headrace.stream.settings import Settings
from headrace.stream.slices import Piece
from headrace.stream.snapshot import place
from headrace.stream.snapshot_schedule import SnapshotSchedule
from headrace.stream.standing import Position, Standing


@pytest.fixture
def runner(open_shop, redis_url):
    pipeline = open_shop("between cycles").pipeline
    runner = Runner(pipeline, Settings(broker="127.0.0.1:9", redis=redis_url), fail=print)
    runner.begin(0)
    engine = Engine(pipeline)
    tables = {f"shared/{name}": Table(*table) for name, table in engine.model_tables().items()}
    publisher = SnapshotPublisher(SnapshotStore(redis_url, pipeline.name), tables=tables)
    runner._equip(Standing(engine, Position({}, 6, 5)), publisher)
    return runner


def test_idle_worker_copies_its_tables_beside_the_stream_before_it_takes_a_snapshot(runner):
    """The stream may go on at any moment, and must not wait until 64 MiB are copied."""

    async def look_twice():
        await runner._snapshot_if_due()
        assert (runner.publisher.published, runner.snapshots.stall_seconds) == (0, 0)
        while not runner.publisher.prepared:
            await asyncio.sleep(0.01)
        await runner._snapshot_if_due()
        assert runner.snapshots.stall_seconds > 0

    asyncio.run(look_twice())
    assert runner.publisher.flush(10)
    assert runner.publisher.version == 1


def test_last_snapshot_is_taken_at_once(runner):
    asyncio.run(runner._snapshot_if_due(force=True))
    assert runner.snapshots.stall_seconds > 0
    assert runner.publisher.flush(10)
    assert runner.publisher.version == 1
    assert runner.publisher.token == 5  # where in the journal its last cycle stands, of which nothing is to be replayed


def wait_for(publisher):
    until = time.monotonic() + 10
    while publisher.busy:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_cycle_does_not_wait_for_the_copy_of_much_that_was_written_since_it_was_copied(runner):
    large = Table(np.zeros(1 << 18), np.zeros(256, np.uint8))  # 2 MiB
    publisher, snapshots = SnapshotPublisher(runner.publisher.store, tables={"large": large}), runner.snapshots
    snapshots.wanted = publisher.prepare()
    wait_for(publisher)
    large.touched[:] = 1
    assert not snapshots.end_cycle(publisher, runner.standing)
    assert (snapshots.wanted, snapshots.taken, snapshots.stall_seconds) == (True, False, 0)
    wait_for(publisher)
    assert publisher.ready  # it was copied again, beside the stream


def test_snapshot_that_waits_for_its_commit_is_not_given_up_for_the_next(runner):
    publisher, snapshots, standing = runner.publisher, runner.snapshots, runner.standing
    snapshots.wanted = publisher.prepare()
    wait_for(publisher)
    assert snapshots.end_cycle(publisher, standing)
    assert not snapshots.waits_for_cycle(publisher)
    snapshots.due_at = 0.0
    snapshots.prepare_if_due(publisher)
    assert not snapshots.wanted
    publisher.publish(standing.position.journal - 1, **place(standing.position))
    assert publisher.flush(10)
    assert publisher.version == 1


def test_snapshot_comes_sooner_while_partitions_wait_for_it_to_go_live():
    waiting = [3]
    snapshots = SnapshotSchedule(1_000, print, lambda: waiting)
    snapshots.next()
    sooner = snapshots.due_at
    waiting.clear()
    snapshots.next()
    assert snapshots.due_at - sooner > 900


def test_cycles_grow_while_the_worker_is_behind_and_are_short_again_when_it_is_not(runner):
    lengths = []
    for behind in (False, True, True, True, True, True, False):
        runner.pace.adapt(behind)
        lengths.append(round(runner.pace.cycle_seconds * 1000))
    assert lengths == [10, 20, 40, 80, 100, 100, 10]


def test_what_is_fetched_waits_only_while_the_worker_is_behind(runner):
    assert runner.patience() == 0
    runner.pace.adapt(behind=True)
    assert runner.patience() > 0
    runner.pace.adapt(behind=False)
    assert runner.patience() == 0


def test_a_record_that_is_too_large_is_told_when_what_was_computed_before_it_is_out(runner, monkeypatch):
    out = []

    def write_too_much():
        raise InputError("a record is above the limit")

    async def commit():
        await asyncio.sleep(0.05)
        out.append("the cycle before")

    async def cycle():
        runner.pace.behind = True
        runner.commits._committing.append(asyncio.create_task(commit()))
        with pytest.raises(InputError, match="above the limit"):
            await runner._cycle()

    monkeypatch.setattr(runner.computing, "has_work", lambda: True)
    monkeypatch.setattr(runner, "_work", write_too_much)
    asyncio.run(cycle())
    assert out == ["the cycle before"]


@pytest.fixture
def visits(runner):
    """Two visits have come, of a partition that is live."""
    topic, standing = runner.pipeline.topics["events"], runner.standing
    standing.own([0])
    runner.computing.aligner = Aligner(None)
    runner.computing.aligner.own(("events", 0), standing.engine.clock("events", 0))
    rows = [{"id": f"v{i}", "time": 1_700_000_000 + i, "site": "a"} for i in range(2)]
    records = [Record(i, 0, row["id"].encode(), msgspec.json.encode(row)) for i, row in enumerate(rows)]
    runner.hand.runs["events", 0] = deque([Fetched(topic, 0, 0, 2, records, 2, -1, 200)])
    runner.hand.fetched["events", 0] = runner.hand.ends["events", 0] = 2


def test_a_snapshot_that_is_due_is_taken_behind_what_there_is_and_holds_nothing_up(runner, visits):
    """Were the cycle to end at once, at least once would predict nothing until the commits under way are through."""
    publisher = runner.publisher
    runner.pace.cycle_seconds = 60  # kernels may be compiled
    runner.snapshots.wanted = publisher.prepare()
    until = time.monotonic() + 10
    while not publisher.prepared:
        assert time.monotonic() < until
        time.sleep(0.01)
    cycle = runner._work()
    assert [(piece.start, piece.next) for piece in cycle.pieces] == [(0, 2)]
    assert cycle.taken


class Commits:
    """A producer whose commits end once `may` is set; `done` has the offsets of each."""

    def __init__(self):
        self.done, self.may, self.error = [], asyncio.Event(), None

    async def commit_cycle(self, outputs, offsets, *_):
        await self.may.wait()
        if self.error is not None:
            raise self.error
        self.done.append(next(iter(offsets.values())))
        return dict.fromkeys(outputs, len(self.done))

    async def close(self):
        pass


@pytest.fixture
def behind(runner, monkeypatch):
    """Each cycle moves on by one event and there is always another; returns those computed and the commits."""
    computed = []

    def work():
        computed.append(len(computed))
        return Cycle(pieces=[Piece("events", 0, computed[-1], computed[-1] + 1)])

    monkeypatch.setattr(runner.computing, "has_work", lambda: True)
    monkeypatch.setattr(runner, "_work", work)
    runner.pace.behind, runner.commits.producer, runner._begun = True, Commits(), True
    runner.snapshots.due_at = time.monotonic() + 1_000
    return computed, runner.commits.producer


def test_while_the_worker_is_behind_one_cycle_may_wait_for_the_commit_of_another(runner, behind):
    computed, commits = behind

    async def work():
        for _ in range(3):
            assert await runner._cycle()

    async def look():
        working = asyncio.create_task(work())
        async with asyncio.timeout(10):
            while len(computed) < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert not working.done() and commits.done == []
        commits.may.set()
        await working
        await runner.commits.all_committed()
        assert commits.done == [1, 2, 3]
        assert runner.standing.position.cycle == 5 + 3

    asyncio.run(look())


def test_a_cycle_that_waits_for_a_commit_that_fails_is_not_committed(runner, behind, caplog):
    computed, commits = behind

    async def look():
        commits.error = Unreachable("the broker is away")
        for _ in range(2):
            assert await runner._cycle()
        commits.may.set()
        with pytest.raises(Unreachable):
            await runner._cycle()
        await asyncio.sleep(0.01)  # now the second has failed with the first
        await runner.abandon()

    asyncio.run(look())
    gc.collect()
    assert commits.done == [] and len(computed) == 3
    assert caplog.records == []
