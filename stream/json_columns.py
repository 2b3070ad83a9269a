"""Kernels: JSON objects and lists of a known shape into columns, where that is sure; other rows are flagged.

Arrays at the door, addresses within, since an array passed on for each row is counted for each row.
"""

from __future__ import annotations

from numba import int64, uint64

from ..connectors.memory import load8, load32, load64, store8, store64
from ..jit import njit
from .decimals import read_float, read_int
from .flat_schema import BOOL, FLOAT, INT, MOMENT, NOT_SURE, OBJECT, TEXT, VALUE
from .json_text import (
    CLOSE,
    CLOSE_LIST,
    COLON,
    COMMA,
    FALS,
    NULL,
    OPEN,
    OPEN_LIST,
    QUOTE,
    SMALL_E,
    TRUE,
    is_utf8,
    skip_space,
    skip_value,
    text_end,
)
from .moments import read_moment

WIDTH = 8  # of the plan of a field: a cache line
_KIND, _NULLABLE, _TEXT, _NAME_SIZE, _NAME, _FIRST, _MASK = range(7)
# _TEXT: its row of text_start, or -1; _NAME: its place in words; _FIRST: the first of them, _MASK: what counts of it

_FLAGGED = -1  # in the place of how many fields were seen


@njit(cache=True, nogil=True)
def decode_objects(
    base, behind, starts, sizes, plan, words, become, absent, follower, marks, cells, known, text_start, text_size,
    flagged,
):  # fmt: skip
    """Decode B records into the arrays of FlatRows. Returns whether a text is one of the tail, which is not there yet.

    base      int64              the address of data
    behind    int64              the size of data, and so where the tail will begin
    plan      int64 (F, WIDTH)  of each field, by the names above
    words     uint64 (W,)        each field's name with its closing quote, filled up with zeros to whole words
    become    int64 (F,)         what an absent field becomes
    absent    int64 (F, 3)       the bits of its cell, its text's place in the tail behind data, its size
    follower  int64 (F + 1,)     the field that was last seen behind field j, or first in a record (at F); changed in
                                 place. No array may be made in here: it would be freed once its address is taken
    marks     int64 (F,)         zeros; the last record, from 1 on, in which each field was seen; changed in place
    """
    rows, fields = starts.shape[0], plan.shape[0]
    at_plan, at_words, at_follower = plan.ctypes.data, words.ctypes.data, follower.ctypes.data
    at_marks, at_cells, at_known = marks.ctypes.data, cells.ctypes.data, known.ctypes.data
    at_start, at_size = text_start.ctypes.data, text_size.ctypes.data
    from_tail = False
    for i in range(rows):
        seen = _FLAGGED
        if sizes[i] > 1:
            p = base + starts[i]
            seen = _row(
                p, p + sizes[i], base, i, rows, fields, at_plan, at_words, at_follower, at_marks,
                at_cells, at_known, at_start, at_size,
            )  # fmt: skip
        if seen != fields:
            for j in range(fields):
                if marks[j] != i + 1 and become[j] == NOT_SURE:
                    seen = _FLAGGED
            for j in range(fields):
                if seen == _FLAGGED or marks[j] != i + 1:
                    given = seen != _FLAGGED and become[j] == VALUE
                    known[j, i] = given
                    cells[j, i] = uint64(absent[j, 0])
                    if plan[j, _TEXT] >= 0:
                        text_start[plan[j, _TEXT], i] = behind + absent[j, 1] if given else 0
                        text_size[plan[j, _TEXT], i] = absent[j, 2] if given else -1
                        from_tail |= given
        flagged[i] = seen == _FLAGGED
    return from_tail


@njit(cache=True, nogil=True, forceinline=True)
def _row(p, end, base, i, rows, fields, plan, words, follower, marks, cells, known, text_start, text_size):
    """Decode the record from address p to end into row i of so many. Returns how many fields were seen, or _FLAGGED.

    base is the address of data, plan ... text_size those of the arrays. Nothing on the way looks for the end: every
    byte up to the closing brace is accepted in turn, so a record that was cut off shows by where that brace lies.
    """
    p = skip_space(p)
    if load8(p) != OPEN:
        return _FLAGGED
    p = skip_space(p + 1)
    seen = 0
    last = fields
    while load8(p) == QUOTE:
        p += 1
        j = int64(load64(follower + 8 * last))
        if not _is_name(p, plan, words, j):
            j = 0
            while j < fields and not _is_name(p, plan, words, j):
                j += 1
            store64(follower + 8 * last, j if j < fields else 0)
        if j < fields:
            p += _of(plan, j, _NAME_SIZE)
            if int64(load64(marks + 8 * j)) == i + 1:
                return _FLAGGED  # twice
            store64(marks + 8 * j, i + 1)
            seen += 1
            last = j
        else:
            stop, high = text_end(p)
            if load8(stop) != QUOTE or (high and not is_utf8(p, stop)):
                return _FLAGGED
            p = stop + 1
        if load8(p) != COLON:
            p = skip_space(p)
            if load8(p) != COLON:
                return _FLAGGED
        p += 1
        if load8(p) <= 32:
            p = skip_space(p)
        if j == fields:
            p = skip_value(p, end)
            if p == 0:
                return _FLAGGED
        else:
            p = _value(p, end, base, plan, j, i, rows, cells, known, text_start, text_size)
            if p == 0:
                return _FLAGGED
        if load8(p) <= 32:
            p = skip_space(p)
        if load8(p) != COMMA:
            break
        p += 1
        if load8(p) <= 32:
            p = skip_space(p)
        if load8(p) != QUOTE:
            return _FLAGGED
    if load8(p) != CLOSE:
        return _FLAGGED
    p += 1
    while p < end and load8(p) <= 32 and skip_space(p) > p:
        p += 1
    return seen if p == end else _FLAGGED


@njit(cache=True, nogil=True, forceinline=True)
def _value(p, end, base, plan, j, i, rows, cells, known, text_start, text_size):
    """Decode the value at p, of field j of a plan, into row i of so many. Returns what is behind it; 0: not sure."""
    kind, text = _of(plan, j, _KIND), _of(plan, j, _TEXT)
    cell = j * rows + i
    place = 8 * (text * rows + i)
    if kind == FLOAT and load8(p) < 64:
        bits, p = read_float(p)
        if p == 0:
            return 0
        store64(cells + 8 * cell, bits)
        store8(known + cell, 1)
        return p
    if kind == TEXT and load8(p) == QUOTE:
        first = p + 1
        p, high = text_end(first)
        if load8(p) != QUOTE or (high and not is_utf8(first, p)):
            return 0
        store64(text_start + place, first - base)
        store64(text_size + place, p - first)
        store8(known + cell, 1)
        return p + 1
    if load32(p) == NULL:
        if _of(plan, j, _NULLABLE) == 0:
            return 0
        store64(cells + 8 * cell, 0)
        store8(known + cell, 0)
        if text >= 0:
            store64(text_start + place, 0)
            store64(text_size + place, -1)
        return p + 4
    if kind == INT:
        first = p
        bits, p = read_int(p)
        if p == 0:
            return 0
        store64(cells + 8 * cell, bits)
        store8(known + cell, 1)
        if text >= 0:
            store64(text_start + place, first - base)
            store64(text_size + place, p - first)
        return p
    if kind == BOOL:
        value = load32(p)
        if value == TRUE:
            p += 4
        elif value == FALS and load8(p + 4) == SMALL_E:
            p += 5
        else:
            return 0
        store64(cells + 8 * cell, int64(value == TRUE))
        store8(known + cell, 1)
        return p
    if kind == MOMENT and load8(p) == QUOTE:
        first = p + 1
        p, high = text_end(first)
        micros, certain = read_moment(first, p)
        if load8(p) != QUOTE or not certain:
            return 0
        store64(cells + 8 * cell, micros)
        store8(known + cell, 1)
        return p + 1
    if kind >= OBJECT:  # of any kind: its own plan says whether it is the right one
        first = p
        p = skip_value(p, end)
        if p == 0:
            return 0
        store64(text_start + place, first - base)
        store64(text_size + place, p - first)
        store8(known + cell, 1)
        return p
    return 0


@njit(cache=True, nogil=True, forceinline=True)
def _of(plan, j, what):
    """What the plan at this address says of field j."""
    return int64(load64(plan + 8 * (WIDTH * j + what)))


@njit(cache=True, nogil=True, forceinline=True)
def _is_name(address, plan, words, j):
    """Whether the name of field j and its closing quote lie at an address."""
    v = load64(address)
    if (v ^ load64(plan + 8 * (WIDTH * j + _FIRST))) & load64(plan + 8 * (WIDTH * j + _MASK)) != uint64(0):
        return False
    rest = _of(plan, j, _NAME_SIZE) - 8
    if rest <= 0:
        return True
    words += 8 * _of(plan, j, _NAME)
    while rest > 0:
        address += 8
        words += 8
        differ = load64(address) ^ load64(words)
        if rest < 8:
            differ <<= uint64(64 - 8 * rest)
        if differ != uint64(0):
            return False
        rest -= 8
    return True


@njit(cache=True, nogil=True)
def decode_lists(base, starts, sizes, plan, cells, known, text_start, text_size, flagged):
    """Decode B lists, each of F values, into the arrays of FlatRows; see decode_objects."""
    rows, fields = starts.shape[0], plan.shape[0]
    at_plan, at_cells, at_known = plan.ctypes.data, cells.ctypes.data, known.ctypes.data
    at_start, at_size = text_start.ctypes.data, text_size.ctypes.data
    for i in range(rows):
        sure = False
        if sizes[i] > 1:
            p = base + starts[i]
            sure = _list(p, p + sizes[i], base, i, rows, fields, at_plan, at_cells, at_known, at_start, at_size)
        if not sure:
            for j in range(fields):
                known[j, i] = False
                if plan[j, _TEXT] >= 0:
                    text_start[plan[j, _TEXT], i], text_size[plan[j, _TEXT], i] = 0, -1
        flagged[i] = not sure


@njit(cache=True, nogil=True, forceinline=True)
def _list(p, end, base, i, rows, fields, plan, cells, known, text_start, text_size):
    """Decode the list from address p to end into row i of so many. Returns whether that is sure."""
    p = skip_space(p)
    if load8(p) != OPEN_LIST:
        return False
    for j in range(fields):
        p = skip_space(p + 1)  # behind the bracket, or a comma
        p = _value(p, end, base, plan, j, i, rows, cells, known, text_start, text_size)
        if p == 0:
            return False
        p = skip_space(p)
        if load8(p) != (COMMA if j < fields - 1 else CLOSE_LIST):
            return False
    return p + 1 == end


@njit(cache=True, nogil=True)
def flag_others(base, start, size, allowed, allowed_start, allowed_size, flagged):
    """Flag the rows whose text, if there is one, is none of those allowed, which lie from another address on."""
    for i in range(start.shape[0]):
        known = size[i] < 0
        for k in range(allowed_size.shape[0]):
            if size[i] == allowed_size[k] and not known:
                known = True
                for at in range(size[i]):
                    known &= load8(base + start[i] + at) == load8(allowed + allowed_start[k] + at)
        flagged[i] |= not known
