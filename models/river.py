"""Any model of River as a learner: classifiers, regressors, anomaly detectors, and pipelines that end in one.

Its state is whatever the River object has become: no arrays, but a pickle, which is kept only under a key (`Opaque`).
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar, Literal

from numpy import ndarray

from ..errors import DeclarationError, SetupError, SnapshotError
from .base import Array, Learner, Opaque, Rows, Spec, Truth

Kind = Literal["classifier", "regressor", "anomaly detector"]

TASKS: dict[str, Kind] = {"binary": "classifier", "multiclass": "classifier", "regression": "regressor"}
LARGEST = 3.4028234663852886e38  # float32 knows no larger number
START = 0.5  # what each class counts for before its first label: Krichevsky and Trofimov (1981)
NEAR_ONE = 1e-6  # a sum of P that is so near to 1 is left as it is
HEADER = "headrace.River river=%s\n"  # before the pickle: what has to be there to read it

SAID, UNANSWERED, UNDECLARED = -1, 0, 1  # how a prediction came about; places in `odd`


@dataclass(eq=False)
class River(Learner):
    """A model of River 0.26: predicted by `predict_proba_one`, `predict_one` or `score_one`, taught by `learn_one`.

    model    a classifier (binary and multiclass tasks), a regressor (regression), an anomaly detector or filter (no
             labels, or binary ones, which then only serve to measure it), or a pipeline that ends in one of them. It is
             copied as it is, with what it has learned before, and never changed
    missing  how River is told that a feature is missing: "omit", it is not in the dict; "none", it is there as None,
             which preprocessing.StatImputer looks for

    A row is a dict by the names of the features. Numbers are floats. A category is a text of 16 hexadecimal digits, its
    hash: stable over machines and versions, and all that a learner ever sees of it. Labels are bool (binary), the index
    of the class, int (multiclass), or float.

    Out is P(true), P of each class, the value, or the score. Where River has no answer (None, no class yet, a number
    that is not finite) it is the share of each class so far, the mean label so far, or a score of 0, and the prediction
    is counted as `unanswered`; a class that is not declared is left out, and the prediction counted as `undeclared`.
    A classifier that knows no P gets P = 1 for what it says.

    An anomaly detector learns each event after its prediction, labelled or not. All others learn labels; `weight` goes
    to a learn_one that takes `w`, else it is only looked at for its sign: rows of weight 0 or less, or of a label that
    is NaN or names no class, are not learned. What River raises is raised: the record is then made a dead letter.

    Sequential: equal to River row by row, whatever the cuts. One worker owns it: nothing merges, nothing forgets but
    what River does itself. Raises DeclarationError for what is no such model, has a seed that is not set, or cannot
    be pickled; SetupError where River is not installed.
    """

    updates: ClassVar[Literal["sequential", "micro_batch"]] = "sequential"  # type: ignore[misc]
    batch_size: ClassVar[int] = 1  # type: ignore[misc]
    observes: ClassVar[bool] = True  # type: ignore[misc]

    model: Any
    missing: Literal["omit", "none"] = "omit"

    def __post_init__(self) -> None:
        if self.missing not in ("omit", "none"):
            raise DeclarationError(f"River(missing=): expected 'omit' or 'none', got {self.missing!r}")
        self._kind = kind_of(self.model)
        self.unsupervised = self._kind == "anomaly detector"
        if seedless := [*_seedless(described(self.model), "")]:
            raise DeclarationError(
                f"{self!r}: {', '.join(seedless)} is None: a worker that starts again learns again what it had learned "
                "since its last snapshot, and has to come to the same; give it a number, such as seed=1"
            )
        self._work: Any = self.model  # never touched before it is bound, which copies it
        self.dump()
        self._checked: set[Spec] = set()
        self._rehearsing = False

    def __repr__(self) -> str:
        return f"River({_shown(self.model)})"

    def config(self) -> dict[str, Any]:
        """Class and settings of the model by name, JSON-able: to compare, not to build from."""
        told = {"name": "River", "model": described(self.model)}
        return told if self.missing == "omit" else told | {"missing": self.missing}

    def unbound(self) -> River:
        """The same settings with a model as it was declared."""
        other = River(self.model, self.missing)
        other._checked = self._checked
        return other

    # -- the protocol of learners

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """What is said where River says nothing, and how often. Raises DeclarationError where the task does not fit."""
        self._check_task(spec)
        if spec not in self._checked:
            self._try_categories(spec)
            self._checked.add(spec)
        odd = {"odd": Array((2,), "int64")}  # predictions that were unanswered, or undeclared
        if self.unsupervised:
            return odd
        if spec.task == "regression":
            return odd | {"mean": Array((2,), "float64")}  # of the labels so far, and their weight
        axis: Literal["", "outputs"] = "outputs" if spec.task == "multiclass" else ""
        return odd | {"counts": Array((max(2, spec.outputs),), "float64", START, axis=axis)}

    def bind(self, spec: Spec, state: Mapping[str, ndarray], touched: Mapping[str, ndarray]) -> None:
        """Begin with a copy of the declared model, and with these arrays."""
        self._names = spec.numeric, spec.categories
        self._odd, self._counts, self._mean = state["odd"], state.get("counts"), state.get("mean")
        self._work = copy.deepcopy(self.model)
        self._binary = spec.task == "binary"
        last = _last_step(self.model)
        self._takes_weight = "w" in inspect.signature(last.learn_one).parameters
        classes: tuple[Any, ...] = (False, True) if spec.task == "binary" else tuple(range(spec.outputs))
        self._index = {label: c for c, label in enumerate(classes)}  # 1 and numpy's True are found too

    def predict(self, x: Rows, out: ndarray) -> None:
        for i, row in enumerate(self._rows(x)):
            self._predict_row(row, out[i])

    def predict_then_observe(self, x: Rows, out: ndarray, observed: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then let an anomaly detector learn observed[i] (x[i] if not given)."""
        for i, (row, then) in enumerate(self._both(x, observed)):
            self._count(self._predict_row(row, out[i]))
            if self.unsupervised and not self._rehearsing:
                self._work.learn_one(then)

    def learn(self, x: Rows, truth: Truth) -> None:
        if not self.unsupervised:
            for row, (y,), weight in zip(self._rows(x), truth.y.tolist(), truth.weight.tolist(), strict=True):
                self._learn_row(row, y, weight)

    def test_then_learn(self, x: Rows, truth: Truth, out: ndarray, learned: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then learn learned[i] (x[i] where not given)."""
        if self.unsupervised:
            self.predict_then_observe(x, out, learned)
            return
        labels = zip(truth.y.tolist(), truth.weight.tolist(), strict=True)
        for i, ((row, then), ((y,), weight)) in enumerate(zip(self._both(x, learned), labels, strict=True)):
            self._count(self._predict_row(row, out[i]))
            self._learn_row(then, y, weight)

    def counters(self) -> dict[str, int]:
        """How many predictions of the stream were `unanswered`, and how many told of an `undeclared` class."""
        return {"unanswered": int(self._odd[UNANSWERED]), "undeclared": int(self._odd[UNDECLARED])}

    def rehearse(self) -> None:
        """From now on rows are made up, to compile what others do with them: River is not asked."""
        self._rehearsing = True

    # -- what has no arrays

    def opaque(self) -> dict[str, Opaque]:
        return {"river": self}

    def dump(self) -> bytes:
        """The River object as it stands, pickled, behind the version of River."""
        try:
            pickled = pickle.dumps(self._work, protocol=5)
        except Exception as error:
            raise DeclarationError(
                f"{self!r} cannot be pickled, which is how a worker keeps it: {error}; give functions a name, in a "
                "module of their own beside the file, and import them from there"
            ) from error
        return (HEADER % _version()).encode() + pickled

    def load(self, data: bytes) -> None:
        """Go on from a dump. A pickle runs what it likes: only bytes of one's own, or whose signature was verified.

        Raises SnapshotError when it is of another version of River, or cannot be read here.
        """
        header, _, pickled = data.partition(b"\n")
        if header + b"\n" != (HEADER % _version()).encode():
            raise SnapshotError(
                f"the state of {self!r} was kept by `{header[:80].decode(errors='replace')}`, here is river "
                f"{_version()}: its objects do not carry over; install the same version, or give the pipeline another "
                "name to begin anew"
            )
        try:
            self._work = pickle.loads(pickled)
        except Exception as error:
            raise SnapshotError(
                f"the state of {self!r} cannot be read: {type(error).__name__}: {error}; functions and classes of "
                "yours that are in it must be importable here under the same name as where it was kept"
            ) from error

    # -- rows

    def _rows(self, x: Rows) -> Iterator[dict[str, Any]]:
        """The rows as dicts, the infinite and the missing left out or as None."""
        numeric, categories = self._names
        none = self.missing == "none"
        for numbers, hashes in zip(x.numeric.tolist(), x.categories.tolist(), strict=True):
            row: dict[str, Any] = {name: v for name, v in zip(numeric, numbers, strict=True) if v - v == 0.0}
            for name, code in zip(categories, hashes, strict=True):
                if code:
                    row[name] = f"{code:016x}"
            if none and len(row) < len(numeric) + len(categories):
                row = {name: row.get(name) for name in (*numeric, *categories)}
            yield row

    def _both(self, x: Rows, then: Rows | None) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        if then is None or then is x:
            return ((row, row) for row in self._rows(x))
        return zip(self._rows(x), self._rows(then), strict=True)

    def _learn_row(self, row: dict[str, Any], y: float, weight: float) -> None:
        if not 0.0 < weight < math.inf or y - y != 0.0 or self._rehearsing:
            return
        label: Any = y
        if self._counts is not None:
            label = y >= 0.5 if self._binary else int(y)
            if not self._binary and (label != y or label not in self._index):
                return
        if weight == 1.0 or not self._takes_weight:
            self._work.learn_one(row, label)
        else:
            self._work.learn_one(row, label, w=weight)
        if self._counts is not None:
            self._counts[int(label)] += weight
        elif self._mean is not None:
            self._mean[1] += weight
            self._mean[0] += weight / self._mean[1] * (y - self._mean[0])

    # -- predictions

    def _count(self, how: int) -> None:
        if how != SAID:
            self._odd[how] += 1

    def _predict_row(self, row: dict[str, Any], out: ndarray) -> int:
        """Write what River says of a row to out (O,), or what is said in its place; returns which."""
        if self._counts is not None:
            return self._predict_classes(row, self._counts, out)
        if self._rehearsing:
            said = None
        else:
            said = self._work.predict_one(row) if self._mean is not None else self._work.score_one(row)
        value = math.nan if said is None else float(said)
        if abs(value) <= LARGEST:
            out[0] = value
            return SAID
        out[0] = 0.0 if self._mean is None else self._mean[0]
        return UNANSWERED

    def _predict_classes(self, row: dict[str, Any], counts: ndarray, out: ndarray) -> int:
        said = {} if self._rehearsing else self._probabilities(row)
        shares, total, how = [0.0] * len(counts), 0.0, SAID
        for label, p in said.items():
            if p is None or not p > 0.0:
                continue
            c = self._index.get(label)
            if c is None:
                how = UNDECLARED
                continue
            shares[c] = float(p)
            total += shares[c]
        if not 0.0 < total < math.inf:
            shares, total, how = counts.tolist(), float(counts.sum()), UNANSWERED
        first = len(shares) - len(out)
        scale = 1.0 if abs(total - 1.0) <= NEAR_ONE else total
        for o in range(len(out)):
            out[o] = shares[first + o] / scale
        return how

    def _probabilities(self, row: dict[str, Any]) -> Mapping[Any, float]:
        try:
            return self._work.predict_proba_one(row) or {}
        except NotImplementedError:  # it only says which class it is
            label = self._work.predict_one(row)
            return {} if label is None else {label: 1.0}

    # -- whether it fits

    def _check_task(self, spec: Spec) -> None:
        task, kind = spec.task, self._kind
        if self.unsupervised:
            if task not in (None, "binary"):
                raise DeclarationError(
                    f"{self!r} is an anomaly detector, the pipeline declares a {task} task; declare no labels, or "
                    "binary ones, which then tell how well it finds what they call true"
                )
            return
        if task is None or TASKS[task] != kind:
            fits = " and ".join(name for name, takes in TASKS.items() if takes == kind)
            came = "no labels" if task is None else f"a {task} task"
            raise DeclarationError(f"{self!r} is a {kind}, for {fits} tasks; the pipeline declares {came}")
        if task == "multiclass" and not getattr(self.model, "_multiclass", True):
            raise DeclarationError(
                f"{self!r} knows two classes, the pipeline declares {spec.outputs}; wrap it, as in "
                "multiclass.OneVsRestClassifier(...)"
            )

    def _try_categories(self, spec: Spec) -> None:
        """Raise DeclarationError where categories are what the model cannot take: most of River takes numbers alone."""
        if not spec.categories:
            return
        row: dict[str, Any] = dict.fromkeys(spec.numeric, 1.0)
        label = {"regression": 1.0, "multiclass": 1}.get(str(spec.task), True)
        if _raised(self.model, self._kind, row, label) is not None:
            return  # it may be particular about numbers; records that it raises on become dead letters
        error = _raised(self.model, self._kind, row | dict.fromkeys(spec.categories, f"{1:016x}"), label)
        if error is not None:
            raise DeclarationError(
                f"{self!r} raised {type(error).__name__}: {error} on a row with the category "
                f"{spec.categories[0]!r}, which is text to River; put (compose.SelectType(str) | "
                "preprocessing.OneHotEncoder()) before it, or leave categories away"
            )


def kind_of(model: Any) -> Kind:
    """What a model of River is for. Raises DeclarationError where it is nothing that can be served."""
    try:
        from river import base
    except ImportError:
        raise SetupError(
            f"River(...) needs River, which is not installed: {sys.executable} -m pip install 'headrace[river]'"
        ) from None
    if isinstance(model, type):
        raise DeclarationError(f"River: expected a model, got the class {model.__name__}; write {model.__name__}()")
    detector = isinstance(model, base.AnomalyDetector | base.AnomalyFilter)
    if detector and not _last_step(model)._supervised:
        return "anomaly detector"
    if isinstance(model, base.Classifier):
        return "classifier"
    if isinstance(model, base.Regressor) and not isinstance(model, base.MultiTargetRegressor):
        return "regressor"
    supervised = detector or isinstance(model, base.SupervisedAnomalyDetector)
    why = "; this one can only score what is labelled already" if supervised else ""
    raise DeclarationError(
        "River: expected a classifier, a regressor or an anomaly detector of River, or a pipeline that ends in one, "
        f"got {_shown(model)}, a {type(model).__module__}.{type(model).__qualname__}{why}"
    )


def described(value: Any) -> Any:
    """The class and the settings of a model, JSON-able: equal for models that are declared alike."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], type) and isinstance(value[1], Mapping):
        return {"class": _path(value[0]), **described(value[1])}  # how River tells the settings of a part
    if isinstance(value, Mapping):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [described(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(str(described(one)) for one in value)
    if isinstance(value, type) or inspect.isroutine(value):
        return _path(value)
    told: dict[str, Any] = {"class": _path(type(value))}
    parts = [getattr(value, name, None) for name in ("steps", "transformers")]  # pipelines; unions and products
    if inner := next((part for part in parts if isinstance(part, Mapping)), None):
        return told | described(inner)
    try:
        return told | described(value._get_params())
    except (AttributeError, TypeError, ValueError):
        return told


def _path(one: Any) -> str:
    """The name of a class or function; of what is not River's without the module, which may go by several names."""
    module = str(getattr(one, "__module__", ""))
    name = str(getattr(one, "__qualname__", type(one).__qualname__))
    return f"{module}.{name}" if module.startswith("river.") else name


def _seedless(told: Any, place: str) -> Iterator[str]:
    """The seeds that are None, each with the class that it is a setting of."""
    if isinstance(told, Mapping):
        place = str(told.get("class", place)).rpartition(".")[2]
        for name, value in told.items():
            if name == "seed" and value is None:
                yield f"{place}(seed=)"
            yield from _seedless(value, place)
    elif isinstance(told, list):
        for value in told:
            yield from _seedless(value, place)


def _raised(model: Any, kind: Kind, row: Mapping[str, Any], label: Any) -> Exception | None:
    """What a copy of the model raises when it learns a row and predicts it."""
    model = copy.deepcopy(model)
    try:
        for _ in range(2):
            if kind == "anomaly detector":
                model.learn_one(dict(row))
                model.score_one(dict(row))
            else:
                model.learn_one(dict(row), label)
                model.predict_one(dict(row))
    except Exception as error:
        return error
    return None


def _last_step(model: Any) -> Any:
    while hasattr(model, "_last_step"):
        model = model._last_step
    return model


def _shown(model: Any) -> str:
    text = " ".join(str(model).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


@cache
def _version() -> str:
    return version("river")
