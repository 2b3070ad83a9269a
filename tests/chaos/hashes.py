"""The hashes by which a snapshot names keys and categories, written down once more."""

from __future__ import annotations

WORD = 2**64 - 1
KEY_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


def murmur(data: bytes, seed: int) -> int:
    """MurmurHash64A (Austin Appleby), of 64 bits; never 0, which stands for nothing."""
    m = 0xC6A4A7935BD1E995
    h = seed ^ (len(data) * m & WORD)
    for at in range(0, len(data), 8):
        k = int.from_bytes(data[at : at + 8], "little")
        if at + 8 <= len(data):
            k = k * m & WORD
            k = (k ^ k >> 47) * m & WORD
        h = (h ^ k) * m & WORD
    h = (h ^ h >> 47) * m & WORD
    return (h ^ h >> 47) or 1


def value_hash(name: str, value: str) -> int:
    """Of a value of a category, or of a field that aggregates are grouped by."""
    return murmur(value.encode(), murmur(name.encode(), 0))


def key_hash(key: str) -> tuple[int, int]:
    """Of an event's key: 128 bits."""
    return murmur(key.encode(), KEY_SEEDS[0]), murmur(key.encode(), KEY_SEEDS[1])
