"""What a worker is told from outside: addresses, its slot, how it serves its metrics."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from ..connectors.redis_server import redis_address
from ..errors import InputError

DEFAULT_BROKER = "127.0.0.1:9092"
DEFAULT_REDIS = "redis://127.0.0.1:6379/0"
ADDRESS = re.compile(r"([^\s:/]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?")
WEB_HOST = "127.0.0.1"
Lost = Literal["stop", "earliest"]
KEY_VARIABLE = "HEADRACE_HMAC_KEY"
KEY_BYTES = 16  # a shorter one could be guessed
MAKE_KEY = 'python -c "import secrets; print(secrets.token_hex(32))"'


@dataclass(frozen=True)
class Settings:
    """Read once, at start. Raises InputError for an address that cannot be one.

    broker    host:port of a Kafka broker, several separated by commas
    redis     URL of the Redis that keeps the snapshots
    slot      which worker of the pipeline this is: it names the transactional id, the static member and the snapshots;
              None: the lowest one that is free
    web_port  of /metrics on loopback; None: no web server
    resume    go on after a stop that the journal records
    lost      what to do where records that have to be read are gone: stop, or go on from the earliest that is left
    plain     read, decode and write record by record, through public interfaces alone: the same results, slower
    profile   say every few seconds where the time goes
    hmac_key  the secret that snapshots are signed with, and without whose signature none is loaded; None: unsigned
    """

    broker: str = DEFAULT_BROKER
    redis: str = DEFAULT_REDIS
    slot: int | None = None
    web_port: int | None = None
    resume: bool = False
    lost: Lost = "stop"
    plain: bool = False
    profile: bool = False
    hmac_key: bytes | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """HEADRACE_BROKER, _REDIS, _SLOT, _WEB_PORT, _RESUME, _LOST, _PLAIN, _PROFILE, _HMAC_KEY, for `faust`."""
        return cls(
            broker=environment.get("HEADRACE_BROKER", DEFAULT_BROKER),
            redis=environment.get("HEADRACE_REDIS", DEFAULT_REDIS),
            slot=_number(environment, "HEADRACE_SLOT"),
            web_port=_number(environment, "HEADRACE_WEB_PORT"),
            resume=bool(_number(environment, "HEADRACE_RESUME")),
            lost=cast(Lost, environment.get("HEADRACE_LOST") or "stop"),
            plain=bool(_number(environment, "HEADRACE_PLAIN")),
            profile=bool(_number(environment, "HEADRACE_PROFILE")),
            hmac_key=hmac_key(environment),
        )

    def __post_init__(self) -> None:
        for address in self.broker.split(","):
            if not ADDRESS.fullmatch(address):
                raise InputError(f"{address!r} is no address of a broker; write host:port, without a scheme")
        redis_address(self.redis)
        if self.lost not in get_args(Lost):
            raise InputError(f"--lost or HEADRACE_LOST: expected {' or '.join(get_args(Lost))}, got {self.lost!r}")


def hmac_key(environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret that snapshots are signed with; None: there is none. Raises InputError for one that is too short."""
    key = environment.get(KEY_VARIABLE, "").strip().encode()
    if key and len(key) < KEY_BYTES:
        raise InputError(
            f"{KEY_VARIABLE} has {len(key)} bytes, a secret takes {KEY_BYTES} or more; make one by {MAKE_KEY}"
        )
    return key or None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if text and not text.isdecimal():
        raise InputError(f"{name}: expected a number, got {text!r}")
    return int(text) if text else None
