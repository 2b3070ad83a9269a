"""Which features weighed most in each prediction: what a prediction record says under `explain`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..jit import njit

NO_FEATURE = -1
MOST_NUMBERS = 1 << 22  # of contributions at one go: 16 MiB


class Explained(NamedTuple):
    """Of B predictions the T features that weighed most, the heaviest first."""

    feature: NDArray[np.int32]  # (B, T) place among the numeric columns and then the categories; NO_FEATURE: no more
    contribution: NDArray[np.float32]  # (B, T)

    @classmethod
    def blank(cls, rows: int, top: int) -> Explained:
        """Room for so many predictions."""
        return cls(np.full((rows, top), NO_FEATURE, np.int32), np.zeros((rows, top), np.float32))

    def part(self, lo: int, hi: int) -> Explained:
        """Predictions [lo, hi), over the same memory."""
        return Explained(self.feature[lo:hi], self.contribution[lo:hi])


def rows_at_one_go(outputs: int, features: int) -> int:
    """How many rows to explain at one go, so that contributions (B, O, F + 1) take MOST_NUMBERS at most."""
    return max(1, MOST_NUMBERS // (outputs * (features + 1)))


@njit(cache=True, nogil=True)
def choose_outputs(out: NDArray[np.float32], chosen: NDArray[np.int64]) -> None:
    """Write to chosen int64 (B,) which output of a row is explained: the greatest, of equals the first. out (B, O)."""
    for i in range(out.shape[0]):
        best = 0
        for o in range(1, out.shape[1]):
            if out[i, o] > out[i, best]:
                best = o
        chosen[i] = best


@njit(cache=True, nogil=True)
def choose_heaviest(
    contributions: NDArray[np.float32], chosen: NDArray[np.int64], feature: NDArray[np.int32],
    contribution: NDArray[np.float32],
) -> None:  # fmt: skip
    """Write the features that add or take away most from the chosen output of each row, the heaviest first.

    contributions  float32 (B, O, F + 1), the last is the base; chosen int64 (B,)
    feature, contribution   (B, T)   changed in place

    Of equals the one that was declared first comes first. A contribution of 0 is left out.
    """
    T = feature.shape[1]
    for i in range(contributions.shape[0]):
        parts = contributions[i, chosen[i]]
        held = 0
        for f in range(parts.shape[0] - 1):
            size = abs(parts[f])
            if size > 0.0 and (held < T or size > abs(contribution[i, T - 1])):
                at = min(held, T - 1)
                while at > 0 and size > abs(contribution[i, at - 1]):
                    feature[i, at], contribution[i, at] = feature[i, at - 1], contribution[i, at - 1]
                    at -= 1
                feature[i, at], contribution[i, at] = f, parts[f]
                held = min(held + 1, T)
        for at in range(held, T):
            feature[i, at], contribution[i, at] = NO_FEATURE, 0.0


def heaviest(contributions: NDArray[np.float32], out: NDArray[np.float32], to: Explained) -> None:
    """Write to `to` what weighed most in predictions out (B, O) with these contributions (B, O, F + 1).

    Of several classes the one with the greatest P is explained.
    """
    chosen = np.empty(len(out), np.int64)
    choose_outputs(out, chosen)
    choose_heaviest(contributions, chosen, *to)
