"""A torch module in a pipeline: micro-batches fall the same wherever slices are cut, and all of it is state."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from headrace import Events, Labels, Pipeline, Predictions, category, mean, numeric
from headrace.models import ADWIN, DCN, MLP, SGD, Adam, Embeddings, StandardScaler, Torch
from headrace.models.base import NotFinite
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.remap import carry_over
from headrace.stream.slices import Record, Slice

T0 = 1_700_000_000
TABLE = Embeddings(4, 8)
FEATURES = [numeric("price"), numeric("pages"), category("site"), mean("label", by="site", over="6h", capacity=9)]


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    pages: int
    price: float | None = None
    sold: bool | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


def pipeline(delayed=True, model=None, features=FEATURES, **changes):
    side = dict(key="id", time="time", unit="s")
    return Pipeline(
        name="shop",
        events=Events("visits", Visit, **side),
        labels=Labels("sales", Sale, value="sold", within="1h", **side) if delayed else Labels(value="sold"),
        features=features,
        model=model or StandardScaler() | Torch(DCN(1, [8]), optimizer=Adam(0.01), batch_size=16, embeddings=TABLE),
        predictions=Predictions("scores"),
        **changes,
    )


def rows(n, delayed, seed=0):
    """Records of visits, one a second, and of sales 10 to 600 s later, each list in the order of time."""
    rng = np.random.default_rng(seed)
    events, labels = [], []
    for i in range(n):
        site = "abcde"[rng.integers(5)]
        sold = bool(rng.random() < (0.15 if site < "c" else 0.85))
        row = {"id": f"v{i}", "time": T0 + i, "site": site, "pages": int(rng.integers(1, 20))}
        row["price"] = None if rng.random() < 0.1 else float(rng.normal(5, 3))
        if rng.random() < 0.9:
            if delayed:
                labels.append({"id": f"v{i}", "time": T0 + i + float(rng.uniform(10, 600)), "sold": sold})
            else:
                row["sold"] = sold
        events.append(row)
    return [
        [Record(o, 2 * 10**12, None, json.dumps(row).encode()) for o, row in enumerate(side)]
        for side in (events, sorted(labels, key=lambda row: row["time"]))
    ]


class Run:
    def __init__(self, declared):
        self.engine = Engine(declared)
        self.engine.own(0)
        self.decoders = {role: Decoder(declared, role) for role in ("events", "labels")[: 1 + self.engine.delayed]}

    def feed(self, role, records, first, next, cuts=(), later=False):
        """Predictions of the records [first, next), handed over in pieces."""
        out = []
        for a, b in zip([first, *cuts], [*cuts, next]):
            batch = self.decoders[role].decode(Slice(role, 0, a, b, records[a:b]))
            done = self.engine.process(batch, a, b, later=later)
            out += [done.predicted.out] if done.predicted else []
        self.engine.predict_taken()
        return np.concatenate(out) if out else np.empty((0, 1), np.float32)

    def bits(self):
        return {name: array.tobytes() for name, array in self.engine.state().shared.items()}


def through(declared, cuts_of, later=False):
    """(run, predictions) of 600 visits in 6 cycles."""
    delayed = declared.labels.topic is not None
    events, labels = rows(600, delayed)
    run, out, at = Run(declared), [], 0
    for cycle in range(6):
        out.append(run.feed("events", events, cycle * 100, cycle * 100 + 100, cuts_of(cycle * 100, 100), later))
        if delayed:
            until = at + sum(1 for r in labels[at:] if json.loads(r.value)["time"] <= T0 + 100 * (cycle + 1))
            run.feed("labels", labels, at, until, [c for c in cuts_of(at, until - at) if at < c < until], later)
            at = until
        run.engine.end_cycle()
    return run, np.concatenate(out)


CUTS = {
    "whole": lambda a, n: [],
    "by row": lambda a, n: list(range(a + 1, a + n)),
    "anywhere": lambda a, n: [a + 7, a + 8, a + 33, a + 64],
}


@pytest.mark.parametrize("delayed", [True, False], ids=["delayed", "immediate"])
@pytest.mark.parametrize("drift", [None, ADWIN(action="reset", delta=0.9)], ids=["", "drift"])
def test_state_and_predictions_do_not_depend_on_where_slices_are_cut(delayed, drift):
    declared = pipeline(delayed, **({} if drift is None else {"drift": drift}))
    whole, expected = through(declared, CUTS["whole"])
    for name in ("by row", "anywhere"):
        for later in (False, True):
            run, out = through(declared, CUTS[name], later)
            assert out.tobytes() == expected.tobytes()
            assert run.bits() == whole.bits()
    examples = whole.engine.counters()["examples"]
    assert examples > 200
    if drift is None:
        assert len(set(expected[:16, 0].tolist())) == 1  # nothing learned yet
        assert whole.engine.arrays["model/1/batches"][0] <= examples // 16 + 6


def test_labels_in_events_are_learned_as_soon_as_a_micro_batch_is_full():
    """batch 16: the 17th labelled event is predicted by a model that has made a step, in the middle of a slice."""
    events, _ = rows(100, delayed=False)
    run = Run(pipeline(delayed=False))
    out = run.feed("events", events, 0, 100)
    labelled = [i for i, r in enumerate(events) if "sold" in json.loads(r.value)]
    sixteenth = labelled[15]
    assert len(set(out[: sixteenth + 1, 0].tolist())) == 1
    assert out[sixteenth + 1, 0] != out[sixteenth, 0]
    assert run.engine.arrays["model/1/batches"].tolist() == [len(labelled) // 16]
    run.engine.end_cycle()
    assert run.engine.arrays["model/1/batches"].tolist() == [-(-len(labelled) // 16)]


def test_state_goes_on_in_another_engine_bit_for_bit():
    events, labels = rows(400, delayed=True)
    first = Run(pipeline())
    first.feed("events", events, 0, 300)
    first.feed("labels", labels, 0, 150)
    first.engine.end_cycle()
    state = first.engine.state()
    copied = replace(state, shared={name: array.copy() for name, array in state.shared.items()})
    second = Run(pipeline())
    second.engine.load(copied)
    assert second.bits() == first.bits()
    for run in (first, second):
        run.out = [run.feed("events", events, 300, 400), run.feed("labels", labels, 150, 250)]
        run.engine.end_cycle()
    assert second.out[0].tobytes() == first.out[0].tobytes()
    assert second.bits() == first.bits()


def test_undo_puts_weights_moments_and_embeddings_back():
    events, labels = rows(300, delayed=True)
    run = Run(pipeline())
    run.feed("events", events, 0, 200)
    run.feed("labels", labels, 0, 60)
    undo, bits = run.engine.undo_point(), None
    bits = run.bits()
    run.feed("labels", labels, 60, 120)
    run.engine.end_cycle()
    assert run.bits() != bits
    undo()
    assert run.bits() == bits


def test_dense_weights_begin_anew_with_other_features_and_embeddings_stay():
    def learned(features):
        events, labels = rows(300, delayed=True)
        run = Run(pipeline(features=features))
        run.feed("events", events, 0, 300)
        run.feed("labels", labels, 0, 200)
        run.engine.end_cycle()
        return run.engine

    before = learned(FEATURES)
    state = before.state()
    for features in (
        FEATURES[1:],
        [*FEATURES, category("pages", name="page")],
        [numeric("pages", name="zeal"), *FEATURES[1:]],
    ):
        after = Engine(pipeline(features=features))
        blank = {name: array.copy() for name, array in after.arrays.items()}
        carried, notes = carry_over(state, after)
        assert notes
        after.load(carried)
        for name in ("1/module/cross.out.0.weight", "1/mean/cross.out.0.weight", "1/steps"):
            np.testing.assert_array_equal(after.arrays[f"model/{name}"], blank[f"model/{name}"])
        for name in ("1/embeddings/weight", "1/embeddings/tag", "1/base"):
            np.testing.assert_array_equal(after.arrays[f"model/{name}"], before.arrays[f"model/{name}"])
    turned = Engine(pipeline(features=FEATURES[::-1]))
    carried, notes = carry_over(state, turned)
    turned.load(carried)
    assert notes == []
    np.testing.assert_array_equal(
        turned.arrays["model/1/module/cross.out.0.weight"], before.arrays["model/1/module/cross.out.0.weight"]
    )


def test_model_whose_loss_is_not_finite_stops_the_stream_with_the_remedy():
    events, labels = rows(400, delayed=True)
    model = Torch(MLP([8]), optimizer=SGD(1e25), batch_size=4, embeddings=TABLE, max_skipped=3)
    run = Run(pipeline(model=model))
    run.feed("events", events, 0, 400)
    with pytest.raises(NotFinite, match=r"not finite.*smaller learning rate"):
        run.feed("labels", labels, 0, 300)
        run.engine.end_cycle()
        run.engine.check_finite()


PIPELINE = """
from dataclasses import dataclass

import msgspec
import torch
from torch import nn

from headrace import Events, Labels, Pipeline, Predictions, category, numeric
from headrace.models import Adam, Embeddings, Imported, Inputs, StandardScaler, Torch, TorchModule
from headrace.models.base import register


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    pages: int
    price: float | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


@register
@dataclass(eq=False)
class Gated(TorchModule):
    width: int = 8

    def build(self, inputs: Inputs) -> nn.Module:
        return Net(inputs, self.width)


class Net(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        size = inputs.numeric + inputs.categories * inputs.dim
        self.gate, self.value = nn.Linear(size, width), nn.Linear(size, width)
        self.last = nn.Linear(width, inputs.outputs)

    def forward(self, numeric, categories):
        x = torch.cat((numeric, categories.flatten(1)), 1)
        return self.last(torch.sigmoid(self.gate(x)) * self.value(x))


side = dict(key="id", time="time", unit="s")
pipeline = Pipeline(
    name="shop",
    events=Events("visits", Visit, **side),
    labels=Labels("sales", Sale, value="sold", within="1h", **side),
    features=[numeric("price"), numeric("pages"), category("site")],
    model=StandardScaler() | Torch(MODULE, optimizer=Adam(0.02), batch_size=8, embeddings=Embeddings(4, 8)),
    predictions=Predictions("scores"),
)
"""


@pytest.mark.parametrize("module", ["Gated(width=12)", 'Imported("my_nets:Wide", width=12)'])
def test_module_of_ones_own_is_evaluated_from_the_command_line(tmp_path, module):
    (tmp_path / "shop.py").write_text(PIPELINE.replace("MODULE", module))
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "class Wide(nn.Module):\n"
        "    def __init__(self, inputs, width):\n"
        "        super().__init__()\n"
        "        self.flat = nn.Linear(inputs.numeric + inputs.categories * inputs.dim, inputs.outputs)\n"
        "    def forward(self, numeric, categories):\n"
        "        import torch\n"
        "        return self.flat(torch.cat((numeric, categories.flatten(1)), 1))\n"
    )
    for name, records in zip(("visits", "sales"), rows(2000, delayed=True)):
        (tmp_path / f"{name}.ndjson").write_bytes(b"\n".join(r.value for r in records))
    command = ["evaluate", "shop.py", "--events", "visits.ndjson", "--labels", "sales.ndjson", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from headrace.stream.cli import main; main()", *command],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["examples"] > 1500
    assert results["log_loss"] < 0.9 * np.log(2)
