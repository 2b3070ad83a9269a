"""Predict, as a flight leaves New York, whether it will land more than 15 minutes late."""

import msgspec
import polars as pl

from headrace import Events, Labels, Pipeline, Predictions, Snapshots, count, cross, ewm, mean, numeric
from headrace.models import FTRL, LogisticRegression, StandardScaler


class Departure(msgspec.Struct):
    flight: str  # unique: date, carrier, number, origin
    time: float  # seconds since the epoch
    hour: int  # of the scheduled departure, New York time
    carrier: str
    number: int
    origin: str
    dest: str
    distance: float  # miles
    scheduled_minutes: float  # from scheduled departure to scheduled arrival
    dep_delay: float  # minutes


class Arrival(msgspec.Struct):
    flight: str
    time: float
    arr_delay: float  # minutes
    lost: float  # minutes lost between the gates: arr_delay - dep_delay


# What a delay at departure means depends on how long there is to make it up, and on how generous the timetable is.
delay_step = (pl.col("dep_delay") // 5).clip(-4, 24).alias("delay_step")
hours = (pl.col("scheduled_minutes") // 60).alias("hours")
slack = ((pl.col("scheduled_minutes") - pl.col("distance") / 8) // 10).alias("slack")  # beyond flying 8 miles a minute

pipeline = Pipeline(
    name="flights",
    events=Events("flights.departures", Departure, key="flight", time="time", unit="s"),
    labels=Labels(
        "flights.arrivals", Arrival, key="flight", time="time", unit="s", value=pl.col("arr_delay") > 15, within="24h"
    ),
    features=[  # capacity: an aggregate by airport needs no room for the usual 100,000 keys
        numeric("dep_delay"),
        ewm("lost", by="dest", half_life="6h", capacity=1_000),  # the wind of the day on the way there
        mean("lost", by="dest", over="3h", capacity=1_000),  # the queue to land
        mean("lost", by="origin", over="1h", capacity=1_000),  # the queue to take off, seen from those who have landed
        count(by="origin", over="30m", capacity=1_000),  # the queue to take off, now
        ewm("lost", by=["carrier", "number"], half_life="14d"),  # this flight as it usually goes
        cross(delay_step, hours),
        cross(delay_step, slack),
        cross("carrier", "origin", "hour"),
        cross("origin", "dest", "carrier"),
    ],
    model=StandardScaler(half_life="30d") | LogisticRegression(FTRL(alpha=0.1, l1=1.0, half_life="30d")),
    predictions=Predictions("flights.late"),
    snapshots=Snapshots(every="5s", keep=10),
)

app = pipeline.app  # for `faust -A`
