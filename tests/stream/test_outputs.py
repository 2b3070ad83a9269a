"""What a worker writes besides values: the headers of the events, and compressed batches where that is declared."""

import asyncio
import json

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from headrace.connectors.fetching import keep_bytes
from headrace.connectors.reading import RangeReader
from headrace.connectors.record_batches import ATTRIBUTES, CODEC, scan

EVENTS = 200


def codecs(address: str, topic: str) -> set[int]:
    """How the batches of a topic's first partition are compressed, as their attributes say."""

    async def fetch() -> set[int]:
        tp = TopicPartition(topic, 0)
        consumer = AIOKafkaConsumer(bootstrap_servers=address, isolation_level="read_uncommitted")
        await consumer.start()
        try:
            keep_bytes(consumer._fetcher)
            consumer.assign([tp])
            consumer.seek(tp, 0)
            async with asyncio.timeout(20):
                while tp not in consumer._fetcher._records:
                    await asyncio.sleep(0.01)
            raw = consumer._fetcher._records[tp]._partition_records._records.raw
        finally:
            await consumer.stop()
        batches = scan(raw, 0, 0, 10**6).batches
        return {int(a) & CODEC for a in batches[:, ATTRIBUTES] if not a & 32}  # markers are never compressed

    return asyncio.run(fetch())


@pytest.mark.parametrize(
    ("options", "compression", "codec"), [((), "zstd", 4), (("--plain",), "lz4", 3)], ids=["fast", "plain"]
)
def test_worker_carries_headers_on_and_compresses_what_it_writes(open_shop, options, compression, codec):
    shop = open_shop(
        "out",
        changes=f"predictions=Predictions(parts['predictions'].topic, headers=True, compression='{compression}')",
    )
    sent = {}
    for i in range(EVENTS):
        headers = [("traceparent", b"00-%032x-01" % i), ("é", b""), ("more", b"\xff" * 300)][: i % 4]
        value = b'{"id":"v%d","time":%d,"site":"a"}' % (i, 1_700_000_000 + i)
        offset = shop.send(shop.visits, value if i != 5 else b"bad", partition=i % 2, key=b"k%d" % i, headers=headers)
        sent[f"{shop.visits}-{i % 2}-{offset}"] = headers
    worker = shop.start(*options)
    worker.until(events=EVENTS - 1)
    assert worker.end() == 0, worker.printed
    found = {}
    ends = {(tp.topic, tp.partition): end for tp, end in shop._ends(shop.scores).items()}
    with RangeReader(shop.kafka, dict.fromkeys(ends, 0)) as reader:
        for (topic, p), end in ends.items():
            for record in reader.read(topic, p, until=end):
                found[json.loads(record.value)["source"]] = list(record.headers)
    bad = next(source for source in sent if source not in found)
    assert found == {source: headers for source, headers in sent.items() if source != bad}
    assert codecs(shop.kafka, shop.scores) == {codec}
    assert codecs(shop.kafka, shop.pipeline.journal_topic) <= {0, codec}  # what is small is no smaller compressed
