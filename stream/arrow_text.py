"""Texts on their way to Polars and back, as Arrow columns: no object of Python for each."""

from __future__ import annotations

import nanoarrow
import numpy as np
import polars as pl

from ..connectors.memory import copy, load8, load32, padded
from ..connectors.spans import Spans
from ..jit import njit

_VIEW, _INLINE = 16, 12  # bytes of a view; a text of up to 12 lies in it, of another it tells buffer and place


def series_of(texts: Spans) -> pl.Series:
    """The texts as a series of Polars; null where there is none."""
    data, ends = texts.packed()
    known = texts.size >= 0
    nulls = len(texts) - int(np.count_nonzero(known))
    mask = np.packbits(known, bitorder="little") if nulls else None
    buffers = [mask, ends, data]
    return pl.Series(
        nanoarrow.c_array_from_buffers(
            nanoarrow.large_string(), len(texts), buffers, null_count=nulls, move=True
        )
    )  # fmt: skip


def spans_of(series: pl.Series) -> Spans:
    """The UTF-8 of a series of text, copied; -1 where it is null."""
    array = nanoarrow.c_array_stream(series.rechunk()).get_next()
    if array.schema.format != "vu":
        raise TypeError(f"Polars gives text as Arrow's {array.schema.format!r}, expected views, 'vu'")
    known, views, *texts, _ = array.buffers  # addresses; the last tells the sizes of the texts
    start, size = np.empty(len(series), np.int64), np.empty(len(series), np.int64)
    views += _VIEW * array.offset
    data = padded(_sizes(views, known, array.offset, start, size))
    _gather(views, np.array(texts, np.int64), start, size, data.ctypes.data)
    return Spans(data, start, size)


@njit(cache=True, nogil=True)
def _sizes(views, known, first, start, size):
    """Fill in the sizes of B views, and where each text will begin; returns the sum. known: 0, or a mask's address."""
    total = np.int64(0)
    for i in range(size.shape[0]):
        bit = first + i
        start[i], size[i] = total, -1
        if known == 0 or (load8(known + (bit >> 3)) >> (bit & 7)) & 1:
            size[i] = load32(views + _VIEW * i)
            total += size[i]
    return total


@njit(cache=True, nogil=True)
def _gather(views, buffers, start, size, out):
    """Copy the texts of B views to where they begin; nothing behind them is read: it may not be there."""
    for i in range(size.shape[0]):
        view = views + _VIEW * i
        source = view + 4
        if size[i] > _INLINE:
            source = buffers[load32(view + 8)] + load32(view + 12)
        if size[i] > 0:
            copy(out + start[i], source, size[i])


def warm_up() -> None:
    """Compile the kernels of this file."""
    spans_of(series_of(Spans.of([b"x"])))
