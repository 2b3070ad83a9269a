"""Whether a worker is alive and whether it is ready, from what is seen of it: for /livez and /readyz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

STUCK_SECONDS = 60.0
LOOK_SECONDS = 1.0  # how often the watchdog looks


@dataclass(frozen=True)
class View:
    """What can be seen of a worker at one moment.

    state      what it does or waits for, in words
    slot       None: it has none yet
    waits      what is away and why, by its name, "broker" or "Redis"
    replaying  cycles of the journal are being processed again
    held       what is here waits for another partition to advance in event time
    adopting   partitions that wait for their state, and the slot that it comes from
    ready      its partitions are assigned and the replay is done
    progress   grows with whatever gets done
    lag        records in Kafka that are not committed yet
    """

    state: str
    slot: int | None = None
    waits: Mapping[str, str] = field(default_factory=dict)
    replaying: bool = False
    held: bool = False
    adopting: Mapping[int, int] = field(default_factory=dict)
    ready: bool = False
    progress: int = 0
    lag: int = 0


class Watch(NamedTuple):
    """What the watchdog knows: for how long there was something to do, no reason not to, and no progress."""

    progress: int = 0
    at: float = 0.0
    stuck_seconds: float = 0.0


class Page(NamedTuple):
    """A text and whether it is good news."""

    text: str
    ok: bool

    @property
    def status(self) -> int:
        """Of HTTP."""
        return 200 if self.ok else 503


def look(watch: Watch, view: View, now: float) -> Watch:
    """The next look, about LOOK_SECONDS after the last one; `now` in seconds, by a clock that never goes back.

    A worker that was frozen as a whole was not stuck: a long time between two looks counts as a short one.
    """
    if not view.lag or view.progress != watch.progress or is_excused(view):
        return Watch(view.progress, now)
    return Watch(view.progress, now, watch.stuck_seconds + min(now - watch.at, 2 * LOOK_SECONDS))


def is_excused(view: View) -> bool:
    """Whether there is a reason for no progress that a restart would not remove.

    A worker that is ready needs Redis for its snapshots alone: it is no reason then.
    """
    away = "broker" in view.waits or (bool(view.waits) and not view.ready)
    return away or view.replaying or bool(view.adopting) or view.held


def waiting(name: str, why: str) -> str:
    """In words: waiting for the broker: why."""
    return f"waiting for {'the broker' if name == 'broker' else name}: {why}"


def liveness(view: View, watch: Watch) -> Page:
    """For /livez: bad news when a restart is due."""
    if watch.stuck_seconds < STUCK_SECONDS:
        return Page(view.state, True)
    return Page(
        f"no progress for {watch.stuck_seconds:.0f} s, while {view.lag:,} records wait; state: {view.state}", False
    )


def readiness(view: View) -> Page:
    """For /readyz: good news when every partition that is assigned is being worked on."""
    reasons = [view.state]
    reasons += [waiting(name, why) for name, why in view.waits.items() if why not in view.state]
    reasons += [f"partition {number} waits for its state from slot {slot}" for number, slot in view.adopting.items()]
    return Page("; ".join(reasons), view.ready and not view.adopting and "broker" not in view.waits)
