"""What the README shows is run as it stands there: its pipeline, its commands, its snippets."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kafka import KafkaProducer

from headrace.connectors.topics import create_topics, end_offsets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    headrace ")]
HEADRACE = Path(sys.executable).parent / "headrace"
EVENTS = 2_000


def run(command, folder, environment, timeout=100):
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    write = re.search(r'python -c "(from headrace.stream.flights.*?)"', README).group(1)
    run([sys.executable, "-c", write.replace("'data'", f"'data', {EVENTS}")], folder, os.environ.copy())
    return folder


@pytest.fixture(scope="module")
def environment(folder, kafka, redis_url):
    """The variables of the README, with the flights in Kafka and a worker that has read them."""
    environment = os.environ | {"HEADRACE_BROKER": kafka, "HEADRACE_REDIS": redis_url}
    topics = {"flights.departures": "departures.ndjson", "flights.arrivals": "arrivals.ndjson"}
    create_topics(kafka, dict.fromkeys([*topics, "flights.late"], 2))
    producer = KafkaProducer(bootstrap_servers=kafka)
    for topic, file in topics.items():
        for line in (folder / "data" / file).read_bytes().splitlines():
            producer.send(topic, line, key=re.match(rb'\{"flight":"([^"]*)"', line).group(1))
    producer.close()
    (command,) = [c for c in COMMANDS if c.startswith("headrace run")]
    worker = subprocess.Popen(
        [HEADRACE, *command.split()[1:]], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until_predicted(kafka, worker)  # the snippets wait for ten seconds, and kernels may be compiled before
        yield environment
    finally:
        worker.terminate()
        try:
            _, log = worker.communicate(timeout=60)
        finally:
            worker.kill()
    assert worker.returncode == 0, log


def wait_until_predicted(kafka, worker):
    deadline = time.monotonic() + 100
    while sum(end_offsets(kafka, [("flights.late", p) for p in (0, 1)]).values()) < EVENTS:
        assert worker.poll() is None, worker.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_the_pipeline_shown_is_the_example():
    assert SNIPPETS[0] == (ROOT / "examples" / "flights.py").read_text()


def test_each_command_is_covered_here_or_by_the_tests_of_the_command():
    kinds = {" ".join(c.split()[1:3]) if "snapshots" in c else c.split()[1] for c in COMMANDS}
    assert kinds == {"check", "evaluate", "run", "snapshots list", "snapshots show"}


@pytest.mark.parametrize("kind", ["check", "evaluate"])
def test_commands_without_servers_do_what_is_said(folder, kind):
    (command,) = [c for c in COMMANDS if c.startswith(f"headrace {kind}")]
    out = run([HEADRACE, *command.split()[1:]], folder, os.environ.copy())
    assert {"check": "flights: declared well", "evaluate": f"{EVENTS:,}"}[kind] in out


def test_predictions_are_read_as_shown(folder, environment):
    out = run([sys.executable, "-c", SNIPPETS[1]], folder, environment)
    lines = [line.split() for line in out.splitlines()]
    assert len({line[-1] for line in lines}) == len(lines) == EVENTS
    assert all(0 <= float(line[-3]) <= 1 for line in lines)


def test_snapshots_are_read_as_shown(folder, environment):
    (show,) = [c for c in COMMANDS if c.startswith("headrace snapshots show")]
    (listing,) = [c for c in COMMANDS if c.startswith("headrace snapshots list")]
    deadline = time.monotonic() + 60
    while (
        f"{EVENTS:,}"
        not in (
            found := subprocess.run(
                [HEADRACE, *listing.split()[1:]],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        ).stdout
    ):
        assert time.monotonic() < deadline, found.stdout + found.stderr
        time.sleep(0.5)
    assert "version" in run([HEADRACE, *show.split()[1:]], folder, environment)
    version, prediction = run([sys.executable, "-c", SNIPPETS[2]], folder, environment).split(maxsplit=1)
    assert int(version) >= 1
    assert 0 < float(prediction.strip(" []\n")) < 1


def test_the_mistake_shown_gives_the_message_shown(tmp_path):
    code = (ROOT / "examples" / "flights.py").read_text().replace('numeric("dep_delay")', 'numeric("dep_dely")')
    (tmp_path / "flights.py").write_text(code)
    done = subprocess.run([HEADRACE, "check", "flights.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    shown = re.search(r"\$ headrace check flights.py\n    (headrace: .*)", README).group(1)
    assert done.returncode == 1
    assert done.stderr.strip() == shown
