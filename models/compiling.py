"""How kernels are compiled that allocate nothing: without Numba's runtime, which counts who refers to an array.

Each count is an atomic instruction, and with dozens of arrays on the way to every leaf they take five sixths of a
forest's time. Callers keep the arrays alive and give room to work in; rows are copied by `copy_into`, for an assignment
makes room where they may overlap. A kernel that does allocate is refused when it is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numpy import ndarray

from ..jit import njit

Function = TypeVar("Function", bound=Callable[..., Any])
UNCOUNTED: dict[str, Any] = {"_nrt": False}


def kernel(function: Function, **options: Any) -> Function:
    """Compile a function that does not allocate."""
    return njit(cache=True, nogil=True, error_model="numpy", **UNCOUNTED, **options)(function)


def inlined(function: Function) -> Function:
    """The same, and inline it by force."""
    return kernel(function, forceinline=True)


@kernel
def copy_into(to: ndarray, of: ndarray) -> None:
    """Write one row over another of its length."""
    for k in range(to.shape[0]):
        to[k] = of[k]
