"""Hashes of values: what joins a label to its event, names a category, and finds a key's aggregates.

Strings are hashed by their UTF-8 bytes with MurmurHash64A (Austin Appleby, public domain); numbers by the finalizer
of SplitMix64 (Steele et al. 2014) over their 64 bits. Hashes are stable over machines and versions: snapshots
hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from ..connectors.memory import load64
from ..connectors.spans import Spans
from ..jit import njit

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
def _hash_spans(base, start, size, seeds, out, column):
    """MurmurHash64A of B strings where they lie from the address base on, under each of S seeds.

    A hash is never 0: that is of a string whose size is < 0.
    """
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
    out = np.empty((1, 1), np.uint64)
    hash_spans(Spans.of_texts([name]), (0,), out, 0)
    return int(out[0, 0])


def hash_spans(texts: Spans, seeds: Sequence[int], out: U64, column: int) -> None:
    """Hash B texts in UTF-8 under each seed into the columns of out from `column` on; 0 where there is none."""
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
    hash_spans(Spans.of([b"a"]), (0,), out, 0)
    hash_words(np.zeros(1), np.ones(1, np.bool_), (0,), out, 0)
    combine(out, 0, out, 1)


def combine(hashes: U64, seed: int, out: U64, column: int) -> None:
    """One hash per row over P hashes (B, P), order matters, into a column of out; 0 where any of them is 0."""
    _combine(hashes, np.uint64(seed), out, column)
