"""The slots of a pipeline, leased in Redis: no two workers hold one slot, and none has to be told which.

Keys, under the hash tag of the pipeline's snapshots (see store.py):

    headrace:{pipeline}:lease:<slot>   JSON of the holder; lapses unless it is renewed
    headrace:{pipeline}:slots          set of the slots that were ever leased

A lease spares workers a quarrel; it is not what protects the outputs. Kafka fences the older of two workers of one
slot, Redis its snapshots. So a holder that cannot renew goes on, and takes its slot again when Redis is back; it has
lost the slot only when another holds it.

What a slot has learned is worth waiting for: a worker that stands in for one that crashed elsewhere takes over its
slot once the lease has lapsed, before it founds a new one that would begin with an empty model.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec

from ..errors import Refused, StreamStopped, Unreachable
from .redis_server import RedisServer

log = logging.getLogger(__name__)

TTL_SECONDS = 10.0
RENEWALS = 5  # in the time that a lease lives
RETRIES = 20  # in the same time, while Redis cannot be used or a slot is waited for
PATIENCE = 1.1  # times its life is how long a lease is waited for: what is not renewed has lapsed by then

# KEYS: lease, slots      ARGV: holder, milliseconds, slot, a holder that is dead or ''
# Returns who holds it instead. A lease that is ours needs no memory to be renewed: a Redis that is full cannot end it.
HOLD = """
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return false
end
if held and held ~= ARGV[4] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
return false
"""

# KEYS: lease      ARGV: holder
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class SlotTaken(Refused):
    """The slot that was asked for is held by another worker; waiting did not help."""


class Holder(msgspec.Struct, frozen=True):
    """The process that holds a slot. `machine` tells its kernel and its pid namespace: two containers may share a host
    name, and a pid means nothing outside its namespace."""

    host: str
    pid: int
    started: int | None  # ticks from the kernel's start to the process's; a pid is used again, with another start
    machine: str | None  # None: cannot be told here
    since: float  # seconds since the epoch, by the holder's wall clock
    id: str  # of this one lease

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


class Slot(NamedTuple):
    """What Redis tells of one slot."""

    holder: Holder | None
    raw: bytes | None  # the holder as it is written there
    exists: bool  # a snapshot was published for it


class Slots:
    """The slots of one pipeline: which exist, which are held, and by whom.

    Nothing is connected before the first call; every method raises Unreachable when Redis does not answer within
    `timeout` seconds, and Refused when it says no. May be used from several threads.
    """

    def __init__(self, url: str, pipeline: str, *, timeout: float = 4.0) -> None:
        self.pipeline = pipeline
        self._name = f"headrace:{{{pipeline}}}"
        self._redis = RedisServer(url, timeout)

    def live(self) -> dict[int, Holder]:
        """The slots that are held now, in order, and by whom."""
        return {number: slot.holder for number, slot in self.look().items() if slot.holder is not None}

    def existing(self) -> list[int]:
        """The slots that have a snapshot, in order."""
        return [number for number, slot in self.look().items() if slot.exists]

    def look(self) -> dict[int, Slot]:
        """All slots, in order: those ever leased, those from 0 on that exist, and the lowest that is neither."""
        with self._redis.client() as client:
            numbers = {int(number) for number in client.smembers(self._registry)}
        found = self.look_at(numbers) if numbers else {}
        for number in count():
            if number not in found:
                found |= self.look_at([number])
                if found[number] == (None, None, False):
                    return dict(sorted(found.items()))
        raise AssertionError  # numbers do not end

    def look_at(self, numbers: Iterable[int]) -> dict[int, Slot]:
        """These slots alone."""
        numbers = sorted(numbers)
        with self._redis.client() as client, client.pipeline(transaction=False) as pipe:
            for number in numbers:
                pipe.get(self._lease(number))
                pipe.exists(f"{self._name}:{number}:recovery")
            answers = pipe.execute()
        return {
            number: Slot(None if raw is None else _decode(raw), raw, bool(exists))
            for number, raw, exists in zip(numbers, answers[::2], answers[1::2], strict=True)
        }

    def hold(self, number: int, raw: bytes, seconds: float, dead: bytes | None = None) -> Holder | None:
        """Take or renew a slot for the holder `raw`, also from one that is `dead`; returns who has it instead."""
        with self._redis.client() as client:
            keys = self._lease(number), self._registry
            other = client.eval(HOLD, 2, *keys, raw, round(seconds * 1000), number, dead or b"")
        return None if other is None else _decode(other)

    def release(self, number: int, raw: bytes) -> None:
        """Let the slot be free, if `raw` holds it."""
        with self._redis.client() as client:
            client.eval(RELEASE, 1, self._lease(number), raw)

    @property
    def _registry(self) -> str:
        return f"{self._name}:slots"

    def _lease(self, number: int) -> str:
        return f"{self._name}:lease:{number}"


class Lease:
    """A slot that is ours, renewed by a thread until it is released, or lost.

    slot, holder  what is held, and this process as others see it
    lost          who holds the slot now that it is not ours any more; else None
    problem       why it cannot be renewed at present (Redis away, full, read only), which is no loss; else None.
                  Logged when it appears and when it is over

    `on_lost` is called once, in the renewing thread, with the text of `lost`.
    """

    def __init__(
        self, slots: Slots, slot: int, raw: bytes, ttl_seconds: float, on_lost: Callable[[str], None] | None
    ) -> None:
        self.slot, self.holder, self.on_lost = slot, _decode(raw), on_lost
        self.lost: str | None = None
        self.problem: str | None = None
        self._slots, self._raw, self._ttl = slots, raw, ttl_seconds
        self._lock = threading.Lock()  # a renewal after the release would take the slot again
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="headrace-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let the slot be free at once. Where Redis cannot be used, it lapses by itself; that is logged, not raised."""
        self._released.set()
        with self._lock:
            try:
                if self.lost is None:
                    self._slots.release(self.slot, self._raw)
            except (Unreachable, Refused) as error:
                log.warning("slot %d stays held for up to %.0f s: %s", self.slot, self._ttl, error)
            _forget(self._raw)

    def _keep(self) -> None:
        renewed = time.monotonic()
        while not self._released.wait(self._ttl / (RETRIES if self.problem else RENEWALS)):
            try:
                with self._lock:
                    if self._released.is_set():
                        return
                    other = self._slots.hold(self.slot, self._raw, self._ttl)
            except Exception as error:  # Unreachable, Refused; and a fault of ours must not end the renewing unseen
                if self.problem is None:
                    foreseen = isinstance(error, Unreachable | Refused)
                    log.warning("the lease of slot %d waits: %s", self.slot, error, exc_info=not foreseen)
                self.problem = str(error) or type(error).__name__
                continue
            if other is not None:
                _forget(self._raw)
                self.lost = (
                    f"slot {self.slot} of pipeline {self._slots.pipeline} is held by {other}; this process had not "
                    f"renewed its lease for {time.monotonic() - renewed:.0f} s"
                )
                if self.on_lost is not None:
                    self.on_lost(self.lost)
                return
            if self.problem is not None:
                log.info("slot %d is leased again", self.slot)
                self.problem = None
            renewed = time.monotonic()


def acquire(
    url: str,
    pipeline: str,
    slot: int | None = None,
    *,
    say: Callable[[str], None],
    on_lost: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
    ttl_seconds: float = TTL_SECONDS,
    timeout: float = 4.0,
) -> Lease:
    """Lease a slot of the pipeline: the one that is asked for, or the lowest that is free.

    Free is what nobody holds, or a process of this machine that has died, or this very process before it replaced
    itself (`os.execv`): then it goes on with the slot it had. A slot that exists goes before one that would be new, and
    while an existing one is held by another, a new one is founded only after the time in which that lease lapses if its
    holder has crashed. Where no slot exists yet nobody waits: three workers that start at once get 0, 1 and 2.

    say          is told, once, what is waited for
    on_lost      see Lease
    stop         set by another thread to end the waiting
    ttl_seconds  a lease lapses after this time unless it is renewed, which happens five times in it; the same for all
                 workers of a pipeline

    Raises SlotTaken, naming the holder, when the slot that is asked for is still held after 1.1 times its life;
    StreamStopped when `stop` is set before there is a slot; Unreachable when Redis does not answer, and Refused when
    it says no (full, read only): the caller waits and tries again.
    """
    slots, me, stop = Slots(url, pipeline, timeout=timeout), _this_process(), stop or threading.Event()
    patience = PATIENCE * ttl_seconds
    deadline, said = time.monotonic() + patience, False
    while True:
        waited = time.monotonic() >= deadline
        found = slots.look() if slot is None else slots.look_at([slot])
        free = [number for number, state in found.items() if _free(state, me)]
        choice = _choose(found, free, me, patient=slot is None and not waited)
        if choice is not None:
            raw = _take(slots, choice, found[choice], me, ttl_seconds)
            if raw is not None:
                return Lease(slots, choice, raw, ttl_seconds, on_lost)
        elif waited:
            assert slot is not None
            raise SlotTaken(
                f"slot {slot} of pipeline {pipeline} is held by {found[slot].holder}; give another --slot, or none: "
                "then the lowest free one is taken"
            )
        else:
            if not said:
                held = {number: state.holder for number, state in found.items() if number not in free}
                say(_waiting(held, slot is None, patience))
                said = True
            if stop.wait(ttl_seconds / RETRIES):
                raise StreamStopped(f"told to stop while waiting for a slot of pipeline {pipeline}")


def _choose(found: dict[int, Slot], free: list[int], me: Holder, patient: bool) -> int | None:
    """The slot to take: our own from before, else the lowest free one that exists, else the lowest free one; None if
    there is none, or if it would be new and the holders of those that exist are to be waited for."""
    if not free:
        return None
    own, existing = ({n for n in free if _is(found[n].holder, me)}, {n for n in found if found[n].exists})
    best = min(free, key=lambda number: (number not in own, number not in existing, number))
    return None if patient and existing and best not in own | existing else best


def _take(slots: Slots, number: int, seen: Slot, me: Holder, seconds: float) -> bytes | None:
    """Hold a slot that was seen free; None when another was faster.

    A lease of this very process is gone on with as it stands: a Redis that is full would refuse a new one.
    """
    ours = seen.raw if _is(seen.holder, me) else None
    raw = ours or msgspec.json.encode(msgspec.structs.replace(me, since=time.time()))
    if not _remember(raw):
        return None  # another thread goes on with it
    try:
        other = slots.hold(number, raw, seconds, dead=seen.raw)
    except BaseException:
        _forget(raw)
        raise
    if other is None:
        return raw
    _forget(raw)
    return None


def _waiting(held: Mapping[int, Holder | None], founding: bool, seconds: float) -> str:
    numbers, holders = ", ".join(map(str, held)), "; ".join(map(str, held.values()))
    subject = f"slot {numbers} is" if len(held) == 1 else f"slots {numbers} are"
    until = "whether one becomes free before a new one is founded" if founding else "whether it becomes free"
    return f"{subject} held by {holders}; waiting {seconds:.3g} s {until}"


# ---- processes

_held: set[bytes] = set()  # leases of this process; gone after os.execv, by which it knows one of its former self
_held_lock = threading.Lock()


def _remember(raw: bytes) -> bool:
    """Note that a lease is in use in this process; False if it is already."""
    with _held_lock:
        if raw in _held:
            return False
        _held.add(raw)
        return True


def _forget(raw: bytes) -> None:
    with _held_lock:
        _held.discard(raw)


def _free(slot: Slot, me: Holder) -> bool:
    """Whether nobody holds the slot, or a process that is certainly gone."""
    holder = slot.holder
    if holder is None:
        return True
    if slot.raw in _held or holder.machine is None or (holder.host, holder.machine) != (me.host, me.machine):
        return False
    return holder.pid == me.pid or _gone(holder)


def _gone(holder: Holder) -> bool:
    """Whether a process of this machine has ended: nobody may have waited for it yet, or its pid is in use again."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    state, started = _stat(holder.pid)
    return state in ("Z", "X") or (started is not None and started != holder.started)


def _is(holder: Holder | None, me: Holder) -> bool:
    """Whether a holder is this very process, though perhaps before it replaced itself."""
    same = None if holder is None else (holder.host, holder.machine, holder.pid, holder.started)
    return me.machine is not None and same == (me.host, me.machine, me.pid, me.started)


def _this_process() -> Holder:
    return Holder(socket.gethostname(), os.getpid(), _stat(os.getpid())[1], _machine(), time.time(), uuid4().hex)


def _machine() -> str | None:
    """This kernel and this pid namespace; None where /proc is missing or that of another namespace.

    Two machines never share it; the host name is compared besides, for copies of a virtual machine that run on.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _stat(pid: int) -> tuple[str | None, int | None]:
    """State and start of a process; None where they cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # its name may hold blanks
    except OSError:
        return None, None
    return fields[0].decode(), int(fields[19])


def _decode(raw: bytes) -> Holder:
    try:
        return msgspec.json.decode(raw, type=Holder)
    except msgspec.DecodeError:  # not written by us; held nevertheless
        return Holder("an unknown machine", 0, None, None, 0.0, "")
