"""Predict whether an advertisement will be clicked; the label is in the event. What `benchmarks/throughput.py` runs."""

import msgspec

from headrace import Events, Labels, Pipeline, Predictions, category, numeric
from headrace.models import FTRL, LogisticRegression, StandardScaler


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


pipeline = Pipeline(
    name="clicks",
    events=Events("clicks", View, key="id", time="time", unit="s"),
    labels=Labels(value="clicked"),
    features=[
        numeric("age"),
        numeric("price"),
        numeric("depth"),
        numeric("speed"),
        category("site"),
        category("ad"),
    ],
    model=StandardScaler() | LogisticRegression(FTRL()),
    predictions=Predictions("clicks.headrace"),
)
