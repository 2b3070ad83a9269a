"""Random numbers in Numba: each member of a forest has a sequence of its own, whose state is how many it has drawn."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from .compiling import kernel


@kernel
def mixed(z: np.uint64) -> np.uint64:
    """SplitMix64's finish: 64 bits that look random for any that are different."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def key_of_member(seed: np.uint64, member: int) -> np.uint64:
    """What names the sequence of one member of a forest."""
    return mixed(seed + np.uint64(member + 1) * np.uint64(0xD1B54A32D192ED03))


@kernel
def uniform(key: np.uint64, drawn: ndarray, member: int) -> float:
    """The next number of a sequence, from [0, 1); drawn uint64 (T,) counts on.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    drawn[member] += np.uint64(1)
    bits = mixed(key + drawn[member] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)
    return np.float64(bits) * 2.0**-53


@kernel
def poisson(least: float, key: np.uint64, drawn: ndarray, member: int) -> int:
    """A number with a Poisson distribution of rate -ln(least).

    Source: Knuth (1969), The art of computer programming, volume 2.
    """
    many = 0
    product = 1.0
    while product > least:
        many += 1
        product *= uniform(key, drawn, member)
    return many - 1
