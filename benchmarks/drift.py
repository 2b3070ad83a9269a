"""What it is worth to listen for drift: loss curves with and without, as benchmarks/drift.png, and a table.

Three synthetic streams whose truth changes abruptly, gradually, or to and fro; the same learner on each, alone, and
with detectors that boost it or reset it.

    python -m benchmarks.drift [--events 60000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib
import msgspec
import numpy as np
import polars as pl
from benchmarks.run import machine, today, write_section
from numpy.typing import NDArray

from headrace import Events, Labels, Pipeline, Predictions, numeric
from headrace.models import ADWIN, DDM, FTRL, KSWIN, DriftDetector, LogisticRegression, PageHinkley
from headrace.stream.decode import Batch, Decoder
from headrace.stream.engine import Engine
from headrace.stream.files import frame_batches

matplotlib.use("agg")
from matplotlib import pyplot

F64 = NDArray[np.float64]

PICTURE = Path(__file__).parent / "drift.png"
COLUMNS = 5
SMOOTH = 500  # examples that each point of a curve is the mean of
PIECE = 100  # examples between two looks at whether the detector has fired

# share of the examples at each place of the stream, from 0 to 1, that follow the second truth
STREAMS: Mapping[str, Callable[[F64], F64]] = {
    "abrupt": lambda at: np.where(at < 0.5, 0.0, 1.0),
    "gradual": lambda at: np.clip(3.0 * at - 1.0, 0.0, 1.0),
    "recurring": lambda at: np.floor(5.0 * at) % 2,
}
DETECTORS: Mapping[str, type[DriftDetector]] = {"ADWIN": ADWIN, "Page-Hinkley": PageHinkley, "DDM": DDM, "KSWIN": KSWIN}
ALONE, BOOST, RESET = "without", "boost", "reset"
COLOURS = {ALONE: "#999999", BOOST: "#1f5fa8", RESET: "#d1741f"}


class Event(msgspec.Struct):
    id: str
    time: float
    x0: float
    x1: float
    x2: float
    x3: float
    x4: float
    y: bool


class Stream(NamedTuple):
    batches: list[Batch]
    y: NDArray[np.bool_]
    truth: F64  # P(true) of each, which no learner knows


class Run(NamedTuple):
    losses: F64  # of each example, predicted before it was learned
    drifts: int
    heard: list[int]  # examples at which the detector fired, of several within PIECE the last
    ns: float  # of processor time, an example


def make(name: str, count: int) -> Stream:
    """Events whose label follows one of two logistic models; name: how the second takes the place of the first."""
    random = np.random.default_rng(1)
    x = random.normal(size=(count, COLUMNS)).astype(np.float32).astype(float)
    weights = 1.5 * random.normal(size=(2, COLUMNS))
    second = random.random(count) < STREAMS[name](np.arange(count) / count)
    truth = 1 / (1 + np.exp(-(x * weights[second.astype(int)]).sum(1)))
    columns = {f"x{j}": x[:, j] for j in range(COLUMNS)}
    ids = np.arange(count)
    y = random.random(count) < truth
    frame = pl.DataFrame({"id": ids.astype(str), "time": 1.7e9 + ids, **columns, "y": y})
    return Stream(list(frame_batches(frame, Decoder(declare(None), "events"))), y, truth)


def declare(drift: DriftDetector | None) -> Pipeline:
    """A learner that forgets slowly, with a detector or without."""
    return Pipeline(
        name="drift",
        events=Events("events", Event, key="id", time="time", unit="s"),
        labels=Labels(value="y"),
        features=[numeric(f"x{j}") for j in range(COLUMNS)],
        model=LogisticRegression(FTRL(alpha=0.1, half_life="30d"), bits=6),
        predictions=Predictions("predictions"),
        drift=drift,
    )


def run(stream: Stream, drift: DriftDetector | None) -> Run:
    """Progressive validation: each example is predicted before it is learned."""
    engine = Engine(declare(drift))
    engine.warm_up()
    engine.own(0)
    out, heard, seconds = [], [], 0.0
    for batch in stream.batches:
        for start in range(batch.start, batch.next, PIECE):
            before, began = engine.counters_now("drifts"), time.thread_time()
            done = engine.process(batch, start, min(start + PIECE, batch.next))
            seconds += time.thread_time() - began
            assert done.predicted is not None
            out.append(done.predicted.out[:, 0].astype(float))
            if engine.counters_now("drifts") > before:
                heard.append(int(engine.results()["last_drift_example"] or 0))
    p = np.clip(np.concatenate(out), 1e-7, 1 - 1e-7)
    losses = -np.log(np.where(stream.y, p, 1 - p))
    return Run(losses, engine.counters_now("drifts"), heard, 1e9 * seconds / len(losses))


def draw(streams: Mapping[str, Stream], runs: Mapping[tuple[str, str, str], Run], path: Path) -> None:
    """One panel a stream: the loss without a detector, and with ADWIN that boosts or resets; ticks where it fired."""
    figure, axes = pyplot.subplots(len(streams), 1, figsize=(11, 3.1 * len(streams)), sharex=True, squeeze=False)
    for axis, (name, stream) in zip(axes.flat, streams.items(), strict=True):
        p = stream.truth
        axis.plot(*_smooth(-(p * np.log(p) + (1 - p) * np.log(1 - p))), color="black", linewidth=0.7, label="the truth")
        for place, (what, colour) in enumerate(COLOURS.items()):
            of = runs[name, "ADWIN", what]
            axis.plot(*_smooth(of.losses), color=colour, linewidth=1.4, label=what)
            if what != ALONE:
                heights, up = [0.05 * place - 0.02] * len(of.heard), axis.get_xaxis_transform()
                axis.plot(of.heard, heights, "|", color=colour, markersize=7, transform=up)
        axis.set_title(name, loc="left", fontsize=11)
        axis.set_ylabel("log loss")
        axis.grid(color="#dddddd", linewidth=0.7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0, 0].legend(frameon=False, ncols=4, loc="upper left")
    axes[-1, 0].set_xlabel(f"examples; each point is the mean of {SMOOTH}; ticks: where ADWIN(on='loss') fired")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _smooth(losses: F64) -> tuple[NDArray[np.int64], F64]:
    means = losses[: len(losses) // SMOOTH * SMOOTH].reshape(-1, SMOOTH).mean(1)
    return SMOOTH * np.arange(1, len(means) + 1), means


def as_text(streams: Mapping[str, Stream], runs: Mapping[tuple[str, str, str], Run], count: int, seconds: float) -> str:
    """The figures as Markdown."""
    lines = [
        "![log loss over the stream, with and without a detector](drift.png)",
        "",
        "| stream | detector | log loss: without | boost | reset | fired: report | boost | reset | late by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in streams:
        change = {"abrupt": count // 2, "gradual": count // 3, "recurring": count // 5}[name]
        for detector in DETECTORS:
            of = [runs[name, detector, what] for what in COLOURS]
            after = [row - change for row in of[0].heard if row >= change]
            losses = " | ".join(f"{one.losses.mean():.4f}" for one in of)
            fired = " | ".join(f"{one.drifts}" for one in of)
            lines.append(f"| {name} | {detector} | {losses} | {fired} | {after[0] if after else 'never'} |")
    alone = runs["abrupt", "", ALONE].ns
    costs = ", ".join(f"{name} {runs['abrupt', name, ALONE].ns - alone:,.0f}" for name in DETECTORS)
    blocks = runs["abrupt", "ADWIN", BOOST].ns - alone
    lines += [
        "",
        f"{today()}, {machine()}; `python -m benchmarks.drift`, {seconds:.0f} s. {count:,} examples a stream, "
        f"{COLUMNS} numbers, FTRL(alpha=0.1) with a half-life of 30 days, in a stream of {count / 86_400:.1f}; "
        "boost=0.1, all else as it is by default. Late by: examples from the first change to the next "
        f"detection. ns an example that a detector costs: {costs}; ADWIN with an action, in blocks of 32, "
        f"{blocks:,.0f}; all else in the engine {alone:,.0f}, in pieces of {PIECE}.",
    ]
    return "\n".join(lines)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=60_000)
    arguments.add_argument("--print", action="store_true", help="printed only, nothing is written")
    chosen = arguments.parse_args()
    began = time.perf_counter()
    streams = {name: make(name, chosen.events) for name in STREAMS}
    runs: dict[tuple[str, str, str], Run] = {}
    for name, stream in streams.items():
        runs[name, "", ALONE] = run(stream, None)
        for detector, kind in DETECTORS.items():
            for what in COLOURS:
                runs[name, detector, what] = run(stream, kind(action="report" if what == ALONE else what))
        print(f"{name}: done after {time.perf_counter() - began:.0f} s", flush=True)
    text = as_text(streams, runs, chosen.events, time.perf_counter() - began)
    if chosen.print:
        print(text)
        return 0
    draw(streams, runs, PICTURE)
    write_section("drift", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
