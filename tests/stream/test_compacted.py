"""A worker on topics that the broker has compacted: records are missing in between, and nothing else."""

import json
import signal
import time

import numpy as np
import pytest

from headrace.connectors import embedded
from headrace.stream.snapshot import pack
from headrace.stream.standing import Standing

SEGMENT_MS = 500
COMPACTED = dict(cleanup_policy="compact", segment_ms=SEGMENT_MS, min_cleanable_dirty_ratio=0.001)


@pytest.fixture(scope="module")
def broker():
    """Cleans at once, not every 15 seconds."""
    with embedded.kafka(properties={"log.cleaner.backoff.ms": "100"}) as server:
        yield server.address


def offsets(shop, topic):
    return [record.offset for record in shop.read(topic)[0]]


def test_records_missing_in_between_are_passed_over_and_a_replay_gives_the_same_model(
    open_shop, visits_and_sales, broker
):
    shop = open_shop("compacted", partitions=1, on=broker, changes="snapshots=Snapshots('1h')", **COMPACTED)
    rows = visits_and_sales(5, 3_000)
    last = {}
    for i, (role, row) in enumerate(rows):
        topic = shop.visits if role == "events" else shop.sales
        # of a third, and of a stretch longer than a batch, only what came last is left
        key = b"again" if i % 3 == 0 or 1_000 < i < 3_000 else row["id"].encode()
        shop.producer.send(topic, json.dumps(row).encode(), key=key, partition=0)
        last[topic, key] = row["id"]
    shop.producer.flush()
    time.sleep(2 * SEGMENT_MS / 1000)  # what follows begins a segment, and the one before can be cleaned
    end = rows[-1][1]["time"]
    shop.send(shop.visits, json.dumps({"id": "end", "time": end, "site": "a"}).encode(), key=b"end")
    shop.send(shop.sales, json.dumps({"id": "end", "time": end, "sold": True}).encode(), key=b"end")
    left = {topic: 1 + sum(of == topic for of, _ in last) for topic in (shop.visits, shop.sales)}
    until = time.monotonic() + 60
    while any(len(offsets(shop, topic)) > n for topic, n in left.items()):
        assert time.monotonic() < until, "the broker does not clean"
        time.sleep(0.2)
    assert max(np.diff(offsets(shop, shop.visits))) > 500

    worker = shop.start()
    worker.until(events=left[shop.visits], labels=left[shop.sales])
    shop.until_committed()
    worker.end(signal.SIGKILL)
    engine, predictions = shop.by_hand()
    assert shop.sources() == shop.events()
    assert {p["source"]: p["prediction"] for p in shop.predictions()[0]} == predictions
    worker = shop.start()
    worker.until(events=left[shop.visits], running=1)
    assert worker.end() == 0, worker.printed
    snapshot = shop.snapshot()
    for name, array in pack(Standing(engine))[0].items():
        np.testing.assert_array_equal(snapshot.arrays[name], array, name)
    assert shop.sources() == shop.events(), "nothing was predicted again"
