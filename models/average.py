"""The average of what several learners say: of probabilities, or of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy import ndarray

from ..errors import DeclarationError
from . import average_kernels as kernels
from .base import Array, Configured, Decay, Explainer, Link, Opaque, Rows, Spec, Truth, check_number, register
from .chain import Chain, as_chain, layout_in_row, summed, under
from .measures import Measure

LINKS = {"identity": kernels.IDENTITY, "logit": kernels.LOGIT, "log": kernels.LOG, "softmax": kernels.SOFTMAX}
LARGEST = 1e30  # of a contribution
# ask(chain, said, parts): have a learner write its predictions to said, and what adds up to its raw scores to parts.
# Where parts is None the predictions alone, and only then are they sure to be written
Ask = Callable[[Chain, ndarray, ndarray | None], None]


@register
class Average(Configured, Explainer):
    """The weighted mean of what several learners predict; each learns every example, as if it were alone.

    learners  one or more: a learner, or a chain of its own, as in Average(FTRL..., StandardScaler() | SGD...). It sees
              rows as they come to the average: behind a scaler already scaled
    weights   one number above 0 for each; None: all the same

    Arrays of learner i are named "i/...". The mean is taken in float64, so the average of one learner, or of several
    equal ones, is that learner to the bit. Where some learn in micro-batches all do, and these have to be of one size.
    The mean of probabilities of several classes sums up to 1 as they do. It explains where all its learners do: the
    same mean of what each feature changes of what they predict. Baselines, which look at no feature, add to the base;
    one learner at least has to look at them. Raises DeclarationError for what is no learner, and for weights that do
    not fit.
    """

    def __init__(self, *learners: Any, weights: Sequence[float] | None = None) -> None:
        if not learners:
            raise DeclarationError(
                "Average(): expected one learner or more, as in Average(LogisticRegression(), Prior())"
            )
        self.learners: tuple[Chain, ...] = tuple(as_chain(learner) for learner in learners)
        for chain in self.learners:
            chain.learner  # noqa: B018  one without a learner is refused here
        if weights is not None:
            if isinstance(weights, str | bytes) or not isinstance(weights, Sequence | ndarray):
                raise DeclarationError(f"Average(weights=): expected a number for each learner, got {weights!r}")
            if len(weights) != len(learners):
                raise DeclarationError(f"Average(weights=): {len(weights)} weights for {len(learners)} learners")
            for i, weight in enumerate(weights):
                check_number(f"Average(weights=)[{i}]", weight, 0.0, above=True)
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        sizes = {chain.batch_size for chain in self.learners if chain.updates == "micro_batch"}
        if len(sizes) > 1:
            raise DeclarationError(
                f"{self!r}: its learners learn in micro-batches of {' and '.join(map(str, sorted(sizes)))}; give them "
                "one batch_size"
            )
        self.updates: Literal["sequential", "micro_batch"] = "micro_batch" if sizes else "sequential"
        self.batch_size = sizes.pop() if sizes else 1
        self.observes = any(len(chain.parts) > 1 or chain.observes for chain in self.learners)

    def __repr__(self) -> str:
        weights = "" if self.weights is None else f", weights={list(self.weights)}"
        return f"Average({', '.join(map(repr, self.learners))}{weights})"

    def config(self) -> dict[str, Any]:
        """The settings of the learners, JSON-able; `build` is the way back."""
        weights = None if self.weights is None else list(self.weights)
        return {"name": "Average", "parts": [chain.config() for chain in self.learners], "weights": weights}

    def unbound(self) -> Average:
        """A new one with the same settings and no arrays."""
        return Average(*(chain.unbound() for chain in self.learners), weights=self.weights)

    @property
    def unsupervised(self) -> bool:  # type: ignore[override]
        """Whether one of them learns from features alone."""
        return any(chain.unsupervised for chain in self.learners)

    def opaque(self) -> dict[str, Opaque]:
        """Learners with state beside their arrays; those of learner i are named "i/..."."""
        return {f"{i}/{name}": one for i, chain in enumerate(self.learners) for name, one in chain.opaque().items()}

    def counters(self) -> dict[str, int]:
        """What the learners count, by name; what several count is summed up."""
        return summed([chain.counters() for chain in self.learners])

    def measure(self) -> Measure | None:
        """What all learners are judged by; None where they differ."""
        measures = {chain.measure() for chain in self.learners}
        return measures.pop() if len(measures) == 1 else None

    def rehearse(self) -> None:
        """From now on rows are made up: nothing is asked that could raise on them."""
        for chain in self.learners:
            chain.rehearse()

    @property
    def quick(self) -> bool:
        """As of a chain."""
        return all(chain.quick for chain in self.learners)

    def layout(self, spec: Spec) -> dict[str, Array]:
        """Arrays of all learners, each prefixed with its place; raises DeclarationError when one does not fit spec."""
        return layout_in_row(self.learners, spec)

    def voices(self, spec: Spec) -> int:
        """As of a learner: those of its learners; none where they learn in micro-batches."""
        return 0 if self.updates == "micro_batch" else sum(chain.voices(spec) for chain in self.learners)

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Work in place on arrays as `layout(spec)` says."""
        for i, chain in enumerate(self.learners):
            chain.bind(spec, under(f"{i}/", state), under(f"{i}/", touched))
            chain.inner = True
        self._spec = spec
        weights = np.ones(len(self.learners)) if self.weights is None else np.array(self.weights)
        self._weights, self._total = weights, float(weights.sum())

    def pull(self) -> None:
        for chain in self.learners:
            chain.pull()

    def push(self) -> None:
        for chain in self.learners:
            chain.push()

    def decays(self) -> list[Decay]:
        """What forgets in each of the learners, and in the transforms before them."""
        return [decay for chain in self.learners for decay in chain.decays()]

    def predict(self, x: Rows, out: ndarray) -> None:
        """Write the mean of what the learners predict to out, float32 (B, O); changes no state."""
        each = self._each(out)
        for chain, own in zip(self.learners, each, strict=True):
            chain.predict(x, own)
        self._average(each, out)

    def predict_then_observe(
        self, x: Rows, out: ndarray, observed: Rows | None = None, voices: ndarray | None = None
    ) -> None:
        """Row by row: predict, then let the learners' own transforms observe the row, labelled or not."""
        each = self._each(out)
        for chain, own, its in zip(self.learners, each, self._split(voices), strict=True):
            chain.predict_then_observe(x, own, observed, voices=its)
        self._average(each, out, voices)

    def learn(self, x: Rows, truth: Truth, voices: ndarray | None = None) -> None:
        """Each learns the rows in order."""
        for chain, its in zip(self.learners, self._split(voices), strict=True):
            chain.learn(x, truth, voices=its)

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then learn learned[i] (x[i] where not given)."""
        each = self._each(out)
        for chain, own in zip(self.learners, each, strict=True):
            chain.test_then_learn(x, truth, own, learned)
        self._average(each, out)

    def check_explains(self) -> None:
        """Raise DeclarationError where one of the learners cannot say what each feature adds, or none looks at any."""
        for chain in [chain for chain in self.learners if not chain.featureless] or self.learners:
            chain.explainer  # noqa: B018  refused here

    def link(self, spec: Spec) -> Link:
        """It says what adds up to the mean itself: P, or the value."""
        return "identity"

    def explain(self, x: Rows, out: ndarray) -> None:
        """Write what each feature adds to the mean to out, float32 (B, O, N + K + 1); changes no state.

        A learner whose raw score is not its prediction (log-odds, a logarithm, scores of classes) counts with what each
        feature changes of the prediction when they are heard one after another, on average over the order of
        declaration and its reverse; the base is then the prediction of its base. So each is held between -1 and 1 for
        P, and all of them add up to it.
        """

        def ask(chain: Chain, said: ndarray, parts: ndarray | None) -> None:
            if parts is None:
                chain.predict(x, said)
            else:
                chain.explain(x, parts)

        self._explain(self._each(out[:, :, 0]), out, ask)

    def explain_then_observe(
        self, x: Rows, out: ndarray, contributions: ndarray, observed: Rows | None = None,
        voices: ndarray | None = None,
    ) -> None:  # fmt: skip
        """As `predict_then_observe`, with the contributions of each row as it is predicted."""
        each = self._each(out)
        of = dict(zip(self.learners, self._split(voices), strict=True))
        self._explain(
            each, contributions,
            lambda chain, said, parts: chain.predict_then_observe(x, said, observed, parts, of[chain]),
        )  # fmt: skip
        self._average(each, out, voices)

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: ndarray, contributions: ndarray, learned: Rows | None = None
    ) -> None:
        """As `test_then_learn`, with the contributions of each row before it is learned."""
        each = self._each(out)
        self._explain(
            each, contributions, lambda chain, said, parts: chain.test_then_learn(x, truth, said, learned, parts)
        )  # fmt: skip
        self._average(each, out)

    def _explain(self, each: ndarray, out: ndarray, ask: Ask) -> None:
        """Write the mean of what adds up to the predictions of the learners to out; each (L, B, O) is for those."""
        weights = self._weights_now()
        total, parts = np.zeros(out.shape), np.empty(out.shape, np.float32)
        for chain, said, weight in zip(self.learners, each, weights, strict=True):
            tell(chain, said, parts, ask)
            self._add_changes(chain, parts, np.full(len(out), weight), total)
        out[:] = np.clip(total / self._total, -LARGEST, LARGEST)

    def _add_changes(self, chain: Chain, parts: ndarray, weights: ndarray, total: ndarray) -> None:
        link = "identity" if chain.featureless else chain.explainer.link(self._spec)
        kernels.add_changes(parts, LINKS[link], weights, total)

    def _weights_now(self) -> ndarray:
        """What each learner weighs in a prediction, float64 (L,)."""
        return self._weights

    def _each(self, out: ndarray) -> ndarray:
        return np.empty((len(self.learners), *out.shape), np.float32)

    def _split(self, voices: ndarray | None) -> list[ndarray | None]:
        """The voices (B, V) of each of the learners; None of those that have none."""
        split: list[ndarray | None] = [None] * len(self.learners)
        if voices is not None:
            at = 0
            for i, many in enumerate(chain.voices(self._spec) for chain in self.learners):
                split[i] = voices[:, at : at + many] if many else None
                at += many
        return split

    def _average(self, each: ndarray, out: ndarray, voices: ndarray | None = None) -> None:
        total = self._weights[0] * each[0].astype(np.float64)
        for weight, own in zip(self._weights[1:], each[1:], strict=True):
            total += weight * own.astype(np.float64)
        out[:] = total / self._total


def tell(chain: Chain, said: ndarray, parts: ndarray, ask: Ask) -> None:
    """Write what adds up to a learner's raw scores to parts; where it is featureless, its prediction as the base."""
    if not chain.featureless:
        ask(chain, said, parts)
        return
    ask(chain, said, None)
    parts[:, :, :-1] = 0.0
    parts[:, :, -1] = said
