"""What a snapshot holds: the engine's state as named arrays, and a meta that says which offsets it stands for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import SnapshotError
from .align import Partition
from .declaration import Pipeline
from .engine import Engine, EngineState

NAN_ALLOWED = ("partition/*",)  # features that wait for their label may be missing
LIBRARIES = ("headrace", "numpy", "numba", "polars", "msgspec")


class Position(NamedTuple):
    """Where in the topics a state stands.

    offsets  of each partition the next record to process
    journal  the next record of the journal to replay
    cycle    the number of the next cycle
    """

    offsets: dict[Partition, int]
    journal: int
    cycle: int


BEGINNING = Position({}, 0, 0)


def pack(engine: Engine, position: Position) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """(arrays, meta) of a snapshot. Arrays of shared state are the live ones: copy them before the engine goes on."""
    state = engine.state()
    arrays = {f"shared/{name}": array for name, array in state.shared.items()}
    for partition, own in state.partitions.items():
        arrays |= {f"partition/{partition}/{name}": array for name, array in own.items()}
    offsets: dict[str, dict[str, int]] = {}
    for (role, partition), offset in position.offsets.items():
        offsets.setdefault(role, {})[str(partition)] = offset
    meta = state.meta | {
        "offsets": offsets,
        "journal": position.journal,
        "cycle": position.cycle,
        "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }
    return arrays, meta


def unpack(arrays: Mapping[str, NDArray], meta: Mapping[str, Any], pipeline: Pipeline) -> tuple[EngineState, Position]:
    """The state and the position of a snapshot; raises SnapshotError when it is of another pipeline."""
    if meta.get("pipeline") != pipeline.name:
        raise SnapshotError(f"the snapshot is of pipeline {meta.get('pipeline')!r}, not of {pipeline.name!r}")
    shared: dict[str, NDArray] = {}
    partitions: dict[int, dict[str, NDArray]] = {}
    for name, array in arrays.items():
        where, _, rest = name.partition("/")
        if where == "shared":
            shared[rest] = np.asarray(array)
        else:
            partition, _, own = rest.partition("/")
            partitions.setdefault(int(partition), {})[own] = np.asarray(array)
    offsets: dict[Partition, int] = {
        (role, int(partition)): offset for role, of in meta["offsets"].items() for partition, offset in of.items()
    }
    position = Position(offsets, int(meta["journal"]), int(meta["cycle"]))
    return EngineState(shared, partitions, dict(meta)), position
