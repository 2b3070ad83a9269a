"""A haul makes room run by run, and can be acked when the last one has gone."""

from headrace.connectors.records import Fetched, Haul


def test_a_haul_is_done_with_its_last_run_whatever_the_order() -> None:
    runs = [Fetched("t", number, 0, 1, [], 1, 7, 100 + number) for number in range(3)]
    released: list[Fetched] = []
    haul = Haul(runs, released.append)
    assert haul.generation == 7
    assert [haul.release(runs[2]), haul.release(runs[0])] == [False, False]
    assert haul.release(runs[1])
    assert released == [runs[2], runs[0], runs[1]]


def test_no_run_of_a_haul_is_released_twice() -> None:
    runs = [Fetched("t", number, 0, 1, [], 1, 0, 1) for number in range(3)]
    released: list[Fetched] = []
    haul = Haul(runs, released.append)
    haul.release(runs[1])
    haul.release(runs[1])
    haul.release_all()
    haul.release_all()
    assert sorted(run.partition for run in released) == [0, 1, 2]
