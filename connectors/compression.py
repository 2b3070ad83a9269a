"""Taking the compression off a record batch, with a bound on what comes out before memory is given to it."""

from __future__ import annotations

from collections.abc import Callable

import cramjam
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MOST_BYTES = 256 << 20  # of one batch without its compression; a batch has about a megabyte
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4  # as a batch's attributes say
_XERIAL = b"\x82SNAPPY\x00" + (1).to_bytes(4, "big") * 2  # the frame that Java puts around blocks of Snappy


def decompress(codec: int, data: memoryview) -> Bytes:
    """What was compressed, in a buffer of its own. Lets go of the GIL meanwhile.

    Raises ValueError for damaged data, for an unknown codec, and for more than MOST_BYTES.
    """
    try:
        if codec == SNAPPY:
            return _snappy(data)
        into = {GZIP: cramjam.gzip, LZ4: cramjam.lz4, ZSTD: cramjam.zstd}[codec].decompress_into
    except KeyError:
        raise ValueError(f"unknown compression {codec}") from None
    except cramjam.DecompressionError as error:
        raise ValueError(str(error)) from None
    return _within_bounds(into, data)


def _within_bounds(into: Callable[[memoryview, Bytes], int], data: memoryview) -> Bytes:
    """These formats do not say reliably how much there will be: ask for room until it is enough."""
    room = min(max(16 * len(data), 1 << 16), MOST_BYTES)
    while True:
        out = np.empty(room, np.uint8)
        try:
            return out[: into(data, out)]
        except cramjam.DecompressionError as error:
            if room == MOST_BYTES:
                raise ValueError(f"{error} (at most {MOST_BYTES:,} bytes are decompressed)") from None
        room = min(8 * room, MOST_BYTES)


def _snappy(data: memoryview) -> Bytes:
    blocks = _blocks(data)
    sizes = [int(cramjam.snappy.decompress_raw_len(block)) for block in blocks]
    if sum(sizes) > MOST_BYTES:
        raise ValueError(f"{sum(sizes):,} bytes are compressed in it, at most {MOST_BYTES:,} are decompressed")
    out, at = np.empty(sum(sizes), np.uint8), 0
    for block, size in zip(blocks, sizes, strict=True):
        if size:
            cramjam.snappy.decompress_raw_into(block, out.data[at : at + size])
        at += size
    return out


def _blocks(data: memoryview) -> list[memoryview]:
    if bytes(data[:16]) != _XERIAL:
        return [data]
    blocks, at = [], 16
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big", signed=True)
        at += 4
        if not 0 < size <= len(data) - at:
            raise ValueError(f"a block of Snappy of {size:,} bytes, {len(data) - at:,} are left")
        blocks.append(data[at : at + size])
        at += size
    return blocks
