"""CRC32C, which seals Kafka's record batches."""

from __future__ import annotations

import numpy as np
from numba import njit, uint64

from .memory import load8


def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ 0x82F63B78, table >> 1)
    return table


_TABLE = _table()


@njit(cache=True, nogil=True)
def crc32c(address, size):
    """The CRC32C of bytes, int64, 0 <= it < 2**32."""
    rest = uint64(0xFFFFFFFF)
    for i in range(size):
        rest = _TABLE[(rest ^ uint64(load8(address + i))) & uint64(255)] ^ rest >> uint64(8)
    return np.int64(rest ^ uint64(0xFFFFFFFF))
