"""Learners beside their counterparts elsewhere, in one thread each: `python -m benchmarks.learners [names]`.

A data set that comes with River, repeated to 100,000 rows, is predicted and learned row by row. Printed for each:
examples/s of both, ns a row, and how good the predictions were on the first pass, so that both are seen to do the same.
Ours gets 1,024 rows a call; River gets dicts, which were made before the clock began, and for its adaptive random
forests the first 20,000 rows. The clock is the time of the thread on the CPU: a busy machine slows neither more than
the other. Linear models learn with AdaGrad where their name says nothing else; cells are empty where River has no such
learner.

Other peers run in virtual environments of their own (benchmarks/peers): CapyMOA, whose loop and stream are Java,
Vowpal Wabbit's command line, and deep-river, which learns torch modules row by row. The first two read text: what that
takes is left out of CapyMOA's figure, and is part of Vowpal Wabbit's (benchmarks/in_memory.py compares from bytes to
bytes). deep-river's module has the layers of ours; ours sees besides which numbers are missing, and learns in
micro-batches.

    .venv/bin/python -m benchmarks.learners                            # all, and writes the tables
    .venv/bin/python -m benchmarks.learners gaussian_nb --rows 20000   # printed only
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from benchmarks.run import machine, today, write_section
from benchmarks.throughput import HERE, PEERS, make_environment, pinned, say
from river import (
    datasets,
    dummy,
    ensemble,
    forest,
    linear_model,
    naive_bayes,
    optim,
    preprocessing,
    stats,
    tree,
)

from headrace.models import (
    DCN,
    FTRL,
    MLP,
    AdaGrad,
    Adam,
    AMFClassifier,
    AMFRegressor,
    ARFClassifier,
    ARFRegressor,
    Average,
    Blend,
    Chain,
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
    Rows,
    RunningMean,
    SoftmaxRegression,
    Spec,
    StandardScaler,
    Torch,
    TorchModule,
    Truth,
    allocate,
    allocate_touched,
    as_chain,
    default,
)

CALL = 1_024  # rows
FEW = 20_000  # rows, for what takes River more than half a millisecond each


class Peer(NamedTuple):
    """A learner of another library, by the script in benchmarks/peers that runs it, its name there and its settings."""

    script: str
    learner: str
    settings: Mapping[str, Any] = MappingProxyType({})


class Contest(NamedTuple):
    """A learner of ours, its counterpart of River with the same settings, if any, and the data set they meet on."""

    data: Callable[[], Any]
    ours: Callable[[], Any]
    rivers: Callable[[], Any] | None
    peers: tuple[Peer, ...] = ()
    rows: int | None = None  # the first so many for River's; None: all


LINEAR: dict[str, Any] = {"intercept_lr": 0.01, "base_rate": False}
LAYERS: dict[str, Any] = {"hidden": [64, 32], "lr": 0.001}


def of_torch(module: TorchModule, batch_size: int, *peers: Peer) -> Contest:
    """A module that learns in micro-batches of so many rows."""
    optimizer = Adam(LAYERS["lr"])
    return Contest(
        datasets.Phishing,
        lambda: (
            StandardScaler(half_life=None)
            | Torch(module, optimizer=optimizer, batch_size=batch_size, half_life=None, device="cpu")
        ),
        None,
        peers,
    )


def mlp(batch_size: int) -> Contest:
    """The same beside deep-river's, which learns one by one."""
    return of_torch(MLP(LAYERS["hidden"]), batch_size, Peer("deep_river_learner", "MLP", LAYERS))


def with_loss(rivers: optim.losses.RegressionLoss, intercept_lr: float, loss: str, **parameter: Any) -> Contest:
    """Linear regression with a loss of this name; the step of the intercept suits the loss's slopes."""
    settings = LINEAR | {"intercept_lr": intercept_lr} | parameter
    return Contest(
        datasets.TrumpApproval,
        lambda: StandardScaler(half_life=None) | LinearRegression(AdaGrad(0.1, half_life=None), loss=loss, **settings),
        lambda: (
            preprocessing.StandardScaler()
            | linear_model.LinearRegression(optim.AdaGrad(0.1), loss=rivers, intercept_lr=intercept_lr)
        ),
    )


class Voting(ensemble.VotingClassifier):
    """River's average of probabilities, which says no more than the class it is in favour of."""

    def predict_proba_one(self, x: Any, **options: Any) -> dict[Any, float]:
        return {self.predict_one(x): 1.0}


CONTESTS = {  # add yours
    "logistic_regression": Contest(
        datasets.Phishing,
        lambda: StandardScaler(half_life=None) | LogisticRegression(AdaGrad(0.1, half_life=None), **LINEAR),
        lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.AdaGrad(0.1)),
        (
            Peer("vowpal_wabbit_learner", "its defaults", {"options": []}),
            Peer("vowpal_wabbit_learner", "FTRL", {"options": ["--ftrl"]}),
        ),
    ),
    "linear_regression": Contest(
        datasets.TrumpApproval,
        lambda: StandardScaler(half_life=None) | LinearRegression(AdaGrad(0.1, half_life=None), **LINEAR),
        lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(optim.AdaGrad(0.1)),
    ),
    "logistic_regression_ftrl": Contest(  # River's takes the weights of the row before
        datasets.Phishing,
        lambda: StandardScaler(half_life=None) | LogisticRegression(FTRL(half_life=None), **LINEAR),
        lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.FTRLProximal(0.1, 1.0)),
    ),
    "linear_regression_absolute": with_loss(optim.losses.Absolute(), 1.0, "absolute"),
    "linear_regression_quantile": with_loss(optim.losses.Quantile(0.8), 1.0, "quantile", quantile=0.8),
    "linear_regression_huber": with_loss(optim.losses.Huber(1.0), 1.0, "huber", delta=1.0),
    "linear_regression_poisson": with_loss(optim.losses.Poisson(), 0.01, "poisson"),
    "softmax_regression": Contest(
        datasets.ImageSegments,
        lambda: (
            StandardScaler(half_life=None)
            | SoftmaxRegression(AdaGrad(0.1, half_life=None), base_rate=False, intercept_lr=0.0)
        ),
        lambda: preprocessing.StandardScaler() | linear_model.SoftmaxRegression(optim.AdaGrad(0.1)),
    ),
    "passive_aggressive": Contest(
        datasets.Phishing,
        lambda: StandardScaler(half_life=None) | PAClassifier(),
        lambda: preprocessing.StandardScaler() | linear_model.PAClassifier(),
    ),
    "passive_aggressive_regression": Contest(  # River's takes the distance from 2 y - 1
        datasets.TrumpApproval,
        lambda: StandardScaler(half_life=None) | PARegressor(),
        lambda: preprocessing.StandardScaler() | linear_model.PARegressor(),
    ),
    "prior": Contest(datasets.Phishing, lambda: Prior(start=0.0, half_life=None), dummy.PriorClassifier),
    "running_mean": Contest(
        datasets.TrumpApproval, lambda: RunningMean(half_life=None), lambda: dummy.StatisticRegressor(stats.Mean())
    ),
    "no_change": Contest(datasets.Phishing, lambda: NoChange(eps=0.0), dummy.NoChangeClassifier),
    "gaussian_nb": Contest(
        datasets.Phishing,
        lambda: GaussianNB(half_life=None),
        naive_bayes.GaussianNB,
        (Peer("capymoa_learner", "NaiveBayes"),),
    ),
    "gaussian_nb_7_classes": Contest(
        datasets.ImageSegments, lambda: GaussianNB(half_life=None), naive_bayes.GaussianNB
    ),
    "hoeffding_tree": Contest(
        datasets.Bananas,
        HoeffdingTreeClassifier,
        tree.HoeffdingTreeClassifier,
        (Peer("capymoa_learner", "HoeffdingTree"),),
    ),
    "adaptive_tree": Contest(
        datasets.Bananas,
        HoeffdingAdaptiveTreeClassifier,
        lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0),
        (Peer("capymoa_learner", "HoeffdingAdaptiveTree"),),
    ),
    "regression_tree": Contest(
        datasets.TrumpApproval,
        lambda: StandardScaler(half_life=None) | HoeffdingTreeRegressor(),
        lambda: preprocessing.StandardScaler() | tree.HoeffdingTreeRegressor(),
    ),
    "adaptive_regression_tree": Contest(
        datasets.TrumpApproval,
        lambda: StandardScaler(half_life=None) | HoeffdingAdaptiveTreeRegressor(),
        lambda: preprocessing.StandardScaler() | tree.HoeffdingAdaptiveTreeRegressor(seed=0),
    ),
    "forest": Contest(
        datasets.Bananas,
        ARFClassifier,
        lambda: forest.ARFClassifier(seed=0),
        (Peer("capymoa_learner", "AdaptiveRandomForestClassifier", {"ensemble_size": 10}),),
        FEW,
    ),
    "regression_forest": Contest(
        datasets.TrumpApproval,
        lambda: StandardScaler(half_life=None) | ARFRegressor(),
        lambda: preprocessing.StandardScaler() | forest.ARFRegressor(seed=0),
        rows=FEW,
    ),
    "mondrian_forest": Contest(
        datasets.Bananas,
        lambda: AMFClassifier(split_pure=True),
        lambda: forest.AMFClassifier(split_pure=True, max_nodes=2047, seed=0),
    ),
    "mondrian_regression_forest": Contest(
        datasets.TrumpApproval,
        AMFRegressor,
        lambda: forest.AMFRegressor(max_nodes=2047, seed=0),
    ),
    "average": Contest(
        datasets.Phishing,
        lambda: (
            StandardScaler(half_life=None)
            | Average(
                LogisticRegression(AdaGrad(0.1, half_life=None), **LINEAR),
                HoeffdingTreeClassifier(),
                GaussianNB(half_life=None),
            )
        ),
        lambda: (
            preprocessing.StandardScaler()
            | Voting(
                [
                    linear_model.LogisticRegression(optim.AdaGrad(0.1)),
                    tree.HoeffdingTreeClassifier(),
                    naive_bayes.GaussianNB(),
                ]
            )
        ),
    ),
    "blend": Contest(  # the same learners, and each library's own rule of what they weigh
        datasets.TrumpApproval,
        lambda: (
            StandardScaler(half_life=None)
            | Blend(LinearRegression(AdaGrad(0.1, half_life=None), **LINEAR), HoeffdingTreeRegressor())
        ),
        lambda: (
            preprocessing.StandardScaler()
            | ensemble.EWARegressor(
                [linear_model.LinearRegression(optim.AdaGrad(0.1)), tree.HoeffdingTreeRegressor()],
                optim.losses.Absolute(),
                learning_rate=0.005,
            )
        ),
    ),
    "default_binary": Contest(
        datasets.Bananas, lambda: default("binary"), lambda: forest.ARFClassifier(seed=0), rows=FEW
    ),
    "default_multiclass": Contest(
        datasets.ImageSegments, lambda: default("multiclass"), lambda: forest.ARFClassifier(seed=0), rows=FEW
    ),
    "default_regression": Contest(
        datasets.TrumpApproval,
        lambda: default("regression"),
        lambda: preprocessing.StandardScaler() | tree.HoeffdingAdaptiveTreeRegressor(seed=0),
    ),
    "multinomial_nb": Contest(datasets.Phishing, lambda: MultinomialNB(half_life=None), naive_bayes.MultinomialNB),
    "mlp": mlp(1),
    "mlp_in_batches_of_8": mlp(8),
    "mlp_in_batches_of_32": mlp(32),
    "mlp_in_batches_of_256": mlp(256),
    "dcn_in_batches_of_32": of_torch(DCN(hidden=LAYERS["hidden"]), 32),
    "deep_fm_in_batches_of_32": of_torch(DeepFM(LAYERS["hidden"]), 32),
    "river": Contest(  # the same model twice: what it costs to call it from here
        datasets.Phishing,
        lambda: River(preprocessing.StandardScaler() | linear_model.LogisticRegression()),
        lambda: preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    ),
}


class Data(NamedTuple):
    """A data set once as River takes it and once as ours does."""

    rows: list[dict[str, float]]
    labels: list[Any]
    spec: Spec
    x: Rows
    truth: Truth


def read(dataset: Any, rows: int) -> Data:
    """So many rows of a data set, which begins again when it is at its end."""
    pairs = list(dataset)
    pairs = [pairs[i % len(pairs)] for i in range(rows)]
    labels = [y for _, y in pairs]
    names = tuple(pairs[0][0])
    numeric = np.array([[row[name] for name in names] for row, _ in pairs], np.float32)
    if isinstance(labels[0], bool | str):
        classes = sorted(set(labels))
        y = np.array([classes.index(label) for label in labels], np.float32)
        spec = Spec(names, (), "binary", 1) if len(classes) == 2 else Spec(names, (), "multiclass", len(classes))
    else:
        y, spec = np.array(labels, np.float32), Spec(names, (), "regression", 1)
    x = Rows(numeric, np.zeros((rows, 0), np.uint64))
    return Data([row for row, _ in pairs], labels, spec, x, Truth(y.reshape(-1, 1), np.ones(rows, np.float32)))


def bound(model: Any, spec: Spec) -> Chain:
    """The model as a chain on fresh arrays, compiled."""
    chain = as_chain(model)
    layout = chain.layout(spec)
    chain.bind(spec, allocate(layout), allocate_touched(layout))
    chain.warm_up()
    return chain


def run_ours(model: Any, data: Data) -> tuple[float, np.ndarray]:
    """Seconds on the CPU, and what was predicted: values, or places of classes."""
    chain, rows = bound(model, data.spec), len(data.rows)
    out = np.empty((rows, data.spec.outputs), np.float32)
    numeric, categories, y, weight = *data.x, *data.truth
    began = time.thread_time()
    for lo in range(0, rows, CALL):
        hi = lo + CALL
        chain.test_then_learn(Rows(numeric[lo:hi], categories[lo:hi]), Truth(y[lo:hi], weight[lo:hi]), out[lo:hi])
    seconds = time.thread_time() - began
    if data.spec.task == "binary":
        return seconds, out[:, 0] > 0.5
    return seconds, out[:, 0] if data.spec.task == "regression" else out.argmax(axis=1)


def run_rivers(model: Any, data: Data, rows: int) -> tuple[float, np.ndarray]:
    """Seconds for the first so many rows, and what was predicted, as `run_ours` tells it."""
    predicted = []
    predict = model.predict_one if data.spec.task == "regression" else model.predict_proba_one
    began = time.thread_time()
    for row, label in zip(data.rows[:rows], data.labels[:rows], strict=True):
        predicted.append(predict(row))
        model.learn_one(row, label)
    seconds = time.thread_time() - began
    if data.spec.task == "regression":
        return seconds, np.array([0.0 if value is None else value for value in predicted])  # None: before any label
    classes = sorted(set(data.labels))
    return seconds, np.array([classes.index(max(p, key=p.get)) if p else 0 for p in predicted])


def run_peer(peer: Peer, data: Data, first: int) -> tuple[float, str]:
    """Seconds on the CPU, and how good the first so many predictions were."""
    make_environment(peer.script)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npz"
        np.savez(path, x=data.x.numeric.astype(np.float64), y=data.truth.y[:, 0].astype(np.int64))
        python, script = PEERS / peer.script / "bin" / "python", HERE / "peers" / f"{peer.script}.py"
        told = [str(path), peer.learner, json.dumps(dict(peer.settings)), str(first)]
        done = subprocess.run([str(python), str(script), *told], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{peer.script} ended with status {done.returncode}\n{done.stderr[-3_000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["score"]


def score(predicted: np.ndarray, data: Data, rows: int) -> str:
    """How good the first so many predictions were."""
    y = data.truth.y[:rows, 0]
    if data.spec.task == "regression":
        return f"MAE {np.abs(predicted[:rows] - y).mean():.4f}"
    return f"{100 * (predicted[:rows] == y).mean():.2f} %"


RIVER_HEAD = (
    "| learner | data | examples/s | ns a row | River's | ns a row | as fast | ours | River's |",
    "|---|---|---|---|---|---|---|---|---|",
)
PEERS_HEAD = (
    "| learner | data | examples/s | peer | examples/s | as fast | ours | the peer's |",
    "|---|---|---|---|---|---|---|---|",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="learners beside River's")
    parser.add_argument("names", nargs="*", default=[], help=f"of {', '.join(CONTESTS)}; none: all")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="of ours, the fastest counts; River runs once")
    options = parser.parse_args()
    for name in set(options.names) - CONTESTS.keys():
        parser.error(f"no learner is named {name!r}; known are {', '.join(CONTESTS)}")

    lines, beside = [], []  # of River, of other peers
    ran: dict[str, tuple[float, str]] = {}  # a peer of several contests runs once
    names = options.names or list(CONTESTS)
    for name in names:
        dataset, ours, rivers, peers, few = CONTESTS[name]
        data = read(dataset(), options.rows)
        runs = [run_ours(ours(), data) for _ in range(options.rounds)]
        seconds, predicted = min(runs, key=lambda run: run[0])
        first = min(options.rows, dataset().n_samples)
        where = f"{dataset.__name__}, {len(data.spec.numeric)} numbers"
        each = seconds / options.rows
        if rivers is not None:
            rows = min(few or options.rows, options.rows)
            their_seconds, theirs = run_rivers(rivers(), data, rows)
            theirs_each = their_seconds / rows
            rates = " | ".join(f"{1 / s:,.0f} | {s * 1e9:,.0f}" for s in (each, theirs_each))
            scores = f"{score(predicted, data, first)} | {score(theirs, data, first)}"
            lines.append(f"| {name} | {where} | {rates} | {theirs_each / each:,.0f} times | {scores} |")
            say(lines[-1])
        elif not peers:
            rates = f"{1 / each:,.0f} | {each * 1e9:,.0f}"
            lines.append(f"| {name} | {where} | {rates} |  |  |  | {score(predicted, data, first)} |  |")
            say(lines[-1])
        for peer in peers:
            of = repr((dataset, peer))
            ran[of] = ran[of] if of in ran else run_peer(peer, data, first)
            peers_seconds, peers_score = ran[of]
            beside.append(
                f"| {name} | {where} | {options.rows / seconds:,.0f} | {peer.learner} of {pinned(peer.script)} "
                f"| {options.rows / peers_seconds:,.0f} | {peers_seconds / seconds:.1f} times "
                f"| {score(predicted, data, first)} | {peers_score} |"
            )
            say(beside[-1])
    if lines:
        lines = [*RIVER_HEAD, *lines, ""]
    if beside:
        lines += [*PEERS_HEAD, *beside, ""]
    lines.append(f"{today()}, {machine()}; {options.rows:,} rows, {options.rounds} rounds; time on the CPU.")
    print("\n" + "\n".join(lines))
    if not options.names:
        write_section("learners", "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
