"""The fast path and the plain one: the same batches, the same records, to the byte."""

import math
import random
from datetime import UTC, datetime

import msgspec
import numpy as np
import polars as pl
import pytest
from fuzz.json_rows import Journey, draw

from headrace import Events, Labels, Pipeline, Predictions, category, count, cross, mean, numeric
from headrace.connectors.record_table import headers_of
from headrace.models import FTRL, LogisticRegression
from headrace.stream.decode import Batch, Decoder
from headrace.stream.encode import Served, encode_predictions
from headrace.stream.fast_encode import prediction_rows
from headrace.stream.processed import Predicted
from headrace.stream.slices import END_OF_STREAM, Record, Slice

T0 = 1_700_000_000


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str | None = "none"
    user: int | None = None
    price: float = 1.5
    new: bool | None = None
    since: datetime | None = None
    note: str = ""


class Sale(msgspec.Struct):
    id: str
    at: datetime
    paid: float | None
    gone: bool = False


PIPELINE = Pipeline(
    name="both",
    events=Events("visits", Visit, key="id", time="time", unit="s"),
    labels=Labels("sales", Sale, key="id", time="at", value=(pl.col("paid") > 2) & ~pl.col("gone"), within="1h"),
    features=[
        numeric("price"), numeric(pl.col("price").log1p() + pl.col("user").fill_null(3), name="mixed"),
        category("site"), category("user"), category("new"), cross("site", pl.col("note").str.slice(0, 2).alias("n2")),
        category(pl.col("site").str.to_uppercase(), name="upper"), numeric(pl.col("since").dt.hour(), name="hour"),
        count(by="site", over="1h"), mean("price", by=["site", "new"], over="1h"), mean("paid", by="user", over="1h"),
    ],
    model=LogisticRegression(FTRL()),
    predictions=Predictions("scores"),
)  # fmt: skip

ODD = [
    b"", b"{", b"null", b"[]", b'{"id":1,"time":1}', b'{"time":1}', b'{"id":"a"}', b'{"id":"a","time":"x"}',
    b'{"id":"a\\u00e9\\n","time":1}', b'{"id":"a","id":"b","time":1}', b'{"id":"a","time":1e400}', b"\xff",
    b'{"id":"\xff","time":1}', b'{"id":"a","time":12345678901234567890}', b'{"id":"a","time":1,"price":null}',
    b'{"id":"a","time":1,"user":123456789012345678901234}', b'{"id":"a","time":1,"user":-0,"site":null}',
    b'{"id":"a","time":1,"user":2.0,"new":true,"x":{"y":[1,2,{"z":null}]}}', b'{"id":"a","time":1,"price":-0.0}',
    '{"id":"schön","time":1,"site":"Zürich","note":"日本"}'.encode(), b' { "time" : 1.5 , "id" : "" } ',
    b'{"id":"a","time":1,"since":"2024-02-29T23:59:59.9999999+05:30"}', b'{"id":"a","time":1,"since":"2024-02-30T00:00:00Z"}',
    b'{"id":"a","time":1,"price":0.1234567890123456789012345}', b'{"id":"a","time":1,"price":5e-324}',
    b'{"id":"' + b"k" * 200_000 + b'","time":1}', b'{"id":"a","time":1} x', b'{"id":"a","time":99999999999999}',
]  # fmt: skip
ODD_SALES = [
    b'{"id":"a","at":"2023-11-14T22:13:20Z","paid":null}', b'{"id":"a","at":"2023-11-14T22:13:20","paid":1}',
    b'{"id":"a","at":"2023-11-14T22:13:20Z","paid":3,"gone":true}', b'{"id":"a","at":1,"paid":3}', b"", b"{}",
]  # fmt: skip


def visit(rng: np.random.Generator, i: int) -> bytes:
    row = {
        "id": f"v{i}",
        "time": T0 + i / 3,
        "site": rng.choice(["a", "bb", "Zürich", None]),
        "price": rng.normal(),
    }
    if i % 3:
        row |= {"user": int(rng.integers(-5, 2**62)), "new": bool(i % 2), "note": "x" * (i % 40)}
    if i % 5:
        row["since"] = datetime.fromtimestamp(T0 + i * 7.25, UTC)
    return msgspec.json.encode(row)


def sale(rng: np.random.Generator, i: int) -> bytes:
    return msgspec.json.encode({"id": f"v{i}", "at": datetime.fromtimestamp(T0 + i, UTC), "paid": rng.normal(2)})


def slice_of(role: str, rows: int = 300) -> Slice:
    rng = np.random.default_rng(1)
    make, odd = (visit, ODD) if role == "events" else (sale, ODD_SALES)
    values = [make(rng, i) for i in range(rows)]
    for place, value in zip(rng.permutation(rows), odd, strict=False):
        values[place] = value
    records = [Record(100 + 2 * i, T0 * 1000 + i, b"k%d" % i if i % 4 else None, v) for i, v in enumerate(values)]
    records[7] = records[7]._replace(value=None)
    records[9] = records[9]._replace(headers=(("trace", b"1"), (END_OF_STREAM, None)))
    records[11] = records[11]._replace(headers=(("trace", b"1"),))
    return Slice(role, 2, 100, 100 + 2 * rows, records)  # type: ignore[arg-type]


def told(batch: Batch) -> dict[str, object]:
    """All of a batch, as it can be compared."""
    columns = ("offset", "time", "clock", "key_hash", "numeric", "categories", "groups", "values", "y")
    return {name: getattr(batch, name).tobytes() for name in columns} | {
        "keys": list(batch.keys), "record_keys": list(batch.record_keys), "dead": batch.dead, "marks": batch.marks,
        "from": (batch.role, batch.partition, batch.start, batch.next),
    }  # fmt: skip


@pytest.mark.parametrize("role", ["events", "labels"])
def test_batches_are_equal_to_the_bit_whatever_is_in_the_records(role):
    fast, plain = Decoder(PIPELINE, role), Decoder(PIPELINE, role, fast=False)
    s = slice_of(role)
    assert fast._flat is not None
    flagged = fast._flat.decode(fast_values(s)).flagged
    assert 0 < np.count_nonzero(flagged) < 40, "or only one of the two was looked at"
    a, b = told(fast.decode(s)), told(plain.decode(s))
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value == b[name], name
    assert len(a["dead"]) > 3 and a["marks"] == [118]  # type: ignore[arg-type]


def test_batches_of_nested_records_are_equal_to_the_bit_also_where_they_are_spoiled():
    pipeline = Pipeline(
        name="journeys",
        events=Events("journeys", Journey, key="person.id", time="vector.1", unit="s", ahead="1000000d"),
        features=[
            numeric("vector.0"), numeric("person.age"), numeric(pl.col("person.home.lon") + pl.col("empty.lon"), name="sum"),
            category("person.home.name"), category("level"), category("mixed.2"), cross("stars", "at.level"),
            category(pl.col("mixed.0").str.to_uppercase() + pl.col("person.places.1.level"), name="text"),
            numeric(pl.col("mixed.3.0").dt.hour(), name="hour"), count(by=["mixed.1", "empty.level"], over="1h"),
        ],
        model=LogisticRegression(FTRL()),
        predictions=Predictions("scores"),
    )  # fmt: skip
    values, _ = draw(Journey, 4_000, random.Random(21))
    records = [Record(i, T0 * 1000, None, value) for i, value in enumerate(values)]
    fast, plain = (Decoder(pipeline, "events", fast=fast) for fast in (True, False))
    assert fast._flat is not None
    s = Slice("events", 0, 0, len(records), records)
    a, b = told(fast.decode(s)), told(plain.decode(s))
    for name, value in a.items():
        assert value == b[name], name
    assert len(records) > 4 * len(a["keys"]) > 2_000, "both kinds are among them"  # type: ignore[arg-type]


def fast_values(s: Slice):
    from headrace.connectors.record_table import RecordTable

    return RecordTable.of(s.records).value


def test_slice_without_records_gives_an_empty_batch():
    for fast in (True, False):
        assert len(Decoder(PIPELINE, "events", fast=fast).decode(Slice("events", 0, 5, 9, []))) == 0


def test_prediction_records_are_equal_to_the_byte_however_the_pieces_are_cut():
    rng = np.random.default_rng(2)
    batch = Decoder(PIPELINE, "events").decode(slice_of("events"))
    served = Served("both", 12, 0.25)
    out = np.concatenate([[0, 1, math.nan, 1e-30], rng.random(len(batch) - 4)]).astype(np.float32)[:, None]
    out[2] = 0.3
    cuts = [0, *sorted(rng.choice(np.arange(1, len(batch)), 9, replace=False).tolist()), len(batch)]
    pieces = [Predicted(batch, a, b, out[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert_same_records(batch, pieces, served)


def assert_same_records(batch, pieces, served):
    for given in (pieces, pieces[:3] + pieces[5:], pieces[:1]):  # some rows were never predicted
        rows, ends = prediction_rows({batch.partition: given}, "visits", served)
        assert ends == {batch.partition: len(rows)}
        expected = [record for piece in given for record in encode_predictions(piece, "visits", served)]
        assert list(rows.keys) == [key for key, _, _, _ in expected]
        assert list(rows.values) == [value for _, value, _, _ in expected]
        headers = [()] * len(rows) if rows.headers is None else [headers_of(wire) for wire in rows.headers]
        assert headers == [headers for _, _, headers, _ in expected]


def test_predictions_carry_the_headers_of_their_events_where_the_declaration_says_so():
    s = slice_of("events")
    told = (("traceparent", b"00-1-2-01"), ("odd", END_OF_STREAM.encode()), ("ü", None), ("", b"\xff"))
    records = [r._replace(headers=(*r.headers, *told[: i % 5])) for i, r in enumerate(s.records)]
    records[20] = records[20]._replace(headers=(("large", bytes(200_001)),))
    s = s._replace(records=records)
    carrying = Pipeline(**{
        name: getattr(PIPELINE, name) for name in ("name", "events", "labels", "features", "model")
    }, predictions=Predictions("scores", headers=True))  # fmt: skip
    batches = [Decoder(carrying, "events", fast=fast).decode(s) for fast in (True, False)]
    by_offset = {r.offset: r.headers for r in records}
    for batch in batches:
        assert batch.headers is not None and batch.marks == [118], "the mark's name alone makes a mark"
        assert [headers_of(wire) for wire in batch.headers] == [by_offset[at] for at in batch.offset.tolist()]
        (letter,) = [letter for letter in batch.dead if letter.record.offset == 140]
        assert letter.reason.startswith("the headers have 200,0") and letter.reason.endswith("at most 200,000")
        out = np.full((len(batch), 1), 0.5, np.float32)
        assert_same_records(
            batch, [Predicted(batch, a, a + 7, out[a : a + 7]) for a in range(0, 70, 7)], Served("both", 1, None)
        )
    assert Decoder(PIPELINE, "events").decode(s).headers is None
