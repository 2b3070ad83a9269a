"""Partitions that move between workers take with them what waits for its label: each label is learned, by one slot."""

import json
import signal

import pytest
import redis
from kafka import OffsetAndMetadata, TopicPartition
from kafka.admin import KafkaAdminClient

from headrace.connectors import embedded
from headrace.connectors.topics import remove_member
from headrace.stream.encode import JournalRecord

QUICK = "latency='20ms', max_cycle_rows=200, snapshots=Snapshots('300ms')"


@pytest.fixture
def own_redis():
    with embedded.redis() as server:
        yield server


def total(workers):
    """The figures of some workers, summed."""
    figures = [worker.metrics() for worker in workers]
    return {name: sum(f.get(name, 0) for f in figures) for name in {name for f in figures for name in f}}


def until_done(workers, visits, sales):
    """Wait until these workers have processed so many visits and sales, together; returns their figures."""

    def done():
        assert all(worker.alive() for worker in workers)
        figures = total(workers)
        all_read = (figures.get("events", 0), figures.get("labels", 0)) >= (visits, sales)
        committed = not any(value for name, value in figures.items() if name.startswith("lag_records"))
        return figures if all_read and committed else None

    return workers[0].eventually(done, lambda: [total(workers), *(worker.printed for worker in workers)])


def until_nothing_is_left(worker):
    def none_left():
        lag = [value for name, value in worker.metrics().items() if name.startswith("lag_records")]
        return lag and not sum(lag)

    worker.eventually(none_left, lambda: worker.printed)


def count(rows, role):
    return sum(of == role for of, _ in rows)


def assert_each_label_was_learned_once(shop, rows, figures):
    sales = count(rows, "labels")
    assert (figures["events"], figures["labels"]) == (count(rows, "events"), sales)
    assert (figures["joined"], figures["examples"], figures["orphans"], figures["late"]) == (sales, sales, 0, 0)
    assert shop.sources() == shop.events()


def two_at_work(shop, rows):
    """Two workers, each with one of two partitions, that have done all of these rows."""
    zero, one = shop.start(slot=0), shop.start(slot=1)
    zero.eventually(
        lambda: "owns partitions 0\n" in zero.printed and "owns partitions 1\n" in one.printed,
        lambda: zero.printed + one.printed,
    )
    shop.produce(rows)
    until_done([zero, one], count(rows, "events"), count(rows, "labels"))
    shop.until_committed()
    return zero, one


def crash(shop, zero):
    """Slot 0 ends, and the group knows at once; returns the figures of what it has learned."""
    learned = zero.metrics()
    zero.end(signal.SIGKILL)
    remove_member(shop.kafka, shop.pipeline.group, f"{shop.pipeline.group}-0")  # else its session lasts for 30 s
    return learned


def assert_the_heir_learns_the_rest(shop, rows, heir, learned):
    heir.until(events=count(rows, "events") - learned["events"], labels=count(rows, "labels") - learned["labels"])
    shop.until_committed()
    figures = {name: learned.get(name, 0) + value for name, value in heir.metrics().items()}
    assert_each_label_was_learned_once(shop, rows, figures)


def journal(shop):
    return [JournalRecord.decode(record.value) for record in shop.read(shop.pipeline.journal_topic)[0]]


def test_partition_takes_its_waiting_predictions_to_a_worker_that_joins_and_back(open_shop, visits_and_sales):
    """
    slot 0  0123 -------- 01 ------ gone
    slot 1                23 ------ 0123
    """
    shop = open_shop("there and back", partitions=4, changes=QUICK)
    rows = visits_and_sales(11, 6_000)
    first, second, third = rows[:4_000], rows[4_000:8_000], rows[8_000:]
    shop.produce(first)
    zero = shop.start(slot=0)
    zero.until(events=count(first, "events"), labels=count(first, "labels"))
    one = shop.start(slot=1)
    one.says("goes on with partitions 2, 3")
    shop.produce(second)
    until_done([zero, one], count(first + second, "events"), count(first + second, "labels"))
    assert zero.end() == 0
    one.says("goes on with partitions 0, 1")
    shop.produce(third)
    one.until(
        events=count(rows, "events") - zeros(shop, "events"), labels=count(rows, "labels") - zeros(shop, "labels")
    )
    assert one.end() == 0

    figures = {}
    for slot in (0, 1):
        for name, value in shop.snapshot(slot).meta["metrics"].items():
            figures[name] = figures.get(name, 0) + (value or 0)
    assert_each_label_was_learned_once(shop, rows, figures)
    adopted = [(record.slot, record.adopted) for record in journal(shop) if record.adopted]
    assert adopted == [(1, [2, 3]), (1, [0, 1])]


def zeros(shop, name):
    return shop.snapshot(0).meta["metrics"][name]


def test_state_of_a_killed_worker_comes_from_its_snapshot_and_its_journal(open_shop, visits_and_sales):
    shop = open_shop("heir", partitions=2, changes="latency='20ms', max_cycle_rows=200, snapshots=Snapshots('1h')")
    rows = visits_and_sales(12, 4_000)
    first, second = rows[:5_000], rows[5_000:]
    zero, one = two_at_work(shop, first)
    learned = crash(shop, zero)
    one.says("goes on with partitions 0\n")
    shop.produce(second)
    assert_the_heir_learns_the_rest(shop, rows, one, learned)
    assert one.end() == 0


def test_moved_partition_waits_for_redis_while_the_others_go_on(open_shop, visits_and_sales, own_redis):
    shop = open_shop("redis gone", partitions=2, changes=QUICK)
    shop.redis_url = own_redis.url
    rows = visits_and_sales(13, 4_000)
    first, second = rows[:4_000], rows[4_000:]
    zero, one = two_at_work(shop, first)
    own_redis.kill()
    learned = crash(shop, zero)
    before = one.metrics()
    zero.eventually(
        lambda: one.printed.rfind("owns partitions 0, 1\n") > one.printed.rfind("owns partitions 1\n"),
        lambda: one.printed,
    )
    shop.produce(second)
    of_one = [row for row in second if row[0] == "events" and shop.partition(row[1]["id"]) == 1]
    one.until(events=before["events"] + len(of_one))
    status, said = one.page_or_error("/readyz")
    assert status == 503
    assert "Redis" in said
    assert one.metrics()["adopting_partitions"] == 1

    own_redis.start()
    assert_the_heir_learns_the_rest(shop, rows, one, learned)
    assert one.page("/readyz")[0] == 200
    assert one.end() == 0


def test_state_that_was_taken_over_and_not_published_is_fetched_again_after_a_crash(
    open_shop, visits_and_sales, own_redis
):
    shop = open_shop("unpublished", partitions=2, changes=QUICK)
    shop.redis_url = own_redis.url
    client = redis.Redis.from_url(own_redis.url)
    rows = visits_and_sales(14, 4_000)
    first, second = rows[:4_000], rows[4_000:]
    zero, one = two_at_work(shop, first)
    client.config_set("min-replicas-to-write", 1)  # Redis reads and does not write
    learned = crash(shop, zero)
    one.eventually(lambda: any(record.adopted for record in journal(shop)), lambda: one.printed)
    shop.produce(second)
    one.end(signal.SIGKILL)
    assert {record.slot for record in journal(shop) if record.adopted} == {1}
    done = [record for record in journal(shop) if record.slot == 1]
    taken = next(at for at, record in enumerate(done) if record.adopted)
    assert all(piece.partition == 1 for record in done[taken:] for piece in record.pieces)

    client.config_set("min-replicas-to-write", 0)
    one = shop.start(slot=1)
    assert_the_heir_learns_the_rest(shop, rows, one, learned)
    assert one.end() == 0
    assert json.loads(shop.read(shop.scores)[0][-1].value)["model"] == shop.name


def test_broker_that_has_forgotten_commits_is_told_again_from_the_journal(open_shop, visits_and_sales):
    shop = open_shop("forgetful", partitions=2, changes=QUICK)
    rows = visits_and_sales(15, 3_000)
    first, second = rows[:3_000], rows[3_000:]
    shop.produce(first)
    worker = shop.start(slot=0)
    until_done([worker], count(first, "events"), count(first, "labels"))
    assert worker.end() == 0
    committed = shop.committed()
    back = {
        TopicPartition(shop.visits if role == "events" else shop.sales, number): OffsetAndMetadata(offset // 2, "0", -1)
        for (role, number), offset in committed.items()
        if number == 1
    }
    admin = KafkaAdminClient(bootstrap_servers=shop.kafka)
    admin.alter_group_offsets(shop.pipeline.group, back)
    admin.close()
    assert shop.committed() != committed

    shop.produce(second)
    for slot in (0, 1):  # also one that has to take the partition over
        worker = shop.start(slot=slot)
        worker.until(events=count(rows, "events") if slot == 0 else 0, ready=1)
        assert worker.end() == 0
    assert "a broker has forgotten commits" in (shop.folder / "worker-2.log").read_text()
    figures = shop.snapshot(0).meta["metrics"]
    assert_each_label_was_learned_once(shop, rows, figures)


@pytest.mark.parametrize("slot", [0, 2], ids=["that-learned-it", "that-never-had-it"])
def test_broker_that_has_forgotten_who_had_a_partition_last_is_told_again(open_shop, visits_and_sales, slot):
    """Slot 1 took the partitions over from slot 0, and slot 0 from slot 1 again; the group knows of slot 1 alone."""
    shop = open_shop("forgetful twice", partitions=2, changes=QUICK)
    rows = visits_and_sales(16, 2_000)
    parts = [rows[at : at + len(rows) // 4 + 1] for at in range(0, len(rows), len(rows) // 4 + 1)]
    committed = []
    for part, at_work in zip(parts[:3], (0, 1, 0), strict=True):
        shop.produce(part)
        worker = shop.start(slot=at_work)
        until_nothing_is_left(worker)
        assert worker.end() == 0
        committed.append(shop.committed())
    assert len({tuple(sorted(offsets.items())) for offsets in committed}) == 3
    back = {
        TopicPartition(shop.visits if role == "events" else shop.sales, number): OffsetAndMetadata(offset, "1", -1)
        for (role, number), offset in committed[1].items()
    }
    admin = KafkaAdminClient(bootstrap_servers=shop.kafka)
    admin.alter_group_offsets(shop.pipeline.group, back)
    admin.close()

    shop.produce(parts[3])
    worker = shop.start(slot=slot)
    worker.says("a broker has forgotten commits")
    worker.eventually(lambda: shop.sources() == shop.events(), lambda: worker.printed)
    assert worker.end() == 0
    if slot == 0:
        assert "fetching what waits" not in worker.printed  # and so it kept what it had
    learned = [shop.snapshot(of).meta["metrics"]["examples"] for of in {0, 1, slot}]
    assert sum(learned) == count(rows, "labels")
