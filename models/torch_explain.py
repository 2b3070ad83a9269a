"""Integrated gradients: what each input of a module adds to its scores, on the way from zeros to a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

POINTS = 64
TOGETHER = POINTS  # rows times points that are taken at one go: of one row, so that its bits do not depend on others


def integrate(
    module: Callable[[Tensor, Tensor], Tensor], numeric: Tensor, embedded: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contributions to the raw scores, and the scores of zeros.

    numeric   float32 (B, 2 N), embedded float32 (B, K, D)

    Returns float32 (B, O, 2 N), (B, O, K) (summed over D), (O,). With the slope s(t) at t times the row, a contribution
    is the row's number times the mean of s over t in (0, 1), taken at the middles of POINTS equal pieces.
    Source: Sundararajan, Taly and Yan (2017), equation 3.
    """
    with torch.no_grad():
        rest = module(numeric.new_zeros(1, numeric.shape[1]), embedded.new_zeros(1, *embedded.shape[1:]))
    outputs = rest.shape[1]
    of_numeric = np.zeros((len(numeric), outputs, numeric.shape[1]), np.float32)
    of_embedded = np.zeros((len(numeric), outputs, embedded.shape[1]), np.float32)
    t = (torch.arange(POINTS, dtype=torch.float32, device=numeric.device) + 0.5) / POINTS
    step = max(1, TOGETHER // POINTS)
    for a in range(0, len(numeric), step):
        n, e = numeric[a : a + step], embedded[a : a + step]
        along_n = (t[:, None, None] * n).flatten(0, 1).requires_grad_()  # (points * rows, 2 N)
        along_e = (t[:, None, None, None] * e).flatten(0, 1).requires_grad_()
        raw = module(along_n, along_e)
        for o in range(outputs):
            slopes = torch.autograd.grad(
                raw[:, o].sum(), (along_n, along_e), retain_graph=o + 1 < outputs, materialize_grads=True
            )
            mean_n, mean_e = (s.unflatten(0, (POINTS, len(n))).mean(0) for s in slopes)
            of_numeric[a : a + step, o] = (mean_n * n).cpu().numpy()
            of_embedded[a : a + step, o] = (mean_e * e).sum(-1).cpu().numpy()
    return of_numeric, of_embedded, rest[0].cpu().numpy()
