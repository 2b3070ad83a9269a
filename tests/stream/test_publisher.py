"""The publisher against a real Redis: the stream goes on while snapshots are uploaded, and faults reach the worker."""

import os
import signal
import threading
import time
from io import StringIO

import numpy as np
import pytest
import redis
from rich.console import Console

from headrace.connectors import embedded
from headrace.connectors.store import Fenced, SnapshotStore
from headrace.errors import SnapshotError
from headrace.models import FTRL, LogisticRegression
from headrace.models.base import Rows, Spec, Truth, allocate, allocate_touched
from headrace.stream.publisher import SnapshotPublisher, Table
from headrace.stream.snapshots_cli import age, list_snapshots, show_snapshot, size


@pytest.fixture
def store(redis_url: str, unique: str) -> SnapshotStore:
    return SnapshotStore(redis_url, unique, keep=3, chunk_bytes=1024)


class Learning:
    """A model that learns random rows into a table, and what else a snapshot of it holds."""

    def __init__(self) -> None:
        spec = Spec(numeric=("x",), categories=("a", "b"), task="binary")
        self.model = LogisticRegression(FTRL(), bits=17)
        layout = self.model.layout(spec)
        self.arrays = allocate(layout)
        marks = allocate_touched(layout)
        self.tables = {
            name: Table(self.arrays[name], marks[array.rows]) for name, array in layout.items() if array.rows
        }
        self.model.bind(spec, self.arrays, marks)
        self.random = np.random.default_rng(1)

    def learn(self, rows: int) -> None:
        x = Rows(
            self.random.normal(size=(rows, 1)).astype(np.float32), self.random.integers(1, 2**63, (rows, 2), np.uint64)
        )
        y = (self.random.random((rows, 1)) < 0.3).astype(np.float32)
        self.model.learn(x, Truth(y, np.ones(rows, np.float32)))


def wait_while_busy(publisher: SnapshotPublisher) -> None:
    while publisher.busy:
        time.sleep(0.01)


def test_staged_snapshot_is_what_it_was_when_staged(unique: str) -> None:
    arrays = {
        "w": np.zeros(2000),
        "n": np.zeros((30, 2), np.int32)[:, ::2],
        "step": np.array(0),
        "none": np.zeros((0, 3)),
    }
    meta = {"offsets": {"0": 0}}
    with embedded.redis() as own:
        publisher = SnapshotPublisher(SnapshotStore(own.url, unique, timeout=60))
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        try:
            assert publisher.stage(arrays, meta, 0)
            for array in arrays.values():
                array += 1
            meta["offsets"]["0"] = 1
            assert publisher.busy
            assert not publisher.stage(arrays, meta, 1)  # one at a time
            assert not publisher.flush(0.1)
        finally:
            os.kill(own.pid, signal.SIGCONT)
        assert publisher.flush(30)
        found = publisher.store.load()
    assert found.meta == {"offsets": {"0": 0}}
    for name, array in arrays.items():
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].dtype == array.dtype
        assert not found.arrays[name].any()
    assert (publisher.version, publisher.token, publisher.published) == (1, 0, 1)
    assert publisher.stall_seconds > 0


def test_arrays_may_grow_shrink_come_and_go(store: SnapshotStore) -> None:
    publisher = SnapshotPublisher(store)
    sizes = [10, 1000, 1100, 100_000, 5, 0, 50]
    for token, count in enumerate(sizes):
        arrays = {f"a{i}": np.full(count, token + i, np.float32) for i in range(1 + token % 3)}
        assert publisher.stage(arrays, {}, token)
        assert publisher.flush(30)
        found = store.load().arrays
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    assert publisher.version == len(sizes)
    assert publisher.bytes_sent > 0


def test_buffer_is_used_again_and_given_back(store: SnapshotStore) -> None:
    publisher = SnapshotPublisher(store)
    publisher.reserve(80_000)
    assert 80_000 <= publisher.buffer_bytes < 2 * 80_000
    reserved = publisher._buffer
    for token in range(3):
        publisher.stage({"w": np.full(10_000 + 100 * token, token, float)}, {}, token)
        publisher.flush(30)
        assert publisher._buffer is reserved
    publisher.stage({"w": np.zeros(100)}, {}, 3)
    publisher.flush(30)
    assert publisher.buffer_bytes < 80_000 / 4


def test_table_is_copied_as_it_is_when_taken_while_it_is_learned_into(redis_url: str, unique: str) -> None:
    """Cycles are learned one after another; the publisher copies and uploads beside them and is never waited for."""
    store, learning = SnapshotStore(redis_url, unique, keep=100), Learning()
    publisher = SnapshotPublisher(store, tables=learning.tables)
    publisher.reserve(100_000)
    taken: dict[int, dict[str, np.ndarray]] = {}
    cycle, until = 0, time.monotonic() + 60
    while publisher.published < 20:
        assert time.monotonic() < until
        cycle += 1
        learning.learn(rows=20)
        if cycle % 500 == 0:
            learning.model.decay(0.5)  # writes to all that was ever written to
        if publisher.ready or cycle % 97 == 0:  # ready or not: what is taken is right
            if publisher.take(learning.arrays, {}):
                taken[cycle] = {name: array.copy() for name, array in learning.arrays.items()}
                learning.learn(rows=20)
                publisher.publish(cycle)
        else:
            publisher.prepare()
    assert publisher.flush(30)
    assert len(store.kept()) == publisher.published
    for info in store.kept():
        found = store.load(info.version).arrays
        assert found.keys() == learning.arrays.keys()
        for name, array in taken[info.token].items():
            assert found[name].tobytes() == array.tobytes(), (info.token, name)


def test_only_blocks_that_were_touched_are_copied_again(store: SnapshotStore) -> None:
    table, marks = np.arange(300.0).reshape(100, 3), np.zeros(2, np.uint8)
    publisher = SnapshotPublisher(store, tables={"table": Table(table, marks)})
    for row, seen in [(None, 0.0), (5, -1.0), (99, -1.0)]:
        if row is not None:
            table[row] = -1
            marks[row >> 6] = 1
        assert publisher.stage({"table": table}, {}, 1 + publisher.token)
        assert publisher.flush(30)
        assert not marks.any()
        np.testing.assert_array_equal(store.load().arrays["table"], table)
        assert store.load().arrays["table"][row or 0, 0] == seen
    table[70] = 0  # and nobody says so
    marks[0] = 1
    assert publisher.stage({"table": table}, {}, 9)
    assert publisher.flush(30)
    assert store.load().arrays["table"][70, 0] == 210
    another = table.copy()
    assert publisher.stage({"table": another}, {}, 10)
    assert publisher.flush(30)
    np.testing.assert_array_equal(store.load().arrays["table"], another)


def test_arrays_of_a_row_group_share_their_marks(store: SnapshotStore) -> None:
    arrays: dict[str, np.ndarray] = {"w": np.zeros((128, 2), np.float32), "n": np.zeros(128)}
    marks = np.zeros(2, np.uint8)
    publisher = SnapshotPublisher(store, tables={name: Table(array, marks) for name, array in arrays.items()})
    for token in range(3):
        for array in arrays.values():
            array[token * 60] = token
        marks[token * 60 >> 6] = 1
        assert publisher.prepare()
        assert publisher.flush(30)
        assert publisher.prepared
        assert publisher.stage(arrays, {}, token)
        assert publisher.flush(30)
        for name, array in arrays.items():
            np.testing.assert_array_equal(store.load().arrays[name], array)
    assert publisher.buffer_bytes >= sum(array.nbytes for array in arrays.values())


def test_snapshot_is_ready_when_little_is_left_or_it_does_not_become_less(store: SnapshotStore) -> None:
    marks = np.zeros(64, np.uint8)
    publisher = SnapshotPublisher(store, tables={"w": Table(np.zeros((4096, 128)), marks)})  # 4 MiB
    for touched, ready in [(16, True), (17, False), (64, False), (17, True)]:
        assert publisher.prepare()
        assert publisher.flush(30)
        marks[:touched] = 1
        assert publisher.prepared
        assert publisher.ready == ready
        if ready:
            assert publisher.take({}, {})
            assert not publisher.prepared
            assert not publisher.ready


def test_snapshot_is_published_once_its_token_is_known(store: SnapshotStore) -> None:
    publisher = SnapshotPublisher(store)
    publisher.publish(3)  # nothing was taken
    w = np.zeros(3)
    assert publisher.take({"w": w}, {"journal": None, "cycle": 7})
    w += 1
    assert publisher.flush(30)
    assert store.current() is None
    publisher.publish(4, journal=5)
    publisher.publish(6)  # it is on its way
    assert publisher.flush(30)
    found = store.load()
    assert (found.token, found.meta) == (4, {"journal": 5, "cycle": 7})
    assert not found.arrays["w"].any()
    assert publisher.take({"w": w}, {})
    assert publisher.prepare()  # which writes to the copies
    publisher.publish(6)
    assert publisher.flush(30)
    assert publisher.take({"w": w}, {})
    publisher.publish(4)  # nothing has happened since
    assert publisher.flush(30)
    assert store.current() == (1, 4)


def test_same_token_is_not_published_again(store: SnapshotStore) -> None:
    store.publish({"w": np.zeros(3)}, {}, 5)
    restarted = SnapshotPublisher(store, version=1, token=5)
    assert not restarted.stage({"w": np.zeros(3)}, {}, 5)  # a worker that starts and stops without an event in between
    assert restarted.flush(0)
    assert restarted.version == 1
    assert restarted.stage({"w": np.ones(3)}, {}, 6)
    assert restarted.flush(30)
    assert restarted.version == 2


def test_zombie_learns_that_it_must_stop(store: SnapshotStore) -> None:
    told = threading.Event()
    zombie = SnapshotPublisher(store, on_error=lambda error: told.set())
    store.publish({"w": np.ones(3)}, {}, 9)
    assert zombie.stage({"w": np.zeros(3)}, {}, 8)
    assert told.wait(30)
    for call in (lambda: zombie.flush(30), lambda: zombie.stage({"w": np.zeros(3)}, {}, 10)):
        with pytest.raises(Fenced, match=r"token 8 refused"):
            call()
    assert isinstance(zombie.error, Fenced)
    np.testing.assert_array_equal(store.load().arrays["w"], np.ones(3))


def test_array_that_is_not_finite_stops_the_worker(store: SnapshotStore) -> None:
    publisher = SnapshotPublisher(store)
    publisher.stage({"w": np.array([1.0, np.nan]), "pending/x": np.array([np.nan])}, {}, 1, allow_nan=["pending/*"])
    with pytest.raises(SnapshotError, match=r"array 'w' .* is not finite"):
        publisher.flush(30)
    assert store.current() is None


def test_redis_away_is_logged_once_and_made_up_for(unique: str, caplog: pytest.LogCaptureFixture) -> None:
    with embedded.redis() as own:
        publisher = SnapshotPublisher(SnapshotStore(own.url, unique))
        assert publisher.stage({"w": np.zeros(3)}, {}, 1)
        assert publisher.flush(30)
        own.kill()
        for token in (2, 3, 4):
            assert publisher.stage({"w": np.full(3, token, float)}, {}, token)
            wait_while_busy(publisher)
            assert not publisher.flush(0)
        assert publisher.error is None
        assert publisher.problem is not None
        assert "does not answer" in publisher.problem
        assert publisher.version == 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        own.start()
        assert publisher.flush(30)  # the last one staged
        assert (publisher.version, publisher.token, publisher.problem) == (2, 4, None)
        np.testing.assert_array_equal(publisher.store.load().arrays["w"], np.full(3, 4.0))


def test_full_redis_is_a_problem_that_may_pass(unique: str) -> None:
    with embedded.redis(properties={"maxmemory": "8mb"}) as own:
        publisher = SnapshotPublisher(SnapshotStore(own.url, unique, chunk_bytes=1 << 18))
        large = np.random.default_rng(0).normal(size=2_000_000)
        assert publisher.stage({"w": large}, {}, 1)
        wait_while_busy(publisher)
        assert not publisher.flush(0)
        assert publisher.problem is not None
        assert "it is full" in publisher.problem
        assert publisher.stage({"w": large[:100_000]}, {}, 2)
        assert publisher.flush(30)
        assert publisher.problem is None


def test_redis_that_lost_everything_gets_it_all_again(unique: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its data are gone while the worker lives: the next snapshot is whole, and its version goes on rising."""
    arrays = {"w": np.random.default_rng(0).normal(size=100_000), "constant": np.ones(100_000)}
    with embedded.redis(properties={"appendonly": "no"}) as own:
        publisher = SnapshotPublisher(SnapshotStore(own.url, unique))
        for token in (5, 6):
            assert publisher.stage(arrays, {}, token)
            assert publisher.flush(30)
        own.kill()
        own.start()
        assert publisher.store.current() is None
        assert publisher.stage(arrays, {}, 7)
        assert publisher.flush(30)
        assert publisher.store.current() == (3, 7)
        own.kill()
        assert publisher.check()
        wait_while_busy(publisher)
        assert publisher.token == 7  # it does not answer: it may hold it still
        own.start()
        assert not publisher.stage(arrays, {}, 7)  # nothing has happened since
        assert publisher.check()
        wait_while_busy(publisher)
        assert "snapshot 3 is gone from" in caplog.text
        assert publisher.stage(arrays, {}, 7)
        assert publisher.flush(30)
        assert (publisher.store.current(), publisher.version) == ((4, 7), 4)
        assert publisher.check()
        wait_while_busy(publisher)
        assert not publisher.stage(arrays, {}, 7)
        found = publisher.store.load().arrays
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


def test_redis_that_refuses_writes_and_takes_them_again(unique: str) -> None:
    with embedded.redis() as own:
        client = redis.Redis.from_url(own.url)
        publisher = SnapshotPublisher(SnapshotStore(own.url, unique))
        assert publisher.stage({"w": np.zeros(3)}, {}, 1)
        assert publisher.flush(30)
        client.config_set("appendonly", "no")
        client.replicaof("127.0.0.1", 1)
        assert publisher.stage({"w": np.ones(3)}, {}, 2)
        wait_while_busy(publisher)
        assert publisher.problem is not None
        assert "it is a replica" in publisher.problem
        client.replicaof("NO", "ONE")
        assert publisher.flush(30)
        assert (publisher.store.current(), publisher.problem) == ((2, 2), None)
        np.testing.assert_array_equal(publisher.store.load().arrays["w"], np.ones(3))


# ---- headrace snapshots list | show


def text_of(show: object, *arguments: object, **options: object) -> str:
    output = StringIO()
    show(*arguments, console=Console(file=output, width=120), **options)  # type: ignore[operator]
    return output.getvalue()


def test_list_tells_versions_counts_loss_and_offsets(store: SnapshotStore, redis_url: str) -> None:
    for token in range(5):
        metrics = {"events": 1000 * token, "labels": 900 * token, "log_loss": 0.25}
        store.publish({"w": np.zeros(1000)}, {"metrics": metrics, "offsets": {"flights": {"0": token}}}, token)
    rows = text_of(list_snapshots, redis_url, store.pipeline).splitlines()
    cells = [
        [cell.strip() for cell in (row.split("│")[1:2] + row.split("│")[3:-1])] for row in rows if row.startswith("│")
    ]
    assert cells == [
        ["*5", "7.8 KB", "4,000", "3,600", "0.2500", "flights 0: 4"],
        ["4", "7.8 KB", "3,000", "2,700", "0.2500", "flights 0: 3"],
        ["3", "7.8 KB", "2,000", "1,800", "0.2500", "flights 0: 2"],
    ]


def test_list_does_without_metrics(store: SnapshotStore, redis_url: str) -> None:
    store.publish({}, {"metrics": None}, 1)
    assert "  0 B │      - │      - │    - │ -" in text_of(list_snapshots, redis_url, store.pipeline)


def test_show_tells_what_a_version_stands_for_and_its_arrays(store: SnapshotStore, redis_url: str) -> None:
    store.publish({"w[x]": np.zeros((500, 2))}, {"offsets": {"events": {"0": 7}}, "names": ["a", "b"]}, 3)
    told = text_of(show_snapshot, redis_url, store.pipeline)
    for part in ("version   1, after none", "events 0: 7", "[a, b]", "w[x]", "float64", "(500, 2)", "7.8 KB"):
        assert part in told
    assert '"version": 1' in text_of(show_snapshot, redis_url, store.pipeline, version=1, as_json=True)
    with pytest.raises(SnapshotError, match=r"no version 2"):
        show_snapshot(redis_url, store.pipeline, version=2)


@pytest.mark.parametrize("show", [list_snapshots, show_snapshot])
def test_wrong_name_is_answered_with_the_right_ones(store: SnapshotStore, redis_url: str, show: object) -> None:
    store.publish({}, {}, 1)
    with pytest.raises(SnapshotError, match=rf"no snapshot under .*holds .*{store.pipeline} \(slot 0\)"):
        text_of(show, redis_url, store.pipeline, 1)


def test_ages_and_sizes_are_told_in_their_unit() -> None:
    assert [age(seconds) for seconds in (-1, 59, 130, 7200, 200_000)] == ["0 s", "59 s", "2 min", "2 h", "2 d"]
    assert [size(count) for count in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KB",
        "5.0 MB",
        "3072.0 GB",
    ]
