"""As clicks.py, but whether it was clicked comes later, on a topic of its own. What `benchmarks/throughput.py` runs."""

import msgspec
from benchmarks.clicks import FEATURES, RUN

from headrace import Events, Labels, Pipeline, Predictions
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


class Seen(msgspec.Struct):
    id: str
    time: float
    clicked: bool


pipeline = Pipeline(
    name=f"pairs{RUN}",
    events=Events("views", View, key="id", time="time", unit="s"),
    labels=Labels("seen", Seen, key="id", time="time", unit="s", value="clicked", within="10m"),
    features=FEATURES,
    model=StandardScaler() | LogisticRegression(FTRL()),
    predictions=Predictions(f"views.headrace{RUN}", compression="lz4"),
)
