"""Several models on one stream: one serves, the others learn and are scored in its shadow, on the same examples.

Each has arrays, a scaler, a detector of drift and metrics of its own, so none feels that there are others: what model
`a` predicts and learns is to the bit what it would as the only one. What each said of an event waits with it, and its
loss is taken from that when the label comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..jit import njit
from ..models.base import Array, Decay, Explainer, Opaque, Rows, Spec, Truth
from ..models.chain import summed, under
from ..models.drift import watched
from ..models.measures import headline
from ..models.metrics import Metrics
from .declaration import Best, Pipeline
from .learning import Learning, Said

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@njit(cache=True, nogil=True, error_model="numpy")
def choose(loss: NDArray, lead: float, gained: NDArray, squares: NDArray, serving: I64, switches: I64, by: U8) -> None:
    """Row by row: who serves is written to by, then the losses of the row are weighed, and another may serve.

    loss      float64 (M, B)  of each model; NaN: not known, and not compared
    lead      standard errors by which another has to be better than the one that serves
    gained    float64 (M, M)  [i, j]: sum of loss i - loss j, what j would have spared i     changed in place
    squares   float64 (M, M)  sum of the squares of these differences                         changed in place
    serving   int64 (1,)      the model that serves; switches int64 (1,): how often it changed   changed in place
    by        uint8 (B,)

    The sums are decayed, so gained / sqrt(squares) is at most the mean difference by its standard error: a paired
    t statistic whose mean is not taken off. Result does not depend on where the stream is cut.
    """
    M, B = loss.shape
    for b in range(B):
        by[b] = serving[0]
        heard = False
        for i in range(M):
            for j in range(i):
                d = loss[i, b] - loss[j, b]
                if d - d == 0.0:
                    heard = True
                    gained[i, j] += d
                    gained[j, i] -= d
                    squares[i, j] += d * d
                    squares[j, i] += d * d
        if not heard:
            continue
        now = best = serving[0]
        most = 0.0
        for j in range(M):
            gain = gained[now, j]
            if gain > most and gain > lead * math.sqrt(squares[now, j]):
                best, most = j, gain
        if best != now:
            serving[0] = best
            switches[0] += 1


class Contest:
    """The models of a pipeline in the order of the stream; what an engine drives in the place of a `Learning`.

    What predicts writes what is served to `out` and returns what each model said.
    """

    def __init__(self, pipeline: Pipeline, count: Callable[[str, int], None]) -> None:
        """count  told ("drifts", how many) when a detector has fired"""
        assert pipeline.models is not None
        self.spec = pipeline.spec
        self.names = tuple(pipeline.models)
        self.model = self  # what an engine lays out, warms up and saves
        self.learnings = [
            Learning(model, self.spec, pipeline.drift, self._counter(at, count))
            for at, model in enumerate(pipeline.models.values())
        ]
        self.measure = self.learnings[0].measure  # one for all, so that they can be compared
        self.metrics = [Metrics(str(self.spec.task), self.spec.outputs, self.measure) for _ in self.names]
        self.best: Best | None = pipeline.serve
        self.growing = frozenset(f"contest/{name}/sums" for name in self.names)
        self.drift = None

    def _counter(self, at: int, count: Callable[[str, int], None]) -> Callable[[str, int], None]:
        def counts(what: str, n: int) -> None:
            count(what, n)
            self._drifts[at] += n

        return counts

    # -- arrays

    def layout(self, spec: Spec) -> dict[str, Array]:
        """The arrays of the models, each with the name of its model before it."""
        return {
            f"{name}/{of}": array._replace(
                rows=array.rows and f"{name}/{array.rows}", by=array.by and f"{name}/{array.by}"
            )
            for name, learning in zip(self.names, self.learnings, strict=True)
            for of, array in learning.model.layout(spec).items()
        }  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """The arrays: "model/a/..." and "drift/a/..." as a `Learning` has them, "contest/..." for who is how good."""
        M = len(self.names)
        arrays = {f"model/{name}": array for name, array in self.layout(self.spec).items()}
        for name, learning, metrics in zip(self.names, self.learnings, self.metrics, strict=True):
            if learning.drift is not None:
                arrays |= {f"drift/{name}/{of}": array for of, array in learning.drift.layout().items()}
            arrays |= {f"contest/{name}/{of}": array for of, array in metrics.layout().items()}
        arrays["contest/served"] = Array((M,), "int64")
        arrays["contest/drifts"] = Array((M,), "int64")
        if self.best is not None:
            arrays["contest/gained"] = Array((M, M), "float64")
            arrays["contest/squares"] = Array((M, M), "float64")
            arrays["contest/serving"] = Array((1,), "int64")
            arrays["contest/switches"] = Array((1,), "int64")
        return arrays

    def bind(self, arrays: Mapping[str, NDArray], touched: Mapping[str, NDArray]) -> None:
        """Work in place on arrays as `arrays()` says, with the marks of the models' row groups."""
        for name, learning, metrics in zip(self.names, self.learnings, self.metrics, strict=True):
            own = {
                f"{kind}/{of}": a for kind in ("model", "drift") for of, a in under(f"{kind}/{name}/", arrays).items()
            }
            learning.bind(own, under(f"{name}/", touched))
            metrics.bind(under(f"contest/{name}/", arrays))
        self._served, self._drifts = arrays["contest/served"], arrays["contest/drifts"]
        if self.best is not None:
            self._gained, self._squares = arrays["contest/gained"], arrays["contest/squares"]
            self._serving, self._switches = arrays["contest/serving"], arrays["contest/switches"]

    @property
    def voices(self) -> int:
        """As of a `Learning`: those of all models."""
        return sum(learning.voices for learning in self.learnings)

    def _split(self, voices: F32 | None) -> list[F32 | None]:
        """The voices (B, V) of each model; None of those that have none."""
        split: list[F32 | None] = [None] * len(self.learnings)
        if voices is not None:
            at = 0
            for i, learning in enumerate(self.learnings):
                split[i] = voices[:, at : at + learning.voices] if learning.voices else None
                at += learning.voices
        return split

    def waiting(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns that a prediction waits with besides itself: what each model said."""
        return {"said": ("float32", (len(self.names), self.spec.outputs))}

    @property
    def quick(self) -> bool:
        """As of a chain."""
        return all(learning.model.quick for learning in self.learnings)

    def pull(self) -> None:
        for learning in self.learnings:
            learning.model.pull()

    def push(self) -> None:
        for learning in self.learnings:
            learning.model.push()

    def warm_up(self, explain: bool = False) -> None:
        """Compile what the models call; the rest is compiled by whoever runs rows through a twin."""
        for learning in self.learnings:
            learning.model.warm_up(explain=explain)

    def opaque(self) -> dict[str, Opaque]:
        """What has state beside its arrays, each with the name of its model before its own."""
        return {
            f"{name}/{of}": one
            for name, learning in zip(self.names, self.learnings, strict=True)
            for of, one in learning.model.opaque().items()
        }

    def counters(self) -> dict[str, int]:
        """What the models count, by name; what several count is summed up."""
        return summed(learning.model.counters() for learning in self.learnings)

    @property
    def unsupervised(self) -> bool:
        """Whether one of them learns from features alone."""
        return any(learning.model.unsupervised for learning in self.learnings)

    def rehearse(self) -> None:
        """From now on rows are made up: nothing is asked that could raise on them."""
        for learning in self.learnings:
            learning.model.rehearse()

    def decays(self) -> list[Decay]:
        """What forgets: the models, and what tells who is best."""
        decays = [decay for learning in self.learnings for decay in learning.model.decays()]
        return decays if self.best is None else [*decays, (self.best.half_life_us, self._forget)]

    def _forget(self, factor: float) -> None:
        self._gained *= factor
        self._squares *= factor

    # -- what is known

    @property
    def serves(self) -> int:
        """The place of the model that serves the next row."""
        return 0 if self.best is None else int(self._serving[0])

    def results(self) -> dict[str, float | int | None]:
        """Of all models together."""
        return {} if self.best is None else {"switches": int(self._switches[0])}

    def results_of_models(self) -> dict[str, dict[str, float | int | None]]:
        """Of each model: its metrics, what its detector tells, whether it serves and how many rows it served."""
        told: dict[str, dict[str, float | int | None]] = {}
        for at, (name, learning, metrics) in enumerate(zip(self.names, self.learnings, self.metrics, strict=True)):
            told[name] = {"serves": int(at == self.serves), "served": int(self._served[at]), **metrics.results()}
            if self.best is not None:
                gained, squares = self._gained[self.serves, at], self._squares[self.serves, at]
                told[name]["lead"] = float(gained / math.sqrt(squares)) if squares > 0.0 else 0.0
            if learning.drift is not None:
                told[name] |= {"drifts": int(self._drifts[at]), **learning.drift.results()}
        return told

    # -- rows

    @property
    def explainer(self) -> Explainer:
        """The learner that serves, where it can explain; raises DeclarationError else."""
        return self.learnings[self.serves].explainer

    def look(self, x: Rows, out: F32, contributions: F32 | None = None) -> None:
        """Predict with the model that serves; nothing changes."""
        self.learnings[self.serves].look(x, out, contributions)

    def predict(self, x: Rows, out: F32, contributions: F32 | None = None) -> Said:
        """Predict rows of the stream from which nothing is to be learned."""
        each = self._blank(out)
        for at, (learning, own) in enumerate(zip(self.learnings, each, strict=True)):
            learning.predict(x, own, contributions if at == self.serves else None)
        return self._serve(each, out)

    def predict_then_observe(
        self, x: Rows, out: F32, contributions: F32 | None = None, voices: F32 | None = None
    ) -> Said:
        """Predict rows whose labels come later; voices float32 (B, V), where there are any, waits with them."""
        each = self._blank(out)
        for at, (learning, own, its) in enumerate(zip(self.learnings, each, self._split(voices), strict=True)):
            learning.predict_then_observe(x, own, contributions if at == self.serves else None, its)
        return self._serve(each, out)

    def test_then_learn(
        self, x: Rows, y: F32, truth: Truth, time: I64, out: F32, contributions: F32 | None = None
    ) -> Said:
        """Predict and learn rows that hold their label; NaN in y float32 (B,): none. time int64 (B,)

        truth  what is learned of the labels: not those with the weight 0
        """
        each, serves = self._blank(out), self.serves
        explained: list[F32 | None] = [None] * len(each)
        if contributions is not None:  # who will serve a row is known once those before it are learned
            explained = [
                contributions if at == serves else None if self.best is None else np.empty_like(contributions)
                for at in range(len(each))
            ]
        for learning, own, why in zip(self.learnings, each, explained, strict=True):
            learning.test_then_learn(x, y, truth, time, own, why)
        if self.best is None:
            return self._serve(each, out)
        by = self._weigh(y, each)
        out[:] = each[by, np.arange(len(by))]
        if contributions is not None:
            for at, why in enumerate(explained):
                assert why is not None
                contributions[by == at] = why[by == at]
        self._served += np.bincount(by, minlength=len(self.names))
        return Said(each, by)

    def _blank(self, out: F32) -> F32:
        return np.empty((len(self.names), *out.shape), np.float32)

    def _serve(self, each: F32, out: F32) -> Said:
        serves = self.serves
        out[:] = each[serves]
        self._served[serves] += len(out)
        return Said(each, None if self.best is None else np.full(len(out), serves, np.uint8))

    # -- examples

    def said(self, prediction: F32, waited: NDArray) -> F32:
        """What was said of examples that waited, float32 (M, B, O); NaN of a model that came later."""
        return np.ascontiguousarray(waited["said"].transpose(1, 0, 2))

    def score(self, y: F32, said: F32) -> None:
        """Labels came for what the models said, float32 (M, B, O); nothing is learned."""
        for metrics, own in zip(self.metrics, said, strict=True):
            metrics.update(y, own)

    def learn(self, x: Rows, y: F32, said: F32, time: I64, weight: F32, voices: F32 | None = None) -> None:
        """Score the models, then let them learn the examples in order, those with the weight 0 excepted.

        said    float32 (M, B, O)  predicted before their labels y float32 (B,) were known
        weight  float32 (B,)
        voices  float32 (B, V)     as they waited with the predictions; None: no model has any
        """
        self.score(y, said)
        if self.best is not None:
            self._weigh(y, said)
        for learning, own, its in zip(self.learnings, said, self._split(voices), strict=True):
            learning.learn(x, y, own, time, weight, _known(y, own), its)

    def _weigh(self, y: F32, said: F32) -> U8:
        """Compare what the models said; which of them served or would have served each row."""
        loss = np.array([self._losses(_known(y, own), own) for own in said])
        by = np.empty(len(y), np.uint8)
        assert self.best is not None
        choose(loss, float(self.best.lead), self._gained, self._squares, self._serving, self._switches, by)
        return by

    def _losses(self, y: F32, said: F32) -> NDArray:
        """By which the models are compared, float64 (B,): of what one said, float32 (B, O); NaN where y is."""
        return watched("loss", self.spec.task, y, said) if self.measure is None else self.measure.losses(y, said)

    def end_cycle(self) -> None:
        """Learners that learn in micro-batches learn their last, short one."""
        for learning in self.learnings:
            learning.end_cycle()

    def unlearned(self) -> list[object]:
        """What waits for a micro-batch to fill: a copy, for `put_back`."""
        return [learning.unlearned() for learning in self.learnings]

    def put_back(self, unlearned: list[object] | None = None) -> None:
        """Have this wait for a micro-batch to fill, as often as it is called; None: nothing."""
        for learning, own in zip(self.learnings, unlearned or [None] * len(self.learnings), strict=True):
            learning.put_back(own)


def say_losses(models: Mapping[str, Mapping[str, float | int | None]]) -> str:
    """For a line of progress: what each model has lost, from `Contest.results_of_models`; empty for no models."""
    losses = {name: told.get(headline(told) or "") for name, told in models.items()}
    said = [
        f"{name} {loss:.4f}{' (serves)' * bool(models[name]['serves'])}"
        for name, loss in losses.items()
        if loss is not None
    ]
    return f"; {', '.join(said)}" if said else ""


def _known(y: F32, said: F32) -> F32:
    """y, NaN where the model had not said anything finite: it was not there yet."""
    known = np.isfinite(said).all(1)
    return y if known.all() else np.where(known, y, np.float32(np.nan))
