"""As clicks.py, but whether it was clicked comes later, on a topic of its own. What `benchmarks/throughput.py` runs."""

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


class Seen(msgspec.Struct):
    id: str
    time: float
    clicked: bool


pipeline = Pipeline(
    name="pairs",
    events=Events("views", View, key="id", time="time", unit="s"),
    labels=Labels("seen", Seen, key="id", time="time", unit="s", value="clicked", within="10m"),
    features=[
        numeric("age"),
        numeric("price"),
        numeric("depth"),
        numeric("speed"),
        category("site"),
        category("ad"),
    ],
    model=StandardScaler() | LogisticRegression(FTRL()),
    predictions=Predictions("views.headrace"),
)
