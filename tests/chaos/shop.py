"""The pipeline that chaos is let loose on: what it reads, what it computes, how its topics are called.

Imported as `chaos.shop`: the settings of pytest put `tests` on the path. Whatever it declares can be recomputed by a
plain account: no eviction (40 sites, room for 200), no expression that two libraries could round differently.
"""

from __future__ import annotations

from pathlib import Path

PARTITIONS = 4
SITES = 40
T0 = 1_700_000_000  # seconds: event time begins here, and stays far behind the clock on the wall

# events and labels are partitioned by crc32(record key) % PARTITIONS; the record key is the id
PIPELINE = """
import msgspec
import polars as pl
from headrace import Events, Labels, Pipeline, Predictions, Snapshots, category, count, mean, numeric
from headrace.models import FTRL, LogisticRegression, StandardScaler


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float | None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool | None


pipeline = Pipeline(
    name="{name}",
    events=Events("{name}.visits", Visit, key="id", time="time", unit="s"),
    labels=Labels(
        "{name}.sales", Sale, key="id", time="time", unit="s", value="sold",
        within="1h", otherwise=None, alignment="3m",
    ),
    features=[
        numeric("price"),
        numeric((pl.col("price") - 5.0).abs(), name="off"),
        category("site"),
        count(by="site", over="1h", capacity=200),
        mean("price", by="site", over="1h", capacity=200),
        mean("label", by="site", over="6h", capacity=200),
    ],
    model=StandardScaler(half_life="12h") | LogisticRegression(FTRL(alpha=0.1, half_life="6h"), bits=10),
    predictions=Predictions("{name}.scores"),
    snapshots=Snapshots("1s"),
    latency="50ms",
    max_cycle_rows=5_000,
)
app = pipeline.app
"""

INPUTS = ("visits", "sales")
OUTPUTS = ("scores", "scores.dead-letters", "journal")


def write_pipeline(folder: Path, name: str) -> Path:
    """The pipeline file of that name, for `headrace run`."""
    file = folder / "shop.py"
    file.write_text(PIPELINE.format(name=name))
    return file
