"""The runner alone, without a broker: what it does between two cycles."""

import asyncio

import pytest

from headrace.connectors.store import SnapshotStore
from headrace.errors import InputError
from headrace.stream.engine import Engine
from headrace.stream.publisher import SnapshotPublisher, Table
from headrace.stream.runner import Runner
from headrace.stream.settings import Settings
from headrace.stream.standing import Position, Standing


@pytest.fixture
def runner(open_shop, redis_url):
    pipeline = open_shop("between cycles").pipeline
    runner = Runner(pipeline, Settings(broker="127.0.0.1:9", redis=redis_url), fail=print)
    runner.begin(0)
    engine = Engine(pipeline)
    runner.standing = Standing(engine, Position({}, 6, 5))
    tables = {f"shared/{name}": Table(*table) for name, table in engine.model_tables().items()}
    runner.publisher = SnapshotPublisher(SnapshotStore(redis_url, pipeline.name), tables=tables)
    return runner


def test_idle_worker_copies_its_tables_beside_the_stream_before_it_takes_a_snapshot(runner):
    """The stream may go on at any moment, and must not wait until 64 MiB are copied."""

    async def look_twice():
        await runner._snapshot_if_due()
        assert (runner.publisher.published, runner.stall_seconds) == (0, 0)
        while not runner.publisher.prepared:
            await asyncio.sleep(0.01)
        await runner._snapshot_if_due()
        assert runner.stall_seconds > 0

    asyncio.run(look_twice())
    assert runner.publisher.flush(10)
    assert runner.publisher.version == 1


def test_last_snapshot_is_taken_at_once(runner):
    asyncio.run(runner._snapshot_if_due(force=True))
    assert runner.stall_seconds > 0
    assert runner.publisher.flush(10)
    assert runner.publisher.version == 1


def test_cycles_grow_while_the_worker_is_behind_and_are_short_again_when_it_is_not(runner):
    lengths = []
    for behind in (False, True, True, True, True, True, False):
        runner._adapt(behind)
        lengths.append(round(runner._cycle_seconds * 1000))
    assert lengths == [10, 20, 40, 80, 100, 100, 10]


def test_what_is_fetched_waits_only_while_the_worker_is_behind(runner):
    assert runner.patience() == 0
    runner._adapt(behind=True)
    assert runner.patience() > 0
    runner._adapt(behind=False)
    assert runner.patience() == 0


def test_a_record_that_is_too_large_is_told_when_what_was_computed_before_it_is_out(runner, monkeypatch):
    out = []

    def write_too_much():
        raise InputError("a record is above the limit")

    async def commit():
        await asyncio.sleep(0.05)
        out.append("the cycle before")

    async def cycle():
        runner._behind = True
        runner._committing = asyncio.create_task(commit())
        with pytest.raises(InputError, match="above the limit"):
            await runner._cycle()

    monkeypatch.setattr(runner, "_has_work", lambda: True)
    monkeypatch.setattr(runner, "_work", write_too_much)
    asyncio.run(cycle())
    assert out == ["the cycle before"]
