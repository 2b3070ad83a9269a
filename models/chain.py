"""Transforms and a learner in a row: `StandardScaler() | LogisticRegression()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import numpy as np

from ..errors import DeclarationError
from .base import (
    Array,
    Configured,
    Decay,
    Explainer,
    Learner,
    Opaque,
    Part,
    Rows,
    Spec,
    Stateful,
    Transform,
    Truth,
    allocate,
    allocate_touched,
    build,
    came,
    register,
)
from .measures import Measure


def as_chain(model: Any) -> Chain:
    """The model as the engine drives it: a chain as it is, a bare learner as a chain of one.

    Raises DeclarationError for anything else.
    """
    return model if isinstance(model, Chain) else Chain(model)


@register
class Chain(Configured):
    """Parts in a row, all but the last transforms, the last a learner.

    Rows come in raw: the chain applies its transforms as they stand at that moment. Arrays of part i are named "i/...".
    The chain keeps buffers of the largest number of rows it has seen, and is used from one thread at a time.

    inner  whether it stands in another model, so that its rows may have come through parts before it
    """

    inner: bool = False

    def __init__(self, *parts: Any) -> None:
        self.parts: tuple[Part, ...] = tuple(
            p for part in parts for p in (part.parts if isinstance(part, Chain) else (part,))
        )
        for part in self.parts:
            if isinstance(part, type) or not (_is_transform(part) or _is_learner(part)):
                raise DeclarationError(
                    f"a model is made of transforms and a learner, as in StandardScaler() | LogisticRegression(); "
                    f"got {came(part)}"
                )
        for part in self.parts[:-1]:
            if not _is_transform(part):
                raise DeclarationError(f"{self!r}: only the last part may be a learner, and {part!r} comes before it")

    def __or__(self, other: Part) -> Chain:
        return Chain(self, other)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))

    def config(self) -> dict[str, Any]:
        """The settings of the parts, JSON-able; `build` is the way back."""
        return {"name": "Chain", "parts": [part.config() for part in self.parts]}

    def unbound(self) -> Chain:
        """A new chain with the same settings and no arrays."""
        return Chain(*(part.unbound() if hasattr(part, "unbound") else build(part.config()) for part in self.parts))

    def opaque(self) -> dict[str, Opaque]:
        """Parts with state beside their arrays; those of part i are named "i/..."."""
        return {f"{i}/{name}": one for i, own in enumerate(self._asked("opaque")) for name, one in own.items()}

    def counters(self) -> dict[str, int]:
        """What the parts count, by name; what several count is summed up."""
        return summed(self._asked("counters"))

    def rehearse(self) -> None:
        """From now on rows are made up: nothing is asked that could raise on them."""
        self._asked("rehearse")

    def _asked(self, question: str) -> list[Any]:
        """What each part says to a question without arguments; {} where it does not know it."""
        return [getattr(part, question, dict)() for part in self.parts]

    @property
    def observes(self) -> bool:
        """Whether the learner does something at a row whose label is not known, beside predicting it."""
        return bool(getattr(self.learner, "observes", False))

    @property
    def unsupervised(self) -> bool:
        """Whether the learner learns from features alone."""
        return bool(getattr(self.learner, "unsupervised", False))

    @property
    def featureless(self) -> bool:
        """Whether the learner predicts without a look at features; each class says so for itself, as with `quick`."""
        return bool(vars(type(self.learner)).get("featureless", False))

    def voices(self, spec: Spec) -> int:
        """How many numbers the learner has wait with a predicted row for its label; see `Learner.voices`."""
        learner = self.learner
        return int(learner.voices(spec)) if hasattr(learner, "voices") else 0

    def measure(self) -> Measure | None:
        """What the learner's predictions are judged by beside the metrics of the task; None: nothing."""
        ask = getattr(self.learner, "measure", None)
        return None if ask is None else ask()

    @property
    def quick(self) -> bool:
        """Whether a few hundred rows take a millisecond or two, so that an event loop can wait for them.

        Each class says so for itself (`quick = True`) and for no other: a subclass of a user may do anything.
        """
        return all(_is_quick(part) for part in self.parts)

    @property
    def updates(self) -> Literal["sequential", "micro_batch"]:
        return self.learner.updates

    @property
    def batch_size(self) -> int:
        return self.learner.batch_size

    @property
    def learner(self) -> Learner:
        """The last part; raises DeclarationError where it is no learner."""
        last = self.parts[-1]
        if not _is_learner(last):
            raise DeclarationError(f"{self!r} ends without a learner; add one, as in {self!r} | LogisticRegression()")
        return cast(Learner, last)

    @property
    def explainer(self) -> Explainer:
        """The learner as one that explains; raises DeclarationError where it cannot."""
        learner = self.learner
        if isinstance(learner, Explainer) and _explains_what_it_predicts(type(learner)):
            learner.check_explains()
            return learner
        raise DeclarationError(
            f"{learner!r} cannot say what each feature adds to a prediction; linear models, naive Bayes, "
            "torch modules, forests and trees can, and averages and blends of them"
        )

    def layout(self, spec: Spec) -> dict[str, Array]:
        """Arrays of all parts, each prefixed with its place; raises DeclarationError when a part does not fit spec."""
        self.learner  # noqa: B018  a chain without one is refused here
        return layout_in_row(self.parts, spec)

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on arrays as `layout(spec)` says; raises DeclarationError where one is missing or differs."""
        for name, array in self.layout(spec).items():
            bound = state.get(name)
            if bound is None or bound.shape != array.shape or bound.dtype != array.dtype or not bound.flags.carray:
                came = "nothing" if bound is None else f"{bound.dtype} {bound.shape}"
                raise DeclarationError(
                    f"{name} of {self!r}: expected {array.dtype} {array.shape}, writable, got {came}"
                )
        for i, part in enumerate(self.parts):
            part.bind(spec, under(f"{i}/", state), under(f"{i}/", touched))
        self._spec = spec
        self._shapes = len(spec.numeric), len(spec.categories), spec.outputs
        self._bound_learner, self._observes = self.learner, self.observes
        self._transforms = cast(tuple[Transform, ...], self.parts[:-1])
        self._reserve(16)

    def pull(self) -> None:
        for part in self.parts:
            part.pull()

    def push(self) -> None:
        for part in self.parts:
            part.push()

    def decays(self) -> list[Decay]:
        """(half-life in microseconds, decay) of every part that forgets; the engine calls decay(2 ** (-k / 64))."""
        return [decay for part in self.parts for decay in part.decays()]

    def predict(self, x: Rows, out: np.ndarray) -> None:
        """Write P(true) or values of raw rows to out, float32 (B, O); changes no state."""
        x = self._checked(x)
        self._bound_learner.predict(self._applied(x), self._checked_out(x, out))

    def explain(self, x: Rows, out: np.ndarray) -> None:
        """Write what each feature adds to the raw scores of raw rows to out, float32 (B, O, N + K + 1); pure.

        Columns of out are those of `Explainer`. Raises DeclarationError where the learner cannot explain.
        """
        x = self._checked(x)
        self.explainer.explain(self._applied(x), self._checked_contributions(x, out))

    def predict_then_observe(
        self,
        x: Rows,
        out: np.ndarray,
        observed: Rows | None = None,
        contributions: np.ndarray | None = None,
        voices: np.ndarray | None = None,
    ) -> None:
        """Row by row: predict, then let the transforms observe the row, labelled or not, and a learner that can.

        observed       the rows as parts before this chain made them once they had observed them; None: there are none
        contributions  as `explain` gives them, of each row as it is predicted; None: not wanted
        voices         float32 (B, V), for what `learn` is to be told of the rows; None: not wanted
        """
        x = self._checked(x)
        out = self._checked_out(x, out)
        before, after = self._around(x, observed)
        told = {} if voices is None else {"voices": voices}
        if contributions is not None:
            contributions = self._checked_contributions(x, contributions)
            if self._observes:
                self.explainer.explain_then_observe(before, out, contributions, after, **told)
                return
            self.explainer.explain(before, contributions)
        if self._observes:
            self._bound_learner.predict_then_observe(before, out, after, **told)
        else:
            self._bound_learner.predict(before, out)

    def learn(self, x: Rows, truth: Truth, judged: np.ndarray | None = None, voices: np.ndarray | None = None) -> None:
        """Learn raw rows in order, scaled as the transforms now stand; the transforms do not observe them again.

        judged  float32 (B, O), for what the learner predicts of each row right before it learns it; None: not wanted
        voices  float32 (B, V), as `predict_then_observe` wrote them, NaN where that is not known; None: of no row
        """
        x = self._checked(x)
        x, truth = self._applied(x), self._checked_truth(x, truth)
        if judged is None:
            self._learn(x, truth, voices)
        elif not self._observes:
            self._bound_learner.test_then_learn(x, truth, judged)
        else:  # to test them is to observe them, once more
            for i in range(len(judged)):
                self._bound_learner.predict(_row(x, i), judged[i : i + 1])
                of = Truth(truth.y[i : i + 1], truth.weight[i : i + 1])
                self._learn(_row(x, i), of, None if voices is None else voices[i : i + 1])

    def _learn(self, x: Rows, truth: Truth, voices: np.ndarray | None) -> None:
        told = {} if voices is None else {"voices": voices}
        self._bound_learner.learn(x, truth, **told)

    def test_then_learn(
        self,
        x: Rows,
        truth: Truth,
        out: np.ndarray,
        learned: Rows | None = None,
        contributions: np.ndarray | None = None,
    ) -> None:
        """Row by row: predict, observe, learn the row as it is scaled then; a row with a NaN label is not learned.

        learned        the rows as parts before this chain made them once they had observed them; None: there are none
        contributions  as `explain` gives them, of each row as it is predicted; None: not wanted

        A learner in micro-batches learns after each `batch_size` rows, scaled as the transforms stand then.
        """
        x = self._checked(x)
        out = self._checked_out(x, out)
        truth = self._checked_truth(x, truth)
        if self.updates == "micro_batch" and learned is None:
            for a in range(0, len(out), self.batch_size):
                rows = slice(a, a + self.batch_size)
                part = Rows(x.numeric[rows], x.categories[rows])
                parts = None if contributions is None else contributions[rows]
                self.predict_then_observe(part, out[rows], contributions=parts)
                self.learn(part, Truth(truth.y[rows], truth.weight[rows]))
            return
        before, after = self._around(x, learned)
        if contributions is None:
            self._bound_learner.test_then_learn(before, truth, out, learned=after)
        else:
            contributions = self._checked_contributions(x, contributions)
            self.explainer.explain_then_learn(before, truth, out, contributions, learned=after)

    def warm_up(self, explain: bool = False) -> None:
        """Compile (or load from Numba's cache) whatever the methods above call; the bound arrays are left alone.

        Takes seconds the first time. Call it after `bind`.

        explain  also what explains
        """
        twin = self.unbound()
        twin.rehearse()
        layout = twin.layout(self._spec)
        twin.bind(self._spec, allocate(layout), allocate_touched(layout))
        n, k, outputs = self._shapes
        x = Rows(np.ones((2, n), np.float32), np.ones((2, k), np.uint64))
        truth = Truth(np.zeros((2, 1), np.float32), np.ones(2, np.float32))
        out = np.empty((2, outputs), np.float32)
        twin.predict(x, out)
        twin.predict_then_observe(x, out)
        twin.test_then_learn(x, truth, out)
        twin.learn(x, truth)
        if explain:
            contributions = np.empty((2, outputs, n + k + 1), np.float32)
            twin.explain(x, contributions)
            twin.test_then_learn(x, truth, out, contributions=contributions)
        for _, decay in twin.decays():
            decay(0.5)

    def _applied(self, x: Rows) -> Rows:
        """The rows as the transforms now make them."""
        for step, transform in enumerate(self._transforms):
            applied = self._after(step, x)
            transform.apply(x, applied)
            x = applied
        return x

    def _around(self, x: Rows, observed: Rows | None = None) -> tuple[Rows, Rows]:
        """The rows as each was transformed before and after it was observed."""
        before, after = x, x if observed is None else observed
        for step, transform in enumerate(self._transforms):
            out_before, out_after = self._before(step, x), self._after(step, x)
            transform.apply_around(before, after, out_before, out_after)
            before, after = out_before, out_after
        return before, after

    def _before(self, step: int, x: Rows) -> Rows:
        return Rows(self._buffers[2 * step][: len(x.numeric)], x.categories)

    def _after(self, step: int, x: Rows) -> Rows:
        return Rows(self._buffers[2 * step + 1][: len(x.numeric)], x.categories)

    def _reserve(self, rows: int) -> None:
        self._capacity = rows
        self._buffers = [np.empty((rows, self._shapes[0])) for _ in range(2 * len(self._transforms))]

    # The kernels are compiled for C-contiguous writable arrays of one dtype each: any other would stop the stream for a
    # compilation, or be misread.

    def _checked(self, x: Rows) -> Rows:
        numeric, categories = x
        n, k, _ = self._shapes
        rows = len(numeric)
        if rows > self._capacity:
            self._reserve(max(rows, 2 * self._capacity))
        if (
            (numeric.dtype == np.float32 or (self.inner and numeric.dtype == np.float64))
            and numeric.flags.carray and numeric.shape == (rows, n)
            and categories.dtype == np.uint64 and categories.flags.carray and categories.shape == (rows, k)
        ):  # fmt: skip
            return x
        return Rows(
            _as("numeric features", numeric, np.float32, (rows, n)),
            _as("categories", categories, np.uint64, (rows, k)),
        )

    def _checked_truth(self, x: Rows, truth: Truth) -> Truth:
        y, weight = truth
        rows = len(x.numeric)
        if (
            y.dtype == np.float32 and y.flags.carray and y.ndim == 2 and len(y) == rows
            and weight.dtype == np.float32 and weight.flags.carray and weight.shape == (rows,)
        ):  # fmt: skip
            return truth
        return Truth(
            _as("labels", y, np.float32, (rows, y.shape[-1] if y.ndim == 2 else 1)),
            _as("weights", weight, np.float32, (rows,)),
        )

    def _checked_out(self, x: Rows, out: np.ndarray) -> np.ndarray:
        expected = (len(x.numeric), self._shapes[2])
        if out.shape == expected and out.flags.carray and (out.dtype == np.float32 or out.dtype == np.float64):
            return out
        raise ValueError(
            f"out: expected a writable, contiguous float32 (or float64) array {expected}, got {out.dtype} {out.shape}"
        )

    def _checked_contributions(self, x: Rows, out: np.ndarray) -> np.ndarray:
        n, k, outputs = self._shapes
        expected = (len(x.numeric), outputs, n + k + 1)
        if out.shape == expected and out.flags.carray and out.dtype == np.float32:
            return out
        raise ValueError(
            f"contributions: expected a writable, contiguous float32 array {expected}, got {out.dtype} {out.shape}"
        )


def _row(x: Rows, i: int) -> Rows:
    return Rows(x.numeric[i : i + 1], x.categories[i : i + 1])


def _as(what: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A contiguous, writable copy; raises ValueError when dtype or shape differ."""
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{what}: expected {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}; "
            "was the model bound with another list of features?"
        )
    return np.require(array, dtype, ["C", "W", "A"])


def layout_in_row(parts: Iterable[Stateful], spec: Spec) -> dict[str, Array]:
    """The arrays of all parts, those of part i under "i/...", and so their row groups."""
    return {
        f"{i}/{name}": array._replace(
            rows=array.rows and f"{i}/{array.rows}", by=array.by and f"{i}/{array.by}"
        )
        for i, part in enumerate(parts)
        for name, array in part.layout(spec).items()
    }  # fmt: skip


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _explains_what_it_predicts(learner: type) -> bool:
    """False for a subclass that predicts in its own way, and would explain in that of the class it comes from."""
    places = {
        name: next(at for at, of in enumerate(learner.__mro__) if name in vars(of)) for name in ("explain", "predict")
    }
    return places["explain"] <= places["predict"]


def summed(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What several count, by name, summed up."""
    counts: dict[str, int] = {}
    for own in counters:
        for name, count in own.items():
            counts[name] = counts.get(name, 0) + count
    return counts


def _is_quick(part: Any) -> bool:
    own = vars(type(part)).get("quick", False)
    return bool(part.quick if isinstance(own, property) else own)


def _is_transform(part: Any) -> bool:
    return hasattr(part, "apply") and hasattr(part, "observe") and hasattr(part, "layout")


def _is_learner(part: Any) -> bool:
    return hasattr(part, "learn") and hasattr(part, "predict") and hasattr(part, "layout")
