"""A blend of learners: the mix of what they predict that would have been best, by what each said so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from ..errors import DeclarationError
from . import average_kernels
from . import blend_kernels as kernels
from .average import LARGEST, LINKS, Ask, Average, tell
from .base import Array, Link, Rows, Spec, Truth, check_number, register
from .chain import Chain

KINDS: Mapping[str, tuple[int, Link]] = {
    "regression": (kernels.VALUES, "identity"),
    "binary": (kernels.BINARY, "logit"),
    "multiclass": (kernels.CLASSES, "softmax"),
}
MOST_MEMORIES = 8


@register
class Blend(Average):
    """What several learners predict, mixed with the weights that suit the examples so far best.

    learners  one or more that learn row by row: a learner, or a chain of its own, as in Average
    memories  how many examples back weights look: after each, those before it count 1 - 1 / memory of what they did.
              Weights are found for each memory, and of these the mean is taken; each counts the more the less was lost
              with it over the last 10,000 examples: exp(-loss)

    Classes: the scores of a blend are the sum of those of its learners, each times its weight. They are log-odds of P;
    of more than two classes the logarithms of P, less their mean. The P of a learner counts as between .001 and .999 (C
    classes: as .002 / C at least). The weights of a memory minimise log loss + 5 |w - 1/L|^2, example by example by a
    step of Newton's; where P was wrong the curvature is that between what was said and what was true, which keeps
    one wild example from turning the weights over. They may add up to more than 1 (learners that are less sure than
    they could be) and be below 0.
    Values: a sum of values with weights that add up to 1, for which sum |error| / e + |w - 1/L|^2 / 2 is least, e the
    mean error: by weighted least squares, an example of error r counting 1 / max(|r|, e). So the unit of the label does
    not matter.

    A learner is judged by what it said of the row when that was predicted, also where the label comes late; where that
    is not known any more, by what it says right before it learns the example. An example of weight w counts w times;
    one without a weight above 0, or without a label, for nobody. Before the first example all weigh the same.

    Each learner learns every example, to the bit as it would alone; arrays of learner i are named "i/...". Sequential.
    What weights rest on fades by examples, not by time. Merge: owner. It explains where an Average of the same learners
    does: the sum of what features add to scores, by the weights with which the row was predicted. Raises
    DeclarationError for what is no learner, learns in micro-batches, or a setting that does not fit.
    Source: Mattern (2012), Mixing strategies in data compression, for weights on log-odds; Herbster and Warmuth (1998),
    Tracking the best expert, for the mean over memories, here with losses that fade in the place of shares.
    """

    def __init__(self, *learners: Any, memories: Sequence[float] = (50, 100_000)) -> None:
        if not learners:
            raise DeclarationError("Blend(): expected one learner or more, as in Blend(LogisticRegression(), Prior())")
        super().__init__(*learners)
        for chain in self.learners:
            if chain.updates != "sequential":
                raise DeclarationError(
                    f"Blend(): {chain!r} learns in micro-batches, and a blend judges row by row; take Average"
                )
        if not isinstance(memories, list | tuple) or not 1 <= len(memories) <= MOST_MEMORIES:
            raise DeclarationError(
                f"Blend(memories=): expected a list of 1 to {MOST_MEMORIES} numbers of examples, got {memories!r}"
            )
        for i, memory in enumerate(memories):
            check_number(f"Blend(memories=)[{i}]", memory, 1.0)
        self.memories = tuple(float(memory) for memory in memories)
        self.observes = True  # what the learners say of a row is kept until its label comes

    def __repr__(self) -> str:
        memories = ", ".join(f"{memory:g}" for memory in self.memories)
        return f"Blend({', '.join(map(repr, self.learners))}, memories=[{memories}])"

    def config(self) -> dict[str, Any]:
        """The settings of the learners and its own, JSON-able; `build` is the way back."""
        return {
            "name": "Blend",
            "parts": [chain.config() for chain in self.learners],
            "memories": list(self.memories),
        }

    def unbound(self) -> Blend:
        """A new one with the same settings and no arrays."""
        return Blend(*(chain.unbound() for chain in self.learners), memories=self.memories)

    def layout(self, spec: Spec) -> dict[str, Array]:
        """Arrays of all learners, and those the weights rest on; raises DeclarationError when one does not fit spec."""
        many, memories = len(self.learners), len(self.memories)
        return super().layout(spec) | {
            "weights": Array((memories, many), "float64", 1.0 / many),
            "curvature": Array((memories, many, many), "float64"),
            "error": Array((memories, 2), "float64"),
            "trust": Array((memories,), "float64"),
        }

    def voices(self, spec: Spec) -> int:
        """How many numbers wait with a row for its label: what each learner said of it, and what each memory did."""
        return (len(self.learners) + len(self.memories)) * spec.outputs + super().voices(spec)

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on arrays as `layout(spec)` says."""
        super().bind(spec, state, touched)
        self._total = 1.0
        self._own = len(self.learners) * spec.outputs, (len(self.learners) + len(self.memories)) * spec.outputs
        self._kind, self._link = KINDS[str(spec.task)]
        self._found, self._trust = state["weights"], state["trust"]
        self._fades = np.array([1.0 - 1.0 / memory for memory in self.memories])
        self._state = self._fades, self._found, state["curvature"], state["error"], self._trust
        self._unasked = np.empty((len(self.learners), 0))
        self._unheard = np.empty((len(self.memories), 0, spec.outputs), np.float32)

    def learn(self, x: Rows, truth: Truth, voices: ndarray | None = None) -> None:
        """Each learns the rows in order, and is judged by what it said of them.

        voices  float32 (B, V), as `predict_then_observe` wrote them; NaN where that is not known: what it says of a row
                right before it learns it
        """
        outputs = self._spec.outputs
        said = np.empty((len(self.learners), len(truth.y), outputs), np.float32)
        known = np.zeros(len(truth.y), np.bool_) if voices is None else ~np.isnan(voices[:, 0])
        for chain, own, its in zip(self.learners, said, self._split(voices), strict=True):
            chain.learn(x, truth, None if known.all() else own, its)
        alone = self._unheard
        if voices is not None:
            mine, all_own = self._own
            said[:, known] = voices[known, :mine].reshape(-1, len(self.learners), outputs).transpose(1, 0, 2)
            alone = np.ascontiguousarray(
                voices[:, mine:all_own].reshape(-1, len(self.memories), outputs).transpose(1, 0, 2)
            )
        self._judge(said, truth, np.empty((0, outputs), np.float32), self._unasked, alone)

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then learn learned[i] (x[i] where not given)."""
        each = self._each(out)
        for chain, own in zip(self.learners, each, strict=True):
            chain.test_then_learn(x, truth, own, learned)
        self._judge(each, truth, out, self._unasked, self._unheard)

    def link(self, spec: Spec) -> Link:
        """It says what adds up to its scores."""
        return KINDS[str(spec.task)][1]

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: ndarray, contributions: ndarray, learned: Rows | None = None
    ) -> None:
        """As `test_then_learn`, with the contributions of each row by the weights with which it was predicted."""
        ask: Ask = lambda chain, said, parts: chain.test_then_learn(x, truth, said, learned, parts)  # noqa: E731
        each, parts = self._each(out), self._each(contributions)
        for chain, own, own_parts in zip(self.learners, each, parts, strict=True):
            tell(chain, own, own_parts, ask)
        weights, total = np.empty(each.shape[:2]), np.zeros(contributions.shape)
        self._judge(each, truth, out, weights, self._unheard)
        for chain, own_parts, own_weights in zip(self.learners, parts, weights, strict=True):
            self._add_changes(chain, own_parts, own_weights, total)
        contributions[:] = np.clip(total, -LARGEST, LARGEST)

    def _average(self, each: ndarray, out: ndarray, voices: ndarray | None = None) -> None:
        alone = self._unheard[:0] if voices is None else np.empty((len(self.memories), *out.shape), np.float32)
        kernels.blend(self._scores(each), self._found, self._trust, self._kind, out, alone)
        if voices is not None:
            mine, all_own = self._own
            voices[:, :mine] = each.transpose(1, 0, 2).reshape(len(out), mine)
            voices[:, mine:all_own] = alone.transpose(1, 0, 2).reshape(len(out), all_own - mine)

    def _split(self, voices: ndarray | None) -> list[ndarray | None]:
        return super()._split(None if voices is None else voices[:, self._own[1] :])

    def _add_changes(self, chain: Chain, parts: ndarray, weights: ndarray, total: ndarray) -> None:
        link = "identity" if chain.featureless else chain.explainer.link(self._spec)
        if self._kind == kernels.VALUES:
            average_kernels.add_changes(parts, LINKS[link], weights, total)
        else:
            kernels.add_scores(parts, link != "identity", self._kind, weights, total)

    def _weights_now(self) -> ndarray:
        weights = np.empty(len(self.learners))
        kernels.weigh(self._found, self._trust, weights)
        return weights

    def _scores(self, each: ndarray) -> ndarray:
        scores = np.empty(each.shape)
        kernels.score(each, self._kind, scores)
        return scores

    def _judge(self, said: ndarray, truth: Truth, out: ndarray, weighed: ndarray, alone: ndarray) -> None:
        kernels.blend_then_learn(self._scores(said), alone, *truth, self._kind, *self._state, weighed, out)
