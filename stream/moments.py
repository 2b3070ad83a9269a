"""Moments in RFC 3339 text to microseconds since the epoch, where that is certain."""

from __future__ import annotations

from ..connectors.memory import load8
from ..jit import njit

_NOT_DIGITS = -1_000_000  # so that a sum with it is negative


@njit(cache=True, nogil=True)
def _two_digits(address):
    """Their value, negative where these are no digits."""
    tens, ones = load8(address) - 48, load8(address + 1) - 48
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return _NOT_DIGITS
    return 10 * tens + ones


@njit(cache=True, nogil=True)
def days_since_epoch(year, month, day):
    """Of a date in the proleptic Gregorian calendar, year > 0. Source: Hinnant, chrono-compatible date algorithms."""
    if month <= 2:
        year -= 1
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


@njit(cache=True, nogil=True)
def read_moment(address, end):
    """Microseconds since the epoch, and whether the text from address to end is certainly such a moment.

    2013-01-01T05:15:00, with T, t or a space; then a fraction, its seventh digit rounded half up and those behind it
    ignored; then Z, z, an offset +hh:mm, or nothing, which is read as UTC.
    """
    if end - address < 19 or load8(address + 4) != 45 or load8(address + 7) != 45:
        return 0, False
    between = load8(address + 10)
    if between != 84 and between != 116 and between != 32:
        return 0, False
    if load8(address + 13) != 58 or load8(address + 16) != 58:
        return 0, False
    century, year = _two_digits(address), _two_digits(address + 2)
    month, day = _two_digits(address + 5), _two_digits(address + 8)
    hour, minute, second = _two_digits(address + 11), _two_digits(address + 14), _two_digits(address + 17)
    if century < 0 or year < 0 or month < 1 or month > 12 or day < 1 or hour < 0 or hour > 23:
        return 0, False
    year += 100 * century
    if minute < 0 or minute > 59 or second < 0 or second > 59 or year < 1:
        return 0, False
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        last = 29 if leap else 28
    else:
        last = 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31
    if day > last:
        return 0, False
    at = address + 19
    fraction = 0
    if at < end and load8(at) == 46:
        at += 1
        first, scale = at, 1_000_000
        while at < end and 0 <= load8(at) - 48 <= 9:
            digit = load8(at) - 48
            if at - first < 6:
                scale //= 10
                fraction += digit * scale
            elif at - first == 6 and digit >= 5:
                fraction += 1
            at += 1
        if at == first or fraction > 999_999:  # rounded up into the next second, which may not exist
            return 0, False
    seconds = ((days_since_epoch(year, month, day) * 24 + hour) * 60 + minute) * 60 + second
    if at < end:
        zone = load8(at)
        if zone == 90 or zone == 122:
            at += 1
        elif (zone == 43 or zone == 45) and end - at == 6 and load8(at + 3) == 58:
            hours, minutes = _two_digits(at + 1), _two_digits(at + 4)
            if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
                return 0, False
            offset = (60 * hours + minutes) * 60
            seconds += offset if zone == 45 else -offset
            at += 6
    return seconds * 1_000_000 + fraction, at == end
