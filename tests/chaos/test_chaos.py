"""Long runs under faults: `make chaos`. Whatever is killed, nothing is lost, and nothing counts twice."""

import os

import pytest
from chaos.cluster import cluster
from chaos.plan import Fault, Plan, draw
from chaos.run import endure
from chaos.worker import Finding

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(5_400)]

SEED = int(os.environ.get("CHAOS_SEED", "1"))


def number(name, default):
    return int(os.environ.get(f"CHAOS_{name}", default))


def test_hundred_kills(tmp_path):
    """Of a single worker under a full load: some hit its start, some its replay, most its work."""
    plan = draw(SEED, {"kill": 1}, number("KILLS", 100), workers=1, gaps=(0.2, 2.0), settled=0.5, slot=True)
    endure(plan, tmp_path, rate=number("RATE", 20_000), seconds_to_process=1_800)


def test_mixed_faults_of_one_worker(tmp_path):
    """With one slot the model has to be bit for bit that of a run without faults."""
    kinds = {"kill": 4, "term": 2, "freeze": 1, "zombie": 1, "broker-kill": 2, "broker-freeze": 1, "redis-kill": 1,
             "redis-freeze": 1}  # fmt: skip
    plan = draw(SEED, kinds, number("FAULTS", 30), workers=1, gaps=(0.3, 6.0), slot=True)
    endure(plan, tmp_path, rate=number("RATE", 5_000))


def test_mixed_faults_of_three_workers(tmp_path):
    kinds = {"kill": 5, "term": 2, "freeze": 3, "zombie": 2, "join": 2, "leave": 2, "broker-kill": 2,
             "broker-freeze": 1, "redis-kill": 1, "redis-freeze": 1}  # fmt: skip
    plan = draw(SEED, kinds, number("FAULTS", 30), workers=3, gaps=(0.5, 8.0))
    endure(plan, tmp_path, rate=number("RATE", 5_000))


def test_three_brokers_are_restarted_in_turn_and_leaders_are_killed(tmp_path):
    rolling = tuple(Fault("broker-restart", broker, 3.0, 3.0, settled=True) for broker in range(3))
    killed = (
        Fault("leader-kill", 0, 5.0, 5.0, settled=True),
        Fault("coordinator-kill", 0, 5.0, 5.0, settled=True),
        Fault("kill", 0, 2.0, settled=True),
        Fault("leader-kill", 2, 0.5, 8.0),
        Fault("coordinator-kill", 0, 3.0, 0.0, settled=True),
        Fault("broker-freeze", 1, 3.0, 8.0, settled=True),
    )
    with cluster(tmp_path / "cluster") as brokers:
        plan = Plan(SEED, 1, rolling + killed, slot=True)
        endure(plan, tmp_path, rate=number("RATE", 5_000), brokers=brokers)


def test_broker_is_away_for_a_minute(tmp_path):
    plan = Plan(SEED, 2, (Fault("broker-kill", 0, 8.0, 60.0, settled=True), Fault("kill", 0, 10.0)))
    endure(plan, tmp_path, rate=number("RATE", 5_000))


def test_redis_loses_its_data_and_the_model_is_learned_anew_from_the_journal(tmp_path):
    """Once while the worker works and once before it starts: the topics still hold all that it has learned from."""
    faults = (
        Fault("redis-wipe", 0, 6.0, 2.0, settled=True),
        Fault("kill", 0, 5.0, settled=True),
        Fault("redis-wipe", 0, 4.0, 3.0, settled=True),
        Fault("kill", 0, 0.5),
    )
    endure(Plan(SEED, 1, faults, slot=True), tmp_path, rate=number("RATE", 5_000))


def test_worker_that_ends_by_itself_is_a_finding_that_shows_its_log_and_how_to_repeat_it(tmp_path):
    with pytest.raises(Finding, match=r"worker 0 .* by itself ended with status 2") as found:
        endure(Plan(SEED, 1, (Fault("kill", 0, settled=True),)), tmp_path, rate=100, options=["--nonsense"])
    assert "No such option" in str(found.value)
    assert f"make chaos SEED={SEED} ONLY=test_worker_that_ends" in str(found.value)
