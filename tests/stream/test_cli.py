"""The command line as a new user tries it: what goes wrong is one message with the way out, and exit status 1."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.connectors.topics import create_topics
from headrace.stream.cli import main

HEADRACE = str(Path(sys.executable).parent / "headrace")

FLIGHTS = """
import msgspec
import polars as pl
from headrace import *
from headrace import sum, min, max
from headrace.models import FTRL, LogisticRegression, StandardScaler


class Departure(msgspec.Struct):
    flight: str
    time: float
    origin: str
    delay: float


class Arrival(msgspec.Struct):
    flight: str
    time: float
    delay: float


pipeline = Pipeline(
    name="cli",
    events=Events("departures", Departure, key="flight", time="time", unit="s"),
    labels=Labels("arrivals", Arrival, key="flight", time="time", unit="s", value=pl.col("delay") > 15, within="24h"),
    features=[numeric("delay"), category("origin"), mean("delay", by="origin", over="1h")],
    model=StandardScaler() | LogisticRegression(FTRL(alpha=0.1)),
    predictions=Predictions("late"),
)
"""

TYPOS = {  # name: (what is written, in the place of what, words of the message)
    "unknown field": ('numeric("dealy")', 'numeric("delay")', "delay"),
    "field of another type": ('numeric("origin")', 'numeric("delay")', "origin"),
    "duration": ('over="1 hour"', 'over="1h"', "1 hour"),
    "two features of one name": ('category("delay")', 'category("origin")', "delay"),
    "unknown key": ('key="fligth"', 'key="flight"', "flight"),
    "unit": ('unit="sec"', 'unit="s"', "sec"),
    "no unit": ("", ', unit="s"', "unit"),
    "unknown argument": ('whitin="24h"', 'within="24h"', "whitin"),
    "unknown word": ('Numeric("delay")', 'numeric("delay")', "Numeric"),
    "syntax": ("features=[[", "features=[", "flights.py"),
    "negative rate": ("FTRL(alpha=-1)", "FTRL(alpha=0.1)", "alpha"),
    "no model": ('model="ftrl"', "model=StandardScaler() | LogisticRegression(FTRL(alpha=0.1))", "model"),
    "setting of a learner": ("FTRL(alfa=0.1)", "FTRL(alpha=0.1)", "'alfa'; did you mean `alpha`?"),
    "setting of another": ("FTRL(lr=0.1)", "FTRL(alpha=0.1)", "'lr'; it takes alpha, beta, l1, l2, half_life"),
    "name of another module": ("import FTRL, Best,", "import FTRL,", "; it is in headrace\n"),
    "name in small letters": ("import ftrl,", "import FTRL,", "did you mean `FTRL`?"),
    "class of a transform": (
        "StandardScaler | Log",
        "StandardScaler() | Log",
        "class StandardScaler; write StandardScaler()",
    ),
    "class of an optimizer": ("(FTRL)", "(FTRL(alpha=0.1))", "got the class FTRL; write FTRL()"),
    "expression over many rows": (
        'numeric(pl.col("delay") - pl.col("delay").mean(), name="d")',
        'numeric("delay")',
        "row",
    ),
    "it raises": ('1 / 0, mean("delay"', 'mean("delay"', "ZeroDivisionError"),
    "it exits": ("import sys\nsys.exit(3)", "from headrace import *", "ends the program"),
}


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of `headrace arguments`, in this process."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    out = capsys.readouterr()
    return left.value.code or 0, out.out, out.err


@pytest.fixture
def flights(tmp_path, monkeypatch):
    """Write a pipeline file; returns its path."""
    monkeypatch.setattr(sys, "path", sys.path[:])

    def write(text=FLIGHTS):
        file = tmp_path / "flights.py"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("name", TYPOS)
@pytest.mark.parametrize("command", ["check", "run"])
def test_typo_in_a_pipeline_file_is_one_message_that_names_it(capsys, flights, name, command):
    wrong, right, words = TYPOS[name]
    assert right in FLIGHTS
    file = flights(FLIGHTS.replace(right, wrong, 1))
    status, out, err = run(capsys, command, file)
    assert status == 1
    assert out == ""
    assert err.startswith("headrace: ")
    assert words in err
    assert "flights.py:" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) < 8, err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("flights.py:nightly", "declares no pipeline `nightly`"),
        ("flights.py:Departure", "not a Pipeline"),
        (".", "is a folder"),
        ("flights.json", "flights.json"),
    ],
)
def test_target_that_is_no_pipeline_file_is_one_message(capsys, flights, monkeypatch, target, words):
    monkeypatch.chdir(flights().parent)
    status, out, err = run(capsys, "check", target)
    assert (status, out) == (1, "")
    assert err.startswith("headrace: ")
    assert words in err
    assert len(err.splitlines()) == 1


def test_check_tells_what_a_pipeline_would_do(capsys, flights):
    status, out, err = run(capsys, "check", flights())
    assert (status, err) == (0, "")
    for words in ("departures", "arrivals", "late.dead-letters", "cli.journal", "24h", "mean_delay_by_origin_1h"):
        assert words in out


def test_models_py_of_the_user_beside_the_pipeline_file_is_theirs(tmp_path):
    (tmp_path / "models.py").write_text("from headrace.models import SGD\nBEST = SGD(0.05)\n")
    (tmp_path / "stream.py").write_text("NAME = 'mine'\n")
    text = FLIGHTS.replace("FTRL(alpha=0.1)", "BEST").replace('name="cli"', "name=NAME")
    (tmp_path / "flights.py").write_text("from models import BEST\nfrom stream import NAME\n" + text)
    done = subprocess.run([HEADRACE, "check", "flights.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SGD" in done.stdout
    assert "mine.journal" in done.stdout


def test_help_names_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for command in ("run", "evaluate", "check", "up", "demo", "snapshots"):
        assert command in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--broker", "kafka://somewhere:9092"], "'kafka://somewhere:9092' is no address of a broker; write host:port"),
        (["--broker", "a:1,b c:2"], "'b c:2' is no address of a broker"),
        (["--redis", "somewhere:6379"], "is no address of Redis; write redis://host:port/0"),
    ],
)
def test_address_that_cannot_be_one_is_refused_before_anything_starts(capsys, flights, options, words):
    status, out, err = run(capsys, "run", flights(), *options)
    assert (status, out) == (1, "")
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody():
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("server", ["nobody", "silent"])
@pytest.mark.parametrize("which", ["broker", "redis"])
def test_start_against_a_server_that_does_not_answer_names_it_and_waits_until_told_to_stop(
    request, flights, kafka, redis_url, server, which
):
    address = request.getfixturevalue(server)
    text = FLIGHTS
    if which == "redis":
        text = with_topics(kafka)
    broker, redis = (address, redis_url) if which == "broker" else (kafka, f"redis://{address}/0")
    command = [HEADRACE, "run", str(flights(text)), "--broker", broker, "--redis", redis]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = worker.stderr.readline()
        assert (
            f"warning: waiting for {'the broker: broker' if which == 'broker' else 'Redis: Redis at'} {address}" in said
        )
        assert "does not answer" in said
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert (worker.returncode, out) == (0, "")
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == ["told to stop before it began"]


def with_topics(kafka):
    """The text of a pipeline file whose topics are there."""
    name = f"cli-{time.time_ns()}"
    create_topics(kafka, {f"{name}.departures": 1, f"{name}.arrivals": 1})
    text = FLIGHTS.replace('"cli"', f'"{name}"').replace('"late"', f'"{name}.late"')
    return text.replace('"departures"', f'"{name}.departures"').replace('"arrivals"', f'"{name}.arrivals"')


def test_port_that_is_taken_is_named(flights, silent):
    port = silent.rpartition(":")[2]
    command = [HEADRACE, "run", str(flights()), "--web-port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"port {port} for /metrics cannot be used" in done.stderr.splitlines()[-1]


def test_worker_that_is_told_to_stop_while_it_starts_stops(flights, kafka):
    with socket.create_server(("127.0.0.1", 0)) as server:
        redis = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        command = [HEADRACE, "run", str(flights(with_topics(kafka))), "--broker", kafka, "--redis", redis]
        worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()  # and never answer
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        connection.close()
    assert "Traceback" not in worker.stderr.read()


def test_evaluate_prints_one_json_object(capsys, flights, tmp_path):
    lines = [{"flight": f"f{i}", "time": 1e9 + i, "origin": "JFK", "delay": float(i % 60)} for i in range(200)]
    events, labels = tmp_path / "events.ndjson", tmp_path / "labels.ndjson"
    events.write_text("\n".join(map(json.dumps, lines)))
    labels.write_text("\n".join(json.dumps(row | {"time": row["time"] + 60}) for row in lines))
    status, out, err = run(capsys, "evaluate", flights(), "--events", events, "--labels", labels, "--json")
    assert (status, err) == (0, "")
    results = json.loads(out)
    assert results["events"] == results["joined"] == 200
