"""Publishes snapshots beside the stream: a short copy between two cycles, all else in a thread of its own.

A large table is copied as a running machine is moved: while the stream goes on, a thread copies what was touched since
the last time (`prepare`), again until little is left, and between two cycles (`take`) only that is copied.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..connectors.store import Fenced, Published, SnapshotStore
from ..errors import Refused, Unreachable
from ..jit import njit

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes, of each array in the buffer
ROOM = 1.25  # the buffer is so much larger than what was last taken, so that pending rows may grow
ROUNDS = 3  # of `prepare`: a table that is written to as fast as it is copied is never ready
LITTLE = 1 << 20  # bytes; copied in half a millisecond
RETRY_SECONDS = 0.5  # between attempts while `flush` waits


@njit(cache=True, nogil=True)
def copy_marked(source: np.ndarray, target: np.ndarray, marks: np.ndarray, width: int) -> None:
    """Copy those blocks of `width` items that are marked.

    source, target  unsigned (N,), of one dtype; N <= len(marks) * width   target changed in place
    marks           uint8 (ceil(N / width),)  not 0: copy items [i * width, (i + 1) * width)
    """
    for block in range(marks.shape[0]):
        if marks[block]:
            for i in range(block * width, min((block + 1) * width, source.shape[0])):
                target[i] = source[i]


@njit(cache=True)
def copy_marked_at_once(source: np.ndarray, target: np.ndarray, marks: np.ndarray, width: int) -> None:
    """`copy_marked` under the GIL: whoever lets go of it may wait 5 ms until another thread gives it back."""
    copy_marked(source, target, marks, width)


def warm_up() -> None:
    """Compile what copies tables of 4 and 8 bytes an item, or load it from Numba's cache."""
    for dtype in (np.uint32, np.uint64):
        for copy_blocks in (copy_marked, copy_marked_at_once):
            copy_blocks(np.zeros(1, dtype), np.zeros(1, dtype), np.ones(1, np.uint8), 1)


class Table(NamedTuple):
    """An array that is too large to be copied between two cycles; it stays where it is in memory.

    array    (R, ...), contiguous, of 4 or 8 bytes an item
    touched  uint8, one mark for so many rows (a power of two), as `allocate_touched` makes them: whoever writes to one
             of these rows sets it to 1. The publisher alone sets it back to 0. Tables may share their marks
    """

    array: np.ndarray
    touched: NDArray[np.uint8]


class _Copied(NamedTuple):
    """A table beside its copy, as unsigned numbers, one after another: a NaN stays the NaN that it is."""

    table: Table
    array: np.ndarray  # the copy; equal to the table's but in the blocks that are marked
    source: np.ndarray
    target: np.ndarray
    width: int  # numbers that share a mark

    @classmethod
    def of(cls, table: Table) -> _Copied:
        """Nothing is copied yet: all is marked."""
        array, copied = table.array, np.empty(table.array.shape, table.array.dtype)
        source, target = (np.frombuffer(a, f"u{a.itemsize}") for a in (array, copied))  # raises if not contiguous
        rows = 1 << (-(-len(array) // len(table.touched)) - 1).bit_length()
        table.touched[:] = 1
        return cls(table, copied, source, target, rows * (array.size // len(array)))


class _Taken(NamedTuple):
    """A snapshot that is copied and not published yet; token is None until `publish` says it."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    allow_nan: tuple[str, ...]
    token: int | None


class SnapshotPublisher:
    """Copies what a worker hands over and publishes it to `store`, one snapshot at a time.

    version   the last one published (at first: the one the worker started from), for prediction records
    token     of the last one published (at first: the one the store holds); an equal one is not published again
    tables    by the names that `take` knows them by; all that is given otherwise is copied whole
    on_error  called in the publishing thread, once, with `error`

    When a snapshot is due: `prepare`; when `prepared`, let the cycle end, and if it is `ready`, `take`, else `prepare`
    again; when the cycle is committed, `publish`. `stage` does with less: it is `take` and `publish`, ready or not.

    busy           a snapshot is being prepared or uploaded; whatever begins something would refuse
    prepared       a round of `prepare` is over; what is written from now on has to be copied again
    error          why nothing can be published any more and the worker must stop: Fenced (another worker of this slot
                   is ahead), SnapshotError (an array is not finite), or a fault of ours
    problem        why the last attempt failed although a later one may succeed (Redis away, full, read only);
                   logged when it appears and when it is over; else None
    last           what the last publish did; None before the first
    stall_seconds  how long the last `take` held up its caller
    buffer_bytes   memory that is kept for the copies
    published, failed, bytes_sent    totals

    Methods are called one at a time, from whichever thread of the worker; `reserve`, `prepare`, `take` and `stage`
    while nobody writes to the arrays.
    """

    def __init__(
        self,
        store: SnapshotStore,
        *,
        version: int = 0,
        token: int = -1,
        tables: Mapping[str, Table] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self.store, self.version, self.token, self.on_error = store, version, token, on_error
        self.error: Exception | None = None
        self.problem: str | None = None
        self.last: Published | None = None
        self.stall_seconds = 0.0
        self.published = self.failed = self.bytes_sent = 0
        self.prepared = False
        self._rounds = 0
        self._tables = {name: _Copied.of(table) for name, table in (tables or {}).items()}
        self._buffer = np.empty(0, np.uint8)  # copies of all else
        self._extent = 0  # bytes of the buffer that the last snapshot took
        self._taken: _Taken | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Prepared, and little was touched since, or it will not become less."""
        if not self.prepared or self._rounds >= ROUNDS:
            return self.prepared
        touched = (int(np.count_nonzero(t.table.touched)) * t.width * t.source.itemsize for t in self._tables.values())
        return sum(touched) <= LITTLE

    @property
    def buffer_bytes(self) -> int:
        return self._buffer.nbytes + sum(copied.array.nbytes for copied in self._tables.values())

    def reserve(self, size: int) -> None:
        """Make the memory for the copies of the tables and of `size` bytes of all else; at the start of a worker.

        Fresh memory is ten times slower to write to. Later it follows by itself. Not while `busy`.
        """
        self._copy_tables(self._touched(), copy_marked)
        self._fit(size)

    def prepare(self) -> bool:
        """Copy what was touched of the tables, in the background, while their owner goes on to write to them.

        Costs the caller a tenth of a millisecond. Returns False and does nothing while `busy`. What was taken and could
        not be published is given up. Raises `error` if there is one.
        """
        self._raise_error()
        if self.busy:
            return False
        self._taken, self.prepared, self._rounds = None, False, self._rounds + 1
        touched = self._touched()

        def copy_them() -> None:
            self._copy_tables(touched, copy_marked)
            self.prepared = True

        self._start(copy_them)
        return True

    def take(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], allow_nan: Collection[str] = ()) -> bool:
        """Copy the arrays and the meta as they are now; `publish` sends the copy.

        Returns False and does nothing while `busy`. What was taken before and is not published is replaced. Raises
        `error` if there is one.
        """
        self._raise_error()
        if self.busy:
            return False
        began = time.perf_counter()
        self._taken, self.prepared, self._rounds = None, False, 0
        self._copy_tables(self._touched(), copy_marked_at_once)
        copies = {name: copied.array for name, copied in self._tables.items() if arrays.get(name) is copied.table.array}
        copies |= self._copy({name: array for name, array in arrays.items() if name not in copies})
        copies = {name: copies[name] for name in arrays}
        self._taken = _Taken(copies, copy.deepcopy(dict(meta)), tuple(allow_nan), None)
        self.stall_seconds = time.perf_counter() - began
        return True

    def publish(self, token: int, **later: Any) -> None:
        """Publish in the background what was taken, as `SnapshotStore.publish` says.

        later   entries of the meta that were not known when it was taken, such as the place in the journal

        Does nothing when nothing was taken, or nothing has happened since the last one: the token is the same.
        """
        if self._taken is None or self._taken.token is not None:
            return
        if token == self.token:
            self._taken = None
            return
        self._taken = self._taken._replace(meta=self._taken.meta | later, token=token)
        self._start(self._upload)

    def stage(
        self,
        arrays: Mapping[str, np.ndarray],
        meta: Mapping[str, Any],
        token: int,
        allow_nan: Collection[str] = (),
    ) -> bool:
        """`take` and `publish` at once, where the token is known.

        Returns False and does nothing while `busy`, or when nothing has happened since: the token is the last one.
        """
        self._raise_error()
        if token == self.token or not self.take(arrays, meta, allow_nan):
            return False
        self.publish(token)
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until what is to be published is, trying again while Redis is away; True if nothing is left.

        Returns False when that takes longer than `timeout` seconds, or there is no time for another attempt.
        Raises `error` if there is one.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self._thread is not None:
                self._thread.join(max(0.0, deadline - time.monotonic()))
            if self.busy:
                return False
            self._raise_error()
            if self._taken is None or self._taken.token is None:
                return True
            if deadline - time.monotonic() < RETRY_SECONDS:
                return False
            time.sleep(RETRY_SECONDS)
            self._start(self._upload)

    def check(self) -> bool:
        """Look in the background whether the store still holds what was published, for when nothing happens.

        If it does not (a Redis that restarted empty, or from an old file), `token` falls back to what it holds, and the
        state can be staged again under the token that it had. Returns False and does nothing while `busy`.
        """
        self._raise_error()
        if self.busy:
            return False
        self._start(self._look)
        return True

    def _look(self) -> None:
        try:
            held = self.store.current()
        except (Unreachable, Refused):
            return  # no worse than before: the next publish says so
        token = -1 if held is None else held.token
        if token < self.token:
            log.warning("snapshot %d is gone from %s: it will be published anew", self.version, self.store.address)
            self.token = token

    def _fit(self, size: int) -> None:
        """Fit the buffer to `size` bytes."""
        if self._buffer.size < size * (1 + ROOM) / 2 or self._buffer.size > 4 * size:
            self._buffer = np.empty(0, np.uint8)  # let the old one go first
            fresh = np.empty(int(size * ROOM), np.uint8)
            fresh.fill(0)
            self._buffer = fresh

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                self.error = error
                if self.on_error is not None:
                    self.on_error(error)

        self._thread = threading.Thread(target=run, name="headrace-publisher", daemon=True)
        self._thread.start()

    def _upload(self) -> None:
        assert self._taken is not None
        arrays, meta, allow_nan, token = self._taken
        assert token is not None
        try:
            done = self.store.publish(arrays, meta, token, allow_nan)
        except Exception as error:
            self.failed += 1
            if isinstance(error, Fenced) or not isinstance(error, (Unreachable, Refused)):
                raise
            if self.problem is None:
                log.warning("no snapshot: %s. The next one tries again", error)
            self.problem = str(error)
            return
        if self.problem is not None:
            log.info("snapshots go on with version %d", done.version)
        self.last, self.version, self.token, self.problem = done, done.version, done.token, None
        self.published += 1
        self.bytes_sent += done.bytes_sent
        self._taken = None
        self._fit(self._extent)

    def _touched(self) -> list[np.ndarray]:
        """The marks of each table; what they tell counts as copied from now on."""
        marks = [copied.table.touched.copy() for copied in self._tables.values()]
        for copied in self._tables.values():
            copied.table.touched[:] = 0  # not before all are read: some may share them
        return marks

    def _copy_tables(self, marks: list[np.ndarray], copy_blocks: Callable[..., None]) -> None:
        for copied, touched in zip(self._tables.values(), marks, strict=True):
            copy_blocks(copied.source, copied.target, touched, copied.width)

    def _copy(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies of the arrays, side by side in the buffer."""
        starts = np.cumsum([0, *(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values())])
        self._extent = int(starts[-1])
        if self._extent > self._buffer.size:
            self._buffer = np.empty(int(self._extent * ROOM), np.uint8)
        copies, room = {}, self._buffer.data  # a memoryview is written to under the GIL, as in copy_marked_at_once
        for (name, array), start in zip(arrays.items(), starts.tolist(), strict=False):
            copies[name] = np.ndarray(array.shape, array.dtype, buffer=self._buffer, offset=start)
            room[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return copies

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
