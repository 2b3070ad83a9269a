"""Fixtures that every test may ask for: real servers, names that no other test uses, topics."""

import re
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from headrace.connectors import embedded
from headrace.connectors.topics import create_topics


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[embedded.Kafka]:
    """One broker for all tests. Those that stop, kill or freeze a broker start their own."""
    with embedded.kafka() as server:
        yield server


@pytest.fixture(scope="session")
def kafka(kafka_server: embedded.Kafka) -> str:
    """The address of the broker, "127.0.0.1:PORT"."""
    return kafka_server.address


@pytest.fixture(scope="session")
def redis_server() -> Iterator[embedded.Redis]:
    """One Redis for all tests. Those that stop, kill or freeze Redis start their own."""
    with embedded.redis() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: embedded.Redis) -> str:
    return redis_server.url


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name that fits a topic, a group or a pipeline and that no other test uses."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")
    return f"{name[:40].strip('-')}-{uuid4().hex[:8]}"


@pytest.fixture
def create_topic(kafka: str, unique: str) -> Callable[..., str]:
    """create_topic(suffix="events", partitions=1, **config) -> the new topic's name, `unique.suffix`.

    Settings of the topic are given with underscores: create_topic("events", 2, max_message_bytes=4_000_000).
    """

    def create(suffix: str = "events", partitions: int = 1, **config: object) -> str:
        name = f"{unique}.{suffix}"
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        create_topics(kafka, {name: partitions}, settings={name: settings})
        return name

    return create
