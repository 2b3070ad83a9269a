"""Slices of several partitions decoded at one go give the batches that each gives by itself."""

from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
import polars as pl
import pytest
from record_bytes import batch_of

from headrace import Events, Labels, Pipeline, Predictions, category, count, cross, mean, numeric
from headrace.connectors.record_batches import RecordBatches, scan, unpack, unpack_all
from headrace.connectors.records import Fetched, Record
from headrace.models import FTRL, LogisticRegression
from headrace.stream.decode import Batch, Decoder
from headrace.stream.in_hand import InHand
from headrace.stream.slices import END_OF_STREAM, Piece, Slice, Slices

T0 = 1_700_000_000
MARK = ((END_OF_STREAM, None),)


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str | None = "none"
    user: int | None = None
    price: float = 1.5
    code: str | None = None
    day: str = "unknown"


class Sale(msgspec.Struct):
    id: str
    time: float
    paid: float | None
    rate: str = "0"


PIPELINE = Pipeline(
    name="joint",
    events=Events("visits", Visit, key="id", time="time", unit="s"),
    labels=Labels(
        "sales", Sale, key="id", time="time", unit="s", within="1h",
        value=(pl.col("paid") > 2) | (pl.col("rate").cast(pl.Float64) > 1),
    ),
    features=[
        numeric("price"), numeric(pl.col("price").log1p() + pl.col("user").fill_null(3), name="mixed"),
        numeric(pl.col("code").cast(pl.Float64), name="code"), category("site"), category("user"),
        cross("site", pl.col("day").str.slice(0, 2).alias("d2")), category(pl.col("site").str.to_uppercase(), name="upper"),
        category(pl.col("user") % 7, name="week"), count(by=["site", "day"], over="1h"), mean("price", by="site", over="1h"),
        mean("paid", by="user", over="1h"),
    ],
    model=LogisticRegression(FTRL()),
    predictions=Predictions("scores", headers=True),
)  # fmt: skip

ODD = [
    b"", b"{", b'{"id":1,"time":1}', b'{"id":"a"}', b'{"id":"a","id":"b","time":1}', b'{"id":"a\\n","time":2}',
    b'{"id":"a","time":1,"price":null}', b'{"id":"a","time":99999999999999}', None, b'{"id":null,"time":7,"site":null}',
    b'{"id":"a","time":1,"user":123456789012345678901234}', b'{"id":"a","time":1,"code":"poison"}', b'{"id":"a","time":NaN}',
    b'{"id":"' + b"k" * 100_001 + b'","time":1}', '{"id":"schön","time":1e9,"site":"Zürich","day":"日本"}'.encode(),
    b'{"id":"a","time":1.7e9,"paid":3,"rate":"poison"}', b'{"id":"a","time":1.7e9,"paid":null}', b'{"id":"a","time":5,"paid":NaN}',
]  # fmt: skip

ROLES = ["events", "labels"]


def rows(rng: np.random.Generator, size: int, odd: Sequence[bytes | None], headers: bool = True) -> list[Record]:
    """Records of both topics: good ones, with these among them; offsets and times begin anew in each partition."""
    values: list[bytes | None] = []
    for i in range(size):
        row = {"id": f"v{i % 9}", "time": T0 + 100 * rng.random(), "price": rng.normal(), "paid": rng.normal(2)}
        if i % 3:
            row |= {"user": int(rng.integers(-5, 2**62)), "code": f"{i}.5", "site": ["a", "Zürich", None][i % 5 % 3]}
        values.append(msgspec.json.encode(row))
    for place, value in zip(rng.permutation(size), odd, strict=False):
        values[place] = value
    first = int(rng.integers(0, 50))
    records = [Record(first + 3 * i, T0 * 1000 + i, b"k%d" % i if i % 4 else None, v) for i, v in enumerate(values)]
    for i in range(0, size if headers else 0, 5):
        records[i] = records[i]._replace(
            headers=(("trace", b"%d" % i), *MARK[: i % 2], ("odd", END_OF_STREAM.encode()))
        )
    return records


def partitions(case: str) -> list[list[Record]]:
    rng = np.random.default_rng(5)
    return {
        "all that is odd": [rows(rng, n, rng.permutation(np.array(ODD, object)).tolist()) for n in (40, 33, 60, 29)],
        "all is good": [rows(rng, n, (), headers=False) for n in (10, 1, 12)],
        "empty ones": [[], rows(rng, 12, ()), [], [], rows(rng, 9, ODD[:3]), []],
        "nothing": [[], []],
        "marks alone": [rows(rng, 7, ()), [Record(4, 0, None, b"", MARK), Record(5, 0, b"", None, MARK)], rows(rng, 3, ())],
        "bad alone": [rows(rng, 7, ()), [Record(4, 0, None, b"x")], rows(rng, 3, ()), [Record(0, 0, None, None)]],
        "one": [rows(rng, 30, ODD)],
    }[case]  # fmt: skip


CASES = ["all that is odd", "all is good", "empty ones", "nothing", "marks alone", "bad alone", "one"]


def runs_of(records: list[Record], partition: int) -> list[RecordBatches | list[Record]]:
    """As fetched: in two runs, the first of two record batches, one of them compressed."""
    parts = [part for part in (records[:3], records[3:5], records[5:]) if part]
    raws = [batch_of(part, codec) for part, codec in zip(parts, (0, 1, 0), strict=False)]
    wires = [raw for raw in (b"".join(raws[:2]), b"".join(raws[2:])) if raw]
    return [RecordBatches("visits", partition, raw, scan(raw, 0, 0, 1 << 30).batches) for raw in wires]


def told(batch: Batch) -> dict[str, object]:
    """All of a batch, as it can be compared."""
    found: dict[str, object] = {}
    for name in Batch.__slots__:
        value = getattr(batch, name)
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous and value.flags.writeable, name
            value = value.dtype.str, value.shape, value.tobytes()
        elif name in ("keys", "record_keys", "headers") and value is not None:
            value = list(value)
        found[name] = value
    return found


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "strict"])
@pytest.mark.parametrize("plain", [True, False], ids=["records", "batches"])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_that_each_partition_gives_alone(case, role, plain, fast):
    decoder = Decoder(PIPELINE, role, fast=fast)
    parts = [([records] if plain else runs_of(records, 2 + p)) for p, records in enumerate(partitions(case))]
    pieces = [Piece(role, 2 + p, 10 * p, 1000 + p) for p in range(len(parts))]
    together = decoder.decode_all(Slices(pieces, *unpack_all(parts)))
    alone = [decoder.decode(Slice(*piece, unpack(part))) for piece, part in zip(pieces, parts, strict=True)]
    assert len(together) == len(alone)
    for piece, joint, single in zip(pieces, together, alone, strict=True):
        a, b = told(joint), told(single)
        for name, value in b.items():
            assert a[name] == value, (name, piece)
        offsets = [letter.record.offset for letter in joint.dead]
        assert offsets == sorted(offsets) and {letter.partition for letter in joint.dead} <= {piece.partition}


@pytest.mark.parametrize("role", ROLES)
def test_cases_hold_what_they_are_named_for(role):
    decoder = Decoder(PIPELINE, role)
    parts = partitions("all that is odd")
    pieces = [Piece(role, p, 0, 1000) for p in range(len(parts))]
    batches = decoder.decode_all(Slices(pieces, *unpack_all([[part] for part in parts])))
    assert all(len(batch.dead) > 3 and batch.marks and len(batch) > 3 for batch in batches)
    assert sum("an expression of the pipeline raised" in letter.reason for b in batches for letter in b.dead) >= 3
    assert len({batch.clock[0] for batch in batches}) > 1
    assert all((np.diff(batch.clock) >= 0).all() and (batch.clock >= batch.time).all() for batch in batches)


@pytest.mark.parametrize("fast", [True, False])
def test_a_record_on_which_the_expression_of_the_label_raises_is_a_dead_letter(fast):
    values = [b'{"id":"a","time":1,"paid":3}', b'{"id":"a","time":1,"paid":3,"rate":"poison"}']
    records = [Record(i, T0 * 1000, None, value) for i, value in enumerate(values)]
    batch = Decoder(PIPELINE, "labels", fast=fast).decode(Slice("labels", 0, 0, 2, records))
    ((at, reason),) = [(letter.record.offset, letter.reason) for letter in batch.dead]
    assert (at, batch.offset.tolist()) == (1, [0])
    assert reason.startswith("an expression of the pipeline raised InvalidOperationError")


def test_records_of_partitions_are_unpacked_into_one_table():
    parts = partitions("empty ones")
    expected = [record for part in parts for record in part]
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    on_wire = [runs_of(part, p) for p, part in enumerate(parts)]
    for given in (on_wire, [[part] for part in parts], [on_wire[1], [parts[1]], [*on_wire[4], parts[1]]]):
        table, begins = unpack_all(given)
        if given[0] is on_wire[1]:
            assert table.records() == [*parts[1], *parts[1], *parts[4], *parts[1]]
            assert begins == [0, 12, 24, 45]
        else:
            assert (table.records(), begins) == (expected, ends)
    assert unpack_all([])[1] == [0]


def test_records_before_the_wanted_offset_belong_to_no_partition():
    raw = [batch_of([Record(at, 0, b"%d" % at, None) for at in range(6)]) for _ in range(3)]
    wanted = (4, 9, 0)
    parts = [[RecordBatches("t", p, raw[p], scan(raw[p], 0, wanted[p], 99).batches)] for p in range(3)]
    table, begins = unpack_all(parts)
    assert (table.offset.tolist(), begins) == ([4, 5, 0, 1, 2, 3, 4, 5], [0, 2, 2, 8])


def test_an_expression_is_evaluated_once_for_all_partitions(monkeypatch):
    decoder = Decoder(PIPELINE, "events")
    parts = partitions("all is good")
    pieces = [Piece("events", p, 0, 1000) for p in range(len(parts))]
    slices = Slices(pieces, *unpack_all([[part] for part in parts]))
    selects = []
    select = pl.DataFrame.select_seq
    monkeypatch.setattr(pl.DataFrame, "select_seq", lambda self, *of: selects.append(len(self)) or select(self, *of))
    batches = decoder.decode_all(slices)
    assert selects == [sum(map(len, parts))] == [sum(map(len, batches))]


def test_a_record_on_which_an_expression_raises_costs_few_selects(monkeypatch):
    """Tried row by row, one record of one partition would make all partitions pay."""
    rng = np.random.default_rng(6)
    parts = [rows(rng, 500, ODD[11:12] if p == 2 else (), headers=False) for p in range(4)]
    pieces = [Piece("events", p, 0, 2000) for p in range(4)]
    slices = Slices(pieces, *unpack_all([[part] for part in parts]))
    selects = []
    select = pl.DataFrame.select_seq
    monkeypatch.setattr(pl.DataFrame, "select_seq", lambda self, *of: selects.append(len(self)) or select(self, *of))
    batches = Decoder(PIPELINE, "events").decode_all(slices)
    assert [len(batch.dead) for batch in batches] == [0, 0, 1, 0]
    assert len(selects) < 40


def test_runner_takes_all_partitions_at_one_go_up_to_a_bound(monkeypatch):
    monkeypatch.setattr("headrace.stream.in_hand.SLICE_RECORDS", 10)
    hand = InHand()
    sizes = {("events", 0): [3, 1], ("events", 3): [2], ("events", 1): [6, 3, 9, 9], ("events", 2): [1]}
    at = 0
    for partition, of in sizes.items():
        hand.runs[partition] = deque()
        at = 100 * partition[1]
        for size in of:
            records = [Record(at + i, 0, b"%d" % partition[1], b"{}") for i in range(size)]
            hand.runs[partition].append(Fetched("t", partition[1], at, at + size, records, 0, 0, 0))
            at += size
    waiting = list(sizes)
    first = hand.take(waiting)
    assert first.pieces == [("events", 0, 0, 4), ("events", 3, 300, 302), ("events", 1, 100, 118)]
    assert list(first.begins) == [0, 4, 6, 24]
    assert first.records.offset.tolist() == [*range(4), 300, 301, *range(100, 118)]
    assert waiting == [("events", 2)] and len(hand.runs["events", 1]) == 1
    assert hand.take(waiting).pieces == [("events", 2, 200, 201)] and waiting == []
