"""A tiny Faust worker, started by the tests as a process: it echoes its input, one transaction per cycle.

python echo_worker.py BROKER GROUP INPUT OUTPUT [SLOT]; without a slot it commits outside transactions.
Each output record says where its input lay and who echoed it: "TOPIC PARTITION OFFSET PID"; the slot is committed
beside each offset. Prints a line per event of its life, for the tests to wait for. In the environment

OTHER     names a topic for an ordinary agent in the same app
BYTES     bounds what is in hand
LOST      says what to do when records are gone: stop, earliest
SESSION   seconds until the group does without a silent member
PATIENCE  seconds until a request to the broker is given up
SEEK      seconds to wait before the start offsets are asked for
HOLD      seconds to wait before the first commit
RAW       0: aiokafka reads the record batches
"""

import asyncio
import os
import signal
import sys
from typing import Any

import faust
from faust.types import TP

from headrace.connectors.groups import Member
from headrace.connectors.record_batches import records_of
from headrace.connectors.records import Partition
from headrace.connectors.transactions import CycleProducer, Output
from headrace.connectors.transport import Assigned, Runs, Settings, Transport

BROKER, GROUP, INPUT, OUTPUT = sys.argv[1:5]
SLOT = sys.argv[5] if len(sys.argv) > 5 else None
CYCLE_SECONDS = 0.05
SILENT_SECONDS = 3.0


def seconds(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Echo:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self.committing: list[Any] = []
        self.failed = False
        self.fresh, self.hurry, self.ready = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.member = Member(-1, "")
        self.positions: dict[Partition, int] = {}
        self.producer = CycleProducer(BROKER, transactional_id=f"{GROUP}-{SLOT}" if SLOT else None)

    async def before_start(self) -> None:
        await self.ready.wait()
        say("seeking")
        await asyncio.sleep(seconds("SEEK", 0))

    def patience(self) -> float:
        return 0.0 if not self.events else 0.02

    def assigned(self, assigned: Assigned) -> None:
        self.member, self.positions = assigned.member, dict(assigned.starts)
        say("assigned", len(assigned.starts), "generation", assigned.member.generation)
        for (topic, partition), start in sorted(assigned.starts.items()):
            by, gone = assigned.committed_by.get((topic, partition)), assigned.gone.get((topic, partition), 0)
            say("begins", partition, "at", start, "committed by", by, "gone", gone)

    def revoking(self, partitions: set[TP]) -> None:
        self.hurry.set()

    def revoked(self, partitions: set[TP]) -> None:
        say("revoked", len(partitions), "in hand", len(self.events))

    def add(self, event: Any) -> None:
        self.events.append(event)
        self.fresh.set()
        if self.failed:
            self.let_go()

    def let_go(self) -> None:
        """After an error: Faust waits for all that is in hand; what was not committed is read again."""
        self.failed = True
        for event in self.committing + self.events:
            event.ack()
        self.committing, self.events = [], []

    async def run(self) -> None:
        try:
            await self.producer.start(patience_seconds=60.0)
            self.ready.set()
            heard = True
            while True:
                await asyncio.wait([asyncio.ensure_future(self.fresh.wait())], timeout=1.0)
                if heard != ((app.consumer.silent_seconds() or 0.0) < SILENT_SECONDS):
                    say("silent" if heard else "heard")
                    heard = not heard
                if self.events and (hold := seconds("HOLD", 0)):
                    os.environ["HOLD"] = "0"
                    await asyncio.sleep(hold)
                    say("held", app.consumer.silent_seconds())
                await asyncio.wait([asyncio.ensure_future(self.hurry.wait())], timeout=CYCLE_SECONDS)
                self.fresh.clear(), self.hurry.clear()
                await self.commit()
                at_end = {tp for tp, end in app.consumer.ends().items() if self.positions.get(tp, -1) >= end}
                if at_end and at_end == self.positions.keys():
                    say("at end", sum(self.positions.values()))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            await app.crash(error)

    async def commit(self) -> None:
        self.committing = events = self.events
        self.events = []
        outputs: dict[Partition, list[Output]] = {}
        offsets: dict[Partition, int] = {}
        runs = [run for event in events for run in event.value.runs]
        for run in runs:
            lines = outputs.setdefault((OUTPUT, run.partition), [])
            for record in records_of([run.records]):
                origin = f"{run.topic} {run.partition} {record.offset} {os.getpid()}"
                lines.append((record.key, origin.encode(), record.headers, None))
            offsets[run.topic, run.partition] = run.next
        if events:
            say("came as", *{type(run.records).__name__ for run in runs})
            for partition in range(len(self.positions)):
                say("cycle of", partition, *[run.size for run in runs if run.partition == partition])
            await self.producer.commit_cycle(outputs, offsets, GROUP, self.member, str(SLOT))
            self.positions |= offsets
        for event in events:
            event.ack()
        self.committing = []


class App(faust.App):
    async def on_start(self) -> None:
        await super().on_start()
        self.add_future(echo.run())

    async def crash(self, reason: BaseException) -> None:
        say("crash", type(reason).__name__, reason)
        echo.let_go()
        self.beacon.root.data.crash_reason = reason  # for the exit status
        os.kill(os.getpid(), signal.SIGTERM)

    def _new_transport(self) -> Transport:
        limit = int(os.environ.get("BYTES", 32 << 20))
        lost = os.environ.get("LOST", "stop")
        settings = Settings(
            frozenset([INPUT]),
            {INPUT: "earliest"},
            lost=lost,
            max_bytes_in_hand=limit,
            max_run_records=200,
            raw=os.environ.get("RAW") != "0",
        )
        return Transport(self.conf.broker_consumer, self, echo, settings)


echo = Echo()
app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    store="memory://",
    topic_disable_leader=True,
    consumer_group_instance_id=SLOT,
    broker_session_timeout=seconds("SESSION", 6.0),
    broker_request_timeout=seconds("PATIENCE", 90.0),
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
