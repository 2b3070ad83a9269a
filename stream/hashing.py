"""Hashes of values: what joins a label to its event, names a category, and finds a key's aggregates.

Strings are hashed by their UTF-8 bytes with MurmurHash64A (Austin Appleby, public domain); numbers by the finalizer
of SplitMix64 (Steele et al. 2014) over their 64 bits. Hashes are stable over machines and versions: snapshots
hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from ..connectors.memory import load64
from ..connectors.spans import Spans

U64 = NDArray[np.uint64]

KEY_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)  # a key is 128 bits: one hash under each seed

_M = np.uint64(0xC6A4A7935BD1E995)
_R = np.uint64(47)


@njit(cache=True, nogil=True)
def _mix(x):
    """SplitMix64's finalizer over one uint64."""
    x = uint64(x)
    x = (x ^ (x >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> uint64(27))) * uint64(0x94D049BB133111EB)
    return x ^ (x >> uint64(31))


@njit(cache=True, nogil=True)
def _murmur(data, start, stop, seed):
    """MurmurHash64A of data[start:stop], little endian."""
    n = stop - start
    h = uint64(seed) ^ (uint64(n) * _M)
    words = n // 8
    for w in range(words):
        k = uint64(0)
        at = start + 8 * w
        for b in range(8):
            k |= uint64(data[at + b]) << uint64(8 * b)
        k *= _M
        k ^= k >> _R
        k *= _M
        h = (h ^ k) * _M
    rest = n - 8 * words
    if rest:
        k = uint64(0)
        for b in range(rest):
            k |= uint64(data[start + 8 * words + b]) << uint64(8 * b)
        h = (h ^ k) * _M
    h ^= h >> _R
    h *= _M
    return h ^ (h >> _R)


@njit(cache=True, nogil=True)
def _hash_texts(data, ends, valid, seed, out, s):
    """Hash B strings that lie one after another in data into column s of out; null stays 0, a hash is never 0."""
    start = np.int64(0)
    for i in range(ends.shape[0]):
        stop = ends[i]
        if valid[i]:
            h = _murmur(data, start, stop, seed)
            out[i, s] = h if h != uint64(0) else uint64(1)
        else:
            out[i, s] = uint64(0)
        start = stop


@njit(cache=True, nogil=True)
def _hash_spans(base, start, size, seeds, out, column):
    """_murmur of B strings where they lie from the address base on, under each of S seeds; 0 where the size is < 0."""
    for i in range(start.shape[0]):
        n = size[i]
        for s in range(seeds.shape[0]):
            if n < 0:
                out[i, column + s] = uint64(0)
                continue
            h = seeds[s] ^ (uint64(n) * _M)
            at = base + start[i]
            rest = n
            while rest >= 8:
                k = load64(at) * _M
                k = (k ^ (k >> _R)) * _M
                h = (h ^ k) * _M
                at += 8
                rest -= 8
            if rest > 0:  # the bytes that belong to it are the low ones
                shift = uint64(64 - 8 * rest)
                h = (h ^ ((load64(at) << shift) >> shift)) * _M
            h = (h ^ (h >> _R)) * _M
            h ^= h >> _R
            out[i, column + s] = h if h != uint64(0) else uint64(1)


@njit(cache=True, nogil=True)
def _hash_words(words, valid, seed, out, c):
    """Hash B values of 64 bits into column c of out; null stays 0, a hash is never 0."""
    start = _mix(uint64(seed))
    for i in range(words.shape[0]):
        if valid[i]:
            h = _mix(words[i] ^ start)
            out[i, c] = h if h != uint64(0) else uint64(1)
        else:
            out[i, c] = uint64(0)


@njit(cache=True, nogil=True)
def _combine(hashes, seed, out, c):
    """One hash per row over P hashes (B, P), order matters; 0 where any of them is 0."""
    for i in range(hashes.shape[0]):
        h = _mix(uint64(seed))
        known = True
        for p in range(hashes.shape[1]):
            if hashes[i, p] == uint64(0):
                known = False
            h = _mix(h ^ hashes[i, p]) + uint64(p + 1)
        if not known:
            out[i, c] = uint64(0)
        else:
            out[i, c] = h if h != uint64(0) else uint64(1)


def name_seed(name: str) -> int:
    """The seed that makes equal values of two features differ."""
    data = np.frombuffer(name.encode(), np.uint8)
    return int(_murmur(data, 0, len(data), np.uint64(0)))


def hash_texts(values: Sequence[str | None], seeds: Sequence[int], out: U64, column: int) -> None:
    """Hash B strings under each seed into the columns of out from `column` on; 0 where a value is None."""
    known = np.ones(len(values), np.bool_)
    if None in values:
        known = np.array([v is not None for v in values], np.bool_)
        values = ["" if v is None else v for v in values]
    text = "".join(cast(Sequence[str], values))
    data = text.encode()
    if len(data) == len(text):
        sizes = np.fromiter(map(len, cast(Sequence[str], values)), np.int64, len(values))
    else:
        sizes = np.fromiter((len(v.encode()) for v in cast(Sequence[str], values)), np.int64, len(values))
    ends = np.cumsum(sizes)
    for s, seed in enumerate(seeds):
        _hash_texts(np.frombuffer(data, np.uint8), ends, known, np.uint64(seed), out, column + s)


def hash_spans(texts: Spans, seeds: Sequence[int], out: U64, column: int) -> None:
    """As hash_texts, of B texts in UTF-8 where they lie; 0 where there is none."""
    start, size = np.ascontiguousarray(texts.start), np.ascontiguousarray(texts.size)
    _hash_spans(texts.data.ctypes.data, start, size, _array_of(tuple(seeds)), out, column)


@lru_cache(maxsize=4096)
def _array_of(seeds: tuple[int, ...]) -> U64:
    return np.array(seeds, np.uint64)


def hash_words(values: NDArray, known: NDArray[np.bool_], seeds: Sequence[int], out: U64, column: int) -> None:
    """Hash B values of 64 bits under each seed into the columns of out from `column` on; 0 where not known."""
    words = np.array(values).view(np.uint64)  # a copy: what Polars gives may be read-only, which would compile anew
    for s, seed in enumerate(seeds):
        _hash_words(words, np.array(known), np.uint64(seed), out, column + s)


def warm_up() -> None:
    """Compile the kernels of this file."""
    out = np.empty((1, 2), np.uint64)
    hash_texts(["a"], (0,), out, 0)
    hash_spans(Spans.of([b"a"]), (0,), out, 0)
    hash_words(np.zeros(1), np.ones(1, np.bool_), (0,), out, 0)
    combine(out, 0, out, 1)


def combine(hashes: U64, seed: int, out: U64, column: int) -> None:
    """One hash per row over P hashes (B, P), order matters, into a column of out; 0 where any of them is 0."""
    _combine(hashes, np.uint64(seed), out, column)
