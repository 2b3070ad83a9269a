"""A worker with a torch module, killed in a backlog: what it has learned and counted is the same afterwards."""

import signal

import numpy as np

from headrace.stream.load import load_pipeline
from headrace.stream.metrics_page import LEARNED
from headrace.stream.snapshot import unpack

TORCH_SHOP = """
from dataclasses import replace

from headrace.models import DCN, Embeddings, Torch

model = StandardScaler() | Torch(DCN(1, [16]), batch_size=16, embeddings=Embeddings(4, 6), max_skipped=1_000)
heavy = pl.when(pl.col("time") % 100 < 0.5).then(1e30).otherwise(1.0)  # no step is made with such an example
changes = dict(
    latency="20ms", max_cycle_rows=200, snapshots=Snapshots("300ms"), model=model,
    labels=replace(parts["labels"], weight=heavy), features=[*parts["features"], category("id")],
)
pipeline = Pipeline(**(parts | changes))
app = pipeline.app
"""


def test_killed_worker_goes_on_with_the_same_module_bit_for_bit(open_shop, visits_and_sales):
    shop = open_shop("torch", partitions=2)
    shop.file.write_text(shop.file.read_text() + TORCH_SHOP)
    shop.pipeline = load_pipeline(str(shop.file))
    rows = visits_and_sales(5, 6_000)
    shop.produce(rows)
    worker = shop.start()
    worker.until(snapshot_version=1, events=1_000)
    assert worker.end(signal.SIGKILL) == -9
    again = shop.start()
    again.until(events=6_000, labels=sum(role == "labels" for role, _ in rows))
    _, page = again.page("/metrics")
    shown = again.metrics()
    assert again.end() == 0
    assert shop.sources() == shop.events()
    engine, expected = shop.by_hand()
    assert engine.arrays["model/1/batches"][0] > 300
    snapshot = shop.snapshot()
    found, _ = unpack(snapshot.arrays, snapshot.meta, shop.pipeline)
    for name, array in engine.state().shared.items():
        np.testing.assert_array_equal(found.shared[name], array, name)
    got = {p["source"]: p["prediction"] for of in shop.predictions().values() for p in of}
    assert got == expected
    counted = engine.counters()
    for name, words in LEARNED.items():
        assert f"# HELP headrace_{name}_total {words}\n# TYPE headrace_{name}_total counter\n" in page
        assert counted[name] == snapshot.meta["metrics"][name]
        assert counted[name] - 30 <= shown[name] <= counted[name]  # but for the short step at the end of its cycle
    assert counted["evicted_embeddings"] > 1_000
    assert 10 < counted["skipped_steps"] < 100
