"""How events per second change with fields, features, tables, keys and cycles: benchmarks/curves.png.

In memory, from record batches to sealed record batches in one thread (`in_memory.py`), so that nothing else is seen.

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
from benchmarks.in_memory import CYCLE_ROWS, SLICE_RECORDS, work
from benchmarks.run import machine, today, write_section
from benchmarks.throughput import PARTITIONS, say

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


class Curve(NamedTuple):
    """One thing that grows, and what is measured at each size of it."""

    name: str
    axis: str
    sizes: Sequence[int]
    rate: Callable[[int, int], float]  # size, events -> events/s
    says: str


class Measured(NamedTuple):
    curve: Curve
    rates: list[float]


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
    """Small multiples on one scale: events/s against each size."""
    rows = -(-len(measured) // 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(12, 3.4 * rows), sharey=True, squeeze=False)
    for axis, (curve, rates) in zip(axes.flat, measured, strict=False):
        axis.plot(curve.sizes, [rate / 1e6 for rate in rates], marker="o", color="#1f5fa8", clip_on=False)
        axis.set_xscale("symlog" if 0 in curve.sizes else "log", base=2 if max(curve.sizes) < 100 else 10)
        axis.set_xlabel(curve.axis)
        axis.set_ylim(bottom=0)
        axis.grid(color="#dddddd", linewidth=0.7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("million events/s, one thread")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def as_text(measured: Sequence[Measured], events: int) -> str:
    """The figures as Markdown, and what bends each curve."""
    lines = ["![events/s against six sizes](curves.png)", "", "| of | events/s | why |", "|---|---|---|"]
    for curve, rates in measured:
        points = ", ".join(f"{size:,}: {rate:,.0f}" for size, rate in zip(curve.sizes, rates, strict=True))
        lines.append(f"| {curve.axis} | {points} | {curve.says} |")
    lines += ["", f"{today()}, {machine()}. {events:,} events a point, one thread, the fastest of {ROUNDS} rounds."]
    return "\n".join(lines)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=1_000_000)
    arguments.add_argument("--only", choices=[curve.name for curve in CURVES], help="one curve, printed only")
    chosen = arguments.parse_args()
    measured = []
    for curve in CURVES:
        if chosen.only in (None, curve.name):
            measured.append(Measured(curve, [curve.rate(size, chosen.events) for size in curve.sizes]))
            say(f"{curve.axis}: " + ", ".join(f"{rate:,.0f}" for rate in measured[-1].rates))
    if not chosen.only:
        draw(measured, PICTURE)
        write_section("curves", as_text(measured, chosen.events))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
