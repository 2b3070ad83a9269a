"""A plan of faults, drawn from a seed: what happens to whom, when, and for how long.

Faults of workers:

    kill            SIGKILL, and started again at once
    term            SIGTERM; it must end with status 0; started again
    freeze          SIGSTOP, and SIGCONT after `seconds`
    zombie          SIGSTOP; another is started in its place; once that works and `seconds` have passed, SIGCONT
    join, leave     one more starts; one is told to stop and does not come back

Faults of a broker, and of Redis:

    broker-kill     SIGKILL, and started again after `seconds`          redis-kill
    broker-restart  SIGTERM, and started again after `seconds`
    broker-freeze   SIGSTOP, and SIGCONT after `seconds`                redis-freeze
                    SIGKILL, and started again without its data         redis-wipe
    leader-kill     as broker-kill, of the one that leads the target-th partition of the visits
    coordinator-kill    of the one that coordinates the transactions of slot 0

A fault begins `after` seconds after the one before it began; if `settled`, after all workers were ready again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

WORKER_KINDS = ("kill", "term", "freeze", "zombie", "join", "leave")
BROKER_KINDS = ("broker-kill", "broker-restart", "broker-freeze", "leader-kill", "coordinator-kill")
REDIS_KINDS = ("redis-kill", "redis-wipe", "redis-freeze")
LASTING = ("freeze", "zombie", "broker-kill", "broker-restart", "broker-freeze", "leader-kill", "coordinator-kill",
           "redis-kill", "redis-wipe", "redis-freeze")  # fmt: skip

LEASE_SECONDS, SESSION_SECONDS = 10.0, 30.0  # a worker that is frozen for longer loses its slot, its partitions


@dataclass(frozen=True)
class Fault:
    """One thing that happens; target is the number of a worker, a broker or a partition."""

    kind: str
    target: int = 0
    after: float = 1.0
    seconds: float = 0.0
    settled: bool = False

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.2f} s" if self.kind in LASTING else ""
        when = f"{self.after:.2f} s after {'all were ready' if self.settled else 'that'}"
        return f"{when}: {self.kind} {self.target}{lasting}"


@dataclass(frozen=True)
class Plan:
    """The faults in order, the workers at the start (numbers 0, 1, ...), and the seed that all of it came from.

    slot: the one worker is told its slot, 0; else each leases one.
    """

    seed: int
    workers: int
    faults: tuple[Fault, ...]
    slot: bool = field(default=False, kw_only=True)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.workers} worker(s), {len(self.faults)} fault(s)"]
        return "\n".join([*lines, *(f"  {number:3d}. {fault}" for number, fault in enumerate(self.faults, 1))])


def draw(
    seed: int,
    kinds: Mapping[str, float],
    count: int,
    workers: int,
    *,
    gaps: tuple[float, float] = (0.3, 4.0),
    away: tuple[float, float] = (1.0, 8.0),
    frozen: Sequence[tuple[float, float]] = ((1.0, 5.0), (LEASE_SECONDS + 1, 15.0), (SESSION_SECONDS + 3, 40.0)),
    settled: float = 0.5,
    brokers: int = 1,
    slot: bool = False,
) -> Plan:
    """A plan of `count` faults; the same arguments give the same plan.

    kinds    what may happen, and its weight
    gaps     seconds between faults, least and greatest
    away     how long a broker or Redis stays away or frozen
    frozen   how long a worker is frozen: one of these ranges is drawn first
    settled  share of the faults that wait until all workers are ready
    """
    rng = np.random.default_rng([seed, count, workers])
    share = np.array(list(kinds.values()), float) / sum(kinds.values())
    return Plan(seed, workers, tuple(_faults(rng, kinds, share, count, workers, gaps, away, frozen, settled, brokers)),
                slot=slot)  # fmt: skip


def _faults(
    rng: np.random.Generator,
    kinds: Mapping[str, float],
    share: np.ndarray,
    count: int,
    workers: int,
    gaps: tuple[float, float],
    away: tuple[float, float],
    frozen: Sequence[tuple[float, float]],
    settled: float,
    brokers: int,
) -> Iterator[Fault]:
    here, born = list(range(workers)), workers
    for _ in range(count):
        kind = str(rng.choice(list(kinds), p=share))
        if kind == "leave" and len(here) == 1:
            kind = "join"
        elif kind == "join" and len(here) > workers:
            kind = "leave"
        seconds, target = float(rng.uniform(*away)), int(rng.choice(here))
        if kind == "freeze":
            seconds = float(rng.uniform(*frozen[rng.integers(len(frozen))]))
        elif kind == "join":
            target, born = born, born + 1
            here.append(target)
        elif kind == "leave":
            here.remove(target)
        elif kind in REDIS_KINDS:
            target = 0
        elif kind in BROKER_KINDS:
            target = int(rng.integers(brokers))
        after, waits = float(rng.uniform(*gaps)), bool(rng.random() < settled)
        yield Fault(kind, target, round(after, 2), round(seconds, 2), waits)
