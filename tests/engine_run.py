"""An engine that rows are appended to, as records of its topics would be; rows and a learner for such tests."""

import json
from dataclasses import dataclass

import msgspec
import numpy as np

from headrace.models import Array, Configured, Learner, register
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Slice

T0 = 1_700_000_000  # seconds
BEYOND = 10**9  # an offset behind all others
SIDE = {"key": "id", "time": "time", "unit": "s"}  # of Events and Labels


class Click(msgspec.Struct):
    id: str
    time: float
    site: str
    price: float
    sold: bool | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool
    amount: float = 0.0


@register
@dataclass(eq=False)
class Averages(Configured, Learner):
    """Learns in micro-batches: a step towards the mean label of each."""

    updates: str = "micro_batch"
    batch_size: int = 7

    def layout(self, spec):
        return {"p": Array((1,), "float64", 0.5)}

    def bind(self, spec, state, touched):
        self.p = state["p"]

    def predict(self, x, out):
        out[:] = self.p[0]

    def learn(self, x, truth):
        known = truth.y[~np.isnan(truth.y)]
        if len(known):
            self.p += 0.1 * (known.mean() - self.p)


class Run:
    """An engine with some partitions, and where they end."""

    def __init__(self, declared, partitions=1):
        self.pipeline, self.engine = declared, Engine(declared)
        roles = ("events", "labels") if self.engine.delayed else ("events",)
        self.decoders = {role: Decoder(declared, role) for role in roles}
        self.ends = {(role, p): 0 for role in roles for p in range(partitions)}
        for p in range(partitions):
            self.engine.own(p)

    def batch(self, role, rows, partition=0):
        """Rows, or the bytes of records, as the next slice of a partition."""
        start, now = self.ends[role, partition], (T0 + 10**6) * 1000
        values = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        records = [Record(start + i, now, None, value) for i, value in enumerate(values)]
        return self.decoders[role].decode(Slice(role, partition, start, start + len(records), records))

    def process(self, role, rows, partition=0, cuts=(), later=False):
        """Process rows as one slice, cut into pieces before these row numbers; what came of each piece."""
        batch = self.batch(role, rows, partition)
        self.ends[role, partition] = batch.next
        edges = [batch.start, *(batch.start + c for c in sorted(cuts)), batch.next]
        done = [self.engine.process(batch, a, b, later=later) for a, b in zip(edges, edges[1:])]
        self.engine.predict_taken()
        return done

    def feed(self, role, rows, partition=0, cuts=()):
        """The same; the predictions."""
        done = self.process(role, rows, partition, cuts)
        out = [d.predicted.out[:, 0] for d in done if d.predicted is not None]
        return np.concatenate(out) if out else np.empty(0, np.float32)

    def counts(self, *names):
        counters = self.engine.counters()
        return tuple(counters[name] for name in names)

    def shared(self):
        return {name: array.copy() for name, array in self.engine.state().shared.items()}


def assert_same(one, two):
    """The states of two runs are the same, to the bit."""
    a, b = one.engine.state(), two.engine.state()
    for name, array in a.shared.items():
        np.testing.assert_array_equal(array, b.shared[name], name)
    assert a.partitions.keys() == b.partitions.keys()
    for p, arrays in a.partitions.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, b.partitions[p][name], f"{p}/{name}")
    for what in ("muted", "metrics"):
        assert a.meta[what] == b.meta[what]
