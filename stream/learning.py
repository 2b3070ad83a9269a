"""One model at work in an engine: its chain, its detector of drift, and what it has yet to learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.base import Array, Explainer, Rows, Spec, Truth
from ..models.chain import as_chain, under
from ..models.drift import DriftDetector
from .drift import Watch

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


class Said(NamedTuple):
    """What several models said of B rows, and which of them served each."""

    each: F32  # (M, B, O)
    by: U8 | None  # (B,) the place of the model; None: it is always the first


@dataclass
class Unlearned:
    """Examples that wait for a micro-batch to fill."""

    numeric: list[F32] = field(default_factory=list)
    categories: list[NDArray[np.uint64]] = field(default_factory=list)
    y: list[F32] = field(default_factory=list)
    weight: list[F32] = field(default_factory=list)
    rows: int = 0

    def copy(self) -> Unlearned:
        return Unlearned(list(self.numeric), list(self.categories), list(self.y), list(self.weight), self.rows)


class Learning:
    """A model in the order of the stream: rows are predicted and observed, examples learned, one after another.

    What predicts writes to `out`, float32 (B, O), and what each feature added to `contributions`, if given, float32
    (B, O, N + K + 1). It returns None: there is nothing but that. See `Contest`, which has more to tell.
    """

    growing: frozenset[str] = frozenset()  # arrays of which an earlier state may hold fewer rows

    def __init__(
        self, model: Any, spec: Spec, detector: DriftDetector | None, count: Callable[[str, int], None]
    ) -> None:
        """count  told ("drifts", how many) when the detector has fired"""
        self.model = as_chain(model).unbound()  # several engines may share a declaration
        self.spec, self.measure = spec, self.model.measure()
        self.drift = Watch(detector, self.model, spec, count) if detector is not None else None
        self._unlearned = Unlearned()

    def arrays(self) -> dict[str, Array]:
        """The arrays: "model/...", and "drift/..." where there is a detector."""
        arrays = {f"model/{name}": array for name, array in self.model.layout(self.spec).items()}
        if self.drift is not None:
            arrays |= {f"drift/{name}": array for name, array in self.drift.layout().items()}
        return arrays

    def bind(self, arrays: Mapping[str, NDArray], touched: Mapping[str, NDArray]) -> None:
        """Work in place on arrays as `arrays()` says, with the marks of the model's row groups."""
        model = under("model/", arrays)
        self.model.bind(self.spec, model, touched)
        if self.drift is not None:
            self.drift.bind(under("drift/", arrays), model, touched)

    @property
    def voices(self) -> int:
        """How many numbers the model has wait with a prediction for its label; see `Learner.voices`."""
        return self.model.voices(self.spec)

    def waiting(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Columns that a prediction waits with besides itself."""
        return {}

    def results(self) -> dict[str, float | int | None]:
        """What the detector tells."""
        return self.drift.results() if self.drift is not None else {}

    # -- rows

    @property
    def explainer(self) -> Explainer:
        """The learner, where it can explain; raises DeclarationError else."""
        return self.model.explainer

    def look(self, x: Rows, out: F32, contributions: F32 | None = None) -> None:
        """Predict; nothing changes."""
        self.model.predict(x, out)
        if contributions is not None:
            self.model.explain(x, contributions)

    def predict(self, x: Rows, out: F32, contributions: F32 | None = None) -> Said | None:
        """Predict rows of the stream from which nothing is to be learned."""
        self.look(x, out, contributions)
        return None

    def predict_then_observe(
        self, x: Rows, out: F32, contributions: F32 | None = None, voices: F32 | None = None
    ) -> Said | None:
        """Predict rows whose labels come later; voices float32 (B, V), where there are any, waits with them."""
        self.model.predict_then_observe(x, out, contributions=contributions, voices=voices)
        return None

    def test_then_learn(
        self, x: Rows, y: F32, truth: Truth, time: I64, out: F32, contributions: F32 | None = None
    ) -> Said | None:
        """Predict and learn rows that hold their label; NaN in y float32 (B,): none. time int64 (B,)

        truth  what is learned of the labels: not those with the weight 0
        """
        if self.drift is not None:
            self.drift.test_then_learn(x, y, truth, time, out, self._test_then_learn, contributions)
        else:
            self._test_then_learn(x, truth, out, contributions)
        return None

    def _test_then_learn(self, x: Rows, truth: Truth, out: F32, contributions: F32 | None) -> None:
        """As `test_then_learn`, without the detector. A micro-batch is learned once it is full, wherever the cuts."""
        if self.model.updates == "sequential":
            self.model.test_then_learn(x, truth, out, contributions=contributions)
            return
        y, weight = truth.y[:, 0], truth.weight
        known = np.flatnonzero(~np.isnan(y) & (weight != 0))
        at = taken = 0
        while at < len(y):
            of = known[taken : taken + self.model.batch_size - self._unlearned.rows]
            full = self._unlearned.rows + len(of) == self.model.batch_size
            end = int(of[-1]) + 1 if full else len(y)
            parts = None if contributions is None else contributions[at:end]
            rows = Rows(x.numeric[at:end], x.categories[at:end])
            self.model.predict_then_observe(rows, out[at:end], contributions=parts)
            self._learn(x.numeric[of], x.categories[of], y[of], weight[of])
            at, taken = end, taken + len(of)

    # -- examples

    def said(self, prediction: F32, waited: NDArray) -> F32:
        """What was said of examples that waited: their column `prediction`, float32 (B, O)."""
        return prediction

    def score(self, y: F32, said: F32) -> None:
        """Labels came for predictions that were made; nothing is learned."""

    def learn(
        self, x: Rows, y: F32, said: F32, time: I64, weight: F32, heard: F32 | None = None, voices: F32 | None = None
    ) -> None:
        """Learn examples in order, those with the weight 0 excepted.

        said    float32 (B, O)  predicted before their labels y float32 (B,) were known
        weight  float32 (B,)
        heard   float32 (B,)    y, NaN where the detector is to hear nothing
        voices  float32 (B, V)  as they waited with the predictions; None: the model has none
        """
        if self.drift is None:
            self._learn(x.numeric, x.categories, y, weight, voices)
            return
        for part in self.drift.stretches(y if heard is None else heard, said, time):
            of = None if voices is None else voices[part]
            self._learn(x.numeric[part], x.categories[part], y[part], weight[part], of)

    def end_cycle(self) -> None:
        """A learner that learns in micro-batches learns its last, short one."""
        self._learn_micro_batches(least=1)

    def unlearned(self) -> Any:
        """What waits for a micro-batch to fill: a copy, for `put_back`."""
        return self._unlearned.copy()

    def put_back(self, unlearned: Any = None) -> None:
        """Have this wait for a micro-batch to fill, as often as it is called; None: nothing."""
        self._unlearned = Unlearned() if unlearned is None else unlearned.copy()

    def _learn(
        self, numeric: F32, categories: NDArray[np.uint64], y: F32, weight: F32, voices: F32 | None = None
    ) -> None:
        if not weight.all():
            kept = weight != 0
            numeric, categories, y, weight = numeric[kept], categories[kept], y[kept], weight[kept]
            voices = None if voices is None else voices[kept]
        if self.model.updates == "sequential":
            self.model.learn(Rows(numeric, categories), Truth(y[:, None], weight), voices=voices)
            return
        u = self._unlearned
        u.numeric.append(numeric)
        u.categories.append(categories)
        u.y.append(y)
        u.weight.append(weight)
        u.rows += len(y)
        self._learn_micro_batches(least=self.model.batch_size)

    def _learn_micro_batches(self, least: int) -> None:
        u, size = self._unlearned, self.model.batch_size
        if u.rows < least:
            return
        numeric, categories = np.concatenate(u.numeric), np.concatenate(u.categories)
        y, weight = np.concatenate(u.y), np.concatenate(u.weight)
        a = 0
        while u.rows - a >= least:
            b = min(a + size, u.rows)
            self.model.learn(Rows(numeric[a:b], categories[a:b]), Truth(y[a:b, None], weight[a:b]))
            a = b
        self._unlearned = Unlearned([numeric[a:]], [categories[a:]], [y[a:]], [weight[a:]], u.rows - a)


def joined(said: Sequence[Said | None]) -> Said | None:
    """What was said of rows that follow one another."""
    parts = [part for part in said if part is not None]
    if len(parts) <= 1:
        return parts[0] if parts else None
    by = [part.by for part in parts if part.by is not None]
    return Said(np.concatenate([part.each for part in parts], axis=1), np.concatenate(by) if by else None)
