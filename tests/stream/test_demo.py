"""`headrace demo`, as a user starts it; and the checks by which it would find out that something does not add up."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from headrace.errors import SetupError, StreamStopped
from headrace.stream import demo
from headrace.stream.demo_processes import Process, parse_metrics
from headrace.stream.demo_report import by_date, draw
from headrace.stream.demo_result import Outcome, Read, area_under_curve, join_with_arrivals, latency, problems

DEMO = (sys.executable, "-c", "from headrace.stream.cli import main; main()", "demo")
PNG = b"\x89PNG\r\n\x1a\n"


def test_demo_counts_add_up_and_nothing_is_left_behind(tmp_path: Path) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [*DEMO, "--events", "3000", "--json"],
        cwd=here,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)

    assert results["problems"] == []
    assert results["events"] == results["predictions"] == 3000
    assert results["joined"] + results["expired"] + results["pending"] == results["predictions"]
    assert results["labels"] == results["joined"] + results["orphans"] + results["late"] + results["duplicates"]
    assert (results["joined"], results["pending"], results["orphans"], results["dead_letters"]) == (2982, 0, 0, 0)
    assert results["log_loss"] < results["log_loss_constant"]
    assert results["auc"] > 0.5
    assert results["events_per_second"] > 0
    assert 0 < results["latency_ms"]["p50"] <= results["latency_ms"]["p99"]
    assert results["snapshots"] >= 1
    assert results["snapshot_version"] >= 1
    assert (here / ".headrace" / "demo.png").read_bytes().startswith(PNG)
    assert results["picture"] == str(here / ".headrace" / "demo.png")

    assert list(temporary.glob("headrace-[dkr]*")) == []
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert [line for line in processes.splitlines() if str(temporary) in line] == []


def test_demo_in_a_folder_that_cannot_be_written_says_so_at_once(tmp_path: Path) -> None:
    (tmp_path / ".headrace").write_text("a file, not a folder")
    done = subprocess.run([*DEMO, "--events", "1000"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot write its picture" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_without_its_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NEEDS", ("json", "a_package_that_nobody_has"))
    with pytest.raises(SetupError, match=r"needs a_package_that_nobody_has: pip install 'headrace\[demo\]'"):
        demo.demo(1000, json=False, keep=False)


def test_process_that_fails_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; print('out of coffee'); sys.exit(3)")
    with Process("maker", command, tmp_path / "maker") as maker:
        while maker.status is None:
            time.sleep(0.01)
        with pytest.raises(StreamStopped, match=r"the maker ended with status 3.*\n    out of coffee"):
            maker.expect_running()


def test_process_ends_with_its_block(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
    with Process("sleeper", command, tmp_path / "sleeper") as sleeper:
        while not (sleeper.log.exists() and sleeper.lines()):
            time.sleep(0.01)
        sleeper.expect_running()
    assert sleeper.status is not None


def test_metrics_are_summed_over_labels() -> None:
    text = (
        "# HELP headrace_lag_records records in Kafka not committed yet\n"
        'headrace_lag_records{partition="0",topic="a"} 3.0\n'
        'headrace_lag_records{partition="1",topic="a"} 4.0\n'
        "headrace_events_total 1.5e+06\n"
        "python_info 1.0\n"
    )
    assert parse_metrics(text) == {"lag_records": 7.0, "events": 1_500_000.0}


# --- what the figures are


def prediction(flight: str, p: float, source: int) -> bytes:
    return json.dumps({"key": flight, "prediction": p, "source": f"d-0-{source}", "model": "m"}).encode()


def read(*values: bytes, stamps: list[int] | None = None) -> Read:
    times = stamps or list(range(len(values)))
    return Read(list(values), [None] * len(values), times, [t / 1000 for t in times])


def flights(*names: str) -> pl.DataFrame:
    return pl.DataFrame({"flight": names, "time": [3600.0 * i for i in range(len(names))]})


def landed(**delay: float) -> pl.DataFrame:
    return pl.DataFrame({"flight": list(delay), "arr_delay": list(delay.values())})


@pytest.fixture
def found() -> Outcome:
    """Three departures, two of which arrived, one of these late."""
    made = read(prediction("a", 0.9, 0), prediction("b", 0.2, 1), prediction("c", 0.5, 2))
    return join_with_arrivals(made, flights("a", "b", "c"), landed(a=16.0, b=15.0))


def test_loss_is_that_of_the_predictions_that_have_an_arrival(found: Outcome) -> None:
    figures = found.figures()
    assert figures["log_loss"] == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
    assert figures["log_loss_constant"] == pytest.approx(np.log(2))
    assert (figures["auc"], figures["accuracy"], figures["accuracy_majority"]) == (1.0, 1.0, 0.5)
    assert figures["log_loss_prior"] == pytest.approx((np.log(2) + np.log(4)) / 2), "first a, then b landed"
    assert figures["accuracy_no_change"] == 0.0


def counted(found: Outcome, **changed: int) -> dict[str, float]:
    """What a worker would tell that counts as we do."""
    counts = {"events": 3, "predictions": 3, "labels": 2, "joined": 2, "examples": 2, "expired": 1}
    none = dict.fromkeys(("pending", "orphans", "late", "duplicates", "misplaced", "early", "dead_letters"), 0)
    return {**counts, **none, **found.figures(), **changed}


def test_nothing_is_wrong_when_all_add_up(found: Outcome) -> None:
    assert problems(found, 0, counted(found), counted(found), 3, 2) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"predictions": 2}, "departures sent: 3, but the worker's predictions: 2"),
        ({"pending": 1}, "the worker's predictions: 3, but the worker's joined + expired + pending: 4"),
        ({"orphans": 1}, "the worker's labels: 2, but the worker's joined and all that could not be: 3"),
        ({"log_loss": 0.5}, "log_loss of the predictions in Kafka: 0.164252, but the worker's: 0.500000"),
    ],
)
def test_a_count_that_does_not_add_up_is_named(found: Outcome, changed: dict[str, int], named: str) -> None:
    assert named in problems(found, 0, counted(found, **changed), counted(found), 3, 2)


def test_a_snapshot_that_counts_otherwise_is_named(found: Outcome) -> None:
    wrong = problems(found, 0, counted(found), counted(found, events=2), 3, 2)
    assert wrong == ["departures sent: 3, but the last snapshot's events: 2"]


def test_a_prediction_that_came_twice_is_found() -> None:
    made = read(prediction("a", 0.9, 0), prediction("b", 0.2, 1), prediction("b", 0.2, 1), prediction("x", 0.1, 7))
    twice = join_with_arrivals(made, flights("a", "b"), landed(a=16.0, b=15.0))
    assert (twice.predictions, twice.repeated, twice.strangers, len(twice.joined)) == (4, 1, 1, 2)


def test_throughput_is_taken_from_the_brokers_stamps() -> None:
    made = read(prediction("a", 0.9, 0), prediction("b", 0.2, 1), prediction("c", 0.2, 2), stamps=[1000, 1000, 1500])
    assert join_with_arrivals(made, flights("a", "b", "c"), landed(a=1.0)).events_per_second == 2.0


def test_area_under_curve_counts_pairs() -> None:
    random = np.random.default_rng(1)
    late, p = random.random(200) < 0.3, random.integers(0, 20, 200) / 20  # with ties
    pairs = [(a > b) + (a == b) / 2 for a in p[late] for b in p[~late]]
    assert area_under_curve(late, p) == pytest.approx(float(np.mean(pairs)))
    assert np.isnan(area_under_curve(np.ones(3, bool), np.ones(3)))


def test_latency_is_from_the_producers_stamp_to_the_prediction_in_hand() -> None:
    names = [f"f{i}" for i in range(200)]
    produced = Read([None] * 200, [name.encode() for name in names], [10 * i for i in range(200)], [0.0] * 200)
    seen = read(*[prediction(name, 0.5, i) for i, name in enumerate(names)])
    seen.arrived = [(10 * i + (500 if i < 100 else 20)) / 1000 for i in range(200)]
    assert latency(produced, seen, running_in=1.0) == {"p50": 20.0, "p99": 20.0, "predictions": 100}


def test_losses_so_far_end_at_the_whole_loss(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    joined = pl.DataFrame(
        {"time": np.sort(random.uniform(0, 200 * 86_400, 900)), "late": random.random(900) < 0.3, "loss": 0.4}
    )
    losses = by_date(joined)
    assert losses["model_so_far"][-1] == pytest.approx(0.4)
    rate = joined["late"].mean()
    assert losses["constant_so_far"][-1] == pytest.approx(-(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))
    draw(joined, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
