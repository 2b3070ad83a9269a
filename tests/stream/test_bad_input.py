"""A worker meets what a new user sends it: each bad record is a dead letter that says why, and the rest goes on."""

import asyncio
import json
import re
import signal
import time
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from headrace.errors import InputError
from headrace.stream.preflight import prepare_topics

T0 = 1_700_000_000
YEAR = 365 * 86_400
CODECS = ("gzip", "lz4", "snappy", "zstd")
TWO_MB = 2_000_000


def visit(key="v", time=T0, **fields):
    return {"id": key, "time": time, "site": "a", "price": 1.0} | fields


def raw(**fields):
    return json.dumps(visit(**fields)).encode()


BAD_VISITS = {  # name: value, reason, path
    "not JSON": (b"hello", "not valid JSON", ""),
    "cut off": (raw()[:-9], "not valid JSON: Input data was truncated", ""),
    "not UTF-8": (raw().replace(b'"a"', b'"\xff\xfe"'), "not valid JSON", ""),
    "half a surrogate": (raw().replace(b'"a"', rb'"\ud800"'), "not valid JSON", ""),
    "a number": (b"12", "Expected `object`, got `int`", ""),
    "a list": (b"[" + raw() + b"]", "Expected `object`, got `array`", ""),
    "two objects": (raw() + b"\n" + raw(), "not valid JSON", ""),
    "deep": (b'{"id": "v", "more": ' + b"[" * 100_000, "nested too deep", ""),
    "text for a number": (raw(price="12.50"), "Expected `float | null`, got `str`", "$.price"),
    "a number for text": (raw(site=7), "Expected `str`, got `int`", "$.site"),
    "a field too few": (b'{"id": "v", "time": 1}', "Object missing required field `site`", ""),
    "null key": (raw(key=None), "Expected `str`, got `null`", "$.id"),
    "NaN": (raw(price=float("nan")), "not valid JSON", ""),
    "infinity": (raw(price=float("inf")), "not valid JSON", ""),
    "number out of range": (raw().replace(b"1.0", b"1e999"), "Number out of range", "$.price"),
    "empty": (b"", "the record is empty", ""),
    "tombstone": (None, "the record has no value (a tombstone)", ""),
    "a year ahead": (raw(time=2 * T0), "h ahead of the record's timestamp", "$.time"),
    "milliseconds": (raw(time=T0 * 1e6), "is not in the years 1 to 9999; check `unit`", "$.time"),
    "a key of 2 MB": (raw(key="k" * TWO_MB), "the JSON of the key has 2,000,002 bytes", "$.id"),
    "2 MB of nothing": (b"x" * TWO_MB, "not valid JSON", ""),
}
GOOD_VISITS = {  # name: value
    "many lines": json.dumps(visit("lines"), indent=4).encode(),
    "key twice": b'{"id": "not this one", "time": 1, "time": %d, "site": "a", "id": "the last counts"}' % T0,
    "2 MB": raw(key="large", comment="x" * TWO_MB),
    "unknown fields": raw(key="unknown", more={"deep": [1, {}]}),
    "before all": raw(key="back", time=T0 - YEAR),
    "integer time": b'{"id": "integer", "time": %d, "site": "a"}' % T0,
    "not ASCII": raw(key="schön \u2603 \U0001f600"),
    "quotes": raw(key='say "hi"\\'),
}
BAD_SALES = {
    "null label": ({"id": "g1", "time": T0 + 60, "sold": None}, "no label: `sold` is null or NaN", ""),
    "text label": ({"id": "g1", "time": T0 + 60, "sold": "yes"}, "Expected `bool | null`, got `str`", "$.sold"),
    "no label": ({"id": "g1", "time": T0 + 60}, "Object missing required field `sold`", ""),
}


@dataclass
class Odd:
    """What came of the odd records among good ones: where each lies, the dead letters, the predictions."""

    shop: object
    at: dict  # name -> (partition, offset) of the odd record
    dead: dict  # (topic, partition, offset) -> the dead letter
    predictions: dict  # source -> prediction
    metrics: dict
    good: int


@pytest.fixture(scope="module")
def odd(open_shop):
    shop = open_shop("odd", max_message_bytes=4_000_000)
    at, good = {}, 0

    async def compressed(codec):
        producer = AIOKafkaProducer(bootstrap_servers=shop.kafka, compression_type=codec, linger_ms=50)
        await producer.start()
        for i in range(50):
            await producer.send(shop.visits, raw(key=f"{codec}-{i}", time=T0 + 10 + i), partition=i % 2)
        await producer.stop()

    def some_good(n):
        nonlocal good
        for _ in range(n):
            good += 1
            shop.producer.send(shop.visits, raw(key=f"g{good}", time=T0 + good / 100), partition=good % 2)
        shop.producer.flush()

    some_good(100)
    for codec in CODECS:
        asyncio.run(compressed(codec))
    for name, (value, *_) in BAD_VISITS.items():
        headers = [("trace", b"\x00\xff"), ("trace", b"")]
        at[name] = (1, shop.send(shop.visits, value, partition=1, key=name.encode(), headers=headers))
        some_good(3)
    for name, value in GOOD_VISITS.items():
        at[name] = (1, shop.send(shop.visits, value, partition=1))
        some_good(3)
    at["large record key"] = (0, shop.send(shop.visits, raw(), key=b"k" * TWO_MB))
    for name, (row, *_) in BAD_SALES.items():
        at[name] = (0, shop.send(shop.sales, json.dumps(row).encode()))

    def sale(key, partition, seconds=60, sold=True):
        shop.send(shop.sales, json.dumps({"id": key, "time": T0 + seconds, "sold": sold}).encode(), partition)

    sale("g1", 1)
    sale("g1", 1, sold=False)  # again
    sale("g3", 0)  # its event waits in partition 1
    sale("nobody", 1)
    sale("future", 1)  # its event comes later
    some_good(3)
    worker = shop.start()
    rows = good + 50 * len(CODECS) + len(GOOD_VISITS)
    worker.until(events=rows, labels=5, lag_records=0)
    shop.send(shop.visits, raw(key="future", time=T0 + 61), partition=1)
    figures = worker.until(events=rows + 1, joined=2)
    assert worker.end() == 0
    assert "Traceback" not in worker.printed
    dead = {}
    for records in shop.read(shop.pipeline.predictions.dead_letters).values():
        for record in records:
            told = dict(record.headers)
            place = tuple(told[f"headrace-{name}"].decode() for name in ("topic", "partition", "offset"))
            assert place not in dead
            dead[place] = record
    predictions = {p["source"]: p for rows in shop.predictions().values() for p in rows}
    return Odd(shop, at, dead, predictions, figures, rows + 1)


def letter_of(odd, name, topic):
    partition, offset = odd.at[name]
    record = odd.dead[topic, str(partition), str(offset)]
    assert record.partition == partition
    return record, {name: value.decode() for name, value in record.headers if name.startswith("headrace-")}


@pytest.mark.parametrize("name", BAD_VISITS)
def test_bad_event_is_a_dead_letter_as_it_came_with_the_reason(odd, name):
    value, reason, path = BAD_VISITS[name]
    record, told = letter_of(odd, name, odd.shop.visits)
    assert reason in told["headrace-reason"]
    assert told["headrace-path"] == path
    assert abs(int(told["headrace-time"]) - record.timestamp) < 120_000
    assert record.key == name.encode()
    if value is None or len(value) < TWO_MB:
        assert record.value == value
        assert [pair for pair in record.headers if pair[0] == "trace"] == [("trace", b"\x00\xff"), ("trace", b"")]
        assert "headrace-truncated" not in told


@pytest.mark.parametrize("name", ["a key of 2 MB", "2 MB of nothing"])
def test_dead_letter_above_the_producers_limit_is_cut_and_says_so(odd, name):
    value = BAD_VISITS[name][0]
    record, told = letter_of(odd, name, odd.shop.visits)
    assert 900_000 < len(record.value) < 1_000_000
    assert value.startswith(record.value)
    assert told["headrace-truncated"] == "true"
    assert int(told["headrace-original_size"]) >= len(value)


def test_record_key_too_large_for_a_prediction_makes_a_dead_letter(odd):
    record, told = letter_of(odd, "large record key", odd.shop.visits)
    assert "record key" in told["headrace-reason"]
    assert len(record.key) < TWO_MB
    assert record.value == raw()


@pytest.mark.parametrize("name", GOOD_VISITS)
def test_odd_but_valid_event_is_predicted(odd, name):
    partition, offset = odd.at[name]
    prediction = odd.predictions[f"{odd.shop.visits}-{partition}-{offset}"]
    assert prediction["key"] == json.loads(GOOD_VISITS[name])["id"]
    assert prediction["time"] == json.loads(GOOD_VISITS[name])["time"]


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_events_are_predicted(odd, codec):
    keys = [p["key"] for p in odd.predictions.values()]
    assert sorted(k for k in keys if k.startswith(codec)) == sorted(f"{codec}-{i}" for i in range(50))


@pytest.mark.parametrize("name", BAD_SALES)
def test_bad_label_is_a_dead_letter(odd, name):
    row, reason, path = BAD_SALES[name]
    record, told = letter_of(odd, name, odd.shop.sales)
    assert record.value == json.dumps(row).encode()
    assert reason in told["headrace-reason"]
    assert told["headrace-path"] == path


def test_every_good_event_is_predicted_and_every_count_adds_up(odd):
    m = odd.metrics
    assert m["events"] == m["predictions"] == len(odd.predictions) == odd.good
    assert m["dead_letters"] == len(odd.dead) == len(BAD_VISITS) + len(BAD_SALES) + 1
    assert m["bad_events"] == len(BAD_VISITS) + 1
    assert m["bad_labels"] == len(BAD_SALES)


def test_odd_labels_are_counted_apart(odd):
    m = odd.metrics
    assert m["labels"] == 5
    assert m["joined"] == 2, "of g1 and, early, of the visit that came after its label"
    assert m["duplicates"] == 1
    assert m["misplaced"] == 1
    assert m["early"] + m["orphans"] == 1, "of nobody"


# --- what stops a worker


def test_worker_stops_when_most_records_are_bad_and_goes_on_when_told_to(open_shop):
    shop = open_shop("bad", partitions=1, changes="latency='20ms', max_cycle_rows=100")
    good = 0

    def send(first, last, is_good):
        nonlocal good
        for i in range(first, last):
            good += is_good(i)
            shop.producer.send(shop.visits, raw(key=f"v{i}", time=T0 + i) if is_good(i) else b'{"id": "v", "tine": 1}')
        shop.producer.flush()

    def is_one_in_four(i):
        return i % 4 == 0

    send(0, 800, lambda i: True)
    worker = shop.start()
    worker.until(events=800)
    send(800, 1_700, is_one_in_four)
    assert worker.ends() == 1
    assert "of the last 1,000 records were bad" in worker.printed
    assert "max_bad_share is 50%" in worker.printed
    assert "Object missing required field `time`" in worker.printed
    assert "Traceback" not in worker.printed
    stopped_at = shop.committed()["events", 0]
    bad = [i >= 800 and not is_one_in_four(i) for i in range(1_700)]
    assert stopped_at == 1 + next(i for i in range(1_700) if sum(bad[max(0, i - 999) : i + 1]) > 500)
    letters = shop.read(shop.pipeline.predictions.dead_letters)[0]
    assert len(letters) == sum(bad[:stopped_at]), "not one more than it takes to see that a schema has changed"

    worker = shop.start()
    assert worker.ends() == 1
    assert "stopped for a reason that is still there" in worker.printed
    assert "--resume" in worker.printed
    assert "Traceback" not in worker.printed
    assert worker.printed.count("error: ") == 1
    assert shop.committed()["events", 0] == stopped_at

    send(1_700, 2_000, is_one_in_four)
    send(2_000, 2_400, lambda i: True)
    worker = shop.start("--resume")
    worker.until(events=good)
    assert worker.end() == 0
    sources = shop.sources()
    assert len(sources) == len(set(sources)) == good
    letters = shop.read(shop.pipeline.predictions.dead_letters)[0]
    assert len(letters) == 2_400 - good
    assert len({dict(letter.headers)["headrace-offset"] for letter in letters}) == 2_400 - good


def test_worker_stops_when_labels_lie_in_other_partitions_than_their_events(open_shop):
    shop = open_shop("misplaced")
    for i in range(1_000):
        shop.producer.send(shop.visits, raw(key=f"v{i}", time=T0 + i), partition=i % 2)
        row = {"id": f"v{i}", "time": T0 + i + 30, "sold": i % 3 == 0}
        shop.producer.send(shop.sales, json.dumps(row).encode(), partition=(i + (i % 2)) % 2)
    shop.producer.flush()
    worker = shop.start()
    assert worker.ends() == 1
    assert "labels lie in another partition than their event" in worker.printed
    assert "the same partitioner" in worker.printed
    assert "Traceback" not in worker.printed

    worker = shop.start("--resume")
    figures = worker.until(events=1_000, labels=1_000)
    assert worker.end() == 0
    assert figures["joined"] + figures["misplaced"] == 1_000
    assert len(shop.sources()) == 1_000


def test_records_deleted_before_they_were_read_stop_the_worker(open_shop):
    shop = open_shop("gap", partitions=1)
    for i in range(300):
        shop.producer.send(shop.visits, raw(key=f"v{i}", time=T0 + i))
        if i == 99:
            worker = shop.start()
            worker.until(events=100)
            assert worker.end() == 0
    shop.producer.flush()
    admin = KafkaAdminClient(bootstrap_servers=shop.kafka)
    admin.delete_records({TopicPartition(shop.visits, 0): 150})
    admin.close()
    worker = shop.start()
    assert worker.ends() == 1
    assert re.search(rf"gone.*50 of {shop.visits}\[0\] from offset 100.*--lost earliest", worker.printed), (
        worker.printed
    )
    assert "Traceback" not in worker.printed
    assert len(worker.printed.splitlines()) == 3, worker.printed

    worker = shop.start("--lost", "earliest")
    worker.until(events=250)
    assert "50 records are gone" in worker.printed
    assert worker.end() == 0
    assert len(shop.sources()) == 250


def test_records_deleted_while_it_runs_are_passed_over_where_the_user_chose_that(open_shop):
    shop = open_shop("running gap", partitions=1, changes="snapshots=Snapshots('300ms')")
    worker = shop.start("--lost", "earliest")
    for i in range(300):
        shop.producer.send(shop.visits, raw(key=f"v{i}", time=T0 + i))
        if i == 99:
            worker.until(events=100, snapshot_version=1)
            worker.process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)  # the fetch on its way is answered, with nothing
    shop.producer.flush()
    admin = KafkaAdminClient(bootstrap_servers=shop.kafka)
    admin.delete_records({TopicPartition(shop.visits, 0): 150})
    admin.close()
    worker.process.send_signal(signal.SIGCONT)
    worker.until(events=250)
    assert re.search(rf"{shop.visits}\[0\] goes on at offset 150, expected 100.* Starting over", worker.printed)
    assert f"{shop.visits}[0]: 50 records are gone that were not read yet; going on at offset 150" in worker.printed
    assert worker.end() == 0
    assert len(shop.sources()) == 250


# --- topics


def test_missing_topic_is_named_with_the_way_to_make_it(open_shop):
    shop = open_shop("missing", changes="events=Events('nowhere', Visit, key='id', time='time', unit='s')")
    with pytest.raises(InputError, match=r"reads topic nowhere, which broker .* does not have.*--create") as caught:
        prepare_topics(shop.pipeline, shop.kafka)
    worker = shop.start()
    assert worker.ends() == 1
    assert str(caught.value) in worker.printed
    assert len(worker.printed.splitlines()) == 1, worker.printed
    worker = shop.start(command=[str(shop.scripts / "faust"), "-A", "shop", "worker"])
    assert worker.ends() == 1
    assert str(caught.value) in " ".join(worker.printed.split())


def test_topics_with_other_numbers_of_partitions_are_refused(open_shop):
    shop = open_shop("uneven")
    shop.create({f"{shop.name}.three": 3})
    changes = f"labels=Labels('{shop.name}.three', Sale, key='id', time='time', unit='s', value='sold', within='1h')"
    other = open_shop("uneven", changes=changes + f", events=Events('{shop.visits}', Visit, key='id')")
    with pytest.raises(InputError, match=r"the same number of partitions.*visits has 2, .*three has 3"):
        prepare_topics(other.pipeline, other.kafka)


def test_output_topic_with_fewer_partitions_is_refused(open_shop):
    shop = open_shop("narrow")
    shop.create({shop.scores: 1})
    with pytest.raises(InputError, match=r"scores has 1 partitions, .*visits has 2"):
        prepare_topics(shop.pipeline, shop.kafka)


def test_journal_with_more_partitions_is_refused(open_shop):
    shop = open_shop("journals")
    shop.create({shop.pipeline.journal_topic: 2})
    with pytest.raises(InputError, match="exactly one"):
        prepare_topics(shop.pipeline, shop.kafka)
