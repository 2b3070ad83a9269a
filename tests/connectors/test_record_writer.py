"""Record batches written by the kernels are those of aiokafka's builder, byte for byte."""

import gzip
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from aiokafka import codec
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from headrace import InputError
from headrace.connectors.compression import compress as in_lz4
from headrace.connectors.record_table import RecordTable
from headrace.connectors.record_writer import MAX_RECORD_BYTES, Rows, SealedBatch, write_batches
from headrace.connectors.records import Record
from headrace.connectors.spans import Spans

NOW = 1_700_000_000_123
CODECS = {None: 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
every_codec = pytest.mark.parametrize("compression", CODECS)


@pytest.fixture(autouse=True)
def our_compression(monkeypatch):
    """aiokafka's builder takes levels of its own choice, and frames of LZ4 that keep the GIL."""
    builder = sys.modules[DefaultRecordBatchBuilder.__module__]
    monkeypatch.setattr(builder, "lz4_encode", lambda data: in_lz4("lz4", np.frombuffer(data, np.uint8))[1].tobytes())
    monkeypatch.setattr(builder, "zstd_encode", partial(codec.zstd_encode, level=1))


@pytest.fixture(autouse=True)
def no_time_in_gzip(monkeypatch):
    """gzip writes when it was; then two runs of the same would differ."""
    monkeypatch.setattr(gzip, "time", SimpleNamespace(time=lambda: 0.0))


def built(rows, transactional, compression, max_bytes, state=(-1, -1, -1), headers=None):
    """The batches of aiokafka's builder."""
    batches, number = [], 0
    for (key, value), own in zip(rows, headers or [[]] * len(rows)):
        if not batches or batches[-1].append(number, NOW, key, value, own) is None:
            batches.append(DefaultRecordBatchBuilder(2, CODECS[compression], int(transactional), *state, max_bytes))
            number = 0
            batches[-1].append(0, NOW, key, value, own)
        number += 1
    return [bytes(batch.build()) for batch in batches]


def written(rows, transactional=False, compression=None, max_bytes=900_000):
    keys, values = (Spans.of(column) for column in zip(*rows)) if rows else (Spans.of([]), Spans.of([]))
    return write(Rows(keys, values), transactional, compression, max_bytes)


def write(rows, transactional=False, compression=None, max_bytes=900_000):
    to = {("t", 3): len(rows)}
    batches = write_batches(rows, NOW, to=to, transactional=transactional, max_bytes=max_bytes).get(("t", 3), [])
    compress(batches, compression)
    return batches


def compress(batches, compression):
    for batch in batches if compression is not None else []:
        batch.compress(compression)


def some_rows(B, seed=1):
    rng = np.random.default_rng(seed)
    rows = []
    for key, value in zip(rng.integers(-1, 90, B).tolist(), rng.integers(-1, 400, B).tolist()):
        rows.append((None if key < 0 else rng.bytes(key), None if value < 0 else b"abcdefgh" * (value // 8) + rng.bytes(value % 8)))  # fmt: skip
    return rows


@every_codec
@pytest.mark.parametrize("transactional", [False, True])
def test_batches_are_those_of_aiokafka(compression, transactional):
    rows = some_rows(3000)
    batches = written(rows, transactional, compression, 50_000)
    assert len(batches) > 5
    assert [bytes(batch._build()) for batch in batches] == built(rows, transactional, compression, 50_000)


@every_codec
def test_batches_read_back_as_they_were_given(compression):
    rows = some_rows(2000, 2)
    read, counts = [], []
    for batch in written(rows, True, compression, 50_000):
        (told,) = [MemoryRecords(bytes(batch._build())).next_batch()]
        assert told.validate_crc()
        assert (told.is_transactional, told.is_control_batch, told.compression_type) == (True, False, CODECS[compression])  # fmt: skip
        records = list(told)
        assert [record.offset for record in records] == list(range(batch.record_count()))
        assert {record.timestamp for record in records} == {NOW}
        read += [(record.key, record.value) for record in records]
        counts.append(len(records))
    assert read == rows


@pytest.mark.parametrize("size", [0, 1, 59, 60, 61, 63, 64, 8190, 8191, 8192, 100_000])
def test_lengths_of_every_width_are_written(size):
    rows = [(b"k" * (size % 300), b"v" * size), (None, None), (b"", b""), (b"k" * size, None), (None, b"v" * size)]
    assert [bytes(b._build()) for b in written(rows)] == built(rows, False, None, 900_000)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_batch_is_filled_to_its_last_byte(extra):
    rows = [(b"k", b"v" * 50)] * 70
    (whole,) = written(rows)
    batches = written(rows, max_bytes=whole.size() + extra)
    assert [batch.record_count() for batch in batches] == ([70] if extra >= 0 else [69, 1])


def test_a_record_larger_than_a_batch_is_alone():
    rows = [(b"k", b"v"), (b"k", b"v" * 5000), (b"k", b"v"), (b"k", b"v")]
    batches = written(rows, max_bytes=1000)
    assert [batch.record_count() for batch in batches] == [1, 1, 2]
    assert [bytes(b._build()) for b in batches] == built(rows, False, None, 1000)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_record_above_the_limit_is_refused(place):
    rows = [(b"k", b"v")] * 3
    rows[place] = (b"k", b"x" * MAX_RECORD_BYTES)
    with pytest.raises(
        InputError, match=r"a record of 1,000,0\d\d bytes for t\[3\] is above the limit of 1,000,000 bytes"
    ):
        written(rows)
    rows[place] = (b"k", b"x" * (MAX_RECORD_BYTES - 75))
    assert sum(batch.record_count() for batch in written(rows)) == 3


@every_codec
def test_what_compression_makes_no_smaller_is_left_as_it_is(compression):
    rows = [(b"k", np.random.default_rng(1).bytes(100))]
    (batch,) = written(rows, False, compression)
    assert [bytes(batch._build())] == built(rows, False, None, 900_000)


def test_no_records_are_no_batches():
    assert written([]) == []


def test_keys_and_values_must_be_as_many():
    with pytest.raises(InputError, match="2 keys for 1 values"):
        write(Rows(Spans.none(2), Spans.of([b"v"])))
    with pytest.raises(InputError, match="headers of 2 records for 1"):
        write(Rows(Spans.none(1), Spans.of([b"v"]), Spans.none(2)))


def test_views_are_written_as_what_they_show():
    rows = some_rows(100, 3)
    keys, values = (Spans.of(column).take(slice(10, 90, 3)) for column in zip(*rows))
    (batch,) = write(Rows(keys, values))
    assert [bytes(batch._build())] == built(rows[10:90:3], False, None, 900_000)


@every_codec
def test_headers_are_written_as_aiokafka_writes_them(compression):
    rows = some_rows(2000, 5)
    rng = np.random.default_rng(6)
    some = [("traceparent", b"00-%032x-01" % 7), ("ü", b""), ("", None), ("large", b"x" * 3000), ("b", bytes(200))]
    headers = [[some[j] for j in rng.integers(0, 5, count)] for count in rng.integers(-2, 4, 2000).clip(0)]
    wire = RecordTable.of([Record(0, 0, None, None, tuple(h)) for h in headers]).headers
    strings = Rows(*(Spans.of(column) for column in zip(*rows)), wire)
    batches = write(strings, True, compression, 50_000)
    assert len(batches) > 5
    told = [bytes(batch._build()) for batch in batches]
    assert told == built(rows, True, compression, 50_000, headers=headers)
    read = [tuple(record.headers) for raw in told for record in MemoryRecords(raw).next_batch()]
    assert read == [tuple(h) for h in headers]


def test_a_batch_is_sealed_with_who_sends_it_however_often():
    rows = some_rows(50, 4)
    (batch,) = written(rows, True)
    for state in ((7, 2, 99), (2**40, 32_767, 2**31 - 1)):
        batch._set_producer_state(*state)
        told = batch._build()
        assert bytes(told) == bytes(batch._build())
        assert [bytes(told)] == built(rows, True, None, 900_000, state)
        assert len(told) == batch.size()
    assert isinstance(batch, SealedBatch)
    assert batch.closed() and batch.append(key=b"k", value=b"v", timestamp=1, headers=[]) is None


def shares(counts, seed=7, large=()):
    """Rows of several partitions, with headers, so many of each; and which they are."""
    B = sum(counts)
    rows = some_rows(B, seed)
    for i in large:
        rows[i] = (b"k", b"v" * 5000)
    headers = [[("n", b"%d" % i)] * (i % 3) for i in range(B)]
    ends = np.cumsum(counts).tolist()
    return rows, headers, {("t", p): end for p, end in enumerate(ends)}


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("with_headers", [False, True])
@pytest.mark.parametrize("counts", [[3], [10, 10], [1, 0, 7, 2], [0, 0, 5], [4, 0], [2, 300, 1, 90], [1] * 40, [0, 0]])
def test_batches_of_several_partitions_are_those_of_each(counts, with_headers, transactional, compression):
    rows, headers, to = shares(counts, large=[1] if sum(counts) > 30 else [])
    keys, values = (Spans.of([row[i] for row in rows]) for i in (0, 1))
    wire = RecordTable.of([Record(0, 0, None, None, tuple(h)) for h in headers]).headers if with_headers else None
    told = write_batches(Rows(keys, values, wire), NOW, to=to, transactional=transactional, max_bytes=6000)
    compress([batch for batches in told.values() for batch in batches], compression)
    assert list(told) == [partition for partition, count in zip(to, counts) if count]
    first = 0
    for partition, end in to.items():
        some = slice(first, end)
        alone = Rows(keys.take(some), values.take(some), None if wire is None else wire.take(some))
        wanted, batches = write(alone, transactional, compression, 6000), told.get(partition, [])
        assert [bytes(batch._build()) for batch in batches] == [bytes(batch._build()) for batch in wanted]
        assert [batch.record_count() for batch in batches] == [batch.record_count() for batch in wanted]
        first = end
    if compression is None and sum(counts) < 30:
        some = [headers[end - count : end] if with_headers else None for count, end in zip(counts, to.values())]
        parts = [rows[end - count : end] for count, end in zip(counts, to.values())]
        wanted = [built(part, transactional, None, 6000, headers=own) for part, own in zip(parts, some) if part]
        assert [[bytes(batch._build()) for batch in batches] for batches in told.values()] == wanted


@pytest.mark.parametrize("extra", [-1, 0])
def test_batches_of_several_partitions_are_filled_to_the_last_byte(extra):
    rows = [(b"k", b"v" * 50)] * 70
    (whole,) = written(rows)
    keys, values = (Spans.of(column) for column in zip(*rows * 2))
    to = {("t", 0): 70, ("t", 1): 140}
    told = write_batches(Rows(keys, values), NOW, to=to, transactional=False, max_bytes=whole.size() + extra)
    counts = [[batch.record_count() for batch in batches] for batches in told.values()]
    assert counts == ([[70], [70]] if extra == 0 else [[69, 1], [69, 1]])


def test_sealing_a_batch_leaves_those_beside_it_as_they_are():
    rows, _, to = shares([5, 6, 7])
    keys, values = (Spans.of([row[i] for row in rows]) for i in (0, 1))
    batches = [batch for (batch,) in write_batches(Rows(keys, values), NOW, to=to, transactional=True).values()]
    for number in (1, 0, 2, 1):
        batches[number]._set_producer_state(number, 1, 10 + number)
    bounds = [0, *to.values()]
    for number, batch in enumerate(batches):
        some = rows[bounds[number] : bounds[number + 1]]
        assert [bytes(batch._build())] == built(some, True, None, 900_000, (number, 1, 10 + number))


def test_a_record_above_the_limit_is_refused_with_its_partition():
    rows = [(b"k", b"v")] * 6
    rows[4] = (b"k", b"x" * MAX_RECORD_BYTES)
    keys, values = (Spans.of(column) for column in zip(*rows))
    for max_bytes in (900_000, 2_000_000):
        with pytest.raises(InputError, match=r"a record of 1,000,0\d\d bytes for t\[1\] is above the limit"):
            to = {("t", 0): 4, ("t", 1): 5, ("t", 2): 6}
            write_batches(Rows(keys, values), NOW, to=to, transactional=False, max_bytes=max_bytes)


@pytest.mark.parametrize("ends", [[], [2], [4], [2, 1, 3], [2, 4], [-1, 3]])
def test_partitions_must_share_all_rows_in_order(ends):
    with pytest.raises(InputError, match="partitions that end at rows"):
        to = {("t", number): end for number, end in enumerate(ends)}
        write_batches(Rows(Spans.none(3), Spans.of([b"v"] * 3)), NOW, to=to, transactional=False)
