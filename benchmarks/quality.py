"""How well each learner does, beside its counterpart in River and beside the baselines: progressive validation.

Every row is predicted before it is learned; on River's own data sets, which come with it, and on the flights of 2013
with their labels at their true delays. River's learners get the same rows in the same order, with River's own metrics;
on the flights they stand in our pipeline, since River has neither aggregates nor labels that come later.

A first table sets `models.default` of each task against the best of River's learners in the same run.

    python -m benchmarks.quality                 # writes both tables into benchmarks/README.md
    python -m benchmarks.quality --only Bananas  # printed only
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import polars as pl
from benchmarks.run import machine, today, write_section
from benchmarks.throughput import say
from examples.flights import pipeline as flights_pipeline
from river import (
    compose,
    datasets,
    dummy,
    ensemble,
    forest,
    linear_model,
    metrics,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    stats,
    tree,
)

from headrace import Events, Labels, Pipeline, Predictions, category, numeric
from headrace.models import (
    DCN,
    FTRL,
    MLP,
    SGD,
    AdaGrad,
    AMFClassifier,
    AMFRegressor,
    ARFClassifier,
    ARFRegressor,
    DeepFM,
    GaussianNB,
    HoeffdingAdaptiveTreeClassifier,
    HoeffdingAdaptiveTreeRegressor,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    LinearRegression,
    LogisticRegression,
    MultinomialNB,
    NoChange,
    PAClassifier,
    PARegressor,
    Prior,
    River,
    RunningMean,
    SoftmaxRegression,
    StandardScaler,
    Torch,
    TorchModule,
    default,
)
from headrace.stream import flights


class Table(NamedTuple):
    """One data set: what it asks for, and its rows."""

    name: str
    task: str
    rows: Callable[[], Iterable[tuple[dict[str, Any], Any]]]


class Pair(NamedTuple):
    """A learner of ours and its counterpart in River; None where there is none."""

    name: str
    ours: Callable[[], Any] | None
    river: Callable[[], Any] | None
    only: tuple[str, ...] = ()  # the tables whose rows it can take; empty: all


class Result(NamedTuple):
    """Of a pair on one table: accuracies, absolute errors or log losses."""

    table: str
    measure: str
    pair: Pair
    ours: float | None
    river: float | None


DEFAULT = "models.default"
BASELINES = ("prior", "running mean", "no change")
SHUTTLE = 10_000  # rows: River's ensembles take a millisecond or two for each


def _flares() -> Iterable[tuple[dict[str, Any], Any]]:
    """The first of the three counts of flares."""
    return ((x, y["c-class-flares"]) for x, y in datasets.SolarFlare())


TABLES = (
    Table("Bananas", "binary", datasets.Bananas),
    Table("Phishing", "binary", datasets.Phishing),
    Table("Shuttle", "binary", lambda: islice(datasets.Shuttle(), SHUTTLE)),
    Table("ImageSegments", "multiclass", datasets.ImageSegments),
    Table("ChickWeights", "regression", datasets.ChickWeights),
    Table("TrumpApproval", "regression", datasets.TrumpApproval),
    Table("SolarFlare", "regression", _flares),
)


def scaled(model: Any) -> Any:
    """A model of River behind what it needs: texts as indicators, numbers standardised."""
    texts = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return texts + (compose.SelectType(int, float) | preprocessing.StandardScaler()) | model


def coded(model: Any) -> Any:
    """A model of River that takes numbers as they are, with texts as indicators."""
    texts = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return texts + compose.SelectType(int, float) | model


def ours_scaled(model: Any) -> Any:
    return StandardScaler(half_life=None) | model


def linear(name: str, rivers: optim.losses.RegressionLoss, intercept_lr: float, loss: str, **parameter: Any) -> Pair:
    """Linear regression with AdaGrad and a loss of this name; the step of the intercept suits the loss's slopes."""
    settings = {"loss": loss, "intercept_lr": intercept_lr, "base_rate": False, **parameter}
    return Pair(
        name,
        lambda: ours_scaled(LinearRegression(AdaGrad(0.1, half_life=None), **settings)),
        lambda: scaled(linear_model.LinearRegression(optim.AdaGrad(0.1), loss=rivers, intercept_lr=intercept_lr)),
    )


def of_torch(batch_size: int) -> Iterable[Pair]:
    """The ready modules, of which River has no counterpart, in steps of so many rows."""
    for module in (MLP, DCN, DeepFM):
        yield Pair(f"{module.__name__}, steps of {batch_size}", partial(_torch, module, batch_size), None)


def _torch(module: Callable[[], TorchModule], batch_size: int) -> Any:
    return ours_scaled(Torch(module(), batch_size=batch_size))


# The best of River's own benchmark on some data set of this kind, as River declares them there
PEERS_OF_CLASSES = (
    Pair("aggregated Mondrian forest", AMFClassifier, lambda: coded(forest.AMFClassifier(seed=42))),
    Pair("k nearest neighbours", None, lambda: scaled(neighbors.KNNClassifier())),
    Pair("streaming random patches", None, lambda: coded(ensemble.SRPClassifier(n_models=10, seed=42))),
    Pair(
        "leveraging bagging", None,
        lambda: coded(ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), seed=42)),
    ),
)  # fmt: skip
PEERS_OF_VALUES = (
    Pair("aggregated Mondrian forest", AMFRegressor, lambda: coded(forest.AMFRegressor(seed=42))),
    Pair("k nearest neighbours", None, lambda: scaled(neighbors.KNNRegressor())),
    Pair("streaming random patches", None, lambda: coded(ensemble.SRPRegressor(n_models=10, seed=42))),
)

PAIRS = {
    "binary": (
        Pair(DEFAULT, lambda: default("binary"), None),
        Pair("prior", Prior, dummy.PriorClassifier),
        Pair("no change", NoChange, dummy.NoChangeClassifier),
        Pair(
            "logistic, FTRL", lambda: ours_scaled(LogisticRegression(FTRL(half_life=None))),
            lambda: scaled(linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1, beta=1.0))),
        ),
        Pair(
            "logistic, SGD(.005)",
            lambda: ours_scaled(LogisticRegression(SGD(0.005), base_rate=False, intercept_lr=0.01)),
            lambda: scaled(linear_model.LogisticRegression(optim.SGD(0.005))),
        ),
        Pair(
            "logistic, AdaGrad",
            lambda: ours_scaled(LogisticRegression(AdaGrad(0.1, half_life=None), base_rate=False, intercept_lr=0.01)),
            lambda: scaled(linear_model.LogisticRegression(optim.AdaGrad(0.1))),
        ),
        Pair("passive-aggressive", lambda: ours_scaled(PAClassifier()), lambda: scaled(linear_model.PAClassifier())),
        Pair(
            "River's own logistic", lambda: River(scaled(linear_model.LogisticRegression())),
            lambda: scaled(linear_model.LogisticRegression()),
        ),
        Pair("Gaussian naive Bayes", GaussianNB, naive_bayes.GaussianNB),
        Pair(  # counts of tokens: the other tables have numbers below zero
            "multinomial naive Bayes", lambda: MultinomialNB(half_life=None), naive_bayes.MultinomialNB, ("Phishing",)
        ),
        Pair("Hoeffding tree", HoeffdingTreeClassifier, tree.HoeffdingTreeClassifier),
        *of_torch(4),
        Pair("adaptive tree", HoeffdingAdaptiveTreeClassifier, lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0)),
        Pair("adaptive random forest", ARFClassifier, lambda: forest.ARFClassifier(seed=0)),
        *PEERS_OF_CLASSES,
    ),
    "multiclass": (
        Pair(DEFAULT, lambda: default("multiclass"), None),
        Pair("prior", Prior, dummy.PriorClassifier),
        Pair("no change", NoChange, dummy.NoChangeClassifier),
        Pair("softmax, FTRL", lambda: ours_scaled(SoftmaxRegression(FTRL(half_life=None))), None),
        Pair(
            "softmax, SGD(.01)", lambda: ours_scaled(SoftmaxRegression(SGD(0.01), base_rate=False, intercept_lr=0.0)),
            lambda: scaled(linear_model.SoftmaxRegression(optim.SGD(0.01))),
        ),
        Pair(
            "softmax, AdaGrad",
            lambda: ours_scaled(SoftmaxRegression(AdaGrad(0.1, half_life=None), base_rate=False, intercept_lr=0.0)),
            lambda: scaled(linear_model.SoftmaxRegression(optim.AdaGrad(0.1))),
        ),
        Pair("Gaussian naive Bayes", GaussianNB, naive_bayes.GaussianNB),
        Pair("Hoeffding tree", HoeffdingTreeClassifier, tree.HoeffdingTreeClassifier),
        *of_torch(4),
        Pair("adaptive tree", HoeffdingAdaptiveTreeClassifier, lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0)),
        Pair("adaptive random forest", ARFClassifier, lambda: forest.ARFClassifier(seed=0)),
        *PEERS_OF_CLASSES,
    ),
    "regression": (
        Pair(DEFAULT, lambda: default("regression"), None),
        Pair("running mean", RunningMean, lambda: dummy.StatisticRegressor(stats.Mean())),
        Pair("no change", NoChange, None),
        Pair("linear, FTRL", lambda: ours_scaled(LinearRegression(FTRL(alpha=1.0, half_life=None))), None),
        Pair(
            "linear, SGD(.01)",
            lambda: ours_scaled(LinearRegression(SGD(0.01), base_rate=False, intercept_lr=0.01)),
            lambda: scaled(linear_model.LinearRegression(optim.SGD(0.01))),
        ),
        linear("linear, AdaGrad", optim.losses.Squared(), 0.1, "squared"),
        linear("linear, absolute loss", optim.losses.Absolute(), 1.0, "absolute"),
        linear("linear, quantile .8", optim.losses.Quantile(0.8), 1.0, "quantile", quantile=0.8),
        linear("linear, Huber's loss", optim.losses.Huber(1.0), 1.0, "huber", delta=1.0),
        linear("linear, Poisson's loss", optim.losses.Poisson(), 0.001, "poisson"),
        Pair("passive-aggressive", lambda: ours_scaled(PARegressor()), lambda: scaled(linear_model.PARegressor())),
        Pair(
            "Hoeffding tree", lambda: ours_scaled(HoeffdingTreeRegressor()),
            lambda: scaled(tree.HoeffdingTreeRegressor()),
        ),
        *of_torch(4),
        Pair(
            "adaptive tree", lambda: ours_scaled(HoeffdingAdaptiveTreeRegressor()),
            lambda: scaled(tree.HoeffdingAdaptiveTreeRegressor(seed=0)),
        ),
        Pair(
            "adaptive random forest", lambda: ours_scaled(ARFRegressor()),
            lambda: scaled(forest.ARFRegressor(seed=0)),
        ),
        *PEERS_OF_VALUES,
    ),
}  # fmt: skip

FLIGHTS = (
    Pair(DEFAULT, lambda: default("binary"), None),
    Pair("prior", Prior, None),
    Pair("no change", NoChange, None),
    Pair("the model of examples/flights.py", lambda: flights_pipeline.model, None),
    Pair(
        "logistic, FTRL", lambda: ours_scaled(LogisticRegression(FTRL(half_life=None))),
        lambda: River(scaled(linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.1, beta=1.0)))),
    ),
    Pair(
        "logistic, SGD(.005)",
        lambda: ours_scaled(LogisticRegression(SGD(0.005), base_rate=False, intercept_lr=0.01)),
        lambda: River(scaled(linear_model.LogisticRegression(optim.SGD(0.005)))),
    ),
    *of_torch(32),
    Pair("Gaussian naive Bayes", GaussianNB, None),
    Pair("Hoeffding tree", HoeffdingTreeClassifier, None),
    Pair("adaptive tree", HoeffdingAdaptiveTreeClassifier, None),
    Pair("adaptive random forest", ARFClassifier, None),
    Pair("aggregated Mondrian forest", AMFClassifier, None),
)  # fmt: skip


def ours(model: Any, table: Table) -> float:
    """The accuracy, or the mean absolute error, of a pipeline over the rows."""
    rows = list(table.rows())
    fields = {name: f"f{i}" for i, name in enumerate(rows[0][0])}
    texts = {name for name, value in rows[0][0].items() if isinstance(value, str)}
    label = {"binary": bool, "multiclass": str, "regression": float}[table.task]
    kinds = [(field, str if name in texts else float) for name, field in fields.items()]
    schema = msgspec.defstruct("Row", [("id", str), *kinds, ("y", label)])
    events = pl.DataFrame(
        [
            {"id": str(i), **{fields[n]: v if n in texts else float(v) for n, v in x.items()}, "y": label(y)}
            for i, (x, y) in enumerate(rows)
        ],
        infer_schema_length=None,
    )
    classes = sorted({y for _, y in rows}) if table.task == "multiclass" else None
    pipeline = Pipeline(
        name="quality",
        events=Events("rows", schema, key="id"),
        labels=Labels(value="y", classes=classes),
        features=[category(field) if name in texts else numeric(field) for name, field in fields.items()],
        model=model,
        predictions=Predictions("predictions"),
    )
    results = pipeline.evaluate(events)
    return float(results["mae" if table.task == "regression" else "accuracy"])


def rivers(model: Any, table: Table) -> float:
    """The same of a model of River."""
    metric = metrics.MAE() if table.task == "regression" else metrics.Accuracy()
    for x, y in table.rows():
        predicted = model.predict_one(x)
        if predicted is not None:
            metric.update(y, predicted)
        model.learn_one(x, y)
    return float(metric.get())


def measured(table: Table) -> Iterable[Result]:
    """Each pair of the table's task, one after another."""
    measure = "mean absolute error" if table.task == "regression" else "accuracy"
    for pair in PAIRS[table.task]:
        if pair.only and table.name not in pair.only:
            continue
        mine = None if pair.ours is None else ours(pair.ours(), table)
        theirs = None if pair.river is None else rivers(pair.river(), table)
        yield Result(table.name, measure, pair, mine, theirs)


def of_the_flights() -> Iterable[Result]:
    """Learners of ours, and two of River's, in the pipeline of examples/flights.py."""
    departures, arrivals = flights.departures(), flights.arrivals()

    def log_loss(model: Any) -> float:
        return float(replace(flights_pipeline, model=model).evaluate(departures, arrivals)["log_loss"])

    for pair in FLIGHTS:
        mine, theirs = (None if make is None else log_loss(make()) for make in (pair.ours, pair.river))
        yield Result("flights", "log loss", pair, mine, theirs)


def row(result: Result) -> str:
    mine, theirs = ("" if value is None else f"{value:.4f}" for value in (result.ours, result.river))
    return f"| {result.table}, {result.measure} | {result.pair.name} | {mine} | {theirs} |"


def beside(results: list[Result]) -> list[str]:
    """The default of each task, and the best there is beside it: of River's in this run, and of the baselines."""
    lines = [
        "| data | `models.default` | River's best here | best baseline |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.table for result in results):
        own = [result for result in results if result.table == name]
        best = max if own[0].measure == "accuracy" else min

        def told(found: list[tuple[float, str]], best: Callable[..., Any] = best) -> str:
            value, who = best(found)
            return f"{value:.4f}, {who}"

        learners = [r for r in own if r.pair.name not in (*BASELINES, DEFAULT)]
        theirs = [(r.river, r.pair.name) for r in learners if r.river is not None]
        baselines = [(r.ours, r.pair.name) for r in own if r.pair.name in BASELINES and r.ours is not None]
        mine = next(r.ours for r in own if r.pair.name == DEFAULT)
        lines.append(f"| {name}, {own[0].measure} | {mine:.4f} | {told(theirs)} | {told(baselines)} |")
    return lines


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(table.name for table in TABLES), "flights"]
    arguments.add_argument("--only", choices=names, help="one data set, printed only")
    chosen = arguments.parse_args()
    sources = {table.name: partial(measured, table) for table in TABLES} | {"flights": of_the_flights}
    results: list[Result] = []
    began = time.process_time()
    for name in [chosen.only] if chosen.only else names:
        for result in sources[name]():
            results.append(result)
            say(row(result))
    summary = beside(results)
    say("\n".join(summary))
    if chosen.only:
        return 0
    minutes = (time.process_time() - began) / 60
    libraries = ", ".join(f"{name} {version(name)}" for name in ("river", "numba", "numpy", "polars", "torch"))
    written = (
        f"{today()}, {machine()}; `python -m benchmarks.quality`, {minutes:.0f} minutes of CPU. headrace "
        f"{version('headrace')} on Python {platform.python_version()} with {libraries}. Of Shuttle the first "
        f"{SHUTTLE:,} rows. Labels of the flights come at their true delays."
    )
    header = ["| data | learner | headrace | River |", "|---|---|---|---|"]
    lines = [*summary, "", *header, *map(row, results), "", written]
    write_section("quality", "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
