"""What explaining costs: `python -m benchmarks.explain [names]`.

A data set that comes with River is predicted and learned row by row, as in benchmarks/learners.py, once without and
once with the contributions of every feature to every prediction. Names are those of benchmarks/learners.py. The clock
is the time of the thread on the CPU.

    .venv/bin/python -m benchmarks.explain                     # linear models, trees, forests and the defaults
    .venv/bin/python -m benchmarks.explain forest --rows 5000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from benchmarks.learners import CALL, CONTESTS, Data, bound, read
from benchmarks.run import machine, today

from headrace.models import Rows, Truth

NAMES = (
    "logistic_regression", "gaussian_nb", "hoeffding_tree", "adaptive_tree", "adaptive_regression_tree", "forest",
    "regression_forest", "default_binary", "default_multiclass", "default_regression",
)  # fmt: skip


def seconds_of(name: str, data: Data, explain: bool) -> float:
    """Seconds on the CPU that a learner takes for the rows, with or without contributions."""
    chain, rows = bound(CONTESTS[name].ours(), data.spec), len(data.rows)
    chain.warm_up(explain=explain)
    out = np.empty((rows, data.spec.outputs), np.float32)
    room = np.empty((CALL, data.spec.outputs, len(data.spec.numeric) + 1), np.float32)
    numeric, categories, y, weight = *data.x, *data.truth
    began = time.thread_time()
    for lo in range(0, rows, CALL):
        hi = min(lo + CALL, rows)
        x, truth = Rows(numeric[lo:hi], categories[lo:hi]), Truth(y[lo:hi], weight[lo:hi])
        chain.test_then_learn(x, truth, out[lo:hi], contributions=room[: hi - lo] if explain else None)
    return time.thread_time() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="what explaining costs")
    parser.add_argument("names", nargs="*", default=[], help=f"of benchmarks.learners; none: {', '.join(NAMES)}")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    options = parser.parse_args()
    for name in set(options.names) - CONTESTS.keys():
        parser.error(f"no learner is named {name!r}; known are {', '.join(CONTESTS)}")

    print("| learner | data | examples/s | us a row | explained | us a row | times |")
    print("|---|---|---|---|---|---|---|")
    for name in options.names or NAMES:
        dataset = CONTESTS[name].data
        data = read(dataset(), options.rows)
        plain, told = (min(seconds_of(name, data, explain) for _ in range(options.rounds)) for explain in (False, True))
        rates = " | ".join(f"{options.rows / s:,.0f} | {s / options.rows * 1e6:,.2f}" for s in (plain, told))
        where = f"{dataset.__name__}, {len(data.spec.numeric)} numbers"
        print(f"| {name} | {where} | {rates} | {told / plain:.1f} |", flush=True)
    print(f"\n{today()}, {machine()}; {options.rows:,} rows, {options.rounds} rounds; time on the CPU.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
