"""What the worker writes to Kafka: prediction records, dead letters and journal records."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..connectors.record_table import headers_of
from ..connectors.transactions import Output
from ..errors import InputError
from .explain import NO_FEATURE
from .processed import Predicted
from .slices import DeadLetter, Piece, Role

JOURNAL_FORMAT = 2

_json = msgspec.json.Encoder().encode


class Served(NamedTuple):
    """What each prediction says of the model that made it."""

    model: str
    version: int  # of the last published snapshot, 0: none yet
    age_seconds: float | None  # wall time since the last example was learned; None: none yet
    classes: tuple[str, ...] = ()  # of a multiclass task, in the order of the model's outputs
    features: tuple[str, ...] = ()  # the names that explanations refer to: numeric columns, then categories
    models: tuple[str, ...] = ()  # names, by their place, where each prediction says which of several made it

    def by(self, at: int) -> Served:
        """The same for what the model at this place has made."""
        return self._replace(model=self.models[at])


def encode_predictions(predicted: Predicted, topic: str, served: Served) -> list[Output]:
    """The prediction records of a piece, in the order of the events: under the event's record key, with a JSON value.

    Headers are those of the event's record where the batch has them; otherwise there are none.
    Record by record; `fast_encode.prediction_rows` gives the same, many at once.

    {"key": the event's key, "prediction": P(true), the value or {class: P}, "model", "version", "age_seconds",
     "time": the event's time in seconds since the epoch, "source": "topic-partition-offset"}

    Where the pipeline declares it, there is one more field,
    "explain": [{"feature": name, "contribution": number}, ...], the heaviest first; of several classes it is about the
    one with the greatest P.

    Raises ValueError when there is not one output for each class.
    """
    batch, lo, hi = predicted.batch, predicted.lo, predicted.hi
    if lo == hi:
        return []
    source = say_source(topic, batch.partition)
    if predicted.by is None:
        middles = [say_model(served)] * (hi - lo)
    else:
        of_models = {at: say_model(served.by(at)) for at in set(predicted.by.tolist())}
        middles = [of_models[at] for at in predicted.by.tolist()]
    values = zip(
        batch.record_keys.take(slice(lo, hi)),
        [()] * (hi - lo) if batch.headers is None else list(map(headers_of, batch.headers.take(slice(lo, hi)))),
        [key or b"null" for key in batch.keys.take(slice(lo, hi))],
        _outputs(predicted.out, served.classes),
        _numbers((batch.time[lo:hi] / 1e6).tolist()),
        middles,
        _numbers(batch.offset[lo:hi].tolist()),
        _explanations(predicted, served.features),
        strict=True,
    )
    return [
        (
            record_key,
            b'{"key":%b,"prediction":%b%b%b%b%b"%b}' % (key, p, middle, time, source, offset, why),
            headers,
            None,
        )
        for record_key, headers, key, p, time, middle, offset, why in values
    ]


def _outputs(out: NDArray[np.float32], classes: tuple[str, ...]) -> list[bytes]:
    """The JSON of each row of outputs, (B, O): the first, or one for each class."""
    check_outputs(out, classes)
    count = len(classes) or 1
    numbers = _numbers([float(str(p)) for p in out[:, :count].ravel()])  # as few digits as tell the float32
    if not classes:
        return numbers
    names = say_classes(classes)
    rows = [numbers[at : at + count] for at in range(0, len(numbers), count)]
    return [b"".join(name + p for name, p in zip(names, row, strict=True)) + b"}" for row in rows]


def _explanations(predicted: Predicted, names: tuple[str, ...]) -> list[bytes]:
    """What weighed most in each prediction, as it stands behind the source; nothing where it is not told."""
    explained = predicted.explained
    if explained is None:
        return [b""] * (predicted.hi - predicted.lo)
    rows = zip(explained.feature.tolist(), explained.contribution, strict=True)
    return [
        b',"explain":' + _json([
            {"feature": names[f], "contribution": float(str(part))}
            for f, part in zip(features, parts, strict=True) if f != NO_FEATURE
        ])
        for features, parts in rows
    ]  # fmt: skip


def say_features(names: tuple[str, ...]) -> list[bytes]:
    """What an explanation says before each contribution, by feature; behind it comes a brace."""
    return [b'{"feature":' + _json(name) + b',"contribution":' for name in names]


def check_outputs(out: NDArray[np.float32], classes: tuple[str, ...]) -> None:
    """Raise ValueError unless there is one output for each class, or there are no classes."""
    if classes and out.shape[1] != len(classes):
        raise ValueError(f"predictions have {out.shape[1]} outputs, and there are {len(classes)} classes")


def _numbers(values: list[Any]) -> list[bytes]:
    """The JSON of each: a list at once is four times as fast as one by one."""
    return _json(values)[1:-1].split(b",")


def say_model(served: Served) -> bytes:
    """What all prediction records of a cycle say between prediction and time."""
    age = "null" if served.age_seconds is None else f"{served.age_seconds:.3f}"
    return b',"model":%b,"version":%d,"age_seconds":%b,"time":' % (_json(served.model), served.version, age.encode())


def say_classes(classes: tuple[str, ...]) -> list[bytes]:
    """What the prediction of several classes says before the P of each; behind the last comes a brace."""
    return [(b"," if at else b"{") + _json(name) + b":" for at, name in enumerate(classes)]


def say_source(topic: str, partition: int) -> bytes:
    """What all prediction records of a partition say between time and offset."""
    return f',"source":"{topic}-{partition}-'.encode()


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
    """One cycle as the journal tells it; applied in the order of these lines.

    owned     the partitions that the slot owns from this cycle on, no others; None: as before
    adopted   of these: the state came from another slot, or begins anew although an older one was here. The first
              snapshot with a token at or behind this record's offset holds it
    rollback  {"muted": {role: {partition: offset}}, "since": offset}: the model was no longer finite. Of what lies
              before these offsets nothing is learned, from offset `since` of the journal on; without `since`, from
              the snapshot on that the next start begins with
    poison    records that the model raised on, as (role, partition, offset): dead letters, otherwise passed over
    pieces    what was processed, in this order
    stop      why the worker stopped after it, if it did
    """

    slot: int
    cycle: int
    pieces: list[Piece] = []  # noqa: RUF012, never changed
    stop: str | None = None
    owned: list[int] | None = None
    adopted: list[int] = []  # noqa: RUF012
    rollback: dict[str, Any] | None = None
    poison: list[tuple[Role, int, int]] = []  # noqa: RUF012

    def encode(self) -> bytes:
        """The record's JSON."""
        return _json({"format": JOURNAL_FORMAT} | self._asdict())

    @classmethod
    def decode(cls, value: bytes | None) -> JournalRecord:
        """Read what `encode` wrote; raises InputError for what it did not write, or another version did."""
        try:
            format = _head(value or b"").format
            if format != JOURNAL_FORMAT:
                raise InputError(
                    f"a journal record of format {format}, this version of headrace reads {JOURNAL_FORMAT}: go on with "
                    "the version that wrote it, or give the pipeline another name to begin anew"
                )
            told = _body(value or b"")
        except msgspec.DecodeError as error:
            raise InputError(f"no record of a journal ({error}); does something else write to this topic?") from None
        return cls(**msgspec.structs.asdict(told))


class _Head(msgspec.Struct):
    format: int


class _Body(msgspec.Struct):
    slot: int
    cycle: int
    pieces: list[Piece]
    stop: str | None
    owned: list[int] | None
    adopted: list[int]
    rollback: dict[str, Any] | None
    poison: list[tuple[Role, int, int]]


_head, _body = msgspec.json.Decoder(_Head).decode, msgspec.json.Decoder(_Body).decode
