"""What a snapshot holds: the engine's state as named arrays, and a meta that says which offsets it stands for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SnapshotError
from .declaration import Pipeline
from .shared import OPAQUE, EngineState
from .signing import KEY_REMEDY
from .slices import Role, flat, nested
from .standing import BEGINNING as BEGINNING
from .standing import Left, Standing
from .standing import Position as Position

NAN_ALLOWED = ("partition/*", "left/*")  # features that wait for their label may be missing
LIBRARIES = ("headrace", "numpy", "numba", "polars", "msgspec")


def pack(standing: Standing) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """(arrays, meta) of a snapshot. Arrays of shared state are the live ones: copy them before the engine goes on."""
    state, position = standing.engine.state(), standing.position
    arrays = {f"shared/{name}": array for name, array in state.shared.items()}
    left_arrays = {number: left.arrays for number, left in standing.left.items()}
    for where, partitions in (("partition", state.partitions), ("left", left_arrays)):
        for number, own in partitions.items():
            arrays |= {f"{where}/{number}/{name}": array for name, array in own.items()}
    left = {(role, number): at for number, left in standing.left.items() for role, at in left.offsets.items()}
    meta = state.meta | {
        **place(position),
        "left": nested(left),
        "last_learned": standing.last_learned,
        "libraries": libraries(),
    }
    return arrays, meta


def place(position: Position) -> dict[str, Any]:
    """What the meta says of a position."""
    return {"offsets": nested(position.offsets), "journal": position.journal, "cycle": position.cycle}


@cache
def libraries() -> dict[str, str]:
    """Versions of what computes; to read them takes a millisecond."""
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def unpack(
    arrays: Mapping[str, NDArray], meta: Mapping[str, Any], pipeline: Pipeline, *, signed: bool = False
) -> tuple[EngineState, Position]:
    """The state and the position of a snapshot, of arrays whose signature was verified or not.

    Raises SnapshotError when it is of another pipeline, or holds a pickle (what is opaque) and is not signed.
    """
    if meta.get("pipeline") != pipeline.name:
        raise SnapshotError(f"the snapshot is of pipeline {meta.get('pipeline')!r}, not of {pipeline.name!r}")
    pickled = [name for name in arrays if name.startswith(f"shared/{OPAQUE}")]
    if pickled and not signed:
        raise SnapshotError(
            f"the snapshot of {pipeline.name!r} holds a pickle (`{pickled[0]}`), and its signature was not verified: "
            f"it is not loaded. {KEY_REMEDY}"
        )
    shared = {name.removeprefix("shared/"): np.asarray(a) for name, a in arrays.items() if name.startswith("shared/")}
    position = Position(flat(meta["offsets"]), int(meta["journal"]), int(meta["cycle"]))
    return EngineState(shared, _by_number(arrays, "partition"), dict(meta)), position


def unpack_left(arrays: Mapping[str, NDArray], meta: Mapping[str, Any]) -> dict[int, Left]:
    """The partitions that had left when the snapshot was taken."""
    found = _by_number(arrays, "left")
    offsets: dict[int, dict[Role, int]] = {number: {} for number in found}
    for (role, number), at in flat(meta.get("left", {})).items():
        offsets[number][role] = at
    return {number: Left(own, offsets[number]) for number, own in found.items()}


def _by_number(arrays: Mapping[str, NDArray], where: str) -> dict[int, dict[str, NDArray]]:
    found: dict[int, dict[str, NDArray]] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == where:
            number, _, own = rest.partition("/")
            found.setdefault(int(number), {})[own] = np.asarray(array)
    return found
