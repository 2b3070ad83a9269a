"""A Redis by its address: connected at first use, and what it answers in error becomes one of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisClusterException
from redis.retry import Retry

from ..errors import InputError, Refused, Unreachable


class RedisServer:
    """The server or cluster at `url`. Nothing is connected before the first use. Any thread may use it.

    address   host:port/db or the socket's path, without user and password

    Raises InputError if `url` is no address of Redis.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.address = redis_address(url)
        self._url, self.timeout = url, timeout
        self._connected: Any = None

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client for a `with` block, which raises Unreachable where Redis does not answer within `timeout` seconds
        and Refused where it says no, with the next step."""
        try:
            if self._connected is None:
                self._connected = _connect(self._url, self.timeout)
            yield self._connected
        except (AuthenticationError, AuthorizationError) as error:
            raise Refused(f"Redis at {self.address} refused the login: {error}; check user and password") from error
        except (redis.ConnectionError, redis.TimeoutError, RedisClusterException, OSError) as error:
            raise Unreachable(
                f"Redis at {self.address} does not answer: {error}; is it running? check --redis"
            ) from error
        except redis.RedisError as error:
            raise Refused(f"Redis at {self.address} refused: {error}; {_remedy(str(error))}") from error


def _connect(url: str, timeout: float) -> Any:
    """A client for the server or cluster at `url`; one immediate second try when a connection has gone stale."""
    settings: dict[str, Any] = {
        "socket_connect_timeout": min(3.0, timeout),
        "socket_timeout": timeout,
        "socket_read_size": 1 << 20,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
    client = redis.Redis.from_url(url, **settings)
    try:
        clustered = client.info("cluster").get("cluster_enabled")
    except redis.ResponseError as error:
        if "no permissions" not in str(error):
            raise
        clustered = False  # may not ask; a single server then
    if not clustered:
        return client
    client.close()
    return redis.RedisCluster.from_url(url, **settings)


def redis_address(url: str) -> str:
    """host:port/db or the socket's path, without user and password. Raises InputError if it is no url of Redis."""
    try:
        parts = redis.connection.parse_url(url)
    except ValueError:  # its text may hold a part of the password
        shown = url.rpartition("@")[2]
        raise InputError(
            f"{shown!r} is no address of Redis; write redis://host:port/0, with %2F for / in a password"
        ) from None
    if "path" in parts:
        return str(parts["path"])
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 6379)}/{parts.get('db', 0)}"


def _remedy(message: str) -> str:
    """The next step for an answer of Redis that says no."""
    for sign, step in (
        ("maxmemory", "it is full: raise its maxmemory, lower Snapshots(keep=...), or give it to headrace alone"),
        ("read only replica", "it is a replica: give the address of the primary"),
        ("MISCONF", "it cannot save to its disk: see its log, free the disk or set stop-writes-on-bgsave-error no"),
        ("no permissions", "its user lacks rights: allow it all commands on ~headrace:*"),
        ("wrong kind of value", "another program wrote keys of this name: remove them or rename the pipeline"),
        ("DB index", "its url names a database that it does not have: end it with /0"),
    ):
        if sign in message:
            return step
    return "see its log"
