"""How events per second change with fields, features, tables, keys, cycles and partitions: benchmarks/curves.png.

Most of it in memory, from record batches to sealed record batches in one thread (`in_memory.py`), so that nothing else
is seen; partitions, and the memory of a worker against its backlog, through Kafka (`durability.py`). Linux only.

    python -m benchmarks.curves [--events 1000000] [--only keys]
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import msgspec
import numpy as np
import polars as pl
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from benchmarks.durability import fresh_ground, mib, take_rate, working
from benchmarks.in_memory import CYCLE_ROWS, SLICE_RECORDS, work
from benchmarks.load import fill, make_batches
from benchmarks.run import machine, today, write_section
from benchmarks.throughput import PARTITIONS, TOPIC, say

from headrace import Events, Labels, Pipeline, Predictions, category, ewm, numeric
from headrace.connectors import record_batches, record_writer, spans
from headrace.connectors.record_batches import RecordBatches, scan
from headrace.models import FTRL, LogisticRegression, StandardScaler
from headrace.stream import fast_encode, fast_json
from headrace.stream.engine import Engine
from headrace.stream.features import Feature

matplotlib.use("agg")
from matplotlib import pyplot

PICTURE = Path(__file__).parent / "curves.png"
ROUNDS = 3  # of each point; the fastest counts


IN_MEMORY, THROUGH_KAFKA, MEMORY = "million events/s, one thread", "million events/s, Kafka", "MiB above an idle worker"


class Curve(NamedTuple):
    """One thing that grows, and what is measured at each size of it."""

    name: str
    axis: str
    sizes: Sequence[int]
    measure: Callable[[int, int], float]  # size, events -> events/s, or bytes
    says: str
    unit: str = IN_MEMORY


class Measured(NamedTuple):
    curve: Curve
    values: list[float]


def numbers(size: int, events: int) -> float:
    """So many numeric fields, each a feature."""
    names = [f"x{j}" for j in range(size)]
    return _rate([numeric(name) for name in names], _frame(events, numbers=names))


def texts(size: int, events: int) -> float:
    """So many categories over as many fields of text, 1,000 values each."""
    names = [f"c{j}" for j in range(size)]
    return _rate([category(name) for name in names], _frame(events, texts=names, distinct=1_000))


def skipped(size: int, events: int) -> float:
    """4 numeric features, in events with so many fields of which the schema knows nothing."""
    known, unknown = [f"x{j}" for j in range(4)], [f"z{j}" for j in range(size)]
    return _rate([numeric(name) for name in known], _frame(events, numbers=known + unknown), known)


def table(size: int, events: int) -> float:
    """2 categories of a million values each, in a table of so many weights."""
    bits = size.bit_length() - 1
    return _rate([category("c0"), category("c1")], _frame(events, texts=["c0", "c1"], distinct=1_000_000), bits=bits)


def keys(size: int, events: int) -> float:
    """An aggregate by a field of so many values."""
    feature: Feature = ewm("x0", by="c0", half_life="1h", capacity=size)
    return _rate([numeric("x0"), feature], _frame(events, numbers=["x0"], texts=["c0"], distinct=size))


def cycles(size: int, events: int) -> float:
    """So many rows between two commits."""
    features: list[Feature] = [numeric("x0"), numeric("x1"), category("c0"), category("c1")]
    data = _frame(events, numbers=["x0", "x1"], texts=["c0", "c1"], distinct=1_000)
    return _rate(features, data, cycle_rows=size, slice_records=min(size // PARTITIONS, SLICE_RECORDS))


def partitions(size: int, events: int) -> float:
    """So many partitions, through Kafka, exactly once."""
    with fresh_ground(size) as ground:
        batches = [batch._replace(partition=i % size) for i, batch in enumerate(make_batches(200_000, 5_000))]
        fill(ground.broker, TOPIC, 5_000_000, batches)
        with working(ground, "warm") as worker:  # a broker that has just begun is slower than later
            worker.until_predicted(3_000_000)
        with working(ground, "partitions") as worker:
            return take_rate(worker, 4.0)[0]


def backlog(size: int, events: int) -> float:
    """The most bytes of memory that a worker uses with so many records behind, above one with nothing to do."""
    with fresh_ground() as ground:
        with working(ground, "idle") as idle:
            idle.until(lambda: idle.metrics().get("running"), "its partitions")
            time.sleep(3)
            base = idle.memory()[0]
        fill(ground.broker, TOPIC, size, make_batches(200_000, 5_000))
        with working(ground, "backlog") as worker:
            worker.until_predicted(min(size, 4_000_000))
            return worker.memory()[1] - base


CURVES = (
    Curve("numbers", "numeric fields, all features", (4, 8, 16, 32, 64), numbers, "each has its decoding and a weight"),
    Curve("unknown", "fields that the schema does not know", (0, 4, 16, 64), skipped, "they are passed over as text"),
    Curve("texts", "fields of text, all categories", (1, 2, 4, 8, 16, 32), texts, "each has its hash and a weight"),
    Curve(
        "table", "weights in the table", tuple(2**bits for bits in range(16, 25, 2)), table,
        "each event reads and writes 2 of them anywhere: beyond the cache each waits for memory",
    ),
    Curve(
        "keys", "keys of an aggregate", (10**3, 10**4, 10**5, 10**6, 10**7), keys,
        "beyond the cache each event waits for the memory of its key",
    ),
    Curve(
        "cycles", "rows of a cycle", (200, 1_000, 5_000, 20_000, 100_000), cycles,
        "short ones pay for the Python around each slice and each cycle, once in so many rows",
    ),
    Curve(
        "partitions", "partitions", (1, 2, 4, 8, 16, 32), partitions,
        "more of them have smaller slices and batches", THROUGH_KAFKA,
    ),
    Curve(
        "backlog", "records behind", (250_000, 1_000_000, 4_000_000, 16_000_000), backlog,
        "what is fetched ahead is bounded, and so is a cycle", MEMORY,
    ),
)  # fmt: skip


def _frame(events: int, *, numbers: Sequence[str] = (), texts: Sequence[str] = (), distinct: int = 1) -> pl.DataFrame:
    """Events with these fields, beside id, time and the label y, which follows the numbers."""
    random = np.random.default_rng(5)
    columns: dict[str, Any] = {"id": [f"v{i:08d}" for i in range(events)]}
    columns["time"] = 1_700_000_000 + np.arange(events) / 1_000
    columns |= {name: random.normal(size=events).round(3) for name in numbers}
    columns |= {name: pl.Series(random.integers(0, distinct, events)).cast(pl.String) for name in texts}
    score = sum((columns[name] for name in numbers[:4]), np.zeros(events))
    columns["y"] = random.random(events) < 1 / (1 + np.exp(-score))
    return pl.DataFrame(columns)


def _rate(
    features: Sequence[Feature],
    data: pl.DataFrame,
    known: Sequence[str] = (),
    *,
    bits: int = 18,
    cycle_rows: int = CYCLE_ROWS,
    slice_records: int = SLICE_RECORDS,
) -> float:
    """Events/s of a pipeline over this data, the fastest of some rounds; the first round is not measured.

    known  the schema has these fields alone, beside id, time and y
    """
    kinds = {pl.String: str, pl.Float64: float, pl.Boolean: bool}
    names = ["id", "time", *known, "y"] if known else data.columns
    schema = msgspec.defstruct("Event", [(name, kinds[type(data.schema[name])]) for name in names])
    pipeline = Pipeline(
        name="curves",
        events=Events("events", schema, key="id", time="time", unit="s"),
        labels=Labels(value="y"),
        features=features,
        model=StandardScaler() | LogisticRegression(FTRL(), bits=bits),
        predictions=Predictions("predictions"),
    )
    fetched = list(_fetched(data, slice_records))
    for part in (spans, record_batches, record_writer, fast_json, fast_encode, Engine(pipeline)):
        part.warm_up()
    rows = sum(len(run) for runs in fetched for run in runs)
    engine, _ = work(pipeline, fetched, cycle_rows=cycle_rows)  # from here on each key is known, and its memory here
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work(pipeline, fetched, engine=engine, cycle_rows=cycle_rows)
        rates.append(rows / (time.perf_counter() - began))
    return max(rates)


def _fetched(data: pl.DataFrame, records: int) -> Iterator[list[RecordBatches]]:
    """The rows as JSON in record batches, one of so many records for each partition in turn; the rest is left out."""
    text = io.BytesIO()
    data.write_ndjson(text)
    lines, ends = text.getvalue().splitlines(), 0
    for first in range(0, len(lines) - PARTITIONS * records + 1, PARTITIONS * records):
        runs = []
        for partition in range(PARTITIONS):
            builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 30)
            a = first + partition * records
            for i, line in enumerate(lines[a : a + records]):
                builder.append(i, 1_700_000_000_000 + i, None, line, [])
            raw = ends.to_bytes(8, "big") + bytes(builder.build())[8:]
            runs.append(RecordBatches("events", partition, raw, scan(raw, 0, 0, records).batches))
        ends += records
        yield runs


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Small multiples: events/s, or memory, against each size."""
    rows = -(-len(measured) // 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(12, 3.4 * rows), squeeze=False)
    for axis, (curve, values) in zip(axes.flat, measured, strict=False):
        scale = 1 << 20 if curve.unit == MEMORY else 1e6
        axis.plot(curve.sizes, [value / scale for value in values], marker="o", color="#1f5fa8", clip_on=False)
        axis.set_ylabel(curve.unit)
        axis.set_xscale("symlog" if 0 in curve.sizes else "log", base=2)
        axis.set_xticks(curve.sizes, [_short(size) for size in curve.sizes], minor=False)
        axis.minorticks_off()
        axis.set_xlabel(curve.axis)
        axis.set_ylim(bottom=0)
        axis.grid(color="#dddddd", linewidth=0.7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _short(size: int) -> str:
    """A number as at an axis: 250k, 2^18, 16M."""
    if size >= 1 << 16 and size.bit_count() == 1:
        return f"2^{size.bit_length() - 1}"
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return str(size)


def as_text(measured: Sequence[Measured], events: int) -> str:
    """The figures as Markdown, and what bends each curve."""
    lines = ["![events/s against what they depend on](curves.png)", "", "| of | events/s | why |", "|---|---|---|"]
    for curve, values in measured:
        points = ", ".join(f"{size:,}: {_shown(curve, value)}" for size, value in zip(curve.sizes, values, strict=True))
        lines.append(f"| {curve.axis} | {points} | {curve.says} |")
    lines += [
        "",
        f"{today()}, {machine()}. {events:,} events a point, the fastest of {ROUNDS} rounds; by Kafka one run.",
    ]
    return "\n".join(lines)


def _shown(curve: Curve, value: float) -> str:
    return mib(value) if curve.unit == MEMORY else f"{value:,.0f}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=1_000_000)
    arguments.add_argument("--only", choices=[curve.name for curve in CURVES], help="one curve, printed only")
    chosen = arguments.parse_args()
    measured = []
    for curve in CURVES:
        if chosen.only in (None, curve.name):
            measured.append(Measured(curve, [curve.measure(size, chosen.events) for size in curve.sizes]))
            say(f"{curve.axis}: " + ", ".join(_shown(curve, value) for value in measured[-1].values))
    if not chosen.only:
        draw(measured, PICTURE)
        write_section("curves", as_text(measured, chosen.events))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
