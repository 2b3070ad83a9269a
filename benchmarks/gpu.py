"""A step of torch modules on a GPU beside what bounds it and beside plain torch: `python -m benchmarks.gpu`.

DCN v2 and a DLRM-like model (26 categories of 16 numbers, 13 numbers) learn micro-batches of 256 to 8,192 rows. For
each: time of a step of ours, of plain torch with nn.EmbeddingBag(sparse=True) under Adagrad (eager, and compiled), of
FBGEMM's tables where `fbgemm-gpu` is installed; and the floor, the greatest of: one launch for each kernel of the step,
bytes moved by the bandwidth measured, copy of the inputs. Then the latency of predictions while steps are made at full
rate.

First, on any machine, the host's share of a step: all that is done before the device is asked for anything, which is to
check labels, find rows in the tags and write the micro-batch where the copy begins. The device works meanwhile, so
that a step takes no less than the greater of both.

The rest needs a GPU; without one it prints "not measured". It was written on a machine without one: no figure of it
stands anywhere yet, but `--rehearse` runs all of it on a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import statistics
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
from headrace.models.torch_cpu import OnCpu
from headrace.models.torch_device import OnDevice

NUMBERS, CATEGORIES, DIM, BITS = 13, 26, 16, 20
HOST_BITS = (18, 20, 24)
SIZES = (256, 1024, 4096, 8192)
STEPS = 200
LAUNCH_SECONDS = 2.5e-6  # of one kernel, issued back to back
LAUNCHES = 5  # of a step of ours: copy in, two for new rows, the graph, copy out


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


def parts_of(size: int, count: int) -> list[tuple[Rows, Truth]]:
    """So many micro-batches of one stream."""
    x, truth = rows(size * count)
    cut = [slice(a, a + size) for a in range(0, size * count, size)]
    return [(Rows(x.numeric[s], x.categories[s]), Truth(truth.y[s], truth.weight[s])) for s in cut]


class Placed(Torch):
    """A learner that works as one on a device does, even if that is the CPU."""

    at: str = "cuda"
    kind: Callable[..., OnDevice] = OnDevice

    def _on(self, *parts: Any) -> OnCpu | OnDevice:
        return self.kind(self, *parts, self.at)


class Staging(OnDevice):
    """The host's share of a step: nothing is asked of the device."""

    def _ask_for_step(self, *_: Any) -> None:
        return


def bound(module: TorchModule, size: int, device: str, bits: int = BITS, kind: type[OnDevice] = OnDevice) -> Any:
    """A learner at work on fresh arrays."""
    learner = Placed(module, optimizer=AdaGrad(0.01), batch_size=size, embeddings=Embeddings(DIM, bits))
    learner.at, learner.kind = device, kind
    chain = as_chain(learner)
    spec = Spec(tuple(f"n{i:02}" for i in range(NUMBERS)), tuple(f"c{i:02}" for i in range(CATEGORIES)), "binary")
    layout = chain.layout(spec)
    chain.bind(spec, allocate(layout), allocate_touched(layout))
    return chain


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[int], object], device: str) -> float:
    """Of one step, the median of five rounds of STEPS of them, the device waited for at the end of each."""
    steps = STEPS if device == "cuda" else 2
    for i in range(min(20, steps)):
        step(i)
    rounds = []
    for _ in range(5):
        wait(device)
        began = time.perf_counter()
        for i in range(steps):
            step(i)
        wait(device)
        rounds.append((time.perf_counter() - began) / steps)
    return statistics.median(rounds)


def host_share(size: int, bits: int) -> float:
    """Seconds of the process's own time that a step takes on the host, the median of steps over a stream of 131,072
    rows that comes three times; what it was the first time is left out, when the table fills."""
    chain, parts = bound(MODULES["DCN v2"], size, "cpu", bits, Staging), parts_of(size, (1 << 17) // size)
    took = []
    for _ in range(3):
        for x, truth in parts:
            began = time.process_time_ns()
            chain.learn(x, truth)
            took.append(time.process_time_ns() - began)
    return statistics.median(took[len(parts) :]) / 1e9


def ours(module: TorchModule, size: int, device: str) -> float:
    chain, parts = bound(module, size, device), parts_of(size, 8)
    return seconds_of(lambda i: chain.learn(*parts[i % 8]), device)


def plain(module: TorchModule, size: int, device: str, compiled: bool, optimizer: str) -> float:
    """nn.EmbeddingBag(sparse=True), one table with the same rows, and torch.optim; the inputs lie on the device."""
    inputs = Inputs(2 * NUMBERS, CATEGORIES, DIM, 1)
    net = module.build(inputs).to(device)
    table = nn.EmbeddingBag(1 << BITS, DIM, mode="sum", sparse=True).to(device)
    x, truth = rows(size)
    indices = torch.from_numpy((x.categories % np.uint64(1 << BITS)).astype(np.int64)).to(device)
    numeric = torch.from_numpy(np.concatenate([x.numeric, np.zeros_like(x.numeric)], 1)).to(device)
    y = torch.from_numpy(truth.y).to(device)
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

    return seconds_of(step, device)


def fbgemm(module: TorchModule, size: int, device: str) -> float | None:
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
    on_gpu = device == "cuda"
    placed = (
        EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST,
        ComputeDevice.CUDA if on_gpu else ComputeDevice.CPU,
    )
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [((1 << BITS) // CATEGORIES, DIM, *placed)] * CATEGORIES,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.05,
    )
    net = module.build(Inputs(2 * NUMBERS, CATEGORIES, DIM, 1)).to(device)
    dense = torch.optim.Adagrad(net.parameters(), lr=0.01)
    x, truth = rows(size)
    indices = torch.from_numpy((x.categories % np.uint64((1 << BITS) // CATEGORIES)).astype(np.int64).T.copy()).to(
        device
    )
    starts = torch.arange(size * CATEGORIES + 1).to(device)
    numeric = torch.from_numpy(np.concatenate([x.numeric, np.zeros_like(x.numeric)], 1)).to(device)
    y = torch.from_numpy(truth.y).to(device)

    def step(_: int) -> None:
        embedded = table(indices.reshape(-1), starts).view(size, CATEGORIES, DIM)
        loss = nn.functional.binary_cross_entropy_with_logits(net(numeric, embedded), y)
        dense.zero_grad()
        loss.backward()
        dense.step()

    return seconds_of(step, device)


def floor(module: TorchModule, size: int, device: str) -> float:
    """The greatest of launches, bytes by bandwidth, and the copy of the inputs."""
    net = module.build(Inputs(2 * NUMBERS, CATEGORIES, DIM, 1))
    dense = sum(p.numel() for p in net.parameters())
    embedded = size * CATEGORIES * DIM
    moved = 4 * (4 * dense + 5 * embedded)  # dense: w, g, n, w again; rows: read, slope written and read, read, written
    room = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    other = torch.empty_like(room)
    bandwidth = 2 * room.numel() / seconds_of(lambda _: other.copy_(room), device)
    given = torch.empty(4 * size * (CATEGORIES + 2 * NUMBERS + 2), dtype=torch.uint8, pin_memory=device == "cuda")
    held = torch.empty_like(given, device=device)
    copy_in = seconds_of(lambda _: held.copy_(given, non_blocking=True), device)
    return max(LAUNCHES * LAUNCH_SECONDS, moved / bandwidth, copy_in)


def predictions(module: TorchModule, size: int, device: str) -> tuple[float, float]:
    """Median and p99 in seconds of a prediction of 64 rows, while a step follows each."""
    chain, (x, truth) = bound(module, size, device), rows(size)
    few, out, took = Rows(x.numeric[:64], x.categories[:64]), np.empty((64, 1), np.float32), []
    steps = STEPS if device == "cuda" else 2
    for i in range(2 * steps):
        began = time.perf_counter()
        chain.predict(few, out)
        if i >= steps:
            took.append(time.perf_counter() - began)
        chain.learn(x, truth)
    return float(np.median(took)), float(np.quantile(took, 0.99))


def print_host_shares(sizes: list[int]) -> None:
    print("host's share of a step, one thread: us (ns for each category of a row)")
    print("| rows | " + " | ".join(f"2^{bits} rows of the table" for bits in HOST_BITS) + " |")
    print("|---" * (len(HOST_BITS) + 1) + "|")
    for size in sizes:
        shares = [host_share(size, bits) for bits in HOST_BITS]
        cells = (f"{share * 1e6:,.0f} ({share * 1e9 / size / CATEGORIES:.1f})" for share in shares)
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--rehearse", action="store_true", help="run all of it on a CPU; the figures mean nothing")
    options = parser.parse_args()
    print_host_shares(options.sizes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.rehearse:
        print("\nnot measured: torch sees no GPU on this machine")
        return 0
    name_of = torch.cuda.get_device_name() if device == "cuda" else "rehearsal on a CPU"
    print(f"\n{name_of}, torch {torch.__version__}; us a step")
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
                plain(module, size, device, compiled, optimizer)
                for compiled, optimizer in ((False, "adagrad"), (False, "sparse_adam"), (True, "adagrad"))
            ]
            figures = [
                ours(module, size, device),
                floor(module, size, device),
                *theirs,
                fbgemm(module, size, device),
                *predictions(module, size, device),
            ]
            cells = " | ".join("" if figure is None else f"{figure * 1e6:,.0f}" for figure in figures)
            print(f"| {name} | {size:,} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
