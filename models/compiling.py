"""How kernels are compiled that allocate nothing: without Numba's runtime, which counts who refers to an array.

Each count is an atomic instruction, and with dozens of arrays on the way to every leaf they take five sixths of a
forest's time. Callers keep the arrays alive and give room to work in; rows are copied by `copy_into`, for an assignment
makes room where they may overlap. A kernel that does allocate is refused when it is compiled.

What was compiled is kept beside the source, and Numba compiles anew what stands in a file that has changed. Kernels of
several files that are compiled here are told to do so too when a file has changed from which they draw.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from numba import njit
from numpy import ndarray

Function = TypeVar("Function", bound=Callable[..., Any])
UNCOUNTED: dict[str, Any] = {"_nrt": False}


def kernel(function: Function, **options: Any) -> Function:
    """Compile a function that does not allocate."""
    compiled: Any = njit(cache=True, nogil=True, error_model="numpy", **UNCOUNTED, **options)(function)
    with suppress(AttributeError, OSError):  # without the JIT, or without sources, there is nothing to keep fresh
        compiled._cache._cache_file._source_stamp = stamp_of(Path(function.__code__.co_filename))
    return compiled


@cache
def sources_of(file: Path) -> frozenset[Path]:
    """A file and those of its folder from which it imports, directly or by way of others."""
    names = re.findall(r"^from \.(\w+) import", file.read_text(), re.MULTILINE)
    return frozenset({file}).union(*(sources_of(file.with_name(f"{name}.py")) for name in names))


@cache
def stamp_of(file: Path) -> bytes:
    """What changes when a file does, or one of those from which it draws."""
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(sources_of(file)))).digest()


def inlined(function: Function) -> Function:
    """The same, and inline it by force."""
    return kernel(function, forceinline=True)


@kernel
def copy_into(to: ndarray, of: ndarray) -> None:
    """Write one row over another of its length."""
    for k in range(to.shape[0]):
        to[k] = of[k]
