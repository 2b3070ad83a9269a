"""Records that try to part the two decoders: what the fast one does not flag, msgspec must read equal to the bit.

`python tests/fuzz/json_rows.py --rows 10000000 --seed 1` draws so many; a test draws a few.
"""

import argparse
import math
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import numpy as np
from msgspec import inspect

from headrace.connectors.memory import padded
from headrace.connectors.spans import Spans
from headrace.stream.fast_json import FlatJson
from headrace.stream.fields import microseconds
from headrace.stream.leaves import leaves, list_items, without_none


class Order(msgspec.Struct):
    id: str
    amount: float
    count: int
    paid: bool
    at: datetime
    note: str | None = None
    rate: float | None = None


class Trip(msgspec.Struct, rename="camel"):
    driver_number: int
    pickup_longitude: float
    pickup_latitude: float = -0.0
    call_type: str = "none yet"
    origin_stand: int | None = 7
    missing_data: bool | None = False
    began_at: datetime | None = datetime(2013, 7, 1, tzinfo=UTC)
    tip: float = 1.5


class Odd(msgspec.Struct, rename={"a": "", "b": "ключ", "c": "a name of more than two words", "d": "i", "e": "id"}):
    a: float | None
    b: str | None
    c: int | None = None
    d: bool | None = None
    e: str = ""
    f: float = None  # type: ignore[assignment]
    idd: int = -(2**63)


Level = Literal["low", "high", "é", ""]
Three = Annotated[list[float], msgspec.Meta(min_length=3, max_length=3)]


class Place(msgspec.Struct, rename={"lon": "longitude"}):
    lon: float
    name: str | None = None
    level: Level = "low"


class Person(msgspec.Struct):
    id: int
    home: Place | None
    age: float | None = 30.5
    places: tuple[Place, Place | None] | None = None


class Journey(msgspec.Struct):
    id: str
    person: Person
    vector: Three
    mixed: tuple[str, int | None, bool, tuple[datetime, float] | None]
    level: Level | None
    at: Place
    stars: Literal[0, 1, -5, 2**62] = 1
    empty: Place | None = None


SCHEMAS: dict[type[msgspec.Struct], tuple[str, ...]] = {
    Order: ("count",),
    Trip: ("driver_number",),
    Odd: ("idd",),
    Journey: ("person.id", "mixed.1", "stars"),
}

Draw = Callable[[random.Random], bytes]


# --- values


def _float(r: random.Random) -> str:
    match r.randrange(9):
        case 0:
            return repr(r.random())
        case 1:
            return f"{r.gauss(0, 1000):.{r.randrange(1, 7)}f}"
        case 2:
            return str(r.randrange(-(10**9), 10**9))
        case 3:
            return f"{r.uniform(-1, 1) * 10.0 ** r.randrange(-250, 250):.{r.randrange(17)}e}"
        case 4:
            return repr(r.gauss(0, 1) * 10.0 ** r.randrange(-12, 12))
        case 5:
            value = struct.unpack("d", r.randbytes(8))[0]
            return repr(value) if 1e-300 < abs(value) < math.inf else "0.1"
        case 6:
            return f"{r.randrange(10**18)}e{r.randrange(-300, 290)}"
        case 7:
            return f"0.{'0' * r.randrange(12)}{r.randrange(1, 10**9)}"
        case _:
            return f"{r.randrange(2**63)}"


def _moment(r: random.Random) -> str:
    day = f"{r.randrange(1, 10_000):04d}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}"
    text = f"{day}{r.choice('TTTTt ')}{r.randrange(24):02d}:{r.randrange(60):02d}:{r.randrange(60):02d}"
    if r.random() < 0.5:
        text += f".{r.randrange(10**6):06d}"[: r.randrange(2, 8)]
    if r.random() < 0.8:
        text += r.choice(["Z", "Z", "z", "+00:00", f"{r.choice('+-')}{r.randrange(24):02d}:{r.randrange(60):02d}"])
    return f'"{text}"'


_LETTERS = [
    "a",
    "b",
    "JFK",
    " ",
    "7",
    "é",
    "ÅÄÖ",
    "東京",
    "🛫",
    "/",
    "'",
    "\x7f",
    "\u2028",
    "abcdefgh",
    "null",
    "{",
    "]",
    ",",
]


def _text(r: random.Random) -> str:
    if r.random() < 0.6:
        return f'"v{r.randrange(10**6)}"'
    return '"' + "".join(r.choices(_LETTERS, k=r.randrange(12))) + '"'


PLAIN: dict[Any, Callable[[random.Random], str]] = {
    float: _float,
    int: lambda r: str(r.choice([r.randrange(-1000, 1000), r.randrange(-(2**63), 2**63)])),
    bool: lambda r: r.choice(["true", "false"]),
    str: _text,
    datetime: _moment,
}


_PYTHON = {inspect.FloatType: float, inspect.IntType: int, inspect.BoolType: bool, inspect.StrType: str, inspect.DateTimeType: datetime}  # fmt: skip


def _words(text: str) -> list[str]:
    return text.split()


_NUMBERS = _words("""0 -0 0.0 -0.0 0e0 -0e5 1.0 1e2 1E+05 1e-2 01 00 -01 1. .5 - + +1 1e 1e+ 1.e5 --1 0x10 1_000 1,5 NaN nan Infinity
-Infinity inf 1e400 -1e400 1e-400 1e999999 1e-999999 5e-324 4.9e-324 2.4e-324 2.2250738585072014e-308
2.2250738585072011e-308 1.7976931348623157e308 1.7976931348623159e308 9007199254740993 9007199254740992.5
9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809 18446744073709551615
18446744073709551616 12345678901234567890 1234567890123456789012345678901234567890 0.1234567890123456789012
0.00000000000000000000000000000000000001234567890123456789 0.000000000000000000000000000000 100000000000000000000
1.00000000000000000000 9999999999999999999 99999999999999999999 1e22 1e23 8.5e22 1e0000000000000005 12345678
123456789 1234567 12345678.12345678""")

_MOMENTS = _words("""2013-02-29T00:00:00Z 2012-02-29T00:00:00Z 1900-02-29T00:00:00Z 2000-02-29T00:00:00Z 0000-01-01T00:00:00Z
0001-01-01T00:00:00+23:59 9999-12-31T23:59:59.999999-23:59 9999-12-31T23:59:59.9999999Z 2013-01-01T24:00:00Z
2013-01-01T23:60:00Z 2013-01-01T23:59:60Z 2013-13-01T00:00:00Z 2013-00-01T00:00:00Z 2013-01-00T00:00:00Z
2013-04-31T00:00:00Z 2013-01-01 2013-01-01T00:00 2013-01-01T00:00:00. 2013-01-01T00:00:00.Z 2013-01-01T00:00:00.1234565Z
2013-01-01T00:00:00.1234564999Z 2013-01-01T00:00:00.12345649Z 2013-01-01T00:00:00.9999995 2013-01-01T00:00:00,5Z
2013-01-01T00:00:00+24:00 2013-01-01T00:00:00+0530 2013-01-01T00:00:00+05 2013-01-01T00:00:00+05:60 2013-01-01T00:00:00-00:00
2013-01-01T00:00:00ZZ 2013-01-01x00:00:00Z 2013/01/01T00:00:00Z 13-01-01T00:00:00Z +2013-01-01T00:00:00Z
2013-1-01T00:00:00Z 2013-01-01T0:00:00Z 2013-01-01T00.00:00Z 2013-01-01T00:00:00.123456789123456789123456789Z 1372636800""")

_STRINGS = [
    *(rb'""', rb'"\u00e9"', rb'"\n"', rb'"q\"q"', rb'"\\"', rb'"\q"', rb'"\ud83d\ude00"', rb'"\ud800"', rb'"\udc00x"'),
    *(
        b'"\t"',
        b'"\x00"',
        b'"\x1f"',
        b'"\n"',
        b'"x',
        b'x"',
        b"'x'",
        b'"abcdefg\x1fh"',
        b'"abcdefgh\\"',
        b'"a\x80bcdefgh"',
    ),
    *(
        b'"\xff"',
        b'"\xc3"',
        b'"\xe2\x82"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xf0\x80\x80\x80"',
    ),
    *(b'"\xe0\x80\x80"', b'"abcdefg\xe9"', b'"\xf0\x9f\x98"', b'"\xf5\x80\x80\x80"', b'"\x80"', b'"\xef\xbb\xbf"'),
    *(b'"true"', b'"null"', b'"1.5"', b'"1"', b'""""', b'"\xef\xbf\xbf\xf4\x8f\xbf\xbf"'),
]
_OTHERS = [
    b"null",
    b"true",
    b"false",
    b"True",
    b"nul",
    b"nulll",
    b"truee",
    b"fals",
    b"tru",
    b"falsf",
    b"",
    b"nULL",
    b"undefined",
]
_NESTED = [
    *(
        b"[]",
        b"{}",
        b"[1,2]",
        b'{"a":1}',
        b"[[[]]]",
        b'[{"a":[{}]}]',
        b'{"a":{"a":{"a":null}}}',
        b'[1,"x",null,true,-1.5e3]',
    ),
    *(
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[1,",
        b"{",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"{a:1}",
        b'{"a":1 "b":2}',
        b"{1:2}",
        b"[}",
        b"{]",
    ),
    *(
        b'["\xff"]',
        b'{"\xff":1}',
        rb'["\ud800"]',
        rb'["\q"]',
        rb'["\u12"]',
        rb'["\"\\\/\b\f\n\r\t"]',
        b'["\x01"]',
        b"[01]",
        b"[-]",
    ),
    *(
        b"[1.]",
        b"[1e]",
        b"[NaN]",
        b"[1e999]",
        b"[nul]",
        b"[tru]",
        b" [ 1 , { } , [ ] ] ",
        b'[ { "a" : [ 1 , 2 ] , "b" : { } } ]',
    ),
    *(
        b"[" * 59 + b"]" * 59,
        b"[" * 60 + b"]" * 60,
        b"[" * 61 + b"]" * 61,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b"[" * 200,
    ),
    *(b'["a","b"],"id":1', b"[]]", b"[[]", b"{}}", b'{"a":[}]', b'{"a":[1}', b'[{"a":1]'),
]


def hostile_value(r: random.Random) -> bytes:
    """A value that is wrong, rare or just within bounds."""
    match r.randrange(8):
        case 0 | 1 | 2:
            number = r.choice(_NUMBERS).encode()
            return number if r.random() < 0.9 else b'"' + number + b'"'
        case 3 | 4:
            return r.choice(_STRINGS)
        case 5:
            return r.choice(_OTHERS)
        case 6:
            return r.choice(_NESTED)
        case _:
            return b'"' + r.choice(_MOMENTS).encode() + b'"'


@lru_cache(1000)
def _type_of(annotation: Any) -> tuple[inspect.Type | None, bool]:
    return without_none(inspect.type_info(annotation))


@lru_cache(1000)
def _items_of(annotation: Any) -> list[Any] | None:
    """The annotations of a list's places."""
    items = list_items(_type_of(annotation)[0])
    kinds = [one for one in (annotation, *get_args(annotation)) if get_origin(one) in (tuple, list)]
    return items and (list(get_args(kinds[0])) * len(items))[: len(items)]


_fields = lru_cache(100)(msgspec.structs.fields)


def plain_value(annotation: Any, r: random.Random, spoil: float = 0.0) -> bytes:
    """One that no decoder may refuse, of this type; something nested is spoiled with this probability."""
    info, nullable = _type_of(annotation)
    if nullable and r.random() < 0.2:
        return b"null"
    if isinstance(info, inspect.LiteralType):
        return msgspec.json.encode(r.choice(info.values))
    if isinstance(info, inspect.StructType):
        pairs = plain_row(info.cls, r, spoil)
        return written(hostile_row(pairs, r) if r.random() < spoil else pairs, r, 0.1 + spoil, odd=spoil > 0)
    if items := _items_of(annotation):
        values = [plain_value(item, r, spoil) for item in items]
        if r.random() < spoil:
            at = r.randrange(len(values) + 1)
            match r.randrange(4):
                case 0:
                    values.insert(at, r.choice([b"", b"1", b"null", b'"x"', *values]))
                case 1:
                    del values[at:]
                case _:
                    values[at : at + 1] = [hostile_value(r)]
        space = r.choice(_SPACE) if r.random() < 0.1 + spoil else b""
        return b"[" + space + (space + b"," + space).join(values) + space + b"]"
    return PLAIN[_PYTHON[type(info)]](r).encode()


# --- rows

Pair = tuple[bytes, bytes]


def plain_row(schema: type[msgspec.Struct], r: random.Random, spoil: float = 0.0) -> list[Pair]:
    """A valid record, as (name, value) in JSON: fields in any order, some that are not required left out.

    Of what is nested in it, things are spoiled with this probability.
    """
    pairs = []
    for field in _fields(schema):
        if field.required or r.random() < 0.8:
            pairs.append((b'"' + field.encode_name.encode() + b'"', plain_value(field.type, r, spoil)))
    if r.random() < 0.2:
        r.shuffle(pairs)
    return pairs


_UNKNOWN = [
    b'"x"',
    b'"i"',
    b'"idd"',
    b'"i\\u0064"',
    b'"id\\n"',
    b'"ID"',
    b'"k\xff"',
    b'"amoun"',
    b'"amounts"',
    b"id",
    b"1",
    b'""',
]
_UNKNOWN += [
    '"имя"'.encode(),
    b'"a much longer name than that"',
    b'"a name of more than two word"',
    b'"\xed\xa0\x80"',
    b'"a\x00"',
    b'"id',
]
_SPACE = [b"", b"", b"", b"", b"", b"", b" ", b"  ", b"\n", b"\r\n\t"]
_NO_SPACE = [b"\x0b", b"\xc2\xa0", b"\x00", b"\x0c", b"\xef\xbb\xbf", b"/**/"]


def hostile_row(pairs: list[Pair], r: random.Random) -> list[Pair]:
    """The record with another value, an unknown field, a field twice, or a field too few."""
    pairs = list(pairs)
    for _ in range(r.choice([1, 1, 1, 2, 4])):
        at = r.randrange(len(pairs) + 1)
        match r.randrange(8):
            case 0 | 1 | 2 if at < len(pairs):
                pairs[at] = pairs[at][0], hostile_value(r)
            case 3 if pairs:
                pairs.insert(at, (r.choice(pairs)[0], r.choice([hostile_value(r), r.choice(pairs)[1]])))
            case 4 if at < len(pairs):
                del pairs[at]
            case 5 if at < len(pairs):
                pairs[at] = r.choice(_UNKNOWN), pairs[at][1]
            case _:
                value = r.choice([hostile_value, lambda r: r.choice(_NESTED), lambda r: _float(r).encode()])(r)
                pairs.insert(at, (r.choice(_UNKNOWN), value))
    return pairs


def written(pairs: Sequence[Pair], r: random.Random, loose: float, odd: bool = True) -> bytes:
    """The record as JSON, with white space in this share of all cases; odd: sometimes what only looks like it."""
    if r.random() >= loose:
        return b"{" + b",".join([name + b":" + value for name, value in pairs]) + b"}"
    spaces = _SPACE if not odd or r.random() < 0.8 else _SPACE + _NO_SPACE

    def s() -> bytes:
        return r.choice(spaces)

    body = b",".join([s() + name + s() + b":" + s() + value + s() for name, value in pairs])
    return s() + b"{" + (body or s()) + b"}" + s()


_BYTES = b'{}[]",:\\ 0123456789eE.+-truefalsn\x00\x1f\t\n\x80\xc3\xff'


def mutated(record: bytes, r: random.Random) -> bytes:
    """With a few bytes changed, put in, left out, doubled or moved."""
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        if not record:
            return record
        at = r.randrange(len(record))
        match r.randrange(7):
            case 0:
                record = record[:at] + bytes([r.choice(_BYTES)]) + record[at + 1 :]
            case 1:
                record = record[:at] + bytes([r.randrange(256)]) + record[at + 1 :]
            case 2:
                record = record[:at] + bytes([r.choice(_BYTES)]) + record[at:]
            case 3:
                record = record[:at] + record[at + r.choice([1, 1, 2, 8]) :]
            case 4:
                record = record[:at]
            case 5:
                to = r.randrange(len(record))
                record = record[:at] + record[min(at, to) : max(at, to)] + record[at:]
            case _:
                record += r.choice([b" ", b"\n ", b"x", b"{}", b",", b"\x00", b"}", b"]", b'"', b"\xff"])
    return record


def spans_between(records: Sequence[bytes | None], between: Sequence[bytes]) -> Spans:
    """The records with other bytes behind each: what lies there must not count."""
    parts: list[bytes] = []
    start, size, at = [], [], 0
    for record, behind in zip(records, between):
        text = record or b""
        start.append(at)
        size.append(-1 if record is None else len(text))
        parts += [text, behind]
        at += len(text) + len(behind)
    data = padded(at)
    data[:at] = np.frombuffer(b"".join(parts), np.uint8)
    return Spans(data, np.array(start, np.int64), np.array(size, np.int64))


# --- comparing


def bits(value: Any) -> int:
    """What a cell holds for a value."""
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d", value), "little")
    return (microseconds(value) if isinstance(value, datetime) else int(value)) % 2**64


def differences(flat: FlatJson, schema: type[msgspec.Struct], values: Spans) -> tuple[np.ndarray, list[str]]:
    """bool (B,) which rows are flagged; and what is wrong with those that are not, as text."""
    decode = msgspec.json.Decoder(schema).decode
    rows, records = flat.decode(values), list(values)
    raw = rows.data.tobytes()
    sure = np.flatnonzero(~rows.flagged).tolist()
    wrong, expected = [], []
    for i in sure:
        try:
            expected.append(decode(records[i]))
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            wrong.append(f"refused by msgspec ({error}): {records[i]!r}")
            expected.append(None)
    for name, leaf in leaves(schema).items():
        j = flat.place[name]
        known, cells = rows.known[j].tolist(), rows.cells[j].tolist()
        t = flat.text.get(name, -1)
        for i, row in zip(sure, expected):
            if row is None:
                continue
            value = leaf.of(row)
            same = known[i] == (value is not None)
            if same and value is not None and not isinstance(value, str):
                if isinstance(value, int) and not -(2**63) <= value < 2**63:
                    same = False
                else:
                    same = cells[i] == bits(value)
            if same and t >= 0:
                start, size = int(rows.start[t, i]), int(rows.size[t, i])
                if value is None:
                    same = size == -1
                elif isinstance(value, str):
                    same = raw[start : start + size] == value.encode()
                    same = same and raw[start - 1 : start + size + 1] == msgspec.json.encode(value)
                else:
                    same = raw[start : start + size] == msgspec.json.encode(value)
            if not same:
                wrong.append(f"{name}: {value!r} is read as {known[i]}, {cells[i]:x}: {records[i]!r}")
    return rows.flagged, wrong


KINDS = ("plain", "loose", "hostile", "mutated", "cut off")


def draw(schema: type[msgspec.Struct], rows: int, r: random.Random) -> tuple[Spans, list[str]]:
    """Records of all kinds between hostile bytes; and the kind of each."""
    records: list[bytes | None] = []
    between: list[bytes] = []
    kinds = r.choices(KINDS, (2, 1, 4, 3, 1), k=rows)
    for kind in kinds:
        if kind == "mutated" and records and records[-1] and r.random() < 0.4:
            records.append(mutated(records[-1], r))
            between.append(between[-1])
            continue
        pairs = plain_row(schema, r, {"hostile": 0.03, "mutated": 0.01}.get(kind, 0.0))
        if kind == "hostile" or (kind == "mutated" and r.random() < 0.2):
            pairs = hostile_row(pairs, r)
        record = written(pairs, r, {"plain": 0.0, "loose": 1.0}.get(kind, 0.3))
        if kind == "loose" and any(space in record for space in _NO_SPACE):
            record = record.translate(None, b"\x0b\x0c\x00").replace(b"\xef\xbb\xbf", b"").replace(b"/**/", b"")
            record = record.replace(b"\xc2\xa0", b"")
        behind = r.choice(
            [b"", b"}", b'"', b" ", b"0", b",", b"5}", b"\n{", b'":1}', b"]}", b"e5}", b".5}", b"ull}", b"\x00"]
        )
        if kind == "mutated":
            record = mutated(record, r)
        elif kind == "cut off":  # and completed by what lies behind
            cut = r.randrange(len(record))
            record, behind = record[:cut], record[cut:]
        records.append(record if r.random() < 0.999 else r.choice([None, b""]))
        between.append(behind)
    return spans_between(records, between), kinds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    given = parser.parse_args()
    r = random.Random(given.seed)
    plans = {schema: FlatJson(schema, spelled) for schema, spelled in SCHEMAS.items()}
    done, sure, drawn, began, wrong = 0, Counter(), Counter(), time.monotonic(), 0
    while done < given.rows and time.monotonic() - began < given.seconds:
        for schema, flat in plans.items():
            values, kinds = draw(schema, 5_000, r)
            flagged, differ = differences(flat, schema, values)
            wrong += len(differ)
            for text in differ[:5]:
                print(schema.__name__, text, flush=True)
            drawn.update(kinds)
            sure.update(kind for kind, f in zip(kinds, flagged.tolist()) if not f)
            done += len(values)
    shares = ", ".join(f"{kind} {sure[kind] / drawn[kind]:.1%}" for kind in KINDS)
    print(f"{done:,} rows, {sum(sure.values()):,} not flagged ({shares}), {wrong} different")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
