"""Snapshots in Redis: named arrays and a JSON meta, published whole or not at all, versioned, fenced by a token.

Keys, all under one hash tag, so that every operation stays on one node of a Redis Cluster:

    headrace:{pipeline}:<slot>:chunk:<sha256>      raw bytes of a part of an array; never changes
    headrace:{pipeline}:<slot>:manifest:<version>  hash: body (JSON), its sha256, its hmac if there is a key
    headrace:{pipeline}:<slot>:versions            sorted set of the versions that are kept
    headrace:{pipeline}:<slot>:recovery            hash: version, token, sha256 of the manifest; where a worker begins
    headrace:{pipeline}:<slot>:serving             the same, where readers look; moves with `recovery`
    headrace:{pipeline}:<slot>:notices             stream with one entry per version; wakes readers

Chunks go first, with an hour to live. One script then checks token, parent and that every chunk is there, writes the
manifest, lets the chunks live for ever and moves the pointers. So a publisher that dies halfway leaves nothing that
anyone can see and nothing that stays; and what Redis lost in the meantime (a restart, an eviction) is sent again.
The publisher deletes old versions itself, by a script that does nothing if another publisher moved the pointer since:
a time to live on kept versions would let the current one die with a worker that is away for long.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import msgspec
import numpy as np
import redis

from ..errors import DeclarationError, Refused, SnapshotError, Unreachable
from .redis_server import RedisServer

log = logging.getLogger(__name__)

FORMAT = 1
DTYPES = {
    dtype.name: dtype
    for dtype in map(np.dtype, ("?", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8"))
}
BATCH_BYTES = 32 << 20  # of chunks in one round trip
UPLOAD_SECONDS = 3600  # chunks of an upload that was given up go after this time
POLL_SECONDS = 1.0  # how often a waiting reader looks at the pointer itself: notices can be lost
MOVES = 5  # attempts to move the pointer while Redis loses chunks or another publisher moves it

# KEYS: recovery, serving, manifest, versions, notices, chunk ...
# ARGV: token, expected version or '', version, body, sha256, hmac or '', wall time
MOVE = """
local held = redis.call('HMGET', KEYS[1], 'version', 'token', 'manifest')
if held[2] and tonumber(held[2]) >= tonumber(ARGV[1]) then return {'behind', held[1], held[2], held[3]} end
if (held[1] or '') ~= ARGV[2] then return {'moved'} end
for i = 6, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then return {'missing'} end
end
redis.call('HSET', KEYS[3], 'body', ARGV[4], 'sha256', ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[3], 'hmac', ARGV[6]) end
for i = 6, #KEYS do redis.call('PERSIST', KEYS[i]) end
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[3])
for i = 1, 2 do redis.call('HSET', KEYS[i], 'version', ARGV[3], 'token', ARGV[1], 'manifest', ARGV[5]) end
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 100, '*', 'version', ARGV[3])
return {'published'}
"""

# KEYS: chunk ...; those that no manifest has claimed
WITHDRAW = """
for i = 1, #KEYS do
  if redis.call('TTL', KEYS[i]) >= 0 then redis.call('UNLINK', KEYS[i]) end
end
"""

# KEYS: recovery, versions, key to delete ...      ARGV: expected version, version to forget ...
FORGET = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
for i = 2, #ARGV do redis.call('ZREM', KEYS[2], ARGV[i]) end
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
"""


class Fenced(Refused):
    """Another worker of this slot has published a later state; this one must stop."""


class Pointer(NamedTuple):
    """What is current: `token` says how far the journal had come when it was taken."""

    version: int
    token: int


class Published(NamedTuple):
    """What one publish did; `bytes_sent` is less than `bytes_total` by the chunks that Redis already had."""

    version: int
    token: int
    bytes_total: int
    bytes_sent: int
    seconds: float


class ArrayInfo(msgspec.Struct, frozen=True):
    """One array of a manifest: its chunks are (sha256, bytes) in order and together its raw little-endian bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[str, int], ...]


class SnapshotInfo(msgspec.Struct, frozen=True):
    """The manifest of one version: everything but the bytes of its arrays."""

    format: int
    pipeline: str
    slot: int
    version: int
    parent: int | None
    token: int
    created: float  # seconds since the epoch, by the publisher's wall clock
    bytes_total: int
    meta: dict[str, Any]
    arrays: tuple[ArrayInfo, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version as it was published; the arrays are private to the caller and writable.

    signed  whether the signature of the manifest, and by it every byte of the arrays, was verified with a key
    """

    info: SnapshotInfo
    arrays: dict[str, np.ndarray]
    signed: bool = False

    @property
    def version(self) -> int:
        return self.info.version

    @property
    def token(self) -> int:
        return self.info.token

    @property
    def created(self) -> float:
        return self.info.created

    @property
    def meta(self) -> dict[str, Any]:
        return self.info.meta


class SnapshotStore:
    """The snapshots of one slot of one pipeline.

    url             redis://[user:password@]host:port/db, rediss:// or unix://; a node of a Redis Cluster is recognised
    keep            versions that stay, the newest first
    chunk_bytes     size of a chunk; a multiple of 8
    hmac_key        if given, manifests are signed with it, and one without the right signature is not loaded
    timeout         seconds to wait for one answer of Redis
    bytes_per_second  upper bound for the upload, so that a snapshot does not fill a narrow link

    Nothing is connected before the first call. May be used from several threads. Every method raises Unreachable when
    Redis does not answer within `timeout`, and Refused when it answers and says no.
    Raises InputError for a url that is none, DeclarationError for a name, slot or size that cannot be.
    """

    def __init__(
        self,
        url: str,
        pipeline: str,
        slot: int = 0,
        keep: int = 10,
        chunk_bytes: int = 4 << 20,
        *,
        hmac_key: bytes | None = None,
        timeout: float = 4.0,
        bytes_per_second: float | None = None,
    ) -> None:
        if not pipeline or "{" in pipeline or "}" in pipeline:
            raise DeclarationError(f"pipeline name {pipeline!r}: expected text without braces; name it otherwise")
        if slot < 0 or keep < 1:
            raise DeclarationError(f"pipeline {pipeline!r}: expected slot >= 0 and keep >= 1, got {slot} and {keep}")
        if chunk_bytes < 8 or chunk_bytes % 8:
            raise DeclarationError(f"chunk_bytes={chunk_bytes}: expected a positive multiple of 8")
        self.pipeline, self.slot, self.keep, self.chunk_bytes = pipeline, slot, keep, chunk_bytes
        self.name = f"headrace:{{{pipeline}}}:{slot}"
        self._redis = RedisServer(url, timeout)
        self.address = self._redis.address
        self._hmac_key, self._bytes_per_second = hmac_key, bytes_per_second
        self._newest = 0  # the highest version this store has seen; versions go on rising when Redis forgets
        self._unanswered: tuple[int, str] | None = None  # token and sha256 of a move whose answer did not come

    # ---- what a worker writes

    def publish(
        self,
        arrays: Mapping[str, np.ndarray],
        meta: Mapping[str, Any],
        token: int,
        allow_nan: Collection[str] = (),
    ) -> Published:
        """Send what Redis lacks of `arrays`, then make it the current version, in one step, with `meta` and `token`.

        arrays     of any shape; bool, integers or floats in little-endian; read, not copied: must not change meanwhile
        meta       JSON (keys are text, numbers finite); comes back from `load` as it was
        token      0 <= token < 2**53; must be greater than that of the current version
        allow_nan  patterns (`pending/*`) of the names of arrays that may hold NaN or infinities; others may not

        Raises SnapshotError, before anything is sent, for an array or meta that cannot be stored or is not finite;
        Fenced if the token is not greater: another worker of the slot is ahead.
        When it raises, the version that was current before is current still, unless Redis became unreachable while it
        answered; then the next publish finds out. Old versions beyond `keep` are deleted.
        """
        began = time.perf_counter()
        if not 0 <= token < 2**53:
            raise SnapshotError(f"{self.name}: token {token} is not in [0, 2**53)")
        entries, chunks = self._cut(arrays, allow_nan)
        meta = as_json(self.name, meta)
        total = sum(size for entry in entries for _, size in entry.chunks)
        try:
            return self._publish(token, total, meta, entries, chunks, began)
        except Refused:
            self._withdraw(chunks)
            raise

    def _publish(
        self,
        token: int,
        total: int,
        meta: dict[str, Any],
        entries: list[ArrayInfo],
        chunks: dict[str, memoryview],
        began: float,
    ) -> Published:
        sent = 0
        for _ in range(MOVES):
            held = self._pointer()
            if held is not None and held[0].token >= token:
                return self._resolve(held, token, total, sent, began)
            sent += self._send(chunks)
            parent = None if held is None else held[0].version
            self._newest = version = max(parent or 0, self._newest) + 1
            body = self._manifest(version, parent, token, total, meta, entries)
            digest = hashlib.sha256(body).hexdigest()
            self._unanswered = (token, digest)
            answer = self._move(token, parent, version, body, digest, chunks)
            if answer[0] == b"behind":
                held = Pointer(int(answer[1]), int(answer[2])), answer[3].decode()
                return self._resolve(held, token, total, sent, began)
            self._unanswered = None
            if answer[0] == b"published":
                self._forget_old(version)
                return Published(version, token, total, sent, time.perf_counter() - began)
        raise Refused(
            f"snapshot of {self.name} at {self.address}: {MOVES} attempts failed because chunks vanished or another "
            "publisher came between; is an eviction policy at work, or a second worker on this slot?"
        )

    def _resolve(self, held: tuple[Pointer, str], token: int, total: int, sent: int, began: float) -> Published:
        """The token held is not less than ours: ours from a move whose answer got lost, or another worker's."""
        pointer, digest = held
        unanswered, self._unanswered = self._unanswered, None
        if unanswered == (token, digest) and pointer.token == token:
            self._forget_old(pointer.version)
            return Published(pointer.version, token, total, sent, time.perf_counter() - began)
        raise Fenced(
            f"snapshot of {self.name} with token {token} refused: version {pointer.version} with token {pointer.token} "
            f"is in {self.address}; another worker runs as slot {self.slot}, or the journal topic was made anew: "
            "stop one of them, give another --slot, or remove the keys of the old journal"
        )

    def _cut(
        self, arrays: Mapping[str, np.ndarray], allow_nan: Collection[str]
    ) -> tuple[list[ArrayInfo], dict[str, memoryview]]:
        """Manifest entries of the arrays, and their chunks by sha256; views, no copies, of contiguous arrays."""
        entries: list[ArrayInfo] = []
        chunks: dict[str, memoryview] = {}
        for name, given in arrays.items():
            array = np.asarray(given, order="C")
            if DTYPES.get(array.dtype.name) != array.dtype:
                raise SnapshotError(
                    f"array {name!r} of {self.name} has dtype {array.dtype}; expected one of {[*DTYPES]}"
                )
            if array.dtype.kind == "f" and not any(fnmatchcase(name, pattern) for pattern in allow_nan):
                self._require_finite(name, array)
            raw = array.reshape(-1).view(np.uint8).data
            listed = []
            for start in range(0, len(raw), self.chunk_bytes):
                part = raw[start : start + self.chunk_bytes]
                digest = hashlib.sha256(part).hexdigest()
                chunks[digest] = part
                listed.append((digest, len(part)))
            entries.append(ArrayInfo(name, array.dtype.name, array.shape, tuple(listed)))
        return entries, chunks

    def _require_finite(self, name: str, array: np.ndarray) -> None:
        flat, step = array.reshape(-1), self.chunk_bytes // 8
        for start in range(0, flat.size, step):
            finite = np.isfinite(flat[start : start + step])
            if not finite.all():
                at = np.unravel_index(start + int(np.argmin(finite)), array.shape)
                place = ", ".join(str(int(i)) for i in at)
                raise SnapshotError(
                    f"array {name!r} of {self.name} is not finite: [{place}] is {array[at]}; nothing was published; "
                    "look for a learning rate too high or an extreme feature"
                )

    def _send(self, chunks: Mapping[str, memoryview]) -> int:
        """Write those chunks that Redis does not have; returns the bytes sent."""
        with self._redis.client() as client:
            with client.pipeline(transaction=False) as pipe:
                for digest in chunks:
                    pipe.exists(self._chunk(digest))
                known = pipe.execute()
            lacking = [
                (digest, len(part)) for (digest, part), there in zip(chunks.items(), known, strict=True) if not there
            ]
            sent = 0
            for batch in batches(lacking):
                began = time.perf_counter()
                with client.pipeline(transaction=False) as pipe:
                    for digest, _ in batch:
                        # nx: another publisher may have claimed it since, and must not find it expiring
                        pipe.set(self._chunk(digest), chunks[digest], ex=UPLOAD_SECONDS, nx=True)
                    pipe.execute()
                size = sum(size for _, size in batch)
                sent += size
                if self._bytes_per_second is not None:
                    time.sleep(max(0.0, size / self._bytes_per_second - (time.perf_counter() - began)))
        return sent

    def _manifest(
        self, version: int, parent: int | None, token: int, total: int, meta: dict[str, Any], entries: list[ArrayInfo]
    ) -> bytes:
        info = SnapshotInfo(
            FORMAT, self.pipeline, self.slot, version, parent, token, time.time(), total, meta, tuple(entries)
        )
        return json.dumps(msgspec.to_builtins(info), separators=(",", ":")).encode()

    def _move(
        self, token: int, parent: int | None, version: int, body: bytes, digest: str, chunks: Iterable[str]
    ) -> list[bytes]:
        keys = [self._key("recovery"), self._key("serving"), self._key(f"manifest:{version}")]
        keys += [self._key("versions"), self._key("notices"), *map(self._chunk, chunks)]
        expected = "" if parent is None else str(parent)
        with self._redis.client() as client:
            return client.eval(MOVE, len(keys), *keys, token, expected, version, body, digest, self._sign(body))

    def _withdraw(self, chunks: Collection[str]) -> None:
        """Delete what a publish that was refused has sent: a Redis that is full must not stay so for an hour."""
        try:
            if chunks:
                with self._redis.client() as client:
                    client.eval(WITHDRAW, len(chunks), *map(self._chunk, chunks))
        except (Unreachable, Refused) as error:
            log.warning("unused chunks of %s expire in an hour: %s", self.name, error)

    def _forget_old(self, current: int) -> None:
        """Delete all but the last `keep` versions, and the chunks that only those deleted held.

        A failure is logged and not raised: the publish has succeeded, and the next one deletes what was left.
        """
        try:
            versions = self._versions()
            serving = self._pointer("serving")
            keep = {current, serving[0].version if serving else current, *versions[-self.keep :]}
            old = [version for version in versions if version not in keep]
            if not old:
                return
            held = self._chunks_of(keep)
            doomed = self._chunks_of(old) - held
            keys = [self._key("recovery"), self._key("versions")]
            keys += [self._key(f"manifest:{version}") for version in old] + [self._chunk(digest) for digest in doomed]
            with self._redis.client() as client:
                client.eval(FORGET, len(keys), *keys, current, *old)
        except (Unreachable, Refused) as error:
            log.warning("old snapshots of %s stay for now: %s", self.name, error)

    def _chunks_of(self, versions: Collection[int]) -> set[str]:
        """Chunks that the manifests of these versions list; one that cannot be read lists none."""
        found: set[str] = set()
        for version, fields in zip(versions, self._manifests(versions), strict=True):
            try:
                found.update(
                    digest for entry in self._info(version, fields, signed=False).arrays for digest, _ in entry.chunks
                )
            except SnapshotError as error:
                log.warning("%s", error)
        return found

    # ---- what readers, and a worker that starts again, read

    def current(self) -> Pointer | None:
        """Version and token that the pointer holds; None when nothing was published. One round trip."""
        held = self._pointer()
        return None if held is None else held[0]

    def load(self, version: int | None = None, prefix: str = "") -> Snapshot:
        """The current snapshot, or that of `version`, every byte checked against its digest.

        Only arrays whose name begins with `prefix` are fetched and checked; the manifest names them all.

        Follows the pointer when the version is replaced while it loads. Raises SnapshotError naming what is wrong when
        there is none, when a part is missing, altered or of another format or pipeline, or the signature is not right.
        """
        if version is not None:
            return self._load(version, prefix)
        while True:
            before = self.current()
            if before is None:
                raise self._nothing()
            try:
                return self._load(before.version, prefix)
            except SnapshotError:
                if self.current() in (None, before):
                    raise

    def load_newest_whole(self, prefix: str = "") -> Snapshot | None:
        """The newest kept version that can be loaded, as `load` does; None when nothing was published.

        A version that is torn is logged as a warning and passed over. Raises SnapshotError if all of them are.
        """
        pointer = self.current()
        versions = self._versions()[::-1]
        if pointer is not None:
            versions = [pointer.version, *(version for version in versions if version != pointer.version)]
        first: SnapshotError | None = None
        for version in versions:
            try:
                return self._load(version, prefix)
            except SnapshotError as error:
                log.warning("%s; trying the version before", error)
                first = first or error
        if first is not None:
            raise first
        return None

    def kept(self) -> list[SnapshotInfo]:
        """Manifests of the kept versions, oldest first. Raises SnapshotError if there is none or one was altered."""
        versions = self._versions()
        found = [
            self._info(v, fields) for v, fields in zip(versions, self._manifests(versions), strict=True) if fields[0]
        ]
        if not found:
            raise self._nothing()
        return found

    def show(self, version: int | None = None) -> SnapshotInfo:
        """The manifest of one version, the current one if none is given. Raises SnapshotError as `load` does."""
        if version is None:
            pointer = self.current()
            if pointer is None:
                raise self._nothing()
            version = pointer.version
        return self._info(version, self._manifests([version])[0])

    def wait_newer(self, version: int, timeout: float) -> int | None:
        """Wait until the current version is another than `version`; returns it, or None after `timeout` seconds.

        Another may be a lower one: Redis may have restarted empty or from an old file.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._redis.client() as client, client.pipeline(transaction=False) as pipe:
                pipe.xrevrange(self._key("notices"), count=1)
                pipe.hget(self._key("recovery"), "version")
                notices, now = pipe.execute()
            if now is not None and int(now) != version:
                return int(now)
            left = min(POLL_SECONDS, deadline - time.monotonic(), self._redis.timeout / 2)
            if left <= 0:
                return None
            seen = notices[0][0] if notices else "0-0"
            with self._redis.client() as client:
                client.xread({self._key("notices"): seen}, count=1, block=max(1, int(left * 1000)))

    def ping(self) -> str | None:
        """Raise Unreachable or Refused if Redis cannot be used; otherwise a warning about its settings, or None."""
        with self._redis.client() as client:
            client.ping()
            client.exists(self._key("recovery"))
            try:
                info = client.info("memory")
            except redis.ResponseError:  # a user without the right to ask
                return None
        nodes = info.values() if isinstance(next(iter(info.values()), None), dict) else [info]
        policies = {str(node.get("maxmemory_policy", "")) for node in nodes}
        for policy in sorted(policies):
            if policy.startswith("allkeys-"):
                return (
                    f"Redis at {self.address} has maxmemory-policy {policy} and may evict parts of a snapshot; "
                    "set it to noeviction or volatile-lru"
                )
        return None

    def neighbours(self) -> list[tuple[str, int]]:
        """(pipeline, slot) of everything published to this Redis; scans its keys, so for error messages only."""
        found = set()
        with self._redis.client() as client:
            for key in client.scan_iter(match="headrace:{*}:*:recovery", count=1000):
                pipeline, _, rest = key.decode().removeprefix("headrace:{").partition("}:")
                slot = rest.removesuffix(":recovery")
                if slot.isdigit():
                    found.add((pipeline, int(slot)))
        return sorted(found)

    def _load(self, version: int, prefix: str) -> Snapshot:
        info = self._info(version, self._manifests([version])[0])
        wanted = [entry for entry in info.arrays if entry.name.startswith(prefix)]
        parts = self._fetch(version, [chunk for entry in wanted for chunk in entry.chunks])
        arrays: dict[str, np.ndarray] = {}
        for entry in wanted:
            data = bytearray().join(next(parts) for _ in entry.chunks)
            arrays[entry.name] = np.ndarray(entry.shape, DTYPES[entry.dtype], buffer=data)
        return Snapshot(info, arrays, signed=self._hmac_key is not None)

    def _fetch(self, version: int, chunks: list[tuple[str, int]]) -> Iterator[bytes]:
        """The chunks' bytes, in order, each one checked."""
        for batch in batches(chunks):
            with self._redis.client() as client, client.pipeline(transaction=False) as pipe:
                for digest, _ in batch:
                    pipe.get(self._chunk(digest))
                found = pipe.execute()
            for (digest, size), data in zip(batch, found, strict=True):
                where = f"chunk {digest[:12]} of version {version} of {self.name} in {self.address}"
                if data is None:
                    raise SnapshotError(f"{where} is missing; load an older version (headrace snapshots list)")
                if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                    raise SnapshotError(
                        f"{where} was altered: {len(data)} bytes do not have the digest of the {size} published; "
                        "load an older version (headrace snapshots list)"
                    )
                yield data

    def _info(self, version: int, fields: list[bytes | None], signed: bool = True) -> SnapshotInfo:
        """The manifest, checked: digest, signature, format, whose it is, and that its chunks fill its arrays."""
        body, digest, signature = fields
        where = f"version {version} of {self.name} in {self.address}"
        if body is None or digest is None:
            raise SnapshotError(f"no {where}; see which there are: headrace snapshots list {self.pipeline}")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise SnapshotError(f"manifest of {where} was altered: its digest does not fit; load an older version")
        if (
            signed
            and self._hmac_key is not None
            and not hmac.compare_digest(self._sign(body).encode(), signature or b"")
        ):
            state = "has another signature" if signature else "is not signed"
            raise SnapshotError(
                f"manifest of {where} {state}; was it published with another key (HEADRACE_HMAC_KEY), or without one?"
            )
        try:
            found = json.loads(body)
            if isinstance(found, dict) and found.get("format") != FORMAT:
                raise SnapshotError(
                    f"{where} has format {found.get('format')}, expected {FORMAT}; "
                    "read it with the release that wrote it"
                )
            info = msgspec.convert(found, SnapshotInfo)
        except (ValueError, RecursionError) as error:
            raise SnapshotError(f"manifest of {where} cannot be read: {error}") from error
        if (info.pipeline, info.slot, info.version) != (self.pipeline, self.slot, version):
            raise SnapshotError(f"{where} is that of {info.pipeline!r}, slot {info.slot}, version {info.version}")
        for entry in info.arrays:
            if entry.dtype not in DTYPES:
                raise SnapshotError(
                    f"array {entry.name!r} of {where} has dtype {entry.dtype}; expected one of {[*DTYPES]}"
                )
            expected = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
            size = sum(size for _, size in entry.chunks)
            if min(entry.shape, default=0) < 0 or size != expected:
                raise SnapshotError(
                    f"array {entry.name!r} of {where}: {entry.dtype} {entry.shape} takes {expected} bytes, "
                    f"its chunks hold {size}"
                )
        return info

    # ---- keys and connection

    def _key(self, name: str) -> str:
        return f"{self.name}:{name}"

    def _chunk(self, digest: str) -> str:
        return f"{self.name}:chunk:{digest}"

    def _sign(self, body: bytes) -> str:
        return "" if self._hmac_key is None else hmac.new(self._hmac_key, body, hashlib.sha256).hexdigest()

    def _pointer(self, name: str = "recovery") -> tuple[Pointer, str] | None:
        with self._redis.client() as client:
            version, token, digest = client.hmget(self._key(name), "version", "token", "manifest")
        if version is None or token is None or digest is None:
            return None
        return Pointer(int(version), int(token)), digest.decode()

    def _versions(self) -> list[int]:
        with self._redis.client() as client:
            return [int(version) for version in client.zrange(self._key("versions"), 0, -1)]

    def _manifests(self, versions: Iterable[int]) -> list[list[bytes | None]]:
        with self._redis.client() as client, client.pipeline(transaction=False) as pipe:
            for version in versions:
                pipe.hmget(self._key(f"manifest:{version}"), "body", "sha256", "hmac")
            return pipe.execute()

    def _nothing(self) -> SnapshotError:
        return SnapshotError(
            f'no snapshot under "{self.name}" in {self.address}; check --redis and the pipeline\'s name'
        )


def as_json(name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` as it will be read. Raises SnapshotError if it is not JSON, or holds a number that is not finite."""
    try:
        return json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(
            f"meta of a snapshot of {name} is not JSON: {error}; use None for what is missing"
        ) from error


def batches(chunks: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Chunks in lists of at most BATCH_BYTES (or one chunk), in order."""
    batch: list[tuple[str, int]] = []
    size = 0
    for chunk in chunks:
        if batch and size + chunk[1] > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += chunk[1]
    if batch:
        yield batch
