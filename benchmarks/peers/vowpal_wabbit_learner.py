"""Vowpal Wabbit's command line over the rows of a file: predict, then learn. What `benchmarks/learners.py` runs.

    python vowpal_wabbit_learner.py rows.npz FTRL '{"options": ["--ftrl"]}' 1250

Prints seconds on the CPU, in its two threads together, and the accuracy over the first so many rows, as JSON. What its
start takes is left out; taking the text apart is not, for it cannot be told from learning.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def seconds_of(command: list[str]) -> float:
    """Processor time of a command that ends well."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    data, settings, first = np.load(sys.argv[1]), json.loads(sys.argv[3]), int(sys.argv[4])
    x, y = data["x"].tolist(), data["y"].tolist()
    with tempfile.TemporaryDirectory() as folder:
        rows, predictions = Path(folder) / "rows.txt", Path(folder) / "predictions.txt"
        rows.write_text(
            "".join(
                f"{1 if label else -1} |n " + " ".join(f"{i}:{value!r}" for i, value in enumerate(row)) + "\n"
                for row, label in zip(x, y, strict=True)
            )
        )
        vw = [sys.executable, "-m", "vowpalwabbit", "--loss_function", "logistic", "-d", str(rows), "--quiet"]
        one = Path(folder) / "one.txt"
        one.write_text(rows.open().readline())
        start = seconds_of([sys.executable, "-m", "vowpalwabbit", "-d", str(one), "--quiet"])
        seconds = seconds_of([*vw, *settings["options"], "-p", str(predictions)])
        raw = np.loadtxt(predictions, max_rows=first)
    right = 100 * np.mean((raw > 0) == (data["y"][:first] == 1))
    print(json.dumps({"seconds": seconds - start, "score": f"{right:.2f} %"}))


if __name__ == "__main__":
    main()
