"""Models that raise or turn to NaN on some record, in real workers: what comes out is right, and the stream goes on."""

import json
import math
import signal

import pytest

from headrace.stream.encode import JournalRecord

RAISES = """
from headrace.models import Chain

predict, learn = Chain.predict_then_observe, Chain.learn


def predict_or_raise(self, x, out, **wanted):
    predict(self, x, out, **wanted)
    if (x.numeric[:, 0] == 666).any():
        raise ValueError("666 is no price")


def learn_or_raise(self, x, truth, **told):
    learn(self, x, truth, **told)
    if (x.numeric[:, 0] == 667).any():
        raise ZeroDivisionError("667")


Chain.predict_then_observe, Chain.learn = predict_or_raise, learn_or_raise
"""

TURNS_TO_NAN = """
from headrace.models import Chain

learn = Chain.learn


def learn_and_break(self, x, truth, **told):
    learn(self, x, truth, **told)
    if (x.numeric[:, 0] == 666).any():
        self.learner._predict[-2][:] = math.nan  # the base rate


Chain.learn = learn_and_break
"""


def labelled(rows):
    """The ids of visits that have a sale, in the order of the visits."""
    sold = {row["id"] for role, row in rows if role == "labels"}
    return [row["id"] for role, row in rows if role == "events" and row["id"] in sold]


def priced(rows, prices):
    """The rows, with prices by id."""
    return [
        (role, {**row, "price": prices[row["id"]]} if "price" in row and row["id"] in prices else row)
        for role, row in rows
    ]


def journal(shop):
    return [JournalRecord.decode(record.value) for record in shop.read(shop.pipeline.journal_topic)[0]]


def test_records_on_which_the_model_raises_become_dead_letters_and_nothing_else_does(open_shop, visits_and_sales):
    shop = open_shop("raises", changes="latency='20ms', max_cycle_rows=200, snapshots=Snapshots('300ms')")
    with shop.file.open("a") as file:
        file.write(RAISES)
    rows = visits_and_sales(21, 1_500)
    ids = labelled(rows)
    events, labels = [ids[300], ids[301], ids[900]], [ids[600]]
    rows = priced(rows, dict.fromkeys(events, 666.0) | dict.fromkeys(labels, 667.0))
    shop.produce(rows)
    sales = sum(role == "labels" for role, _ in rows)
    worker = shop.start()
    figures = worker.until(events=1_497, bad_events=3, bad_labels=1, labels=sales - 1)
    shop.until_committed()
    assert worker.end(signal.SIGKILL) == -9

    letters = [record for of in shop.read(shop.pipeline.predictions.dead_letters).values() for record in of]
    told = {json.loads(record.value)["id"]: dict(record.headers)["headrace-reason"].decode() for record in letters}
    assert told == dict.fromkeys(events, "the model raised ValueError: 666 is no price") | dict.fromkeys(
        labels, "the model raised ZeroDivisionError: 667"
    )
    assert len(letters) == 4
    assert {p["key"] for of in shop.predictions().values() for p in of} == {
        row["id"] for role, row in rows if role == "events" and row["id"] not in events
    }
    sources = shop.sources()
    assert len(sources) == len(set(sources)) == 1_497
    assert figures["joined"] + figures["early"] + figures["orphans"] == sales - 1

    again = shop.start()  # the journal is processed again, without them
    again.until(events=1_497, bad_events=3, bad_labels=1, labels=sales - 1)
    assert again.end() == 0
    assert "Starting over" not in again.printed
    assert shop.sources() == sources


def test_model_that_turns_to_nan_goes_back_to_its_snapshot_where_that_was_chosen(open_shop, visits_and_sales):
    changes = "latency='20ms', max_cycle_rows=100, snapshots=Snapshots('200ms', on_nan='rollback')"
    shop = open_shop("rolls back", partitions=1, changes=changes)
    with shop.file.open("a") as file:
        file.write(TURNS_TO_NAN)
    rows = visits_and_sales(22, 4_000)
    ids = labelled(rows)
    rows = priced(rows, {ids[1_000]: 666.0})
    sales = sum(role == "labels" for role, _ in rows)
    worker = shop.start()
    shop.produce(rows[:1_000])
    worker.until(events=sum(role == "events" for role, _ in rows[:1_000]), snapshot_version=1)
    shop.produce(rows[1_000:])
    figures = worker.until(events=4_000, labels=sales, snapshot_version=3)
    assert worker.end() == 0

    assert shop.sources() == shop.events()
    assert all(math.isfinite(p["prediction"]) for of in shop.predictions().values() for p in of)
    assert figures["joined"] == sales
    assert figures["examples"] + figures["unlearned"] == sales
    assert 0 < figures["unlearned"] < sales / 2
    (rollback,) = [record.rollback for record in journal(shop) if record.rollback]
    assert rollback["muted"]["labels"]["0"] > 0
    assert "Going back to the model of snapshot" in worker.printed
    assert worker.printed.count("Starting over") == 1


@pytest.mark.parametrize("changes", ["", "snapshots=Snapshots('200ms')"])
def test_model_that_turns_to_nan_stops_the_worker_and_the_next_start_too(open_shop, visits_and_sales, changes):
    shop = open_shop("stops", partitions=1, changes=changes)
    with shop.file.open("a") as file:
        file.write(TURNS_TO_NAN)
    rows = visits_and_sales(23, 1_000)
    rows = priced(rows, {labelled(rows)[500]: 666.0})
    shop.produce(rows)
    worker = shop.start()
    assert worker.ends() == 1
    assert "not finite" in worker.printed
    assert "Traceback" not in worker.printed
    again = shop.start()
    assert again.ends() == 1
    assert "stopped for a reason that is still there" in again.printed
    predictions = [p for of in shop.predictions().values() for p in of]
    assert all(math.isfinite(p["prediction"]) for p in predictions)
    assert len(predictions) < 1_000
