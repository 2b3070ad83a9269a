"""An MLP in micro-batches beside deep-river, which learns one row at a time: `python -m benchmarks.torch_batches`.

Phishing, which comes with River, repeated; two hidden layers of 64 and 32, Adam, numbers standardised; every row is
predicted before it is learned, on one thread. deep-river runs in a virtual environment of its own (made under build/,
or named by --peer) and gets dicts, which were made before the clock began. The clock is the time of the thread on the
CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.learners import read, score
from benchmarks.run import machine, today
from benchmarks.throughput import PEERS, make_environment
from river import datasets

from headrace.models import MLP, Adam, Rows, StandardScaler, Torch, Truth, allocate, allocate_touched, as_chain

SCRIPT = Path(__file__).parent / "peers" / "deep_river_mlp.py"
HIDDEN = [64, 32]
LR = 0.001
CALL = 1_024  # rows


def ours(data: Any, batch_size: int) -> tuple[float, np.ndarray]:
    """Seconds on the CPU, and what was predicted."""
    chain = as_chain(
        StandardScaler(half_life=None)
        | Torch(MLP(HIDDEN), optimizer=Adam(LR), batch_size=batch_size, half_life=None, device="cpu")
    )
    layout = chain.layout(data.spec)
    chain.bind(data.spec, allocate(layout), allocate_touched(layout))
    chain.warm_up()
    out = np.empty((len(data.rows), 1), np.float32)
    (numeric, categories), (y, weight) = data.x, data.truth
    began = time.thread_time()
    for a in range(0, len(out), CALL):
        b = a + CALL
        chain.test_then_learn(Rows(numeric[a:b], categories[a:b]), Truth(y[a:b], weight[a:b]), out[a:b])
    return time.thread_time() - began, out[:, 0] > 0.5


def theirs(python: str, rows: int) -> dict[str, Any]:
    """What deep-river tells of its run: rows, seconds, accuracy of the first pass, versions."""
    done = subprocess.run(
        [python, str(SCRIPT), str(rows), json.dumps(HIDDEN), str(LR)], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description="MLP beside deep-river")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="of ours, the fastest counts; deep-river runs once")
    parser.add_argument("--peer", help="python of an environment that holds deep-river; else one is made")
    options = parser.parse_args()
    if options.peer is None:
        make_environment("deep_river_mlp")
    python = options.peer or str(PEERS / "deep_river_mlp" / "bin" / "python")
    peer = theirs(python, options.rows // 4)
    rate = peer["rows"] / peer["seconds"]
    first = datasets.Phishing().n_samples
    data = read(datasets.Phishing(), options.rows)
    print("| learner | examples/s | us a row | as fast | right, first pass |\n|---|---|---|---|---|")
    print(f"| deep-river, batch 1 | {rate:,.0f} | {1e6 / rate:,.1f} | | {100 * peer['accuracy']:.2f} % |", flush=True)
    for size in (1, 8, 32, 256):
        runs = [ours(data, size) for _ in range(options.rounds)]
        seconds, predicted = min(runs, key=lambda run: run[0])
        mine = options.rows / seconds
        print(
            f"| headrace, batch {size} | {mine:,.0f} | {1e6 / mine:,.1f} | {mine / rate:,.1f} times "
            f"| {score(predicted, data, first)} |",
            flush=True,
        )
    print(f"\n{today()}, {machine()}; {options.rows:,} rows, {peer['rows']:,} of deep-river ({peer['versions']})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
