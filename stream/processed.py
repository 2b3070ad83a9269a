"""What an engine gives for a piece: its predictions and its dead letters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decode import Batch
from .explain import Explained
from .slices import DeadLetter, Piece

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@dataclass(slots=True)
class Predicted:
    """Predictions for rows [lo, hi) of a batch of events; out float32 (hi - lo, O).

    by  uint8 (hi - lo,)  the place of the model that made each; None: the first made all
    """

    batch: Batch
    lo: int
    hi: int
    out: F32
    by: U8 | None = None

    @property
    def explained(self) -> Explained | None:
        """What weighed most in them, where the pipeline declares it."""
        return None if self.batch.explained is None else self.batch.explained.part(self.lo, self.hi)


@dataclass(slots=True)
class Processed:
    """What a piece gave: its place in the journal, its predictions, its dead letters.

    piece.next lies before the offset that was asked for where the stream has to stop in between.
    """

    piece: Piece
    predicted: Predicted | None
    dead: list[DeadLetter]
