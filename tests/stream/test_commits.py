"""What the group is told and tells, over a real broker: cycles in their order, what it forgot, who has gone on."""

import asyncio

import msgspec
import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient

from headrace import Events, Labels, Pipeline, Predictions, numeric
from headrace.connectors.reading import read_range
from headrace.connectors.topics import committed_by, create_topics, end_offsets
from headrace.models import LogisticRegression
from headrace.stream.claims import Departed, by_role, tell_again
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


def declared(name, delivery="exactly_once"):
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
                await commits.sent_out()
                assert commits.all_settled == (commits.under_way == 0)
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


def set_offsets(kafka, pipeline, offsets):
    """Set the group's offsets: {(topic, partition): (offset, what stands beside it)}."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.alter_group_offsets(
        pipeline.group, {TopicPartition(*of): OffsetAndMetadata(at, by, -1) for of, (at, by) in offsets.items()}
    )
    admin.close()


def test_group_that_has_forgotten_commits_is_told_again_and_what_a_user_has_set_stays(kafka, redis_url, unique):
    pipeline = declared(unique)
    events, labels = pipeline.topics["events"], pipeline.topics["labels"]
    create_topics(kafka, {events: 2, labels: 2, pipeline.journal_topic: 1})
    told = {}

    async def commit_as(slot, offsets, *pieces):
        commits = Commits(pipeline, kafka, Pace(0.01), lambda _: None)
        commits.begin(slot)
        await commits.start(redis_url)
        standing = Standing(Engine(pipeline), Position({("events", 0): offsets[0], ("labels", 0): offsets[1]}, 0, 0))
        for piece in pieces:
            commits.hand_over(standing, Cycle(pieces=[piece]), None)
        await commits.all_committed()
        return commits

    async def ask(commits):
        group = by_role(pipeline, committed_by(kafka, pipeline.group))
        given = {partition: of.offset for partition, of in group.items()} | {("events", 1): None}
        by = {partition: of.metadata for partition, of in group.items()}
        return await tell_again(pipeline, commits.producer, commits.member, given, by)

    async def scenario():
        one = await commit_as(1, (0, 9), Piece("events", 0, 0, 4))  # of labels the journal tells nothing
        two = await commit_as(2, (4, 9), Piece("events", 0, 4, 6))
        assert await ask(two) is None
        set_offsets(kafka, pipeline, {(events, 0): (4, ""), (labels, 0): (9, "")})
        assert await ask(two) is None
        told["set"] = committed_by(kafka, pipeline.group)
        set_offsets(kafka, pipeline, {(events, 0): (4, "1"), (labels, 0): (9, "1")})
        told["said"] = str(await ask(two))
        for commits in (one, two):
            await commits.producer.close()

    asyncio.run(scenario())
    assert told["set"] == {(events, 0): (4, ""), (labels, 0): (9, "")}
    assert f"{events}[0]: group {pipeline.group} stands at offset 4, the journal says that 6 was" in told["said"]
    assert committed_by(kafka, pipeline.group) == {(events, 0): (6, "2"), (labels, 0): (9, "2")}


def test_state_of_a_partition_that_left_is_kept_until_another_slot_has_gone_on_with_it(kafka, unique):
    pipeline = declared(unique)
    events = pipeline.topics["events"]
    create_topics(kafka, {events: 3, pipeline.topics["labels"]: 3})
    standing = Standing(Engine(pipeline))
    standing.own([0, 1, 2])
    standing.own([])
    set_offsets(kafka, pipeline, {(events, 0): (5, "3"), (events, 1): (5, "4"), (events, 2): (5, "")})

    async def look():
        departed = Departed(pipeline, kafka)
        async with asyncio.timeout(30):
            while len(standing.left) == 3:
                departed.forget(standing, 3)
                await asyncio.sleep(0.01)

    asyncio.run(look())
    assert set(standing.left) == {0, 2}
