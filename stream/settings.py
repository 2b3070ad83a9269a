"""What a worker is told from outside: addresses, its slot, how it serves its metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

DEFAULT_BROKER = "127.0.0.1:9092"
DEFAULT_REDIS = "redis://127.0.0.1:6379/0"


@dataclass(frozen=True)
class Settings:
    """Read once, at start.

    broker    host:port of a Kafka broker, several separated by commas
    redis     URL of the Redis that keeps the snapshots
    slot      which worker of the pipeline this is: it names the transactional id, the static member and the snapshots
    web_port  of /metrics on loopback; None: no web server
    resume    go on after a stop that the journal records
    """

    broker: str = DEFAULT_BROKER
    redis: str = DEFAULT_REDIS
    slot: int = 0
    web_port: int | None = None
    resume: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """HEADRACE_BROKER, HEADRACE_REDIS, HEADRACE_SLOT, HEADRACE_WEB_PORT, for a worker that `faust` starts."""
        return cls(
            broker=environment.get("HEADRACE_BROKER", DEFAULT_BROKER),
            redis=environment.get("HEADRACE_REDIS", DEFAULT_REDIS),
            slot=_number(environment, "HEADRACE_SLOT") or 0,
            web_port=_number(environment, "HEADRACE_WEB_PORT"),
        )


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if text and not text.isdecimal():
        raise InputError(f"{name}: expected a number, got {text!r}")
    return int(text) if text else None
