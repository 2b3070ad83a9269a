"""A step of torch modules on a GPU beside what bounds it and beside plain torch: `python -m benchmarks.gpu`.

DCN v2 and a DLRM-like model (26 categories of 16 numbers, 13 numbers) learn micro-batches of 256 to 8,192 rows. For
each: time of a step of ours, of plain torch with nn.EmbeddingBag(sparse=True) under Adagrad (eager, and compiled), of
FBGEMM's tables where `fbgemm-gpu` is installed; and the floor, the greatest of: one launch for each kernel of the step,
bytes moved by the bandwidth measured, copy of the inputs. Then the latency of predictions while steps are made at full
rate.

Without a GPU it prints "not measured". It was written on a machine without one: no figure of it stands anywhere yet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from headrace.models import (
    DCN,
    AdaGrad,
    Embeddings,
    Inputs,
    Rows,
    Spec,
    Torch,
    TorchModule,
    Truth,
    allocate,
    allocate_touched,
    as_chain,
)
from headrace.models.base import register

NUMBERS, CATEGORIES, DIM, BITS = 13, 26, 16, 20
SIZES = (256, 1024, 4096, 8192)
STEPS = 200
LAUNCH_SECONDS = 2.5e-6  # of one kernel, issued back to back
LAUNCHES = 12  # of a step of ours outside of the graph, which is one


@register
@dataclass(eq=False)
class DLRM(TorchModule):
    """Numbers through layers to one more vector, products of all pairs of vectors, layers on top.

    Source: Naumov et al. (2019), Deep learning recommendation model.
    """

    steady: ClassVar[bool] = True

    width: int = 64

    def build(self, inputs: Inputs) -> nn.Module:
        return DLRMNet(inputs, self.width)


class DLRMNet(nn.Module):
    def __init__(self, inputs: Inputs, width: int) -> None:
        super().__init__()
        vectors = inputs.categories + 1
        self.bottom = nn.Sequential(nn.Linear(inputs.numeric, width), nn.ReLU(), nn.Linear(width, inputs.dim))
        pairs = vectors * (vectors - 1) // 2
        self.top = nn.Sequential(nn.Linear(inputs.dim + pairs, width), nn.ReLU(), nn.Linear(width, inputs.outputs))
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, -1))

    def forward(self, numeric: Tensor, categories: Tensor) -> Tensor:
        bottom = self.bottom(numeric)
        vectors = torch.cat((bottom.unsqueeze(1), categories), 1)  # (B, K + 1, D)
        products = vectors @ vectors.transpose(1, 2)
        return self.top(torch.cat((bottom, products[:, self.pairs[0], self.pairs[1]]), 1))


MODULES: dict[str, TorchModule] = {"DCN v2": DCN(3, [256, 128]), "DLRM-like": DLRM()}


def rows(count: int, seed: int = 0) -> tuple[Rows, Truth]:
    """Rows with categories that come up as those of a web shop do: few often, many once."""
    rng = np.random.default_rng(seed)
    values = (rng.pareto(1.1, (count, CATEGORIES)) * 50).astype(np.uint64) % np.uint64(1 << 18)
    hashes = (values + np.arange(1, CATEGORIES + 1, dtype=np.uint64) * np.uint64(1 << 20)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    x = Rows(rng.normal(size=(count, NUMBERS)).astype(np.float32), hashes)
    y = (rng.random((count, 1)) < 0.3).astype(np.float32)
    return x, Truth(y, np.ones(count, np.float32))


def bound(module: TorchModule, size: int, device: str = "cuda") -> Any:
    """A learner at work on fresh arrays."""
    learner = Torch(
        module, optimizer=AdaGrad(0.01), batch_size=size, embeddings=Embeddings(DIM, BITS), device=device
    )  # fmt: skip
    chain = as_chain(learner)
    spec = Spec(tuple(f"n{i:02}" for i in range(NUMBERS)), tuple(f"c{i:02}" for i in range(CATEGORIES)), "binary")
    layout = chain.layout(spec)
    chain.bind(spec, allocate(layout), allocate_touched(layout))
    return chain


def seconds_of(step: Callable[[int], None]) -> float:
    """Of one step, the median of five rounds of STEPS of them, the device waited for at the end of each."""
    for i in range(20):
        step(i)
    rounds = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for i in range(STEPS):
            step(i)
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - began) / STEPS)
    return float(np.median(rounds))


def ours(module: TorchModule, size: int) -> float:
    chain, (x, truth) = bound(module, size), rows(size * 8)
    parts = [slice(a, a + size) for a in range(0, size * 8, size)]

    def step(i: int) -> None:
        part = parts[i % 8]
        chain.learn(Rows(x.numeric[part], x.categories[part]), Truth(truth.y[part], truth.weight[part]))

    return seconds_of(step)


def plain(module: TorchModule, size: int, compiled: bool, optimizer: str) -> float:
    """nn.EmbeddingBag(sparse=True), one table with the same rows, and torch.optim; the inputs lie on the device."""
    inputs = Inputs(2 * NUMBERS, CATEGORIES, DIM, 1)
    net = module.build(inputs).cuda()
    table = nn.EmbeddingBag(1 << BITS, DIM, mode="sum", sparse=True).cuda()
    x, truth = rows(size)
    indices = torch.from_numpy((x.categories % np.uint64(1 << BITS)).astype(np.int64)).cuda()
    numeric = torch.from_numpy(np.concatenate([x.numeric, np.zeros_like(x.numeric)], 1)).cuda()
    y = torch.from_numpy(truth.y).cuda()
    dense = torch.optim.Adagrad(net.parameters(), lr=0.01)
    sparse: Any = (torch.optim.Adagrad if optimizer == "adagrad" else torch.optim.SparseAdam)(
        table.parameters(), lr=0.01
    )
    forward: Any = torch.compile(net) if compiled else net

    def step(_: int) -> None:
        embedded = table(indices.reshape(-1, 1)).view(size, CATEGORIES, DIM)
        loss = nn.functional.binary_cross_entropy_with_logits(forward(numeric, embedded), y)
        dense.zero_grad()
        sparse.zero_grad()
        loss.backward()
        dense.step()
        sparse.step()

    return seconds_of(step)


def fbgemm(module: TorchModule, size: int) -> float | None:
    """FBGEMM's table-batched embeddings with row-wise AdaGrad; None where they are not installed."""
    try:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )
    except ImportError:
        return None
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [((1 << BITS) // CATEGORIES, DIM, EmbeddingLocation.DEVICE, ComputeDevice.CUDA)] * CATEGORIES,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.05,
    )
    net = module.build(Inputs(2 * NUMBERS, CATEGORIES, DIM, 1)).cuda()
    dense = torch.optim.Adagrad(net.parameters(), lr=0.01)
    x, truth = rows(size)
    indices = torch.from_numpy((x.categories % np.uint64((1 << BITS) // CATEGORIES)).astype(np.int64).T.copy()).cuda()
    starts = torch.arange(size * CATEGORIES + 1).cuda()
    numeric = torch.from_numpy(np.concatenate([x.numeric, np.zeros_like(x.numeric)], 1)).cuda()
    y = torch.from_numpy(truth.y).cuda()

    def step(_: int) -> None:
        embedded = table(indices.reshape(-1), starts).view(size, CATEGORIES, DIM)
        loss = nn.functional.binary_cross_entropy_with_logits(net(numeric, embedded), y)
        dense.zero_grad()
        loss.backward()
        dense.step()

    return seconds_of(step)


def floor(module: TorchModule, size: int) -> float:
    """The greatest of launches, bytes by bandwidth, and the copy of the inputs."""
    net = module.build(Inputs(2 * NUMBERS, CATEGORIES, DIM, 1))
    dense = sum(p.numel() for p in net.parameters())
    embedded = size * CATEGORIES * DIM
    moved = 4 * (4 * dense + 5 * embedded)  # dense: w, g, n, w again; rows: read, slope written and read, read, written
    room = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(room)
    bandwidth = 2 * room.numel() / seconds_of(lambda _: other.copy_(room) and None)
    given = torch.empty(4 * size * (CATEGORIES + 2 * NUMBERS + 2), dtype=torch.uint8, pin_memory=True)
    held = torch.empty_like(given, device="cuda")
    copy_in = seconds_of(lambda _: held.copy_(given, non_blocking=True) and None)
    return max(LAUNCHES * LAUNCH_SECONDS, moved / bandwidth, copy_in)


def predictions(module: TorchModule, size: int) -> tuple[float, float]:
    """Median and p99 in seconds of a prediction of 64 rows, while a step follows each."""
    chain, (x, truth) = bound(module, size), rows(size)
    out, took = np.empty((64, 1), np.float32), []
    for i in range(STEPS + 20):
        began = time.perf_counter()
        chain.predict(Rows(x.numeric[:64], x.categories[:64]), out)
        if i >= 20:
            took.append(time.perf_counter() - began)
        chain.learn(x, truth)
    return float(np.median(took)), float(np.quantile(took, 0.99))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not measured: torch sees no GPU on this machine")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; us a step")
    heads = (
        "rows",
        "ours",
        "floor",
        "eager, Adagrad",
        "eager, SparseAdam",
        "compiled, Adagrad",
        "FBGEMM",
        "p50",
        "p99",
    )
    print("| module | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for name, module in MODULES.items():
        for size in options.sizes:
            theirs = [
                plain(module, size, compiled, optimizer)
                for compiled, optimizer in ((False, "adagrad"), (False, "sparse_adam"), (True, "adagrad"))
            ]
            figures = [
                ours(module, size),
                floor(module, size),
                *theirs,
                fbgemm(module, size),
                *predictions(module, size),
            ]
            cells = " | ".join("" if figure is None else f"{figure * 1e6:,.0f}" for figure in figures)
            print(f"| {name} | {size:,} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
