"""Numbers in JSON text to the bits of float64 and int64, where that is certain; else the caller is told.

A float is rounded as IEEE 754 asks: exactly with Clinger's fast case, else by the algorithm of Eisel and Lemire
(Lemire 2021, Number parsing at a gigabyte per second, with the proof of Mushtak and Lemire 2023 that it needs no
fallback in its range). Subnormal, infinite and longer than 19 digits: not certain.
"""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint64
from numpy.typing import NDArray

from ..connectors.memory import bits_of, high_product, leading_zeros, load8, load64, trailing_zeros
from ..jit import njit

LEAST_POWER, GREATEST_POWER = -342, 308  # of ten: below is zero, above infinity, for every 64-bit number
MOST_DIGITS = 19  # that always fit into 64 bits

_MINUS, _PLUS, _POINT, _ZERO, _E, _LOWER = 45, 43, 46, 48, 101, 32
_SIGN = np.uint64(1 << 63)
_FRACTION = np.uint64((1 << 52) - 1)
_ALL = np.uint64(2**64 - 1)


def _powers_of_five() -> NDArray[np.uint64]:
    """uint64 (P, 2): the first 128 bits of 5**q, upper word first; cut off for q >= 0, rounded up for q < 0."""
    table = np.empty((GREATEST_POWER - LEAST_POWER + 1, 2), np.uint64)
    for row, q in zip(table, range(LEAST_POWER, GREATEST_POWER + 1), strict=True):
        if q >= 0:
            extra = (5**q).bit_length() - 128
            value = 5**q >> extra if extra >= 0 else 5**q << -extra
        else:
            bits = (5**-q).bit_length()
            value = (1 << (bits + 127)) // 5**-q + 1
        row[:] = value >> 64, value & (2**64 - 1)
    return table


_FIVES = _powers_of_five()
_TENS = np.array([10**k for k in range(20)], np.uint64)
_EXACT_TENS = np.array([10.0**k for k in range(23)])  # the greatest powers of ten that float64 holds exactly


@njit(cache=True, nogil=True, forceinline=True)
def nearest_float(w, power, negative):
    """The bits of the float64 nearest to w * 10**power, and whether that is certain. w uint64."""
    sign = _SIGN if negative else uint64(0)
    if w <= uint64(1 << 53) and -22 <= power <= 22:  # both exact, so one operation rounds once
        value = float64(w)
        value = value / _EXACT_TENS[-power] if power < 0 else value * _EXACT_TENS[power]
        return bits_of(value) | sign, True
    if w == uint64(0):
        return sign, True
    if power < LEAST_POWER or power > GREATEST_POWER:
        return uint64(0), False
    zeros = leading_zeros(w)
    w = w << uint64(zeros)
    row = power - LEAST_POWER
    high, low = high_product(w, _FIVES[row, 0]), w * _FIVES[row, 0]
    if high & uint64(0x1FF) == uint64(0x1FF):  # the lower half of 5**power may carry into the bits that count
        carry = high_product(w, _FIVES[row, 1])
        low += carry
        if carry > low:
            high += uint64(1)
    if low == _ALL and (power < -27 or power > 55):
        return uint64(0), False
    upper = high >> uint64(63)
    shift = upper + uint64(9)
    mantissa = high >> shift  # 54 bits: one more than is kept
    exponent = ((217706 * power) >> 16) + 63 + int64(upper) - zeros + 1023  # 217706 / 2**16: log2(10)
    if exponent <= 0:
        return uint64(0), False
    half_way = low <= uint64(1) and -4 <= power <= 23 and mantissa & uint64(3) == uint64(1)
    if half_way and mantissa << shift == high:
        mantissa &= ~uint64(1)  # to even
    mantissa = (mantissa + (mantissa & uint64(1))) >> uint64(1)
    if mantissa >= uint64(1 << 53):
        mantissa = uint64(1 << 52)
        exponent += 1
    if exponent >= 2047:
        return uint64(0), False
    return (mantissa & _FRACTION) | (uint64(exponent) << uint64(52)) | sign, True


@njit(cache=True, nogil=True, forceinline=True)
def read_digits(address, w):
    """Append the digits at an address to the decimal number w, uint64. Returns the address behind them, and w.

    Eight at a time; w is right modulo 2**64. May read 7 bytes past the byte that ends the digits.
    """
    while True:
        v = load64(address)
        above = v + uint64(0x4646464646464646)
        below = v - uint64(0x3030303030303030)
        other = (above | below) & uint64(0x8080808080808080)  # its lowest bit tells the first byte that is no digit
        if other == uint64(0):
            count = uint64(8)
        else:
            count = uint64(trailing_zeros(other)) >> uint64(3)
            if count == uint64(0):
                return address, w
            v = v << (uint64(64) - (count << uint64(3)))  # zeros in front
        v = ((v & uint64(0x0F0F0F0F0F0F0F0F)) * uint64(10 * 2**8 + 1)) >> uint64(8)
        v = ((v & uint64(0x00FF00FF00FF00FF)) * uint64(100 * 2**16 + 1)) >> uint64(16)
        v = ((v & uint64(0x0000FFFF0000FFFF)) * uint64(10_000 * 2**32 + 1)) >> uint64(32)
        w = w * _TENS[count] + v
        address += int64(count)
        if other != uint64(0):
            return address, w


@njit(cache=True, nogil=True, forceinline=True)
def read_int(address):
    """The bits of the int64 at an address, and the address behind its digits; 0 where the value is not certain.

    -0 is not, since its text is not that of its value. What follows the digits is for the caller to judge.
    """
    negative = load8(address) == _MINUS
    first = address + 1 if negative else address
    end, w = read_digits(first, uint64(0))
    count = end - first
    if count == 0 or count > MOST_DIGITS or (load8(first) == _ZERO and (count > 1 or negative)):
        return uint64(0), 0
    if w >= (_SIGN + uint64(1) if negative else _SIGN):
        return uint64(0), 0
    return uint64(0) - w if negative else w, end


@njit(cache=True, nogil=True, forceinline=True)
def read_float(address):
    """The bits of the float64 at an address, and the address behind its text; 0 where the value is not certain.

    An integer -0 is 0.0, as the strict decoder has it.
    """
    negative = load8(address) == _MINUS
    first = address + 1 if negative else address
    at, w = read_digits(first, uint64(0))
    count = at - first
    if count == 0 or (count > 1 and load8(first) == _ZERO):
        return uint64(0), 0
    power = 0
    c = load8(at)
    if c == _POINT:
        point = at
        at, w = read_digits(point + 1, w)
        power = point + 1 - at
        if power == 0:
            return uint64(0), 0
        count -= power
        c = load8(at)
    elif c | _LOWER != _E and w == uint64(0):
        negative = False
    if count > MOST_DIGITS and count - _zeros_in_front(first, count) > MOST_DIGITS:
        return uint64(0), 0
    if c | _LOWER == _E:
        c = load8(at + 1)
        signed = c in (_MINUS, _PLUS)
        digits = at + 2 if signed else at + 1
        at, e = read_digits(digits, uint64(0))
        if at == digits or at - digits > 5:
            return uint64(0), 0
        power += -int64(e) if c == _MINUS else int64(e)
    bits, certain = nearest_float(w, power, negative)
    return bits, at if certain else 0


@njit(cache=True, nogil=True)
def _zeros_in_front(address, digits):
    """How many of so many digits, with a point after the first of them, are zeros before any other."""
    zeros = 0
    while zeros < digits:
        c = load8(address)
        if c != _ZERO and c != _POINT:
            break
        zeros += c == _ZERO
        address += 1
    return zeros
