"""A blend of learners: their mean, in which each weighs the more the less it erred of late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import njit
from numpy import ndarray

from ..errors import DeclarationError
from .average import LARGEST, Ask, Average, tell
from .base import Array, Rows, Spec, Truth, check_number, register

LEAST = 1e-6  # of P in a log loss: one example that was thought impossible does not silence a learner for good

# Letters: L learners, B rows, O outputs


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(losses: ndarray, sharpness: float, weights: ndarray) -> None:
    """Write the weight of each learner: (least loss / its loss) ** sharpness, so 1 for the best; float64 (L,) both."""
    least = losses.min()
    for i in range(losses.shape[0]):
        weights[i] = 1.0 if losses[i] == 0.0 else (least / losses[i]) ** sharpness


@njit(cache=True, nogil=True, error_model="numpy")
def mix(each: ndarray, row: int, weights: ndarray, out: ndarray) -> None:
    """Write the weighted mean of what the learners predict of one row, float32 (L, B, O), to out[row], float (B, O)."""
    total = weights.sum()
    for o in range(out.shape[1]):
        said = 0.0
        for i in range(each.shape[0]):
            said += weights[i] * np.float64(each[i, row, o])
        out[row, o] = said / total


@njit(cache=True, nogil=True, error_model="numpy")
def loss_of(said: ndarray, y: float, classes: bool) -> float:
    """Log loss of P (O,), or the absolute error of a value (1,); NaN where the label is not known or names no class."""
    if y - y != 0.0:
        return np.nan
    if not classes:
        return abs(np.float64(said[0]) - y)
    if said.shape[0] == 1:
        p = np.float64(said[0]) if y >= 0.5 else 1.0 - np.float64(said[0])
    elif y < 0.0 or y >= said.shape[0] or y != np.floor(y):
        return np.nan
    else:
        p = np.float64(said[int(y)])
    return -np.log(min(max(p, LEAST), 1.0))


@njit(cache=True, nogil=True, error_model="numpy")
def blend(each: ndarray, losses: ndarray, sharpness: float, weights: ndarray, out: ndarray) -> None:
    """Write the blend of what the learners predict, float32 (L, B, O), to out, float (B, O); weights are scratch."""
    weigh(losses, sharpness, weights)
    for row in range(out.shape[0]):
        mix(each, row, weights, out)


@njit(cache=True, nogil=True, error_model="numpy")
def blend_then_judge(
    each: ndarray, judged: ndarray, y: ndarray, weight: ndarray, classes: bool, fades: float, sharpness: float,
    losses: ndarray, weights: ndarray, weighed: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: write the blend of each[:, i] to out[i], then add to the losses what judged[:, i] lost.

    each       float32 (L, B, O)  what each learner predicted of each row
    judged     float32 (L, B, O)  the same right before it learned the row, with the row as it then was scaled
    y, weight  float32 (B, 1), (B,)  a row whose label is not known, or whose weight is not above 0, judges nobody
    fades      float64            what losses before it still count once there is another example
    losses     float64 (L,)       sums of losses; only their ratios matter   changed in place
    weights    float64 (L,)       scratch
    weighed    float64 (L, B)     the weights in the blend of each row; (L, 0) where nobody asks   changed in place
    out        float (B, O); (0, O) where nothing is to be predicted

    Result does not depend on where the stream is cut.
    """
    for row in range(y.shape[0]):
        if out.shape[0] > 0:
            weigh(losses, sharpness, weights)
            mix(each, row, weights, out)
            for i in range(weights.shape[0] if weighed.shape[1] > 0 else 0):
                weighed[i, row] = weights[i]
        w = np.float64(weight[row])
        if not (w > 0.0 and w - w == 0.0):
            continue
        known = loss_of(judged[0, row], np.float64(y[row, 0]), classes)
        if known - known != 0.0:
            continue
        for i in range(losses.shape[0]):
            losses[i] = fades * losses[i] + w * loss_of(judged[i, row], np.float64(y[row, 0]), classes)


@register
class Blend(Average):
    """The mean of what several learners predict, each weighted by how little it erred of late.

    learners   one or more that learn row by row: a learner, or a chain of its own, as in Average
    memory     how many examples are "of late": after each, losses before it count 1 - 1 / memory of what they did
    sharpness  weight = (1 / loss) ** sharpness: 0, all the same; the larger, the more the best one decides alone

    Loss: log loss, or the absolute error of a value; of what the learner predicts right before it learns the example,
    also where the label comes late. Weights are by ratios of losses, so the unit of the label does not matter. An
    example of weight w counts w times; one without a weight above 0 counts for nobody. Before the first example all
    weigh the same.

    Each learner learns every example, to the bit as it would alone; arrays of learner i are named "i/...". Sequential.
    The losses fade by examples, not by time. Merge: owner. It explains where an Average of the same learners does, by
    the weights with which the row was predicted. Raises DeclarationError for what is no learner, learns in
    micro-batches, or a setting that does not fit.
    Source: exponentially weighted forecasters, Cesa-Bianchi and Lugosi (2006), Prediction, Learning, and Games, ch. 2;
    here the exponent is the logarithm of the loss, which makes it free of units.
    """

    def __init__(self, *learners: Any, memory: float = 50, sharpness: float = 8) -> None:
        if not learners:
            raise DeclarationError("Blend(): expected one learner or more, as in Blend(LogisticRegression(), Prior())")
        super().__init__(*learners)
        for chain in self.learners:
            if chain.updates != "sequential":
                raise DeclarationError(
                    f"Blend(): {chain!r} learns in micro-batches, and a blend judges row by row; take Average"
                )
        check_number("Blend(memory=)", memory, 1.0)
        check_number("Blend(sharpness=)", sharpness, 0.0, high=100.0)
        self.memory, self.sharpness = float(memory), float(sharpness)

    def __repr__(self) -> str:
        return f"Blend({', '.join(map(repr, self.learners))}, memory={self.memory:g}, sharpness={self.sharpness:g})"

    def config(self) -> dict[str, Any]:
        """The settings of the learners and its own, JSON-able; `build` is the way back."""
        parts = [chain.config() for chain in self.learners]
        return {"name": "Blend", "parts": parts, "memory": self.memory, "sharpness": self.sharpness}

    def unbound(self) -> Blend:
        """A new one with the same settings and no arrays."""
        return Blend(*(chain.unbound() for chain in self.learners), memory=self.memory, sharpness=self.sharpness)

    def layout(self, spec: Spec) -> dict[str, Array]:
        """Arrays of all learners, and the losses; raises DeclarationError when one does not fit spec."""
        return super().layout(spec) | {"losses": Array((len(self.learners),), "float64")}

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on arrays as `layout(spec)` says."""
        super().bind(spec, state, touched)
        self._losses, self._scratch = state["losses"], np.empty(len(self.learners))
        self._unasked = np.empty((len(self.learners), 0))
        self._classes, self._outputs = spec.task != "regression", spec.outputs

    def learn(self, x: Rows, truth: Truth) -> None:
        """Each learns the rows in order, and is judged by what it predicts of a row right before it learns it."""
        judged = np.empty((len(self.learners), len(truth.y), self._outputs), np.float32)
        for chain, own in zip(self.learners, judged, strict=True):
            chain.learn(x, truth, own)
        self._judge(judged, judged, truth, np.empty((0, self._outputs), np.float32), self._unasked)

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then learn learned[i] (x[i] where not given)."""
        each, judged = self._each(out), self._each(out)
        for chain, own, own_judged in zip(self.learners, each, judged, strict=True):
            chain.test_then_learn(x, truth, own, learned, judged=own_judged)
        self._judge(each, judged, truth, out, self._unasked)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: ndarray, contributions: ndarray, learned: Rows | None = None
    ) -> None:
        """As `test_then_learn`, with the contributions of each row by the weights with which it was predicted."""

        def asking(judged: ndarray) -> Ask:
            return lambda chain, said, parts: chain.test_then_learn(x, truth, said, learned, parts, judged)

        each, judged, parts = self._each(out), self._each(out), self._each(contributions)
        for chain, own, own_judged, own_parts in zip(self.learners, each, judged, parts, strict=True):
            tell(chain, own, own_parts, asking(own_judged))
        weights, total = np.empty(each.shape[:2]), np.zeros(contributions.shape)
        self._judge(each, judged, truth, out, weights)
        for chain, own_parts, own_weights in zip(self.learners, parts, weights, strict=True):
            self._add_changes(chain, own_parts, own_weights, total)
        contributions[:] = np.clip(total / weights.sum(0)[:, None, None], -LARGEST, LARGEST)

    def _average(self, each: ndarray, out: ndarray) -> None:
        blend(each, self._losses, self.sharpness, self._scratch, out)

    def _weights_now(self) -> ndarray:
        weigh(self._losses, self.sharpness, self._scratch)
        return self._scratch

    def _judge(self, each: ndarray, judged: ndarray, truth: Truth, out: ndarray, weights: ndarray) -> None:
        fades, losses, scratch = 1.0 - 1.0 / self.memory, self._losses, self._scratch
        blend_then_judge(each, judged, *truth, self._classes, fades, self.sharpness, losses, scratch, weights, out)
