"""Records on which a model raises become dead letters, and all else is as if they had been bad from the start."""

import json
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headrace import Events, Labels, Pipeline, Predictions, category, count, mean, numeric
from headrace.connectors.records import Fetched
from headrace.connectors.store import SnapshotStore
from headrace.errors import StreamStopped
from headrace.models import Array, Learner
from headrace.models.base import Configured, NotFinite, register
from headrace.stream.align import Aligner
from headrace.stream.computing import Computing
from headrace.stream.cycle import Cycle, end_cycle, run_cycle
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.in_hand import InHand
from headrace.stream.pace import Pace
from headrace.stream.poison import Poisoned, as_they_came, process_carefully, without
from headrace.stream.publisher import SnapshotPublisher
from headrace.stream.slices import Piece, Record, Slice
from headrace.stream.snapshot_schedule import SnapshotSchedule
from headrace.stream.stages import Stages
from headrace.stream.standing import Standing

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example runs engines; shrinking one takes minutes

T0 = 1_700_000_000  # seconds
POISON = 13.0  # the price that the model cannot take


class Click(msgspec.Struct):
    id: str
    time: float
    price: float
    site: str = "a"
    sold: bool | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


@register
@dataclass(eq=False)
class Touchy(Configured, Learner):
    """A user's own model, in plain Python: it raises in the middle of its work, when half of it is done."""

    where: str = "predict"
    updates: str = "sequential"
    batch_size: int = 1
    error: str = "ValueError"

    def layout(self, spec):
        return {"w": Array((2,), "float64"), "seen": Array((4096,), "float32", rows="seen")}

    def bind(self, spec, state, touched):
        self.w, self.seen, self.touched = state["w"], state["seen"], touched["seen"]

    def check(self, where, price):
        if where == self.where and price == np.float32(POISON):
            errors = {"ValueError": ValueError, "MemoryError": MemoryError, "StreamStopped": StreamStopped}
            raise errors[self.error]("cannot take 13,\n  of all numbers")

    def predict(self, x, out):
        for i, price in enumerate(x.numeric[:, 0]):
            self.check("predict", price)
            out[i] = 1 / (1 + np.exp(-np.clip(self.w[0] + self.w[1] * price, -9, 9)))

    def learn(self, x, truth):
        step = self.w * 0
        for price, y in zip(x.numeric[:, 0], truth.y[:, 0]):
            if np.isnan(y):
                continue
            self.seen[int(price) % 64] += 1
            self.touched[0] = 1
            self.check("learn", price)
            p = 1 / (1 + np.exp(-np.clip(self.w[0] + self.w[1] * price, -9, 9)))
            step += 0.05 * (y - p) * np.array([1, price / 10])
            if self.updates == "sequential":
                self.w += step
                step[:] = 0
        self.w += step


def pipeline(where="predict", delayed=True, batch=0, otherwise=None, error="ValueError", **changes):
    side = dict(key="id", time="time", unit="s")
    return Pipeline(
        name="touchy",
        events=Events("clicks", Click, **side),
        labels=Labels("sales", Sale, value="sold", within="1h", otherwise=otherwise, **side)
        if delayed
        else Labels(value="sold"),
        features=[
            numeric("price"), category("site"), count(by="site", over="1h", capacity=3),
            mean("label", by="site", over="6h", capacity=9),
        ],
        model=Touchy(where, "micro_batch", batch, error) if batch else Touchy(where, error=error),
        predictions=Predictions("scores"),
        **changes,
    )  # fmt: skip


class Run:
    """An engine with one partition, and batches made of rows."""

    def __init__(self, declared):
        self.pipeline, self.engine = declared, Engine(declared)
        self.decoders = {role: Decoder(declared, role) for role in ("events", "labels")[: 1 + self.engine.delayed]}
        self.engine.own(0)
        self.ends = {"events": 0, "labels": 0}

    def batch(self, role, rows, partition=0):
        start = self.ends[role]
        self.ends[role] += len(rows)
        values = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        now = (T0 + 10**6) * 1000
        records = [Record(start + i, now, b"key of %d" % (start + i), value) for i, value in enumerate(values)]
        return self.decoders[role].decode(Slice(role, partition, start, start + len(rows), records))

    def feed(self, role, rows):
        batch = self.batch(role, rows)
        return self.engine.process(batch, batch.start, batch.next)

    def feed_carefully(self, role, rows):
        batch = self.batch(role, rows)
        return process_carefully(self.engine, batch, batch.start, batch.next)

    def counts(self, *names):
        counters = self.engine.counters()
        return tuple(counters[name] for name in names)


def click(i, minutes=0.0, price=1.0, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "price": price, **more}


def sale(i, minutes=0.0, sold=True):
    return {"id": str(i), "time": T0 + 60 * minutes, "sold": sold}


def stream(seed, delayed, events=60):
    """(role, rows) in turn. One event in ten is poison, and its time may be far ahead."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(events):
        at, sold = float(rng.uniform(0, 200)), bool(rng.random() < 0.4)
        bad = rng.random() < 0.1
        ahead = float(rng.choice([0, 0, 40])) if bad else 0
        row = click(i, at + ahead, POISON if bad else float(rng.integers(12)), site="abcd"[rng.integers(4)])
        rows.append((at, "events", row if delayed else row | {"sold": sold}))
        if delayed and rng.random() < 0.9:
            later = at + float(rng.exponential(20)) - 2
            rows.append((later, "labels", sale(i, later, sold)))
    turns = []
    for _, role, row in sorted(rows, key=lambda row: row[0]):
        if not turns or turns[-1][0] != role or len(turns[-1][1]) == 12:
            turns.append((role, []))
        turns[-1][1].append(row)
    return turns


def assert_same(one, two):
    a, b = one.engine.state(), two.engine.state()
    for name, array in a.shared.items():
        np.testing.assert_array_equal(array, b.shared[name], name)
    for p, arrays in a.partitions.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, b.partitions[p][name], f"{p}/{name}")


def predictions(processed):
    out = [d.predicted.out for d in processed if d.predicted is not None]
    return np.concatenate(out) if out else np.empty((0, 1), np.float32)


def dead_offsets(processed):
    return [letter.record.offset for d in processed for letter in d.dead]


# ---- as if they had been bad from the start


@settings(max_examples=12, deadline=None, phases=UNSHRUNK)
@given(
    seed=st.integers(0, 1000),
    cut_seed=st.integers(0, 1000),
    where=st.sampled_from(["predict", "learn"]),
    delayed=st.booleans(),
    batch=st.sampled_from([0, 5]),
)
def test_careful_processing_equals_a_stream_in_which_the_poison_was_bad_from_the_start(
    seed, cut_seed, where, delayed, batch
):
    declared = pipeline(where, delayed, batch)
    careful, plain, replayed = Run(declared), Run(declared), Run(declared)
    rng = np.random.default_rng(cut_seed)
    found = 0
    for role, rows in stream(seed, delayed):
        whole = careful.batch(role, rows)
        cuts = sorted({whole.start, whole.next, *rng.integers(whole.start, whole.next + 1, 2).tolist()})
        pieces, out, dead, poison = [], [], [], []
        for a, b in zip(cuts, cuts[1:]):
            processed, offsets = process_carefully(careful.engine, whole, a, b)
            careful.engine.end_cycle()
            pieces.append((a, b))
            assert (processed[0].piece.start, processed[-1].piece.next) == (a, b)
            out.append(predictions(processed))
            dead += dead_offsets(processed)
            poison += offsets
        found += len(poison)
        assert dead == poison == sorted(set(poison))
        without_them = [b"bad" if whole.start + i in poison else row for i, row in enumerate(rows)]
        reference = plain.batch(role, without_them)
        again = without(replayed.batch(role, rows), dict.fromkeys(poison, "as the journal says"))
        for run, of in ((plain, reference), (replayed, again)):
            done = []
            for a, b in pieces:
                done.append(run.engine.process(of, a, b))
                run.engine.end_cycle()
            np.testing.assert_array_equal(np.concatenate(out), predictions(done))
            assert dead_offsets(done) == dead
    assert_same(careful, plain)
    assert_same(careful, replayed)
    counters = careful.engine.counters()
    assert counters["dead_letters"] == counters["bad_events"] + counters["bad_labels"] == found
    assert (careful.engine.arrays["model/0/w"] != 0).all()


def test_event_that_cannot_be_predicted_goes_alone():
    run = Run(pipeline("predict"))
    rows = [click(i, i, price=POISON if i in (0, 7, 8, 29) else 2.0) for i in range(30)]
    processed, poison = run.feed_carefully("events", rows)
    assert poison == dead_offsets(processed) == [0, 7, 8, 29]
    assert len(predictions(processed)) == 26
    letter = processed[0].dead[0]
    assert letter.reason == "the model raised ValueError: cannot take 13, of all numbers"
    assert (letter.role, letter.partition, letter.record.key) == ("events", 0, b"key of 0")


def test_label_that_cannot_be_learned_goes_and_its_event_still_waits():
    run = Run(pipeline("learn"))
    run.feed("events", [click(1), click(2, price=POISON), click(3)])
    _, poison = run.feed_carefully("labels", [sale(1, 1), sale(2, 1), sale(3, 1)])
    assert poison == [1]
    assert run.counts("joined", "examples", "pending", "dead_letters", "bad_labels") == (2, 2, 1, 1, 1)


def test_event_whose_own_label_cannot_be_learned_goes():
    run = Run(pipeline("learn", delayed=False))
    rows = [click(i, price=POISON if i == 2 else 2.0, sold=True) for i in range(4)]
    _, poison = run.feed_carefully("events", rows)
    assert poison == [2] and run.counts("events", "examples") == (3, 3)


def test_nothing_is_left_out_where_nothing_raises():
    careful, plain = Run(pipeline("learn")), Run(pipeline("learn"))
    for role, rows in (("events", [click(i) for i in range(20)]), ("labels", [sale(i, 1) for i in range(20)])):
        processed, poison = careful.feed_carefully(role, rows)
        plain.feed(role, rows)
        assert poison == [] and [d.piece for d in processed] == [Piece(role, 0, 0, 20)]
    assert_same(careful, plain)


def test_time_of_a_record_that_was_left_out_is_not_felt_by_those_after_it():
    run = Run(pipeline("predict"))
    batch = run.batch("events", [click(1), click(2, 50, POISON), click(3, 1), click(4, 60, POISON), click(5, 2)])
    process_carefully(run.engine, batch, 0, 2)
    run.engine.process(batch, 2, 3)  # as it comes from the aligner, in a later cycle
    assert run.engine.clock("events", 0) == (T0 + 60) * 1_000_000
    process_carefully(run.engine, batch, 3, 5)
    assert run.engine.clock("events", 0) == (T0 + 120) * 1_000_000


def test_stream_of_nothing_but_poison_stops_at_the_share_of_bad_records():
    run = Run(pipeline("predict", max_bad_share=0.02))
    rows = [click(i) for i in range(30)] + [click(i, price=POISON) for i in range(30, 90)]
    processed, poison = run.feed_carefully("events", rows)
    assert "21 of the last 1,000 records were bad" in run.engine.stop_reason
    assert "the model raised ValueError" in run.engine.stop_reason
    assert poison == list(range(30, 51)) and processed[-1].piece.next == 51


def test_headers_stay_with_their_records_where_one_between_them_goes():
    run = Run(replace(pipeline(), predictions=Predictions("scores", headers=True)))
    now, prices = (T0 + 10**6) * 1000, [1.0, POISON, 2.0, 3.0]
    records = [
        Record(i, now, None, json.dumps(click(i, i, price)).encode(), (("trace", b"of %d" % i),))
        for i, price in enumerate(prices)
    ]
    processed, poison = process_carefully(
        run.engine, run.decoders["events"].decode(Slice("events", 0, 0, 4, records)), 0, 4
    )
    assert poison == [1]
    carried = {}
    for p in (done.predicted for done in processed if done.predicted is not None):
        rows = slice(p.lo, p.hi)
        carried |= dict(zip(p.batch.offset[rows].tolist(), list(p.batch.headers)[rows], strict=True))
    assert carried.keys() == {0, 2, 3}
    assert all(headers.endswith(b"of %d" % offset) for offset, headers in carried.items())


def test_long_reason_is_cut():
    run = Run(pipeline("predict"))
    run.engine.model.parts[0].check = lambda *_: _raise("x" * 100_000)
    processed, _ = run.feed_carefully("events", [click(1)])
    assert len(processed[0].dead[0].reason) == 500


def _raise(text):
    raise LookupError(text)


def test_dead_letter_holds_the_record_as_it_came_once_it_is_read_again():
    run = Run(pipeline("predict"))
    batch = run.batch("events", [b"bad", click(1, price=POISON), click(2)])
    processed, poison = process_carefully(run.engine, batch, 0, 3)
    dead = [letter for d in processed for letter in d.dead]
    came = Record(1, 5, b"its key", b"its value", (("trace", b"1"),))
    read = {("events", 0, 1): came}
    letters = as_they_came(dead, [("events", 0, offset) for offset in poison], lambda *place: read[place])
    assert [letter.record for letter in letters] == [batch.dead[0].record, came]
    assert [letter.reason for letter in letters] == [letter.reason for letter in dead]


# ---- what is no fault of a record


@pytest.mark.parametrize("error", ["StreamStopped", "MemoryError"])
def test_errors_that_are_no_fault_of_a_record_pass_and_leave_the_engine_as_it_was(error):
    run, twin = Run(pipeline("predict", error=error)), Run(pipeline("predict", error=error))
    expected = {"StreamStopped": StreamStopped, "MemoryError": MemoryError}[error]
    with pytest.raises(expected):
        run.feed_carefully("events", [click(1), click(2, price=POISON)])
    assert_same(run, twin)
    aligner = Aligner(None)
    aligner.own(("events", 0))
    aligner.add(run.batch("events", [click(1), click(2, price=POISON)]))
    with pytest.raises(expected):
        run_cycle(run.engine, aligner, set(), lambda _: False, Cycle())


def test_what_is_raised_without_any_record_is_let_out():
    run = Run(pipeline())
    with pytest.raises(KeyError):
        process_carefully(run.engine, run.batch("events", [click(1), click(2)], partition=7), 0, 2)
    run.engine.model.parts[0].learn = lambda *_: _raise("always")
    run.feed("events", [click(1)])
    run.feed("labels", [sale(1)])  # to be learned with what comes next
    with pytest.raises(LookupError, match="always"):
        run.feed_carefully("events", [click(2), click(3)])


# ---- cycles


def work(run, batches, careful):
    """Cycles until nothing is left, as a worker runs them."""
    aligner = Aligner(None)
    for role in ("events", "labels"):
        aligner.own((role, 0))
    for batch in batches:
        aligner.add(batch)
    cycles = []
    while not cycles or cycles[-1].pieces:
        cycles.append(Cycle())
        run_cycle(run.engine, aligner, set(), lambda _: False, cycles[-1], careful)
        end_cycle(run.engine, cycles[-1])
    return cycles[:-1]


def poisoned_stream(batch=0):
    """Events, the labels of some, and events that come when these are not learned yet."""
    run = Run(pipeline("learn", batch=batch))
    rows = [
        ("events", [click(i, i / 100, price=POISON if i == 3 else i % 10) for i in range(10)]),
        ("labels", [sale(i, 1 + i / 100, i % 2 == 0) for i in range(6)]),
        ("events", [click(i, 2) for i in range(10, 20)]),
    ]
    return run, [run.batch(role, part) for role, part in rows]


def test_cycle_names_the_records_among_which_the_model_raised():
    run = Run(pipeline("predict"))
    batches = [run.batch("events", [click(i)]) for i in range(3)] + [run.batch("events", [click(4, price=POISON)])]
    with pytest.raises(Poisoned) as caught:
        work(run, batches, None)
    error = caught.value
    assert (error.role, error.partition, error.start, error.next) == error.piece == ("events", 0, 3, 4)
    assert isinstance(error.cause, ValueError) and error.__cause__ is error.cause
    assert "the model raised ValueError: cannot take 13" in str(error) and "from 3 up to 4" in str(error)


@pytest.mark.parametrize("batch", [0, 4, 100])
def test_worker_that_begins_again_carefully_gets_past_a_label_that_was_learned_late(batch):
    run, batches = poisoned_stream(batch)
    with pytest.raises(Poisoned) as caught:
        work(run, batches, None)
    assert caught.value.role == "events"  # they brought it to light, and are innocent
    blamed, attempts = [caught.value.piece], 0
    while True:
        run, batches = poisoned_stream(batch)
        attempts += 1
        try:
            cycles = work(run, batches, lambda following: Piece(following.batch.role, 0, *following[1:]) in blamed)
            break
        except Poisoned as error:
            blamed.append(error.piece)
    assert attempts == 2 and blamed[-1] == ("labels", 0, 0, 6)
    assert [cycle.poison for cycle in cycles] == [[], [("labels", 0, 3)], []]
    assert [len(cycle.dead) for cycle in cycles] == [0, 1, 0]
    assert sum(p.hi - p.lo for cycle in cycles for pieces in cycle.predicted.values() for p in pieces) == 20
    assert [cycle.offsets() for cycle in cycles] == [{("events", 0): 10}, {("labels", 0): 6}, {("events", 0): 20}]
    plain, batches = poisoned_stream(batch)
    for of in batches:
        plain.engine.process(without(of, {3: "bad"}) if of.role == "labels" else of, of.start, of.next)
        plain.engine.end_cycle()
    assert_same(run, plain)


def test_worker_that_begins_at_the_record_to_blame_is_careful_until_what_comes_of_it_is_committed(redis_url, unique):
    run, aligner, hand, stages = Run(pipeline("predict")), Aligner(None), InHand(), Stages()
    aligner.own(("events", 0))
    hand.begin({("events", 0): 1})
    rows = [json.dumps(click(i, price=POISON if i == 1 else 1.0)).encode() for i in range(4)]
    records = [Record(i, (T0 + 10**6) * 1000, None, row) for i, row in enumerate(rows)]
    hand.runs["events", 0].append(Fetched("clicks", 0, 1, 3, records[1:3], 4, -1, 200))
    computing = Computing(
        Standing(run.engine), run.decoders, aligner, hand, Pace(60), stages,
        SnapshotPublisher(SnapshotStore(redis_url, unique)), SnapshotSchedule(60, stages.enter, set), None,
        careful={("events", 0): 2, ("labels", 0): 7},
    )  # fmt: skip
    cycle = computing.compute()
    assert (cycle.offsets(), cycle.poison) == ({("events", 0): 3}, [("events", 0, 1)])
    computing.committed({("events", 0): 1, ("labels", 0): 0})
    assert computing.careful == {("events", 0): 2, ("labels", 0): 7}
    computing.committed(cycle.offsets() | {("labels", 0): 0})
    assert computing.careful == {("labels", 0): 7}
    hand.runs["events", 0].append(
        Fetched("clicks", 0, 3, 4, [Record(3, records[3].timestamp, None, rows[1])], 4, -1, 100)
    )
    with pytest.raises(Poisoned):
        computing.compute()


@pytest.mark.parametrize("batch", [0, 4, 100])
def test_worker_that_is_careful_with_all_gets_past_at_once(batch):
    run, batches = poisoned_stream(batch)
    cycles = work(run, batches, lambda _: True)
    assert [cycle.poison for cycle in cycles] == [[], [("labels", 0, 3)], []]
    assert run.counts("joined", "examples") == (5, 5)


def test_what_the_end_of_a_cycle_raises_names_its_last_records():
    run, batches = poisoned_stream(100)
    with pytest.raises(Poisoned) as caught:
        work(run, batches[:2], None)
    assert caught.value.piece == ("labels", 0, 0, 6)


def test_cycle_that_leaves_a_model_that_is_not_finite_does_not_end():
    run, cycle = Run(pipeline()), Cycle()
    end_cycle(run.engine, cycle)
    run.engine.arrays["model/0/w"][1] = np.nan
    with pytest.raises(NotFinite, match=r"0/w\[1\] is nan"):
        end_cycle(run.engine, cycle)


# ---- undo


@settings(max_examples=8, deadline=None, phases=UNSHRUNK)
@given(seed=st.integers(0, 1000), at=st.floats(0, 1), batch=st.sampled_from([0, 5]))
def test_engine_that_is_put_back_is_the_one_that_never_went_on(seed, at, batch):
    declared = pipeline("nowhere", batch=batch, max_bad_share=0.01)
    run, twin = Run(declared), Run(declared)
    turns = stream(seed, delayed=True)
    half = int(at * len(turns))
    for r in (run, twin):
        r.engine.mute({("events", 0): 20, ("labels", 0): 10})
        for role, rows in turns[:half]:
            r.feed(role, rows)
    undo, ends = run.engine.undo_point(), dict(run.ends)
    for _ in range(2):
        for role, rows in turns[half:]:
            run.feed(role, rows)
        run.feed("events", [b"bad"] * 20)
        run.engine.finish()
        assert run.engine.stop_reason is not None
        undo()
        run.ends = dict(ends)
        assert run.engine.stop_reason is None
    for role, rows in turns[half:]:
        one, two = run.feed(role, rows), twin.feed(role, rows)
        np.testing.assert_array_equal(predictions([one]), predictions([two]))
    for r in (run, twin):
        r.engine.end_cycle()
    assert_same(run, twin)
    assert run.engine.state().meta == twin.engine.state().meta


def test_engine_that_is_put_back_is_mute_no_longer_and_looks_again_at_what_it_had_not_looked_at():
    run = Run(pipeline("predict", otherwise=False))
    run.engine.mute({("events", 0): 10})
    run.feed("events", [click(1)])
    seen = run.engine.arrays["model/0/seen"]
    seen[3] = np.inf
    run.engine.model.parts[0].touched[0] = 1
    undo = run.engine.undo_point()
    seen[3] = 0
    run.engine.check_finite()
    with pytest.raises(ValueError, match="cannot take 13"):
        run.feed("events", [click(2, price=POISON)])
    undo()
    with pytest.raises(NotFinite, match=r"0/seen\[3\] is inf"):
        run.engine.check_finite()
    run.engine.finish()
    assert run.counts("expired", "examples", "unlearned") == (1, 1, 0)


# ---- rows out of a batch


def test_batch_without_rows_is_the_one_whose_records_were_bad():
    rows = [click(i, (7 * i) % 10, i, site="ab"[i % 2]) for i in range(10)]
    whole = Run(pipeline()).batch("events", [*rows[:5], b"bad", *rows[5:]])
    bad = Run(pipeline()).batch(
        "events", [b"bad" if i in (0, 5, 6, 10) else r for i, r in enumerate([*rows[:5], b"", *rows[5:]])]
    )
    less = without(whole, {0: "zero", 6: "six", 10: "ten", 5: "bad before", 77: "not here"})
    assert [(letter.record.offset, letter.reason) for letter in less.dead][::2] == [(0, "zero"), (6, "six")]
    assert [letter.record.offset for letter in less.dead] == [letter.record.offset for letter in bad.dead]
    assert less.dead[1] is whole.dead[0]
    for name in ("offset", "time", "clock", "key_hash", "numeric", "categories", "groups", "values", "y"):
        one, two = getattr(less, name), getattr(bad, name)
        assert one.dtype == two.dtype and one.flags.c_contiguous
        np.testing.assert_array_equal(one, two, name)
    assert list(less.keys) == list(bad.keys) and list(less.record_keys) == list(bad.record_keys)
    assert (less.start, less.next, len(whole)) == (0, 11, 10)
    assert without(whole, {77: "not here"}) is whole
    none = without(whole, dict.fromkeys(range(11), "all"))
    assert len(none) == 0 and len(none.dead) == 11
