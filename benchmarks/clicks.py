"""Predict whether an advertisement will be clicked; the label is in the event. What `benchmarks/throughput.py` runs."""

import os

import msgspec

from headrace import Events, Labels, Pipeline, Predictions, category, count, mean, numeric
from headrace.models import FTRL, LogisticRegression, StandardScaler
from headrace.stream.features import Feature


class View(msgspec.Struct):
    id: str
    time: float  # seconds since the epoch
    age: float
    price: float
    depth: float
    speed: float
    site: str
    ad: str
    clicked: bool


RUN = os.environ.get("RUN", "")  # each run begins anew, and writes to a topic of its own
FEATURES: list[Feature] = [
    numeric("age"),
    numeric("price"),
    numeric("depth"),
    numeric("speed"),
    category("site"),
    category("ad"),
    count(by="ad", over="10m"),
    mean("price", by="site", over="1h"),
]
pipeline = Pipeline(
    name=f"clicks{RUN}",
    events=Events("clicks", View, key="id", time="time", unit="s"),
    labels=Labels(value="clicked"),
    features=FEATURES,
    model=StandardScaler() | LogisticRegression(FTRL()),
    predictions=Predictions(f"clicks.headrace{RUN}", compression="lz4"),
)
