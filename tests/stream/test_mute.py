"""An engine that is muted up to some offsets: everything goes on there, and nothing is learned."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from engine_run import BEYOND, SIDE, T0, Averages, Click, Sale, assert_same
from engine_run import Run as OneRun
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from headrace import Events, Labels, Pipeline, Predictions, category, count, ewm, last, mean, numeric
from headrace.models import FTRL, LogisticRegression, StandardScaler

UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example runs an engine; shrinking one takes minutes

GOES_ON = {"counters", "bad", "bad_at", "metrics/sums", "metrics/positives", "metrics/negatives"}


MODELS = {
    "sequential": lambda: StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=8),
    "micro-batches": lambda: StandardScaler(half_life="1h") | Averages(),
}


def pipeline(model="sequential", delayed=True, otherwise=None):
    """With labels on a topic of their own, or in the event."""
    return Pipeline(
        name="muted",
        events=Events("clicks", Click, **SIDE),
        labels=Labels("sales", Sale, value="sold", within="1h", otherwise=otherwise, **SIDE)
        if delayed
        else Labels(value="sold"),
        features=[
            numeric("price"), category("site"), count(by="site", over="1h", capacity=3),
            ewm("price", by="site", half_life="1h", capacity=9), mean("label", by="site", over="6h", capacity=9),
            *([last("amount", by="site", capacity=5)] if delayed else []),
        ],
        model=MODELS[model](),
        predictions=Predictions("scores"),
    )  # fmt: skip


class Run(OneRun):
    """An engine with two partitions, which can be muted."""

    def __init__(self, declared):
        super().__init__(declared, partitions=2)

    def mute(self, **until):
        """Mute both partitions: events=10, labels=5."""
        self.engine.mute({(role, p): offset for role, offset in until.items() for p in (0, 1)})

    def muted(self):
        return self.engine.state().meta["muted"]


def click(i, minutes=0.0, site="a", price=1.0, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "site": site, "price": price, **more}


def sale(i, minutes=0.0, sold=True, **more):
    return {"id": str(i), "time": T0 + 60 * minutes, "sold": sold, **more}


def stream(seed, events=150, delayed=True):
    """(role, partition, rows) in turn: clicks over five hours, not quite in order of time, and the sales of most."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(events):
        at, minute, site = rng.uniform(0, 300), float(rng.normal(0, 5)), "abcde"[rng.integers(5)]
        sold = bool(rng.random() < (0.2 if site < "c" else 0.8))
        price = float(rng.normal(5, 3))
        row = click(i, at + minute, site, price) | ({} if delayed else {"sold": sold if i % 9 else None})
        rows.append((at, "events", i % 2, row))
        if delayed and rng.random() < 0.9:
            later = at + float(rng.exponential(25)) - 2  # some come before their event
            rows.append((later, "labels", i % 2, sale(i, later, sold, amount=at)))
    turns = []
    for _, role, partition, row in sorted(rows, key=lambda row: row[0]):
        if turns and turns[-1][:2] == (role, partition):
            turns[-1][2].append(row)
        else:
            turns.append((role, partition, [row]))
    return turns


def assert_still(before, after):
    assert {name for name, array in before.items() if array.tobytes() != after[name].tobytes()} <= GOES_ON


@pytest.mark.parametrize("otherwise", [None, False])
@pytest.mark.parametrize("model", MODELS)
def test_while_muted_the_shared_state_stands_still_and_all_else_goes_on(model, otherwise):
    run, twin = (Run(pipeline(model, otherwise=otherwise)) for _ in range(2))
    turns = stream(1)
    for role, p, rows in turns[: len(turns) // 2]:
        run.feed(role, rows, p)
        twin.feed(role, rows, p)
    run.engine.end_cycle()
    before = run.shared()
    run.mute(events=BEYOND, labels=BEYOND)
    learned = run.counts("examples")
    for role, p, rows in turns[len(turns) // 2 :]:
        if role == "events":
            looked = run.engine.look(run.batch(role, rows, p))
            np.testing.assert_array_equal(run.feed(role, rows, p), looked[:, 0])
        else:
            run.feed(role, rows, p)
        twin.feed(role, rows, p)
    run.engine.end_cycle()
    assert_still(before, run.shared())
    for p, part in twin.engine.partitions.items():  # clocks, waits and joins are those of an engine that learns
        own = run.engine.partitions[p].state()
        for name, array in part.state().items():
            if name not in ("pending/prediction", "pending/numeric"):
                np.testing.assert_array_equal(own[name], array, name)
    mine, others = run.engine.counters(), twin.engine.counters()
    assert mine["examples"] == learned[0] < others["examples"] == mine["examples"] + mine["unlearned"]
    labelled = mine["joined"] + (mine["expired"] if otherwise is False else 0)
    assert labelled == mine["examples"] + mine["unlearned"]
    assert run.engine.results()["labels"] == labelled
    for name in set(mine) - {"examples", "unlearned", "evicted"}:
        assert mine[name] == others[name], name


@pytest.mark.parametrize("model", MODELS)
def test_label_in_a_muted_event_is_counted_and_not_learned(model):
    run = Run(pipeline(model, delayed=False))
    turns = stream(2, delayed=False)
    for role, p, rows in turns[:50]:
        run.feed(role, rows, p)
    run.engine.end_cycle()
    before, counted = run.shared(), run.counts("examples")
    run.mute(events=BEYOND)
    for role, p, rows in turns[50:]:
        run.feed(role, rows, p)
    run.engine.end_cycle()
    assert_still(before, run.shared())
    joined, labels, examples, unlearned = run.counts("joined", "labels", "examples", "unlearned")
    assert joined == labels == examples + unlearned == run.engine.results()["labels"]
    assert (examples,) == counted and unlearned > 50


@settings(max_examples=15, deadline=None, phases=UNSHRUNK)
@given(
    seed=st.integers(0, 1000),
    cut_seed=st.integers(0, 1000),
    model=st.sampled_from(list(MODELS)),
    delayed=st.booleans(),
    otherwise=st.sampled_from([None, False]),
    until=st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
def test_nothing_depends_on_where_slices_and_pieces_are_cut_while_muted(
    seed, cut_seed, model, delayed, otherwise, until
):
    declared = pipeline(model, delayed, otherwise)
    whole, cut = Run(declared), Run(declared)
    for run in (whole, cut):
        run.mute(events=until[0], **({"labels": until[1]} if delayed else {}))
    rng = np.random.default_rng(cut_seed)
    expected, got = [], []
    for role, p, rows in stream(seed, delayed=delayed):
        expected.append(whole.feed(role, rows, p))
        if rng.random() < 0.5:  # cut the slice into pieces
            got.append(cut.feed(role, rows, p, set(rng.integers(1, len(rows) + 1, 3).tolist()) - {len(rows)}))
        else:  # fetch it in two
            at = int(rng.integers(0, len(rows) + 1))
            got += [cut.feed(role, part, p) for part in (rows[:at], rows[at:])]
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(expected))
    for run in (whole, cut):
        run.engine.end_cycle()
    assert_same(whole, cut)
    assert whole.counts("examples") > (0,)


def test_piece_that_straddles_the_offset_is_muted_up_to_it():
    run, by_hand = (Run(pipeline(delayed=False)) for _ in range(2))
    rows = [click(i, i, price=i, sold=i % 2 == 0) for i in range(20)]
    run.engine.mute({("events", 0): 13})
    out = run.feed("events", rows)
    assert (out[:13] == out[0]).all() and len(set(out[13:].tolist())) > 1
    assert run.counts("unlearned", "examples") == (13, 7)
    assert run.muted() == {}
    by_hand.feed("events", rows[13:])
    for name, array in by_hand.shared().items():
        if name not in GOES_ON and not name.startswith("metrics/"):
            np.testing.assert_array_equal(run.shared()[name], array, name)


def test_slice_fetched_from_the_offset_on_forgets_as_one_that_began_before_it():
    """The first muted row lies an hour ahead of the others: the clock behind it must not depend on who saw it."""
    rows = [click(0, 60), *(click(i, i) for i in range(1, 9))]
    runs = [Run(pipeline()), Run(pipeline())]
    for run, cut in zip(runs, (None, 5)):
        run.feed("events", [click("first", 0)])
        run.engine.mute({("events", 0): 6})
        for part in (rows[:cut], rows[cut:] if cut else []):
            run.feed("events", part)
    assert_same(*runs)


def test_only_the_partitions_that_are_named_are_muted():
    run = Run(pipeline(delayed=False))
    run.engine.mute({("events", 1): 5})
    rows = [click(i, i, price=i, sold=True) for i in range(5)]
    run.feed("events", rows, partition=0)
    assert run.counts("examples", "unlearned") == (5, 0)
    before = run.shared()
    run.feed("events", rows, partition=1)
    assert run.counts("examples", "unlearned") == (5, 5)
    assert_still(before, run.shared())


# ---- the row at which an example would be learned decides


@pytest.mark.parametrize(
    ("muted", "first", "then", "unlearned"),
    [
        (("labels", 1), ("events", click(1)), ("labels", sale(1, 1)), 1),
        (("events", 1), ("events", click(1)), ("labels", sale(1, 1)), 0),
        (("labels", 1), ("labels", sale(1, 1)), ("events", click(1, 2)), 0),  # the label came before its event
        (("events", 1), ("labels", sale(1, 1)), ("events", click(1, 2)), 1),
    ],
)
def test_row_at_which_an_example_would_be_learned_decides(muted, first, then, unlearned):
    run = Run(pipeline())
    role, until = muted
    run.engine.mute({(role, 0): until})
    for of, row in (first, then):
        run.feed(of, [row])
    assert run.counts("joined", "examples", "unlearned") == (1, 1 - unlearned, unlearned)


def test_wait_that_is_ended_by_a_muted_row_is_not_learned():
    for until, unlearned in ((1, 0), (2, 1)):
        run = Run(pipeline(otherwise=False))
        run.engine.mute({("events", 0): until})
        run.feed("labels", [sale("x", 100)])
        run.feed("events", [click(1, 0), click(2, 100), click(3, 101)])
        assert run.counts("expired", "examples", "unlearned") == (1, 1 - unlearned, unlearned)


def test_examples_taken_before_are_learned_although_rows_after_them_are_muted():
    run, plain = Run(pipeline("micro-batches")), Run(pipeline("micro-batches"))
    for r in (run, plain):
        r.feed("events", [click(i, 0) for i in range(10)])
        r.feed("labels", [sale(i, 1, sold=False) for i in range(5)])
    run.engine.mute({("labels", 0): 8})
    run.feed("labels", [sale(i, 1) for i in range(5, 8)])
    for r in (run, plain):
        r.engine.end_cycle()
    assert run.engine.arrays["model/1/p"] == plain.engine.arrays["model/1/p"] < 0.5
    assert run.counts("examples", "unlearned") == (5, 3)


def test_metrics_take_labels_in_their_order_muted_or_not_wherever_cycles_end():
    runs = [Run(pipeline()), Run(pipeline())]
    for run, ends_cycle in zip(runs, (False, True)):
        for p in (0, 1):
            run.feed("events", [click(f"{p}-{i}", i, price=i * (2 * p - 1)) for i in range(5)], p)
        run.engine.mute({("labels", 1): BEYOND})
        run.feed("labels", [sale(f"0-{i}", 5, sold=False) for i in range(5)], 0)
        if ends_cycle:
            run.engine.end_cycle()
        run.feed("labels", [sale(f"1-{i}", 5, sold=True) for i in range(5)], 1)
    assert_same(*runs)


def test_waits_that_end_with_the_streams_are_learned_although_the_last_row_was_muted():
    run = Run(pipeline(otherwise=False))
    run.mute(events=BEYOND)
    run.feed("events", [click(1), click(2)])
    run.engine.finish()
    assert run.counts("expired", "examples", "unlearned") == (2, 2, 0)


def test_what_falls_due_while_muted_is_forgotten_at_the_next_row_that_is_not():
    run, plain = Run(pipeline()), Run(pipeline())
    for r in (run, plain):
        r.feed("events", [click(0, 0)])
    count_before = run.engine.arrays["model/0/count"].copy()
    run.mute(events=3)
    run.feed("events", [click(1, 60), click(2, 120)])
    np.testing.assert_array_equal(run.engine.arrays["model/0/count"], count_before)
    run.feed("events", [click(3, 180)])
    plain.feed("events", [click(3, 180)])
    np.testing.assert_array_equal(run.engine.arrays["model/0/count"], plain.engine.arrays["model/0/count"])
    assert run.engine.arrays["model/0/count"][0] == pytest.approx(1 + 1 / 8, rel=0.05)


# ---- a part of the state


@settings(max_examples=8, deadline=None, phases=UNSHRUNK)
@given(seed=st.integers(0, 1000), at=st.floats(0, 1))
def test_engine_that_loads_a_muted_state_goes_on_as_the_one_that_gave_it(seed, at):
    declared = pipeline()
    one, two = Run(declared), Run(declared)
    turns = stream(seed)
    one.mute(events=60, labels=50)
    half = int(at * len(turns))
    for role, p, rows in turns[:half]:
        one.feed(role, rows, p)
    state = one.engine.state()
    meta = msgspec.json.decode(msgspec.json.encode(state.meta))
    two.engine.load(replace(state, meta=meta, shared={name: array.copy() for name, array in state.shared.items()}))
    two.ends = dict(one.ends)
    for role, p, rows in turns[half:]:
        np.testing.assert_array_equal(one.feed(role, rows, p), two.feed(role, rows, p))
    assert_same(one, two)
    assert one.muted() == {} and one.counts("unlearned") > (0,)


def test_offsets_vanish_once_they_are_passed_and_never_move_back():
    run = Run(pipeline())
    run.mute(events=3)
    run.engine.mute({("events", 0): 2, ("labels", 1): 7})
    assert run.muted() == {"events": {"0": 3, "1": 3}, "labels": {"1": 7}}
    run.feed("events", [click(1), click(2)])
    assert run.muted()["events"] == {"0": 3, "1": 3}
    run.feed("events", [click(3)])
    assert run.muted() == {"events": {"1": 3}, "labels": {"1": 7}}
    run.engine.load(Run(pipeline()).engine.state())
    assert run.muted() == {}


def test_partition_that_goes_takes_its_mute_with_it():
    run = Run(pipeline(delayed=False))
    run.mute(events=4)
    run.feed("events", [click(1, sold=True), click(2, sold=True)])
    run.engine.load_partition(0, run.engine.disown(0))
    assert run.muted() == {"events": {"1": 4}}
    run.feed("events", [click(3, sold=True)])
    run.feed("events", [click(4, sold=True)], partition=1)
    assert run.counts("unlearned", "examples") == (3, 1)
