"""Three nodes on one machine: what is replicated outlives the node that led it."""

import pytest
from chaos.cluster import OFFSETS, cluster
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from headrace.connectors.topics import create_topics


@pytest.fixture(scope="module")
def brokers(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("cluster")) as brokers:
        yield brokers


def replicas(brokers, topic):
    (found,) = brokers.ask(lambda admin: admin.describe_topics([topic]))
    return [len(partition["replica_nodes"]) for partition in found["partitions"]]


def read(brokers, topic):
    consumer = KafkaConsumer(bootstrap_servers=brokers.address, group_id=None, enable_auto_commit=False)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    values, end = [], consumer.end_offsets([partition])[partition]
    while consumer.position(partition) < end:
        values += [record.value for records in consumer.poll(1000).values() for record in records]
    consumer.close()
    return values


def test_topic_outlives_its_killed_leader_which_comes_back_in_sync(brokers):
    create_topics(brokers.address, {"visits": 1})
    assert replicas(brokers, "visits") == [3]
    number = brokers.leader_of("visits", 0)
    leader = brokers[number]
    producer = KafkaProducer(bootstrap_servers=brokers.address, acks="all", enable_idempotence=True)
    for i in range(100):
        if i == 50:
            leader.kill()
        producer.send("visits", b"%d" % i).get(60)
    assert brokers.leader_of("visits", 0) not in (None, number)
    assert not leader.running
    leader.start()
    brokers.wait_until_in_sync()
    assert brokers.out_of_sync() == []
    producer.close()
    assert read(brokers, "visits") == [b"%d" % i for i in range(100)]


def test_coordinator_of_a_group_is_where_its_offsets_are_written_and_moves_when_it_is_killed(brokers):
    create_topics(brokers.address, {"seen": 1})
    consumer = KafkaConsumer(bootstrap_servers=brokers.address, group_id="readers", enable_auto_commit=False)
    at = TopicPartition("seen", 0)
    consumer.assign([at])
    consumer.commit({at: OffsetAndMetadata(7, "", -1)})
    assert set(replicas(brokers, OFFSETS)) == {3}
    numbers = consumer.partitions_for_topic(OFFSETS)
    ends = consumer.end_offsets([TopicPartition(OFFSETS, number) for number in numbers])
    (written,) = [tp.partition for tp, end in ends.items() if end]
    coordinator = brokers.coordinator_of("readers")
    assert coordinator == brokers.leader_of(OFFSETS, written)
    brokers[coordinator].kill()
    consumer.commit({at: OffsetAndMetadata(8, "", -1)})
    assert consumer.committed(at) == 8
    consumer.close()
    assert brokers.coordinator_of("readers") not in (None, coordinator)
    brokers[coordinator].start()
    brokers.wait_until_in_sync()


def test_node_that_is_down_is_out_of_sync(brokers):
    create_topics(brokers.address, {"sales": 1})
    brokers.wait_until_in_sync()
    brokers[1].stop()
    assert any(line.startswith("sales-0") for line in brokers.out_of_sync())
    brokers[1].start()
    brokers.wait_until_in_sync()
