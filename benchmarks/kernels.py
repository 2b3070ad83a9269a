"""Kernels with prefetch and without, on tables that fit the cache and that do not: `python -m benchmarks.kernels`.

Writes ns per row of each at several sizes into benchmarks/README.md, the least of some rounds; the two variants take
turns, so that a busy machine slows both. They give the same bits, which is checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np
from benchmarks.run import machine, today, write_section
from numba import njit

from headrace.models import linear_kernels, weight_kernels
from headrace.models.base import allocate
from headrace.stream import aggregate_kernels, ring
from headrace.stream.aggregates import Fold, GroupTable, group_layout
from headrace.stream.features import count, ewm, mean

ROWS, ROUNDS = 4_096, 12  # of one call; calls of each variant, and each sees other rows
NEVER = 1 << 60  # rows to look ahead: so far that it is never done
Call = Callable[[int], Any]  # the kernel on the rows of one round


def without_prefetch(module: Any, *names: str) -> dict[str, Any]:
    """Kernels of a module, the last one and those that it calls, compiled to never look ahead."""
    scope = dict(vars(module)) | {"AHEAD": NEVER}
    for name in names:
        kernel = getattr(module, name)
        options = {"nogil": True, "error_model": kernel.targetoptions.get("error_model", "python")}
        scope[name] = njit(**options)(FunctionType(kernel.py_func.__code__, scope))
    return scope


def linear(learn: bool) -> Iterator[tuple[str, Call, Call]]:
    """FTRL with 6 categories and 4 numbers, over tables of 2**16 to 2**24 weights."""
    name = "learn_rows" if learn else "predict_rows"
    plain = without_prefetch(linear_kernels, name)[name]
    rng = np.random.default_rng(1)
    numeric = rng.normal(size=(ROWS, 4))
    y, weight = np.float32(rng.random((ROWS, 1)) < 0.3), np.ones(ROWS, np.float32)
    categories = rng.integers(1, 2**63, (ROUNDS, ROWS, 6), np.uint64)
    settings, kind = (0.1, 1.0, 0.0, 0.0), weight_kernels.FTRL
    for bits in (16, 18, 20, 22, 24):
        tables = [np.zeros((1 << bits, 2)) for _ in range(2)]
        for table in tables:
            table += 0.5

        def call(kernel: Any, table: np.ndarray, bits: int = bits) -> Call:
            columns, missing, bias = np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((1, 2))
            base, shift = (np.full(1, 0.5), np.ones(1)), np.uint64(64 - bits)
            out = np.empty((ROWS, 1), np.float32)
            marks = np.zeros(1 << bits >> 3, np.uint8), np.zeros(1 << bits >> 6, np.uint8)
            scratch = np.empty(10), np.empty(6, np.intp)

            def run(i: int) -> np.ndarray:
                if learn:
                    kernel(numeric, numeric, categories[i], y, weight, kind, kind, 0, 0.5, settings, 0.1, True, shift,
                           columns, missing, table, *marks, bias, *base, *scratch, out)  # fmt: skip
                else:
                    kernel(numeric, categories[i], kind, kind, 0, settings, True, shift, columns, missing, table, bias,
                           *base, out)  # fmt: skip
                return out

            return run

        yield f"2^{bits} weights", call(getattr(linear_kernels, name), tables[0]), call(plain, tables[1])


def aggregates(feature: Any, sizes: tuple[int, ...]) -> Iterator[tuple[str, Call, Call]]:
    """One aggregate over so many keys, all of them in the table."""
    names = ("look_ahead", "look_ahead_at", "_find", "locate", "window_totals", "decayed", "fold_rows")
    plain = without_prefetch(aggregate_kernels, *names)["fold_rows"]
    rng = np.random.default_rng(2)
    values, label = rng.normal(size=(ROWS, 1)), np.zeros(ROWS, np.float32)
    for keys in sizes:
        hashes = np.random.default_rng(3).integers(1, 2**63, keys, np.uint64)
        chosen = hashes[rng.integers(0, keys, (ROUNDS, ROWS))][:, :, None]

        def call(kernel: Any, keys: int = keys, hashes: np.ndarray = hashes, chosen: np.ndarray = chosen) -> Call:
            fold = Fold(feature.__class__(**{**vars(feature), "capacity": keys}))
            table, arrays = GroupTable(**allocate(group_layout(keys))), allocate(fold.layout())
            table.keys[:], table.meta[:3] = hashes, (0, 0, keys)
            aggregate_kernels.reindex(table.keys, table.index)
            order = np.arange(keys, dtype=np.int32)  # used in the order of their slots, the last one newest
            table.newer[:], table.older[:] = order + 1, order - 1
            table.newer[-1] = -1
            table.meta[:2] = keys, 1
            for array in arrays.values():
                array += 0  # so that its memory is there
            plan = np.array([table.row(0, True)]), np.array([fold.row(arrays, 0, True, 0, 0)])
            out, kept = np.empty((ROWS, 1), np.float32), (table, arrays)

            def run(i: int) -> np.ndarray:
                assert kept
                time_ = np.arange(ROWS) + 10**15 + i * 10**8
                kernel(*plan, time_, chosen[i], values, label, out)
                return out

            return run

        yield f"{keys:,} keys", call(aggregate_kernels.fold_rows), call(plain)


def joins() -> Iterator[tuple[str, Call, Call]]:
    """Labels that claim their prediction, among so many that wait; a row has 128 bytes."""
    plain = without_prefetch(ring, "_place", "_look_ahead", "_claim")["_claim"]
    for pending in (1 << 13, 1 << 17, 1 << 20, 1 << 22):
        keys = np.random.default_rng(4).integers(1, 2**63, (pending, 2), np.uint64)
        wanted = keys[np.random.default_rng(5).integers(0, pending, (ROUNDS, ROWS))]

        def call(kernel: Any, keys: np.ndarray = keys, wanted: np.ndarray = wanted) -> Call:
            waiting = ring.Ring({"x": ("float64", (13,))})
            rows = waiting.blank(len(keys))
            rows[:, :2] = keys
            waiting.append(rows)
            found, copied = np.empty(ROWS, np.int64), np.empty((ROWS, waiting.width), np.uint64)

            def run(i: int) -> np.ndarray:
                kernel(wanted[i], waiting.words, waiting.index, found, copied)
                return found

            return run

        yield f"{pending:,} pending", call(ring._claim), call(plain)


def main() -> int:
    lines = ["| kernel | size | ns a row | without prefetch | as fast |", "|---|---|---|---|---|"]
    windows = (1_000, 100_000, 1_000_000)
    for what, cases in (
        ("predict, 6 categories", linear(learn=False)),
        ("learn, 6 categories", linear(learn=True)),
        ("count over a window", aggregates(count(by="k", over="1h"), windows)),
        ("mean over a window", aggregates(mean("v", by="k", over="1h"), windows)),
        ("decaying mean", aggregates(ewm("v", by="k", half_life="1h"), (*windows, 10_000_000))),
        ("join a label", joins()),
    ):
        for size, fetching, plain in cases:
            best = [np.inf, np.inf]
            for i in range(ROUNDS):
                outs = []
                for variant, run in enumerate((fetching, plain)):
                    began = time.perf_counter()
                    outs.append(run(i))
                    if i:  # the first call may compile
                        best[variant] = min(best[variant], time.perf_counter() - began)
                if not np.array_equal(outs[0], outs[1], equal_nan=True):
                    raise RuntimeError(f"{what}, {size}: prefetch changes the result")
            with_, without = (seconds / ROWS * 1e9 for seconds in best)
            lines.append(f"| {what} | {size} | {with_:.0f} | {without:.0f} | {without / with_:.2f} |")
            print(lines[-1], flush=True)
    lines += ["", f"{today()}, {machine()}."]
    write_section("kernels", "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
