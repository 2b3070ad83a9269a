"""Rows that wait, against a plain dict of what waits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.stream.ring import ABSENT, SETTLED, Ring

COLUMNS = {"x": ("float32", (3,)), "clock": ("int64", ()), "none": ("uint64", (0,)), "flag": ("uint8", ())}


def keys_of(numbers):
    """Keys of which many share their place in the index: it is taken from the upper bits of the first word."""
    numbers = np.asarray(numbers, np.uint64)
    return np.stack([(numbers % np.uint64(7)) << np.uint64(20), numbers], axis=1)


def rows_of(ring, numbers, values):
    block = ring.blank(len(numbers))
    columns = ring.named(block)
    columns["key"], columns["clock"] = keys_of(numbers), values
    columns["x"], columns["flag"] = np.asarray(values, np.float32)[:, None] / 3, np.asarray(values) % 2
    return block


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_rows_are_found_claimed_and_let_go_as_in_a_dict(seed):
    random = np.random.default_rng(seed)
    ring, waiting, order, clock = Ring(COLUMNS), {}, [], 0
    for _ in range(60):
        numbers = random.integers(0, 300, random.integers(0, 90)).tolist()
        what = random.integers(4)
        if what == 0:
            values = list(range(clock, clock + len(numbers)))
            clock += len(numbers)
            added = 0
            for number, value in zip(numbers, values, strict=True):
                if number not in waiting:
                    waiting[number] = [ring.begin + len(order), value, False]
                    order.append(number)
                    added += 1
            assert ring.append(rows_of(ring, numbers, values)) == added
        elif what == 1:
            found, rows = ring.claim(keys_of(numbers))
            expected, claimed = [], []
            for number in numbers:
                row = waiting.get(number)
                expected.append(ABSENT if row is None else SETTLED if row[2] else row[0])
                if row is not None and not row[2]:
                    row[2] = True
                    claimed.append(row[1])
            assert found.tolist() == expected
            columns = ring.named(rows)
            assert columns["clock"].tolist() == claimed
            np.testing.assert_array_equal(columns["x"], np.repeat(np.float32(claimed)[:, None] / np.float32(3), 3, 1))
        elif what == 2:
            gone = int(random.integers(0, len(order) + 1))
            ring.leave(ring.begin + gone)
            for number in order[:gone]:
                del waiting[number]
            order = order[gone:]
        else:
            other = Ring(COLUMNS)
            other.load(ring.state())
            ring = other
        assert ring.find(keys_of(range(300))).tolist() == [waiting.get(n, [-1])[0] for n in range(300)]
        assert len(ring) == len(order) and ring.unsettled() == sum(not row[2] for row in waiting.values())
    state = ring.state()
    assert state["clock"].tolist() == [waiting[number][1] for number in order]
    assert (state["flag"] == state["clock"] % 2).all() and state["none"].shape == (len(order), 0)


def test_key_that_stands_twice_in_a_state_is_refused():
    ring = Ring(COLUMNS)
    ring.append(rows_of(ring, [1, 2], [1, 2]))
    state = ring.state()
    state["key"][1] = state["key"][0]
    with pytest.raises(ValueError, match="twice"):
        Ring(COLUMNS).load(state)
