"""A cycle: the pieces processed between two commits, and all that the commit will write."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..connectors.transactions import Records
from ..errors import HeadraceError
from .align import Aligner, Next, Partition
from .engine import Engine
from .poison import Poisoned, process_carefully
from .processed import Predicted
from .slices import DeadLetter, Piece, Role


@dataclass
class Cycle:
    """What was processed, in order, and what came of it."""

    pieces: list[Piece] = field(default_factory=list)
    predicted: dict[int, list[Predicted]] = field(default_factory=dict)  # by partition, which is the output's too
    dead: list[DeadLetter] = field(default_factory=list)
    poison: list[tuple[Role, int, int]] = field(default_factory=list)  # role, partition, offset: dead, the model raised
    rows: int = 0
    hand: Piece | None = None  # what is being processed
    taken: bool = False  # a snapshot was taken at its end
    outputs: dict[tuple[str, int], Records] = field(default_factory=dict)  # of `predicted`, by topic and partition

    def reached(self) -> dict[Partition, int]:
        """The offsets up to which records were touched, also those of a piece that did not come to its end."""
        hand = {} if self.hand is None else {(self.hand.role, self.hand.partition): self.hand.next}
        return self.offsets() | hand

    def offsets(self) -> dict[Partition, int]:
        """The offsets to commit: of each partition the next record to read."""
        return {(piece.role, piece.partition): piece.next for piece in self.pieces}


def run_cycle(
    engine: Engine,
    aligner: Aligner,
    at_end: Container[Partition],
    is_full: Callable[[Cycle], bool],
    cycle: Cycle,
    careful: Callable[[Next], bool] | None = None,
) -> None:
    """Process pieces into `cycle` until it is full, nothing may be processed now, or the engine says to stop.

    careful   given after something raised: each cycle is then a single piece, so that it is known whose records raise,
              and pieces for which careful(piece) is true go through `process_carefully`

    Raises Poisoned when the model, or the engine, raises on records. The engine is then neither before nor after them:
    begin again from the last commit, with `careful` true for the piece that Poisoned names. That piece may be innocent
    when it was named without `careful`: examples are learned and events predicted late, and a piece before it may have
    raised. Then the guilty one is named next.
    """
    while engine.stop_reason is None and not is_full(cycle) and not (careful and cycle.pieces):
        engine.enter("align")
        following = aligner.next(at_end)
        if following is None:
            break
        batch, start, next = following
        cycle.hand = Piece(batch.role, batch.partition, start, next)
        if careful and careful(following):
            processed, poison = process_carefully(engine, batch, start, next)
            cycle.poison += [(batch.role, batch.partition, offset) for offset in poison]
        else:
            with _blamed(cycle):
                processed = [engine.process(batch, start, next, later=True)]
        for done in processed:
            cycle.pieces.append(done.piece)
            cycle.dead += done.dead
            if done.predicted is not None:
                cycle.rows += len(done.predicted.out)
                cycle.predicted.setdefault(done.piece.partition, []).append(done.predicted)
            else:
                cycle.rows += 1
    with _blamed(cycle):
        engine.predict_taken()


def end_cycle(engine: Engine, cycle: Cycle) -> None:
    """End a cycle in the engine, and see that its model is finite, before anything of the cycle goes out.

    Raises Poisoned as `run_cycle` does, where an example learned only now makes the model raise; NotFinite.
    """
    with _blamed(cycle):
        engine.end_cycle()
    engine.enter("check")
    engine.check_finite()


@contextmanager
def _blamed(cycle: Cycle) -> Iterator[None]:
    """What a model raises is said to come of the piece in hand."""
    try:
        yield
    except (HeadraceError, MemoryError):
        raise
    except Exception as error:
        if cycle.hand is None:
            raise
        raise Poisoned(*cycle.hand, cause=error) from error


def merge(pieces: list[Piece]) -> list[Piece]:
    """Join pieces that follow one another in one partition: the engine does not care where a piece is cut."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last and last[:2] == piece[:2] and last.next == piece.start:
            merged[-1] = last._replace(next=piece.next)
        else:
            merged.append(piece)
    return merged
