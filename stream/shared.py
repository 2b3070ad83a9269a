"""The shared state of an engine as one value: its arrays, saved, loaded and put back as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SnapshotError
from ..models.base import Array, Spec, allocate, allocate_touched

OPAQUE = "opaque/"  # begins the names of what is a pickle


@dataclass
class EngineState:
    """All that an engine has learned: shared arrays, arrays of each partition, and a JSON-able description.

    What a model keeps beside its arrays is in `shared` too, uint8 under OPAQUE: it must never come from a stranger.
    """

    shared: dict[str, NDArray]
    partitions: dict[int, dict[str, NDArray]]
    meta: dict[str, Any]


class Shared:
    """The arrays that an engine works on in place, and what a model keeps beside them.

    touched   uint8 marks of the row groups of the model: blocks written to since the last look at what is finite
    changed   the same up to the last end of a cycle; who copies the tables sets them back
    """

    def __init__(
        self, layout: Mapping[str, Array], model: Any, spec: Spec, growing: Set[str], derived: Set[str]
    ) -> None:
        """Allocate all arrays, those of the model, "model/...", among them.

        growing  arrays of which an earlier state may hold fewer rows
        derived  arrays that are not saved
        """
        self.layout = layout
        self.arrays = allocate(layout)
        self._model = model
        self._tables = {f"model/{name}": array.rows for name, array in model.layout(spec).items() if array.rows}
        self.touched = allocate_touched(model.layout(spec))
        self.changed = {group: np.ones_like(marks) for group, marks in self.touched.items()}
        self._growing, self._derived = growing & layout.keys(), derived

    def note_changed(self) -> None:
        """A cycle ends: what was touched has changed."""
        for group, marks in self.touched.items():
            np.maximum(self.changed[group], marks, out=self.changed[group])

    def tables(self) -> dict[str, tuple[NDArray, NDArray[np.uint8]]]:
        """The tables of the model, by their names in `save`, each with its marks in `changed`."""
        return {name: (self.arrays[name], self.changed[rows]) for name, rows in self._tables.items()}

    def save(self, used: Mapping[str, int]) -> dict[str, NDArray]:
        """The arrays, those in `used` up to so many rows, and dumps of what is opaque. Arrays are the live ones."""
        shared = {name: array for name, array in self.arrays.items() if name not in self._derived}
        for name, rows in used.items():
            shared[name] = shared[name][:rows]
        opaque = self._model.opaque()
        return shared | {f"{OPAQUE}{name}": np.frombuffer(part.dump(), np.uint8) for name, part in opaque.items()}

    def load(self, shared: Mapping[str, NDArray], pipeline: str) -> None:
        """Take over what `save` gave; raises SnapshotError where it does not fit. All of it has changed then."""
        for name, array in self.arrays.items():
            if name in self._derived:
                continue
            given = shared.get(name)
            if given is None and self.layout[name].late:
                continue
            room = array[: len(given)] if given is not None and name in self._growing else array
            if given is None or given.dtype != array.dtype or given.shape != room.shape:
                came = "nothing" if given is None else f"{given.dtype} {given.shape}"
                raise SnapshotError(
                    f"array `{name}` of pipeline {pipeline!r}: expected {array.dtype} {array.shape}, got "
                    f"{came}; was the snapshot made with another feature list or another table size?"
                )
        for name, part in self._model.opaque().items():
            dump = shared.get(f"{OPAQUE}{name}")
            if dump is None:
                raise SnapshotError(
                    f"the snapshot has no state of {part!r} of pipeline {pipeline!r}: was it made with "
                    "another model? Give the pipeline another name to begin anew"
                )
            part.load(dump.tobytes())
        for name, array in self.arrays.items():
            if name in self._growing:
                given = shared[name]
                array[: len(given)] = given
                array[len(given) :] = self.layout[name].fill
            elif name not in shared and self.layout[name].late:
                array[...] = self.layout[name].fill
            elif name not in self._derived:
                array[...] = shared[name]
        self._model.push()
        for marks in [*self.touched.values(), *self.changed.values()]:
            marks[:] = 1  # all of it is new to whoever looks at what is finite, and to whoever copies it

    def undo_point(self) -> Callable[[], None]:
        """A function that puts all of this back to where it stands now, as often as it is called."""
        self._model.pull()
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        opaque = self._model.opaque()
        dumps = {name: part.dump() for name, part in opaque.items()}
        touched = {group: marks.copy() for group, marks in self.touched.items()}

        def undo() -> None:
            for name, array in arrays.items():
                self.arrays[name][...] = array
            for name, dump in dumps.items():
                opaque[name].load(dump)
            for group, marks in touched.items():
                self.touched[group][:] = marks
                self.changed[group][:] = 1
            self._model.push()

        return undo
