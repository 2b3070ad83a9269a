"""Whose state of a partition counts, by what the group says was committed; no server is needed."""

import msgspec
import pytest

from headrace import Events, Labels, Pipeline, Predictions, StreamStopped, numeric
from headrace.models import LogisticRegression
from headrace.stream.claims import check_committed, source
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.slices import Record, Slice
from headrace.stream.standing import Standing


class Click(msgspec.Struct):
    id: str
    time: float
    price: float


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


PIPELINE = Pipeline(
    name="clicks",
    events=Events("clicks", Click, key="id", time="time", unit="s"),
    labels=Labels("sales", Sale, key="id", time="time", unit="s", value="sold", within="1h"),
    features=[numeric("price")],
    model=LogisticRegression(bits=6),
    predictions=Predictions("scores"),
)
EVENTS, LABELS = ("events", 0), ("labels", 0)
NOBODY = ""  # is written beside offsets that a user has set


@pytest.fixture
def slot_3():
    """Slot 3 has processed partition 0 up to event 20 and label 10."""
    standing = Standing(Engine(PIPELINE))
    standing.own([0])
    standing.position = standing.position._replace(offsets={EVENTS: 20, LABELS: 10})
    return standing


def claimed(standing, events, labels, by):
    """What `source` says where the group stands at these offsets, each committed by this slot; None: at none."""
    committed = {p: offset for p, offset in ((EVENTS, events), (LABELS, labels)) if offset is not None}
    return source(standing, 3, 0, committed, dict.fromkeys(committed, by))


@pytest.mark.parametrize("by", ["3", "4", NOBODY])
def test_state_counts_where_nobody_has_gone_on_with_it(slot_3, by):
    assert claimed(slot_3, 20, 10, by) is None


@pytest.mark.parametrize(("events", "labels"), [(21, 10), (20, 11), (30, 20)])
def test_slot_that_has_gone_on_has_the_state(slot_3, events, labels):
    assert claimed(slot_3, events, labels, "4") == (4, {"events": events, "labels": labels})


def test_slot_that_committed_a_partition_that_was_never_here_has_its_state():
    assert claimed(Standing(Engine(PIPELINE)), 5, 0, "4") == (4, {"events": 5, "labels": 0})


def test_partition_that_nobody_has_committed_begins_here():
    assert claimed(Standing(Engine(PIPELINE)), None, None, NOBODY) is None


@pytest.mark.parametrize("by", ["3", "4", NOBODY])
@pytest.mark.parametrize(("events", "labels"), [(19, 10), (20, 9), (0, 0)])
def test_state_that_is_ahead_of_what_is_committed_stops_the_worker(slot_3, events, labels, by):
    with pytest.raises(
        StreamStopped, match=r"learned up to offset .* were its offsets set back\?.*snapshots show clicks"
    ):
        claimed(slot_3, events, labels, by)


@pytest.mark.parametrize("by", ["3", NOBODY])
def test_offsets_that_were_set_on_are_gone_on_from_with_a_warning(slot_3, by, caplog):
    assert claimed(slot_3, 20, 15, by) is None
    assert "sales[0]: the model has learned up to offset 10 and goes on at 15" in caplog.text
    assert "clicks[0]" not in caplog.text


def test_topic_of_which_nothing_was_processed_is_read_from_where_this_slot_committed_it(slot_3, caplog):
    slot_3.position = slot_3.position._replace(offsets={EVENTS: 20})
    assert claimed(slot_3, 20, 7, "3") is None
    assert caplog.text == ""
    assert claimed(slot_3, 20, 7, "4") == (4, {"events": 20, "labels": 7})


def test_partition_that_was_learned_from_and_that_the_group_does_not_know_stops_the_worker(slot_3):
    mine = {EVENTS: 0, LABELS: 0}
    check_committed(slot_3, 7, {}, mine)  # at offsets alone: nothing was learned yet
    row = Record(0, 2 * 10**12, None, b'{"id": "a", "time": 1700000000, "price": 1}')
    batch = Decoder(PIPELINE, "events").decode(Slice("events", 0, 0, 1, [row]))
    slot_3.engine.process(batch, 0, 1)
    check_committed(slot_3, 7, {EVENTS: 20}, mine)
    check_committed(slot_3, 7, {}, {LABELS: 0})
    with pytest.raises(StreamStopped, match=r"snapshot 7 of 'clicks' stands at offset 20 of clicks\[0\], but group"):
        check_committed(slot_3, 7, {LABELS: 10}, mine)
