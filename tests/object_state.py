"""What an object holds, down to the last bit, as something to compare: pickles of equal objects may differ."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

ATOMS = (bool, int, str, bytes, type(None), complex)


def state_of(value: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """Nested tuples of plain values: equal for objects that are equal to the bit, wherever they live.

    What is shared within an object has to be shared in the other one too; texts and numbers count as values alone. Sets
    have no order.
    """
    seen = {} if seen is None else seen
    if isinstance(value, ATOMS):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, np.generic):
        return (str(value.dtype), value.tobytes())
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return (value.__module__, value.__qualname__)
    if isinstance(value, tuple):
        return (type(value).__name__, *(state_of(one, seen) for one in value))
    if id(value) in seen:
        return ("seen", seen[id(value)][0])
    seen[id(value)] = len(seen), value  # kept, or another might get its id
    if isinstance(value, random.Random):
        return value.getstate()
    if type(value).__module__.startswith(
        "river.proba"
    ):  # their generators have no seed, and only serve to draw samples
        return (type(value).__name__, state_of({k: v for k, v in vars(value).items() if k != "_rng"}, seen))
    if isinstance(value, set | frozenset):
        return ("set", *sorted(map(repr, (state_of(one, seen) for one in value))))
    if isinstance(value, list):
        return ("list", *(state_of(one, seen) for one in value))
    if type(value) is dict:
        return ("dict", *((state_of(k, seen), state_of(v, seen)) for k, v in value.items()))
    made, arguments, *rest = value.__reduce_ex__(4)
    state, items, pairs = (*rest, None, None, None)[:3]
    return (
        state_of(made, seen),
        state_of(tuple(arguments), seen),
        state_of(dict(state) if isinstance(state, Mapping) else state, seen),
        state_of(list(items or ()), seen),
        state_of(dict(pairs or ()), seen),
    )
