"""A tiny Faust worker, started by the tests as a process: it echoes its input, one transaction per cycle.

python echo_worker.py BROKER GROUP INPUT OUTPUT [SLOT]; without a slot it commits outside transactions.
Each output record says where its input lay and who echoed it: "TOPIC PARTITION OFFSET PID". Prints a line per event of
its life, for the tests to wait for. In the environment OTHER names a topic for an ordinary agent in the same app, and
BYTES bounds what is in hand.
"""

import asyncio
import os
import sys
from typing import Any

import faust
from faust.types import TP

from headrace.connectors.groups import Member
from headrace.connectors.records import Partition
from headrace.connectors.transactions import CycleProducer, Output
from headrace.connectors.transport import Assigned, Runs, Settings, Transport

BROKER, GROUP, INPUT, OUTPUT = sys.argv[1:5]
SLOT = sys.argv[5] if len(sys.argv) > 5 else None
CYCLE_SECONDS = 0.05


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Echo:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.fresh, self.hurry, self.ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.member = Member(-1, "")
        self.positions: dict[Partition, int] = {}
        self.producer = CycleProducer(BROKER, transactional_id=f"{GROUP}-{SLOT}" if SLOT else None)

    async def before_start(self) -> None:
        await self.ready.wait()

    def assigned(self, assigned: Assigned) -> None:
        self.member, self.positions = assigned.member, dict(assigned.starts)
        say("assigned", len(assigned.starts), "generation", assigned.member.generation)

    def revoking(self, partitions: set[TP]) -> None:
        self.hurry.set()

    def revoked(self, partitions: set[TP]) -> None:
        say("revoked", len(partitions), "in hand", len(self.events))

    def add(self, event: Any) -> None:
        self.events.append(event)
        self.fresh.set()

    async def run(self) -> None:
        try:
            await self.producer.start()
            self.ready.set()
            while True:
                await asyncio.wait([asyncio.ensure_future(self.fresh.wait())], timeout=1.0)
                await asyncio.wait([asyncio.ensure_future(self.hurry.wait())], timeout=CYCLE_SECONDS)
                self.fresh.clear(), self.hurry.clear()
                await self.commit()
                at_end = {tp for tp, end in app.consumer.ends().items() if self.positions.get(tp, -1) >= end}
                if at_end and at_end == self.positions.keys():
                    say("at end", sum(self.positions.values()))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            say("crash", type(error).__name__, error)
            await app.crash(error)

    async def commit(self) -> None:
        events, self.events = self.events, []
        outputs: dict[Partition, list[Output]] = {}
        offsets: dict[Partition, int] = {}
        for run in (event.value for event in events):
            lines = outputs.setdefault((OUTPUT, run.partition), [])
            for record in run.records:
                origin = f"{run.topic} {run.partition} {record.offset} {os.getpid()}"
                lines.append((record.key, origin.encode(), record.headers, None))
            offsets[run.topic, run.partition] = run.next
        if events:
            for partition in range(len(self.positions)):
                say("cycle of", partition, *[e.value.size for e in events if e.value.partition == partition])
            await self.producer.commit_cycle(outputs, offsets, GROUP, self.member)
            self.positions |= offsets
        for event in events:
            event.ack()


class App(faust.App):
    async def on_start(self) -> None:
        await super().on_start()
        self.add_future(echo.run())

    def _new_transport(self) -> Transport:
        limit = int(os.environ.get("BYTES", 32 << 20))
        settings = Settings(frozenset([INPUT]), {INPUT: "earliest"}, max_bytes_in_hand=limit, max_run_records=200)
        return Transport(self.conf.broker_consumer, self, echo, settings)


echo = Echo()
app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    store="memory://",
    topic_disable_leader=True,
    consumer_group_instance_id=SLOT,
    broker_session_timeout=6.0,
    broker_heartbeat_interval=0.5,
    broker_rebalance_timeout=10.0,
    stream_buffer_maxsize=1 << 20,
    consumer_max_fetch_size=256 << 10,
    broker_commit_interval=0.5,
    value_serializer="raw",
)


@app.agent(app.topic(INPUT, schema=Runs()), concurrency=1)
async def take(stream: Any) -> None:
    async for event in stream.noack().events():
        echo.add(event)


if other := os.environ.get("OTHER"):

    @app.agent(app.topic(other, value_serializer="raw"))
    async def beside(stream: Any) -> None:
        async for value in stream:
            say("other", value.decode())


@app.on_before_shutdown.connect
async def bye(app: Any, **options: Any) -> None:
    await echo.producer.close()
    say("bye in hand", len(echo.events))


if __name__ == "__main__":
    sys.argv = ["echo", "worker", "-l", os.environ.get("LOG", "warn"), "--without-web"]
    app.main()
