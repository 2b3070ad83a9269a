"""When a worker counts as stuck, and when as ready; time is a value here."""

import pytest

from headrace.stream.health import View, Watch, liveness, look, readiness

RUNNING = View("running", slot=0, ready=True, progress=7, lag=1_234)
EXCUSES = {
    "nothing to do": dict(lag=0),
    "the broker is away": dict(waits={"broker": "no answer"}),
    "not ready, and Redis is away": dict(waits={"Redis": "no answer"}, ready=False),
    "replay": dict(replaying=True, ready=False),
    "alignment": dict(held=True),
    "a state comes from another slot": dict(adopting={2: 1}, ready=False),
}


def view(**changes):
    return View(**{**RUNNING.__dict__, **changes})


def watched(views, seconds=1.0):
    """What the watchdog knows after it has seen these, one after the other."""
    watch = Watch()
    for i, seen in enumerate(views):
        watch = look(watch, seen, i * seconds)
    return watch


def test_lag_without_progress_is_bad_news_after_a_minute_and_not_before():
    before, after = watched([RUNNING] * 60), watched([RUNNING] * 62)
    assert liveness(RUNNING, before) == ("running", True)
    page = liveness(RUNNING, after)
    assert page.status == 503
    assert page.text == "no progress for 61 s, while 1,234 records wait; state: running"


@pytest.mark.parametrize("why", EXCUSES)
def test_worker_that_has_a_reason_is_alive_however_long_it_takes(why):
    excused = view(**EXCUSES[why])
    assert liveness(excused, watched([RUNNING] * 50 + [excused] * 600)).ok


@pytest.mark.parametrize("why", EXCUSES)
def test_minute_begins_anew_when_the_reason_is_gone(why):
    views = [RUNNING] * 50 + [view(**EXCUSES[why])] + [RUNNING] * 50
    assert liveness(RUNNING, watched(views)).ok
    assert not liveness(RUNNING, watched([*views, *[RUNNING] * 20])).ok


def test_progress_begins_the_minute_anew():
    views = [view(progress=i // 50) for i in range(600)]
    assert liveness(views[-1], watched(views)).ok


def test_redis_away_excuses_no_worker_that_predicts():
    away = view(waits={"Redis": "no answer"})
    assert not liveness(away, watched([away] * 62)).ok


def test_worker_that_was_frozen_was_not_stuck():
    watch = look(watched([RUNNING] * 5), RUNNING, 1_000_000.0)
    assert liveness(RUNNING, watch).ok


def test_ready_is_a_worker_all_of_whose_partitions_are_worked_on():
    assert readiness(RUNNING) == ("running", True)
    assert not readiness(view(ready=False)).ok
    assert readiness(view(adopting={2: 1})) == ("running; partition 2 waits for its state from slot 1", False)


def test_worker_is_ready_without_redis_and_not_without_a_broker_and_both_are_said():
    assert readiness(view(waits={"Redis": "full"})) == ("running; waiting for Redis: full", True)
    assert readiness(view(waits={"broker": "no answer"})) == ("running; waiting for the broker: no answer", False)
