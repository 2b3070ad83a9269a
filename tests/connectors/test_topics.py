"""Administration: topics are made once, offsets told, and refusals say what to do."""

import pytest

from headrace.connectors import topics
from headrace.connectors.topics import (
    committed_offsets,
    create_topics,
    end_offsets,
    first_offsets,
    partitions_of,
    remove_member,
)
from headrace.errors import InputError, Refused, Unreachable


def test_missing_topics_are_made_and_others_left_alone(kafka: str, unique: str) -> None:
    a, b = f"{unique}.a", f"{unique}.b"
    assert partitions_of(kafka, [a, b]) == {}
    assert partitions_of(kafka, [a, b]) == {}, "asking made none"
    assert create_topics(kafka, {a: 3}) == [a]
    assert create_topics(kafka, {a: 5, b: 1}) == [b]
    assert partitions_of(kafka, [a, b]) == {a: 3, b: 1}
    assert create_topics(kafka, {a: 3, b: 1}) == []


def test_a_topic_is_made_with_its_settings(kafka: str, unique: str) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

    create_topics(kafka, {unique: 1}, settings={unique: {"cleanup.policy": "compact"}})
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    assert "compact" in str(admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, unique)]))
    admin.close()


@pytest.mark.parametrize(
    ("name", "partitions", "reason"),
    [("not a name", 1, "contains one or more characters"), ("none", 0, "non-positive")],
)
def test_a_topic_that_cannot_be_made_is_named(kafka: str, name: str, partitions: int, reason: str) -> None:
    with pytest.raises(Refused, match=f"does not create topic '{name}': .*{reason}"):
        create_topics(kafka, {name: partitions})


def test_an_empty_partition_begins_and_ends_at_zero(kafka: str, unique: str) -> None:
    create_topics(kafka, {unique: 2})
    both = [(unique, 0), (unique, 1)]
    assert first_offsets(kafka, both) == end_offsets(kafka, both) == {(unique, 0): 0, (unique, 1): 0}
    assert end_offsets(kafka, []) == {}


def test_offsets_of_a_partition_that_is_not_there_are_an_error(kafka: str, unique: str) -> None:
    with pytest.raises(InputError, match=rf"no such partition among {unique}\[0\]"):
        end_offsets(kafka, [(unique, 0)])


def test_a_group_that_is_unknown_has_committed_nothing_and_no_members(kafka: str, unique: str) -> None:
    assert committed_offsets(kafka, unique) == {}
    assert not remove_member(kafka, unique, "slot")


def test_a_broker_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert topics.PATIENCE_SECONDS < 10, "what a start promises"
    monkeypatch.setattr(topics, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(Unreachable, match=r"broker 127.0.0.1:1 does not answer .*--broker or HEADRACE_BROKER"):
        partitions_of("127.0.0.1:1", ["t"])
