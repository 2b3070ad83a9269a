"""Workers with several models: killed, started again, and with a challenger more."""

import json
import signal
from collections import Counter

import numpy as np
import pytest

from headrace import SnapshotReader
from headrace.stream.load import load_pipeline
from headrace.stream.snapshot import pack
from headrace.stream.standing import Standing

FIRST, SECOND = 900, 500
CHANGES = """
    model=None,
    models=dict(
        prior=Prior(),
        linear=StandardScaler(half_life="1h") | LogisticRegression(FTRL(alpha=0.1, half_life="2h"), bits=10),
        {more}
    ),
    serve=__import__("headrace").Best("10m", lead=0.5),
    snapshots=Snapshots("1s", keep=3),
"""


@pytest.mark.parametrize("paths", [((), ("--plain",)), (("--plain",), ())], ids=["fast-plain", "plain-fast"])
def test_worker_with_several_models_goes_on_where_it_was_killed(open_shop, visits_and_sales, paths):
    shop = open_shop("contest", partitions=2, changes=CHANGES.format(more=""))
    shop.produce(visits_and_sales(1, FIRST))
    worker = shop.start(*paths[0])
    worker.until(events=FIRST // 2, snapshot_version=1)
    worker.end(signal.SIGKILL)

    worker = shop.start(*paths[1])
    rows = visits_and_sales(2, SECOND, first=FIRST)
    shop.produce(rows)
    labels = sum(role == "labels" for role, _ in [*visits_and_sales(1, FIRST), *rows])
    shown = worker.until(events=FIRST + SECOND, labels=labels)
    assert worker.end() == 0, worker.printed

    engine, expected = shop.by_hand()
    records = [json.loads(record.value) for of in shop.read(shop.scores).values() for record in of]
    assert {r["source"]: r["prediction"] for r in records} == expected and len(records) == len(expected)
    told = engine.results_of_models()
    assert Counter(r["model"] for r in records) == {name: of["served"] for name, of in told.items() if of["served"]}
    assert len({r["model"] for r in records}) == 2
    snapshot, (arrays, _) = shop.snapshot(), pack(Standing(engine))
    assert snapshot.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[name], array, name)
    for name in ("prior", "linear"):
        assert shown[f'model_log_loss{{model="{name}"}}'] == pytest.approx(told[name]["log_loss"], rel=0.2)
        assert shown[f'model_served_total{{model="{name}"}}'] > 0
    assert shown['model_serves{model="prior"}'] + shown['model_serves{model="linear"}'] == 1
    assert shown["switches"] >= 1
    assert "(serves)" in worker.printed or "events" in worker.printed

    with SnapshotReader(shop.pipeline, shop.redis_url) as reader:
        assert reader.model == engine.contest.names[engine.contest.serves]

    # a challenger more
    shop.file.write_text(shop.file.read_text().replace("prior=Prior(),", "late=Prior(half_life=None), prior=Prior(),"))
    worker = shop.start()
    worker.says("model `late` is new")
    more = visits_and_sales(3, 100, first=FIRST + SECOND)
    shop.produce(more)
    shown = worker.until(events=FIRST + SECOND + 100)
    assert shown['model_labels{model="late"}'] <= sum(role == "labels" for role, _ in more)
    assert shown['model_labels{model="linear"}'] > FIRST / 2
    assert worker.end() == 0, worker.printed
    assert shop.snapshot().info.meta["models"] == ["late", "prior", "linear"]
    with SnapshotReader(load_pipeline(str(shop.file)), shop.redis_url) as reader:
        assert reader.model in ("late", "prior", "linear")
