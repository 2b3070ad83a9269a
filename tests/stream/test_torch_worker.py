"""A worker whose model is a torch module, killed in a backlog: what it has learned afterwards is the same to the bit."""

import signal

import numpy as np

from headrace.stream.load import load_pipeline
from headrace.stream.snapshot import unpack

TORCH_SHOP = """
from headrace.models import DCN, Embeddings, Torch

model = StandardScaler() | Torch(DCN(1, [16]), batch_size=16, embeddings=Embeddings(4, 8))
changes = dict(latency="20ms", max_cycle_rows=200, snapshots=Snapshots("300ms"), model=model)
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
