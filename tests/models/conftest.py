"""Streams of rows, and models bound to arrays of their own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from object_state import state_of

from headrace.errors import DeclarationError
from headrace.models import Chain, Rows, Spec, Truth, allocate, allocate_touched, as_chain

TASKS = {"binary": 1, "multiclass": 3, "regression": 1}  # and their outputs


class Bound(NamedTuple):
    chain: Chain
    spec: Spec
    state: dict[str, np.ndarray]
    touched: dict[str, np.ndarray]

    def bits(self) -> dict[str, Any]:
        """The state, comparable to the bit."""
        objects = {name: state_of(part._work) for name, part in self.chain.opaque().items()}
        return {name: array.tobytes() for name, array in self.state.items()} | objects

    def declared_anew(self, numeric: tuple[str, ...], categories: tuple[str, ...]) -> "Bound":
        """What it has learned, where features came, went or changed places."""
        chain, spec = self.chain.unbound(), self.spec._replace(numeric=numeric, categories=categories)
        layout = chain.layout(spec)
        state, touched = allocate(layout), allocate_touched(layout)
        others = any(sorted(now) != sorted(was) for now, was in zip(spec[:2], self.spec[:2], strict=True))
        for name, array in layout.items():
            if array.axis == "features" and others:  # was made for just those, and begins anew
                continue
            if array.axis not in ("numeric", "categories"):
                state[name][...] = self.state[name]
                continue
            was = getattr(self.spec, array.axis)
            for i, feature in enumerate(getattr(spec, array.axis)):
                if feature in was:
                    state[name][i] = self.state[name][was.index(feature)]
        chain.bind(spec, state, touched)
        return Bound(chain, spec, state, touched)


class Stream(NamedTuple):
    x: Rows
    truth: Truth

    def piece(self, start: int, stop: int) -> "Stream":
        x, truth = self
        return Stream(
            Rows(x.numeric[start:stop], x.categories[start:stop]), Truth(truth.y[start:stop], truth.weight[start:stop])
        )


@pytest.fixture(scope="session")
def bind() -> Callable[..., Bound]:
    """bind(model, numeric=3, categories=2, task="", outputs=0): the model as a chain, bound to fresh arrays.

    Where the task is not given, it is the first of TASKS that the model learns.
    """

    def bind(model: Any, numeric: int = 3, categories: int = 2, task: Any = "", outputs: int = 0) -> Bound:
        chain = as_chain(model)
        names = tuple(f"n{j}" for j in range(numeric)), tuple(f"c{k}" for k in range(categories))
        task = task or next(task for task in TASKS if _learns(chain, Spec(*names, task, TASKS[task])))
        spec = Spec(*names, task, outputs or TASKS[task])
        layout = chain.layout(spec)
        state, touched = allocate(layout), allocate_touched(layout)
        chain.bind(spec, state, touched)
        return Bound(chain, spec, state, touched)

    return bind


def _learns(chain: Chain, spec: Spec) -> bool:
    try:
        return bool(chain.layout(spec))
    except DeclarationError:
        return False


@pytest.fixture(scope="session")
def stream() -> Callable[..., Stream]:
    """stream(rows, seed, labels="binary"|"classes"|"value"|"count"): rows with missing values whose labels can be learned."""

    def stream(rows: int, seed: int = 0, labels: str = "binary", numeric: int = 3, categories: int = 2) -> Stream:
        rng = np.random.default_rng(seed)
        scales, centres = rng.uniform(0.5, 20, numeric), rng.normal(0, 10, numeric)
        values = rng.normal(size=(rows, numeric))
        kinds = rng.integers(0, 8, (rows, categories))
        hashes = rng.integers(1, 2**64, (8, categories), dtype=np.uint64)
        score = values @ rng.normal(size=numeric) + rng.normal(size=(8, categories))[kinds, range(categories)].sum(1)

        x = (values * scales + centres).astype(np.float32)
        x[rng.random(x.shape) < 0.1] = np.nan
        c = hashes[kinds, range(categories)]
        c[rng.random(c.shape) < 0.1] = 0
        y = {
            "binary": lambda: rng.random(rows) < 1 / (1 + np.exp(-score)),
            "classes": lambda: np.digitize(score + rng.normal(size=rows), (-1.0, 1.0)),
            "value": lambda: 5 + 2 * score + rng.normal(size=rows),
            "count": lambda: rng.poisson(np.exp(np.clip(0.3 * score, -3, 2))),
        }[labels]()
        weight = rng.choice([1.0, 1.0, 1.0, 0.5, 2.0], rows).astype(np.float32)
        return Stream(Rows(x, c), Truth(y.astype(np.float32).reshape(-1, 1), weight))

    return stream
