"""The load: visits and sales at a steady rate, with all that goes wrong in a topic, from a seed.

    python -m chaos.load BROKER NAME SEED RATE EVENTS      (with `tests` on PYTHONPATH)

Writes RATE events a second and their labels to NAME.visits and NAME.sales, and ends after EVENTS events or at the end
of its standard input: then it sends the labels that are still due and prints what it sent as one JSON line. An outage
of the broker is waited for; what was due meanwhile is left out, not made up for, or each outage would end in a flood.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from threading import Thread
from zlib import crc32

import numpy as np
from chaos.shop import PARTITIONS, SITES, T0

STEP_SECONDS = 0.075  # of event time between two events: an hour is 48,000 of them
BLOCKS_A_SECOND = 20
EARLY_SECONDS = 240.0
PATIENCE_MS = 900_000  # for the broker: longer than any outage

# shares of events: labels of the wrong kind, beside the ordinary ones that come within half an hour
LABELLED = 0.93
LATE, EARLY, TWICE, ORPHAN = 0.005, 0.003, 0.01, 0.002
REPEATED = 0.001  # events whose id waits already
BAD = 0.002  # of the records of each topic

BAD_VISITS = (
    b'{"id": "bad", "time": 17000',  # no JSON
    b'{"id": "bad", "time": 1700000000.0, "price": 1.0}',  # a field is missing
    b'{"id": "bad", "time": 1700000000.0, "site": "s0", "price": "dear"}',  # a field is of another type
    b'{"id": "bad", "time": 4000000000.0, "site": "s0", "price": 1.0}',  # far ahead of the record's timestamp
    b"",
    None,
)
BAD_SALES = (
    b'{"id": "bad", "time": 17000',
    b'{"id": "bad", "time": 1700000000.0}',
    b'{"id": "bad", "time": "soon", "sold": true}',
    b'{"id": "bad", "time": 4000000000.0, "sold": true}',
    b'{"id": "bad", "time": 1700000000.0, "sold": null}',  # a label that is none
    None,
)

Message = tuple[bytes, bytes | None]  # record key, value


class Stream:
    """Makes blocks of so many visits, and of the sales that fall due meanwhile."""

    def __init__(self, seed: int, size: int) -> None:
        self._rng, self._size = np.random.default_rng(seed), size
        self._ahead = int(EARLY_SECONDS / (STEP_SECONDS * size)) + 1  # blocks made before they are sent: early labels
        self._made = self._sent = 0  # blocks
        self._visits: dict[int, list[Message]] = {}  # by block
        self._sales: defaultdict[int, list[tuple[float, bytes, bytes | None]]] = defaultdict(list)  # by block: when

    def next(self) -> tuple[list[Message], list[Message]]:
        """The next block: its visits, and the sales of its time."""
        while self._made <= self._sent + self._ahead:
            self._make(self._made)
            self._made += 1
        self._sent += 1
        return self._visits.pop(self._sent - 1), self._due(self._sent - 1)

    def rest(self) -> Iterator[list[Message]]:
        """The sales still due, when no more visits are sent."""
        for block in sorted(self._sales):
            yield self._due(block)

    def _due(self, block: int) -> list[Message]:
        return [(key, value) for _, key, value in sorted(self._sales.pop(block, []), key=lambda sale: sale[0])]

    def _make(self, block: int) -> None:
        rng, n = self._rng, self._size
        number = np.arange(block * n, (block + 1) * n)
        number[rng.random(n) < REPEATED] -= 3
        when = np.round(T0 + (np.arange(block * n, (block + 1) * n) + rng.random(n)) * STEP_SECONDS, 3)
        site = (SITES * rng.random(n) ** 2).astype(np.int64)
        price = np.round(rng.normal(5, 3, n), 2)
        no_price = rng.random(n) < 0.1
        visits: list[Message] = [
            (key := b"v%d" % i, b'{"id": "%b", "time": %.3f, "site": "s%d", "price": %b}' % (key, t, s, p))
            for i, t, s, p in zip(
                number.tolist(), when.tolist(), site.tolist(),
                [b"null" if missing else b"%.2f" % p for p, missing in zip(price.tolist(), no_price.tolist())],
            )
        ]  # fmt: skip
        for at in np.flatnonzero(rng.random(n) < BAD).tolist():
            visits[at] = (b"bad%d" % at, BAD_VISITS[rng.integers(len(BAD_VISITS))])
        self._visits[block] = visits

        sold = rng.random(n) < 1 / (1 + np.exp(-(0.4 * (price - 5) + (site % 5) - 2)))
        kind = rng.random(n)
        delay = rng.uniform(1, 1_800, n)
        delay[kind < LATE] += 3_900
        early = (kind > LATE) & (kind < LATE + EARLY)
        delay[early] = -rng.uniform(0, EARLY_SECONDS, int(early.sum()))
        self._sell(number, when + delay, sold, rng.random(n) < LABELLED)
        self._sell(number, when + delay + rng.uniform(0, 300, n), rng.random(n) < 0.5, rng.random(n) < TWICE)
        self._sell(-1 - number, when, sold, rng.random(n) < ORPHAN)
        for at in np.flatnonzero(rng.random(n) < BAD).tolist():
            sale = (float(when[at]), b"bad%d" % at, BAD_SALES[rng.integers(len(BAD_SALES))])
            self._sales[block].append(sale)

    def _sell(self, number: np.ndarray, when: np.ndarray, sold: np.ndarray, chosen: np.ndarray) -> None:
        when = np.round(when, 3)
        block = np.maximum((when - T0) // (STEP_SECONDS * self._size), self._sent).astype(np.int64)
        columns = (number[chosen].tolist(), when[chosen].tolist(), sold[chosen].tolist(), block[chosen].tolist())
        for i, t, y, b in zip(*columns):
            key = b"v%d" % i
            value = b'{"id": "%b", "time": %.3f, "sold": %b}' % (key, t, b"true" if y else b"false")
            self._sales[b].append((t, key, value))


class Load:
    """Writes a stream to the broker, `rate` visits a second."""

    def __init__(self, broker: str, name: str, seed: int, rate: int) -> None:
        self.broker, self.topics = broker, (f"{name}.visits", f"{name}.sales")
        self.stream = Stream(seed, max(rate // BLOCKS_A_SECOND, 1))
        self.sent = dict.fromkeys(self.topics, 0)

    async def run(self, events: int) -> None:
        from aiokafka import AIOKafkaProducer  # here: the stream alone needs none

        ended = asyncio.get_running_loop().create_future()
        Thread(target=wait_for_end, args=(asyncio.get_running_loop(), ended), daemon=True).start()
        producer = AIOKafkaProducer(
            bootstrap_servers=self.broker,
            enable_idempotence=True,  # so that a broker that is killed loses and repeats nothing
            max_batch_size=900_000,
            request_timeout_ms=PATIENCE_MS,
            metadata_max_age_ms=30_000,
        )
        await producer.start()
        due = time.monotonic()
        while self.sent[self.topics[0]] < events and not ended.done():
            visits, sales = self.stream.next()
            await self._send(producer, visits, sales)
            due = max(due + 1 / BLOCKS_A_SECOND, time.monotonic() - 1)
            await asyncio.wait([ended], timeout=max(0.0, due - time.monotonic()))
        for sales in self.stream.rest():
            await self._send(producer, [], sales)
        await producer.stop()

    async def _send(self, producer, *messages: list[Message]) -> None:
        """Both topics at once, each partition's records as one batch; returns when all are acknowledged."""
        stamp = int(time.time() * 1000)
        futures = []
        for topic, records in zip(self.topics, messages):
            batches = {}
            for key, value in records:
                partition = crc32(key) % PARTITIONS
                if (batch := batches.get(partition)) is None:
                    batch = batches[partition] = producer.create_batch()
                assert batch.append(key=key, value=value, timestamp=stamp) is not None, "a block larger than a batch"
            for partition, batch in batches.items():
                batch.close()
                futures.append(await producer.send_batch(batch, topic, partition=partition))
            self.sent[topic] += len(records)
        await asyncio.gather(*futures)


def wait_for_end(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    """In a thread: set `ended` when the standard input ends, also because who started us was killed."""
    sys.stdin.read()
    loop.call_soon_threadsafe(ended.set_result, None)


def main(broker: str, name: str, seed: str, rate: str, events: str) -> None:
    load = Load(broker, name, int(seed), int(rate))
    asyncio.run(load.run(int(events)))
    print(json.dumps(load.sent), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
