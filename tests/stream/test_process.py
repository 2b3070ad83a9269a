"""How the process of a worker is set up."""

import sys

import pytest

from headrace.stream.process import SWITCH_SECONDS, UNDISTURBED_SECONDS, undisturbed


@pytest.fixture(autouse=True)
def interval():
    """As in a worker; put back after the test."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


def test_other_threads_wait_longer_for_the_gil_while_undisturbed():
    with undisturbed():
        assert sys.getswitchinterval() == pytest.approx(UNDISTURBED_SECONDS)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)


def test_they_wait_as_before_after_an_error():
    with pytest.raises(RuntimeError), undisturbed():
        raise RuntimeError
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
