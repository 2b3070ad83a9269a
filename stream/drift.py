"""What a pipeline does when its stream drifts: a detector hears the loss of each example, in order, and then acts.

It hears an example just before it is learned, and the loss is that of the prediction made before the label was known.
Where the loss rose it acts, at the end of the block of BLOCK examples in which it fired, before the next is learned: at
a row, so it replays, and does not depend on where slices and cycles are cut. Where the loss fell it only counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..models.base import Array, Rows, Spec, Truth
from ..models.chain import Chain, under
from ..models.drift import DriftDetector, watched

BLOCK = 32

HEARD, DUE, ACTIONS, LAST, LAST_TIME = range(5)  # places in `marks`: LAST is the number of an example, from 1; 0: never


class Watch:
    """A detector at work on the examples of an engine, whose model it may change."""

    def __init__(self, detector: DriftDetector, chain: Chain, spec: Spec, count: Callable[[str, int], None]) -> None:
        """count  told ("drifts", how many) when the detector has fired"""
        self.detector: DriftDetector = detector.unbound()  # several engines may share a declaration
        self.chain, self.spec, self._count = chain, spec, count
        self._learner = f"{len(chain.parts) - 1}/"  # what the names of its arrays begin with

    def layout(self) -> dict[str, Array]:
        """The arrays: those of the detector, and `marks`."""
        arrays = {f"detector/{name}": array for name, array in self.detector.layout(self.spec).items()}
        return arrays | {"marks": Array((5,), "int64")}

    def bind(self, state: Mapping[str, NDArray], model: Mapping[str, NDArray], touched: Mapping[str, NDArray]) -> None:
        """Work in place on arrays as `layout()` says, and on the chain's own with their marks."""
        self.detector.bind(self.spec, under("detector/", state), {})
        self._marks = state["marks"]
        self._model, self._touched = under(self._learner, model), under(self._learner, touched)

    def results(self) -> dict[str, float | int | None]:
        """How often it has acted; of the last detection, which example it was (from 0) and its event time in s."""
        last = int(self._marks[LAST])
        return {
            "drift_actions": int(self._marks[ACTIONS]),
            "last_drift_example": last - 1 if last else None,
            "last_drift_time": int(self._marks[LAST_TIME]) / 1e6 if last else None,
        }

    def stretches(
        self, y: NDArray[np.float32], prediction: NDArray[np.float32], time: NDArray[np.int64]
    ) -> Iterator[slice]:
        """Examples whose predictions are made already, cut where something is due, which is done between two of them.

        y float32 (B,), prediction float32 (B, O), time int64 (B,)
        """
        at = 0
        for end in self._hear(y, prediction, time):
            yield slice(at, end)
            self._act()
            at = end
        if at < len(y):
            yield slice(at, len(y))

    def test_then_learn(
        self,
        x: Rows,
        y: NDArray[np.float32],
        truth: Truth,
        time: NDArray[np.int64],
        out: NDArray[np.float32],
        learn: Callable[[Rows, Truth, NDArray[np.float32], NDArray[np.float32] | None], None],
        contributions: NDArray[np.float32] | None = None,
    ) -> None:
        """Rows that hold their label; NaN in y float32 (B,): none. Predictions go to out (B, O).

        truth  what is learned of the labels: less than is heard, where some have the weight 0
        learn  predicts rows to its third argument, explains them to its fourth, and learns them
        """
        known = np.flatnonzero(~np.isnan(y))
        heard = at = 0
        while at < len(y):
            last = heard + (len(y) + 1 if self.detector.action == "report" else BLOCK - int(self._marks[HEARD]) % BLOCK)
            end = int(known[last - 1]) + 1 if last <= len(known) else len(y)
            rows = slice(at, end)
            learned = Truth(truth.y[rows], truth.weight[rows])
            parts = None if contributions is None else contributions[rows]
            learn(Rows(x.numeric[rows], x.categories[rows]), learned, out[rows], parts)
            of = known[heard:last]
            if self._hear(y[of], out[of], time[of]):
                self._act()
            heard, at = heard + len(of), end

    def _hear(self, y: NDArray[np.float32], prediction: NDArray[np.float32], time: NDArray[np.int64]) -> list[int]:
        """Let the detector hear examples; how many of them lie before each end of a block at which something is due."""
        if not len(y):
            return []
        marks, before = self._marks, int(self._marks[HEARD])
        fired, rose = np.empty((2, len(y)), np.bool_)
        self.detector.hear(watched(self.detector.on, self.spec.task, y, prediction), fired, rose)
        marks[HEARD] = before + len(y)
        if fired.any():
            rows = np.flatnonzero(fired)
            marks[LAST], marks[LAST_TIME] = before + rows[-1] + 1, time[rows[-1]]
            self._count("drifts", len(rows))
        elif not marks[DUE]:
            return []
        if self.detector.action == "report":
            return []
        blocks = set(((before + np.flatnonzero(rose)) // BLOCK).tolist()) | ({before // BLOCK} if marks[DUE] else set())
        ends = sorted(BLOCK * (block + 1) - before for block in blocks)
        marks[DUE] = len(ends) > 0 and ends[-1] > len(y)
        return [end for end in ends if end <= len(y)]

    def _act(self) -> None:
        self._marks[ACTIONS] += 1
        if self.detector.action == "boost":
            for _, decay in self.chain.learner.decays():
                decay(self.detector.boost)
        else:
            self._start_over()

    def _start_over(self) -> None:
        """The learner is as new: each of its arrays at its fill."""
        learner = self.chain.learner
        for name, array in learner.layout(self.spec).items():
            self._model[name][...] = array.fill
        for marks in self._touched.values():
            marks[:] = 1
        learner.bind(self.spec, self._model, self._touched)  # some begin with more than fills
        learner.push()
