"""Labels of text, one of several classes: declared, learned, measured, predicted, written, served."""

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl
import pytest
from rich.console import Console

from headrace import Events, Labels, Pipeline, Predictions, SnapshotReader, category, numeric
from headrace.connectors.store import SnapshotStore
from headrace.models import Array, Learner, NoChange, Prior, StandardScaler
from headrace.models.base import Configured, register
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.evaluate_report import report
from headrace.stream.load import load_pipeline
from headrace.stream.slices import Record, Slice
from headrace.stream.snapshot import NAN_ALLOWED, pack
from headrace.stream.standing import Position, Standing

T0 = 1_700_000_000  # seconds
COLOURS = ("red", "green", "blue")


@register
@dataclass(eq=False)
class BySite(Configured, Learner):
    """The frequencies of the classes at each value of the first category."""

    updates: ClassVar = "sequential"
    batch_size: ClassVar = 1

    def layout(self, spec):
        return {"counts": Array((64, spec.outputs), "float64", 0.5, rows="counts")}

    def bind(self, spec, state, touched):
        self.counts, self.touched = state["counts"], touched["counts"]

    def predict(self, x, out):
        counts = self.counts[(x.categories[:, 0] % np.uint64(64)).astype(int)]
        out[:] = counts / counts.sum(1, keepdims=True)

    def learn(self, x, truth):
        for at, y in zip((x.categories[:, 0] % np.uint64(64)).astype(int), truth.y[:, 0], strict=True):
            if not np.isnan(y):
                self.counts[at, int(y)] += 1
                self.touched[at >> 6] = 1


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float | None = None
    colour: str | None = None


class Choice(msgspec.Struct):
    id: str
    time: float
    colour: str


def later(model, **changes):
    """The label comes on a topic of its own."""
    parts = dict(
        name="later",
        events=Events("visits", Visit, key="id", time="time", unit="s"),
        labels=Labels("choices", Choice, key="id", time="time", unit="s", value="colour", classes=COLOURS, within="1h"),
        features=[numeric("price"), category("site")],
        model=StandardScaler() | model,
        predictions=Predictions("scores"),
    )
    return Pipeline(**(parts | changes))


def at_once(model):
    """The label is in the event, and may be missing there."""
    return later(model, name="at-once", labels=Labels(value="colour", classes=COLOURS))


@pytest.fixture(scope="module")
def frames():
    """Visits, one a second, and what was chosen up to half an hour later; each site has its favourite."""
    rng = np.random.default_rng(7)
    n = 1_500
    site = rng.choice(list("abcde"), n)
    favourite = {"a": 0, "b": 1, "c": 2, "d": 1, "e": 0}
    colour = [COLOURS[favourite[s] if rng.random() < 0.7 else rng.integers(3)] for s in site]
    visits = pl.DataFrame({
        "id": [f"v{i}" for i in range(n)], "time": T0 + np.arange(n) + 0.25, "site": site, "price": rng.normal(5, 3, n),
        "colour": [None if i % 10 == 3 else one for i, one in enumerate(colour)],
    })  # fmt: skip
    choices = pl.DataFrame({"id": visits["id"], "time": visits["time"] + rng.uniform(1, 1800, n), "colour": colour})
    return visits, choices.sort("time")


@pytest.mark.parametrize("declare", [later, at_once])
def test_model_that_knows_something_is_better_than_the_baselines(frames, declare):
    visits, choices = frames
    results = declare(BySite()).evaluate(visits, *[choices] if declare is later else [])
    known = 1_500 - (0 if declare is later else visits["colour"].null_count())
    assert results["examples"] == results["labels"] == known
    assert results["log_loss"] < 0.95 * results["log_loss_constant"]
    assert results["log_loss_constant"] < results["log_loss_prior"] < 1.02 * results["log_loss_constant"]
    assert results["accuracy"] > 1.2 * max(results["accuracy_majority"], results["accuracy_no_change"])
    assert "auc" not in results


def test_baseline_in_the_place_of_the_model_gets_the_figures_of_the_baseline(frames):
    results = at_once(Prior(half_life=None)).evaluate(frames[0])
    assert results["log_loss"] == pytest.approx(results["log_loss_prior"], rel=1e-5)
    results = at_once(NoChange()).evaluate(frames[0])
    n = results["labels"]
    assert results["accuracy"] * n - results["accuracy_no_change"] * (n - 1) == pytest.approx(0, abs=1.001)


def test_pipeline_of_the_docs_works(frames, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "learners" / "baselines.md").read_text()
    (tmp_path / "colours.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1))
    results = load_pipeline(str(tmp_path / "colours.py")).evaluate(frames[0])
    assert results["examples"] == 1_350
    assert results["log_loss"] == pytest.approx(results["log_loss_prior"], rel=0.01)


def test_report_shows_each_figure_beside_its_baselines(frames):
    console = Console(width=120)
    with console.capture() as printed:
        console.print(report(at_once(BySite()).evaluate(frames[0])))
    lines = printed.get().splitlines()
    assert [line.strip().split("  ")[-1].strip() for line in lines if "class" in line or "before" in line] == [
        "the share of each class, in hindsight", "the share of each class so far",
        "the most frequent class, in hindsight", "the label before",
    ]  # fmt: skip


def test_label_that_is_no_class_is_a_dead_letter_and_otherwise_may_be_a_class(frames):
    visits, choices = frames
    odd = choices.with_columns(colour=pl.when(pl.col("id") == "v7").then(pl.lit("mauve")).otherwise("colour"))
    labels = Labels(
        "choices",
        Choice,
        key="id",
        time="time",
        unit="s",
        value="colour",
        classes=COLOURS,
        within="1h",
        otherwise="blue",
    )
    results = later(BySite(), labels=labels).evaluate(visits, odd.filter(pl.col("id") != "v8"))
    assert (results["joined"], results["expired"], results["examples"], results["bad_labels"]) == (1_498, 2, 1_500, 1)


def feed(engine, frame, first, count, role="events"):
    rows = frame.slice(first, count).to_dicts()
    records = [Record(first + i, 2 * 10**12, None, msgspec.json.encode(row)) for i, row in enumerate(rows)]
    batch = Decoder(engine.pipeline, role).decode(Slice(role, 0, first, first + count, records))
    done = engine.process(batch, first, first + count)
    assert not done.dead
    return done.predicted.out if done.predicted else None


def test_snapshot_is_served_and_gone_on_from(frames, redis_url, unique):
    visits, choices = frames
    pipeline = later(BySite(), name=unique)
    engine = Engine(pipeline)
    engine.own(0)
    labels = 0
    for first in range(0, 1_000, 100):
        out = feed(engine, visits, first, 100)
        assert out.shape == (100, 3)
        np.testing.assert_allclose(out.sum(1), 1, rtol=1e-6)
        due = int((choices["time"] < T0 + first + 100).sum())
        feed(engine, choices, labels, due - labels, "labels")
        labels = due
    arrays, meta = pack(Standing(engine, Position({("events", 0): 1_000, ("labels", 0): labels}, 0, 0)))
    store = SnapshotStore(redis_url, unique)
    store.publish(arrays, meta, 1, NAN_ALLOWED)
    assert store.load_newest_whole().arrays["partition/0/pending/prediction"].shape[1] == 3

    other = Engine(pipeline)
    other.load(engine.state())
    with SnapshotReader(pipeline, redis_url) as reader:
        served = reader.predict(visits.slice(1_000, 40))
        assert (served.shape, served.dtype) == ((40, 3), np.float32)
        assert reader.predict([]).shape == (0, 3)
    out = feed(engine, visits, 1_000, 40)
    assert served.tobytes() == out.tobytes() == feed(other, visits, 1_000, 40).tobytes()
    for one in (engine, other):
        feed(one, choices, labels, 400, "labels")
        one.finish()
    assert engine.results() == other.results()


CHANGES = """
    labels=Labels(
        parts["labels"].topic, Sale, key="id", time="time", unit="s", within="1h", classes=["no", "yes", 'ne"ver'],
        value=pl.when(pl.col("id").str.ends_with("7")).then(pl.lit('ne"ver'))
              .when(pl.col("sold")).then(pl.lit("yes")).otherwise(pl.lit("no")),
    ),
    features=parts["features"][:3], model=StandardScaler() | Prior(half_life="10m"),
    snapshots=Snapshots("300ms"), latency="20ms", max_cycle_rows=200,
"""


@pytest.mark.parametrize(("options", "end"), [((), "SIGTERM"), (("--plain",), "SIGKILL")], ids=["fast", "plain"])
def test_worker_writes_the_probability_of_each_class_also_after_a_restart(open_shop, visits_and_sales, options, end):
    """What comes out is the same to the byte on both paths: that of the engine over the journal's pieces."""
    shop = open_shop("classes", changes=CHANGES)
    rows = visits_and_sales(11, 1_500)
    half = len(rows) // 2
    events, labels = (sum(role == of for role, _ in rows) for of in ("events", "labels"))
    shop.produce(rows[:half])
    worker = shop.start(*options)
    worker.until(events=500, joined=100, snapshot_version=1)
    assert worker.end(signal.Signals[end]) == (-9 if end == "SIGKILL" else 0)
    assert shop.snapshot() is not None

    shop.produce(rows[half:])
    worker = shop.start(*options)
    figures = worker.until(events=events, labels=labels)
    assert worker.end() == 0, worker.printed
    assert shop.sources() == shop.events()
    engine, expected = shop.by_hand()
    for records in shop.read(shop.scores).values():
        for record in records:
            told = msgspec.json.decode(record.value)
            assert b'"prediction":%b,"model":' % msgspec.json.encode(expected[told["source"]]) in record.value
    assert len({tuple(one.values()) for one in expected.values()}) > 10
    snapshot = shop.snapshot()
    arrays, _ = pack(Standing(engine))
    assert arrays.keys() == snapshot.arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[name], array, name)
    told = engine.results()
    for name in ("log_loss", "log_loss_constant", "log_loss_prior", "accuracy", "accuracy_no_change"):
        assert 0 < figures[name] < 2
        assert snapshot.meta["metrics"][name] == told[name]
    with SnapshotReader(shop.pipeline, shop.redis_url) as reader:
        (served,) = reader.predict([{"id": "x", "time": T0 + 1_500, "site": "a"}])
    counts = snapshot.arrays["shared/model/1/counts"]
    np.testing.assert_allclose(served, counts / counts.sum(), rtol=1e-6)
