"""Events per second from bytes to bytes, without Kafka: headrace's kernels beside Vowpal Wabbit's command line.

Both are given the same views (`throughput.py`) in memory, or in a file that the system holds in memory: headrace record
batches of JSON as a broker hands them out, Vowpal Wabbit its own text format. Both predict each view, learn from its
label, and write one prediction for each: headrace whole record batches, sealed; Vowpal Wabbit a line of a file.

    python -m benchmarks.in_memory [--events 1000000] [--print]
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from benchmarks.clicks import View
from benchmarks.load import make_batches
from benchmarks.run import machine, today, write_section
from benchmarks.throughput import PARTITIONS, PEERS, Views, make_environment, pinned, say

from headrace import Events, Labels, Pipeline, Predictions, category, count, mean, numeric
from headrace.connectors import record_batches, record_writer, spans
from headrace.connectors.record_batches import RecordBatches, scan, unpack
from headrace.connectors.record_writer import write_batches
from headrace.models import FTRL, AdaGrad, LogisticRegression, StandardScaler
from headrace.models.optimizers import Optimizer
from headrace.stream import fast_encode, fast_json
from headrace.stream.align import Aligner
from headrace.stream.cycle import Cycle, end_cycle, run_cycle
from headrace.stream.decode import Decoder
from headrace.stream.encode import Served
from headrace.stream.engine import Engine
from headrace.stream.fast_encode import prediction_rows
from headrace.stream.features import Feature
from headrace.stream.slices import Slice
from headrace.stream.stages import Stages

ROUNDS = 5
SLICE_RECORDS, CYCLE_ROWS = 5_000, 50_000
NUMBERS, TEXTS = ("age", "price", "depth", "speed"), ("site", "ad")
AGGREGATES: tuple[Feature, ...] = (count(by="ad", over="10m"), mean("price", by="site", over="1h"))
VOWPAL_WABBIT = {
    "FTRL": ["--ftrl"],
    "its defaults (adaptive, normalised, invariant)": [],
}


class Measured(NamedTuple):
    """Of one contestant: events/s of each round, the loss, and us of each stage in the median round."""

    name: str
    does: str
    rates: list[float]
    log_loss: float
    stages: dict[str, float]

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def make_pipeline(optimizer: Optimizer, aggregates: Sequence[Feature]) -> Pipeline:
    return Pipeline(
        name="in-memory",
        events=Events("views", View, key="id", time="time", unit="s"),
        labels=Labels(value="clicked"),
        features=[*map(numeric, NUMBERS), *map(category, TEXTS), *aggregates],
        model=StandardScaler() | LogisticRegression(optimizer),
        predictions=Predictions("predictions"),
    )


def headrace(optimizer: Optimizer, views: Views, aggregates: Sequence[Feature] = ()) -> Measured:
    pipeline, kind = make_pipeline(optimizer, aggregates), type(optimizer).__name__
    name = f"headrace, {kind}" + (f", with {len(aggregates)} aggregates" if aggregates else "")
    fetched = [list(of_one) for of_one in zip(*_fetched(views), strict=True)]
    for part in (spans, record_batches, record_writer, fast_json, fast_encode, Engine(pipeline)):
        part.warm_up()
    rates, runs = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        engine, stages = work(pipeline, fetched)
        rates.append(views.count / (time.perf_counter() - began))
        runs.append(stages)
    loss = engine.results()["log_loss"]
    assert loss is not None
    assert engine.counters()["predictions"] == sum(len(run) for of in fetched for run in of)
    middle = runs[rates.index(statistics.median(rates))].seconds()
    shares = {stage: seconds / views.count * 1e6 for stage, seconds in middle.items() if stage != "wait"}
    say(f"{name}: {statistics.median(rates):,.0f} events/s, log loss {loss:.4f}")
    return Measured(name, f"{len(NUMBERS)} numbers, 2 categories, {len(aggregates)} aggregates", rates, loss, shares)


def _fetched(views: Views) -> list[list[RecordBatches]]:
    """The views as they would be fetched, by partition; offsets as the broker sets them."""
    runs: defaultdict[int, list[RecordBatches]] = defaultdict(list)
    ends: defaultdict[int, int] = defaultdict(int)
    for partition, records, data in make_batches(views.count, SLICE_RECORDS):
        raw = struct.pack(">q", ends[partition]) + data[8:]
        ends[partition] += records
        runs[partition].append(RecordBatches("views", partition, raw, scan(raw, 0, 0, records).batches))
    return [runs[partition] for partition in range(PARTITIONS)]


def work(
    pipeline: Pipeline,
    fetched: Sequence[Sequence[RecordBatches]],
    *,
    engine: Engine | None = None,
    cycle_rows: int = CYCLE_ROWS,
) -> tuple[Engine, Stages]:
    """What a worker does between fetching and sending, in its order.

    fetched  again and again a run of each partition
    engine   goes on with this one; else with a new one
    """
    engine, stages = engine or Engine(pipeline), Stages()
    decoder, aligner = Decoder(pipeline, "events"), Aligner(None)
    engine.enter = stages.enter
    for partition in range(len(fetched[0])):
        engine.own(partition)
        aligner.own(("events", partition))
    served, cycle = Served(pipeline.name, 0, None), Cycle()
    for of_all in fetched:
        for partition, run in enumerate(of_all):
            stages.enter("unpack")
            table = unpack([run])
            stages.enter("decode")
            first, end = int(table.offset[0]), int(table.offset[-1]) + 1
            aligner.add(decoder.decode(Slice("events", partition, first, end, table)))
            run_cycle(engine, aligner, (), lambda cycle: False, cycle)
        if cycle.rows >= cycle_rows or of_all is fetched[-1]:
            end_cycle(engine, cycle)
            stages.enter("encode")
            rows, ends = prediction_rows(cycle.predicted, pipeline.events.topic, served)
            to = {("predictions", partition): end for partition, end in ends.items()}
            for batches in write_batches(rows, 0, to=to, transactional=True).values():
                for batch in batches:
                    batch._set_producer_state(1, 0, 0)
            cycle = Cycle()
    stages.enter("wait")
    return engine, stages


def vowpal_wabbit(views: Views) -> list[Measured]:
    make_environment("vowpal_wabbit")
    python = str(PEERS / "vowpal_wabbit" / "bin" / "python")
    with tempfile.TemporaryDirectory() as folder:
        data, one = Path(folder) / "views.txt", Path(folder) / "one.txt"
        _write_text(views, data)
        one.write_text(data.open().readline())
        measured = []
        for name, options in VOWPAL_WABBIT.items():
            run = [python, "-m", "vowpalwabbit", "--loss_function", "logistic", "--link", "logistic", *options]
            run += ["-p", os.path.join(folder, "predictions.txt"), "-d"]
            rates = []
            for _ in range(ROUNDS):
                start, _ = _timed([*run, str(one)])  # what Python and the start take
                seconds, said = _timed([*run, str(data)])
                rates.append(views.count / (seconds - start))
            found = re.search(r"average loss = ([0-9.]+)", said)
            assert found is not None, said
            say(f"Vowpal Wabbit, {name}: {statistics.median(rates):,.0f} events/s, log loss {found[1]}")
            measured.append(Measured(f"Vowpal Wabbit, {name}", "4 numbers, 2 categories", rates, float(found[1]), {}))
    return measured


def _timed(command: Sequence[str]) -> tuple[float, str]:
    began = time.perf_counter()
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, said.stdout + said.stderr


def _write_text(views: Views, path: Path) -> None:
    """The views in Vowpal Wabbit's format: the values that the JSON has."""
    with path.open("w") as text:
        decode = msgspec.json.Decoder(View).decode
        for record in views.records():
            view = decode(record.value)
            numbers = " ".join(f"{name}:{getattr(view, name)}" for name in NUMBERS)
            text.write(f"{1 if view.clicked else -1} |n {numbers} |s {view.site} |a {view.ad}\n")


def table(views: Views, measured: Sequence[Measured]) -> str:
    """The results as Markdown."""
    lines = ["| who | does | events/s, median of 5 rounds | least and most | log loss |", "|---|---|---|---|---|"]
    for m in measured:
        least, most = min(m.rates), max(m.rates)
        lines.append(f"| {m.name} | {m.does} | {m.rate:,.0f} | {least:,.0f} to {most:,.0f} | {m.log_loss:.4f} |")
    staged = [m for m in measured if m.stages]
    lines += ["", "| us an event | " + " | ".join(m.name for m in staged) + " |", "|---|" + "---|" * len(staged)]
    for stage in staged[0].stages:
        if any(m.stages[stage] >= 0.0005 for m in staged):
            lines.append(f"| {stage} | " + " | ".join(f"{m.stages[stage]:.3f}" for m in staged) + " |")
    lines += [
        "",
        f"{today()}, {machine()}. {views.count:,} views of {views.value_bytes / views.count:.0f} bytes in record "
        f"batches of {SLICE_RECORDS:,}, {CYCLE_ROWS:,} a cycle, 1 thread; {pinned('vowpal_wabbit')}, 2 threads. Best "
        f"constant: log loss {views.log_loss_constant():.4f}. Encode is JSON, record batches and their checksums.",
    ]
    return "\n".join(lines)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=1_000_000)
    arguments.add_argument("--print", action="store_true", help="print the table and leave README.md as it is")
    chosen = arguments.parse_args()
    unit = PARTITIONS * SLICE_RECORDS
    views = Views(-(-chosen.events // unit) * unit)
    measured = [
        headrace(FTRL(), views),
        headrace(AdaGrad(), views),
        headrace(FTRL(), views, AGGREGATES),
        *vowpal_wabbit(views),
    ]
    written = table(views, measured)
    print("\n" + written)
    if not chosen.print:
        write_section("in memory", written)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
