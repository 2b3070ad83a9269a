"""A quantile or Poisson regression is shown, served and told of by its own loss; labels below 0 are counted."""

import re
import signal
from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from engine_run import SIDE, T0, Click, Run, assert_same
from rich.console import Console

from headrace import Best, Events, Labels, Pipeline, Predictions, SnapshotError, numeric
from headrace.models import FTRL, SGD, LinearRegression, RunningMean, StandardScaler
from headrace.stream.contest import say_losses
from headrace.stream.engine import Engine
from headrace.stream.evaluate_report import report
from headrace.stream.load import load_pipeline
from headrace.stream.remap import carry_over
from headrace.stream.shared import EngineState
from headrace.stream.snapshot import unpack

HIGH = LinearRegression(FTRL(1.0), loss="quantile", quantile=0.9, bits=6)
LOW = LinearRegression(SGD(1e-12), loss="quantile", quantile=0.9, base_rate=False, bits=6)  # says 0 for ever
MEDIAN = LinearRegression(FTRL(1.0), loss="absolute", bits=6)
RATE = StandardScaler() | LinearRegression(FTRL(0.05), loss="poisson", bits=6)


def declared(**changes):
    fields = dict(
        name="measured",
        events=Events("clicks", Click, **SIDE),
        labels=Labels(value=pl.col("price")),
        features=[numeric((pl.col("time") // 3600) % 2, name="hour")],
        predictions=Predictions("scores"),
    )
    return Pipeline(**(fields | changes))


@cache
def clicks(rows=1500):
    """With labels whose median and .9 quantile lie far apart."""
    price = np.random.default_rng(1).lognormal(1, 1, rows).round(2)
    return pl.DataFrame({
        "id": [str(i) for i in range(rows)], "time": T0 + 60.0 * np.arange(rows), "site": ["a"] * rows,
        "price": price,
    })  # fmt: skip


def text_of(results):
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report(results))
    return console.export_text()


def losses_of(models, **changes):
    results = declared(models=models, **changes).evaluate(clicks())
    return results, results["models"]


def test_evaluate_shows_the_pinball_loss_beside_its_baselines():
    results = declared(model=HIGH).evaluate(clicks())
    assert results["pinball_constant"] < results["pinball"] < results["pinball_running_mean"]
    assert results["mae"] > results["mae_constant"]  # by which a good quantile looks bad
    (shown,) = re.findall(r"mean pinball loss +(\S+) +(\S+) +the quantile, in hindsight", text_of(results))
    assert shown == tuple(f"{results[name]:.4f}" for name in ("pinball", "pinball_constant"))
    plain = declared(model=MEDIAN).evaluate(clicks())
    assert "pinball" not in plain and "pinball" not in text_of(plain)


def test_evaluate_shows_the_deviance_and_how_many_labels_were_below_zero():
    rows = clicks().with_columns(price=pl.when(pl.col("time") % 660 < 60).then(-1).otherwise(pl.col("price").floor()))
    below = int((rows["price"] < 0).sum())
    results = declared(model=RATE).evaluate(rows)
    assert results["labels_below_zero"] == below > 100
    assert results["poisson_deviance_constant"] > 0
    text = text_of(results)
    assert re.search(rf"labels below zero +{below} +labels below 0, of which a Poisson", text)
    assert re.search(rf"mean Poisson deviance +{results['poisson_deviance']:.4f} ", text)
    assert "below zero" not in text_of(declared(model=RATE).evaluate(clicks()))


def test_models_are_compared_by_the_loss_of_the_first():
    models = {"low": LOW, "median": MEDIAN, "high": HIGH, "mean": RunningMean()}
    results, told = losses_of(models, serve=Best("6h"))
    assert [name for name, of in told.items() if of["serves"]] == ["high"]
    assert told["high"]["pinball"] == min(of["pinball"] for of in told.values())
    assert told["high"]["pinball"] == declared(model=HIGH).evaluate(clicks())["pinball"]
    assert told["median"]["mae"] == min(of["mae"] for of in told.values())
    assert f"high {told['high']['pinball']:.4f} (serves)" in say_losses(told)
    assert len(re.findall(r"mean pinball loss +(?:\S+ +){6}the quantile", text_of(results))) == 1

    results, told = losses_of({"mean": RunningMean(), "median": MEDIAN, "high": HIGH}, serve=Best("6h"))
    assert [name for name, of in told.items() if of["serves"]] == ["median"]
    assert "pinball" not in told["high"] and "pinball" not in results


def test_rates_compete_by_their_deviance():
    zero = LinearRegression(SGD(1e-12), base_rate=False, bits=6)  # as a rate it is worth nothing
    _, told = losses_of({"rate": RATE, "zero": zero}, serve=Best("6h"))
    assert told["rate"]["serves"] and told["rate"]["poisson_deviance"] < told["zero"]["poisson_deviance"]
    assert "labels_below_zero" not in told["rate"]


def run(pipeline, rows, load=None):
    made = Run(pipeline)
    if load is not None:
        made.engine.load(carry_over(load, made.engine)[0])
    made.feed("events", rows)
    return made


def copied(run, leave_out=()):
    state = run.engine.state()
    shared = {name: array.copy() for name, array in state.shared.items() if name.rpartition("/")[2] not in leave_out}
    return EngineState(shared, {p: dict(arrays) for p, arrays in state.partitions.items()}, state.meta)


@pytest.mark.parametrize("made", [{"model": RATE}, {"models": {"rate": RATE, "mean": RunningMean()}}])
def test_counts_and_losses_go_on_from_a_snapshot_and_begin_anew_from_one_of_before(made):
    rows = clicks(400).with_columns(price=pl.col("price").floor() - 1).to_dicts()
    pipeline = declared(**made)
    first = run(pipeline, rows[:300])
    begun, below = copied(first), first.engine.counters()["labels_below_zero"]
    older = copied(first, leave_out=("labels_below_zero", "poisson_deviance"))
    assert len(older.shared) < len(begun.shared) and below > 20
    first.feed("events", rows[300:])
    assert_same(run(pipeline, rows[300:], begun), first)
    again = run(pipeline, rows[300:], older)
    whole, since = first.engine.results(), again.engine.results()
    assert again.engine.counters()["labels_below_zero"] == first.engine.counters()["labels_below_zero"] - below
    assert since["mae"] == whole["mae"] and since["poisson_deviance"] != whole["poisson_deviance"]
    broken = copied(first, leave_out=("base_mean",))
    with pytest.raises(SnapshotError, match=r"base_mean.*got nothing"):
        Engine(pipeline).load(broken)


def test_losses_of_another_quantile_begin_anew():
    rows = clicks(400).to_dicts()
    begun = copied(run(declared(model=HIGH), rows[:300]))
    other = run(declared(model=replace(HIGH, quantile=0.2)), rows[300:], begun).engine.results()
    assert other["labels"] == 400 and other["pinball_constant"] is None
    assert 0 < other["pinball"] < other["mae"]


RATES = """
from headrace.models import LinearRegression

models = {"rate": StandardScaler() | LinearRegression(loss="poisson", bits=8), "mean": LinearRegression(bits=8)}
value = pl.when(pl.col("time") % 20 < 1).then(-1.0).otherwise(pl.col("time") % 5)
changes = dict(
    latency="20ms", max_cycle_rows=200, snapshots=Snapshots("300ms"), model=None, models=models,
    labels=replace(parts["labels"], value=value),
)
pipeline = Pipeline(**(parts | changes))
app = pipeline.app
"""


def test_killed_worker_shows_the_same_counts_and_losses(open_shop, visits_and_sales):
    shop = open_shop("rates", partitions=2)
    shop.file.write_text(shop.file.read_text() + "\nfrom dataclasses import replace\n" + RATES)
    shop.pipeline = load_pipeline(str(shop.file))
    rows = visits_and_sales(5, 3_000)
    shop.produce(rows)
    worker = shop.start()
    worker.until(snapshot_version=1, events=1_000)
    assert worker.end(signal.SIGKILL) == -9
    again = shop.start()
    again.until(events=3_000, labels=sum(role == "labels" for role, _ in rows))
    _, page = again.page("/metrics")
    shown = again.metrics()
    assert again.end() == 0
    engine, _ = shop.by_hand()
    below = engine.counters()["labels_below_zero"]
    assert shown["labels_below_zero"] == below > 50
    assert "# TYPE headrace_labels_below_zero_total counter\n" in page
    assert shown["poisson_deviance"] == pytest.approx(engine.results()["poisson_deviance"], rel=1e-12)
    for name, told in engine.results_of_models().items():
        assert shown[f'model_poisson_deviance{{model="{name}"}}'] == pytest.approx(told["poisson_deviance"], rel=1e-12)
    snapshot = shop.snapshot()
    found, _ = unpack(snapshot.arrays, snapshot.meta, shop.pipeline)
    for name, array in engine.state().shared.items():
        np.testing.assert_array_equal(found.shared[name], array, name)
