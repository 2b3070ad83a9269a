"""Slopes of the losses and steps of the optimizers in torch, for a device: the same formulas as the CPU's kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import torch_truth as truths
from .dense_optimizers import DenseOptimizer
from .optimizers import SGD, AdaGrad

LARGEST = torch.finfo(torch.float32).max
STEEPEST = 1e18

# Letters: B rows, O outputs, P dense weights, all of them in one vector.


def slopes_of(loss: int, raw: Tensor, target: Tensor, scale: Tensor, offsets: Tensor) -> Tensor:
    """As torch_truth.write_slopes: float32 (B, O).

    raw (B, O); target (B,), in the unit of raw scores; scale (B,), the weight, 0: masked; offsets (O,)
    """
    if loss == truths.LOG:
        slope = torch.sigmoid(raw + offsets) - (target >= 0.5).float().unsqueeze(1)
    elif loss == truths.CROSS_ENTROPY:
        named = target.unsqueeze(1) == torch.arange(raw.shape[1], device=raw.device)
        slope = torch.softmax(raw + offsets, 1) - named.float()
    else:
        slope = raw - target.unsqueeze(1)
        if loss == truths.ABSOLUTE:
            slope = slope.sign()
        elif loss == truths.HUBER:
            slope = slope.clamp(-1.0, 1.0)
    weight = scale.unsqueeze(1)
    return torch.where(weight != 0, slope * weight, 0.0)


def is_fine(*tensors: Tensor) -> Tensor:
    """Whether all numbers are within 1e18, as a tensor: nobody waits for it. NaN is not."""
    return torch.stack([(t.abs() <= STEEPEST).all() for t in tensors]).all()


def step(
    optimizer: DenseOptimizer, weight: Tensor, slope: Tensor, moments: list[Tensor], steps: Tensor, share: Tensor,
    fine: Tensor,
) -> None:  # fmt: skip
    """One step, in place, as dense_kernels.py has it; where not fine, none.

    weight, slope (P,), moments of the optimizer (P,) each; steps float64 (1,), share (1,) 1 / examples, fine bool ()
    """
    g = slope * share
    lr = optimizer.lr
    new: list[Tensor]
    if isinstance(optimizer, SGD):
        h = g + optimizer.l2 * weight
        new = [optimizer.momentum * moments[0] + h] if moments else []
        moved = weight - lr * (new[0] if new else h)
    elif isinstance(optimizer, AdaGrad):
        h = g + optimizer.l2 * weight
        new = [(moments[0] + h * h).clamp(max=LARGEST)]
        moved = weight - lr * h / (new[0] + optimizer.eps).sqrt()
    else:
        t = steps + 1
        new = [
            optimizer.beta1 * moments[0] + (1 - optimizer.beta1) * g,
            (optimizer.beta2 * moments[1] + (1 - optimizer.beta2) * g * g).clamp(max=LARGEST),
        ]
        young1, young2 = ((1 - beta**t).float() for beta in (optimizer.beta1, optimizer.beta2))
        moved = (1 - lr * optimizer.weight_decay) * weight
        moved = moved - lr / young1 * new[0] / ((new[1] / young2).sqrt() + optimizer.eps)
    for kept, value in zip([weight, *moments], [moved.clamp(-LARGEST, LARGEST), *new], strict=True):
        kept.copy_(torch.where(fine, value, kept))
    steps += fine
