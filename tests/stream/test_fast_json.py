"""What the fast decoder does not flag, the strict one reads equal to the bit; what is ordinary is not flagged."""

import random
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
import numpy as np
import pytest
from fuzz.json_rows import SCHEMAS, Journey, Order, Trip, differences, draw, mutated, plain_row, spans_between, written
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.spans import Spans
from headrace.stream.fast_json import FlatJson

ORDER = FlatJson(Order, ("count",))
VALID = b'{"id":"a1","amount":1.25,"count":-7,"paid":true,"at":"2013-01-01T05:15:00Z"}'


def flagged(record, plan=ORDER):
    return bool(plan.decode(Spans.of([record])).flagged[0])


def value(plan, name, record):
    """What a record gives for a field, from the columns."""
    rows = plan.decode(Spans.of([b"{}", record]))
    assert not rows.flagged[1]
    j = plan.place[name]
    if name in plan.text and not (plan.text[name] >= 0 and rows.size[plan.text[name], 1] < 0):
        t = plan.text[name]
        return rows.data[rows.start[t, 1] :][: rows.size[t, 1]].tobytes().decode()
    return rows.cells[j, 1] if rows.known[j, 1] else None


# --- the law


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_is_not_flagged_is_equal_to_the_bit(schema):
    values, kinds = draw(schema, 12_000, random.Random(11))
    marks, wrong = differences(FlatJson(schema, SCHEMAS[schema]), schema, values)
    assert wrong == []
    plain = [i for i, kind in enumerate(kinds) if kind in ("plain", "loose") and values.size[i] > 0]
    assert not marks[plain].any()
    assert 0.05 < 1 - marks[[i for i, kind in enumerate(kinds) if kind in ("hostile", "mutated")]].mean() < 0.5


@settings(deadline=None)  # the first one compiles
@given(st.data())
def test_no_change_of_bytes_parts_the_decoders(data):
    schema = data.draw(st.sampled_from(list(SCHEMAS)))
    r = random.Random(data.draw(st.integers(0, 2**32)))
    records = [mutated(written(plain_row(schema, r), r, 0.3), r) for _ in range(20)]
    records.append(data.draw(st.binary(max_size=40)))
    assert differences(FlatJson(schema, SCHEMAS[schema]), schema, Spans.of(records))[1] == []


@settings(deadline=None)  # the first one compiles
@given(
    st.builds(
        Order,
        id=st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\')),
        amount=st.floats(-1e300, 1e300).filter(lambda x: x == 0 or abs(x) > 1e-300),
        count=st.integers(-(2**63), 2**63 - 1),
        at=st.datetimes(timezones=st.sampled_from([UTC]) | st.none()),
        rate=st.none() | st.floats(1e-3, 1e3),
    )
)
def test_what_msgspec_writes_is_not_flagged(order):
    marks, wrong = differences(ORDER, Order, Spans.of([msgspec.json.encode(order)]))
    assert not marks[0]
    assert wrong == []


def test_a_record_that_is_cut_off_is_not_completed_by_what_lies_behind():
    whole = b' {"id":"a1","amount":1.25,"count":-7, "more":[1,{"x":"y"}],"paid":true,"at":"2013-01-01T05:15:00Z","note":null} '
    values = spans_between([whole[:cut] for cut in range(len(whole))], [whole[cut:] for cut in range(len(whole))])
    marks, wrong = differences(ORDER, Order, values)
    assert wrong == []
    assert marks[:-1].all()  # without its last space it is whole
    assert not marks[-1]


def test_a_number_does_not_go_on_behind_its_record():
    assert ORDER.decode(spans_between([VALID[:-1], VALID], [b"}", b"5"])).flagged.tolist() == [True, False]


# --- what is in the columns


def test_a_row_is_the_same_wherever_it_stands_among_others():
    r = random.Random(3)
    values, _ = draw(Trip, 2_000, r)
    plan = FlatJson(Trip)
    order = np.random.default_rng(4).permutation(len(values))
    rows, turned = plan.decode(values), plan.decode(values.take(order))
    assert np.array_equal(rows.flagged[order], turned.flagged)
    sure = ~turned.flagged
    assert np.array_equal(rows.known[:, order][:, sure], turned.known[:, sure])
    numbers = [j for name, j in plan.place.items() if name != "call_type"]
    assert np.array_equal(rows.cells[numbers][:, order][:, sure], turned.cells[numbers][:, sure])
    assert np.array_equal(rows.size[:, order][:, sure], turned.size[:, sure])


def test_absent_fields_take_their_defaults():
    plan = FlatJson(Trip, ("driver_number",))
    record = b'{"driverNumber":5,"pickupLongitude":1}'
    assert value(plan, "pickup_latitude", record) == 1 << 63  # -0.0
    assert value(plan, "call_type", record) == "none yet"
    assert value(plan, "origin_stand", record) == 7
    assert value(plan, "missing_data", record) == 0
    assert value(plan, "began_at", record) == 1372636800 * 10**6
    assert value(plan, "driver_number", record) == "5"


def test_a_default_that_is_made_for_each_row_is_left_to_the_strict_decoder():
    class Made(msgspec.Struct):
        x: int
        y: str = msgspec.field(default_factory=lambda: "now")

    assert flagged(b'{"x":1}', FlatJson(Made))
    assert not flagged(b'{"x":1,"y":"2"}', FlatJson(Made))


def test_a_default_of_another_type_or_not_plain_is_left_to_the_strict_decoder():
    class Loose(msgspec.Struct):
        x: float = 1  # msgspec does not look
        y: str = 'a"b'

    assert flagged(b'{"y":""}', FlatJson(Loose))
    assert flagged(b'{"x":1}', FlatJson(Loose))
    assert not flagged(b'{"x":1,"y":""}', FlatJson(Loose))


def test_flagged_rows_hold_nothing():
    rows = ORDER.decode(Spans.of([VALID, VALID[:-1] + b',"note":"x"}', VALID[:-1] + b',"note":"x"', None, b""]))
    assert rows.flagged.tolist() == [False, False, True, True, True]
    assert rows.size[ORDER.text["note"]].tolist() == [-1, 1, -1, -1, -1]
    assert not rows.known[:, 2:].any()
    assert (rows.size[:, 2:] == -1).all()


def test_no_records_give_no_rows():
    rows = ORDER.decode(Spans.of([]))
    assert rows.cells.shape == (7, 0)
    assert len(rows.flagged) == 0


@pytest.mark.parametrize("zone", ["Z", "", "+00:00", "-05:30", "+23:59"])
def test_moments_are_microseconds_since_the_epoch(zone):
    r = random.Random(8)
    plan = FlatJson(Order)
    days = [
        datetime(r.randrange(2, 9999), 1, 1)
        + timedelta(days=r.randrange(365), microseconds=r.randrange(86_400 * 10**6))
        for _ in range(500)
    ]
    days += [datetime(y, m, d) for y in (4, 1600, 1900, 1970, 2000, 2012, 9996) for m, d in ((2, 28), (3, 1), (12, 31))]
    days += [
        datetime(1600, 2, 29),
        datetime(2012, 2, 29),
        datetime(1, 1, 1),
        datetime(9999, 12, 31, 23, 59, 59, 999_999),
    ]
    records = [VALID.replace(b"2013-01-01T05:15:00Z", (day.isoformat() + zone).encode()) for day in days]
    marks, wrong = differences(plan, Order, Spans.of(records))
    assert not marks.any()
    assert wrong == []


# --- what is flagged, and what may not be


@pytest.mark.parametrize(
    "more",
    [
        *(
            "[]",
            "{}",
            "null",
            '"plain"',
            '"q\\"q"',
            '"é"',
            "1e999",
            "123456789012345678901234567890",
            ' { "a" : [ ] } ',
        ),
        *('[1,[2,{"a":[]}],"x",null,true,false,-1.5e3]', '{"a":{"b":"c\\n"},"d":1}', "[" * 60 + "]" * 60),
    ],
)
def test_unknown_fields_are_passed_over(more):
    assert not flagged(VALID[:-1] + b',"more":' + more.encode() + b"}")
    assert not flagged(b'{"more":' + more.encode() + b"," + VALID[1:])


@pytest.mark.parametrize("depth", [61, 64, 100_000])
def test_deep_nesting_is_flagged(depth):
    assert flagged(VALID[:-1] + b',"more":' + b"[" * depth + b"]" * depth + b"}")


def test_a_field_twice_is_flagged():
    assert flagged(VALID[:-1] + b',"id":"a2"}')


def test_what_is_behind_or_before_the_object_is_flagged():
    for record in (
        VALID + b"x",
        VALID + b"\0",
        VALID + VALID,
        b"\xef\xbb\xbf" + VALID,
        b"[" + VALID + b"]",
        VALID + b",",
    ):
        assert flagged(record)
    assert not flagged(b"\r\n " + VALID + b" \t\n")


def test_a_buffer_without_padding_is_refused():
    values = Spans.of([VALID])
    with pytest.raises(ValueError, match="zero bytes"):
        ORDER.decode(Spans(values.data[: len(VALID)], values.start, values.size))
    values.data[-1] = 1
    with pytest.raises(ValueError, match="zero bytes"):
        ORDER.decode(values)


# --- which schemas


def schema(annotation, **config):
    return msgspec.defstruct("Schema", [("x", annotation)], **config)


@pytest.mark.parametrize("annotation", [float, int, str, bool, datetime, float | None, str | None, datetime | None])
def test_flat_schemas_are_possible(annotation):
    assert FlatJson.possible(schema(annotation))


def test_what_the_strict_decoder_checks_besides_is_not_possible():
    constrained = Annotated[int, msgspec.Meta(gt=0)]
    aware = Annotated[datetime, msgspec.Meta(tz=True)]
    checked = msgspec.defstruct("Checked", [("x", int)], forbid_unknown_fields=True)
    four = Annotated[list[int], msgspec.Meta(min_length=3, max_length=4)]
    for annotation in (constrained, constrained | None, aware, Literal["a", 1], int | str, list[int], dict, bytes, four,
                       checked, tuple[int, constrained], tuple[int, ...], set[int], Endless):  # fmt: skip
        assert not FlatJson.possible(schema(annotation))
    for config in ({"tag": True}, {"array_like": True}, {"forbid_unknown_fields": True}):
        assert not FlatJson.possible(schema(int, **config))
    assert not FlatJson.possible(schema(int, namespace={"__post_init__": lambda self: None}))
    with pytest.raises(ValueError, match="not a flat schema"):
        FlatJson(schema(list[int]))


class Endless(msgspec.Struct):
    more: "Endless | None" = None


# --- what is nested

INSIDE = b'{"id":7,"home":{"longitude":1.5}}'
JOURNEY = (
    b'{"id":"a","person":%b,"vector":[1,2.5,-0.0],"mixed":["x",null,true,null],"level":"low","at":{"longitude":1}}'
)
NESTED = FlatJson(Journey, ("person.id",))


def journey(person: bytes = INSIDE, **other: bytes) -> bytes:
    record = JOURNEY % person
    for name, more in other.items():
        record = record[:-1] + b',"%b":%b}' % (name.encode(), more)
    return record


def test_what_is_nested_is_in_columns_of_its_own():
    record = journey(b'{ "x":[{}] , "age":2.5, "id" : 7 , "home":{"name":"SE","longitude":1.5,"level":"high"} }')
    assert value(NESTED, "person.id", record) == "7"
    assert value(NESTED, "person.home.name", record) == "SE"
    assert value(NESTED, "person.age", record) == np.float64(2.5).view(np.uint64)
    assert value(NESTED, "vector.2", record) == 1 << 63
    assert value(NESTED, "mixed.2", record) == 1
    assert value(NESTED, "mixed.3.0", record) is None
    rows = NESTED.decode(Spans.of([record, record[:-1]]))
    start, size = rows.start[NESTED.text["person.home.name"], 0], rows.size[NESTED.text["person.home.name"], 0]
    assert rows.data[start - 1 : start + size + 1].tobytes() == b'"SE"'


def test_columns_of_what_is_null_or_absent_are_null_and_defaults_hold_within_what_is_there():
    record = journey(b'{"id":7,"home":null}', empty=b"null")
    for name in ("person.home.longitude", "person.home.level", "person.places.0.longitude", "empty.longitude"):
        name = name.replace("longitude", "lon")
        assert value(NESTED, name, record) is None
        assert value(NESTED, name, journey(b'{"id":7,"home":null}')) is None
    assert value(NESTED, "person.home.level", journey()) == "low"
    assert value(NESTED, "person.age", journey()) == np.float64(30.5).view(np.uint64)


@pytest.mark.parametrize(
    "record",
    [
        journey(b"null"), journey(b"[]"), journey(b"{}"), journey(b'"x"'), journey(b"7"), journey(b'{"id":7}'),
        journey(b'{"id":7,"id":8,"home":null}'), journey(b'{"id":"7","home":null}'), journey(b'{"id":7,"home":{}}'),
        journey(b'{"id":7,"home":{"longitude":1,"longitude":2}}'), journey(person=INSIDE).replace(b'"at":{', b'"at":[{'),
        journey().replace(b"[1,2.5,-0.0]", b"[1,2.5]"), journey().replace(b"[1,2.5,-0.0]", b"[1,2.5,0,0]"),
        journey().replace(b"[1,2.5,-0.0]", b"[1,2.5,]"), journey().replace(b"[1,2.5,-0.0]", b'{"0":1,"1":2,"2":3}'),
        journey().replace(b"[1,2.5,-0.0]", b"[1,2.5,null]"), journey().replace(b"[1,2.5,-0.0]", b"null"),
        journey().replace(b'"x",null', b'1,null'), journey().replace(b'"low"', b'"lo"'), journey(empty=b"true"),
        journey().replace(b'"low"', b'"lows"'), journey(stars=b"2"), journey(stars=b'"1"'), journey(at=b'{"longitude":1}'),
        journey(b'{"id":7,"home":{"longitude":1,"level":"lo"}}'), journey(b'{"id":7,"home":{"longitude":1,"level":"hogh"}}'),
        JOURNEY.replace(b',"at":{"longitude":1}', b"") % INSIDE,
    ],
)  # fmt: skip
def test_nested_rows_that_are_not_sure_are_flagged_and_hold_nothing(record):
    rows = NESTED.decode(Spans.of([journey(), record]))
    assert rows.flagged.tolist() == [False, True]
    assert not rows.known[:, 1].any() and (rows.size[:, 1] == -1).all()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_any_number_of_fields_is_possible_each_of_them_once(count):
    wide = msgspec.defstruct("Wide", [(f"field_{k}", int) for k in range(count)])
    record = msgspec.json.encode({f"field_{k}": k for k in range(count)})
    again = record[:-1] + b',"field_%d":1}' % (count - 1)
    rows = FlatJson(wide).decode(Spans.of([record, record[:-1], b"{}", again, record]))
    assert rows.flagged.tolist() == [False, True, True, True, False]
    assert rows.cells[:, 0].tolist() == rows.cells[:, 4].tolist() == list(range(count))
