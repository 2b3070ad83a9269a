"""Numbers as the shortest decimal text that reads back as the same number, written in Numba kernels.

Text and choice of digits are those of `msgspec.json.encode`: 0.1, 1.0, -0.0, 1.5e-7, 1e16; null for what is not
finite. A float32 gets the digits that make it one of the float32s, in the same form.

put_float32, put_float64 and put_int64 write at an address and return the address behind the text, which is LONGEST at
most. They may write ROOM bytes from where they begin: what is behind the text is theirs, too, until they are done.

Source: Giulietti (2021), The Schubfach way to render doubles. It asks of a number c * 2**q which decimals of the
exponent k, or k + 1, lie between the midpoints to its neighbours, with 10**-k in 126 bits: enough to be exact.
"""

from __future__ import annotations

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from ..connectors.memory import high_product, leading_zeros, store8, store16, store32, store64, trailing_zeros
from ..jit import njit

LONGEST = 24  # -1.2345678901234567e-308
ROOM = 48

K_MIN, K_MAX = -324, 292  # the exponents k that float64 needs; float32 needs fewer
LOW_63 = 2**63 - 1
_ZEROS = uint64(int.from_bytes(b"0" * 8, "little"))
_ZERO_POINT = uint64(int.from_bytes(b"0.000000", "little"))
_POINT_ZERO = int.from_bytes(b".0", "little")
_NULL = int.from_bytes(b"null", "little")


def _powers() -> NDArray[np.uint64]:
    """floor(10**-k in 126 bits) + 1 for each k from K_MIN, as its upper 63 and its lower 63 bits."""
    halves = []
    for k in range(K_MIN, K_MAX + 1):
        whole = 10 ** abs(k)
        if k <= 0:
            g = (whole << 126 >> whole.bit_length()) + 1
        else:
            g = (1 << whole.bit_length() + 125) // whole + 1
        halves.append((g >> 63, g & LOW_63))
    return np.array(halves, np.uint64)


_POWERS = _powers()
_TENS = np.array([10**n for n in range(20)], np.uint64)


@njit(cache=True, nogil=True)
def _scaled(power_high, power_low, c):
    """c times the power, without its lowest 127 bits; the last bit says whether anything was cut off."""
    low = (power_high * c >> uint64(1)) + high_product(power_low, c)
    whole = high_product(power_high, c) + (low >> uint64(63))
    return whole | ((low & uint64(LOW_63)) + uint64(LOW_63)) >> uint64(63)


@njit(cache=True, nogil=True)
def _shortest(c, q, lopsided):
    """The decimal with fewest digits that lies nearer to c * 2**q than its neighbours do, of those the nearest.

    c         uint64  0 < c < 2**53
    q         int64
    lopsided  whether the neighbour below is at half the distance: c is a power of 2, and not the smallest

    -> digits uint64, exponent int64; the last digits may be zeros. An even c owns the midpoints to its neighbours.
    """
    k = (q * 661971961083 - (274743187321 if lopsided else 0)) >> 41  # floor(log10(2**q)), or of 3/4 of it
    shift = uint64(q + (-k * 913124641741 >> 38) + 2)  # floor(log2(10**-k))
    high, low = _POWERS[k - K_MIN, 0], _POWERS[k - K_MIN, 1]
    odd = c & uint64(1)
    four = c << uint64(2)  # all in quarters of 10**k from here: the midpoints are whole, too
    value = _scaled(high, low, four << shift)
    above = _scaled(high, low, four + uint64(2) << shift) - odd
    below = _scaled(high, low, four - uint64(1 if lopsided else 2) << shift) + odd
    # both exponents are worked out, and one is taken: a branch here would be guessed wrong half of the time
    down = value >> uint64(2)
    middle = (down << uint64(2)) + uint64(2)
    down_fits = below <= down << uint64(2)
    nearer_up = value > middle or (value == middle and down & uint64(1) == uint64(1))
    one_fits = down_fits != ((down << uint64(2)) + uint64(4) <= above)
    digits = down + uint64((not down_fits) if one_fits else nearer_up)
    tens = down // uint64(10)
    tens_fit = below <= tens * uint64(40)
    if (down >= uint64(10)) & (tens_fit != (tens * uint64(40) + uint64(40) <= above)):
        digits = tens + uint64(not tens_fit)
        k += 1
    return digits, k


@njit(cache=True, nogil=True)
def _eight(value):
    """The eight decimal digits of a uint64 below 10**8, each in a byte, the first in the lowest."""
    fours = value // uint64(10_000)
    fours |= value - fours * uint64(10_000) << uint64(32)
    hundreds = (fours * uint64(10_486) >> uint64(20)) & uint64(0x7F_0000007F)
    pairs = hundreds | (fours - hundreds * uint64(100)) << uint64(16)
    tens = (pairs * uint64(103) >> uint64(10)) & uint64(0x000F_000F_000F_000F)
    return tens | (pairs - tens * uint64(10)) << uint64(8)


@njit(cache=True, nogil=True)
def _put_digits(address, value):
    """Write a uint64; may write 8 bytes more than its text has."""
    if value >= uint64(10**8):
        upper = value // uint64(10**8)
        if upper >= uint64(10**8):
            top = upper // uint64(10**8)
            address = _put_eight_at_most(address, top)
            store64(address, _eight(upper - top * uint64(10**8)) | _ZEROS)
            address += 8
        else:
            address = _put_eight_at_most(address, upper)
        store64(address, _eight(value - upper * uint64(10**8)) | _ZEROS)
        return address + 8
    return _put_eight_at_most(address, value)


@njit(cache=True, nogil=True)
def _put_eight_at_most(address, value):
    digits = _eight(value)
    leading = trailing_zeros(digits | uint64(1 << 63)) >> 3  # zeros; of 0 itself one is left
    store64(address, (digits | _ZEROS) >> uint64(leading << 3))
    return address + 8 - leading


@njit(cache=True, nogil=True)
def _count(digits):
    """How many digits a uint64 above 0 has."""
    about = (64 - leading_zeros(digits)) * 1233 >> 12
    return about + (1 if digits >= _TENS[about] else 0)


@njit(cache=True, nogil=True)
def _put_decimal(address, digits, exponent):
    """Write digits * 10**exponent in the form of msgspec; digits uint64, 0 < digits < 10**17."""
    while digits % uint64(10) == uint64(0):
        digits //= uint64(10)
        exponent += 1
    count = _count(digits)
    point = count + exponent  # the number is 0.DIGITS * 10**point
    if -5 < point <= 0:  # 0.00001 and above
        store64(address, _ZERO_POINT)
        return _put_digits(address + 2 - point, digits)
    if 0 < point <= 16 and exponent >= 0:
        behind = _put_digits(address, digits)
        store64(behind, _ZEROS)
        store64(behind + 8, _ZEROS)
        store16(behind + exponent, _POINT_ZERO)
        return behind + exponent + 2
    scale = uint64(1)
    if 0 < point <= 16:
        scale = _TENS[-exponent]
    elif count > 1:
        scale = _TENS[count - 1]
    whole = digits // scale
    behind = _put_digits(address, whole)
    if scale > uint64(1):  # what follows the point, with the digit 1 before it to keep its zeros
        fraction = digits - whole * scale + scale
        end = _put_digits(behind, fraction)
        store8(behind, ord("."))
        behind = end
    if 0 < point <= 16:
        return behind
    store8(behind, ord("e"))
    return put_int64(behind + 1, point - 1)


@njit(cache=True, nogil=True)
def put_int64(address, value):
    """Write an int64."""
    if value < 0:
        store8(address, ord("-"))
        return _put_digits(address + 1, uint64(0) - uint64(value))
    return _put_digits(address, uint64(value))


@njit(cache=True, nogil=True)
def _put_float(address, bits, exponent_bits, fraction_bits):
    """Write the IEEE number of these bits, int64, of a format that has so many for exponent and fraction."""
    fraction = bits & (1 << fraction_bits) - 1
    exponent = bits >> fraction_bits & (1 << exponent_bits) - 1
    if exponent == (1 << exponent_bits) - 1:
        store32(address, _NULL)
        return address + 4
    if bits >> exponent_bits + fraction_bits:
        store8(address, ord("-"))
        address += 1
    if exponent == 0 and fraction == 0:
        store64(address, _ZERO_POINT)
        return address + 3
    lopsided = fraction == 0 and exponent > 1
    if exponent > 0:
        fraction |= 1 << fraction_bits
    else:
        exponent = 1
    bias = (1 << exponent_bits - 1) - 1
    digits, exponent = _shortest(uint64(fraction), exponent - bias - fraction_bits, lopsided)
    return _put_decimal(address, digits, exponent)


@njit(cache=True, nogil=True)
def put_float32(address, value):
    """Write a float32."""
    return _put_float(address, np.int64(np.float32(value).view(np.uint32)), 8, 23)


@njit(cache=True, nogil=True)
def put_float64(address, value):
    """Write a float64."""
    return _put_float(address, np.float64(value).view(np.int64), 11, 52)
