"""Prediction records written by the kernel are those of the encoder that goes row by row."""

import json

import msgspec
import numpy as np
import pytest

from headrace.connectors.spans import Spans
from headrace.stream.encode import Served
from headrace.stream.fast_encode import encode_rows

SERVED = Served("ctr", 12, 0.5)


def reference(keys, prediction, time, offset, topic, partition, served):
    """Row by row, in plain Python."""
    text = msgspec.json.encode
    age = "null" if served.age_seconds is None else f"{served.age_seconds:.3f}"
    return [
        b'{"key":%b,"prediction":%b,"model":%b,"version":%d,"age_seconds":%b,"time":%b,"source":"%b-%d-%d"}'
        % (key, text(float(str(p))), text(served.model), served.version, age.encode(), text(t / 1e6), topic.encode(), partition, o)
        for key, p, t, o in zip(keys, prediction, time.tolist(), offset.tolist())
    ]  # fmt: skip


def check(keys, prediction, time, offset, served=SERVED, topic="clicks", partition=3):
    prediction, time, offset = np.array(prediction, np.float32), np.array(time, np.int64), np.array(offset, np.int64)
    rows = list(encode_rows(Spans.of(keys), prediction, time, offset, topic, partition, served))
    keys = [b"null" if key is None else key for key in keys]
    assert rows == reference(keys, prediction, time, offset, topic, partition, served)
    return rows


def test_values_are_those_of_the_plain_encoder():
    rng = np.random.default_rng(1)
    B = 20_000
    keys = [msgspec.json.encode("k" * size) for size in rng.integers(0, 100, B).tolist()]
    time = rng.integers(1_600_000_000_000_000, 1_800_000_000_000_000, B)
    time[::3] -= time[::3] % 1000  # milliseconds
    time[::5] -= time[::5] % 1_000_000
    check(keys, rng.random(B), time, rng.integers(0, 2**40, B))


@pytest.mark.parametrize(
    "served", [SERVED, Served('a"b\\é😀', 0, None), Served("", 2**40, 86_400.1239), Served("m" * 500, 1, 0.0)]
)
def test_what_all_rows_say_is_the_same(served):
    check([b'"k"'] * 3, [0.5, 0.25, 1], [1_700_000_000_123_456] * 3, [0, 9, 10], served, "t" * 249, 0)


@pytest.mark.parametrize(
    "key", [b'"k"', b"7", b"-9223372036854775808", '"é\u2028😀"'.encode(), b'"\\u0041\\"\\\\"', None, b'"' + b"x" * 100_000 + b'"']
)  # fmt: skip
def test_key_stands_as_it_came(key):
    row, _ = check([key, b"1"], [0.1, 0.2], [0, 1], [5, 6])
    assert json.loads(row)["key"] == (None if key is None else json.loads(key))


def test_predictions_of_any_size_are_read_back_to_the_bit():
    values = np.array([0, -0.0, 1e-45, 1e-13, 0.1, 1 / 3, 1, 2**24, 3.4e38, -7.25, np.float32(0.3)], np.float32)
    rows = check([b"1"] * len(values), values, [0] * len(values), range(len(values)))
    read = [json.loads(row)["prediction"] for row in rows]
    np.testing.assert_array_equal(np.array(read, np.float32).view(np.int32), values.view(np.int32))


def test_times_are_seconds_as_a_float_says_them():
    plain = 2**33 * 10**6  # from here on not every microsecond is a float64 of its own
    time = [0, 1, -1, 10, 999_999, 10**6, 9_999_999, 10**7, 10**7 + 1, 10**7 + 10, -(10**9) - 1, plain - 1, plain, plain + 1, plain + 10**7 + 3, 2**53 + 1, 2**63 - 1, -(2**63)]  # fmt: skip
    rng = np.random.default_rng(2)
    time += (rng.integers(0, 2**62, 5000) >> rng.integers(0, 60, 5000)).tolist()
    time += rng.integers(plain - 10**9, plain + 10**9, 5000).tolist()
    check([b"1"] * len(time), [0.5] * len(time), time, [2**63 - 1] * len(time))


def test_nothing_gives_nothing():
    assert check([], [], [], []) == []


def test_columns_may_be_views():
    keys = Spans.of([b"%d" % i for i in range(10)])
    time, offset, prediction = np.arange(10), np.arange(10) * 7, np.linspace(0, 1, 10, dtype=np.float32)[:, None]
    some = slice(1, 9, 2)
    got = encode_rows(keys.take(some), prediction[some, 0], time[some], offset[some], "t", 0, SERVED)
    assert list(got) == reference([b"1", b"3", b"5", b"7"], prediction[some, 0], time[some], offset[some], "t", 0, SERVED)  # fmt: skip


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 keys, 1 predictions, 2 times, 2 offsets"):
        encode_rows(Spans.of([b"1", b"2"]), np.zeros(1, np.float32), np.zeros(2, np.int64), np.zeros(2, np.int64), "t", 0, SERVED)  # fmt: skip
