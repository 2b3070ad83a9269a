"""A cycle: the pieces processed between two commits, and all that the commit will write."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from ..connectors.transactions import Output
from .align import Aligner, Partition
from .encode import Served, encode_predictions
from .engine import Engine
from .slices import DeadLetter, Piece


@dataclass
class Cycle:
    """What was processed, in order, and what came of it."""

    pieces: list[Piece] = field(default_factory=list)
    predictions: dict[int, list[Output]] = field(
        default_factory=dict
    )  # by partition, which is the output's partition too
    dead: list[DeadLetter] = field(default_factory=list)
    rows: int = 0

    def offsets(self) -> dict[Partition, int]:
        """The offsets to commit: of each partition the next record to read."""
        return {(piece.role, piece.partition): piece.next for piece in self.pieces}


def run_cycle(
    engine: Engine,
    aligner: Aligner,
    at_end: Container[Partition],
    served: Served,
    is_full: Callable[[Cycle], bool],
    cycle: Cycle,
) -> None:
    """Process pieces into `cycle` until it is full, nothing may be processed now, or the engine says to stop."""
    topic = engine.pipeline.events.topic
    while engine.stop_reason is None and not is_full(cycle):
        following = aligner.next(at_end)
        if following is None:
            return
        done = engine.process(*following)
        cycle.pieces.append(done.piece)
        cycle.dead += done.dead
        if done.predicted is not None:
            cycle.rows += len(done.predicted.out)
            out = cycle.predictions.setdefault(done.piece.partition, [])
            out += encode_predictions(done.predicted, topic, served)
        else:
            cycle.rows += 1


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
