"""The rows of a Polars frame as dicts, with what is nested put together out of columns such as `user.age`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import polars as pl

from .leaves import dotted, leaves

Steps = tuple[str | int, ...]


def rows_of(frame: pl.DataFrame, schema: type[msgspec.Struct]) -> Iterator[dict[str, Any]]:
    """The rows by the names that the fields of a schema have in JSON; other columns are left out.

    A field that is nested is a column of structs or lists, or else, as in csv, a column for each of its plain fields:
    `user.age`, `vector.0`. Where all of those are null, it is null if it may be.
    """
    given = [f.encode_name for f in msgspec.structs.fields(schema) if f.encode_name in frame.columns]
    apart: dict[str, Steps] = {}
    nullable: set[Steps] = set()
    for leaf in leaves(schema).values():
        name = dotted(leaf.encoded)
        if leaf.encoded[0] not in given and name in frame.columns:
            apart[name] = leaf.encoded
            nullable |= {leaf.encoded[: k + 1] for k, may in enumerate(leaf.nullable) if may}
    for row in frame.select(*given, *apart).iter_rows(named=True):
        tree: dict[Any, Any] = {}
        for name, steps in apart.items():
            _put(tree, steps, row.pop(name))
        yield row | {name: _together(part, (name,), nullable) for name, part in tree.items()}


def missing_fields(frame: pl.DataFrame, schema: type[msgspec.Struct]) -> list[str]:
    """The fields, as JSON calls them, that the schema requires and of which the frame has nothing."""
    there = {*frame.columns, *(f.encoded[0] for f in leaves(schema).values() if dotted(f.encoded) in frame.columns)}
    return [f.encode_name for f in msgspec.structs.fields(schema) if f.required and f.encode_name not in there]


def _put(tree: dict[Any, Any], steps: Steps, value: Any) -> None:
    for step in steps[:-1]:
        tree = tree.setdefault(step, {})
    tree[steps[-1]] = value


def _together(part: Any, at: Steps, nullable: set[Steps]) -> Any:
    """A tree of dicts as dicts by name and lists by place."""
    if not isinstance(part, dict):
        return part
    if at in nullable and _is_nothing(part):
        return None
    parts = {step: _together(value, (*at, step), nullable) for step, value in part.items()}
    return list(parts.values()) if isinstance(next(iter(parts)), int) else parts


def _is_nothing(part: Any) -> bool:
    return all(map(_is_nothing, part.values())) if isinstance(part, dict) else part is None
