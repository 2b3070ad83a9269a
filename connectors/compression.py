"""Compressing the records of a batch, and taking the compression off with a bound on what comes out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cramjam
import numpy as np
from aiokafka.codec import gzip_encode, snappy_encode, zstd_encode
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

MOST_BYTES = 256 << 20  # of one batch without its compression; a batch has about a megabyte
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4  # as a batch's attributes say
_LZ4_FRAME = bytes.fromhex("04224d18 6060 51")  # blocks stand alone and have up to 1 MiB; the sum of these two bytes
_LZ4_BLOCK_BYTES = 1 << 20
_LZ4_STORED = 1 << 31  # in the size of a block: not compressed
_XERIAL = b"\x82SNAPPY\x00" + (1).to_bytes(4, "big") * 2  # the frame that Java puts around blocks of Snappy


def compress(compression: str, data: Bytes) -> tuple[int, Bytes]:
    """The codec as a batch's attributes say it, and what it makes of the data: gzip, snappy, lz4, zstd.

    Lets go of the GIL meanwhile.
    """
    number, work = _COMPRESS[compression]
    return number, work(data)


def _lz4(data: Bytes) -> Bytes:
    """A frame of independent blocks, the only ones that brokers take; what cramjam has for those keeps the GIL.

    Source: LZ4 frame format 1.6
    """
    starts = range(0, len(data), _LZ4_BLOCK_BYTES)
    head = np.frombuffer(_LZ4_FRAME, np.uint8)
    out = np.empty(len(head) + sum(4 + _most(data[at : at + _LZ4_BLOCK_BYTES]) for at in starts) + 4, np.uint8)
    out[: len(head)], end = head, len(head)
    for at in starts:
        block = data[at : at + _LZ4_BLOCK_BYTES]
        size = told = int(cramjam.lz4.compress_block_into(block.data, out.data[end + 4 :], store_size=False))
        if size >= len(block):
            size = len(block)
            told = size | _LZ4_STORED
            out[end + 4 : end + 4 + size] = block
        out[end : end + 4] = np.frombuffer(told.to_bytes(4, "little"), np.uint8)
        end += 4 + size
    out[end : end + 4] = 0
    return out[: end + 4]


def _most(block: Bytes) -> int:
    return int(cramjam.lz4.compress_block_bound(block.data))


def _by(encode: Callable[[bytes], bytes]) -> Callable[[Bytes], Bytes]:
    return lambda data: np.frombuffer(encode(data.tobytes()), np.uint8)


_COMPRESS: dict[str, tuple[int, Callable[[Bytes], Bytes]]] = {
    "gzip": (GZIP, _by(gzip_encode)),
    "snappy": (SNAPPY, _by(snappy_encode)),
    "lz4": (LZ4, _lz4),
    "zstd": (ZSTD, _by(functools.partial(zstd_encode, level=1))),  # the 3 of aiokafka takes half as long again
}


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
