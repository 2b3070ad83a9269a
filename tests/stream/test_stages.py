"""Where the time goes: what the stopwatch, the profile's lines and the metrics say."""

import sys
import time

import pytest

from headrace.stream import stages
from headrace.stream.stages import STAGES, Profile, Stages


@pytest.fixture
def clock(monkeypatch):
    """Time stands still until `clock[0]` is set."""
    now = [100.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    return now


def test_a_stage_lasts_until_the_next_is_entered(clock):
    watch = Stages()
    for at, stage in [(1, "decode"), (3, "model"), (6, "decode"), (10, "wait")]:
        clock[0] = 100 + at
        watch.enter(stage)
    clock[0] = 115
    spent = watch.seconds()
    assert {name: seconds for name, seconds in spent.items() if seconds} == {"wait": 6.0, "decode": 6.0, "model": 3.0}
    assert list(spent) == list(STAGES)


def test_looking_does_not_change_what_is_counted(clock):
    watch = Stages()
    clock[0] = 107
    assert watch.seconds() == watch.seconds()
    watch.enter("encode")
    assert watch.seconds()["wait"] == 7.0


def test_a_profile_tells_of_the_time_since_its_last_line(clock):
    watch = Stages()
    profile = Profile(watch)
    watch.enter("decode")
    clock[0] += 3
    watch.enter("wait")
    clock[0] += 1
    assert profile.line().startswith("time: wait 25%, decode 75%")
    clock[0] += 2
    assert profile.line().startswith("time: wait 100%")


def test_processor_time_is_told_by_thread_and_adds_up():
    before = stages.cpu_seconds()
    if sys.platform != "linux":
        assert before == {}
        return
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    spent = stages.cpu_seconds()
    assert spent["send"] > before["send"]  # the main thread
    assert sum(spent.values()) == pytest.approx(time.process_time(), abs=0.05)
