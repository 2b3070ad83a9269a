"""What can be learned from a stream: the protocol of models, which declare arrays that the engine owns.

A model is configuration; it says which named arrays it needs (`layout`) and works in place on the ones bound to it
(`bind`). Saving, loading, merging and eviction are therefore written once, in the engine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from ..errors import DeclarationError, SetupError, StreamStopped
from ..jit import njit

if TYPE_CHECKING:
    from .measures import Measure

Task = Literal["binary", "multiclass", "regression"]
Link = Literal["identity", "logit", "log", "softmax"]
Decay = tuple[int, Callable[[float], None]]  # half-life in microseconds of event time, and what forgets


class Spec(NamedTuple):
    """What a model works on; fixed by the declaration of the pipeline, stored in the manifest."""

    numeric: tuple[str, ...]  # N names
    categories: tuple[str, ...]  # K names
    task: Task | None  # None: no labels
    outputs: int = 1  # O: 1, the classes, or the targets


class Rows(NamedTuple):
    """B rows of features; the caller owns them, a model never writes to them."""

    numeric: (
        np.ndarray
    )  # float32 (B, N), float64 between the parts of a chain; NaN: missing; infinite counts as missing
    categories: np.ndarray  # uint64 (B, K); hash of (feature, value); 0: missing


class Truth(NamedTuple):
    """B labels."""

    y: np.ndarray  # float32 (B, T): T = 1, or the targets; class index; NaN: not known
    weight: np.ndarray  # float32 (B,); negative takes back what was learned before


class Array(NamedTuple):
    """One named array of state, of fixed capacity."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    fill: float = 0.0
    rows: str = ""  # arrays of one row group are touched, evicted and sent together
    # axis 0 is matched by name when features change; "features": made for just these features, begins anew with others
    axis: Literal["", "numeric", "categories", "outputs", "features"] = ""
    merge: Literal["owner", "sum", "mean", "moments", "steps", "max"] = "owner"
    by: str = ""  # "moments": the count array; "steps": the evidence array, or "" where column 1 holds the evidence
    late: bool = False  # a state of before it was declared has none of it, and it begins at its fill


class NotFinite(StreamStopped):
    """The model has turned to NaN or infinity. Nothing of the cycle in hand may be published."""


ALIGNMENT = 64  # bytes: sums of matrix products may have other bits where memory begins elsewhere in a cache line


def allocate(layout: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """New arrays for a layout, each at its fill, aligned to 64 bytes; zeros cost no memory until they are written."""
    arrays = {name: aligned_zeros(a.shape, np.dtype(a.dtype)) for name, a in layout.items()}
    for name, a in layout.items():
        if a.fill:
            arrays[name][...] = a.fill
    return arrays


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at the beginning of a cache line."""
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def allocate_touched(layout: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Per row group of a layout a uint8 (ceil(R / 64),); a kernel sets [row >> 6] when it writes a row."""
    return {a.rows: np.zeros(-(-a.shape[0] // 64), np.uint8) for a in layout.values() if a.rows}


@njit(cache=True, nogil=True)
def _has_not_finite(flat: np.ndarray, touched: np.ndarray, width: int) -> bool:
    """Whether a number in one of the blocks of so many that are marked in `touched` is NaN or infinite."""
    for block in range(touched.shape[0]):
        if touched[block] != 0:
            numbers = flat[block * width : (block + 1) * width]
            found = np.uint32(0)
            for i in range(numbers.shape[0]):
                found |= np.uint32(numbers[i] - numbers[i] != 0)
            if found:
                return True
    return False


def find_not_finite(array: np.ndarray, touched: np.ndarray) -> tuple[int, ...] | None:
    """The place of the first number of a float array that is NaN or infinite; None: all are finite.

    touched   uint8 (ceil(R / 64),), as `allocate_touched` gives it for the array's row group: when none of the blocks
              marked there holds such a number, the others are not looked at
    """
    flat = array.reshape(-1)
    if not _has_not_finite(flat, touched, 64 * (flat.size // max(1, len(array)))):
        return None
    places = np.argwhere(~np.isfinite(array))
    return tuple(map(int, places[0])) if len(places) else None


class Stateful(Protocol):
    """Whatever has arrays: transforms, learners, metrics."""

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """The arrays this needs for spec; pure. Raises DeclarationError when spec does not fit."""
        ...

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on these arrays from now on; they are as `layout(spec)` says, and the engine owns them."""
        ...

    def pull(self) -> None:
        """Bring the bound arrays up to date with a device, before they are saved; nothing to do on a CPU."""
        return

    def push(self) -> None:
        """Bring a device up to date with the bound arrays, after they were loaded or merged; nothing on a CPU."""
        return

    def decays(self) -> list[Decay]:
        """What forgets: the engine calls decay(2 ** (-k / 64)) when event time passes k multiples of half_life / 64."""
        return []

    def opaque(self) -> dict[str, Opaque]:
        """What has state beside its arrays, each under a name of its own."""
        return {}

    def counters(self) -> dict[str, int]:
        """What is counted in the arrays for people to see, by name; over the whole stream."""
        return {}

    def rehearse(self) -> None:
        """From now on rows are made up, to compile what they meet: nothing is asked that could raise on them."""
        return


@runtime_checkable
class Opaque(Protocol):
    """A model without arrays (River): one owner, pickled, kept under the key of the HMAC."""

    def dump(self) -> bytes:
        """The state as bytes."""
        ...

    def load(self, data: bytes) -> None:
        """Go on from a dump, whose signature was verified if it was ever out of this process."""
        ...

    def config(self) -> dict[str, Any]:
        """What the state belongs to: that of another config cannot be loaded."""
        ...


class Part(Stateful, Protocol):
    """What can stand in a chain: `a | b` joins parts."""

    def config(self) -> dict[str, Any]:
        """The settings, JSON-able, with the "name" under which `register` knows the class; `Configured` gives it."""
        ...

    def __or__(self, other: Part) -> Any:
        from .chain import Chain

        return Chain(self, other)

    def __ror__(self, other: Any) -> Any:
        """Before a part stands what is none, such as a class: refused as behind one."""
        from .chain import Chain

        return Chain(other, self)


class Transform(Part, Protocol):
    """Changes the numeric block before a learner sees it; learns from the features alone."""

    def apply(self, x: Rows, out: Rows) -> None:
        """Write x as the state now stands to out.numeric, float64 (B, N); pure."""
        ...

    def observe(self, x: Rows) -> None:
        """Learn from the features, in order: once per event, after its prediction; needs no label."""
        ...

    def apply_around(self, before: Rows, after: Rows, out_before: Rows, out_after: Rows) -> None:
        """Row by row: apply to before[i], observe after[i], apply to after[i].

        before and after are the same rows for the first part of a chain; for later parts they are what the parts
        before made of the row, before and after they observed it.
        """
        for i in range(len(before.numeric)):
            self.apply(_row(before, i), _row(out_before, i))
            self.observe(_row(after, i))
            self.apply(_row(after, i), _row(out_after, i))


class Learner(Part, Protocol):
    """Predicts, and learns from labelled rows."""

    updates: Literal["sequential", "micro_batch"]
    batch_size: int  # 1 when sequential
    observes: bool = False  # whether `predict_then_observe` does more than to predict
    unsupervised: bool = False  # whether it learns from features alone, in `predict_then_observe`
    featureless: bool = False  # whether it predicts without a look at features; of this very class, not of a subclass

    def predict(self, x: Rows, out: np.ndarray) -> None:
        """Write probabilities or values to out, float32 (B, O); pure."""
        ...

    def predict_then_observe(self, x: Rows, out: np.ndarray, observed: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then learn what needs no label from observed[i] (x[i] if not given).

        For rows of the stream whose label is not known; is only called where `observes`.
        """
        self.predict(x, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        """Learn the rows in order, those with a NaN label excepted; sequential: the same whatever the cuts."""
        ...

    def voices(self, spec: Spec) -> int:
        """How many numbers wait with a predicted row for its label, beside the prediction; 0 for most.

        Where there are any, `predict_then_observe` writes them to voices, float32 (B, V), and `learn` is told them
        again, NaN where they are not known: so a model of models knows what each of them had said.
        """
        return 0

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        """Row by row: predict x[i] to out[i], then learn learned[i] (x[i] where not given)."""
        learned = x if learned is None else learned
        for i in range(len(out)):
            self.predict(_row(x, i), out[i : i + 1])
            self.learn(_row(learned, i), Truth(truth.y[i : i + 1], truth.weight[i : i + 1]))

    def measure(self) -> Measure | None:
        """What its predictions are judged by beside the metrics of the task; None: nothing."""
        return None


@runtime_checkable
class Explainer(Learner, Protocol):
    """A learner that says what each feature adds to the raw scores of a prediction.

    Contributions of a row are float32 (O, N + K + 1): numeric columns, categories, and last the base, which no feature
    has added. Over the last axis they add up to the raw scores; each is held within +-1e30.
    """

    def link(self, spec: Spec) -> Link:
        """What makes predictions of raw scores.

        "identity"  nothing: they are values, or P
        "logit"     P = 1 / (1 + exp(-raw))
        "log"       value = exp(raw)
        "softmax"   P of a class = exp(raw) / sum of exp(raw) over the classes
        """
        raise NotImplementedError

    def check_explains(self) -> None:
        """Raise DeclarationError where it cannot explain as it is set."""
        return

    def explain(self, x: Rows, out: np.ndarray) -> None:
        """Write the contributions of B rows to out, float32 (B, O, N + K + 1); pure."""
        raise NotImplementedError

    def explain_then_observe(
        self, x: Rows, out: np.ndarray, contributions: np.ndarray, observed: Rows | None = None
    ) -> None:
        """As `predict_then_observe`, with the contributions of each row as it is predicted."""
        observed = x if observed is None else observed
        for i in range(len(out)):
            row = slice(i, i + 1)
            self.explain(_row(x, i), contributions[row])
            self.predict_then_observe(_row(x, i), out[row], _row(observed, i))

    def explain_then_learn(
        self, x: Rows, truth: Truth, out: np.ndarray, contributions: np.ndarray, learned: Rows | None = None
    ) -> None:
        """As `test_then_learn`, with the contributions of each row before it is learned."""
        learned = x if learned is None else learned
        for i in range(len(out)):
            row = slice(i, i + 1)
            self.explain(_row(x, i), contributions[row])
            self.test_then_learn(_row(x, i), Truth(truth.y[row], truth.weight[row]), out[row], _row(learned, i))


@runtime_checkable
class Detector(Stateful, Protocol):
    """Says when a stream of numbers has changed."""

    def update(self, values: np.ndarray, fired: np.ndarray) -> None:
        """float64 (B,) in order -> bool (B,), written in place."""
        ...


def _row(x: Rows, i: int) -> Rows:
    return Rows(x.numeric[i : i + 1], x.categories[i : i + 1])


# --- configuration: every model is rebuilt from its registered name and its settings, never from a pickle

REGISTRY: dict[str, type] = {}
T = TypeVar("T", bound=type)

# Where models live that need an extra; they are imported when they are asked for
NEEDS_TORCH = {"Torch": ".torch_learner", "Embeddings": ".embeddings", "Adam": ".dense_optimizers"} | dict.fromkeys(
    ("MLP", "DCN", "DeepFM", "Imported", "Inputs", "TorchModule"), ".torch_modules"
)


def import_model(name: str) -> Any:
    """A class of NEEDS_TORCH. Raises SetupError where torch is not installed."""
    try:
        return getattr(import_module(NEEDS_TORCH[name], __package__), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torch":
            raise
        raise SetupError(f"{name} needs PyTorch, which is not installed: pip install headrace[torch]") from error


def register(cls: T) -> T:
    """Let `build` make this class, a dataclass, from its name."""
    REGISTRY[cls.__name__] = cls
    return cls


# Metadata of a setting that came later: `config` leaves it out while it is at its default, so that what was written
# down before there was such a setting is still the same
LATER = {"later": True}


class Configured:
    """A dataclass whose settings are its fields."""

    def config(self) -> dict[str, Any]:
        """The settings as JSON-able values, with "name"; `build` is the way back."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.init and not (f.metadata.get("later") and getattr(self, f.name) == f.default)
        }
        return {"name": type(self).__name__} | {
            name: value.config() if isinstance(value, Configured) else value for name, value in values.items()
        }

    def unbound(self) -> Self:
        """A new object with the same settings and no arrays."""
        return build(self.config())


def build(config: Mapping[str, Any]) -> Any:
    """The model of a `config()`. Raises DeclarationError for a name or a setting that is not known."""
    settings = {
        key: build(value)
        if isinstance(value, Mapping)
        else [build(part) for part in value]
        if key == "parts"
        else value
        for key, value in config.items()
        if key != "name"
    }
    name = config.get("name")
    if name in NEEDS_TORCH and name not in REGISTRY:
        import_model(name)
    if name not in REGISTRY:
        raise DeclarationError(f"no model is named {name!r}; known are {', '.join(sorted(REGISTRY))}")
    try:
        return REGISTRY[name](*settings.pop("parts", ()), **settings)
    except TypeError as error:
        raise DeclarationError(f"{name}: {error}; is the configuration of another version?") from error


def came(value: Any) -> str:
    """What came in the place of a model or a part of one, in an error."""
    if isinstance(value, type):
        return f"the class {value.__name__}; write {value.__name__}()"
    return repr(value)


def check_number(what: str, value: float, low: float, *, above: bool = False, high: float = math.inf) -> None:
    """Raise DeclarationError unless value is a finite number >= low (> low with above=True) and <= high."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < low or value > high or (above and value == low):
        least = f"above {low:g}" if above else f"of at least {low:g}"
        most = f" and at most {high:g}" if high < math.inf else ""
        raise DeclarationError(f"{what}: expected a number {least}{most}, got {value!r}")


def check_whole(what: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise DeclarationError unless value is a whole number from low to high."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f", {low} or more" if high is None else f" from {low} to {high:,}"
        raise DeclarationError(f"{what}: expected a whole number{bounds}, got {value!r}")


def check_flag(what: str, value: Any) -> None:
    """Raise DeclarationError unless value is True or False."""
    if not isinstance(value, bool):
        raise DeclarationError(f"{what}: expected True or False, got {value!r}")


def declared_task(spec: Spec) -> str:
    """What a pipeline declares, for those that learn something else."""
    return "no labels" if spec.task is None else f"a {spec.task} task with {spec.outputs} output(s)"
