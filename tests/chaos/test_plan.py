"""A plan and a load come from their seed alone, so that what was found can be found again."""

import json

from chaos.load import BAD_SALES, BAD_VISITS, Stream
from chaos.plan import BROKER_KINDS, REDIS_KINDS, WORKER_KINDS, Fault, Plan, draw

ALL = dict.fromkeys([*WORKER_KINDS, *BROKER_KINDS, *REDIS_KINDS], 1.0)


def test_equal_seeds_give_equal_plans_and_others_do_not():
    assert draw(1, ALL, 50, workers=3) == draw(1, ALL, 50, workers=3) != draw(2, ALL, 50, workers=3)


def test_plan_names_only_workers_that_are_there_and_never_sends_the_last_one_away():
    for seed in range(50):
        here = {0, 1}
        for fault in draw(seed, ALL, 60, workers=2).faults:
            if fault.kind == "join":
                assert fault.target not in here
                here.add(fault.target)
            elif fault.kind in WORKER_KINDS:
                assert fault.target in here
            if fault.kind == "leave":
                here.remove(fault.target)
            assert 1 <= len(here) <= 4


def test_all_kinds_come_and_freezing_is_also_drawn_longer_than_leases_and_sessions():
    faults = [fault for seed in range(5) for fault in draw(seed, ALL, 100, workers=3).faults]
    assert {fault.kind for fault in faults} == set(ALL)
    frozen = [fault.seconds for fault in faults if fault.kind == "freeze"]
    assert min(frozen) < 10
    assert max(frozen) > 30


def test_plan_is_told_with_its_seed_and_each_fault():
    told = str(Plan(7, 1, (Fault("kill", 0, 0.5), Fault("freeze", 1, 2.0, 12.0, settled=True))))
    assert told.splitlines() == [
        "seed 7, 1 worker(s), 2 fault(s)",
        "    1. 0.50 s after that: kill 0",
        "    2. 2.00 s after all were ready: freeze 1 for 12.00 s",
    ]


def rows(messages, bad):
    return [json.loads(value) for _, value in messages if value not in bad]


def make(seed, blocks=300, size=400):
    """All visits and all sales, the rest included."""
    stream = Stream(seed, size)
    both = [stream.next() for _ in range(blocks)]
    sales = [sale for _, of in both for sale in of] + [sale for of in stream.rest() for sale in of]
    return [visit for of, _ in both for visit in of], sales


def test_equal_seeds_give_equal_loads_and_others_do_not():
    assert make(1, blocks=20) == make(1, blocks=20)
    assert make(1, blocks=20) != make(2, blocks=20)


def test_load_has_everything_that_goes_wrong_in_a_topic():
    visits, sales = make(1)
    assert {value for _, value in visits} >= set(BAD_VISITS)
    assert {value for _, value in sales} >= set(BAD_SALES)
    time_of = {row["id"]: row["time"] for row in rows(visits, BAD_VISITS)}
    told = rows(sales, BAD_SALES)
    delays = [row["time"] - time_of[row["id"]] for row in told if row["id"] in time_of]
    assert min(delays) < -60, "labels before their event"
    assert max(delays) > 3_600, "labels after their wait has ended"
    assert len({row["id"] for row in told}) < len(told) * 0.995, "labels that come twice"
    assert any(row["id"] not in time_of for row in told), "labels without an event"
    ids = [row["id"] for row in rows(visits, BAD_VISITS)]
    assert len(set(ids)) < len(ids), "events that come twice"
    assert 0.9 < len(told) / len(ids) < 1


def test_load_is_in_order_of_event_time():
    visits, sales = make(3)
    times = [row["time"] for row in rows(visits, BAD_VISITS)]
    assert times == sorted(times)
    times = [row["time"] for row in rows(sales, BAD_SALES)]
    assert times == sorted(times)
