"""The reader against a real Redis: what it predicts is what the worker would, and it always has a version to serve."""

import json
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from itertools import count as numbers
from typing import Literal

import msgspec
import numpy as np
import polars as pl
import pytest
import redis
from rich.console import Console

from headrace import (
    DeclarationError,
    Events,
    InputError,
    Labels,
    Pipeline,
    Predictions,
    SnapshotError,
    SnapshotReader,
    Unreachable,
    category,
    count,
    cross,
    ewm,
    last,
    max,
    mean,
    numeric,
    seconds_since,
    std,
)
from headrace.connectors import embedded
from headrace.connectors.leases import Lease, acquire
from headrace.connectors.store import SnapshotStore
from headrace.models import FTRL, SGD, LinearRegression, LogisticRegression, StandardScaler
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Slice
from headrace.stream.snapshot import NAN_ALLOWED, pack
from headrace.stream.snapshots_cli import list_snapshots
from headrace.stream.standing import Position, Standing

T0 = 1_700_000_000  # seconds


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float
    shop: str | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool
    amount: float = 0.0


FEATURES = (
    numeric("price"), category("site"), cross("site", "shop"),
    count(by="site", over="1h", capacity=5), mean("price", by="shop", half_life="1h", capacity=9),
    std("price", by="site", over="2h", capacity=5), max("price", by=["site", "shop"], over="30m", capacity=7),
    seconds_since(by="shop", capacity=3), ewm("price", by="site", half_life="10m", capacity=5),
    mean("label", by="site", over="6h", capacity=9), last("amount", by="site", capacity=5),
)  # fmt: skip
MODEL = StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=12)


def clicks(name: str, features=FEATURES, model=MODEL) -> Pipeline:
    """Labels come later, on a topic of their own."""
    return Pipeline(
        name=name,
        events=Events("clicks", Click, key="id", time="time", unit="s"),
        labels=Labels("sales", Sale, key="id", time="time", unit="s", value="sold", within="2d"),
        features=features,
        model=model,
        predictions=Predictions("scores"),
    )


class Worker:
    """An engine that publishes its state, as a worker of one partition would."""

    def __init__(self, pipeline: Pipeline, url: str, **store) -> None:
        self.pipeline, self.engine = pipeline, Engine(pipeline)
        self.engine.own(0)
        self.store = SnapshotStore(url, pipeline.name, **store)
        self.tokens, self.offsets = numbers(), {}

    def feed(self, role: str, rows: list[dict], timestamp: int = (T0 + 10**6) * 1000) -> np.ndarray:
        start, values = self.offsets.get((role, 0), 0), [msgspec.json.encode(row) for row in rows]
        records = [Record(start + i, timestamp, None, value) for i, value in enumerate(values)]
        batch = Decoder(self.pipeline, role).decode(Slice(role, 0, start, start + len(rows), records))
        done = self.engine.process(batch, batch.start, batch.next)
        self.offsets[role, 0] = batch.next
        assert not done.dead
        return done.predicted.out[:, 0] if done.predicted else np.empty(0, np.float32)

    def publish(self) -> int:
        arrays, meta = pack(Standing(self.engine, Position(self.offsets, 0, 0)))
        return self.store.publish(arrays, meta, next(self.tokens), NAN_ALLOWED).version


def click(i: int, minutes: float = 0.0, site: str = "a", price: float = 1.0, **more) -> dict:
    return {"id": str(i), "time": T0 + 60 * minutes, "site": site, "price": price, **more}


def some_clicks(seed: int, first: int, events: int, minutes: float) -> list[dict]:
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(minutes, minutes + 60, events))
    return [
        click(first + i, m, "abcdef"[rng.integers(6)], float(rng.normal(5, 3)), shop=[None, "x", "y"][rng.integers(3)])
        for i, m in enumerate(at.tolist())
    ]


def teach(worker: Worker, seed: int, events: int = 60, minutes: float = 0.0) -> None:
    """An hour of events, and labels for most of them after it."""
    rng = np.random.default_rng(seed)
    rows = some_clicks(seed, 1000 * seed, events, minutes)
    worker.feed("events", rows)
    sales = [
        {"id": row["id"], "time": T0 + 60 * (minutes + 61), "sold": bool(rng.random() < 0.5), "amount": row["price"]}
        for row in rows
        if rng.random() < 0.9
    ]
    worker.feed("labels", sales)


@pytest.fixture
def worker(redis_url: str, unique: str) -> Worker:
    """One that has learned, and has published version 1."""
    worker = Worker(clicks(unique), redis_url)
    teach(worker, seed=1)
    assert worker.publish() == 1
    return worker


@pytest.fixture
def reader(worker: Worker, redis_url: str):
    with SnapshotReader(worker.pipeline, redis_url, poll="100ms") as reader:
        yield reader


def wait_for(met: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- what it predicts


def test_prediction_equals_the_workers_next_one_to_the_bit(worker, reader):
    for version in (1, 2, 3):
        wait_for(lambda: reader.version == version)  # noqa: B023
        minutes = float(worker.engine.arrays["clock"][0] / 60e6 - T0 / 60)
        rows = [click(f"{version}-{site}-{shop}", minutes, site, 4.5, shop=shop) for site in "abg" for shop in "xz"]
        rows.append(click(f"{version}-none", minutes, "c", -1e6))
        ahead = reader.predict(rows)
        assert ahead.dtype == np.float32
        assert ahead.shape == (len(rows),)
        assert len(set(ahead.tolist())) > 5
        for i, row in enumerate(rows):
            # each as if it were next: the worker goes on from the snapshot with this one event
            other = Engine(worker.pipeline)
            other.load(worker.engine.state())
            twin = Worker(worker.pipeline, "redis://unused")
            twin.engine = other
            assert twin.feed("events", [row])[0] == ahead[i]
        teach(worker, seed=version + 1, minutes=70.0 * version)
        worker.publish()


def test_windows_and_half_lives_of_aggregates_run_on_after_the_snapshot(redis_url, unique):
    model = StandardScaler(half_life=None) | LogisticRegression(FTRL(half_life=None), bits=10)
    worker = Worker(clicks(unique, model=model), redis_url)
    teach(worker, seed=1)
    worker.publish()
    with SnapshotReader(worker.pipeline, redis_url) as reader:
        rows = [
            click(9000 + i, 60 + later, "a", 3.0, shop="x") for i, later in enumerate((0, 10, 29, 50, 100, 400, 2000))
        ]
        ahead = reader.predict(rows)
    assert len(set(ahead.tolist())) > 4  # panes leave, weights halve
    state = worker.engine.state()
    state.shared = {name: array.copy() for name, array in state.shared.items()}
    for row, expected in zip(rows, ahead.tolist(), strict=True):
        worker.engine.load(state)
        assert worker.feed("events", [row])[0] == expected


def test_label_in_the_event_and_its_aggregates_need_no_label_to_predict(redis_url, unique):
    class Row(msgspec.Struct):
        id: int
        who: str
        x: float
        y: bool

    pipeline = Pipeline(
        name=unique,
        events=Events("rows", Row, key="id"),
        labels=Labels(value="y"),
        features=[
            numeric("x"),
            category("who"),
            mean("label", by="who", half_life="1d"),
            mean("y", by="who", over="7d"),
        ],
        model=LogisticRegression(SGD(0.5, half_life=None), bits=8),
        predictions=Predictions("out"),
    )
    worker = Worker(pipeline, redis_url)
    rng = np.random.default_rng(3)
    now = time.time_ns() // 1_000_000
    rows = [{"id": i, "who": "ab"[i % 2], "x": float(rng.normal()), "y": bool(i % 3)} for i in range(90)]
    worker.feed("events", rows, timestamp=now)
    worker.publish()
    with SnapshotReader(pipeline, redis_url) as reader:
        full = {"id": 100, "who": "a", "x": 0.5, "y": True}
        ahead = reader.predict([full, {"who": "a", "x": 0.5}, full | {"id": None, "y": None}])
        assert len(set(ahead.tolist())) == 1
        # without time= an event's time is now: the features are those the worker would compute within the hour
        expected = worker.feed("events", [full], timestamp=time.time_ns() // 1_000_000)[0]
        assert ahead[0] == pytest.approx(expected, abs=1e-4)


def test_values_of_a_regression_and_datetimes_as_event_time(redis_url, unique):
    class Ride(msgspec.Struct, rename="camel", frozen=True):
        ride_id: int
        at: datetime
        zone: Literal["north", "south"]
        miles: float
        fare: float = 0.0

        def __post_init__(self):
            msgspec.structs.force_setattr(self, "miles", min(self.miles, 100.0))

    pipeline = Pipeline(
        name=unique,
        events=Events("rides", Ride, key="ride_id", time="at"),
        labels=Labels(value="fare"),
        features=[numeric("miles"), count(by="zone", over="1h")],
        model=StandardScaler(half_life=None) | LinearRegression(SGD(0.05, half_life=None)),
        predictions=Predictions("fares"),
    )
    worker = Worker(pipeline, redis_url)
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    record = {"rideId": 1, "at": moment, "zone": "north", "miles": 3.0, "fare": 12.0}
    worker.feed("events", [record, record | {"miles": 7.0, "fare": 21.0}], timestamp=2**41)
    worker.publish()
    with SnapshotReader(pipeline, redis_url) as reader:
        rows = [{"at": moment, "zone": "south", "miles": 5.0}, {"at": moment, "zone": "north", "miles": 900.0}]
        ahead = reader.predict(rows)
        assert (
            reader.predict([Ride(1, moment, "south", 5.0), Ride(2, moment, "north", 900.0)]).tolist() == ahead.tolist()
        )
        frame = pl.DataFrame(rows).with_columns(pl.lit("ignored").alias("more"))
        assert reader.predict(frame).tolist() == ahead.tolist()
        assert reader.predict([rows[1] | {"miles": 100.0}])[0] == ahead[1]  # as a record is decoded
    expected = worker.feed("events", [record | rows[0] | {"rideId": 3}], timestamp=2**41)
    assert expected[0] == ahead[0]


def test_rows_come_as_dicts_structs_or_a_frame_and_keep_their_order(reader):
    rows = some_clicks(5, 0, 30, 61.0)
    expected = [reader.predict([row])[0] for row in rows]
    frame = pl.DataFrame(rows)
    for given in (
        rows, tuple(rows), iter(rows), [Click(**row) for row in rows], frame, frame.select(reversed(frame.columns)),
        frame.drop("id"), [{k: v for k, v in row.items() if k != "id"} for row in rows],
        [{k: np.array([v])[0] if k in ("time", "price") else v for k, v in row.items()} for row in rows],
    ):  # fmt: skip
        np.testing.assert_array_equal(reader.predict(given), expected)
    assert reader.predict([]).shape == reader.predict(frame[:0]).shape == (0,)
    assert reader.predict([]).dtype == np.float32
    many = reader.predict(rows * 600)  # more than are decoded at one go
    np.testing.assert_array_equal(many, np.tile(np.array(expected, np.float32), 600))


def test_predicting_changes_nothing(reader):
    rows = some_clicks(5, 0, 30, 61.0)
    first = reader.predict(rows)
    given = [Click(**row) for row in rows]
    np.testing.assert_array_equal(reader.predict(given), first)
    assert given == [Click(**row) for row in rows]
    np.testing.assert_array_equal(reader.predict(rows), first)


WRONG = {
    "type": (click(1, price="dear"), r"row 1, field `price`: expected `float`, got `str`"),
    "missing": (
        {k: v for k, v in click(1).items() if k != "site"},
        r"row 1, field `site`: missing, and Click requires it",
    ),
    "no time": ({k: v for k, v in click(1).items() if k != "time"}, r"row 1, field `time`: missing"),
    "null": (click(1, price=None), r"row 1, field `price`: expected `float`, got `null`"),
    "unit": (
        click(1) | {"time": T0 * 1e6},
        r"row 1, field `time`: time 1700000000000000.0 is not in the years 1 to 9999",
    ),
    "key": (click(1) | {"id": 7}, r"row 1, field `id`: expected `str \| null`, got `int`"),
    "surrogate": (click(1, site="\ud800"), r"row 1, field `site`: expected text, got '\\ud800', which is no Unicode"),
    "list": ([1, 2], r"row 1: expected a dict or Click, got `list`"),
    "numpy": (click(1, price=np.str_("x")), r"row 1, field `price`: expected `float`, got `str`"),
    "struct": (Click("1", T0, "a", "dear"), r"row 1, field `price`: expected `float`, got `str`"),
    "another struct": (Sale("1", T0, True), r"row 1: expected a dict or Click, got `Sale`"),
}


@pytest.mark.parametrize("row", WRONG)
def test_row_that_cannot_be_used_is_named_with_its_field(reader, row):
    wrong, message = WRONG[row]
    with pytest.raises(InputError, match=message):
        reader.predict([click(0), wrong, click(2)])
    with pytest.raises(InputError, match=message.replace("row 1", "row 9000")):
        reader.predict([click(0)] * 9000 + [wrong])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (click(1), r"got `dict`; for one row predict\(\[row\]\)"),
        (Click("1", T0, "a", 1.0), r"got `Click`; for one row"),
        (pl.LazyFrame([click(1)]), "a Polars DataFrame, got `LazyFrame`"),
        ("rows", "got `str`"),
        (None, "got `NoneType`"),
        (pl.DataFrame([click(1)]).drop("site"), "row 0, field `site`: missing"),
    ],
    ids=["dict", "struct", "lazy", "text", "none", "frame"],
)
def test_rows_that_are_none_are_refused(reader, rows, message):
    with pytest.raises(InputError, match=message):
        reader.predict(rows)


def test_row_on_which_an_expression_raises_is_named(redis_url, unique):
    features = [numeric(pl.col("site").cast(pl.Int64), name="n")]
    worker = Worker(clicks(unique, features), redis_url)
    worker.publish()
    with SnapshotReader(worker.pipeline, redis_url) as reader:
        with pytest.raises(InputError, match="row 1: an expression of the pipeline raised"):
            reader.predict([click(0, site="1"), click(1, site="one")])
        assert reader.predict([click(0, site="1")]).shape == (1,)


# --- which version it serves


def test_newer_version_is_served_without_a_call(worker, reader):
    before = reader.predict([click(1, 61)])
    assert (reader.version, reader.problem) == (1, None)
    assert 0 <= reader.age_seconds < 60
    teach(worker, seed=2, minutes=70)
    worker.publish()
    wait_for(lambda: reader.version == 2)
    assert reader.predict([click(1, 61)]) != before
    assert f"{worker.store.name!r}, version 2, " in repr(reader)


def test_threads_predict_while_versions_change_and_each_gets_one_whole_version(worker, redis_url):
    rows = some_clicks(5, 0, 40, 61.0)
    with SnapshotReader(worker.pipeline, redis_url, poll="50ms") as reader:
        known, seen, done, errors = [reader.predict(rows).tobytes()], set(), threading.Event(), []

        def predict() -> None:
            try:
                while not done.is_set():
                    seen.add(reader.predict(rows).tobytes())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=predict) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in range(2, 8):
            teach(worker, seed=version, events=20, minutes=70.0 * version)
            worker.publish()
            wait_for(lambda: reader.version == version or errors)  # noqa: B023
            known.append(reader.predict(rows).tobytes())
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(set(known)) == 7
    assert seen <= set(known)


def chunks(worker: Worker, version: int, kind: str = "shared/") -> list[str]:
    """The keys of the chunks that only this version has, of such arrays."""
    infos = {info.version: info for info in worker.store.kept()}
    held = {
        v: {digest for a in info.arrays if a.name.startswith(kind) for digest, _ in a.chunks}
        for v, info in infos.items()
    }
    own = held.pop(version).difference(*held.values())
    return [f"{worker.store.name}:chunk:{digest}" for digest in sorted(own)]


@pytest.mark.parametrize("harm", ["is missing", "was altered", "manifest", "is not signed"])
def test_version_that_is_torn_or_tampered_with_is_never_served_and_the_old_one_stays(redis_url, unique, harm, caplog):
    key = b"secret"
    worker = Worker(clicks(unique), redis_url, hmac_key=key)
    teach(worker, seed=1)
    worker.publish()
    client, pointer = redis.Redis.from_url(redis_url), f"{worker.store.name}:recovery"
    first = client.hgetall(pointer)
    teach(worker, seed=2, minutes=70)
    if harm == "is not signed":
        worker.store = SnapshotStore(redis_url, unique)
    worker.publish()
    second = client.hgetall(pointer)
    if harm == "is missing":
        client.delete(chunks(worker, 2)[0])
    elif harm == "was altered":
        client.setrange(chunks(worker, 2)[0], 0, b"\x01\x02\x03\x04")
    elif harm == "manifest":
        client.hset(f"{worker.store.name}:manifest:2", "body", "{}")
    client.hset(pointer, mapping=first)
    with SnapshotReader(worker.pipeline, redis_url, poll="50ms", hmac_key=key) as reader, caplog.at_level(logging.INFO):
        before = reader.predict([click(1, 61)])
        assert reader.problem is None
        client.hset(pointer, mapping=second)
        wait_for(lambda: reader.problem)
        assert harm in reader.problem
        time.sleep(0.3)  # it looks several times
        assert reader.version == 1
        assert reader.predict([click(1, 61)]) == before
        told = f"{worker.store.name}: version 1 goes on being served: {reader.problem}"
        assert [r.getMessage() for r in caplog.records if r.name == "headrace.stream.reader"] == [told]
        worker.store = SnapshotStore(redis_url, unique, hmac_key=key)
        teach(worker, seed=3, minutes=140)
        worker.publish()
        wait_for(lambda: reader.version == 3)
        assert reader.problem is None
        assert "version 3 is whole and served" in caplog.text


def test_reader_that_starts_on_a_torn_version_serves_the_one_before_and_says_so(worker, redis_url):
    expected = worker.feed("events", [click("x", 61)])
    teach(worker, seed=2, minutes=70)
    worker.publish()
    redis.Redis.from_url(redis_url).delete(chunks(worker, 2)[0])
    with SnapshotReader(worker.pipeline, redis_url, poll="50ms") as reader:
        assert reader.version == 1
        assert "version 2" in reader.problem
        assert "is missing" in reader.problem
        assert reader.predict([click("x", 61)]) == expected
        worker.publish()  # sends again what Redis lost
        wait_for(lambda: reader.version == 3)
        assert reader.problem is None


def test_what_waits_for_labels_is_not_fetched(worker, redis_url):
    pointer, client = f"{worker.store.name}:recovery", redis.Redis.from_url(redis_url)
    first = client.hgetall(pointer)
    teach(worker, seed=2, minutes=70)
    worker.publish()
    second = client.hgetall(pointer)
    client.delete(*chunks(worker, 2, "partition/"))
    client.hset(pointer, mapping=first)
    with SnapshotReader(worker.pipeline, redis_url, poll="50ms") as reader:
        assert reader.version == 1
        client.hset(pointer, mapping=second)
        wait_for(lambda: reader.version == 2 or reader.problem)
        assert reader.problem is None


def test_snapshot_of_another_feature_list_is_refused_and_one_that_serves_goes_on(worker, reader, redis_url):
    changed = clicks(worker.pipeline.name, (*FEATURES[:2], category("shop"), *FEATURES[3:]))
    with pytest.raises(
        SnapshotError, match="another feature list: `shop` is missing in it; it has `site_x_shop` besides"
    ):
        SnapshotReader(changed, redis_url)
    other = Worker(changed, redis_url)
    other.tokens = numbers(100)
    other.publish()
    wait_for(lambda: reader.problem)
    assert "it has `shop` besides" in reader.problem
    assert reader.version == 1
    assert reader.predict([click(1, 61)]).shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": (numeric(pl.col("price") * 2, name="price"), *FEATURES[1:])}, "`price` is declared otherwise"),
        ({"features": (*FEATURES[:3], count(by="site", over="2h", capacity=5, name="count_by_site_1h"), *FEATURES[4:])},
         "`count_by_site_1h` is declared otherwise"),
        ({"features": (FEATURES[0], FEATURES[2], FEATURES[1], *FEATURES[3:])}, "its order is price, site, site_x_shop"),
        ({"model": StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.2, half_life="2h"), bits=12)},
         "was made with model .*0.1.* this pipeline declares .*0.2"),
        ({"model": LogisticRegression(SGD(0.1), bits=12)}, "was made with model"),
    ],
    ids=["expression", "window", "order", "setting", "model"],
)  # fmt: skip
def test_features_or_model_declared_otherwise_are_refused_though_the_arrays_would_fit(
    worker, redis_url, change, message
):
    with pytest.raises(SnapshotError, match=message):
        SnapshotReader(clicks(worker.pipeline.name, **change), redis_url)


def test_expressions_written_by_another_polars_are_not_compared(worker, redis_url):
    arrays, meta = pack(Standing(worker.engine))
    meta["libraries"]["polars"] = "0.0"
    meta["declaration"] = json.loads(json.dumps(meta["declaration"]))
    meta["declaration"]["features"][0]["value"] = [{"text": "?", "digest": "?"}]
    worker.store.publish(arrays, meta, next(worker.tokens), NAN_ALLOWED)
    with SnapshotReader(worker.pipeline, redis_url) as reader:
        assert reader.version == 2


# --- which slot it serves


@pytest.fixture
def hold(redis_url, unique):
    """hold(slot) -> its lease, as a worker of the pipeline `unique` would have it."""
    leases: list[Lease] = []

    def hold(slot: int) -> Lease:
        leases.append(acquire(redis_url, unique, slot, say=lambda _: None))
        return leases[-1]

    yield hold
    for lease in leases:
        lease.release()


@pytest.fixture
def workers(redis_url, unique) -> list[Worker]:
    """Those of slots 0 and 1, which have learned different things; both have published version 1, the second 2 too."""
    workers = [Worker(clicks(unique), redis_url, slot=slot) for slot in (0, 1)]
    for worker in workers:
        teach(worker, seed=1 + worker.store.slot)
        worker.publish()
    workers[1].tokens = numbers(50)
    assert workers[1].publish() == 2
    return workers


def test_reader_follows_to_the_next_slot_when_the_worker_of_the_lowest_ends_and_back(
    workers, redis_url, unique, hold, caplog
):
    caplog.set_level(logging.INFO, "headrace.stream.reader")
    zero, _ = hold(0), hold(1)
    row = click("x", 61)
    expected = [worker.feed("events", [row]) for worker in workers]
    assert expected[0] != expected[1]
    with SnapshotReader(workers[0].pipeline, redis_url, poll="50ms") as reader:
        assert (reader.slot, reader.version, reader.predict([row])) == (0, 1, expected[0])
        zero.release()
        wait_for(lambda: reader.slot == 1)
        assert (reader.version, reader.predict([row]), reader.problem) == (2, expected[1], None)
        assert f"{unique}}}:1', version 2, " in repr(reader)
        workers[0].publish()
        time.sleep(0.3)  # it looks several times
        assert reader.slot == 1
        workers[1].publish()
        wait_for(lambda: reader.version == 3)
        hold(0)
        wait_for(lambda: reader.slot == 0)
        assert (reader.version, reader.predict([row])) == (2, workers[0].feed("events", [row | {"id": "y"}]))
        time.sleep(0.3)
    assert [record.getMessage() for record in caplog.records if record.name == "headrace.stream.reader"] == [
        f"headrace:{{{unique}}}:1: version 2 is served from now on, no longer slot 0",
        f"headrace:{{{unique}}}:0: version 2 is served from now on, no longer slot 1",
    ]


def test_slot_that_is_served_stays_when_its_worker_was_the_last(workers, redis_url, hold):
    one = hold(1)
    with SnapshotReader(workers[0].pipeline, redis_url, poll="50ms") as reader:
        assert reader.slot == 1
        one.release()
        workers[1].publish()
        wait_for(lambda: reader.version == 3)
        assert reader.slot == 1
    with SnapshotReader(workers[0].pipeline, redis_url) as reader:
        assert reader.slot == 0  # nothing was served before


def test_worker_without_a_snapshot_is_passed_over_until_it_publishes(redis_url, unique, hold):
    hold(0), hold(1)
    first, second = (Worker(clicks(unique), redis_url, slot=slot) for slot in (0, 1))
    second.publish()
    with SnapshotReader(first.pipeline, redis_url, poll="50ms") as reader:
        assert reader.slot == 1
        first.publish()
        wait_for(lambda: reader.slot == 0)


def test_torn_snapshot_of_the_slot_to_go_to_leaves_the_old_one_served(workers, redis_url, unique, hold, caplog):
    hold(1)
    workers[0].publish()
    teach(workers[0], seed=3, minutes=70)
    workers[0].publish()
    redis.Redis.from_url(redis_url).delete(chunks(workers[0], 3)[0])
    with SnapshotReader(workers[0].pipeline, redis_url, poll="50ms") as reader:
        zero = hold(0)
        wait_for(lambda: reader.problem)
        assert "is missing" in reader.problem
        assert (reader.slot, reader.version) == (1, 2)
        assert f"{{{unique}}}:1: version 2 goes on being served: chunk" in caplog.text
        zero.release()
        wait_for(lambda: reader.problem is None)
        assert (reader.slot, reader.version) == (1, 2)
        hold(0)
        wait_for(lambda: reader.problem)
        workers[0].publish()  # sends again what Redis lost
        wait_for(lambda: reader.slot == 0)
        assert (reader.version, reader.problem) == (4, None)


def test_redis_that_was_emptied_makes_no_reader_leave_a_slot_whose_worker_runs(workers, redis_url, hold):
    hold(0), hold(1)
    with SnapshotReader(workers[0].pipeline, redis_url, poll="50ms") as reader:
        client = redis.Redis.from_url(redis_url)
        client.delete(*client.keys(f"{workers[0].store.name}:*"))
        workers[1].publish()
        time.sleep(0.3)
        assert (reader.slot, reader.version, reader.problem) == (0, 1, None)


def test_slot_that_is_given_is_served_whoever_runs(workers, redis_url, unique, hold):
    hold(0)
    with SnapshotReader(workers[0].pipeline, redis_url, 1, poll="50ms") as reader:
        assert reader.slot == 1
        workers[1].publish()
        wait_for(lambda: reader.version == 3)
        assert reader.slot == 1
    with pytest.raises(SnapshotError, match=rf'no snapshot under "headrace:{{{unique}}}:7"'):
        SnapshotReader(workers[0].pipeline, redis_url, 7)


def test_list_of_snapshots_tells_the_slots_and_who_holds_them(workers, redis_url, unique, hold):
    def told(pipeline: str, **options) -> str:
        output = StringIO()
        list_snapshots(redis_url, pipeline, console=Console(file=output, width=300), **options)
        return output.getvalue().splitlines()[-1]

    assert told(unique) == "slots: 0, held by nobody; 1, held by nobody"
    lease = hold(1)
    assert told(unique) == f"slots: 0, held by nobody; 1, held by {lease.holder}"
    assert told(unique, as_json=True) == "]"
    alone = Worker(clicks(unique + "0"), redis_url)
    alone.publish()
    assert told(unique + "0").startswith("* the current one")


# --- no snapshot, no Redis


def test_no_snapshot_is_an_error_with_the_next_step(redis_url, unique):
    with pytest.raises(
        SnapshotError, match=rf'no snapshot under "headrace:{{{unique}}}:0".*check --redis and the pipeline'
    ):
        SnapshotReader(clicks(unique), redis_url)
    with pytest.raises(SnapshotError, match="no snapshot under"):
        SnapshotReader(clicks(unique), redis_url, poll="50ms", wait=0.2)
    with pytest.raises(DeclarationError, match="expected a Pipeline, got 'clicks'"):
        SnapshotReader("clicks", redis_url)
    with pytest.raises(DeclarationError, match="poll: expected a duration"):
        SnapshotReader(clicks(unique), redis_url, poll=1)


def test_reader_may_wait_for_the_first_snapshot(redis_url, unique):
    worker = Worker(clicks(unique), redis_url)
    timer = threading.Timer(0.3, worker.publish)
    timer.start()
    with SnapshotReader(worker.pipeline, redis_url, poll="50ms", wait=30) as reader:
        assert reader.version == 1
    timer.join()


def test_redis_that_does_not_answer_at_the_start_is_named():
    with pytest.raises(Unreachable, match=r"Redis at 127\.0\.0\.1:1/0 does not answer"):
        SnapshotReader(clicks("clicks"), "redis://127.0.0.1:1/0")


@pytest.mark.parametrize("empty", [False, True])
def test_old_version_is_served_while_redis_is_away_and_a_newer_one_after(unique, caplog, empty):
    with embedded.redis() as own:
        worker = Worker(clicks(unique), own.url)
        teach(worker, seed=1)
        worker.publish()
        with SnapshotReader(worker.pipeline, own.url, poll="50ms") as reader:
            expected = reader.predict([click(1, 61)])
            own.kill()
            wait_for(lambda: reader.problem)
            assert "does not answer" in reader.problem
            time.sleep(0.3)
            assert reader.predict([click(1, 61)]) == expected
            assert caplog.text.count("goes on being served") == 1
            own.start()
            if empty:
                redis.Redis.from_url(own.url).flushall()
            wait_for(lambda: reader.problem is None)
            assert reader.version == 1
            assert reader.predict([click(1, 61)]) == expected
            teach(worker, seed=2, minutes=70)
            version = worker.publish()
            wait_for(lambda: reader.version == version)
            assert version == 2


def test_closed_reader_goes_on_predicting_and_takes_no_newer_version(worker, redis_url):
    reader = SnapshotReader(worker.pipeline, redis_url, poll="50ms")
    reader.close()
    reader.close()
    assert not reader._thread.is_alive()
    worker.publish()
    assert reader.predict([click(1, 61)]).shape == (1,)
    assert reader.version == 1
