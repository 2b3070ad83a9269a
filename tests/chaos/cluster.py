"""Three real Kafka nodes as processes on this machine, replication 3, each of which may be killed and started again.

    with cluster(folder) as brokers:
        brokers.address                       # three bootstrap addresses
        brokers[brokers.leader_of("t", 0)].kill()

Every node is broker and voter of the quorum, so that killing one also takes a controller away now and then; two have
to live. Nodes are numbered 0 to 2 here, as their index says; Kafka knows them as 1 to 3.
"""

from __future__ import annotations

import base64
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from headrace.connectors.embedded import Kafka, free_port
from headrace.errors import SetupError

Answer = TypeVar("Answer")

NODES = 3
IN_SYNC_SECONDS = 60.0
OFFSETS, TRANSACTIONS = "__consumer_offsets", "__transaction_state"

SETTINGS = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "unclean.leader.election.enable": "false",
    "broker.session.timeout.ms": "3000",  # a killed node loses its leaderships after that
    "broker.heartbeat.interval.ms": "500",
    "replica.lag.time.max.ms": "4000",  # a frozen node is out of sync after that
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1500",
    "leader.imbalance.check.interval.seconds": "10",  # leaderships go back to a node that is in sync again
    "leader.imbalance.per.broker.percentage": "0",
}


class Node(Kafka):
    """One of the nodes; it `answers` once it sees itself among the brokers of the cluster."""

    def __init__(self, folder: Path, number: int, port: int, heap: str, settings: dict[str, str]) -> None:
        super().__init__(folder, port, heap, settings)
        self.name = f"Kafka node {number}"

    def answers(self) -> bool:
        patience = {"bootstrap_timeout_ms": 2_000, "request_timeout_ms": 2_000}
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.address, **patience)
        except (KafkaError, OSError):
            return False
        try:
            seen = admin.describe_cluster()["brokers"]
        except (KafkaError, OSError):
            return False
        finally:
            admin.close()
        return any(broker["port"] == self.port for broker in seen)


class Brokers:
    """The nodes, and what a client can ask about them. Any node may be down while a question is put."""

    def __init__(self, nodes: Sequence[Kafka]) -> None:
        self.nodes = nodes

    def __getitem__(self, number: int) -> Kafka:
        return self.nodes[number]

    def __iter__(self) -> Iterator[Kafka]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def address(self) -> str:
        """Of all nodes, comma separated: what clients bootstrap from."""
        return ",".join(node.address for node in self.nodes)

    def leader_of(self, topic: str, partition: int) -> int | None:
        """The node that leads a partition; None while there is none."""
        (found,) = self.ask(lambda admin: admin.describe_topics([topic]))
        of = {p["partition_index"]: p["leader_id"] for p in found["partitions"]}
        return of[partition] - 1 if of.get(partition, -1) > 0 else None

    def coordinator_of(self, group: str) -> int | None:
        """The node that coordinates a consumer group: the leader of the partition that its offsets lie in."""
        return self._leader_for(OFFSETS, group)

    def transactions_of(self, transactional_id: str) -> int | None:
        """The node that coordinates the transactions of a producer."""
        return self._leader_for(TRANSACTIONS, transactional_id)

    def out_of_sync(self) -> list[str]:
        """Partitions, those of Kafka's own topics included, that have fewer replicas in sync than they have."""
        topics = self.ask(lambda admin: admin.describe_topics(admin.list_topics()))
        return [
            f"{topic['name']}-{p['partition_index']}: leader {p['leader_id']}, in sync {p['isr_nodes']}"
            for topic in topics
            for p in topic["partitions"]
            if p["leader_id"] < 0 or set(p["isr_nodes"]) != set(p["replica_nodes"])
        ]

    def wait_until_in_sync(self, seconds: float = IN_SYNC_SECONDS) -> None:
        """Until every replica of every partition is in sync. Raises SetupError when that takes longer."""
        until = time.monotonic() + seconds
        while behind := self.out_of_sync():
            if time.monotonic() > until:
                raise SetupError(f"not in sync within {seconds:g} s: {'; '.join(behind[:5])}")
            time.sleep(0.1)

    def ask(self, question: Callable[[KafkaAdminClient], Answer]) -> Answer:
        """Put a question to any node that lives; asked again, for a while, when its answer does not come."""
        until = time.monotonic() + IN_SYNC_SECONDS
        while True:
            living = [node.address for node in self.nodes if node.running]
            patience = {"bootstrap_timeout_ms": 5_000, "request_timeout_ms": 5_000}
            try:
                admin = KafkaAdminClient(bootstrap_servers=living, **patience)
                try:
                    return question(admin)
                finally:
                    admin.close()
            except (KafkaError, OSError, ValueError):  # kafka-python: ValueError where nobody can be reached
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)

    def _leader_for(self, topic: str, name: str) -> int | None:
        (found,) = self.ask(lambda admin: admin.describe_topics([topic]))
        count = len(found["partitions"])
        return self.leader_of(topic, (java_hash(name) & 0x7FFFFFFF) % count) if count else None


@contextmanager
def cluster(folder: Path, heap: str = "320m", properties: dict[str, str] | None = None) -> Iterator[Brokers]:
    """Three nodes with their data under `folder`; all end with the block, or with this process.

    properties  added to every node's configuration
    """
    identity = base64.b64encode(os.urandom(16), b"Aa").decode().rstrip("=")  # a - in front would look like an option
    ports = distinct_ports(2 * NODES)
    clients, controllers = ports[:NODES], ports[NODES:]
    quorum = ",".join(f"{i + 1}@127.0.0.1:{port}" for i, port in enumerate(controllers))
    nodes = []
    for i in range(NODES):
        own = folder / f"node-{i}"
        own.mkdir(parents=True, exist_ok=True)
        (own / "cluster-id").write_text(identity)  # what Kafka.prepare would make up for each
        settings = {
            "node.id": str(i + 1),
            "controller.quorum.voters": quorum,
            "listeners": f"PLAINTEXT://127.0.0.1:{clients[i]},CONTROLLER://127.0.0.1:{controllers[i]}",
        }
        nodes.append(Node(own, i, clients[i], heap, SETTINGS | settings | (properties or {})))
    with ExitStack() as running:
        for node in nodes:
            running.callback(node.kill)  # a stop would hand leaderships over, and wait for a quorum that goes away
        with ThreadPoolExecutor(NODES) as together:  # one alone has no quorum and would not come up
            for started in [together.submit(node.start) for node in nodes]:
                started.result()
        yield Brokers(nodes)


def distinct_ports(count: int) -> list[int]:
    """So many different ports that nobody uses now."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)


def java_hash(text: str) -> int:
    """String.hashCode: the places of a group's offsets and of a producer's transactions follow from it."""
    value = 0
    for (unit,) in struct.iter_unpack("<H", text.encode("utf-16-le")):
        value = (31 * value + unit) & 0xFFFFFFFF
    return value
