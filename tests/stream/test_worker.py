"""Workers as processes, on a real Kafka and a real Redis: what goes in comes out once, whatever happens to them."""

import json
import os
import re
import signal
import time
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pytest

from headrace.connectors import embedded
from headrace.connectors.store import SnapshotStore
from headrace.stream.counters import COUNTERS
from headrace.stream.encode import JournalRecord
from headrace.stream.snapshot import pack
from headrace.stream.stages import STAGES
from headrace.stream.standing import Standing

FIRST, SECOND = 1_500, 500


@dataclass
class Story:
    """A worker on three partitions, told to stop, and started again when more had come."""

    shop: object
    rows: list
    metrics: dict
    first: object  # the snapshot after the first stop
    committed: dict  # the offsets then
    metrics_before: dict  # after the restart, before anything new
    ready: tuple  # status and text of /readyz
    printed: str


@pytest.fixture(scope="module", params=[(), ("--plain",)], ids=["fast", "plain"])
def story(open_shop, visits_and_sales, request):
    shop = open_shop("story", partitions=3, changes="snapshots=Snapshots('1s', keep=3)")
    rows = visits_and_sales(1, FIRST)
    shop.produce(rows)
    worker = shop.start(*request.param)
    labels = sum(role == "labels" for role, _ in rows)
    worker.until(events=FIRST, labels=labels, snapshot_version=1)
    ready = worker.page("/readyz")
    assert worker.end() == 0, worker.printed
    first, committed, printed = shop.snapshot(), shop.committed(), worker.printed

    worker = shop.start(*request.param)
    before = worker.until(events=FIRST, running=1)
    more = visits_and_sales(2, SECOND, first=FIRST)
    shop.produce(more)
    rows += more
    labels = sum(role == "labels" for role, _ in rows)
    metrics = worker.until(events=FIRST + SECOND, labels=labels)
    assert worker.end() == 0, worker.printed
    return Story(shop, rows, metrics, first, committed, before, ready, printed + worker.printed)


def assert_is_state_of(snapshot, engine):
    arrays, _ = pack(Standing(engine))
    assert arrays.keys() == snapshot.arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[name], array, name)


def test_each_event_gives_one_prediction_in_its_partition_under_its_record_key(story):
    assert story.shop.sources() == story.shop.events()
    for partition, records in story.shop.read(story.shop.scores).items():
        for record in records:
            prediction = json.loads(record.value)
            assert record.key == prediction["key"].encode()
            assert crc32(record.key) % 3 == partition
            assert prediction["source"].startswith(f"{story.shop.visits}-{partition}-")


def test_prediction_says_what_it_was_made_for_and_by_which_model(story):
    visits = {row["id"]: row for role, row in story.rows if role == "events"}
    predictions = [p for rows in story.shop.predictions().values() for p in rows]
    for prediction in predictions:
        assert list(prediction) == ["key", "prediction", "model", "version", "age_seconds", "time", "source"]
        assert 0 < prediction["prediction"] < 1
        assert prediction["model"] == story.shop.name
        assert prediction["time"] == pytest.approx(visits[prediction["key"]]["time"], abs=1e-6)
    later = [p for p in predictions if int(p["key"][1:]) >= FIRST]
    assert {p["version"] for p in later} >= {story.first.version}
    assert all(p["version"] >= story.first.version for p in later)
    assert predictions[0]["version"] == 0
    assert any(p["age_seconds"] is not None and 0 <= p["age_seconds"] < 60 for p in predictions)


def test_predictions_and_state_are_those_of_the_engine_over_the_journals_pieces(story):
    engine, expected = story.shop.by_hand()
    came = {p["source"]: p["prediction"] for rows in story.shop.predictions().values() for p in rows}
    assert came == expected
    assert_is_state_of(story.shop.snapshot(), engine)


def test_counters_add_up(story):
    m = story.metrics
    labels = sum(role == "labels" for role, _ in story.rows)
    assert m["events"] == m["predictions"] == FIRST + SECOND
    assert (
        m["labels"] == labels == m["joined"] + m["orphans"] + m["late"] + m["duplicates"] + m["misplaced"] + m["early"]
    )
    assert m["joined"] + m["expired"] + m["pending"] == m["events"]
    assert m["joined"] == m["examples"] == labels
    assert m["dead_letters"] == 0
    assert m["log_loss"] < m["log_loss_constant"]


def test_metrics_say_where_the_time_went(story):
    m = story.metrics
    spent = {stage: m[f'stage_seconds_total{{stage="{stage}"}}'] for stage in STAGES}
    worked = {"wait", "unpack", "decode", "align", "features", "model", "labels", "check", "encode"}
    assert {stage for stage, seconds in spent.items() if seconds > 0} - {"snapshot"} == worked
    threads = {thread: m[f'cpu_seconds_total{{thread="{thread}"}}'] for thread in ("fetch", "compute", "send", "other")}
    assert threads["compute"] > 0 and threads["send"] > 0


def test_last_snapshot_stands_at_the_committed_offsets_which_are_the_end(story):
    snapshot = story.shop.snapshot()
    offsets = {(role, int(p)): offset for role, of in snapshot.meta["offsets"].items() for p, offset in of.items()}
    ends = {
        (role, p): records[-1].offset + 1
        for role, topic in (("events", story.shop.visits), ("labels", story.shop.sales))
        for p, records in story.shop.read(topic).items()
    }
    assert offsets == story.shop.committed() == ends
    first = {(role, int(p)): offset for role, of in story.first.meta["offsets"].items() for p, offset in of.items()}
    assert first == story.committed


def test_restart_goes_on_where_the_worker_stopped(story):
    assert story.metrics_before["events"] == FIRST
    assert story.metrics_before["joined"] == story.first.meta["metrics"]["joined"]
    assert story.shop.snapshot().version > story.first.version
    assert f"snapshot {story.first.version} loaded: 1,500 events so far" in story.printed


def test_worker_that_works_says_that_it_is_ready(story):
    assert story.ready == (200, "running")


def test_worker_prints_lines_that_a_stranger_understands_and_no_others(story):
    known = [
        rf"pipeline {story.shop.name}, slot 0: broker [\d.:]+, Redis [\d.:/]+",
        r"compiled the kernels in [\d.]+ s; from now on they are in the cache",
        r"snapshot \d+ loaded: [\d,]+ events so far",
        rf"headrace\.{story.shop.name}-0 owns partitions 0, 1, 2",
        r"[\d,]+ events, [\d,]+/s, lag [\d,]+, loss [\d.]+ \(constant [\d.]+\)",
        r"told to stop: finishing cycle [\d,]+",
        r"snapshot \d+ holds all that was learned",
        r"done: [\d,]+ events so far",
    ]
    for line in story.printed.splitlines():
        assert re.fullmatch(rf"\d\d:\d\d:\d\d ({'|'.join(known)})", line), line
    assert story.printed.count("done: ") == 2


@pytest.mark.parametrize(("number", "every"), [("SIGKILL", "300ms"), ("SIGKILL", "1h"), ("SIGTERM", "1h")])
def test_signal_in_a_backlog_loses_and_repeats_nothing(open_shop, visits_and_sales, number, every):
    """Killed with snapshots on the way, killed without one (then the journal is replayed from its beginning), or told
    to stop (then nothing is replayed, for there is a last snapshot)."""
    changes = f"snapshots=Snapshots('{every}'), latency='20ms', max_cycle_rows=200"
    shop = open_shop(f"{number}-{every}", changes=changes)
    rows = visits_and_sales(3, 12_000)
    for _, row in [row for row in rows if row[0] == "events"][::40]:
        del row["site"]  # a bad record
    shop.produce(rows)
    worker = shop.start()
    worker.says("owns partitions")
    while shop.end(shop.scores) < (3_000 if every == "300ms" else 1_000):
        worker.alive()
    assert worker.end(signal.Signals[number]) == (0 if number == "SIGTERM" else -9)
    assert len(shop.sources()) < 11_700, "too late to be in the middle of a backlog"
    snapshot = shop.snapshot()
    assert (snapshot is None) == (every == "1h" and number == "SIGKILL")
    last = JournalRecord.decode(shop.read(shop.pipeline.journal_topic)[0][-1].value)
    replays = snapshot is None or last.cycle >= snapshot.meta["cycle"]  # else killed right after a snapshot
    assert not (replays and number == "SIGTERM")

    worker = shop.start()
    worker.until(events=11_700, bad_events=300, labels=sum(role == "labels" for role, _ in rows))
    assert worker.end() == 0
    assert ("records from the journal" in worker.printed) == replays
    assert shop.sources() == shop.events()
    letters = [dict(r.headers) for of in shop.read(shop.pipeline.predictions.dead_letters).values() for r in of]
    assert len({(told["headrace-partition"], told["headrace-offset"]) for told in letters}) == len(letters) == 300
    engine, _ = shop.by_hand()
    assert_is_state_of(shop.snapshot(), engine)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_snapshot_is_the_state_at_its_place_in_the_journal_also_when_a_commit_hangs(
    open_shop, visits_and_sales, delivery
):
    with embedded.kafka() as broker:
        changes = f"delivery='{delivery}', snapshots=Snapshots('100ms', keep=1000), latency='20ms', max_cycle_rows=100"
        shop = open_shop(f"hangs {delivery}", changes=changes, on=broker.address)
        rows = visits_and_sales(7, 20_000)
        shop.produce(rows)
        worker = shop.start()
        worker.says("owns partitions")
        for _ in range(6):
            os.kill(broker.pid, signal.SIGSTOP)
            time.sleep(0.5)  # cycles go on until the one after the one that is being committed
            os.kill(broker.pid, signal.SIGCONT)
            time.sleep(0.2)
        worker.until(events=20_000, labels=sum(role == "labels" for role, _ in rows))
        assert worker.end() == 0
        store = SnapshotStore(shop.redis_url, shop.name)
        kept = [store.load(info.version) for info in store.kept()]
        assert len(kept) > 5
        for snapshot in kept:
            events = int(snapshot.arrays["shared/counters"][COUNTERS.index("events")])
            assert events == sum(snapshot.meta["offsets"]["events"].values())
        engine, _ = shop.by_hand()
        assert_is_state_of(kept[-1], engine)
        shop.close()


def test_at_least_once_predicts_everything_also_after_sigkill(open_shop, visits_and_sales):
    shop = open_shop("at least", changes="delivery='at_least_once', latency='20ms', max_cycle_rows=200")
    rows = visits_and_sales(4, 6_000)
    shop.produce(rows)
    worker = shop.start()
    while shop.end(shop.scores) < 1_000:
        worker.alive()
    worker.end(signal.SIGKILL)
    worker = shop.start()
    figures = worker.until(events=6_000, labels=sum(role == "labels" for role, _ in rows))
    assert worker.end() == 0
    sources = shop.sources()
    assert sorted(set(sources)) == shop.events()
    assert len(sources) >= figures["events"] == 6_000


def test_at_least_once_commits_soon_what_is_out_and_all_of_it_at_the_end(open_shop, visits_and_sales):
    shop = open_shop("soon", changes="delivery='at_least_once'")
    rows = visits_and_sales(11, 3_000)
    shop.produce(rows[:2_000])
    worker = shop.start()
    worker.until(events=sum(role == "events" for role, _ in rows[:2_000]))
    while sum(shop.committed().values()) < 2_000:
        worker.alive()
    for row in rows[2_000:2_200]:
        shop.produce([row])
    assert worker.end() == 0
    worker = shop.start()
    shop.produce(rows[2_200:])
    worker.until(events=sum(role == "events" for role, _ in rows))
    assert worker.end() == 0
    assert shop.sources() == shop.events(), "nothing was predicted twice"


def test_workers_that_join_and_leave_share_the_work_and_none_is_done_twice(open_shop, visits_and_sales):
    """
    slot 0  -------------------|        |-------
    slot 1           -------------------------
    """
    shop = open_shop("two", partitions=4, changes="latency='20ms', max_cycle_rows=200, snapshots=Snapshots('500ms')")
    rows = visits_and_sales(5, 12_000)
    parts = [rows[len(rows) * i // 6 : len(rows) * (i + 1) // 6] for i in range(6)]

    shop.produce(parts[0])
    zero = shop.start(slot=0)
    zero.says("owns partitions 0, 1, 2, 3")
    shop.produce(parts[1])
    one = shop.start(slot=1)
    while "0 owns partitions 0, 1\n" not in zero.printed or "owns partitions 2, 3" not in one.printed:
        shop.produce(parts[2][:50])
        del parts[2][:50]
        assert zero.alive() and one.alive()
    shop.produce(parts[2] + parts[3])
    one.until(events=500)
    assert zero.end() == 0
    one.says("owns partitions 0, 1, 2, 3")
    shop.produce(parts[4])
    again = shop.start(slot=0)
    again.says("owns partitions 0, 1\n")
    shop.produce(parts[5])
    labels = sum(role == "labels" for role, _ in rows)

    def figures():
        both = again.metrics(), one.metrics()
        return {name: sum(m.get(name, 0) for m in both) for name in ("events", "labels", "joined")}

    eventually = again.eventually
    eventually(lambda: figures()["events"] >= 12_000 and figures()["labels"] >= labels, figures)
    total = figures()
    assert (again.end(), one.end()) == (0, 0)
    for worker in (zero, one, again):
        assert not re.search(r"(aiokafka|faust|mode|asyncio): ", worker.printed), worker.printed
    assert shop.sources() == shop.events()
    assert (total["events"], total["labels"]) == (12_000, labels)
    for of in shop.pieces().values():  # no hole and no overlap, whoever did it
        assert [start for start, _ in of] == [0, *(next for _, next in of[:-1])]


def spoiled(open_shop, name, consequence):
    """A shop with 50 visits and a model that does this once it sees them."""
    shop = open_shop(name, partitions=1)
    with shop.file.open("a") as file:
        file.write(
            "from headrace.models import Chain\n\n"
            "def spoil(self, x, out, **wanted):\n"
            "    out.fill(0.5)\n"
            "    if (x.numeric[:, 0] == 1e3).any():\n"
            f"        {consequence}\n\n"
            "Chain.predict_then_observe = spoil\n"
        )
    shop.produce([("events", {"id": f"v{i}", "time": 1_700_000_000, "site": "a", "price": 1e3}) for i in range(50)])
    return shop


def test_model_that_is_not_finite_any_more_stops_the_worker_before_anything_of_it_is_published(open_shop):
    shop = spoiled(open_shop, "broken", "out.fill(math.nan)")
    worker = shop.start()
    assert worker.ends() == 1
    assert "not finite" in worker.printed
    assert "Traceback" not in worker.printed
    worker = shop.start()
    assert worker.ends() == 1
    assert "stopped for a reason that is still there" in worker.printed
    assert shop.snapshot() is None
    assert shop.read(shop.scores)[0] == []


def test_fault_of_ours_ends_the_worker_with_its_stack_and_nothing_is_published(open_shop):
    shop = spoiled(open_shop, "fault", "pass")
    with shop.file.open("a") as file:
        file.write("from headrace.stream.align import Aligner\n\n")
        file.write("def fail(self, batch):\n    raise RuntimeError('a fault')\n\nAligner.add = fail\n")
    worker = shop.start()
    assert worker.ends() == 1
    assert "Traceback" in worker.printed
    assert "RuntimeError: a fault" in worker.printed
    assert shop.snapshot() is None
    assert shop.read(shop.scores)[0] == []


def test_faust_starts_a_worker_in_which_an_agent_of_the_users_lives(open_shop, visits_and_sales):
    shop = open_shop("faust")
    shop.create({f"{shop.name}.notes": 1})
    (shop.folder / "mine.py").write_text(
        "from shop import pipeline\n"
        "app = pipeline.app\n\n"
        f"@app.agent(app.topic('{shop.name}.notes'))\n"
        "async def read(notes):\n"
        "    async for note in notes:\n"
        "        print(f'a note: {note.decode()}')\n"
    )
    rows = visits_and_sales(6, 300)
    shop.produce(rows)
    shop.send(f"{shop.name}.notes", b"hello")
    worker = shop.start(command=[str(shop.scripts / "faust"), "-A", "mine", "worker", "-l", "warn"])
    worker.until(events=300, labels=sum(role == "labels" for role, _ in rows))
    worker.says("a note: hello")
    assert worker.end() == 0
    assert shop.sources() == shop.events()
    assert shop.snapshot().meta["metrics"]["events"] == 300
