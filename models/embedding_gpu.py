"""A step of row-wise AdaGrad on a device, for all rows that a micro-batch touches: sorted, summed, without atomics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # as on a machine without a GPU, where plain torch does the same
    triton = None

HAS_TRITON = triton is not None
CHUNK = 32  # occurrences of a row that are added at one go
SPAN = 16  # occurrences that one program looks at
NUMBERS = 2048  # and so many numbers at most, which one warp holds in registers

# Letters: n = B K occurrences of rows, R rows of the table, D numbers of each.


if triton is not None:

    @triton.jit(do_not_specialize=["n", "R"])  # one kernel for micro-batches of all sizes
    def _step_segments(  # type: ignore[no-untyped-def]
        rows, places, slope, weight, evidence, fine, n, R, lr, eps,
        D: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
    ):  # fmt: skip
        """One program for SPAN occurrences: each run of a row that begins among them is summed up and moves its row.

        rows    int32   (n,)    sorted; -1 and those from R on are not learned
        places  int64   (n,)    where each stood before it was sorted
        slope   float32 (n, D)  in the order of before
        weight, evidence  float32 (>= R, D), (>= R,)  changed in place
        fine    int32   (1,)    0: nothing is changed
        WIDTH   the power of two from D on
        """
        first = tl.program_id(0) * SPAN
        i = first + tl.arange(0, SPAN)
        row_of = tl.load(rows + i, mask=i < n, other=R)
        begins = row_of != tl.load(rows + i - 1, mask=(i > 0) & (i < n), other=-1)  # and -1 itself never does
        at = tl.min(tl.where(begins, i, first + SPAN), 0)
        end = tl.where(tl.load(fine) != 0, tl.minimum(first + SPAN, n), 0)
        row = tl.load(rows + at, mask=at < end, other=R)
        d = tl.arange(0, WIDTH)
        while row < R:
            total = tl.zeros((WIDTH,), tl.float32)
            found = CHUNK
            while found == CHUNK:
                j = at + tl.arange(0, CHUNK)
                same = tl.load(rows + j, mask=j < n, other=-1) == row
                place = tl.load(places + j, mask=same, other=0)
                seen = same[:, None] & (d < D)[None, :]
                part = tl.load(slope + place[:, None] * D + d[None, :], mask=seen, other=0.0)
                total += tl.sum(part, 0)
                found = tl.sum(same.to(tl.int32), 0)
                at += found
            evident = tl.load(evidence + row) + tl.sum(total * total, 0) / D
            evident = tl.minimum(evident, 3.4028234663852886e38)
            tl.store(evidence + row, evident)
            at_row = weight + row.to(tl.int64) * D + d
            moved = tl.load(at_row, mask=d < D, other=0.0) - lr / (tl.sqrt(evident) + eps) * total
            tl.store(at_row, moved, mask=d < D)
            row = tl.load(rows + at, mask=at < end, other=R)


def step_rows(
    rows: Tensor, slope: Tensor, weight: Tensor, evidence: Tensor, fine: Tensor, R: int, lr: float, eps: float
) -> None:  # fmt: skip
    """g = sum of a row's slopes, n += mean(g^2), w -= lr g / (sqrt(n) + eps), for every row below R among `rows`.

    rows    int32   (n,)    of each occurrence, in any order; -1 and those from R on are not learned
    slope   float32 (n, D)  of the summed loss
    weight, evidence  float32 (>= R, D), (>= R,)   changed in place
    fine    int32   (1,)    0: nothing is changed

    On a GPU by Triton (or where its interpreter is on), on a CPU by plain torch. The sort is stable and sums have a
    fixed order, so the same input gives the same bits on one kind of device. Nothing waits for a GPU, so this can be
    part of a CUDA graph.
    """
    ordered, places = torch.sort(rows, stable=True)
    if rows.is_cuda or is_interpreted():
        _step_segments[(-(-len(rows) // SPAN),)](
            ordered, places, slope, weight, evidence, fine, len(rows), R, lr, eps, **launched_with(slope.shape[1])
        )
        return
    _step_rows_plainly(ordered, places, slope, weight, evidence, fine, R, lr, eps)


def launched_with(D: int) -> dict[str, Any]:
    """Constants and options of `_step_segments` for rows of D numbers.

    Rows are narrow, and most occur a few times: one warp for each program, as far as a row fits in it. A product and a
    sum are rounded one after the other, as on a CPU.
    """
    width = triton.next_power_of_2(D)
    chunk = max(1, min(CHUNK, NUMBERS // width))
    warps = max(1, min(8, width // NUMBERS))
    return {"D": D, "WIDTH": width, "CHUNK": chunk, "SPAN": SPAN, "num_warps": warps, "enable_fp_fusion": False}


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, without a GPU (TRITON_INTERPRET=1)."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def _step_rows_plainly(
    ordered: Tensor, places: Tensor, slope: Tensor, weight: Tensor, evidence: Tensor, fine: Tensor, R: int,
    lr: float, eps: float,
) -> None:  # fmt: skip
    if not int(fine):
        return
    learned = (ordered >= 0) & (ordered < R)
    ordered, places = ordered[learned], places[learned]
    rows, segment = torch.unique_consecutive(ordered, return_inverse=True)
    sums = torch.zeros(len(rows), slope.shape[1], device=slope.device).index_add_(0, segment, slope[places])
    rows = rows.long()
    evidence[rows] = (evidence[rows] + sums.square().mean(1)).clamp(max=torch.finfo(torch.float32).max)
    weight[rows] -= lr / (evidence[rows].sqrt() + eps).unsqueeze(1) * sums
