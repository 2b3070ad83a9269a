"""Which schemas are flat: a few fields of plain types, and nothing that is checked or computed besides."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import inspect

from .fields import microseconds

FLOAT, INT, BOOL, TEXT, MOMENT = range(5)  # kinds of fields
NOT_SURE, VALUE, NONE = range(3)  # what a field that is absent becomes; NOT_SURE: an error, or what only msgspec knows
MOST_FIELDS = 63  # the fields seen in a record are bits


@dataclass(frozen=True, slots=True)
class FlatField:
    """One field of such a schema."""

    attribute: str
    name: str  # in JSON
    kind: int
    nullable: bool
    default: Any  # msgspec.NODEFAULT: none, or one that is made anew for each row


def flat_fields(schema: type[msgspec.Struct]) -> list[FlatField] | None:
    """The fields of a schema; None where the strict decoder does more than to see that each has its type."""
    config = schema.__struct_config__
    if config.array_like or config.forbid_unknown_fields or config.tag is not None:
        return None
    if hasattr(schema, "__post_init__"):
        return None
    infos = msgspec.structs.fields(schema)
    if not 0 < len(infos) <= MOST_FIELDS:
        return None
    fields = []
    for info in infos:
        kind, nullable = _kind(info.type)
        if kind is None or not _is_plain(info.encode_name):
            return None
        fields.append(FlatField(info.name, info.encode_name, kind, nullable, info.default))
    return fields


_KINDS: tuple[tuple[inspect.Type, int], ...] = (
    (inspect.FloatType(), FLOAT),
    (inspect.IntType(), INT),
    (inspect.BoolType(), BOOL),
    (inspect.StrType(), TEXT),
    (inspect.DateTimeType(), MOMENT),
)


def _kind(annotation: Any) -> tuple[int | None, bool]:
    """What kind a field is, None for all that has no kind or has constraints; and whether it may be null."""
    info = inspect.type_info(annotation)
    nullable = False
    if isinstance(info, inspect.UnionType):
        rest = [t for t in info.types if not isinstance(t, inspect.NoneType)]
        nullable = len(rest) < len(info.types)
        if len(rest) != 1:
            return None, False
        info = rest[0]
    return next((kind for plain, kind in _KINDS if info == plain), None), nullable


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
