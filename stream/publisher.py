"""Publishes snapshots beside the stream: a copy between two cycles, the upload in a thread of its own."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ..connectors.store import Fenced, Published, SnapshotStore
from ..errors import Refused, Unreachable

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes, of each array in the buffer
ROOM = 1.25  # the buffer is so much larger than what was last staged, so that pending rows may grow
RETRY_SECONDS = 0.5  # between attempts while `flush` waits


class SnapshotPublisher:
    """Copies what a worker hands over and publishes it to `store`, one snapshot at a time.

    version   the last one published (at first: the one the worker started from), for prediction records
    token     of the last one published (at first: the one the store holds); an equal one is not published again
    on_error  called in the publishing thread, once, with `error`

    busy           a snapshot is being uploaded; `stage` would refuse
    error          why nothing can be published any more and the worker must stop: Fenced (another worker of this slot
                   is ahead), SnapshotError (an array is not finite), or a fault of ours
    problem        why the last attempt failed although a later one may succeed (Redis away, full, read only);
                   logged when it appears and when it is over; else None
    last           what the last publish did; None before the first
    stall_seconds  how long the last `stage` took
    published, failed, bytes_sent    totals

    Methods are called one at a time, from whichever thread of the worker.
    """

    def __init__(
        self,
        store: SnapshotStore,
        *,
        version: int = 0,
        token: int = -1,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self.store, self.version, self.token, self.on_error = store, version, token, on_error
        self.error: Exception | None = None
        self.problem: str | None = None
        self.last: Published | None = None
        self.stall_seconds = 0.0
        self.published = self.failed = self.bytes_sent = 0
        self._buffer = np.empty(0, np.uint8)
        self._extent = 0  # bytes of the buffer that the last snapshot took
        self._staged: tuple[dict[str, np.ndarray], dict[str, Any], int, tuple[str, ...]] | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stage(
        self,
        arrays: Mapping[str, np.ndarray],
        meta: Mapping[str, Any],
        token: int,
        allow_nan: Collection[str] = (),
    ) -> bool:
        """Copy the arrays and the meta and publish the copy in the background, as `SnapshotStore.publish` says.

        Returns False and does nothing while `busy`, or when nothing has happened since: the token is the last one.
        A staged snapshot that could not be published is replaced by this one. Raises `error` if there is one.
        """
        self._raise_error()
        if self.busy or token == self.token:
            return False
        began = time.perf_counter()
        self._staged = None
        self._staged = self._copy(arrays), copy.deepcopy(dict(meta)), token, tuple(allow_nan)
        self.stall_seconds = time.perf_counter() - began
        self._start()
        return True

    def flush(self, timeout: float) -> bool:
        """Wait until what was staged is published, trying again while Redis is away; True if nothing is left.

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
            if self._staged is None:
                return True
            if deadline - time.monotonic() < RETRY_SECONDS:
                return False
            time.sleep(RETRY_SECONDS)
            self._start()

    def reserve(self, size: int) -> None:
        """Fit the buffer to snapshots of `size` bytes: for the start of a worker; later it follows by itself.

        Fresh memory is ten times slower to write to, and this does it while the stream goes on. Not while `busy`.
        """
        if self._buffer.size < size * (1 + ROOM) / 2 or self._buffer.size > 4 * size:
            self._buffer = np.empty(0, np.uint8)  # let the old one go first
            fresh = np.empty(int(size * ROOM), np.uint8)
            fresh.fill(0)
            self._buffer = fresh

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._upload, name="headrace-publisher", daemon=True)
        self._thread.start()

    def _upload(self) -> None:
        assert self._staged is not None
        arrays, meta, token, allow_nan = self._staged
        try:
            done = self.store.publish(arrays, meta, token, allow_nan)
        except Exception as error:
            self.failed += 1
            if isinstance(error, (Unreachable, Refused)) and not isinstance(error, Fenced):
                if self.problem is None:
                    log.warning("no snapshot: %s. The next one tries again", error)
                self.problem = str(error)
                return
            self.error = error
            if self.on_error is not None:
                self.on_error(error)
            return
        if self.problem is not None:
            log.info("snapshots go on with version %d", done.version)
        self.last, self.version, self.token, self.problem = done, done.version, done.token, None
        self.published += 1
        self.bytes_sent += done.bytes_sent
        self._staged = None
        self.reserve(self._extent)

    def _copy(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies of the arrays, side by side in the buffer."""
        starts = np.cumsum([0, *(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values())])
        self._extent = int(starts[-1])
        if self._extent > self._buffer.size:
            self._buffer = np.empty(int(self._extent * ROOM), np.uint8)
        copies = {}
        for (name, array), start in zip(arrays.items(), starts, strict=False):
            copies[name] = np.ndarray(array.shape, array.dtype, buffer=self._buffer, offset=int(start))
            np.copyto(copies[name], array)
        return copies

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
