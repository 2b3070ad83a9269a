"""What is not finite does not go out: no number of a model, no prediction, no NaN in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.base import Array, NotFinite, find_not_finite

REMEDY = "start from an earlier snapshot, with a smaller learning rate"
CHECKED_BYTES = (
    20 << 20
)  # of the model, looked at after each cycle: a table of 2**20 weights takes 1 ms, touched all over


class Looks:
    """Looks at what was written to the arrays of a model, the smaller ones, up to CHECKED_BYTES."""

    def __init__(
        self, layout: Mapping[str, Array], model: Mapping[str, NDArray], touched: Mapping[str, NDArray]
    ) -> None:
        """The arrays of a model as `layout` says, with the marks of its row groups."""
        self._looks: list[tuple[str, NDArray, NDArray[np.uint8]]] = []  # name, array, its blocks that were touched
        nbytes = 0
        for name, array in sorted(model.items(), key=lambda item: item[1].nbytes):
            nbytes += array.nbytes
            if array.dtype.kind == "f" and nbytes <= CHECKED_BYTES:
                rows = layout[name].rows
                self._looks.append((name, array, touched[rows] if rows else np.ones(-(-len(array) // 64), np.uint8)))

    def check(self, pipeline: str) -> None:
        """Raise NotFinite when a number in the touched blocks is NaN or infinite."""
        for name, array, touched in self._looks:
            at = find_not_finite(array, touched)
            if at is not None:
                place = ", ".join(map(str, at))
                raise NotFinite(
                    f"the model of {pipeline!r} is broken: {name}[{place}] is {array[at]}, not finite; "
                    f"nothing of this cycle is published; {REMEDY}"
                )


def finite(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results, by name or by model and name, as JSON can hold them: None in the place of what is not finite."""
    return {name: finite(of) if isinstance(of, Mapping) else _finite(of) for name, of in results.items()}


def _finite(value: float | int | None) -> float | int | None:
    return value if value is not None and math.isfinite(value) else None
