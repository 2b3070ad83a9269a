"""Events to predict and examples to learn from, taken in the order of the stream and done later, many at one go.

So small pieces of several partitions cost one call. The result is that of doing each as it comes: whatever looks at
what was learned, or changes it, calls `catch_up` first. The examples taken are always older than the events taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.base import NotFinite, Rows, Truth
from ..models.metrics import Metrics
from .contest import Contest
from .counters import Counters
from .declaration import Pipeline
from .decode import Batch
from .explain import Explained, heaviest, rows_at_one_go
from .finite import REMEDY
from .folding import Folding
from .label_join import Met, PartitionState
from .learning import Learning, Said, joined
from .ring import row_of

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

_NOTHING_READ = np.empty((0, 0), np.float32)


class Taken(NamedTuple):
    """Rows [lo, hi) of a batch of events that are still to be predicted to out, by whom to by; their clock."""

    part: PartitionState
    batch: Batch
    lo: int
    hi: int
    clock: I64
    out: F32
    by: U8 | None


class Deferred:
    """What an engine has taken and not done yet.

    taken  events to predict, in order
    met    examples to learn from, in order: the fields of Met, the weights known
    mute   whether the rows in hand leave the shared state as it is; only where nothing else is taken
    """

    def __init__(
        self,
        pipeline: Pipeline,
        learning: Learning | Contest,
        folding: Folding,
        metrics: Metrics | None,
        counters: Counters,
        enter: Callable[[str], None],
    ) -> None:
        """enter  told which stage of the work begins"""
        spec, labels = pipeline.spec, pipeline.labels
        self._learning, self._folding, self._metrics = learning, folding, metrics
        self._count, self._enter = counters.add, enter
        self._topic, self._models = pipeline.events.topic, tuple(pipeline.models or ())
        self._immediate = labels is not None and not pipeline.delayed
        self._delayed = pipeline.delayed
        self._weighted = labels is not None and labels.weight is not None
        self._explain = pipeline.predictions.explain or 0  # features named with each prediction
        self._features, self._outputs = len(pipeline.numeric) + len(pipeline.categories), spec.outputs
        self.pending: dict[str, tuple[str, tuple[int, ...]]] = {  # of a prediction that waits for its label
            "clock": ("int64", ()),
            "time": ("int64", ()),
            "prediction": ("float32", (spec.outputs,)),
            "numeric": ("float32", (len(pipeline.numeric),)),
            "categories": ("uint64", (len(pipeline.categories),)),
            "groups": ("uint64", (len(folding.label_groups),)),
            **learning.waiting(),
        }
        self.voices = learning.voices
        if self.voices:
            self.pending["voices"] = ("float32", (self.voices,))
        self._pending_row = row_of(self.pending)
        self.taken: list[Taken] = []
        self.met: list[tuple[U64, I64, F32, F64, F32]] = []
        self.mute = False

    def catch_up(self) -> None:
        """Do all of it."""
        self.learn()
        self.predict()

    def drop(self, met: Sequence[tuple[U64, I64, F32, F64, F32]] = ()) -> None:
        """Leave undone what was taken, but for these examples; what comes is not muted."""
        self.met, self.taken, self.mute = list(met), [], False

    # -- events

    def predict(self) -> None:
        """Predict the events taken, in their order, and remember them in pending."""
        if not self.taken:
            return
        self.learn()
        taken, self.taken = self.taken, []
        rows_of = [(t.batch, slice(t.lo, t.hi)) for t in taken]
        time, groups = _joined([b.time[r] for b, r in rows_of]), _joined([b.groups[r] for b, r in rows_of])
        values, y = _joined([b.values[r] for b, r in rows_of]), _joined([b.y[r] for b, r in rows_of])
        numeric = _joined([b.numeric[r] for b, r in rows_of])
        categories = _joined([b.categories[r] for b, r in rows_of])
        if self._immediate and (unusable := np.isinf(y)).any():
            y = np.where(unusable, np.float32(np.nan), y)
            self._count("unusable", int(unusable.sum()))
        out = taken[0].out if len(taken) == 1 else np.empty((len(time), self._outputs), np.float32)
        self._enter("features")
        (self._folding.looks if self.mute else self._folding.events).run(time, groups, values, y, numeric)
        if (infinite := np.isinf(numeric)).any():  # log of zero, overflow: nothing that can be learned from
            numeric = np.where(infinite, np.float32(np.nan), numeric)  # the batch stays as it was, for another try
            self._count("infinite", int(infinite.sum()))
        self._enter("model")
        weight = None
        if self._immediate and self._weighted:
            weight = _joined([b.weights(r) for b, r in rows_of])
        x, truth = Rows(numeric, categories), _truth(y, weight)
        voices = np.full((len(time), self.voices), np.nan, np.float32) if self.voices and self._delayed else None
        if self._explain:
            said = self._predict_and_explain(taken, x, y, truth, time, out, voices)
        else:
            said = self._predict(x, y, truth, time, out, None, voices)
        ends = list(accumulate(len(t.out) for t in taken))
        if len(taken) > 1:
            for t, end in zip(taken, ends, strict=True):
                t.out[:] = out[end - len(t.out) : end]
        if not np.isfinite(out if said is None else said.each).all():
            self._refuse(taken, out, said)
        if said is not None and said.by is not None:
            for t, end in zip(taken, ends, strict=True):
                assert t.by is not None
                t.by[:] = said.by[end - len(t.by) : end]
        if self._immediate:
            self._labels_in_events(y, weight, out, said)
        elif self._delayed:
            self._enter("labels")
            rows = taken[0].part.pending.blank(len(time))
            columns = taken[0].part.pending.named(rows)
            columns["key"] = _joined([b.key_hash[r] for b, r in rows_of])
            columns["clock"] = _joined([t.clock for t in taken])
            columns["time"], columns["prediction"] = time, out
            if said is not None:
                columns["said"] = said.each.transpose(1, 0, 2)
            if voices is not None:
                columns["voices"] = voices
            columns["numeric"], columns["categories"] = numeric, categories
            columns["groups"] = groups[:, self._folding.label_groups]
            for t, end in zip(taken, ends, strict=True):
                added = t.part.pending.append(rows[end - len(t.out) : end])
                self._count("repeated", len(t.out) - added)

    def _predict(
        self, x: Rows, y: F32, truth: Truth, time: I64, out: F32, contributions: F32 | None, voices: F32 | None
    ) -> Said | None:
        """Predict rows of events to out (B, O), and learn what is to be learned from them.

        voices  float32 (B, V), NaN: written where labels come later
        """
        if self.mute:
            return self._learning.predict(x, out, contributions)
        if self._immediate:
            return self._learning.test_then_learn(x, y, truth, time, out, contributions)
        return self._learning.predict_then_observe(x, out, contributions, voices)

    def _predict_and_explain(
        self, taken: list[Taken], x: Rows, y: F32, truth: Truth, time: I64, out: F32, voices: F32 | None
    ) -> Said | None:
        """As `_predict`; what weighed most in each prediction goes to the batches."""
        explained = Explained.blank(len(y), self._explain)
        step = rows_at_one_go(self._outputs, self._features)
        said = []
        for a in range(0, len(y), step):
            at = slice(a, a + step)
            contributions = np.empty((len(y[at]), self._outputs, self._features + 1), np.float32)
            rows, labels = Rows(x.numeric[at], x.categories[at]), Truth(truth.y[at], truth.weight[at])
            its = None if voices is None else voices[at]
            said.append(self._predict(rows, y[at], labels, time[at], out[at], contributions, its))
            heaviest(contributions, out[at], explained.part(a, a + step))
        a = 0
        for t in taken:
            b = a + len(t.out)
            assert t.batch.explained is not None
            for to, found in zip(t.batch.explained, explained, strict=True):
                to[t.lo : t.hi] = found[a:b]
            a = b
        return joined(said)

    def _refuse(self, taken: list[Taken], out: F32, said: Said | None) -> None:
        """Say which of these predictions, or of what the models said, is not finite."""
        each = out[None] if said is None else said.each
        row, which = np.argwhere(~np.isfinite(each).all(2).T)[0].tolist()
        whose = f" of model {self._models[which]!r}" if self._models else ""
        at = row
        for t in taken:
            if at < len(t.out):
                break
            at -= len(t.out)
        raise NotFinite(
            f"{self._topic}[{t.batch.partition}]@{t.batch.offset[t.lo + at]}: the prediction{whose} is "
            f"{each[which, row].tolist()}, not finite; the model is broken and nothing of this cycle is published; "
            f"{REMEDY}"
        )

    def _labels_in_events(self, y: F32, weight: F32 | None, out: F32, said: Said | None) -> None:
        known = ~np.isnan(y)
        count = int(known.sum())
        if not count:
            return
        self._count("labels", count)
        self._count("joined", count)
        self._count_examples(count, None if weight is None else weight[known])
        assert self._metrics is not None
        self._metrics.update(y[known], out[known])
        if said is not None:
            self._learning.score(y[known], said.each[:, known])

    # -- examples

    def _count_examples(self, rows: int, weight: F32 | None) -> None:
        """Count rows that met their label, of these weights, as learned from or not."""
        learned = 0 if self.mute else rows if weight is None else int(np.count_nonzero(weight))
        self._count("examples", learned)
        self._count("unlearned", rows - learned)

    def meet(self, met: Met | None) -> None:
        """Predictions have met their label: take the examples."""
        if met is None or not len(met.rows):
            return
        rows, time, y, values, weight = met
        self._count_examples(len(rows), weight)
        if self.mute:
            assert self._metrics is not None
            waited = rows.view(self._pending_row)[:, 0]
            self._metrics.update(y, waited["prediction"])
            self._learning.score(y, self._learning.said(waited["prediction"], waited))
            return
        self.met.append((rows, time, y, values, np.ones(len(y), np.float32) if weight is None else weight))

    def learn(self) -> None:
        """Learn the examples taken, in their order, from the features of prediction time."""
        if not self.met:
            return
        taken, self.met = self.met, []
        self._enter("model")
        rows, time, y, values, weight = taken[0] if len(taken) == 1 else map(np.concatenate, zip(*taken, strict=True))
        waited = rows.view(self._pending_row)[:, 0]
        prediction, groups, numeric, categories = (
            np.ascontiguousarray(waited[name]) for name in ("prediction", "groups", "numeric", "categories")
        )
        assert self._metrics is not None
        self._metrics.update(y, prediction)
        self._folding.labels.run(time, groups, values, y, _NOTHING_READ)
        voices = np.ascontiguousarray(waited["voices"]) if self.voices else None
        said = self._learning.said(prediction, waited)
        self._learning.learn(Rows(numeric, categories), y, said, time, weight, voices=voices)


def _truth(y: F32, weight: F32 | None) -> Truth:
    """What is to be learned from labels (B,) in events: nothing of those with the weight 0."""
    if weight is None:
        return Truth(y[:, None], np.ones(len(y), np.float32))
    return Truth(np.where(weight > 0, y, np.float32(np.nan))[:, None], weight)


def _joined(columns: list[NDArray]) -> NDArray:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)
