"""Which schemas are flat: a few fields of plain types, and nothing that is checked or computed besides.

What is nested counts as flat where all that is in it does: such a field is decoded by a plan of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import inspect

from .fields import microseconds
from .leaves import DEEPEST, list_items, without_none

FLOAT, INT, BOOL, TEXT, MOMENT, OBJECT, LIST = range(7)  # kinds of fields; what is nested: the last two
NOT_SURE, VALUE, NONE = range(3)  # what a field that is absent becomes; NOT_SURE: an error, or what only msgspec knows


@dataclass(frozen=True, slots=True)
class FlatField:
    """One field of such a schema, or one place of a list.

    step    its attribute, or its place
    name    in JSON
    default msgspec.NODEFAULT: none, or one that is made anew for each row
    parts   what is nested in it
    allowed the values of a Literal[...]; empty: any
    """

    step: str | int
    name: str
    kind: int
    nullable: bool
    default: Any
    parts: tuple[FlatField, ...] = ()
    allowed: tuple[Any, ...] = ()


def flat_fields(schema: type[msgspec.Struct], depth: int = 0) -> tuple[FlatField, ...] | None:
    """The fields of a schema; None where the strict decoder does more than to see that each has its type."""
    config = schema.__struct_config__
    if config.array_like or config.forbid_unknown_fields or config.tag is not None:
        return None
    if hasattr(schema, "__post_init__"):
        return None
    infos = msgspec.structs.fields(schema)
    if not infos or not all(_is_plain(info.encode_name) for info in infos):
        return None
    return _all(_field(i.name, i.encode_name, inspect.type_info(i.type), i.default, depth) for i in infos)


def _all(fields: Iterable[FlatField | None]) -> tuple[FlatField, ...] | None:
    found = tuple(fields)
    return None if None in found else found  # type: ignore[return-value]


_KINDS: tuple[tuple[inspect.Type, int], ...] = (
    (inspect.FloatType(), FLOAT),
    (inspect.IntType(), INT),
    (inspect.BoolType(), BOOL),
    (inspect.StrType(), TEXT),
    (inspect.DateTimeType(), MOMENT),
)


def _field(step: str | int, name: str, given: inspect.Type, default: Any, depth: int) -> FlatField | None:
    """None for all that has no kind, or constraints."""
    info, nullable = without_none(given)
    parts: tuple[FlatField, ...] | None
    if isinstance(info, inspect.LiteralType):
        for of, kind in ((str, TEXT), (int, INT)):
            if all(type(value) is of for value in info.values):
                return FlatField(step, name, kind, nullable, default, allowed=info.values)
        return None
    if isinstance(info, inspect.StructType):
        parts = None if depth == DEEPEST else flat_fields(info.cls, depth + 1)
        return None if parts is None else FlatField(step, name, OBJECT, nullable, default, parts)
    if items := (None if info is None or depth == DEEPEST else list_items(info)):
        nothing = msgspec.NODEFAULT
        parts = _all(_field(place, "", item, nothing, depth + 1) for place, item in enumerate(items))
        return None if parts is None else FlatField(step, name, LIST, nullable, default, parts)
    plain = next((kind for plain, kind in _KINDS if info == plain), None)
    return None if plain is None else FlatField(step, name, plain, nullable, default)


def _is_plain(text: str) -> bool:
    """Whether a text stands for itself in JSON."""
    try:
        return msgspec.json.encode(text) == f'"{text}"'.encode()
    except UnicodeEncodeError:
        return False


def fallback(field: FlatField, spelled: bool) -> tuple[int, int, bytes]:
    """What a field becomes that is absent: a code, the bits of its cell as int64, and its text."""
    default = field.default
    if default is None:
        return NONE, 0, b""
    if field.kind == FLOAT and type(default) is float:
        return VALUE, int(np.float64(default).view(np.int64)), b""
    if field.kind == INT and type(default) is int and -(2**63) <= default < 2**63:
        return VALUE, default, b"%d" % default if spelled else b""
    if field.kind == BOOL and type(default) is bool:
        return VALUE, int(default), b""
    if field.kind == TEXT and type(default) is str and _is_plain(default):
        return VALUE, 0, default.encode()
    if field.kind == MOMENT and type(default) is datetime:
        return VALUE, microseconds(default), b""
    return NOT_SURE, 0, b""
