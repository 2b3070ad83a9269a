"""Prediction records written by the kernel are those of the encoder that goes row by row."""

import json
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest

from headrace.connectors.record_table import RecordTable, headers_of
from headrace.connectors.records import Record
from headrace.connectors.spans import Spans
from headrace.stream.decode import Batch
from headrace.stream.encode import Served, encode_predictions
from headrace.stream.explain import NO_FEATURE, Explained
from headrace.stream.fast_encode import prediction_rows
from headrace.stream.processed import Predicted

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


def batch_of(keys, time, offset, record_keys=None, headers=None):
    """What a batch knows of its events that their predictions say."""
    B = len(keys)
    record_keys = Spans.none(B) if record_keys is None else record_keys
    empty = np.zeros((B, 0), np.float32)
    hashes = empty.astype(np.uint64)
    return Batch(
        "events", 0, 0, B, offset, time, time, keys, record_keys, hashes, empty, hashes, hashes, empty, empty,
        headers=headers,
    )  # fmt: skip


def encode_rows(keys, prediction, time, offset, topic, partition, served):
    piece = Predicted(batch_of(keys, time, offset), 0, len(keys), prediction[:, None])
    rows, ends = prediction_rows({partition: [piece]}, topic, served)
    assert ends == {partition: len(keys)}
    assert list(rows.keys) == [None] * len(keys)
    return rows.values


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
    with pytest.raises(ValueError, match="2 rows with 1 predictions"):
        encode_rows(Spans.of([b"1", b"2"]), np.zeros(1, np.float32), np.zeros(2, np.int64), np.zeros(2, np.int64), "t", 0, SERVED)  # fmt: skip


def some_batch(B, seed, record_keys=True, headers=False):
    rng = np.random.default_rng(seed)
    texts = [None if i % 5 == 2 else b'"%d-%d"' % (seed, i) * (i % 7 + 1) for i in range(B)]
    records = [None if i % 3 == 1 else b"r%d" % i * (i % 20) for i in range(B)] if record_keys else [None] * B
    wire = [None if i % 4 == 3 else wire_of((("n", b"%d" % i),)) for i in range(B)] if headers else None
    time = rng.integers(1_600_000_000_000_000, 1_800_000_000_000_000, B)
    batch = batch_of(
        Spans.of(texts), time, rng.integers(0, 2**40, B), Spans.of(records), None if wire is None else Spans.of(wire)
    )
    return batch, rng.random((B, 1), np.float32)


def wire_of(headers):
    (wire,) = RecordTable.of([Record(0, 0, None, None, headers)]).headers
    return wire


def pieces_of(batch, out, *bounds):
    """One piece from each bound to the next."""
    return [Predicted(batch, a, b, out[a:b]) for a, b in pairwise(bounds)]


def assert_as_one_by_one(predicted, served=SERVED, topic="clicks"):
    rows, ends = prediction_rows(predicted, topic, served)
    assert list(ends) == list(predicted)
    keys, values, first = list(rows.keys), list(rows.values), 0
    headers = [None] * len(rows) if rows.headers is None else list(rows.headers)
    for partition, end in ends.items():
        wanted = []
        for piece in predicted[partition]:
            piece = Predicted(replace(piece.batch, partition=partition), piece.lo, piece.hi, piece.out)
            wanted += encode_predictions(piece, topic, served)
        assert keys[first:end] == [key for key, _, _, _ in wanted]
        assert values[first:end] == [value for _, value, _, _ in wanted]
        assert [() if h is None else headers_of(h) for h in headers[first:end]] == [h for _, _, h, _ in wanted]
        first = end
    assert first == len(rows) == len(keys)


@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("record_keys", [False, True])
@pytest.mark.parametrize("partitions", [1, 2, 4, 33])
def test_partitions_at_one_go_are_those_of_each(partitions, record_keys, headers):
    predicted = {}
    for partition in range(partitions):
        B = 1 + partition * 7 % 40
        predicted[partition * 3] = pieces_of(*some_batch(B, partition, record_keys, headers), 0, B)
    assert_as_one_by_one(predicted)


@pytest.mark.parametrize("headers", [False, True])
def test_pieces_of_several_batches_may_take_turns(headers):
    a, b, c = (some_batch(30, seed, headers=headers) for seed in (1, 2, 3))
    turns = [*pieces_of(*a, 0, 5, 9), *pieces_of(*b, 3, 4), *pieces_of(*a, 9, 12), *pieces_of(*b, 4, 30)]
    turns += [*pieces_of(*a, 20, 20), *pieces_of(*a, 25, 30)]
    assert_as_one_by_one({4: turns, 0: pieces_of(*c, 10, 20), 7: [*pieces_of(*b, 0, 3), *pieces_of(*c, 0, 30)]})


def test_headers_may_be_known_of_some_batches_alone():
    assert_as_one_by_one({0: pieces_of(*some_batch(9, 1), 0, 9), 1: pieces_of(*some_batch(9, 2, headers=True), 2, 9)})


def test_a_partition_may_have_no_rows():
    some, none = some_batch(5, 1), some_batch(0, 2)
    assert_as_one_by_one({0: pieces_of(*none, 0, 0), 1: pieces_of(*some, 0, 5), 2: pieces_of(*some, 2, 2), 3: []})
    assert_as_one_by_one({0: [], 5: pieces_of(*none, 0, 0)})
    assert_as_one_by_one({})


def test_of_several_outputs_without_classes_the_first_is_told():
    batch, _ = some_batch(6, 1)
    out = np.random.default_rng(1).random((6, 3), np.float32)
    assert_as_one_by_one({0: pieces_of(batch, out, 0, 2, 6), 1: pieces_of(batch, out, 1, 3)})


CLASSES = [("a", "b", "c"), ("no", "yes"), ('quoted "', "back\\slash", "", "é😀\u2028", "%b", "x" * 300)]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("headers", [False, True])
def test_of_several_classes_each_is_told(classes, headers):
    served = Served("ctr", 12, 0.5, classes)
    rng = np.random.default_rng(1)
    predicted = {}
    for partition, B in ((0, 6), (3, 40), (1, 1)):
        batch, _ = some_batch(B, partition, headers=headers)
        out = rng.dirichlet(np.ones(len(classes)), B).astype(np.float32)
        out[0] = np.eye(len(classes))[-1]
        predicted[partition] = pieces_of(batch, out, *sorted({0, B // 3, B}))
    assert_as_one_by_one(predicted, served)
    rows, _ = prediction_rows({0: predicted[3]}, "clicks", served)
    for row, piece in zip(list(rows.values)[:13], predicted[3][0].out, strict=True):
        told = json.loads(b"{" + row[row.index(b'"prediction"') :])
        assert list(told["prediction"]) == list(classes)
        assert np.array(list(told["prediction"].values()), np.float32).tobytes() == piece.tobytes()


@pytest.mark.parametrize("classes", CLASSES[:2])
@pytest.mark.parametrize("headers", [False, True])
def test_explanations_are_told_as_one_by_one(classes, headers):
    names = ("price", 'quoted "', "back\\slash", "", "é😀\u2028", "%b", "x" * 300)
    served, rng = Served("ctr", 12, 0.5, classes, names), np.random.default_rng(1)
    predicted = {}
    for partition, B in ((0, 6), (3, 40), (1, 1)):
        batch, _ = some_batch(B, partition, headers=headers)
        feature = np.sort(rng.integers(NO_FEATURE, len(names), (B, 3)), axis=1)[:, ::-1].astype(np.int32).copy()
        numbers = (rng.normal(size=(B, 3)) * 10.0 ** rng.integers(-40, 38, (B, 3))).astype(np.float32)
        batch = replace(batch, explained=Explained(feature, numbers))
        out = rng.dirichlet(np.ones(len(classes)), B).astype(np.float32)
        predicted[partition] = pieces_of(batch, out, *sorted({0, B // 3, B}))
    assert_as_one_by_one(predicted, served)
    rows, _ = prediction_rows({0: predicted[3]}, "clicks", served)
    explained = predicted[3][1].batch.explained
    for row, features, numbers in zip(list(rows.values)[:13], *explained.part(0, 13), strict=True):
        told = json.loads(b"{" + row[row.index(b'"explain"') :])["explain"]
        assert [one["feature"] for one in told] == [names[f] for f in features if f >= 0]
        assert np.array([one["contribution"] for one in told], np.float32).tolist() == numbers[: len(told)].tolist()


def test_many_classes_have_room():
    classes = tuple(f"class {i}" for i in range(2_000))
    batch, _ = some_batch(5, 1)
    out = np.random.default_rng(1).random((5, 2_000), np.float32) * np.float32(1e-30)
    assert_as_one_by_one({0: pieces_of(batch, out, 0, 5)}, Served("many", 1, None, classes))


def test_outputs_and_classes_of_unequal_number_are_refused():
    batch, out = some_batch(5, 1)
    served = Served("ctr", 1, None, ("a", "b"))
    for encode in (
        lambda piece: prediction_rows({0: [piece]}, "t", served),
        lambda p: encode_predictions(p, "t", served),
    ):
        with pytest.raises(ValueError, match="predictions have 1 outputs, and there are 2 classes"):
            encode(Predicted(batch, 0, 5, out))


def test_rows_stay_when_their_batches_go():
    batch, out = some_batch(20, 1, headers=True)
    rows, _ = prediction_rows({0: pieces_of(batch, out, 0, 20)}, "clicks", SERVED)
    before = [list(rows.keys), list(rows.values), list(rows.headers)]
    for spans in (batch.keys, batch.record_keys, batch.headers):
        spans.data[:] = 0
        spans.start[:] = 0
        spans.size[:] = 0
    assert [list(rows.keys), list(rows.values), list(rows.headers)] == before
