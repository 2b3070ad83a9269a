"""A module of deep-river over the rows of a file: predict, then learn, row by row. `benchmarks/learners.py` runs it.

    python deep_river_learner.py rows.npz MLP '{"hidden": [64, 32], "lr": 0.001}' 1250

Prints seconds of its one thread on the CPU and the accuracy over the first so many rows, as JSON. Rows are dicts, made
before the clock begins, and standardised by River's scaler; layers with ReLU, Adam.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from deep_river.classification import Classifier
from river import preprocessing
from torch import nn


def mlp(numbers: int, hidden: list[int], lr: float) -> Any:
    """Layers of these widths, for two classes."""
    torch.manual_seed(0)
    widths = [numbers, *hidden]
    layers = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    return preprocessing.StandardScaler() | Classifier(
        module=nn.Sequential(*layers, nn.Linear(widths[-1], 2)), loss_fn="cross_entropy", optimizer_fn="adam", lr=lr
    )


def main() -> None:
    data, learner, settings, first = np.load(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    names = [f"n{i}" for i in range(data["x"].shape[1])]
    rows = [(dict(zip(names, x, strict=True)), bool(y)) for x, y in zip(data["x"].tolist(), data["y"], strict=True)]
    models = [{"MLP": mlp}[learner](len(names), **settings) for _ in range(2)]
    for x, y in rows[:20]:  # what is set up at the first rows is not counted
        models[0].predict_proba_one(x)
        models[0].learn_one(x, y)
    right, began = 0, time.thread_time()
    for i, (x, y) in enumerate(rows):
        p = models[1].predict_proba_one(x)
        right += i < first and max(p, key=p.__getitem__) == y
        models[1].learn_one(x, y)
    seconds = time.thread_time() - began
    print(json.dumps({"seconds": seconds, "score": f"{100 * right / first:.2f} %"}))


if __name__ == "__main__":
    main()
