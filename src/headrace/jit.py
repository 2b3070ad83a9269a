"""Numba's `njit`, whose kept kernels are those of the sources as they stand.

What was compiled is kept beside the source, and stays there when headrace is upgraded. Numba compiles anew what stands
in a file that has changed, and does not look at the files from which that one imports kernels and constants: their old
code would go on in it. Here a change in any of them counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[Function], Function]:
    """A decorator with the options of Numba's."""

    def compile_lazily(function: Function) -> Function:
        compiled: Any = numba.njit(**options)(function)
        with suppress(AttributeError, OSError):  # without the JIT, or without sources, there is nothing to keep fresh
            compiled._cache._cache_file._source_stamp = stamp_of(Path(function.__code__.co_filename))
        return compiled

    return compile_lazily


@cache
def stamp_of(file: Path) -> bytes:
    """What changes when a file does, or one of its package from which it draws, directly or by way of others."""
    found, new = set[Path](), {file}
    while new:
        found |= new
        new = {source for one in new for source in imports_of(one)} - found
    return hashlib.sha256(b"".join(digest_of(source) for source in sorted(found))).digest()


@cache
def digest_of(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


@cache
def imports_of(file: Path) -> frozenset[Path]:
    """The files that the relative imports of a file name, those within functions left out."""
    found = set()
    for dots, module, names in re.findall(r"^from (\.+)([\w.]*) import (\([^)]*\)|.*)", file.read_text(), re.MULTILINE):
        folder = file.parents[len(dots) - 1].joinpath(*module.split("."))
        named = [folder.with_suffix(".py"), *(folder / f"{name}.py" for name in re.findall(r"\w+", names))]
        found |= {one for one in named if one.is_file()}
    return frozenset(found)
