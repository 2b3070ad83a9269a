"""The store of snapshots against a real Redis: what is published comes back bit for bit, or not at all."""

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import redis

from headrace.connectors import embedded
from headrace.connectors.store import DTYPES, Fenced, Pointer, SnapshotStore
from headrace.errors import DeclarationError, InputError, Refused, SnapshotError, Unreachable

CHUNK = 1024


@pytest.fixture
def store(redis_url: str, unique: str) -> SnapshotStore:
    return SnapshotStore(redis_url, unique, keep=3, chunk_bytes=CHUNK)


@pytest.fixture
def server(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def keys(server: redis.Redis, store: SnapshotStore, kind: str) -> list[bytes]:
    return sorted(key for key in server.scan_iter(count=1000) if key.startswith(f"{store.name}:{kind}".encode()))


# ---- round trip


def test_arrays_come_back_bit_for_bit(store: SnapshotStore) -> None:
    random = np.random.default_rng(1)
    arrays = {}
    for name, dtype in DTYPES.items():
        for shape in ((), (0,), (3, 0, 2), (1,), (7, 5), (3 * CHUNK + 5,)):
            raw = random.integers(0, 2 if name == "bool" else 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
            arrays[f"{name}{shape}"] = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    store.publish(arrays, {}, 1, allow_nan=["float*"])
    found = store.load().arrays
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_views_that_are_not_contiguous_come_back_as_they_read(store: SnapshotStore) -> None:
    table = np.arange(600.0).reshape(20, 30)
    store.publish({"transposed": table.T, "strided": table[::3, ::-2]}, {}, 1)
    found = store.load().arrays
    np.testing.assert_array_equal(found["transposed"], table.T)
    np.testing.assert_array_equal(found["strided"], table[::3, ::-2])


def test_meta_and_token_come_back(store: SnapshotStore) -> None:
    meta = {"offsets": {"0": 5}, "metrics": {"log_loss": 0.1 + 0.2, "auc": None}, "text": "naïve {}", "big": 2**63}
    before = time.time()
    done = store.publish({"w": numbers(3)}, meta, 2**53 - 1)
    found = store.load()
    assert (found.version, found.token, found.meta) == (done.version, 2**53 - 1, meta)
    assert before <= found.created <= time.time()


def test_snapshot_without_arrays_is_one(store: SnapshotStore) -> None:
    store.publish({}, {"offsets": {}}, 0)
    assert store.load().arrays == {}


def test_versions_count_up_and_name_their_parent(store: SnapshotStore) -> None:
    assert store.current() is None
    assert [store.publish({"w": numbers(3, i)}, {"i": i}, 10 * i).version for i in range(3)] == [1, 2, 3]
    assert store.current() == Pointer(3, 20)
    assert [(info.version, info.parent, info.meta["i"]) for info in store.kept()] == [
        (1, None, 0),
        (2, 1, 1),
        (3, 2, 2),
    ]
    assert store.show(2).token == 10
    assert store.show().version == 3
    np.testing.assert_array_equal(store.load(2).arrays["w"], numbers(3, 1))


def test_slots_and_pipelines_are_apart(redis_url: str, unique: str) -> None:
    stores = [SnapshotStore(redis_url, unique, slot) for slot in (0, 1, 10)] + [SnapshotStore(redis_url, unique + "0")]
    for token, store in enumerate(stores):
        store.publish({"w": np.array([token])}, {}, token)
    assert [int(store.load().arrays["w"][0]) for store in stores] == [0, 1, 2, 3]
    assert [(unique, 0), (unique, 1), (unique, 10)] == [found for found in stores[0].neighbours() if found[0] == unique]


# ---- what is sent


def test_unchanged_chunks_are_not_sent_again(store: SnapshotStore) -> None:
    arrays = {"w": numbers(1000), "n": numbers(500, 1)}  # 8 and 4 chunks
    first = store.publish(arrays, {}, 1)
    again = store.publish(arrays, {}, 2)
    arrays["w"][999] += 1  # in the last chunk, of 832 bytes
    changed = store.publish(arrays, {}, 3)
    assert (first.bytes_sent, again.bytes_sent, changed.bytes_sent) == (12_000, 0, 832)
    assert first.bytes_total == again.bytes_total == changed.bytes_total == 12_000
    np.testing.assert_array_equal(store.load().arrays["w"], arrays["w"])


def test_another_worker_does_not_send_what_is_there(redis_url: str, unique: str) -> None:
    SnapshotStore(redis_url, unique).publish({"w": numbers(1000)}, {}, 1)
    assert SnapshotStore(redis_url, unique).publish({"renamed": numbers(1000)}, {}, 2).bytes_sent == 0


def test_upload_keeps_to_its_byte_rate(redis_url: str, unique: str) -> None:
    slow = SnapshotStore(redis_url, unique, bytes_per_second=100_000)
    assert slow.publish({"w": numbers(2500)}, {}, 1).seconds >= 0.19


def test_redis_that_restarted_empty_gets_everything_again(redis_url: str, unique: str, server: redis.Redis) -> None:
    store = SnapshotStore(redis_url, unique, chunk_bytes=CHUNK)
    arrays = {"w": numbers(1000)}
    store.publish(arrays, {}, 1)
    store.publish(arrays, {}, 2)
    server.delete(*keys(server, store, ""))
    done = store.publish(arrays, {}, 3)
    assert (done.version, done.bytes_sent) == (3, 8000)  # versions go on rising
    np.testing.assert_array_equal(store.load().arrays["w"], arrays["w"])
    assert store.load().info.parent is None


def test_chunk_that_redis_lost_is_sent_again(store: SnapshotStore, server: redis.Redis) -> None:
    arrays = {"w": numbers(1000)}
    store.publish(arrays, {}, 1)
    server.delete(keys(server, store, "chunk")[0])
    assert store.publish(arrays, {}, 2).bytes_sent in (CHUNK, 832)
    np.testing.assert_array_equal(store.load().arrays["w"], arrays["w"])


def test_only_chunks_of_an_upload_that_was_given_up_expire(store: SnapshotStore, server: redis.Redis) -> None:
    store.publish({"w": numbers(300)}, {}, 1)
    assert all(server.ttl(key) == -1 for key in keys(server, store, ""))
    store._send({"0" * 64: memoryview(b"never published")})
    assert 0 < server.ttl(f"{store.name}:chunk:{'0' * 64}") <= 3600


# ---- the token


@pytest.mark.parametrize("token", [4, 5])
def test_token_that_is_not_greater_is_refused(store: SnapshotStore, server: redis.Redis, token: int) -> None:
    store.publish({"w": np.zeros(3)}, {}, 5)
    before = keys(server, store, "")
    with pytest.raises(Fenced, match=rf"token {token} refused: version 1 with token 5.*--slot"):
        store.publish({"w": np.ones(3)}, {}, token)
    assert store.current() == Pointer(1, 5)
    assert keys(server, store, "") == before
    np.testing.assert_array_equal(store.load().arrays["w"], np.zeros(3))


def test_zombie_is_refused_and_changes_nothing(redis_url: str, unique: str) -> None:
    zombie, successor = (SnapshotStore(redis_url, unique, keep=1) for _ in range(2))
    zombie.publish({"w": np.zeros(3)}, {}, 10)
    successor.publish({"w": np.ones(3)}, {}, 12)
    with pytest.raises(Fenced):
        zombie.publish({"w": np.zeros(3)}, {}, 11)
    assert successor.current() == Pointer(2, 12)
    successor.publish({"w": np.full(3, 2.0)}, {}, 13)
    np.testing.assert_array_equal(successor.load().arrays["w"], np.full(3, 2.0))


def test_publishers_that_race_leave_the_greatest_token_whole(redis_url: str, unique: str) -> None:
    """Two workers of one slot with keep=1 and equal arrays: each deletes the other's versions while it uploads."""

    def work(first: int) -> None:
        store = SnapshotStore(redis_url, unique, keep=1, chunk_bytes=CHUNK)
        for token in range(first, 400, 2):
            with suppress(Refused):
                store.publish({"w": np.full(1000, token // 2)}, {"token": token}, token)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    reader = SnapshotStore(redis_url, unique)
    while any(thread.is_alive() for thread in threads):
        if reader.current() is not None:
            found = reader.load()
            assert (found.arrays["w"] == found.token // 2).all()
    last = reader.load()
    assert last.token == last.meta["token"] >= 398


@pytest.mark.parametrize("lost", [1, 2])
def test_answer_that_got_lost_is_no_refusal(redis_url: str, unique: str, lost: int) -> None:
    """The pointer moved but the connection broke before the answer: the publisher must not take itself for another."""
    with losing(redis_url, b"published", b"behind", times=lost) as url:
        store = SnapshotStore(url, unique)
        if lost == 1:
            done = store.publish({"w": numbers(10)}, {}, 7)  # the second try finds its own move
        else:
            with pytest.raises(Unreachable):
                store.publish({"w": numbers(10)}, {}, 7)
            done = store.publish({"w": numbers(10)}, {}, 7)
        assert done[:2] == (1, 7)
        with pytest.raises(Fenced):
            store.publish({"w": numbers(10)}, {}, 7)
        assert store.publish({"w": numbers(10)}, {}, 8).version == 2


# ---- what is never loaded


def test_nothing_published_is_an_error_that_says_where_it_looked(store: SnapshotStore) -> None:
    for look in (store.load, store.show, store.kept):
        with pytest.raises(SnapshotError, match=r"no snapshot under .*check --redis and the pipeline's name"):
            look()
    assert store.load_newest_whole() is None
    store.publish({}, {}, 1)
    with pytest.raises(SnapshotError, match=r"no version 7 .*headrace snapshots list"):
        store.load(7)


def test_missing_chunk_is_named_and_the_version_before_is_whole(store: SnapshotStore, server: redis.Redis) -> None:
    store.publish({"w": numbers(1000, 1)}, {}, 1)
    old = keys(server, store, "chunk")
    store.publish({"w": numbers(1000, 2)}, {}, 2)
    lost = next(key for key in keys(server, store, "chunk") if key not in old)
    server.delete(lost)
    with pytest.raises(
        SnapshotError, match=rf"chunk {lost.decode().rpartition(':')[2][:12]} of version 2 .* is missing"
    ):
        store.load()
    whole = store.load_newest_whole()
    assert whole is not None
    assert whole.version == 1
    np.testing.assert_array_equal(whole.arrays["w"], numbers(1000, 1))


def test_only_arrays_of_a_prefix_are_fetched(store: SnapshotStore, server: redis.Redis) -> None:
    """A reader of the shared state needs no part of the rest, which may be large, or torn."""
    store.publish({"shared/w": numbers(300, 1), "shared/n": numbers(3)}, {"step": 1}, 1)
    shared = keys(server, store, "chunk")
    store.publish({"shared/w": numbers(300, 1), "partition/0/x": numbers(300, 2), "shared/n": numbers(3)}, {}, 2)
    assert store.load(prefix="partition/0/").arrays.keys() == {"partition/0/x"}
    server.delete(*(key for key in keys(server, store, "chunk") if key not in shared))
    for found in (store.load(prefix="shared/"), store.load(2, prefix="shared/"), store.load_newest_whole("shared/")):
        assert found is not None
        assert found.version == 2
        assert list(found.arrays) == ["shared/w", "shared/n"]
        assert [entry.name for entry in found.info.arrays] == ["shared/w", "partition/0/x", "shared/n"]
        np.testing.assert_array_equal(found.arrays["shared/w"], numbers(300, 1))
        np.testing.assert_array_equal(found.arrays["shared/n"], numbers(3))
    with pytest.raises(SnapshotError, match=r"is missing"):
        store.load()
    whole = store.load_newest_whole()
    assert whole is not None
    assert whole.version == 1
    assert store.load(prefix="nothing").arrays == {}


@pytest.mark.parametrize("change", ["flip", "shorten", "lengthen", "empty"])
def test_altered_chunk_is_never_loaded(store: SnapshotStore, server: redis.Redis, change: str) -> None:
    store.publish({"w": numbers(1000)}, {}, 1)
    key = keys(server, store, "chunk")[3]
    data = server.get(key)
    assert isinstance(data, bytes)
    flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    server.set(key, {"flip": flipped, "shorten": data[:-1], "lengthen": data + b"\0", "empty": b""}[change])
    for load in (store.load, store.load_newest_whole):
        with pytest.raises(SnapshotError, match=r"chunk .* of version 1 .* was altered"):
            load()


def test_altered_manifest_is_never_loaded(store: SnapshotStore, server: redis.Redis) -> None:
    store.publish({"w": numbers(10)}, {"step": 1}, 1)
    (key,) = keys(server, store, "manifest")
    body = server.hget(key, "body")
    assert isinstance(body, bytes)
    server.hset(key, "body", body.replace(b'"step":1', b'"step":2'))
    for look in (store.load, store.show, store.kept):
        with pytest.raises(SnapshotError, match=r"manifest of version 1 .* was altered"):
            look()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"shape":[10]', b'"shape":[1000000000000]', "takes 8000000000000 bytes, its chunks hold 80"),
        (b'"shape":[10]', b'"shape":[-2,-5]', "its chunks hold 80"),
        (b'"dtype":"float64"', b'"dtype":"object"', "dtype object; expected one of"),
        (b'"format":1', b'"format":2', "has format 2, expected 1"),
        (b'"slot":0', b'"slot":1', "slot 1, version 1"),
        (b'"token":1', b'"token":"1"', "cannot be read: Expected `int`, got `str`"),
        (b'"format":1', b'"format":', "cannot be read"),
    ],
)
def test_manifest_that_does_not_fit_is_refused(
    store: SnapshotStore, server: redis.Redis, old: bytes, new: bytes, says: str
) -> None:
    """Written by someone who also mended the digest: without an HMAC only the content can give it away."""
    store.publish({"w": numbers(10)}, {}, 1)
    (key,) = keys(server, store, "manifest")
    body = server.hget(key, "body")
    assert isinstance(body, bytes)
    assert old in body
    body = body.replace(old, new)
    server.hset(key, mapping={"body": body, "sha256": hashlib.sha256(body).hexdigest()})
    with pytest.raises(SnapshotError, match=says):
        store.load()


def test_manifest_is_demanded_to_bear_the_signature_of_the_key(redis_url: str, unique: str) -> None:
    signing = SnapshotStore(redis_url, unique, hmac_key=b"right")
    signing.publish({"w": numbers(10)}, {}, 1)
    np.testing.assert_array_equal(signing.load().arrays["w"], numbers(10))
    with pytest.raises(SnapshotError, match=r"another signature; was it published with another key"):
        SnapshotStore(redis_url, unique, hmac_key=b"wrong").load()
    unsigned = SnapshotStore(redis_url, unique)
    assert unsigned.load().version == 1  # a reader without the key may read
    unsigned.publish({"w": numbers(10)}, {}, 2)
    with pytest.raises(SnapshotError, match=r"is not signed"):
        signing.load()


# ---- what is never published


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_array_that_is_not_finite_is_named_and_nothing_is_sent(
    store: SnapshotStore, server: redis.Redis, bad: float
) -> None:
    weights = np.zeros((300, 2), np.float32)
    weights[211, 1] = bad
    with pytest.raises(SnapshotError, match=rf"array 'weights' .* \[211, 1\] is {bad}; nothing was published"):
        store.publish({"fine": np.zeros(3), "weights": weights}, {}, 1)
    assert keys(server, store, "") == []


def test_arrays_declared_so_may_hold_nan(store: SnapshotStore) -> None:
    arrays = {"pending/0/x": np.array([1.0, np.nan]), "last": np.array(np.inf), "weights": np.ones(2)}
    with pytest.raises(SnapshotError, match=r"array 'last'"):
        store.publish(arrays, {}, 1, allow_nan=["pending/*"])
    store.publish(arrays, {}, 1, allow_nan=["pending/*", "last"])
    np.testing.assert_array_equal(store.load().arrays["pending/0/x"], arrays["pending/0/x"])


@pytest.mark.parametrize(
    "array", [np.array([{}]), np.array(["a"]), np.zeros(2, ">f8"), np.zeros(2, "M8[us]"), np.zeros(2, "c8")]
)
def test_array_of_another_dtype_is_refused(store: SnapshotStore, array: np.ndarray) -> None:
    with pytest.raises(SnapshotError, match=r"array 'w' .* has dtype .*; expected one of"):
        store.publish({"w": array}, {}, 1)


@pytest.mark.parametrize("value", [float("nan"), np.float32(1), {1, 2}, b"raw"])
def test_meta_that_is_not_json_is_refused(store: SnapshotStore, server: redis.Redis, value: object) -> None:
    with pytest.raises(SnapshotError, match=r"meta .* is not JSON"):
        store.publish({"w": numbers(3)}, {"metrics": [value]}, 1)
    assert keys(server, store, "") == []


@pytest.mark.parametrize("token", [-1, 2**53])
def test_token_out_of_range_is_refused(store: SnapshotStore, token: int) -> None:
    with pytest.raises(SnapshotError, match=r"token"):
        store.publish({}, {}, token)


# ---- old versions


def test_old_versions_go_with_the_chunks_that_only_they_held(store: SnapshotStore, server: redis.Redis) -> None:
    constant = numbers(300, seed=99)  # 3 chunks in every version
    for i in range(6):
        store.publish({"constant": constant, "moving": numbers(128, i)}, {}, i)  # one more chunk each
        assert [info.version for info in store.kept()] == list(range(max(1, i - 1), i + 2))
        assert len(keys(server, store, "chunk")) == 3 + min(i + 1, 3)
        assert len(keys(server, store, "manifest")) == min(i + 1, 3)
    for version in (4, 5, 6):
        np.testing.assert_array_equal(store.load(version).arrays["moving"], numbers(128, version - 1))
        np.testing.assert_array_equal(store.load(version).arrays["constant"], constant)


def test_chunk_that_comes_back_after_its_version_went_is_sent_again(redis_url: str, unique: str) -> None:
    store = SnapshotStore(redis_url, unique, keep=1, chunk_bytes=CHUNK)
    for token in range(8):
        assert store.publish({"w": numbers(100, token % 2)}, {}, token).bytes_sent == 800
        np.testing.assert_array_equal(store.load().arrays["w"], numbers(100, token % 2))


def test_version_that_cannot_be_read_does_not_stop_publishing(store: SnapshotStore, server: redis.Redis) -> None:
    for token in range(3):
        store.publish({"w": numbers(100, token)}, {}, token)
    for key in keys(server, store, "manifest"):
        server.hset(key, "body", b"{")
    for token in range(3, 7):
        store.publish({"w": numbers(100, token)}, {}, token)
    assert [info.version for info in store.kept()] == [5, 6, 7]


def test_key_may_be_introduced_later(redis_url: str, unique: str, server: redis.Redis) -> None:
    """What an unsigned version shares with signed ones stays, and goes when none needs it."""
    unsigned = SnapshotStore(redis_url, unique, keep=2, chunk_bytes=CHUNK)
    signing = SnapshotStore(redis_url, unique, keep=2, chunk_bytes=CHUNK, hmac_key=b"key")
    for token, store in enumerate([unsigned, unsigned, signing]):
        store.publish({"w": numbers(128, token), "constant": numbers(128, 9)}, {}, token)
    np.testing.assert_array_equal(unsigned.load(2).arrays["constant"], numbers(128, 9))
    signing.publish({"w": numbers(128, 3)}, {}, 3)
    signing.publish({"w": numbers(128, 4)}, {}, 4)
    assert len(keys(server, signing, "chunk")) == 2


# ---- readers


def test_reader_never_sees_half_while_versions_come_and_go(redis_url: str, unique: str) -> None:
    """keep=1: every version is deleted as soon as there is the next, also while it is being read."""
    publisher = SnapshotStore(redis_url, unique, keep=1, chunk_bytes=CHUNK)
    publisher.publish({"a": np.zeros(2000), "b": np.zeros(500, np.int32)}, {"i": 0}, 0)
    stop = threading.Event()

    def publish() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            publisher.publish({"a": np.full(2000, i, float), "b": np.full(500, i, np.int32)}, {"i": i}, i)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        reader = SnapshotStore(redis_url, unique)
        seen = []
        for _ in range(200):
            found = reader.load()
            i = found.meta["i"]
            assert (found.arrays["a"] == i).all()
            assert (found.arrays["b"] == i).all()
            assert found.token == i
            seen.append(i)
    finally:
        stop.set()
        thread.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 5


def test_waiting_reader_wakes_when_a_version_comes(store: SnapshotStore) -> None:
    assert store.wait_newer(0, timeout=0.05) is None
    timer = threading.Timer(0.3, store.publish, ({"w": numbers(3)}, {}, 1))
    timer.start()
    assert store.wait_newer(0, timeout=30) == 1
    timer.join()
    assert store.wait_newer(0, timeout=0) == 1  # already there
    assert store.wait_newer(1, timeout=0.05) is None


def test_waiting_reader_finds_a_version_whose_notice_got_lost(store: SnapshotStore, server: redis.Redis) -> None:
    store.publish({"w": numbers(3)}, {}, 1)

    def publish_without_notice() -> None:
        with server.pipeline() as pipe:  # a transaction: the reader sleeps through it
            pipe.hset(f"{store.name}:recovery", "version", 2)
            pipe.execute()

    timer = threading.Timer(0.3, publish_without_notice)
    timer.start()
    assert store.wait_newer(1, timeout=30) == 2
    timer.join()


def test_waiting_reader_sees_that_redis_restarted_empty(store: SnapshotStore) -> None:
    store.publish({"w": numbers(3)}, {}, 1)
    assert store.wait_newer(57, timeout=1) == 1


# ---- faults of Redis


@pytest.mark.parametrize("look", ["ping", "current", "load", "publish", "wait_newer"])
def test_redis_away_is_unreachable_with_its_address(look: str) -> None:
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        store = SnapshotStore(f"redis://user:secret@127.0.0.1:{port}/0", "away")
        arguments = {"publish": ({"w": numbers(3)}, {}, 1), "wait_newer": (0, 60.0)}.get(look, ())
        with pytest.raises(Unreachable, match=rf"127\.0\.0\.1:{port}/0 does not answer.*--redis") as caught:
            getattr(store, look)(*arguments)
        assert "secret" not in str(caught.value)


def test_redis_that_hangs_dies_and_comes_back(unique: str) -> None:
    with embedded.redis() as own:
        store = SnapshotStore(own.url, unique, timeout=0.5)
        store.publish({"w": numbers(1000)}, {}, 1)
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        try:
            for fresh in (store, SnapshotStore(own.url, unique, timeout=0.5)):
                with pytest.raises(Unreachable, match=r"does not answer"):
                    fresh.publish({"w": numbers(1000, 2)}, {}, 2)
        finally:
            os.kill(own.pid, signal.SIGCONT)
        own.kill()
        with pytest.raises(Unreachable):
            store.current()
        own.start()
        np.testing.assert_array_equal(store.load(1).arrays["w"], numbers(1000))
        assert store.publish({"w": numbers(1000, 3)}, {}, 3).token == 3


def test_full_redis_refuses_and_the_old_snapshot_still_loads(unique: str) -> None:
    with embedded.redis(properties={"maxmemory": "8mb", "maxmemory-policy": "noeviction"}) as own:
        store = SnapshotStore(own.url, unique, chunk_bytes=1 << 18)
        store.publish({"w": numbers(100_000)}, {}, 1)
        with pytest.raises(Refused, match=r"it is full: raise its maxmemory") as caught:
            store.publish({"w": numbers(2_000_000, 2)}, {}, 2)
        assert not isinstance(caught.value, Fenced)
        assert store.publish({"w": numbers(100_001)}, {}, 3).version == 2  # nothing of the large one is left behind
        redis.Redis.from_url(own.url).config_set("maxmemory", "1mb")
        with pytest.raises(Refused, match=r"it is full"):  # every chunk is there, the manifest finds no room
            store.publish({"w": numbers(100_001)}, {}, 4)
        assert store.current() == Pointer(2, 3)
        np.testing.assert_array_equal(store.load().arrays["w"], numbers(100_001))
        np.testing.assert_array_equal(store.load(1).arrays["w"], numbers(100_000))


def test_replica_refuses_and_says_so(unique: str) -> None:
    with embedded.redis() as own:
        client = redis.Redis.from_url(own.url)
        SnapshotStore(own.url, unique).publish({"w": numbers(3)}, {}, 1)
        client.config_set("appendonly", "no")
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(Refused, match=r"it is a replica: give the address of the primary"):
            SnapshotStore(own.url, unique).publish({"w": numbers(5)}, {}, 2)
        assert SnapshotStore(own.url, unique).load().version == 1


def test_redis_that_cannot_save_to_its_disk_refuses_until_it_can(unique: str) -> None:
    with embedded.redis(properties={"appendonly": "no"}) as own:
        client = redis.Redis.from_url(own.url)
        store = SnapshotStore(own.url, unique)
        store.publish({"w": numbers(3)}, {}, 1)
        (own.folder / "dump.rdb").mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        while client.info("persistence")["rdb_bgsave_in_progress"]:
            time.sleep(0.01)
        with pytest.raises(Refused, match=r"it cannot save to its disk"):
            store.publish({"w": numbers(5)}, {}, 2)
        assert store.current() == Pointer(1, 1)
        np.testing.assert_array_equal(store.load().arrays["w"], numbers(3))
        (own.folder / "dump.rdb").rmdir()
        client.save()
        assert store.publish({"w": numbers(5)}, {}, 2).version == 2


def test_login_that_fails_is_refused(redis_url: str, unique: str) -> None:
    with pytest.raises(Refused, match=r"refused the login") as caught:
        SnapshotStore(redis_url.replace("//", "//nobody:secret@"), unique).ping()
    assert "secret" not in str(caught.value)


def test_key_of_another_program_is_refused(store: SnapshotStore, server: redis.Redis) -> None:
    server.set(f"{store.name}:recovery", "mine")
    with pytest.raises(Refused, match=r"another program wrote keys of this name"):
        store.publish({"w": numbers(3)}, {}, 1)


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "allkeys-lru"])
def test_eviction_of_all_keys_is_warned_of(unique: str, policy: str) -> None:
    with embedded.redis(properties={"maxmemory-policy": policy}) as own:
        warning = SnapshotStore(own.url, unique).ping()
        assert (warning is not None) == (policy == "allkeys-lru")
        assert warning is None or f"{policy} and may evict parts of a snapshot" in warning


def test_cluster_finds_all_keys_of_a_slot_on_one_node(unique: str) -> None:
    with embedded.redis(properties={"cluster-enabled": "yes"}) as own:
        client = redis.Redis.from_url(own.url)
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")).replace("': '", ":"):
            time.sleep(0.1)
        store = SnapshotStore(own.url, unique, keep=2, chunk_bytes=CHUNK)
        for token in range(4):
            store.publish({"w": numbers(1000, token)}, {}, token)
        np.testing.assert_array_equal(store.load().arrays["w"], numbers(1000, 3))
        assert [info.version for info in store.kept()] == [3, 4]
        assert store.wait_newer(3, timeout=1) == 4
        assert store.wait_newer(4, timeout=0.05) is None
        assert store.ping() is None
        assert store.neighbours() == [(unique, 0)]


# ---- arguments


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost:6379", "redis://localhost:port", ""])
def test_url_that_is_none_is_an_error(url: str) -> None:
    with pytest.raises(InputError, match=r"write redis://host:port/0"):
        SnapshotStore(url, "p")


@pytest.mark.parametrize(
    "arguments",
    [{"pipeline": ""}, {"pipeline": "a}b"}, {"slot": -1}, {"keep": 0}, {"chunk_bytes": 0}, {"chunk_bytes": 12}],
)
def test_arguments_that_cannot_be_are_errors(arguments: dict) -> None:
    with pytest.raises(DeclarationError):
        SnapshotStore("redis://localhost", **({"pipeline": "p"} | arguments))


@contextmanager
def losing(url: str, *answers: bytes, times: int) -> Iterator[str]:
    """A way to the Redis at `url` that breaks, the first `times`, where an answer holds one of `answers`."""
    host, port = url.removeprefix("redis://").removesuffix("/0").split(":")
    left = [times]

    def forward(source: socket.socket, sink: socket.socket, losable: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if losable and left[0] and any(answer in data for answer in answers):
                    left[0] -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection((host, int(port)))
            threading.Thread(target=forward, args=(near, far, False), daemon=True).start()
            threading.Thread(target=forward, args=(far, near, True), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
