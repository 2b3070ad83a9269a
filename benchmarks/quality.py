"""How well each learner does, beside its counterpart in River and beside the baselines: progressive validation.

Every row is predicted before it is learned; on River's own data sets, which come with it, and on the flights of 2013
with their labels at their true delays. River's learners get the same rows in the same order, with River's own metrics.

    python -m benchmarks.quality [--only Bananas]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
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
    forest,
    linear_model,
    metrics,
    naive_bayes,
    optim,
    preprocessing,
    stats,
    tree,
)

from headrace import Events, Labels, Pipeline, Predictions, category, numeric
from headrace.models import (
    FTRL,
    MLP,
    SGD,
    ARFClassifier,
    ARFRegressor,
    GaussianNB,
    HoeffdingAdaptiveTreeClassifier,
    HoeffdingAdaptiveTreeRegressor,
    HoeffdingTreeClassifier,
    HoeffdingTreeRegressor,
    LinearRegression,
    LogisticRegression,
    NoChange,
    PAClassifier,
    PARegressor,
    Prior,
    River,
    RunningMean,
    SoftmaxRegression,
    StandardScaler,
    Torch,
    default,
)
from headrace.stream import flights


class Table(NamedTuple):
    """One data set: what it asks for, and its rows."""

    name: str
    task: str
    rows: Callable[[], Iterable[tuple[dict[str, Any], Any]]]


class Pair(NamedTuple):
    """A learner of ours and its counterpart in River; None where River has none."""

    name: str
    ours: Callable[[], Any]
    river: Callable[[], Any] | None


def _flares() -> Iterable[tuple[dict[str, Any], Any]]:
    """The first of the three counts of flares."""
    return ((x, y["c-class-flares"]) for x, y in datasets.SolarFlare())


TABLES = (
    Table("Bananas", "binary", datasets.Bananas),
    Table("Phishing", "binary", datasets.Phishing),
    Table("Shuttle", "binary", datasets.Shuttle),
    Table("ImageSegments", "multiclass", datasets.ImageSegments),
    Table("ChickWeights", "regression", datasets.ChickWeights),
    Table("TrumpApproval", "regression", datasets.TrumpApproval),
    Table("SolarFlare", "regression", _flares),
)


def scaled(model: Any) -> Any:
    """A model of River behind what it needs: texts as indicators, numbers standardised."""
    texts = compose.SelectType(str) | preprocessing.OneHotEncoder()
    return texts + (compose.SelectType(int, float) | preprocessing.StandardScaler()) | model


def ours_scaled(model: Any) -> Any:
    return StandardScaler(half_life=None) | model


PAIRS = {
    "binary": (
        Pair("models.default", lambda: default("binary"), None),
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
        Pair("passive-aggressive", lambda: ours_scaled(PAClassifier()), lambda: scaled(linear_model.PAClassifier())),
        Pair(
            "River's own logistic", lambda: River(scaled(linear_model.LogisticRegression())),
            lambda: scaled(linear_model.LogisticRegression()),
        ),
        Pair("Gaussian naive Bayes", GaussianNB, naive_bayes.GaussianNB),
        Pair("Hoeffding tree", HoeffdingTreeClassifier, tree.HoeffdingTreeClassifier),
        Pair("MLP, steps of 4", lambda: ours_scaled(Torch(MLP(), batch_size=4)), None),
        Pair("adaptive tree", HoeffdingAdaptiveTreeClassifier, lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0)),
        Pair("adaptive random forest", ARFClassifier, lambda: forest.ARFClassifier(seed=0)),
    ),
    "multiclass": (
        Pair("models.default", lambda: default("multiclass"), None),
        Pair("prior", Prior, dummy.PriorClassifier),
        Pair("no change", NoChange, dummy.NoChangeClassifier),
        Pair("softmax, FTRL", lambda: ours_scaled(SoftmaxRegression(FTRL(half_life=None))), None),
        Pair(
            "softmax, SGD(.01)", lambda: ours_scaled(SoftmaxRegression(SGD(0.01), base_rate=False, intercept_lr=0.0)),
            lambda: scaled(linear_model.SoftmaxRegression(optim.SGD(0.01))),
        ),
        Pair("Gaussian naive Bayes", GaussianNB, naive_bayes.GaussianNB),
        Pair("Hoeffding tree", HoeffdingTreeClassifier, tree.HoeffdingTreeClassifier),
        Pair("MLP, steps of 4", lambda: ours_scaled(Torch(MLP(), batch_size=4)), None),
        Pair("adaptive tree", HoeffdingAdaptiveTreeClassifier, lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0)),
        Pair("adaptive random forest", ARFClassifier, lambda: forest.ARFClassifier(seed=0)),
    ),
    "regression": (
        Pair("models.default", lambda: default("regression"), None),
        Pair("running mean", RunningMean, lambda: dummy.StatisticRegressor(stats.Mean())),
        Pair("no change", NoChange, None),
        Pair("linear, FTRL", lambda: ours_scaled(LinearRegression(FTRL(alpha=1.0, half_life=None))), None),
        Pair(
            "linear, SGD(.01)",
            lambda: ours_scaled(LinearRegression(SGD(0.01), base_rate=False, intercept_lr=0.01)),
            lambda: scaled(linear_model.LinearRegression(optim.SGD(0.01))),
        ),
        Pair("passive-aggressive", lambda: ours_scaled(PARegressor()), lambda: scaled(linear_model.PARegressor())),
        Pair(
            "Hoeffding tree", lambda: ours_scaled(HoeffdingTreeRegressor()),
            lambda: scaled(tree.HoeffdingTreeRegressor()),
        ),
        Pair("MLP, steps of 4", lambda: ours_scaled(Torch(MLP(), batch_size=4)), None),
        Pair(
            "adaptive tree", lambda: ours_scaled(HoeffdingAdaptiveTreeRegressor()),
            lambda: scaled(tree.HoeffdingAdaptiveTreeRegressor(seed=0)),
        ),
        Pair(
            "adaptive random forest", lambda: ours_scaled(ARFRegressor()),
            lambda: scaled(forest.ARFRegressor(seed=0)),
        ),
    ),
}  # fmt: skip


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


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=[table.name for table in TABLES], help="one data set, printed only")
    chosen = arguments.parse_args()
    lines = ["| data | learner | headrace | River |", "|---|---|---|---|"]
    for table in TABLES:
        if chosen.only not in (None, table.name):
            continue
        what = "mean absolute error" if table.task == "regression" else "accuracy"
        for pair in PAIRS[table.task]:
            mine = ours(pair.ours(), table)
            theirs = "" if pair.river is None else f"{rivers(pair.river(), table):.4f}"
            lines.append(f"| {table.name}, {what} | {pair.name} | {mine:.4f} | {theirs} |")
            say(lines[-1])
    if chosen.only:
        return 0
    departures, arrivals = flights.departures(), flights.arrivals()
    for name, model in (
        ("the pipeline of examples/flights.py", flights_pipeline.model),
        ("prior", Prior()),
        ("no change", NoChange()),
    ):
        results = replace(flights_pipeline, model=model).evaluate(departures, arrivals)
        lines.append(f"| flights, log loss | {name} | {results['log_loss']:.4f} | |")
        say(lines[-1])
    lines += ["", f"{today()}, {machine()}. Labels of the flights come at their true delays."]
    write_section("quality", "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
