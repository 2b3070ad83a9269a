"""Cycles on their way out, over a real broker: told of as committed when the group stands behind them, in their order."""

import asyncio

import msgspec
import pytest

from headrace import Events, Labels, Pipeline, Predictions, numeric
from headrace.connectors.reading import read_range
from headrace.connectors.topics import committed_by, create_topics, end_offsets
from headrace.models import LogisticRegression
from headrace.stream.commits import Commits
from headrace.stream.cycle import Cycle
from headrace.stream.encode import JournalRecord
from headrace.stream.engine import Engine
from headrace.stream.pace import Pace
from headrace.stream.slices import Piece
from headrace.stream.standing import Position, Standing


class Visit(msgspec.Struct):
    id: str
    time: float
    price: float


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


def declared(name, delivery):
    side = {"key": "id", "time": "time", "unit": "s"}
    return Pipeline(
        name=name,
        events=Events(f"{name}.visits", Visit, **side),
        labels=Labels(f"{name}.sales", Sale, value="sold", within="1h", **side),
        features=[numeric("price")],
        model=LogisticRegression(bits=6),
        predictions=Predictions(f"{name}.scores"),
        delivery=delivery,
    )


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_cycle_is_told_of_as_committed_once_the_group_stands_behind_it(kafka, redis_url, unique, delivery):
    pipeline = declared(unique, delivery)
    events, labels, journal = pipeline.topics["events"], pipeline.topics["labels"], pipeline.journal_topic
    create_topics(kafka, {events: 2, labels: 2, journal: 1})
    standing = Standing(Engine(pipeline), Position({("events", 0): 0, ("labels", 0): 7, ("events", 1): 9}, 0, 0))
    told = []

    def note(sent):
        group = committed_by(kafka, pipeline.group)
        assert all(group[partition].offset >= offset for partition, offset in sent.offsets.items())
        told.append(sent.position.offsets["events", 0])

    async def commit():
        commits = Commits(pipeline, kafka, Pace(0.01), note)
        commits.begin(3)
        await commits.start(redis_url)
        for at in range(6):
            if at == 0:
                commits.owned = [0, 1]
            commits.hand_over(standing, Cycle(pieces=[Piece("events", 0, at, at + 1)]), None)
            if at % 3 == 2:
                await commits.all_committed()
                assert commits.all_settled and commits.under_way == 0
                assert len(told) == at + 1
        await commits.producer.close()

    asyncio.run(commit())
    assert told == [1, 2, 3, 4, 5, 6]
    assert standing.position.offsets == {("events", 0): 6, ("labels", 0): 7, ("events", 1): 9}
    # of a partition of which anything was processed both topics are committed, and by whom
    assert committed_by(kafka, pipeline.group) == {(events, 0): (6, "3"), (labels, 0): (7, "3")}
    end = end_offsets(kafka, [(journal, 0)])[journal, 0]
    records = list(read_range(kafka, journal, 0, 0, end))
    cycles = [JournalRecord.decode(record.value) for record in records]
    assert [(cycle.slot, cycle.cycle, cycle.owned, cycle.pieces[0].next) for cycle in cycles] == [
        (3, at, [0, 1] if at == 0 else None, at + 1) for at in range(6)
    ]
    assert standing.position[1:] == (records[-1].offset + 1, 6)
