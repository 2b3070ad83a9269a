"""The values that move between connectors and engine: slices of records, pieces of slices, dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..connectors.record_table import RecordTable
from ..connectors.records import Headers as Headers
from ..connectors.records import Record as Record

Role = Literal["events", "labels"]

END_OF_STREAM = "headrace-end-of-stream"  # a record with this header says: nothing more comes on this partition


class Slice(NamedTuple):
    """Records [start, next) of one topic partition, as fetched; offsets may have holes (compaction, markers)."""

    role: Role
    partition: int
    start: int
    next: int
    records: RecordTable | list[Record]


class Piece(NamedTuple):
    """The part [start, next) of one partition that a cycle processed at one go; the journal's unit."""

    role: Role
    partition: int
    start: int
    next: int


class Slices(NamedTuple):
    """Slices of some partitions of one topic whose records are in one table, to be decoded at one go.

    pieces   their places; no partition twice
    records  of all of them: those of piece i are the rows from begins[i] up to begins[i + 1]
    begins   P + 1 rows, as `record_batches.unpack_all` gives them
    """

    pieces: Sequence[Piece]
    records: RecordTable
    begins: Sequence[int]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be used, with why and where in it."""

    role: Role
    partition: int
    record: Record
    reason: str
    path: str = ""  # JSON path of the field, where one is to blame


def nested(offsets: Mapping[tuple[Role, int], int]) -> dict[str, dict[str, int]]:
    """Offsets as JSON has them: {"events": {"0": 1200}}."""
    out: dict[str, dict[str, int]] = {}
    for (role, number), offset in offsets.items():
        out.setdefault(role, {})[str(number)] = offset
    return out


def flat(nested: Mapping[Role, Mapping[str, int]]) -> dict[tuple[Role, int], int]:
    """What `nested` made, as it was."""
    return {(role, int(number)): int(at) for role, of in nested.items() for number, at in of.items()}
