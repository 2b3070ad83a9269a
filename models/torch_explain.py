"""Integrated gradients: what each input of a module adds to its scores, on the way from zeros to a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

POINTS = 64


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
    for i, (n, e) in enumerate(zip(numeric, embedded, strict=True)):  # alone, so that no row's bits depend on others
        along_n = (t[:, None] * n).requires_grad_()  # (POINTS, 2 N)
        along_e = (t[:, None, None] * e).requires_grad_()
        raw = module(along_n, along_e)
        for o in range(outputs):
            slopes = torch.autograd.grad(
                raw[:, o].sum(), (along_n, along_e), retain_graph=o + 1 < outputs, materialize_grads=True
            )
            mean_n, mean_e = (s.mean(0) for s in slopes)
            of_numeric[i, o] = (mean_n * n).cpu().numpy()
            of_embedded[i, o] = (mean_e * e).sum(-1).cpu().numpy()
    return of_numeric, of_embedded, rest[0].cpu().numpy()


def write_contributions(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray], numeric: np.ndarray, categories: np.ndarray, offsets: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Write what `integrate` returns to out float32 (B, O, N + K + 1), as contributions to the declared features.

    numeric, categories  intp (N,), (K,)   which feature each column of the module is
    offsets              float64 (O + 1,)  what is added to each raw score, and the unit the scores are in
    """
    of_numeric, of_embedded, rest = parts
    N, K, unit = len(numeric), len(categories), offsets[-1]
    out[:, :, numeric] = unit * (of_numeric[..., :N] + of_numeric[..., N:])
    out[:, :, N + categories] = unit * of_embedded
    out[:, :, N + K] = unit * rest + offsets[:-1]
