"""The shortest run of chaos, for every day; the long ones are in test_chaos.py."""

import os

import pytest
from chaos.plan import Fault, Plan
from chaos.run import endure

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@pytest.mark.timeout(600)  # it takes a minute or two; what it waits for has bounds of its own, which say more
def test_kills_a_zombie_and_a_broker_restart_lose_nothing_and_repeat_nothing(tmp_path):
    faults = (
        Fault("kill", 0, 2.0, settled=True),
        Fault("kill", 0, 0.7),  # while it starts
        Fault("broker-kill", 0, 2.0, settled=True),
        Fault("kill", 0, 1.5, settled=True),
        Fault("zombie", 0, 1.0, seconds=2.0, settled=True),
    )
    endure(Plan(SEED, 1, faults, slot=True), tmp_path, rate=2_000)
