"""Broker and Redis away, frozen, full or not yet there: a worker waits, says so, and goes on by itself."""

import os
import signal

import pytest
import redis as redis_client

from headrace.connectors import embedded

OFTEN = "latency='20ms', max_cycle_rows=100, snapshots=Snapshots('300ms')"


@pytest.fixture(scope="module")
def broker():
    """A broker of our own, to be killed."""
    with embedded.kafka() as server:
        yield server


@pytest.fixture(scope="module")
def store():
    with embedded.redis() as server:
        yield server


@pytest.fixture(scope="module")
def kafka(broker):
    return broker.address


@pytest.fixture(scope="module")
def redis_url(store):
    return store.url


@pytest.fixture
def running(broker, store):
    """Both servers run, whatever the test before has done to them."""
    for server in (broker, store):
        if not server.running:
            server.start()


@pytest.fixture
def shop(open_shop, running, request):
    """A pipeline on these servers."""
    return open_shop(request.node.name[5:40], changes=OFTEN)


def waits_for(worker, name):
    """Wait until a worker that is alive says that it waits for this."""
    worker.until(**{f'waiting{{for="{name}"}}': 1})


def test_worker_that_is_started_before_its_servers_waits_says_so_and_begins_by_itself(
    shop, broker, store, visits_and_sales
):
    rows = visits_and_sales(1, 300)
    shop.produce(rows)
    broker.stop()
    store.stop()
    worker = shop.start()
    waits_for(worker, "broker")
    assert f"waiting for the broker: broker {broker.address} does not answer" in worker.says("waiting for")
    assert worker.page("/livez")[0] == 200
    status, text = worker.page_or_error("/readyz")
    assert (status, text.startswith(f"waiting for the broker: broker {broker.address}")) == (503, True)
    assert worker.metrics()["running"] == worker.metrics()["ready"] == 0
    broker.start()
    waits_for(worker, "redis")
    worker.says(f"waiting for Redis: Redis at {store.address}")
    assert worker.metrics()['waiting{for="broker"}'] == 0
    store.start()
    worker.until(events=300, running=1)
    assert worker.page("/readyz") == (200, "running")
    assert worker.end() == 0
    assert "Traceback" not in worker.printed
    assert shop.sources() == shop.events()


def test_bad_login_is_not_waited_for(shop, store):
    worker = shop.start(HEADRACE_REDIS=f"redis://someone:secret@{store.address}/0")
    assert worker.ends() == 1
    assert len(worker.printed.splitlines()) == 1
    assert f"error: Redis at {store.address}/0 refused the login" in worker.printed
    assert "secret" not in worker.printed


def test_worker_that_is_started_while_redis_is_full_waits(shop, store):
    client = redis_client.Redis.from_url(store.url)
    client.config_set("maxmemory", "1")
    worker = shop.start()
    waits_for(worker, "redis")
    assert "it is full" in worker.page_or_error("/readyz")[1]
    client.config_set("maxmemory", "0")
    worker.until(running=1)
    assert worker.end() == 0


def test_broker_that_goes_and_comes_back_costs_nothing(shop, broker, visits_and_sales):
    rows = visits_and_sales(2, 1_500)
    shop.produce(rows[:1_000])
    worker = shop.start()
    worker.until(events=200)
    pid = worker.process.pid
    broker.kill()
    waits_for(worker, "broker")
    assert worker.page("/livez")[0] == 200
    assert worker.page_or_error("/readyz")[0] == 503
    broker.start()
    shop.produce(rows[1_000:])
    worker.until(events=1_500, labels=sum(role == "labels" for role, _ in rows))
    assert worker.process.pid == pid
    assert worker.end() == 0
    assert worker.printed.count("aiokafka: ") < 10, "one line says it"
    assert shop.sources() == shop.events()


@pytest.mark.parametrize("trouble", ["killed", "frozen", "full"])
def test_redis_in_trouble_stops_no_predictions(shop, store, visits_and_sales, trouble):
    rows = visits_and_sales(3, 900)
    shop.produce(rows[:600])
    worker = shop.start()
    worker.until(events=200, snapshot_version=1)
    client = redis_client.Redis.from_url(store.url)
    if trouble == "killed":
        store.kill()
    elif trouble == "frozen":
        os.kill(store.pid, signal.SIGSTOP)
    else:
        client.config_set("maxmemory", "1")
    shop.produce(rows[600:])
    worker.until(events=900, labels=sum(role == "labels" for role, _ in rows))
    waits_for(worker, "redis")
    assert worker.page("/livez")[0] == 200
    status, text = worker.page("/readyz")
    assert (status, text.startswith("running; waiting for Redis: ")) == (200, True)
    if trouble == "killed":
        store.start()
    elif trouble == "frozen":
        os.kill(store.pid, signal.SIGCONT)
    else:
        client.config_set("maxmemory", "0")
    worker.eventually(lambda: worker.metrics().get('waiting{for="redis"}') == 0, lambda: worker.printed)
    assert worker.end() == 0
    assert shop.sources() == shop.events()
    assert shop.snapshot().meta["metrics"]["events"] == 900


def test_worker_that_is_told_to_stop_while_the_broker_is_away_stops_and_the_next_one_goes_on(
    open_shop, running, broker, visits_and_sales
):
    shop = open_shop("stops", changes="max_cycle_rows=20")  # so many commits that one is in hand
    rows = visits_and_sales(4, 8_000)
    shop.produce(rows)
    worker = shop.start()
    worker.until(events=200)
    broker.kill()
    assert worker.end() == 0
    assert "what was not committed is read again by the next start" in worker.printed
    assert "Traceback" not in worker.printed
    broker.start()
    again = shop.start()
    again.until(events=8_000, labels=sum(role == "labels" for role, _ in rows))
    assert again.end() == 0
    assert shop.sources() == shop.events()


def test_worker_that_is_told_to_stop_while_redis_is_away_leaves_the_group(shop, store, visits_and_sales):
    rows = visits_and_sales(6, 600)
    shop.produce(rows[:400])
    worker = shop.start()
    worker.until(events=200, snapshot_version=1)
    store.kill()
    shop.produce(rows[400:])
    worker.until(events=600)
    waits_for(worker, "redis")
    assert worker.end() == 0
    assert "not stopped within" not in worker.printed
    store.start()
    other = shop.start(slot=1)
    other.says("owns partitions 0, 1")
    assert other.end() == 0


STUCK = """
import time
from dataclasses import dataclass, replace
import headrace.stream.health as health
import headrace.stream.worker as worker
from headrace.models import LogisticRegression
from headrace.models.base import register

health.STUCK_SECONDS, worker.STOP_SECONDS = 3.0, 3.0


@register
@dataclass
class Hanging(LogisticRegression):
    def predict(self, x, out):
        out.fill(0.5)
        if (x.numeric[:, 0] == 1e3).any():
            time.sleep(1_000)


pipeline = replace(pipeline, model=Hanging())
"""


def test_worker_that_is_stuck_is_not_alive_and_ends_nevertheless_when_told_to(shop):
    with shop.file.open("a") as file:
        file.write(STUCK)
    shop.produce([("events", {"id": f"v{i}", "time": 1_700_000_000, "site": "a", "price": 1e3}) for i in range(50)])
    worker = shop.start()
    worker.until(running=1)
    bad = lambda: worker.page_or_error("/livez")[0] == 503  # noqa: E731
    worker.eventually(bad, lambda: (worker.page_or_error("/livez"), worker.metrics(), worker.printed))
    assert "records wait; state: running" in worker.page_or_error("/livez")[1]
    assert worker.end() == 0
    assert "not stopped within" in worker.printed
    assert "what was not committed is read again by the next start" in worker.printed
