"""The flights of 2013 are what the demo says they are."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from headrace.errors import SetupError
from headrace.stream import flights
from headrace.stream.load import load_pipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "flights.py"


@pytest.fixture(scope="module")
def joined() -> pl.DataFrame:
    """Every arrival beside its departure, with `wait` in minutes."""
    arrivals = flights.arrivals().rename({"time": "arrived"}).drop("origin", "dest")
    both = flights.departures().join(arrivals, on="flight", how="inner", validate="1:1")
    return both.with_columns(wait=(pl.col("arrived") - pl.col("time")) / 60)


def at(*clock: int) -> float:
    return datetime(*clock, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


def only(frame: pl.DataFrame, flight: str) -> dict[str, object]:
    return frame.filter(pl.col("flight") == flight).row(0, named=True)


def test_every_flight_that_left_is_an_event_and_every_one_that_landed_a_label(joined: pl.DataFrame) -> None:
    assert flights.departures().height == 328_521
    assert flights.arrivals().height == 327_346
    assert joined.height == 327_346, "a label without its event"


def test_flights_have_unique_keys() -> None:
    assert flights.departures()["flight"].is_unique().all()
    assert flights.arrivals()["flight"].is_unique().all()


def test_events_and_labels_come_in_order_of_time() -> None:
    assert flights.departures()["time"].is_sorted()
    assert flights.arrivals()["time"].is_sorted()


def test_only_the_tail_may_be_null() -> None:
    for frame in (flights.departures().drop("tail"), flights.arrivals()):
        assert sum(frame.null_count().row(0)) == 0


def test_label_comes_after_its_event_and_within_a_day(joined: pl.DataFrame) -> None:
    assert joined["wait"].min() == 33
    assert joined["wait"].median() == 160
    assert joined["wait"].max() == 738


def test_flight_is_on_its_way_as_long_as_scheduled_and_lost(joined: pl.DataFrame) -> None:
    assert (joined["wait"] == joined["scheduled_minutes"] + joined["lost"]).all()
    assert (joined["lost"] == joined["arr_delay"] - joined["dep_delay"]).all()
    assert (joined["time"] == joined["scheduled"] + 60 * joined["dep_delay"]).all()


def test_first_flight_of_the_year_left_at_5_17_in_new_york() -> None:
    first = flights.departures(1).row(0, named=True)
    assert first["flight"] == "20130101-UA-1545-EWR"
    assert first["time"] == at(2013, 1, 1, 10, 17)
    assert (first["hour"], first["dep_delay"]) == (5, 2.0)


def test_flight_over_midnight_lands_on_the_next_day(joined: pl.DataFrame) -> None:
    # New York 23:59, Aguadilla 4:37 (one hour ahead in winter): 218 minutes; it left 14 late, landed 2 late
    night = only(joined, "20131231-B6-839-JFK")
    assert night["scheduled"] == at(2014, 1, 1, 4, 59)
    assert night["scheduled_minutes"] == 218
    assert night["arrived"] == at(2014, 1, 1, 4, 59) + 60 * (218 + 2)


@pytest.mark.parametrize(("day", "change"), [("20130310", "forward"), ("20131103", "back")])
def test_clock_change_in_the_night_does_not_bend_a_flight(joined: pl.DataFrame, day: str, change: str) -> None:
    """Clocks change at 2:00, after the last departure: evening flights of the day have the length of other days."""
    evening = joined.filter((pl.col("hour") >= 20) & pl.col("flight").str.starts_with(day))
    usual = (
        joined.filter(pl.col("hour") >= 20)
        .group_by("origin", "dest", "carrier")
        .agg(pl.col("scheduled_minutes").median())
    )
    compared = evening.join(usual, on=["origin", "dest", "carrier"], suffix="_usual")
    assert compared.height > 50, change
    assert ((compared["scheduled_minutes"] - compared["scheduled_minutes_usual"]).abs() < 45).all()


@pytest.mark.parametrize("day", ["20130309", "20131102"])
def test_flight_over_the_clock_change_has_its_usual_length(joined: pl.DataFrame, day: str) -> None:
    over = joined.filter((pl.col("hour") >= 21) & pl.col("flight").str.starts_with(day))
    usual = joined.filter(pl.col("hour") >= 21).group_by("origin", "dest").agg(pl.col("scheduled_minutes").median())
    compared = over.join(usual, on=["origin", "dest"], suffix="_usual")
    assert compared.height > 0
    assert ((compared["scheduled_minutes"] - compared["scheduled_minutes_usual"]).abs() < 45).all()


def test_limit_takes_the_first_departures_and_their_arrivals_alone() -> None:
    some, landed = flights.departures(1_000), flights.arrivals(1_000)
    assert some.equals(flights.departures().head(1_000))
    assert set(landed["flight"]) <= set(some["flight"])
    assert landed.equals(flights.arrivals().filter(pl.col("flight").is_in(some["flight"].implode())))
    assert flights.departures(0).height == flights.arrivals(0).height == 0
    assert flights.arrivals(10**9).height == 327_346


def test_written_files_read_back_as_the_same_flights(tmp_path: Path) -> None:
    events, labels = flights.write_ndjson(tmp_path / "flights", 500)
    assert (events.name, labels.name) == ("departures.ndjson", "arrivals.ndjson")
    assert pl.read_ndjson(events).equals(flights.departures(500))
    assert pl.read_ndjson(labels).equals(flights.arrivals(500))


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "PACKAGE", "nycflights_not_installed")
    flights._flights.cache_clear()
    with pytest.raises(SetupError, match=r"pip install 'headrace\[demo\]'"):
        flights.departures()


def test_pipeline_of_the_example_joins_every_label_and_predicts_well() -> None:
    found = load_pipeline(str(EXAMPLE)).evaluate(flights.departures(), flights.arrivals())
    assert found["events"] == found["predictions"] == 328_521
    assert found["labels"] == found["joined"] == 327_346
    assert found["expired"] == 1_175
    assert found["pending"] == found["orphans"] == found["late"] == found["dead_letters"] == 0
    assert found["log_loss_constant"] == pytest.approx(0.5478, abs=1e-4)
    assert found["log_loss"] < 0.245  # each label learned at its true delay; the goal was .262
