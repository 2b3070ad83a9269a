"""Embeddings of categories in a table of fixed size, for torch modules: the settings, and the table at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import numpy as np

from . import embedding_kernels as kernels
from .base import Array, Configured, check_number, check_whole, register
from .durations import parse_duration

GROUP = "embeddings"  # the row group, and what the names of its arrays begin with


@register
@dataclass(eq=False)
class Embeddings(Configured):
    """Each value of a category has `dim` numbers in a table of 2**bits rows, and learns them by row-wise AdaGrad.

    A hash of (feature, value) lives in one of the eight rows of its slot; its tag says in which, so values do not share
    rows. Where a slot is full, the value goes that was least recently learned: it is evicted, counted, and begins anew
    when it comes back. Should one micro-batch use all eight rows of a slot, a ninth value is not learned (counted too).

    dim        numbers of each value
    bits       2**bits rows of 4 dim + 20 bytes: 22 MB at dim 16 and bits 18
    lr         step of row-wise AdaGrad: w -= lr g / (sqrt(n) + eps), n += mean(g^2), g the sum over the micro-batch
    eps        keeps steps finite where n is 0
    start      new values begin within [-start, start], even and by hash; so is one predicted that has no row
    half_life  of n in event time, so that steps do not shrink for ever; None: never forget
    """

    dim: int = 16
    bits: int = 18
    _: KW_ONLY
    lr: float = 0.05
    eps: float = 1e-8
    start: float = 0.01
    half_life: str | None = "30d"

    def __post_init__(self) -> None:
        for name, low, high in (("dim", 1, 4096), ("bits", 6, 30)):
            check_whole(f"Embeddings({name}=)", getattr(self, name), low, high)
        check_number("Embeddings(lr=)", self.lr, 0.0, above=True)
        check_number("Embeddings(eps=)", self.eps, 0.0, above=True)
        check_number("Embeddings(start=)", self.start, 0.0, high=1e3)
        if self.half_life is not None:
            parse_duration(self.half_life, "Embeddings(half_life=)")

    def layout(self, width: int) -> dict[str, Array]:
        """The arrays of a table whose rows have `width` numbers."""
        rows = 1 << self.bits
        return {
            f"{GROUP}/weight": Array((rows, width), rows=GROUP, merge="steps", by=f"{GROUP}/evidence"),
            f"{GROUP}/evidence": Array((rows,), rows=GROUP, merge="sum"),
            f"{GROUP}/tag": Array((rows,), "uint64", rows=GROUP),
            f"{GROUP}/stamp": Array((rows,), "int64", rows=GROUP, merge="max"),
            f"{GROUP}/counts": Array((2,), "int64", merge="sum"),  # rows evicted, categories that found no row
        }


class Table:
    """A table of embeddings at work on arrays as `Embeddings.layout` says.

    order  intp (K,)  which column of categories is which
    """

    def __init__(
        self,
        settings: Embeddings,
        seed: int,
        order: np.ndarray,
        batch_size: int,
        state: Mapping[str, np.ndarray],
        touched: Mapping[str, np.ndarray],
    ) -> None:
        self.weight, self.evidence, self.tag, self.stamp, self.counts = (
            state[f"{GROUP}/{name}"] for name in ("weight", "evidence", "tag", "stamp", "counts")
        )
        self.marks, self._order = touched[GROUP], order
        rows, width = self.weight.shape
        most = max(1, batch_size * len(order))
        self._shift, self._begin = 64 - (settings.bits - 3), (seed, float(settings.start))
        self._steps = float(settings.lr), float(settings.eps)
        self._place = np.zeros(rows, np.int32)
        self.at, self.of = np.full((2, batch_size, len(order)), kernels.ABSENT, np.int32)
        self.rows, self.new = np.zeros((2, most), np.int32)
        self._sums = np.empty((most, width), np.float32)
        self.used = 0  # of `rows`, by the micro-batch in hand

    def look_up(self, categories: np.ndarray, out: np.ndarray) -> None:
        """Write the embeddings of uint64 (B, K) to float32 (B, K, D); changes no state."""
        kernels.look_up(categories, self._order, self._shift, *self._begin, self.tag, self.weight, out)

    def find(self, categories: np.ndarray, rows: np.ndarray, begun: np.ndarray) -> int:
        """Write the rows of uint64 (B, K) to int32 (B, K); R: missing, R + 1 + u: the u-th without a row, which begins
        with begun[u], float32 (U, D). How many have no row. Changes no state."""
        zero = len(self.weight)
        return int(kernels.find_rows(categories, self._order, self._shift, *self._begin, self.tag, zero, rows, begun))

    def take(self, categories: np.ndarray, live: np.ndarray, now: int) -> None:
        """Give the categories of a micro-batch their rows: `at` (B, K); `rows[:used]` are all of them, `of` (B, K) says
        which of these."""
        at = self.at[: len(live)]
        new = self._take(categories, live, now, self.marks, kernels.ABSENT, at)
        kernels.begin_rows(self.new, new, self.tag, *self._begin, self.weight, self.evidence)
        self.used = kernels.number_rows(at, self._place, self.rows, self.of)

    def take_for_device(
        self, categories: np.ndarray, live: np.ndarray, now: int, dirty: np.ndarray, rows: np.ndarray
    ) -> int:  # fmt: skip
        """As `take`, where a device holds embeddings and evidence: rows int32 (B, K), R where there is none.

        dirty  uint8 (R / 64,)  set to 1 for every 64 rows of which one was taken

        Returns how many rows are `new`; the device is to begin them, with what `write_starts` says.
        """
        return self._take(categories, live, now, dirty, len(self.weight), rows)

    def write_starts(self, count: int, begun: np.ndarray) -> None:
        """Write what the first so many of `new` begin with to begun float32 (>= count, D)."""
        kernels.write_starts(self.new, count, self.tag, *self._begin, begun)

    def _take(
        self, categories: np.ndarray, live: np.ndarray, now: int, dirty: np.ndarray, none: int, rows: np.ndarray
    ) -> int:  # fmt: skip
        return int(
            kernels.take_rows(
                categories, self._order, live, now, self._shift, self.tag, self.stamp, self.marks, dirty, self.counts,
                none, rows, self.new,
            )
        )  # fmt: skip

    def gather(self, out: np.ndarray) -> None:
        """Write the embeddings of what was taken to float32 (B, K, D)."""
        kernels.gather(self.at, self.weight, out)

    def learn(self, slope: np.ndarray) -> None:
        """Step the rows that were taken down the slope of the summed loss, float32 (B, K, D)."""
        of = self.of[: len(slope)]
        kernels.learn_rows(self.rows, self.used, of, slope, *self._steps, self.weight, self.evidence, self._sums)

    def forget(self, factor: float) -> None:
        """Scale the evidence by factor; embeddings stay."""
        kernels.forget_rows(float(factor), self.tag, self.evidence, self.marks)
