"""Reading and decoding input again, from the first record that is needed to the last, in whatever order it was used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from ..connectors.reading import RangeReader
from .align import Partition
from .decode import Batch, Decoder
from .poison import without
from .slices import Piece, Role, Slice

HELD_BYTES = 32 << 20  # of raw records whose batches are here, over all partitions
FIRST_RECORDS = 16  # that are decoded at one go, while their size is not known
MOST_RECORDS = 20_000
POISONED = "the model raised on it"


class Part(NamedTuple):
    """Offsets [start, next) of a batch."""

    batch: Batch
    start: int
    next: int


class Rereader:
    """Hands out the input of pieces; of each partition one batch is here. Used by one thread at a time.

    starts, ends  of each partition the first and the last offset that is needed
    poison        records that are dead letters although they can be decoded
    """

    def __init__(
        self,
        address: str,
        topics: Mapping[Role, str],
        decoders: Mapping[Role, Decoder],
        starts: Mapping[Partition, int],
        ends: Mapping[Partition, int],
        poison: Mapping[Partition, Collection[int]],
    ) -> None:
        self._address, self._topics, self._decoders = address, topics, decoders
        self._ends, self._poison = ends, poison
        self._at = dict(starts)  # where each partition was handed out up to
        self._read = dict(starts)  # and where it was read up to
        self._batches: dict[Partition, Batch] = {}
        self._step = dict.fromkeys(starts, FIRST_RECORDS)
        self._reader: RangeReader | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def parts(self, piece: Piece) -> Iterator[Part]:
        """The rows of a piece, in as many parts as they were decoded in."""
        partition: Partition = (piece.role, piece.partition)
        at = piece.start
        if at < piece.next and at != self._at[partition]:
            self._jump(partition, at)
        while at < piece.next:
            batch = self._batches.get(partition)
            if batch is None or batch.next <= at:
                batch = self._batches[partition] = self._decode(partition)
            next = min(piece.next, batch.next)
            yield Part(batch, at, next)
            at = self._at[partition] = next

    def _jump(self, partition: Partition, at: int) -> None:
        """What lies between was processed elsewhere; it must not move the clock of what comes after it."""
        self._close()
        self._batches.pop(partition, None)
        self._read[partition] = self._at[partition] = at

    def _decode(self, partition: Partition) -> Batch:
        role, number = partition
        if self._reader is None:
            starts = {(self._topics[role], number): at for (role, number), at in self._read.items()}
            self._reader = RangeReader(self._address, starts)
            self._reader.__enter__()
        start = self._read[partition]
        until = min(start + self._step[partition], self._ends[partition])
        records, next = self._reader.read_table(self._topics[role], number, until)
        self._read[partition] = next
        if len(records):
            size = int(np.maximum(records.value.size, 0).sum()) + 1
            room = HELD_BYTES // len(self._ends) * len(records) // size
            self._step[partition] = max(1, min(room, 4 * self._step[partition], MOST_RECORDS))
        batch = self._decoders[role].decode(Slice(role, number, start, next, records))
        return without(batch, dict.fromkeys(self._poison.get(partition, ()), POISONED))

    def _close(self) -> None:
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.__exit__(None, None, None)
