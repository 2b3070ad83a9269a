"""The plain fields of a schema by name; nested Structs and lists of fixed length give `user.age` and `vector.0`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import msgspec
import polars as pl
from msgspec import inspect

from ..errors import DeclarationError

PLAIN_TYPES = (
    "str, int, float, bool, datetime and Literal[...], of msgspec.Structs of these, and of lists of fixed length, as "
    "in tuple[float, float], each also `| None`"
)
DEEPEST = 8  # Structs and lists in one another; a Struct may hold one of its own kind, and has no end then
MOST_COLUMNS = 1_000


@dataclass(frozen=True, slots=True)
class Leaf:
    """One plain field, which becomes a column.

    steps    the way to it: attributes of Structs, places in lists
    encoded  the same as it is called in JSON
    info     its type, without None
    nullable what may be None on the way, for each of the steps
    values   of a Literal[...], as they were declared
    """

    steps: tuple[str | int, ...]
    encoded: tuple[str | int, ...]
    info: inspect.Type
    dtype: pl.DataType
    nullable: tuple[bool, ...]
    values: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """What a declaration calls it."""
        return dotted(self.steps)

    @property
    def optional(self) -> bool:
        """Whether it, or what it lies in, may be None."""
        return any(self.nullable)

    @property
    def path(self) -> str:
        """Where it lies in a record, as msgspec says it."""
        return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.encoded)

    def of(self, row: Any) -> Any:
        """Its value in a Struct of the schema; None where something on the way is None."""
        for step in self.steps:
            if row is None:
                return None
            row = row[step] if isinstance(step, int) else getattr(row, step)
        return row


def dotted(steps: Sequence[str | int]) -> str:
    """The name of a column."""
    return ".".join(map(str, steps))


@lru_cache(maxsize=256)
def leaves(schema: type[msgspec.Struct]) -> dict[str, Leaf]:
    """The plain fields of a schema by name, in order.

    Raises DeclarationError naming each field that cannot become columns.
    """
    bad: list[str] = []
    found = list(_of_struct(schema, Leaf((), (), inspect.AnyType(), pl.Null(), ()), bad))
    named = {leaf.name: leaf for leaf in found}
    if bad:
        raise DeclarationError(
            f"{schema.__name__}: {', '.join(bad)}; expected fields of {PLAIN_TYPES}. Leave such a field out: what a "
            "record has beyond its schema is ignored"
        )
    if not 0 < len(found) <= MOST_COLUMNS:
        many = f"{len(found):,} plain fields, at most {MOST_COLUMNS:,} can be columns" if found else "no fields"
        raise DeclarationError(f"{schema.__name__} has {many}")
    if len(named) < len(found):
        twice = next(leaf.name for leaf in found if named[leaf.name] is not leaf)
        raise DeclarationError(f"{schema.__name__} has two fields that would be the column `{twice}`; rename one")
    return named


def columns_of(rows: Sequence[Any], wanted: Sequence[Leaf]) -> list[Sequence[Any]]:
    """The values of leaves in decoded rows, a column for each; None where something on the way to it is None."""
    known: dict[tuple[str | int, ...], Sequence[Any]] = {(): rows}
    if rows:
        top = zip(*map(msgspec.structs.astuple, rows), strict=True)
        known |= {(name,): column for name, column in zip(rows[0].__struct_fields__, top, strict=True)}

    def at(steps: tuple[str | int, ...]) -> Sequence[Any]:
        if steps not in known and rows:
            before, last = at(steps[:-1]), steps[-1]
            if isinstance(last, int):
                known[steps] = [None if value is None else value[last] for value in before]
            else:
                known[steps] = [None if value is None else getattr(value, last) for value in before]
        return known.get(steps, ())

    return [at(leaf.steps) for leaf in wanted]


def without_none(info: inspect.Type) -> tuple[inspect.Type | None, bool]:
    """A type without its None, and whether it had one; None where it may be of several types."""
    if isinstance(info, inspect.UnionType):
        kinds = [one for one in info.types if not isinstance(one, inspect.NoneType)]
        return (kinds[0] if len(kinds) == 1 else None), len(kinds) < len(info.types)
    return info, False


def list_items(info: inspect.Type) -> tuple[inspect.Type, ...] | None:
    """The types of the values of a list of fixed length; None for all else."""
    if isinstance(info, inspect.TupleType):
        return info.item_types
    if isinstance(info, inspect.ListType | inspect.VarTupleType) and info.min_length == info.max_length is not None:
        return (info.item_type,) * min(info.max_length, MOST_COLUMNS + 1)
    return None


def _of_struct(schema: type[msgspec.Struct], at: Leaf, bad: list[str]) -> Iterator[Leaf]:
    try:
        fields = msgspec.structs.fields(schema)
    except (NameError, TypeError) as error:
        raise DeclarationError(f"the types of {schema.__name__} cannot be read: {error}") from error
    if not fields and at.steps:
        bad.append(f"`{at.name}` has no fields")
    for field in fields:
        steps, encoded = (*at.steps, field.name), (*at.encoded, field.encode_name)
        if field.type is msgspec.UnsetType or msgspec.UnsetType in get_args(field.type):
            bad.append(f"`{dotted(steps)}` is {_type_name(field.type)}")
        else:
            values = _literals(field.type)
            leaf = Leaf(steps, encoded, inspect.type_info(field.type), at.dtype, at.nullable, values)
            yield from _of_type(leaf, _type_name(field.type), bad)


def _of_type(at: Leaf, shown: str, bad: list[str]) -> Iterator[Leaf]:
    """The leaves of what lies at a place, of the type that at.info says."""
    info, nullable = without_none(at.info)
    if isinstance(info, inspect.Metadata):
        info = info.type
    info = info or inspect.AnyType()
    values = at.values or (info.values if isinstance(info, inspect.LiteralType) else ())
    at = Leaf(at.steps, at.encoded, info, _dtype(info) or pl.Null(), (*at.nullable, nullable), values)
    items = list_items(info)
    if at.dtype != pl.Null:
        yield at
    elif len(at.steps) > DEEPEST and (items or isinstance(info, inspect.StructType)):
        raise DeclarationError(f"`{at.name}` lies more than {DEEPEST} deep; leave out what is not needed")
    elif isinstance(info, inspect.StructType):
        yield from _of_struct(info.cls, at, bad)
    elif items:
        for place, item in enumerate(items):
            one = Leaf((*at.steps, place), (*at.encoded, place), item, at.dtype, at.nullable)
            yield from _of_type(one, f"one of {shown}", bad)
    else:
        bad.append(f"`{at.name}` is {shown}")


def _dtype(info: inspect.Type) -> pl.DataType | None:
    match info:
        case inspect.StrType():
            return pl.String()
        case inspect.BoolType():
            return pl.Boolean()
        case inspect.IntType():
            return pl.Int64()
        case inspect.FloatType():
            return pl.Float64()
        case inspect.DateTimeType():
            return pl.Datetime("us", "UTC")
        case inspect.LiteralType(values=values) if all(isinstance(v, str) for v in values):
            return pl.String()
        case inspect.LiteralType(values=values) if all(type(v) is int for v in values):
            return pl.Int64()
    return None


def _literals(annotation: Any) -> tuple[Any, ...]:
    """The values of a Literal[...]; inspect.LiteralType has them in another order."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is Literal]
    return get_args(kinds[0]) if kinds else ()


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)  # type: ignore[return-value]
