"""The engine, driven by records as Kafka would hold them; no server is needed."""

import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl
import pytest
from engine_run import assert_same
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headrace import (
    Events,
    Labels,
    Pipeline,
    Predictions,
    SnapshotError,
    StreamStopped,
    category,
    count,
    cross,
    last,
    mean,
    numeric,
)
from headrace.models import FTRL, SGD, Array, Learner, LinearRegression, LogisticRegression, StandardScaler
from headrace.models.base import Configured, NotFinite, register
from headrace.stream.align import Aligner
from headrace.stream.cycle import Cycle, run_cycle
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import END_OF_STREAM, Record, Slice

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example runs an engine; shrinking one takes minutes

T0 = 1_700_000_000  # seconds
HOUR = 3600


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float
    shop: str | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool | None
    amount: float = 0.0


def delayed(**changes):
    """A pipeline whose labels come later, on a topic of their own."""
    labels = dict(key="id", time="time", unit="s", value="sold", within="1h")
    pipeline = dict(
        name="clicks",
        events=Events("clicks", Click, key="id", time="time", unit="s"),
        features=[
            numeric("price"), category("site"), cross("site", "shop"), count(by="site", over="1h", capacity=5),
            mean("price", by="shop", half_life="1h", capacity=9), mean("label", by="site", over="6h", capacity=9),
            last("amount", by="site", capacity=5),
        ],
        model=StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=12),
        predictions=Predictions("scores"),
    )  # fmt: skip
    for name, value in changes.items():
        (pipeline if name in pipeline or name in ("max_bad_share", "pending_limit") else labels)[name] = value
    return Pipeline(labels=Labels("sales", Sale, **labels), **pipeline)


class Run:
    """An engine with partitions of events and labels that records are appended to."""

    def __init__(self, pipeline, partitions=1):
        self.pipeline = pipeline
        self.engine = Engine(pipeline)
        self.decoders = {"events": Decoder(pipeline, "events")}
        if self.engine.delayed:
            self.decoders["labels"] = Decoder(pipeline, "labels")
        for p in range(partitions):
            self.engine.own(p)
        self.ends = {}
        self.out = []

    def slice(self, role, rows, partition=0, timestamp=(T0 + 10**6) * 1000, headers=()):
        start = self.ends.get((role, partition), 0)
        values = [row if isinstance(row, bytes | None) else json.dumps(row).encode() for row in rows]
        records = [Record(start + i, timestamp, None, value, headers) for i, value in enumerate(values)]
        self.ends[role, partition] = start + len(rows)
        return Slice(role, partition, start, start + len(rows), records)

    def feed(self, role, rows, partition=0, cuts=(), **more):
        """Process rows in one slice, cut into pieces at these row numbers; returns the predictions."""
        batch = self.decoders[role].decode(self.slice(role, rows, partition, **more))
        edges = [batch.start, *(batch.start + c for c in sorted(cuts)), batch.next]
        out = []
        for a, b in zip(edges, edges[1:]):
            done = self.engine.process(batch, a, b)
            self.dead = done.dead
            if done.predicted is not None:
                out.append(done.predicted.out[:, 0])
        return np.concatenate(out) if out else np.empty(0, np.float32)

    def counts(self, *names):
        counters = self.engine.counters()
        return tuple(counters[name] for name in names)


def click(i, minutes=0.0, site="a", price=1.0, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "site": site, "price": price, **more}


def sale(i, minutes=0.0, sold=True, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "sold": sold, **more}


def stream(seed, events=300):
    """(role, row) in order of time: events with labels after up to 90 minutes, some of them never, twice or unknown."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(events):
        minute = float(rng.uniform(0, 600))
        site = "abcdef"[rng.integers(6)]
        rows.append((minute, "events", click(i, minute, site, float(rng.normal(5, 3)), shop="xyz"[rng.integers(3)])))
        if rng.random() < 0.9:
            at = minute + float(rng.exponential(25)) - 2  # some come before their event
            rows.append((at, "labels", sale(i, at, bool(rng.random() < (0.2 if site < "d" else 0.8)), amount=minute)))
            if rng.random() < 0.1:
                rows.append((at + 3, "labels", sale(i, at + 3)))
    rows += [(m, "labels", sale(f"unknown {m}", m)) for m in range(0, 600, 60)]
    return [(role, row) for _, role, row in sorted(rows, key=lambda row: row[0])]


def in_turn(rows):
    """Rows as runs of one role."""
    runs = []
    for role, row in rows:
        if not runs or runs[-1][0] != role:
            runs.append((role, []))
        runs[-1][1].append(row)
    return runs


# --- test, then train


def test_event_is_predicted_before_its_own_label_is_learned():
    class Row(msgspec.Struct):
        x: float
        y: bool
        id: str = ""

    pipeline = Pipeline(
        name="now",
        events=Events("rows", Row, key="id"),
        labels=Labels(value="y"),
        features=[numeric("x")],
        model=LogisticRegression(SGD(0.5), base_rate=False),
        predictions=Predictions("out"),
    )
    run = Run(pipeline)
    out = run.feed("events", [{"x": 1.0, "y": True}] * 3)
    assert out[0] == 0.5
    assert 0.5 < out[1] < out[2]  # row i is predicted by a model that has learned row i - 1
    assert run.counts("events", "labels", "joined", "examples") == (3, 3, 3, 3)


def test_label_in_the_event_moves_aggregates_only_for_the_rows_after():
    class Row(msgspec.Struct):
        who: str
        y: bool | None
        id: str = ""

    pipeline = Pipeline(
        name="now",
        events=Events("rows", Row, key="id"),
        labels=Labels(value="y"),
        features=[mean("label", by="who", half_life="1h")],
        model=LogisticRegression(),
        predictions=Predictions("out"),
    )
    rows = [{"who": "a", "y": True}, {"who": "a", "y": None}, {"who": "a", "y": False}, {"who": "a", "y": True}]
    for cuts in ((), (1, 2, 3)):
        run = Run(pipeline)
        batch = run.decoders["events"].decode(run.slice("events", rows))
        for a, b in zip([0, *cuts], [*cuts, 4]):
            run.engine.process(batch, a, b)
        np.testing.assert_array_equal(batch.numeric[:, 0], np.array([np.nan, 1, 1, 0.5], np.float32))
        assert run.counts("events", "labels") == (4, 3)


def test_delayed_label_is_learned_from_the_features_of_prediction_time():
    model = LinearRegression(SGD(0.1, half_life=None), base_rate=False)
    run = Run(delayed(features=[mean("price", by="site", over="6h")], model=model, value=pl.col("amount")))
    run.feed("events", [click(1, 0, price=2.0), click(2, 1, price=100.0), click(3, 2, price=100.0)])
    #  event 2 read a mean of 2, event 3 one of 51; by now the mean is 67
    run.feed("labels", [sale(2, 3, amount=1.0)])
    #  from zero, on the squared loss: w = lr 2 y x = .1 * 2 * 1 * 2, and the bias .1 * 2 * 1
    assert run.feed("events", [click(4, 4)])[0] == pytest.approx(0.4 * 202 / 3 + 0.2, rel=1e-6)


# --- joins


def test_each_label_is_counted_once_for_what_it_is():
    run = Run(delayed(early="10m"))
    run.feed("events", [click(1, 0), click(2, 0), click(2, 1), click(3, 2)])
    run.feed("labels", [sale(1, 5), sale(1, 6), sale("never", 6)])
    assert run.counts("joined", "duplicates", "repeated", "early", "pending") == (1, 1, 1, 1, 2)
    run.feed("labels", [sale("in time", 50)])
    run.feed("events", [click("in time", 51)])  # its label is here already
    assert run.counts("joined", "early", "orphans") == (2, 0, 1)
    run.feed("events", [click(9, 70)])
    run.feed("labels", [sale("x", 70)])
    assert run.counts("expired", "pending") == (2, 1)  # 2 and 3 have waited for an hour
    run.feed("labels", [sale(3, 71), sale(1, 71)])
    assert run.counts("late", "duplicates") == (1, 2)
    counters = run.engine.counters()
    waited = counters["joined"] + counters["expired"] + counters["pending"] + counters["repeated"]
    assert counters["predictions"] == counters["events"] == waited == 6
    told = ("joined", "orphans", "late", "duplicates", "misplaced", "early")
    assert counters["labels"] == sum(counters[name] for name in told) == 7


def test_label_that_comes_again_before_its_event_is_a_duplicate():
    run = Run(delayed(early="10m"))
    run.feed("labels", [sale(1, 5, amount=1.0), sale(1, 5, amount=2.0)])
    run.feed("labels", [sale(1, 6, amount=3.0)])
    assert run.counts("early", "duplicates") == (1, 2)
    run.feed("events", [click(1, 6)])
    assert run.counts("joined", "early", "duplicates", "labels") == (1, 0, 2, 3)


def test_expiry_waits_for_the_clock_of_the_labels():
    run = Run(delayed(otherwise=False))
    run.feed("events", [click(1, 0), click(2, 600)])
    assert run.counts("expired", "examples") == (0, 0)  # labels may just be late as a whole
    run.feed("labels", [sale("x", 59)])
    assert run.counts("expired") == (0,)
    run.feed("labels", [sale("y", 65)])
    assert run.counts("expired", "examples", "pending") == (1, 1, 1)


@pytest.mark.parametrize(("seconds", "counted"), [(-1, "joined"), (0, "late")])
def test_a_wait_ends_at_the_tick_it_was_declared_for_and_not_at_the_one_before(seconds, counted):
    run, minute = Run(delayed(within="96m", early="96m")), 40 / 60  # ticks are at whole minutes, T0 is at second 20
    run.feed("events", [click(1, minute), click(2, minute + 200)])
    run.feed("labels", [sale("nobody", minute), sale(1, minute + 96 + seconds / 60)])
    counts = dict.fromkeys(("joined", "late", "early"), 0) | {counted: 1, "early": int(seconds < 0)}
    assert run.counts(*counts) == tuple(counts.values())


def test_otherwise_is_learned_as_the_label_when_the_wait_is_over():
    for otherwise, moved in ((False, True), (None, False)):
        run = Run(delayed(otherwise=otherwise))
        before = run.engine.arrays["model/1/" + weights(run)].copy()
        run.feed("events", [click(1, 0), click(2, 100)])
        run.feed("labels", [sale("x", 100)])
        run.engine.end_cycle()
        assert (before != run.engine.arrays["model/1/" + weights(run)]).any() == moved
        assert run.counts("expired", "joined") == (1, 0)


def test_otherwise_counts_in_windows_from_the_end_of_the_wait_on():
    run = Run(delayed(features=[mean("label", by="site", over="6h")], otherwise=False))
    run.feed("events", [click(1, 0), click(2, 70, site="b")])
    run.feed("labels", [sale("x", 70)])
    assert run.counts("expired", "examples") == (1, 1)
    batch = run.decoders["events"].decode(run.slice("events", [click(m, m) for m in (385, 430)]))
    run.engine.process(batch, batch.start, batch.next)
    np.testing.assert_array_equal(batch.numeric[:, 0], np.float32([0, np.nan]))


def weights(run):
    return next(
        name[8:] for name, array in run.engine.arrays.items() if name.startswith("model/1/") and array.size > 4000
    )


def test_end_of_stream_marks_on_both_topics_end_every_wait():
    run = Run(delayed())
    run.feed("events", [click(1, 0), click(2, 0)])
    run.feed("labels", [sale(1, 1), sale("x", 1)])
    mark = ((END_OF_STREAM, b""),)
    run.feed("events", [None], headers=mark)
    assert run.counts("pending", "early") == (1, 1)
    run.feed("labels", [None], headers=mark)
    assert run.counts("pending", "expired", "early", "orphans", "dead_letters") == (0, 1, 0, 1, 0)


def test_label_in_another_partition_than_its_event_is_counted_apart_and_stops_when_frequent():
    run = Run(delayed(), partitions=2)
    run.feed("events", [click(i, 0) for i in range(300)], partition=0)
    run.feed("labels", [sale(i, 1) for i in range(100)], partition=0)
    run.feed("labels", [sale(i, 1) for i in range(100, 200)], partition=1)
    assert run.counts("joined", "misplaced") == (100, 100)
    assert run.engine.stop_reason is None
    run.feed("labels", [sale(i, 1) for i in range(200, 300)], partition=1)
    run.feed("labels", [sale(299, 1)], partition=1)
    assert "partition" in run.engine.stop_reason and "clicks and sales" in run.engine.stop_reason


def test_late_label_is_not_misplaced_though_its_key_waits_in_another_partition():
    run = Run(delayed(), partitions=2)
    run.feed("events", [click(1, 0), click(2, 70)], partition=0)
    run.feed("labels", [sale("x", 70)], partition=0)  # the wait of 1 is over
    run.feed("events", [click(1, 70)], partition=1)
    run.feed("labels", [sale(1, 71)], partition=0)
    assert run.counts("late", "misplaced", "labels") == (1, 0, 2)


# --- cuts and state


@settings(max_examples=10, deadline=None, phases=UNSHRUNK)
@given(seed=st.integers(0, 1000), cut_seed=st.integers(0, 1000), otherwise=st.sampled_from([None, False]))
def test_nothing_depends_on_where_slices_and_pieces_are_cut(seed, cut_seed, otherwise):
    pipeline = delayed(otherwise=otherwise)
    whole, cut = Run(pipeline), Run(pipeline)
    rng = np.random.default_rng(cut_seed)
    expected, got = [], []
    for role, rows in in_turn(stream(seed, events=120)):
        expected.append(whole.feed(role, rows))
        if rng.random() < 0.5:  # cut the slice into pieces
            got.append(cut.feed(role, rows, cuts=set(rng.integers(1, len(rows) + 1, 3).tolist()) - {len(rows)}))
        else:  # fetch it in two
            at = int(rng.integers(0, len(rows) + 1))
            got += [cut.feed(role, part) for part in (rows[:at], rows[at:])]
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(expected))
    assert_same(whole, cut)
    assert whole.engine.counters()["joined"] > 50


@settings(max_examples=8, deadline=None, phases=UNSHRUNK)
@given(
    seed=st.integers(0, 1000), otherwise=st.sampled_from([None, False]), muted=st.integers(0, 30),
    alignment=st.sampled_from([1, 10, 60]),
)  # fmt: skip
def test_pieces_of_several_partitions_predicted_at_one_go_give_what_each_gives_alone(seed, otherwise, muted, alignment):
    pipeline, partitions = delayed(otherwise=otherwise, within="45m"), 3
    together, alone = Run(pipeline, partitions), Run(pipeline, partitions)
    aligner = Aligner(alignment * 60 * 1_000_000)
    for p in range(partitions):
        rows = stream(seed + p, events=80)
        for role in ("events", "labels"):
            aligner.own((role, p))
            of_role = [row for of, row in rows if of == role]
            aligner.add(alone.decoders[role].decode(alone.slice(role, of_role, p)))
    for run in (together, alone):
        run.engine.mute({("events", 1): 10 + muted, ("labels", 2): muted} if muted else {})
    expected, got = [], []
    while (
        following := aligner.next({(role, p) for role in ("events", "labels") for p in range(partitions)})
    ) is not None:
        batch = following.batch
        for run, outs in ((together, got), (alone, expected)):
            mine = replace(batch, numeric=batch.numeric.copy())
            done = run.engine.process(mine, *following[1:], later=run is together)
            if done.predicted is not None:
                outs.append(done.predicted.out)
        if len(got) % 20 == 19:
            together.engine.end_cycle()
            alone.engine.end_cycle()
    together.engine.end_cycle()
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(expected))
    assert_same(together, alone)
    assert together.engine.counters() == alone.engine.counters()
    assert alone.engine.counters()["joined"] > 100


@settings(max_examples=10, deadline=None, phases=UNSHRUNK)
@given(seed=st.integers(0, 1000), at=st.floats(0, 1))
def test_an_engine_that_loads_a_state_goes_on_as_the_one_that_gave_it(seed, at):
    pipeline = delayed(otherwise=False)
    runs = in_turn(stream(seed, events=120))
    stop = int(at * len(runs))
    one, two = Run(pipeline), Run(pipeline)
    for role, rows in runs[:stop]:
        one.feed(role, rows)
    state = one.engine.state()
    two.engine.load(replace(state, shared={name: array.copy() for name, array in state.shared.items()}))
    two.ends = dict(one.ends)
    for role, rows in runs[stop:]:
        np.testing.assert_array_equal(one.feed(role, rows), two.feed(role, rows))
    assert_same(one, two)


@settings(max_examples=5, deadline=None, phases=UNSHRUNK)
@given(seed=st.integers(0, 1000), at=st.floats(0, 1), otherwise=st.sampled_from([None, False]))
def test_partition_that_goes_and_comes_back_is_as_if_it_had_stayed(seed, at, otherwise):
    pipeline = delayed(otherwise=otherwise)
    runs = in_turn(stream(seed, events=120))
    gone = int(at * len(runs))
    one, two = Run(pipeline), Run(pipeline)
    for i, (role, rows) in enumerate(runs):
        if i == gone:
            two.engine.load_partition(0, two.engine.disown(0))
        np.testing.assert_array_equal(one.feed(role, rows), two.feed(role, rows))
    assert_same(one, two)


def test_state_of_a_partition_that_goes_is_bit_for_bit_what_comes_back():
    run = Run(delayed())
    for role, rows in in_turn(stream(3, events=200)):
        run.feed(role, rows)
    before = run.engine.state().partitions[0]
    given = run.engine.disown(0)
    assert run.engine.partitions == {} and run.engine.disown(0) is None
    run.engine.load_partition(0, given)
    after = run.engine.state().partitions[0]
    assert len(before["pending/key"]) > 10 and before.keys() == given.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == given[name].tobytes() == after[name].tobytes()


def test_state_of_before_a_counter_was_added_is_taken_over():
    old, new = Run(delayed()), Run(delayed())
    old.feed("events", [click(1), click(2)])
    state = old.engine.state()
    counters = state.shared["counters"]
    new.engine.arrays["counters"][:] = 7
    new.engine.load(replace(state, shared=state.shared | {"counters": counters[:-1].copy()}))
    assert new.engine.counters() == old.engine.counters()
    with pytest.raises(SnapshotError, match="counters"):
        new.engine.load(replace(state, shared=state.shared | {"counters": np.append(counters, 1)}))


def test_counts_agree_with_a_plain_account_of_the_stream():
    run = Run(delayed(within="30m", early="5m"))
    rows = stream(5, events=800)
    for role, part in in_turn(rows):
        run.feed(role, part)
    run.engine.finish()
    arrivals = {}
    for role, row in rows:
        if role == "labels":
            arrivals.setdefault(row["id"], []).append(row["time"])
    events = {row["id"]: row["time"] for role, row in rows if role == "events"}
    sure = sum(-4 * 60 <= arrivals.get(i, [1e18])[0] - t <= 30 * 60 for i, t in events.items())
    perhaps = sum(any(-10 * 60 <= a - t <= 36 * 60 for a in arrivals.get(i, [])) for i, t in events.items())
    counters = run.engine.counters()
    assert sure <= counters["joined"] <= perhaps
    assert counters["joined"] + counters["expired"] == len(events)
    told = ("joined", "orphans", "late", "duplicates")
    assert counters["labels"] == sum(map(len, arrivals.values())) == sum(counters[name] for name in told)


# --- alignment


@pytest.mark.parametrize("first", ["events", "labels"])
def test_in_a_backlog_of_a_week_topics_advance_together_and_no_label_comes_before_its_time(first):
    minutes = range(7 * 24 * 60)
    rows = {"labels": [sale(m, m + 25) for m in minutes], "events": [click(m, m) for m in minutes]}
    run, aligner = Run(delayed()), Aligner(60 * 1_000_000)
    for role in sorted(rows, key=lambda role: role != first):
        aligner.own((role, 0))
        aligner.add(run.decoders[role].decode(run.slice(role, rows[role])))
    pieces = 0
    while (following := aligner.next(at_end={("events", 0), ("labels", 0)})) is not None:
        run.engine.process(*following)
        pieces += 1
        events, labels = run.engine.clock("events", 0), run.engine.clock("labels", 0)
        if labels > 0 and events < (T0 + minutes[-1] * 60) * 1_000_000:
            assert events - 120_000_000 <= labels <= events + 60_000_000  # the next row of either is a minute away
    assert run.counts("joined", "early", "orphans", "late") == (len(minutes), 0, 0, 0)
    assert pieces > 1000


def test_event_goes_before_a_label_of_the_same_time():
    run, aligner = Run(delayed(within="96m")), Aligner(60 * 1_000_000)
    rows = {"events": [click(0, 0), click(1, 3)], "labels": [sale(0, 1), sale(1, 3)]}
    for role, of in rows.items():
        aligner.own((role, 0))
        aligner.add(run.decoders[role].decode(run.slice(role, of)))
    taken = []
    while (following := aligner.next(at_end={("events", 0), ("labels", 0)})) is not None:
        taken.append((following.batch.role, following.start, following.next))
        run.engine.process(*following)
    assert taken == [("events", 0, 1), ("labels", 0, 1), ("events", 1, 2), ("labels", 1, 2)]
    assert run.counts("joined", "early", "orphans") == (2, 0, 0)


def test_pieces_of_many_partitions_are_as_long_as_the_alignment():
    minutes, partitions = 600, 4
    run, aligner = Run(delayed(), partitions), Aligner(20 * 60 * 1_000_000)
    for p in range(partitions):
        # one row a minute in each partition, those of the next 10 seconds later
        rows = {"events": [click(f"{p}-{m}", m + p / 6) for m in range(minutes)]}
        rows["labels"] = [sale(f"{p}-{m}", m + 5 + p / 6) for m in range(minutes)]
        for role, of in rows.items():
            aligner.own((role, p))
            aligner.add(run.decoders[role].decode(run.slice(role, of, p)))
    at_end = {(role, p) for role in rows for p in range(partitions)}
    pieces = 0
    while (following := aligner.next(at_end)) is not None:
        run.engine.process(*following)
        pieces += 1
    assert run.counts("joined", "early", "orphans", "late") == (minutes * partitions, 0, 0, 0)
    assert pieces <= 1.2 * 2 * partitions * minutes / 20


def test_a_partition_that_is_behind_and_not_read_to_its_end_holds_the_others_back():
    run, aligner = Run(delayed()), Aligner(60 * 1_000_000)
    for role in ("events", "labels"):
        aligner.own((role, 0))
    aligner.add(run.decoders["events"].decode(run.slice("events", [click(m, m) for m in range(10)])))
    assert aligner.next(at_end=set()) is None  # labels may be anywhere yet
    assert aligner.next(at_end={("labels", 0)}).next == 10
    aligner.add(run.decoders["labels"].decode(run.slice("labels", [sale(1, 30)])))
    assert aligner.next(at_end=set()) is None  # labels do not run ahead of events
    assert aligner.next(at_end={("events", 0)}).next == 1


def test_a_partition_that_gave_all_it_had_holds_the_others_back_where_its_clock_stands():
    run, aligner = Run(delayed(), partitions=2), Aligner(60 * 1_000_000)
    for of in (("events", 0), ("events", 1), ("labels", 0)):
        aligner.own(of)
    silent = {("labels", 0)}
    aligner.add(run.decoders["events"].decode(run.slice("events", [click(m, m) for m in (0, 9, 3)])))
    assert aligner.next(at_end={*silent, ("events", 1)}).next == 3
    aligner.add(run.decoders["events"].decode(run.slice("events", [click(m, m) for m in range(20)], 1)))
    assert aligner.next(at_end=silent).next == 11  # minute 10
    assert aligner.next(at_end=silent) is None
    aligner.add(run.decoders["events"].decode(run.slice("events", [click("late", 4), click("on", 13)])))
    assert aligner.next(at_end=silent)[1:] == (3, 4)  # its clock does not go back
    assert aligner.next(at_end=silent)[1:] == (11, 15)  # minute 14


def test_a_partition_that_goes_takes_what_was_fetched_of_it_along_and_holds_nobody_back():
    run, aligner = Run(delayed()), Aligner(60 * 1_000_000)
    for role, minutes in (("events", range(9)), ("labels", range(3))):
        aligner.own((role, 0))
        aligner.add(
            run.decoders[role].decode(run.slice(role, [(click, sale)[role == "labels"](m, m) for m in minutes]))
        )
    assert aligner.next(at_end=set()).next == 2
    aligner.disown(("labels", 0))
    assert aligner.next(at_end=set()).next == 9
    assert aligner.next(at_end=set()) is None
    aligner.own(("labels", 0))
    assert aligner.is_empty(("labels", 0))


def test_of_equal_times_events_go_before_labels_and_partitions_in_their_order():
    run, aligner = Run(delayed(), partitions=2), Aligner(None)
    for role, row in (("labels", sale(1, 5)), ("events", click(1, 5))):
        for number in (1, 0):
            aligner.own((role, number))
            aligner.add(run.decoders[role].decode(run.slice(role, [row], number)))
    taken = [aligner.next(at_end=set()).batch for _ in range(4)]
    assert [(batch.role, batch.partition) for batch in taken] == [
        ("events", 0), ("events", 1), ("labels", 0), ("labels", 1),
    ]  # fmt: skip


def test_rows_of_the_next_fetch_are_looked_at_from_the_first_on():
    run, aligner = Run(delayed()), Aligner(60 * 1_000_000)
    for role in ("events", "labels"):
        aligner.own((role, 0))
    for minutes in ((0, 1, 2), (3, 4, 40)):
        aligner.add(run.decoders["events"].decode(run.slice("events", [click(m, m) for m in minutes])))
    aligner.add(run.decoders["labels"].decode(run.slice("labels", [sale(m, m) for m in (0, 2, 5)])))
    taken = []
    while (following := aligner.next(at_end={("events", 0)})) is not None:
        taken.append((following.batch.role, following.start, following.next))
    assert taken == [
        ("events", 0, 2), ("labels", 0, 1), ("events", 2, 3), ("events", 3, 4), ("labels", 1, 2), ("events", 4, 5),
        ("labels", 2, 3),
    ]  # fmt: skip


# --- what is wrong with records


BAD = {
    b"nonsense": "not valid JSON",
    b"": "empty",
    b"\xff\xfe{}": "not valid JSON",
    b"[" * 100_000: "",
    b'{"id": 5, "time": 1.0, "site": "a", "price": 1}': "Expected `str`, got `int`",
    b'{"id": "1", "time": 1.0, "site": "a"}': "missing required field `price`",
    b'{"id": "1", "time": 1.0, "site": "a", "price": NaN}': "not valid JSON",
    b'{"id": "1", "time": 1e30, "site": "a", "price": 1}': "years 1 to 9999",
    b'{"id": "1", "time": 1900000000, "site": "a", "price": 1}': "ahead of the record's timestamp",
    None: "tombstone",
}


@pytest.mark.parametrize("value", BAD, ids=lambda v: str(v)[:40])
def test_bad_record_is_a_dead_letter_with_its_reason_and_the_rest_goes_on(value):
    run = Run(delayed())
    good = json.dumps(click(1)).encode()
    out = run.feed("events", [good, value, json.dumps(click(2)).encode()])
    assert len(out) == 2
    assert [letter.record.offset for letter in run.dead] == [1]
    assert run.dead[0].record.value == value
    assert BAD[value] in run.dead[0].reason
    assert run.counts("events", "dead_letters", "bad_events") == (2, 1, 1)


def test_pretty_printed_and_unknown_and_duplicate_fields_are_read_as_json_says():
    run = Run(delayed(features=[numeric("price")]))
    row = b'{\n  "id": "1",\r\n\t"time": 1700000000,\n "extra": {"a": [1, {"b": null}]}, "site": "a", "price": 1, "price": 2\n}\n'
    batch = run.decoders["events"].decode(run.slice("events", [row]))
    assert batch.numeric[0, 0] == 2 and list(batch.keys) == [b'"1"']  # of a field given twice, the last counts


def test_label_without_a_value_is_a_dead_letter():
    run = Run(delayed())
    run.feed("events", [click(1)])
    run.feed("labels", [sale(1, 1, sold=None)])
    assert run.dead[0].reason == "no label: `sold` is null or NaN"
    assert run.counts("joined", "pending") == (0, 1)


def test_integer_of_more_than_64_bits_is_a_dead_letter():
    class Row(msgspec.Struct):
        n: int
        y: bool
        id: str = ""

    pipeline = Pipeline(
        name="wide",
        events=Events("rows", Row, key="id"),
        labels=Labels(value="y"),
        features=[numeric("n")],
        model=LogisticRegression(),
        predictions=Predictions("out"),
    )
    run = Run(pipeline)
    rows = [b'{"n": 1, "y": true}', b'{"n": %d, "y": true}' % 2**64, b'{"n": -9223372036854775808, "y": true}']
    assert len(run.feed("events", rows)) == 2
    assert run.dead[0].path == "$.n" and "64 bits" in run.dead[0].reason


def test_record_on_which_an_expression_raises_is_a_dead_letter_and_the_others_go_on():
    run = Run(delayed(features=[numeric(pl.col("site").cast(pl.Int64), name="n")]))
    assert len(run.feed("events", [click(1, site="1"), click(2, site="one"), click(3, site="3")])) == 2
    assert "raised" in run.dead[0].reason and run.dead[0].record.offset == 1


def test_categories_of_the_other_rows_are_right_when_an_expression_raises_on_one():
    length = pl.col("site").str.len_chars()
    features = [
        numeric(pl.col("site").cast(pl.Int64), name="n"), category(length, name="length"), category(length / 2, name="half"),
    ]  # fmt: skip
    run = Run(delayed(features=features))
    good = [click(1, site="1"), click(3, site="333")]
    alone = run.decoders["events"].decode(run.slice("events", good))
    mixed = run.decoders["events"].decode(run.slice("events", [good[0], click(2, site="one"), good[1]]))
    assert len(mixed.dead) == 1
    np.testing.assert_array_equal(mixed.categories, alone.categories)


def test_end_of_stream_mark_ends_only_the_waits_that_began_before_it():
    waits = []
    for cut in (False, True):
        run = Run(delayed())
        run.feed("labels", [None], headers=((END_OF_STREAM, b""),))
        part = run.slice("events", [json.dumps(click(1)).encode(), None, json.dumps(click(2, 1)).encode()])
        records = [r._replace(headers=((END_OF_STREAM, b""),)) if r.value is None else r for r in part.records]
        batch = run.decoders["events"].decode(part._replace(records=records))
        for a, b in [(0, 2), (2, 3)] if cut else [(0, 3)]:
            run.engine.process(batch, a, b)
        waits.append(run.counts("events", "expired", "pending"))
    assert waits == [(2, 1, 1), (2, 1, 1)]


def test_waits_end_as_declared_when_another_wait_was_declared_before():
    before, after = Run(delayed(within="1h")), Run(delayed(within="2h"))
    before.feed("events", [click(1, 0)])
    before.feed("labels", [sale("x", 0)])
    after.engine.load(before.engine.state())
    after.ends = dict(before.ends)
    after.feed("events", [click(2, 150)])
    after.feed("labels", [sale("y", 150)])
    assert after.counts("expired", "pending") == (1, 1)


def test_stream_ends_at_the_first_record_at_which_too_many_are_bad_wherever_it_is_cut():
    rows = [b"bad" if i % 4 else click(i, i / 60) for i in range(5000)]
    due = next(n for n in range(5000) if sum(i % 4 > 0 for i in range(n + 1)) == 501)  # 501 of 1,000 is more than half
    whole = Run(delayed())
    whole.feed("events", rows)
    for cuts in ({1}, {due}, {due + 1}, set(range(100, 5000, 100))):
        run = Run(delayed())
        batch = run.decoders["events"].decode(run.slice("events", rows))
        edges = [0, *sorted(cuts), 5000]
        dead = []
        for a, b in zip(edges, edges[1:]):
            done = run.engine.process(batch, a, b)
            dead += done.dead
            if run.engine.stop_reason is not None:
                break
        assert done.piece.next == due + 1 <= b
        assert [letter.record.offset for letter in dead] == [i for i in range(due + 1) if i % 4]
        assert "501 of the last 1,000 records were bad, 50%" in run.engine.stop_reason
        assert f"clicks[0]@{due}:" in run.engine.stop_reason
        assert_same(run, whole)


def test_cycle_ends_where_the_stream_has_to_stop_and_a_replay_of_its_pieces_gets_there():
    run, replayed, aligner = Run(delayed()), Run(delayed()), Aligner(None)
    batches = [run.decoders["events"].decode(run.slice("events", [click(1), *([b"bad"] * 400)])) for _ in range(3)]
    aligner.own(("events", 0))
    for batch in batches:
        aligner.add(batch)
    cycle = Cycle()
    run_cycle(run.engine, aligner, set(), lambda _: False, cycle)
    assert cycle.offsets() == {("events", 0): 401 + 1 + 101}
    assert (len(cycle.dead), cycle.rows, run.counts("events")) == (501, 2, (2,))
    for batch, piece in zip(batches, cycle.pieces):
        replayed.engine.process(batch, piece.start, piece.next)
    assert replayed.engine.stop_reason == run.engine.stop_reason
    assert_same(run, replayed)
    replayed.engine.forgive()
    done = replayed.engine.process(batches[1], cycle.pieces[-1].next, batches[1].next)
    assert (replayed.engine.stop_reason, len(done.dead)) == (None, 299)


def test_share_of_bad_records_is_that_of_the_last_thousand():
    run = Run(delayed(max_bad_share=0.1))
    for i in range(4):
        run.feed("events", [click(i, j) for j in range(950)] + [b"bad"] * 100)
        assert run.engine.stop_reason is None
    for rows in ([click(0)] * 1000, [b"bad"] * 100, [click(0)] * 900):  # good ones in pieces of their own
        run.feed("events", rows)
    run.feed("events", [b"bad"])  # the first of the hundred lies 1,001 records back
    assert run.engine.stop_reason is None
    run.feed("events", [click(0)] * 900)
    run.feed("events", [b"bad"] * 100)
    assert run.engine.stop_reason is None  # and so does the one before these
    run.feed("events", [b"bad"])
    assert "101 of the last 1,000" in run.engine.stop_reason


def test_worker_is_told_to_stop_when_most_records_are_bad():
    run = Run(delayed(max_bad_share=0.5))
    run.feed("events", [click(i) for i in range(2000)])
    run.feed("events", [b"bad"] * 500)
    assert run.engine.stop_reason is None
    run.feed("events", [b"bad"])
    assert "501 of the last 1,000 records were bad" in run.engine.stop_reason
    assert "clicks[0]@2500: not valid JSON" in run.engine.stop_reason


def test_event_times_that_jump_back_do_not_move_the_clock():
    run = Run(delayed())
    run.feed("events", [click(1, 30), click(2, 0), click(3, 10)])
    assert run.engine.clock("events", 0) == (T0 + 30 * 60) * 1_000_000
    run.feed("labels", [sale(2, 80), sale(1, 89), sale(3, 89)])
    assert run.counts("joined") == (3,)  # a late event waits from when it came


def test_prediction_that_is_not_finite_stops_before_anything_is_published():
    run = Run(delayed())
    run.engine.arrays["model/1/" + weights(run)][:] = np.nan
    with pytest.raises(NotFinite, match=r"clicks\[0\]@0: the prediction is \[nan\], not finite") as caught:
        run.feed("events", [click(1)])
    assert isinstance(caught.value, StreamStopped)


@pytest.mark.parametrize("broken", ["0/mean[0]", "0/variance[1]", "1/columns[0, 1]", "1/bias[0, 0]", "1/base_mean[0]"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_model_that_is_not_finite_is_noticed_at_the_end_of_the_cycle(broken, value):
    run = Run(delayed())
    run.feed("events", [click(1)])
    run.engine.check_finite()
    name, _, place = broken.rstrip("]").partition("[")
    run.engine.arrays[f"model/{name}"][tuple(map(int, place.split(", ")))] = value
    with pytest.raises(NotFinite, match=re.escape(f"the model of 'clicks' is broken: {broken} is {value}, not finite")):
        run.engine.check_finite()


def test_numbers_whose_sum_is_too_large_are_finite():
    run = Run(delayed())
    run.engine.arrays["model/0/mean"][:] = 1.7e308
    run.engine.check_finite()


@register
@dataclass(eq=False)
class Breaking(Configured, Learner):
    """Its table is written to where a label of 13 says, and never read."""

    rows: int = 1 << 12
    updates: ClassVar[str] = "sequential"
    batch_size: ClassVar[int] = 1

    def layout(self, spec):
        return {"table": Array((self.rows, 2), rows="table"), "one": Array((self.rows, 3), rows="table")}

    def bind(self, spec, state, touched):
        self.table, self.touched = state["table"], touched["table"]

    def predict(self, x, out):
        out[:] = 0.5

    def learn(self, x, truth):
        for row in np.flatnonzero(truth.y[:, 0] == 13):
            at = int(x.numeric[row, 0])
            self.table[at] = np.inf
            self.touched[at >> 6] = 1


@pytest.mark.parametrize("row", [0, 77, 4095, 4100])
def test_row_of_a_table_that_no_prediction_touches_is_noticed_at_the_end_of_the_cycle(row):
    model = Breaking(rows=4101)
    run = Run(delayed(features=[numeric("price")], model=model, value=pl.col("amount")))
    for i in range(3):
        run.feed("events", [click(i, price=row)])
        run.feed("labels", [sale(i, 1, amount=i)])
        run.engine.check_finite()
    run.feed("events", [click(9, price=row)])
    run.feed("labels", [sale(9, 1, amount=13)])
    run.engine.end_cycle()
    state = run.engine.state()
    with pytest.raises(NotFinite, match=rf"0/table\[{row}, 0\] is inf"):
        run.engine.check_finite()
    other = Run(run.pipeline)
    other.engine.load(state)
    with pytest.raises(NotFinite, match="0/table"):
        other.engine.check_finite()


def test_table_too_large_to_look_at_in_every_cycle_is_left_to_the_snapshot():
    run = Run(delayed(model=StandardScaler() | LogisticRegression(bits=21)))
    run.engine.arrays["model/1/table"][5] = np.nan
    run.engine.load(replace(state := run.engine.state(), shared={k: a.copy() for k, a in state.shared.items()}))
    run.engine.check_finite()
    run.engine.arrays["model/1/bias"][:] = np.nan
    with pytest.raises(NotFinite, match="1/bias"):
        run.engine.check_finite()


def test_more_waiting_predictions_than_the_limit_stop_the_stream():
    run = Run(delayed(pending_limit=100))
    run.feed("events", [click(i) for i in range(100)])
    assert run.engine.stop_reason is None
    run.feed("events", [click(101)])
    assert run.engine.stop_reason.startswith("101 predictions wait for their label, pending_limit is 100")


@pytest.mark.parametrize("looks", [True, False])
def test_marks_tell_what_of_a_table_has_changed_up_to_the_end_of_a_cycle(looks):
    """Also in a replay, which does not look whether the model is finite."""
    pipeline = Pipeline(
        name="marked",
        events=Events("seen", Seen, key="id", time="time", unit="s"),
        labels=Labels(value="sold"),
        features=[category("site")],
        model=LogisticRegression(FTRL(half_life="1h"), bits=12),
        predictions=Predictions("scores"),
    )
    engine, decoder = Engine(pipeline), Decoder(pipeline, "events")
    engine.own(0)
    ((table, marks),) = engine.model_tables().values()
    copied = table.copy()
    for cycle in range(6):
        marks[:] = 0
        start = 20 * cycle
        rows = [
            {"id": str(i), "time": 600 * i, "site": f"s{i % 7 + cycle}", "sold": i % 3 == 0}
            for i in range(start, start + 20)
        ]
        records = [Record(start + i, 10**9, None, json.dumps(row).encode()) for i, row in enumerate(rows)]
        batch = decoder.decode(Slice("events", 0, start, start + 20, records))
        engine.process(batch, start, start + 20)
        engine.end_cycle()
        if looks:
            engine.check_finite()
        assert (table != copied).any()
        for block in np.flatnonzero(marks):
            copied[64 * block : 64 * block + 64] = table[64 * block : 64 * block + 64]
        np.testing.assert_array_equal(copied, table)


class Seen(msgspec.Struct):
    id: str
    time: float
    site: str
    sold: bool


def test_all_of_a_loaded_model_is_marked_as_changed():
    run, other = Run(delayed()), Run(delayed())
    tables = other.engine.model_tables()
    for _, marks in tables.values():
        marks[:] = 0  # as who copies them does
    other.engine.load(run.engine.state())
    assert tables and all(marks.all() for _, marks in tables.values())
