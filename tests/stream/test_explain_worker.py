"""A worker that explains its predictions: what its records say is what the model says of the same events in process."""

import json

import numpy as np
import pytest

from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.load import load_pipeline
from headrace.stream.reader import SnapshotReader
from headrace.stream.slices import Record, Slice

TORCH = """
from headrace.models import MLP, Embeddings, Torch

parts["model"] = StandardScaler(half_life="1h") | Torch(MLP([16]), batch_size=16, embeddings=Embeddings(4, 8))
"""
BLEND = """
from headrace.models import AMFClassifier, Blend

parts["model"] = Blend(parts["model"], AMFClassifier(n_estimators=3, max_nodes=255))
"""
EXPLAINING = """
changes = dict(snapshots=Snapshots("300ms"), predictions=Predictions(parts["predictions"].topic, explain=3))
pipeline = Pipeline(**(parts | changes))
app = pipeline.app
"""


def explained_by_hand(shop):
    """An engine taken over the journal event by event, and what it says of each just before: (prediction, contributions)"""
    engine, told = Engine(shop.pipeline), {}
    decoders = {role: Decoder(shop.pipeline, role) for role in ("events", "labels")}
    for number in range(shop.partitions):
        engine.own(number)
    for cycle in shop.cycles():
        for role, partition, start, end, records in cycle:
            starts = [start, *(record.offset for record in records[1:])]
            for record, at, to in zip(records, starts, [*starts[1:], end], strict=True):
                batch = decoders[role].decode(Slice(role, partition, at, to, [record]))
                if role == "events":
                    out, contributions = engine.look_closely(batch)
                    told[f"{shop.visits}-{partition}-{record.offset}"] = out[0, 0], contributions[0, 0]
                engine.process(batch, at, to)
        engine.end_cycle()
    return engine, told


@pytest.mark.parametrize("model", ["", TORCH, BLEND], ids=["linear", "torch", "blend"])
def test_records_of_a_worker_and_its_reader_explain_as_the_model_does(open_shop, visits_and_sales, model):
    shop = open_shop("explains")
    shop.file.write_text(shop.file.read_text() + model + EXPLAINING)
    shop.pipeline = load_pipeline(str(shop.file))
    names = shop.pipeline.numeric + shop.pipeline.categories
    rows = visits_and_sales(3, 2_000)
    shop.produce(rows)
    worker = shop.start()
    worker.until(events=2_000, labels=sum(role == "labels" for role, _ in rows))
    assert worker.end() == 0

    engine, wanted = explained_by_hand(shop)
    records = [record for of in shop.predictions().values() for record in of]
    assert sorted(record["source"] for record in records) == sorted(wanted)
    whole = 0
    for record in records:
        out, parts = wanted[record["source"]]
        heaviest = [f for f in np.argsort(-np.abs(parts[:-1]), kind="stable") if parts[f]][:3]
        assert [one["feature"] for one in record["explain"]] == [names[f] for f in heaviest]
        assert [np.float32(one["contribution"]) for one in record["explain"]] == parts[heaviest].tolist()
        assert np.float32(record["prediction"]) == out
        whole += len(heaviest) == 3
    assert whole > 1_000

    asked = [row for role, row in visits_and_sales(4, 40, first=2_000) if role == "events"]
    with SnapshotReader(shop.pipeline, shop.redis_url) as reader:
        answers = reader.explain(asked)
        predicted = reader.predict(asked)
    as_records = [Record(i, int(1000 * row["time"]), b"", json.dumps(row).encode(), ()) for i, row in enumerate(asked)]
    batch = Decoder(shop.pipeline, "events").decode(Slice("events", 0, 0, len(asked), as_records))
    _, contributions = engine.look_closely(batch)
    for answer, parts, p in zip(answers, contributions[:, 0], predicted, strict=True):
        assert answer.contributions == dict(zip(names, parts[:-1].tolist(), strict=True))
        assert (answer.base, answer.link, answer.prediction) == (parts[-1], "logit", p)
        raw = answer.base + sum(answer.contributions.values())
        assert 1 / (1 + np.exp(-raw)) == pytest.approx(p, abs=0.01 if model == TORCH else 1e-6)
