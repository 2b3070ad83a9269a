"""Records on which a model raises: found one by one, and made dead letters, as if they had been bad from the start."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import HeadraceError
from .align import BEFORE_ALL
from .decode import Batch
from .engine import Engine
from .processed import Processed
from .slices import DeadLetter, Piece, Record, Role

REASON_CHARACTERS = 500


class Poisoned(Exception):
    """The model, or the engine itself, raised while it processed the records [start, next) of a partition."""

    def __init__(self, role: Role, partition: int, start: int, next: int, cause: Exception) -> None:
        super().__init__(role, partition, start, next, cause)
        self.piece = Piece(role, partition, start, next)
        self.role, self.partition, self.start, self.next, self.cause = role, partition, start, next, cause

    def __str__(self) -> str:
        return (
            f"{_what_raised(self.cause)}, somewhere in the records from {self.start} up to {self.next} of partition "
            f"{self.partition} of the {self.role}; tried one by one, the record to blame goes to the dead letters"
        )


def process_carefully(engine: Engine, batch: Batch, start: int, next: int) -> tuple[list[Processed], list[int]]:
    """Process the records [start, next) of a batch but for those on which the model raises: they become dead letters.

    Returns what was processed, in order, and the offsets of the records that were left out. State and outputs are
    those of an engine whose batch never held these records; a replay gets there with `without`. To that end `time` and
    `clock` of the batch change in place: what is still to come of it must not feel the time of what was left out.

    Halves are tried, and each try is undone: that takes a copy of the engine, and some time. What a model keeps outside
    of its arrays cannot be undone, unless it is opaque. The record to blame is the one at which the engine would have
    learned; where the end of a wait makes the model raise, that is the record that ended the wait. What is raised
    without any record is let out, as are the errors of headrace itself.
    """
    processed: list[Processed] = []
    poison: list[int] = []
    whole, todo = batch, [(start, next)]
    undo: Callable[[], None] | None = None
    while todo and engine.stop_reason is None:
        a, b = todo.pop()
        undo = undo or engine.undo_point()
        error = _try(engine, undo, batch, a, b)
        lo, hi = np.searchsorted(batch.offset, (a, b)).tolist()
        if error is not None and hi - lo > 1:
            middle = int(batch.offset[(lo + hi) // 2])
            todo += [(middle, b), (a, middle)]
            continue
        if error is not None and hi - lo == 1:
            poison.append(int(batch.offset[lo]))
            batch = without(batch, {poison[-1]: _what_raised(error)})
            error = _try(engine, undo, batch, a, b)
        if error is not None:
            raise error
        processed.append(engine.process(batch, a, b))
        undo = None
    if poison:
        whole.time[np.isin(whole.offset, poison)] = BEFORE_ALL
        whole.clock[:] = np.maximum.accumulate(whole.time)
    return processed, poison


def without(batch: Batch, reasons: Mapping[int, str]) -> Batch:
    """The batch as if its records at these offsets had been bad, each for its reason.

    A batch does not keep its records, so of the new dead letters only offset and key are true: see `as_they_came`.
    """
    found = np.isin(batch.offset, list(reasons))
    if not found.any():
        return batch
    dead = [
        DeadLetter(
            batch.role,
            batch.partition,
            Record(int(batch.offset[i]), int(batch.time[i]) // 1000, batch.record_keys[i], None),
            reasons[int(batch.offset[i])],
        )
        for i in np.flatnonzero(found).tolist()
    ]
    rows = np.flatnonzero(~found).tolist()
    time = batch.time[rows]
    columns = ("offset", "key_hash", "numeric", "categories", "groups", "values", "y")
    return replace(
        batch,
        time=time,
        clock=np.maximum.accumulate(time) if len(time) else time,
        keys=batch.keys.take(~found),
        record_keys=batch.record_keys.take(~found),
        headers=None if batch.headers is None else batch.headers.take(~found),
        weight=None if batch.weight is None else batch.weight[rows],
        explained=None,
        dead=sorted([*batch.dead, *dead], key=lambda letter: letter.record.offset),
        **{name: getattr(batch, name)[rows] for name in columns},
    )


def as_they_came(
    dead: Sequence[DeadLetter], poison: Container[tuple[Role, int, int]], read: Callable[[Role, int, int], Record]
) -> list[DeadLetter]:
    """Dead letters, those of poison (role, partition, offset) with the whole record, which read(*poison) gives."""
    places = [(letter.role, letter.partition, letter.record.offset) for letter in dead]
    return [
        replace(letter, record=read(*place)) if place in poison else letter
        for letter, place in zip(dead, places, strict=True)
    ]


def _try(engine: Engine, undo: Callable[[], None], batch: Batch, start: int, next: int) -> Exception | None:
    """What is raised when a piece is processed and all of it is learned; the engine is put back to where it was."""
    try:
        engine.process(batch, start, next)
        engine.end_cycle()
    except (HeadraceError, MemoryError):
        raise
    except Exception as error:
        return error
    finally:
        undo()
    return None


def _what_raised(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"the model raised {type(error).__name__}: {text}"[:REASON_CHARACTERS]
