"""Record batches taken apart by us and by aiokafka: the same records, or an error that says where."""

import re
import zlib

import numpy as np
import pytest
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st
from record_bytes import FEW, batch_of, put, seal

from headrace.connectors import compression
from headrace.connectors.record_batches import (
    HEAD,
    LOG_APPEND_TIME,
    MOST_BATCHES,
    DamagedRecords,
    RecordBatches,
    records_of,
    scan,
    unpack,
    unpack_all,
)
from headrace.connectors.record_table import RecordTable, headers_of
from headrace.connectors.records import Record

CODECS = {"plain": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def run_of(raw: bytes, wanted: int = 0) -> RecordBatches:
    found = scan(raw, 0, wanted, 1 << 30)
    if found.damage or found.is_old:
        raise DamagedRecords(found.damage or "it is of an old format")
    return RecordBatches("t", 3, raw, found.batches)


def read(raw: bytes, wanted: int = 0) -> list[Record]:
    return unpack([run_of(raw, wanted)]).records()


def reference(raw: bytes) -> list[Record]:
    batches, records = MemoryRecords(raw), []
    while batches.has_next():
        batch = batches.next_batch()
        assert batch.validate_crc()
        records += [Record(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in batch]
    return records


BYTES = st.none() | st.binary(max_size=200)
RECORDS = st.lists(
    st.tuples(
        st.integers(1, 300),
        st.integers(-1, 1 << 42),
        BYTES,
        BYTES,
        st.just(()) | st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=30,
)


def at_offsets(rows: list[tuple], first: int) -> list[Record]:
    offsets = first + np.cumsum([row[0] for row in rows])
    return [Record(int(offset), *row[1:]) for offset, row in zip(offsets, rows)]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_records_are_read_whole(codec: int) -> None:
    raw = batch_of(FEW, codec)
    assert read(raw) == reference(raw) == FEW
    table = unpack([run_of(raw)])
    assert [table.record(i) for i in range(len(table))] == FEW
    assert table.has_headers.tolist() == [False, True, False, False, True]
    assert [headers_of(wire) for wire in table.headers] == [record.headers for record in FEW]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(RECORDS, st.sampled_from(list(CODECS.values()))), min_size=1, max_size=4), st.data())
def test_any_records_are_those_that_aiokafka_reads(parts: list, data: st.DataObject) -> None:
    raws, first = [], 5
    for rows, codec in parts:
        records = at_offsets(rows, first)
        raws.append(batch_of(records, codec))
        first = records[-1].offset
    expected = reference(b"".join(raws))
    assert unpack([run_of(raw) for raw in raws]).records() == expected, "a run per batch"
    wanted = data.draw(st.integers(0, first + 1))
    assert read(b"".join(raws), wanted) == [record for record in expected if record.offset >= wanted], "one run"


def test_runs_of_both_kinds_join() -> None:
    raw = batch_of(FEW)
    later = [Record(100, 5, b"k", b"v", (("h", b"x"),)), Record(101, 6, None, None)]
    assert records_of([run_of(raw, wanted=12), later]) == [*FEW[3:], *later]
    assert unpack([run_of(raw, wanted=12), later]).records() == [*FEW[3:], *later]
    assert unpack([]).records() == []
    assert unpack([run_of(b"")]).records() == []


def test_the_length_of_a_run_is_a_bound_of_its_records() -> None:
    run = run_of(batch_of(FEW) + batch_of([Record(91, 0, b"", b"")]), wanted=90)
    assert len(run) == 6
    assert len(unpack([run])) == 2


def test_a_broker_may_set_the_time() -> None:
    raw = put(batch_of(FEW), 21, LOG_APPEND_TIME, 2)
    assert [record.timestamp for record in read(raw)] == [1_700_000_000_002] * 5
    assert read(raw) == reference(raw)


def test_a_compacted_batch_keeps_its_last_offset() -> None:
    raw = put(batch_of(FEW[:2]), 23, 20, 4)
    assert read(raw) == FEW[:2]
    empty = put(put(batch_of(FEW[:1])[:HEAD], 57, 0, 4), 8, HEAD - 12, 4)
    assert read(empty) == []


def test_a_batch_that_is_not_whole_is_left() -> None:
    first, second = batch_of(FEW[:2]), batch_of(FEW[2:])
    for end in range(len(second)):
        found = scan(first + second[:end], 0, 0, 100)
        assert (len(found.batches), found.at, found.damage) == (1, len(first), None), end


def test_a_scan_ends_where_it_is_told() -> None:
    raw = b"".join([batch_of([Record(offset, 0, None, b"v")]) for offset in range(10)])
    some = scan(raw, 0, 0, 3)
    assert len(some.batches) == 3
    rest = scan(raw, some.at, 0, 1 << 30)
    assert len(rest.batches) == 7
    assert rest.at == len(raw)
    found = unpack([RecordBatches("t", 0, raw, rest.batches)])
    assert found.offset.tolist() == list(range(3, 10))
    many = b"".join([batch_of([Record(offset, 0, None, b"v")]) for offset in range(MOST_BATCHES + 5)])
    assert len(scan(many, 0, 0, 1 << 30).batches) == MOST_BATCHES


def test_snappy_may_come_in_the_frame_of_java() -> None:
    """aiokafka writes it; a single raw block is what librdkafka writes."""
    import cramjam

    raw = batch_of(FEW, CODECS["snappy"])
    assert raw[HEAD:].startswith(b"\x82SNAPPY\x00")
    block = bytes(cramjam.snappy.compress_raw(batch_of(FEW)[HEAD:]))
    bare = put(raw[:HEAD] + block, 8, HEAD - 12 + len(block), 4)
    assert read(bare) == reference(bare) == FEW
    many = [Record(i, 0, None, b"%d" % i * 30) for i in range(3000)]
    framed = batch_of(many, CODECS["snappy"])
    assert framed.count(b"\x82SNAPPY") == 1
    assert read(framed) == many, "many blocks"


# a table of plain records


@settings(deadline=None)
@given(RECORDS)
def test_a_table_holds_the_records_it_is_made_of(rows: list[tuple]) -> None:
    records = at_offsets(rows, 0)
    table = RecordTable.of(records)
    assert table.records() == [table.record(i) for i in range(len(table))] == records
    assert table.has_headers.tolist() == [bool(record.headers) for record in records]
    assert table.take(slice(1, None)).records() == records[1:]
    mask = table.offset % 2 == 0
    assert table.take(mask).records() == [record for record in records if record.offset % 2 == 0]


def test_a_table_may_be_empty() -> None:
    assert RecordTable.of([]).records() == []


def test_a_headers_name_may_be_no_text() -> None:
    raw = batch_of([Record(0, 0, None, None, (("abc", b"v"),))])
    assert read(seal(raw.replace(b"abc", b"a\xffc")))[0].headers == (("a\ufffdc", b"v"),)


# damage


def outcome(raw: bytes) -> list[Record] | str:
    try:
        return read(raw)
    except DamagedRecords as error:
        return str(error)


def reads_as_aiokafka_or_says_why(raw: bytes) -> None:
    ours = outcome(raw)
    if isinstance(ours, str):
        assert ours
        return
    try:
        theirs = reference(raw)
    except Exception:  # it takes the attributes of a record for a varint, and a header's name must be text
        return
    assert ours == theirs


def twin(data: bytes, count: int, span: int) -> list[Record]:
    """Records as the format has them, in plain Python; raises ValueError and IndexError for damage."""
    at = 0

    def expect(is_so: bool) -> None:
        if not is_so:
            raise ValueError(f"damaged before {at}")

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128 or shift == 70:
                return ((value >> 1 & (1 << 63) - 1) ^ -(value & 1)) if shift < 70 else -(1 << 62)

    def text() -> bytes | None:
        nonlocal at
        size = number()
        expect(size <= stop - at)
        at += max(size, 0)
        return None if size < 0 else data[at - size : at]

    records, before = [], -1
    for _ in range(count):
        size = number()
        expect(0 <= size <= len(data) - at)
        stop, at = at + size, at + 1
        time, offset, key, value = number(), number(), text(), text()
        headers = []
        expect((many := number()) >= 0)
        for _ in range(many):
            name = text()
            expect(name is not None)
            headers.append(((name or b"").decode(errors="replace"), text()))
        expect(at == stop and before < offset <= span)
        before = offset
        records.append(Record(offset, time, key, value, tuple(headers)))
    expect(at == len(data))
    return records


@settings(deadline=None, max_examples=1000)
@given(st.lists(RECORDS, min_size=1, max_size=1), st.data())
def test_damaged_records_are_an_error_where_the_format_says_so(rows: list[list[tuple]], data: st.DataObject) -> None:
    records = [Record(*row) for row in at_offsets([(row[0], min(row[1], 99), *row[2:]) for row in rows[0]], 0)]
    whole = batch_of([Record(0, 0, None, b""), *records])
    body = bytearray(whole[HEAD:])
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, max(len(body) - 1, 0)))
        if data.draw(st.booleans()):
            body[at : at + 1] = bytes([data.draw(st.integers(0, 127))])  # no varint grows: they are another test's
        else:
            del body[at : at + data.draw(st.integers(1, 3))]
    count = len(records) + 1 + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    span = max(records[-1].offset + data.draw(st.sampled_from([0, 0, -1, 1])), count - 1)
    raw = put(put(put(whole[:HEAD] + bytes(body), 57, count, 4), 23, span, 4), 8, HEAD - 12 + len(body), 4)
    try:
        expected: list[Record] | str = twin(bytes(body), count, span)
    except (ValueError, IndexError):
        expected = "damaged"
    ours = outcome(raw)
    assert ("damaged" if isinstance(ours, str) else ours) == expected


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_no_flipped_bit_goes_unnoticed(codec: int) -> None:
    raw = batch_of(FEW, codec)
    for at in range(17, len(raw)):
        for bit in range(8):
            broken = bytearray(raw)
            broken[at] ^= 1 << bit
            assert isinstance(outcome(bytes(broken)), str), (at, bit)


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_bytes_under_a_right_checksum_may_be_anything(codec: int) -> None:
    raw = batch_of(FEW, codec)
    for at in range(len(raw)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, raw[at] ^ 1, raw[at] ^ 0x40):
            broken = bytearray(raw)
            broken[at] = value
            reads_as_aiokafka_or_says_why(seal(broken))


@settings(deadline=None, max_examples=500)
@given(RECORDS, st.sampled_from(list(CODECS.values())), st.data())
def test_nothing_worse_than_the_error_comes_of_damage(rows: list[tuple], codec: int, data: st.DataObject) -> None:
    raw = bytearray(batch_of(at_offsets(rows, 0), codec))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            raw[at] = data.draw(st.integers(0, 255))
        else:
            del raw[at : at + data.draw(st.integers(1, 20))]
    if len(raw) > HEAD and data.draw(st.booleans()):
        raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    outcome(seal(raw) if len(raw) > 21 else bytes(raw))


@pytest.mark.parametrize("headers", [(), (("a", b"1"),)])
def test_a_record_that_is_longer_than_its_parts_is_an_error(headers: tuple) -> None:
    raw = batch_of([Record(7, 0, b"k", b"v", headers)])
    longer = put(raw[:HEAD] + bytes([raw[HEAD] + 2]) + raw[HEAD + 1 :] + b"\0", 8, len(raw) - 11, 4)
    with pytest.raises(DamagedRecords, match="its records do not lie in it"):
        read(longer)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=200), st.integers(0, 40))
def test_noise_in_the_place_of_records_is_an_error(noise: bytes, count: int) -> None:
    head = batch_of(FEW)[:HEAD]
    raw = put(put(head + noise, 57, count, 4), 23, 1 << 20, 4)
    raw = put(raw, 8, HEAD - 12 + len(noise), 4)
    reads_as_aiokafka_or_says_why(raw)


@pytest.mark.parametrize("size", [-1, 0, 4, 5, 48])
def test_a_size_that_cannot_be_is_an_error(size: int) -> None:
    raw = batch_of(FEW)
    assert scan(raw[:8] + size.to_bytes(4, "big", signed=True) + raw[12:], 0, 0, 100).damage
    alone = raw[:8] + size.to_bytes(4, "big", signed=True) + raw[12 : 12 + max(size, 0)]
    assert scan(alone, 0, 0, 100).damage


def test_the_error_says_where_and_why() -> None:
    raw = batch_of(FEW)
    broken = bytearray(raw)
    broken[-3] ^= 8
    with pytest.raises(DamagedRecords, match=r"t\[3\]: the record batch at offset 7 is damaged: its checksum is wrong"):
        read(bytes(broken))
    with pytest.raises(DamagedRecords, match=r"offset 7 .*: its records do not lie in it"):
        read(seal(raw[:HEAD] + bytes([raw[HEAD] ^ 2]) + raw[HEAD + 1 :]))
    with pytest.raises(DamagedRecords, match=r"offset 7 .*: it cannot be decompressed: "):
        zipped = batch_of(FEW, CODECS["zstd"])
        read(seal(zipped[:HEAD] + bytes(len(zipped) - HEAD)))
    with pytest.raises(DamagedRecords, match=r"offset 7 .*: it cannot be decompressed: unknown compression 6"):
        read(put(raw, 21, 6, 2))


def test_a_count_is_bounded_before_memory_is_given_to_it() -> None:
    raw = put(put(batch_of(FEW), 23, (1 << 31) - 1, 4), 57, (1 << 31) - 1, 4)
    with pytest.raises(DamagedRecords, match=r"2,147,483,647 records cannot lie in \d+ bytes"):
        read(raw)
    zipped = put(put(batch_of(FEW, 4), 23, (1 << 31) - 1, 4), 57, (1 << 31) - 1, 4)
    with pytest.raises(DamagedRecords, match=r"2,147,483,647 records cannot lie in \d+ bytes"):
        read(zipped)


@pytest.mark.parametrize("codec", list(CODECS.values())[1:], ids=list(CODECS)[1:])
def test_what_is_decompressed_is_bounded(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [Record(0, 0, None, bytes(10_000_000))]
    raw = batch_of(large, codec)
    assert read(raw) == large, "there is room for what is much larger than it came"
    monkeypatch.setattr(compression, "MOST_BYTES", 9_000_000)
    with pytest.raises(DamagedRecords, match=r"cannot be decompressed: .*9,000,000"):
        read(raw)


def test_gzip_may_have_several_members() -> None:
    plain = batch_of(FEW)[HEAD:]
    pieces = [zlib.compress(part, wbits=31) for part in (plain[:50], plain[50:])]
    raw = batch_of(FEW, CODECS["gzip"])[:HEAD] + b"".join(pieces)
    assert read(put(raw, 8, len(raw) - 12, 4)) == FEW


def test_batches_out_of_order_are_an_error() -> None:
    first, second = batch_of(FEW[:2]), batch_of(FEW[1:])
    found = scan(first + second, 0, 0, 100)
    assert len(found.batches) == 1
    assert "lies before the end of the batch before it" in (found.damage or "")


@pytest.mark.parametrize("offsets", [(7, 9, 8, 12), (7, 9, 9, 12), (7, 8, 9, 13)])
def test_records_out_of_order_are_an_error(offsets: tuple[int, ...]) -> None:
    raw = put(batch_of([Record(offset, 0, None, None) for offset in offsets]), 23, 5, 4)
    with pytest.raises(DamagedRecords, match="its records do not lie in it"):
        read(raw)


DAMAGES = {
    "checksum": (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "its checksum is wrong"),
    "count": (lambda raw: put(put(raw, 57, 1000, 4), 23, 2000, 4), "records cannot lie in"),
    "sizes": (lambda raw: seal(raw[:HEAD] + b"\x7e" + raw[HEAD + 1 :]), "do not lie in it"),
    "codec": (lambda raw: put(raw, 21, 1, 2), "cannot be decompressed"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("wrong", range(6))
def test_damage_among_several_partitions_is_reported_where_it_is(damage, why: str, wrong: int) -> None:
    """Six batches: of partition 0 two in a run and one in the next, of 1 none, of 2 and of 3 the rest."""
    firsts = [100, 200, 300, 50, 7, 8000]
    raws = [
        batch_of([record._replace(offset=first + i) for i, record in enumerate(FEW)], codec=4 * (first == 200))
        for first in firsts
    ]
    raws[wrong] = damage(raws[wrong])

    def run(partition: int, *of: int) -> RecordBatches:
        raw = b"".join([raws[i] for i in of])
        return RecordBatches(f"topic-{partition}", partition, raw, scan(raw, 0, 0, 1 << 30).batches)

    parts = [[run(0, 0, 1), run(0, 2)], [run(1)], [run(2, 3)], [run(3, 4), run(3), run(3, 5)]]
    where = (
        f"topic-{[0, 0, 0, 2, 3, 3][wrong]}[{[0, 0, 0, 2, 3, 3][wrong]}]: the record batch at offset {firsts[wrong]:,} "
    )
    with pytest.raises(DamagedRecords, match=re.escape(where)) as raised:
        unpack_all(parts)
    assert why in str(raised.value) or (wrong == 1 and "decompressed" in str(raised.value))
