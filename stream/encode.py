"""What the worker writes to Kafka: prediction records, dead letters and journal records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ..connectors.transactions import Output
from .engine import Predicted
from .slices import DeadLetter, Piece

JOURNAL_FORMAT = 1

_json = msgspec.json.Encoder().encode


class Served(NamedTuple):
    """What each prediction says of the model that made it."""

    model: str
    version: int  # of the last published snapshot, 0: none yet
    age_seconds: float | None  # wall time since the last example was learned; None: none yet


def encode_predictions(predicted: Predicted, topic: str, served: Served) -> list[Output]:
    """The prediction records of a piece, in the order of the events: under the event's record key, with a JSON value.

    {"key": the event's key, "prediction": P(true) or the value, "model", "version", "age_seconds",
     "time": the event's time in seconds since the epoch, "source": "topic-partition-offset"}
    """
    batch, lo, hi = predicted.batch, predicted.lo, predicted.hi
    if lo == hi:
        return []
    age = "null" if served.age_seconds is None else f"{served.age_seconds:.3f}"
    middle = b',"model":%b,"version":%d,"age_seconds":%b,"time":' % (_json(served.model), served.version, age.encode())
    source = f',"source":"{topic}-{batch.partition}-'.encode()
    values = zip(
        batch.record_keys[lo:hi],
        map(_json, batch.keys[lo:hi]),
        predicted.out[:, 0].tolist(),
        _json((batch.time[lo:hi] / 1e6).tolist())[1:-1].split(
            b","
        ),  # a list at once is four times as fast as one by one
        _json(batch.offset[lo:hi].tolist())[1:-1].split(b","),
        strict=True,
    )
    return [
        (record_key, b'{"key":%b,"prediction":%.9g%b%b%b%b"}' % (key, p, middle, time, source, offset), (), None)
        for record_key, key, p, time, offset in values
    ]


def encode_dead_letter(letter: DeadLetter, topic: str, max_bytes: int) -> Output:
    """A dead letter: the record as it came, with headers that say why it is one.

    A record larger than max_bytes is cut, and says so in the headers `truncated` and `original_size`.
    """
    record = letter.record
    about = {
        "topic": topic,
        "partition": str(letter.partition),
        "offset": str(record.offset),
        "time": str(record.timestamp),
        "reason": letter.reason[:1000],
        "path": letter.path,
    }
    key, value, headers = record.key, record.value, record.headers
    size = len(key or b"") + len(value or b"") + sum(len(name) + len(v or b"") for name, v in headers)
    if size > max_bytes:
        about |= {"truncated": "true", "original_size": str(size)}
        headers = ()
        key = key[: max_bytes // 2] if key is not None else None
        value = value[: max_bytes - len(key or b"")] if value is not None else None
    ours = tuple((f"headrace-{name}", text.encode()) for name, text in about.items())
    return key, value, (*headers, *ours), None


class JournalRecord(NamedTuple):
    """One cycle as the journal tells it.

    pieces    what it processed, in this order
    stop      why the worker stopped after it, if it did
    disowned  partitions whose state was dropped before it, because another worker had gone on with them
    """

    slot: int
    cycle: int
    pieces: list[Piece]
    stop: str | None = None
    disowned: list[int] = []  # noqa: RUF012, never changed

    def encode(self) -> bytes:
        """The record's JSON."""
        body: Mapping[str, Any] = {
            "format": JOURNAL_FORMAT,
            "slot": self.slot,
            "cycle": self.cycle,
            "pieces": [list(piece) for piece in self.pieces],
            "stop": self.stop,
            "disowned": self.disowned,
        }
        return _json(body)

    @classmethod
    def decode(cls, value: bytes) -> JournalRecord:
        """Read what `encode` wrote."""
        body = msgspec.json.decode(value)
        if body["format"] != JOURNAL_FORMAT:
            raise ValueError(f"journal record of format {body['format']}, this version reads {JOURNAL_FORMAT}")
        pieces = [Piece(*piece) for piece in body["pieces"]]
        return cls(body["slot"], body["cycle"], pieces, body["stop"], body["disowned"])
