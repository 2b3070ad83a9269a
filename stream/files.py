"""Events and labels from files and frames, for `headrace evaluate`: ndjson, csv, parquet, each also as .gz."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import msgspec
import polars as pl

from ..errors import InputError
from .decode import LATEST_TIME, Batch, Decoder, reason_and_path
from .frames import missing_fields, rows_of
from .slices import DeadLetter, Record, Slice

ROWS = 8192  # of one slice
FORMATS = (".ndjson", ".jsonl", ".json", ".csv", ".parquet")
UNREADABLE = (gzip.BadGzipFile, EOFError, zlib.error)  # damaged, or cut off


def batches(path: Path, decoder: Decoder) -> Iterator[Batch]:
    """The batches of a file.

    Raises InputError when the file is missing, of an unknown format, or lacks fields that the schema requires.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from frame_batches(_read(path, lambda f: pl.read_parquet(f)), decoder)
    elif suffix == ".csv":
        frame = _read(path, lambda f: pl.read_csv(f, infer_schema=False))
        yield from frame_batches(frame, decoder, strict=False)
    else:
        yield from _line_batches(path, decoder)


def frame_batches(frame: pl.DataFrame, decoder: Decoder, strict: bool = True) -> Iterator[Batch]:
    """The batches of a frame. strict: values must have the schema's types; else numbers may stand as text."""
    missing = missing_fields(frame, decoder.schema)
    if missing:
        raise InputError(
            f"{decoder.role}: no column {', '.join(f'`{n}`' for n in missing)}, which {decoder.schema.__name__} "
            f"requires; there are: {', '.join(frame.columns)}"
        )
    for start in range(0, len(frame), ROWS):
        part = frame[start : start + ROWS]
        good, rows, dead = [], list[Any](), list[DeadLetter]()
        for offset, row in enumerate(rows_of(part, decoder.schema), start):
            try:
                rows.append(msgspec.convert(row, decoder.schema, strict=strict))
                good.append(_record(decoder, offset, None))
            except msgspec.ValidationError as error:
                record = _record(decoder, offset, msgspec.json.encode(row, enc_hook=str))
                dead.append(DeadLetter(decoder.role, 0, record, *reason_and_path(error)))
        yield decoder.columns(Slice(decoder.role, 0, start, start + len(part), good), rows, dead)


def _line_batches(path: Path, decoder: Decoder) -> Iterator[Batch]:
    start = 0
    with _open(path) as file:
        lines = ((number, line) for number, line in enumerate(file) if line.strip())
        while chunk := _take(path, lines):
            records = [_record(decoder, number, line) for number, line in chunk]
            end = chunk[-1][0] + 1
            yield decoder.decode(Slice(decoder.role, 0, start, end, records))
            start = end


def _take(path: Path, lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    try:
        return list(islice(lines, ROWS))
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _record(decoder: Decoder, offset: int, value: bytes | None) -> Record:
    """Files have no record timestamps: no event time is ahead of them."""
    return Record(offset, LATEST_TIME // 1000 if decoder.side.time else 0, None, value)


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    if suffix not in FORMATS:
        raise InputError(f"{path}: expected a file that ends in {', '.join(FORMATS)}, each also with .gz")
    return suffix


def _open(path: Path) -> IO[bytes]:
    try:
        return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: Path, read: Any) -> pl.DataFrame:
    with _open(path) as file:
        try:
            return read(io.BytesIO(file.read()))
        except (pl.exceptions.PolarsError, *UNREADABLE) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
