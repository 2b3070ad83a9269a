"""deep-river: an MLP that predicts and learns Phishing, row by row. Arguments: rows, widths of layers, step size."""

import json
import sys
import time
from importlib.metadata import version

import torch
from deep_river.classification import Classifier
from river import datasets, preprocessing
from torch import nn

rows, hidden, lr = int(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
pairs = list(datasets.Phishing())
widths = [len(pairs[0][0]), *hidden]
layers = [part for a, b in zip(widths, widths[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
model = preprocessing.StandardScaler() | Classifier(
    module=nn.Sequential(*layers, nn.Linear(widths[-1], 2)),
    loss_fn="cross_entropy",
    optimizer_fn="adam",
    lr=lr,
)
for x, y in pairs[:20]:  # what is set up at the first rows is not counted; what they taught is
    model.predict_proba_one(x)
    model.learn_one(x, y)
right, began = 0, time.thread_time()
for i in range(rows):
    x, y = pairs[i % len(pairs)]
    p = model.predict_proba_one(x)
    right += i < len(pairs) and max(p, key=p.__getitem__) == y
    model.learn_one(x, y)
seconds = time.thread_time() - began
versions = ", ".join(f"{name} {version(name)}" for name in ("deep-river", "torch", "river"))
told = {"rows": rows, "seconds": seconds, "accuracy": right / min(rows, len(pairs)), "versions": versions}
print(json.dumps(told))
