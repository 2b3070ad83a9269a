"""Prediction records, dead letters and journal records as they are written."""

import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from headrace import InputError
from headrace.connectors.spans import Spans
from headrace.stream.encode import JournalRecord, Served, encode_dead_letter, encode_predictions
from headrace.stream.explain import NO_FEATURE, Explained
from headrace.stream.slices import DeadLetter, Piece, Record


def predicted(keys, out, time, offset=None, record_keys=None):
    batch = SimpleNamespace(
        partition=3, keys=Spans.of([msgspec.json.encode(key) for key in keys]),
        record_keys=Spans.of(record_keys or [None] * len(keys)), headers=None, time=np.array(time, np.int64),
        offset=np.array(offset if offset is not None else range(len(keys)), np.int64),
    )  # fmt: skip
    return SimpleNamespace(
        batch=batch, lo=0, hi=len(keys), out=np.array(out, np.float32)[:, None], by=None, explained=None
    )


@pytest.mark.parametrize("key", ['a"b\\c', "é\u2028😀", "", 7, -(2**63), "x,y"])
def test_prediction_record_is_json_with_the_event_it_is_for(key):
    given = predicted([key], [0.25], [1_700_000_000_123_456], [2**40], [b"k"])
    ((record_key, value, _, _),) = encode_predictions(given, "clicks", Served("ctr", 12, 0.5))
    assert record_key == b"k"
    assert json.loads(value) == {
        "key": key, "prediction": 0.25, "model": "ctr", "version": 12, "age_seconds": 0.5,
        "time": 1_700_000_000.123456, "source": f"clicks-3-{2**40}",
    }  # fmt: skip


def test_prediction_is_read_back_to_the_bit_of_a_float32():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.random(5000), 10.0 ** rng.uniform(-38, 38, 5000), [0, 1, 1e-45]]).astype(np.float32)
    given = predicted(["k"] * len(values), values, [0] * len(values))
    read = [json.loads(value)["prediction"] for _, value, _, _ in encode_predictions(given, "t", Served("m", 0, None))]
    np.testing.assert_array_equal(np.array(read, np.float32), values)


def test_prediction_of_several_classes_is_the_probability_of_each():
    given = predicted(["k", "l"], [0, 0], [0, 0])
    given.out = np.array([[0.1, 0.7, 0.2], [0, 1, 0]], np.float32)
    served = Served("m", 1, None, ("red", 'sky "blue"', "été"))
    told = [value for _, value, _, _ in encode_predictions(given, "t", served)]
    assert b'"prediction":{"red":0.1,"sky \\"blue\\"":0.7,"\xc3\xa9t\xc3\xa9":0.2},"model":"m"' in told[0]
    assert json.loads(told[1])["prediction"] == {"red": 0.0, 'sky "blue"': 1.0, "été": 0.0}


def test_explanation_names_features_and_what_they_add_the_heaviest_first():
    given = predicted(["k", "l"], [0.5, 0.5], [0, 0])
    given.explained = Explained(
        np.array([[1, 0], [NO_FEATURE, NO_FEATURE]], np.int32), np.array([[-0.1, 1e-7], [0, 0]], np.float32)
    )
    served = Served("m", 1, None, (), ("price", 'mean "x"'))
    told = [value for _, value, _, _ in encode_predictions(given, "t", served)]
    assert told[0].endswith(
        b'"source":"t-3-0","explain":[{"feature":"mean \\"x\\"","contribution":-0.1},'
        b'{"feature":"price","contribution":1e-7}]}'
    )
    assert json.loads(told[1])["explain"] == []


def test_nothing_predicted_gives_no_records_and_no_age_is_null():
    assert encode_predictions(predicted([], [], []), "t", Served("m", 0, None)) == []
    ((_, value, _, _),) = encode_predictions(predicted(["k"], [1], [0]), "t", Served("m", 0, None))
    assert json.loads(value)["age_seconds"] is None


def test_dead_letter_is_the_record_as_it_came_with_why_in_headers():
    record = Record(81207, 1_700_000_000_000, b"k", b"{bad", (("trace", b"1"),))
    letter = DeadLetter("events", 3, record, "not valid JSON", "$.price")
    key, value, headers, _ = encode_dead_letter(letter, "clicks", 1000)
    assert (key, value, headers[0]) == (b"k", b"{bad", ("trace", b"1"))
    assert dict(headers[1:]) == {
        "headrace-topic": b"clicks", "headrace-partition": b"3", "headrace-offset": b"81207",
        "headrace-time": b"1700000000000", "headrace-reason": b"not valid JSON", "headrace-path": b"$.price",
    }  # fmt: skip


@pytest.mark.parametrize("record", [Record(1, 0, b"k", b"v" * 5000), Record(1, 0, b"k" * 5000, None)])
def test_dead_letter_above_the_limit_is_cut_and_says_so(record):
    key, value, headers, _ = encode_dead_letter(DeadLetter("labels", 0, record, "too long"), "sales", 1000)
    assert len(key or b"") + len(value or b"") <= 1000
    assert dict(headers)["headrace-truncated"] == b"true"
    assert int(dict(headers)["headrace-original_size"]) >= 5000


def test_journal_record_is_read_as_it_was_written():
    pieces = [Piece("events", 0, 5, 9), Piece("labels", 1, 0, 3)]
    rollback = {"muted": {"events": {"0": 9}}, "since": 3}
    for record in (
        JournalRecord(2, 7),
        JournalRecord(2, 7, pieces, "most records are bad"),
        JournalRecord(2, 7, [], owned=[]),
        JournalRecord(0, 0, [], None, [0, 3], [3], rollback, [("events", 0, 7), ("labels", 1, 2)]),
    ):
        assert JournalRecord.decode(record.encode()) == record
        assert json.loads(record.encode())["format"] == 2


@pytest.mark.parametrize("changes", [{"format": 1}, {"format": 3, "pieces": {"events": []}}])
def test_journal_record_of_another_format_says_what_to_do(changes):
    told = json.loads(JournalRecord(0, 0).encode()) | changes
    message = f"of format {changes['format']}, this version of headrace reads 2: go on with the version that wrote it"
    with pytest.raises(InputError, match=message):
        JournalRecord.decode(json.dumps(told).encode())


@pytest.mark.parametrize("value", [None, b"", b"[]", b'{"format":2}', b'{"format":2,"slot":0,"cycle":"one"}', b"\xff"])
def test_what_is_no_journal_record_is_told_from_one_of_another_format(value):
    with pytest.raises(InputError, match="no record of a journal"):
        JournalRecord.decode(value)
