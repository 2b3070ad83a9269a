"""The grammar of JSON at an address: spaces, strings, and values that are only passed over.

All of it may read beyond a record, never beyond a buffer whose padding is zero: a zero byte ends everything. Whoever
calls has to see that what was accepted ended inside the record.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from ..connectors.memory import load8, load32, load64, trailing_zeros
from ..jit import njit

QUOTE, BACKSLASH, COLON, COMMA, OPEN, CLOSE = 34, 92, 58, 44, 123, 125
OPEN_LIST, CLOSE_LIST = 91, 93
TRUE, FALS, NULL = 0x65757274, 0x736C6166, 0x6C6C756E  # as load32 gives them
MINUS, ZERO, NINE, SMALL_E = 45, 48, 57, 101

_DEEPEST = 60  # nested values that are passed over; the kind of each is a bit
_ONES, _HIGHS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_QUOTES, _BACKSLASHES = np.uint64(0x2222222222222222), np.uint64(0x5C5C5C5C5C5C5C5C)
_SPACES = np.uint64(0x2020202020202020)


@njit(cache=True, nogil=True, forceinline=True)
def skip_space(address):
    """Where the next byte that is no white space lies."""
    c = load8(address)
    while c == 32 or c == 10 or c == 9 or c == 13:
        address += 1
        c = load8(address)
    return address


@njit(cache=True, nogil=True, forceinline=True)
def text_end(address):
    """Where plain text ends: at a quote, a backslash or a control byte; and whether it has bytes outside ASCII."""
    high = uint64(0)
    while True:
        v = load64(address)
        q, b = v ^ _QUOTES, v ^ _BACKSLASHES
        ends = (((q - _ONES) & ~q) | ((b - _ONES) & ~b) | ((v - _SPACES) & ~v)) & _HIGHS  # right up to its lowest bit
        if ends != uint64(0):
            before = v & ((ends & (uint64(0) - ends)) - uint64(1))
            return address + (trailing_zeros(ends) >> 3), (high | before) & _HIGHS != uint64(0)
        high = high | v
        address += 8


@njit(cache=True, nogil=True)
def is_utf8(address, end):
    """Whether these bytes are UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF."""
    while address < end:
        c = load8(address)
        if c < 0x80:
            address += 1
            continue
        low, high = 0x80, 0xBF  # of the second byte
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
            if c == 0xE0:
                low = 0xA0
            elif c == 0xED:
                high = 0x9F
        elif 0xF0 <= c <= 0xF4:
            more = 3
            if c == 0xF0:
                low = 0x90
            elif c == 0xF4:
                high = 0x8F
        else:
            return False
        if end - address <= more or load8(address + 1) < low or load8(address + 1) > high:
            return False
        for k in range(2, more + 1):
            if load8(address + k) & 0xC0 != 0x80:
                return False
        address += more + 1
    return True


@njit(cache=True, nogil=True)
def _skip_text(address):
    """Behind the closing quote of the string whose text begins here; 0 where it is not certainly well-formed."""
    while True:
        end, high = text_end(address)
        if high and not is_utf8(address, end):
            return 0
        c = load8(end)
        if c == QUOTE:
            return end + 1
        if c != BACKSLASH:
            return 0
        c = load8(end + 1)
        # \" \\ \/ \b \f \n \r \t; what \u may say about surrogates is left to the strict decoder
        if c != QUOTE and c != BACKSLASH and c != 47 and c != 98 and c != 102 and c != 110 and c != 114 and c != 116:
            return 0
        address = end + 2


@njit(cache=True, nogil=True)
def _skip_digits(address):
    while ZERO <= load8(address) <= NINE:
        address += 1
    return address


@njit(cache=True, nogil=True)
def _skip_number(address):
    """Behind the number that begins here, 0 where it is none."""
    if load8(address) == MINUS:
        address += 1
    first = address
    address = _skip_digits(first)
    if address == first or (load8(first) == ZERO and address > first + 1):
        return 0
    if load8(address) == 46:
        first = address + 1
        address = _skip_digits(first)
        if address == first:
            return 0
    if load8(address) | 32 == SMALL_E:
        address += 1
        if load8(address) == 43 or load8(address) == MINUS:
            address += 1
        first = address
        address = _skip_digits(first)
        if address == first:
            return 0
    return address


@njit(cache=True, nogil=True)
def skip_value(address, end):
    """Behind the JSON value of any kind that begins here; 0 where it is not certainly well-formed, or nested deep."""
    kinds = 0  # of the open ones, the innermost in the lowest bit; 1: an object
    depth = 0
    while address < end:
        c = load8(address)
        opened = False
        if c == QUOTE:
            address = _skip_text(address + 1)
        elif c in (OPEN, OPEN_LIST):
            if depth == _DEEPEST:
                return 0
            depth += 1
            kinds = 2 * kinds + (c == OPEN)
            opened = True
            address += 1
        elif load32(address) == TRUE or load32(address) == NULL:
            address += 4
        elif load32(address) == FALS and load8(address + 4) == SMALL_E:
            address += 5
        else:
            address = _skip_number(address)
        if address == 0:
            return 0
        while True:  # a value has ended, or an object or list has begun
            if depth == 0:
                return address
            address = skip_space(address)
            c = load8(address)
            if c == (CLOSE if kinds & 1 else CLOSE_LIST):
                depth -= 1
                kinds >>= 1
                address += 1
                opened = False
                continue
            if not opened:
                if c != COMMA:
                    return 0
                address = skip_space(address + 1)
            break
        if kinds & 1:
            if load8(address) != QUOTE:
                return 0
            address = _skip_text(address + 1)
            if address == 0:
                return 0
            address = skip_space(address)
            if load8(address) != COLON:
                return 0
            address = skip_space(address + 1)
    return 0
