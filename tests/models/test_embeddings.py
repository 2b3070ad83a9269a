"""A table of embeddings beside a plain one of Python: who gets which row, who is evicted, how rows are stepped."""

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.models import Embeddings, allocate, allocate_touched
from headrace.models.embedding_kernels import ABSENT, WAYS, mix, write_start
from headrace.models.embeddings import GROUP, Table

SEED = 3
HASHES = np.random.default_rng(0).integers(1, 2**64, 4000, dtype=np.uint64)


def table(bits=6, dim=4, columns=2, batch=16, **settings):
    declared = Embeddings(dim, bits, **settings)
    layout = declared.layout(dim)
    touched = allocate_touched(layout)
    return Table(declared, SEED, np.arange(columns), batch, allocate(layout), touched)


def begin(h, dim=4, start=0.01):
    out = np.empty(dim, np.float32)
    write_start(np.uint64(h), SEED, start, out)
    return out


def looked_up(at, categories):
    out = np.full((*categories.shape, at.weight.shape[1]), np.nan, np.float32)
    at.look_up(categories, out)
    return out


def taken(at, categories, now, live=None):
    """Take and gather; what was gathered."""
    live = np.ones(len(categories), np.uint8) if live is None else live
    at.take(categories, live, now)
    out = np.full((*categories.shape, at.weight.shape[1]), np.nan, np.float32)
    at.gather(out)
    return out


class Twin:
    """Slots of eight as lists of [hash, stamp], embeddings as float64 arrays."""

    def __init__(self, bits, dim, lr, eps):
        self.shift, self.dim, self.lr, self.eps = 64 - (bits - 3), dim, lr, eps
        self.slots, self.weight, self.n, self.evicted = {}, {}, {}, 0

    def slot(self, h):
        return self.slots.setdefault(int(mix(np.uint64(h))) >> self.shift, [])

    def step(self, categories, slope, now):
        flat = [int(h) for h in categories.ravel()]
        for h in flat:
            for entry in self.slot(h):
                if h and entry[0] == h:
                    entry[1] = now
        for h in flat:
            slot = self.slot(h)
            if h == 0 or any(entry[0] == h for entry in slot):
                continue
            if len(slot) < WAYS:
                slot.append([h, now])
            else:
                oldest = min(range(WAYS), key=lambda i: slot[i][1])
                if slot[oldest][1] == now:
                    continue
                self.evicted += 1
                slot[oldest] = [h, now]
            self.weight[h], self.n[h] = begin(h, self.dim).astype(float), 0.0
        held = {entry[0] for slot in self.slots.values() for entry in slot}
        for h in sorted({h for h in flat if h in held}):
            g = slope.reshape(-1, self.dim)[[f == h for f in flat]].astype(float).sum(0)
            self.n[h] += (g**2).mean()
            self.weight[h] -= self.lr * g / (np.sqrt(self.n[h]) + self.eps)

    def look_up(self, h):
        if h == 0:
            return np.zeros(self.dim)
        return self.weight[h] if any(entry[0] == h for entry in self.slot(h)) else begin(h, self.dim)


def test_table_does_as_the_plain_one_step_by_step():
    rng = np.random.default_rng(1)
    at, twin = table(bits=6, lr=0.1), Twin(6, 4, 0.1, 1e-8)
    for now in range(1, 200):
        categories = rng.choice(np.append(HASHES[:150], np.uint64(0)), (int(rng.integers(1, 9)), 2))
        slope = rng.normal(size=(*categories.shape, 4)).astype(np.float32)
        before = looked_up(at, categories)
        expected = [[twin.look_up(int(h)) for h in row] for row in categories]
        np.testing.assert_allclose(before, expected, rtol=1e-4, atol=1e-6)
        taken(at, categories, now)
        at.learn(slope)
        twin.step(categories, slope, now)
    assert twin.evicted > 100
    assert at.counts[0] == twin.evicted
    assert {int(h) for h in at.tag if h} == {entry[0] for slot in twin.slots.values() for entry in slot}


def test_least_recently_learned_value_is_evicted_and_begins_anew_when_it_comes_back():
    at = table(bits=6, columns=1)
    of_slot = [h for h in HASHES if int(mix(h)) >> 61 == 5][: WAYS + 1]
    for now, h in enumerate(of_slot[:WAYS], 1):
        taken(at, np.array([[h]]), now)
        at.learn(np.ones((1, 1, 4), np.float32))
    first, second, ninth = of_slot[0], of_slot[1], of_slot[WAYS]
    taken(at, np.array([[first]]), 20)  # used again, so the second is the oldest now
    looked_up(at, np.array([[second]]))  # a look does not count
    taken(at, np.array([[ninth]]), 21)
    assert at.counts.tolist() == [1, 0]
    assert second not in at.tag
    assert {first, ninth} < set(at.tag)
    np.testing.assert_array_equal(looked_up(at, np.array([[second]]))[0, 0], begin(second))
    assert at.evidence[np.flatnonzero(at.tag == ninth)[0]] == 0.0


def test_value_that_finds_its_slot_in_use_is_not_learned_and_counted():
    at = table(bits=6, columns=1)
    of_slot = np.array([[h] for h in HASHES if int(mix(h)) >> 61 == 2][: WAYS + 2])
    out = taken(at, of_slot, 1)
    assert at.used == WAYS
    assert at.counts.tolist() == [0, 2]
    assert at.of[: WAYS + 2, 0].tolist() == [*range(WAYS), ABSENT, ABSENT]
    assert not out[WAYS:].any()
    at.learn(np.ones((WAYS + 2, 1, 4), np.float32))
    assert np.count_nonzero(at.evidence) == WAYS


def test_slopes_of_one_value_are_summed_whatever_column_and_row_they_come_from():
    once, thrice = table(lr=0.5), table(lr=0.5)
    h = HASHES[0]
    taken(once, np.array([[h, 0]], np.uint64), 1)
    once.learn(np.full((1, 2, 4), 3.0, np.float32))
    taken(thrice, np.array([[h, h], [0, h]], np.uint64), 1)
    thrice.learn(np.ones((2, 2, 4), np.float32))
    assert once.weight.tobytes() == thrice.weight.tobytes()
    assert once.evidence.max() == 9.0


def test_masked_rows_and_missing_values_take_no_row():
    at = table()
    out = taken(at, np.array([[HASHES[0], 0], [HASHES[1], HASHES[2]]], np.uint64), 1, np.array([1, 0], np.uint8))
    assert at.used == 1
    assert [h for h in at.tag if h] == [HASHES[0]]
    assert not out[0, 1].any()
    assert not out[1].any()
    assert not taken(at, np.array([[HASHES[0], 0]], np.uint64), 2, np.array([0], np.uint8)).any()
    assert at.used == 0
    assert at.stamp.max() == 1


def test_looking_up_changes_nothing_and_unseen_values_are_what_they_would_begin_with():
    at = table(start=0.5)
    taken(at, HASHES[:8].reshape(4, 2), 1)
    before = [a.tobytes() for a in (at.weight, at.evidence, at.tag, at.stamp, at.counts, at.marks)]
    unseen = HASHES[100:102].reshape(1, 2)
    out = looked_up(at, unseen)
    assert [a.tobytes() for a in (at.weight, at.evidence, at.tag, at.stamp, at.counts, at.marks)] == before
    np.testing.assert_array_equal(out, taken(at, unseen, 2))
    many = np.array([begin(h, 4, 0.5) for h in HASHES[:500]])
    assert np.abs(many).max() <= 0.5
    assert abs(many.mean()) < 0.05
    assert 0.26 < many.std() < 0.31  # even in [-.5, .5]: .289


def test_marks_say_which_rows_were_written():
    at = table(bits=10)
    categories = HASHES[:6].reshape(3, 2)
    taken(at, categories, 1)
    at.learn(np.ones((3, 2, 4), np.float32))
    rows = np.flatnonzero(at.tag)
    assert len(rows) == 6
    assert np.flatnonzero(at.marks).tolist() == sorted({r >> 6 for r in rows})
    at.marks[:] = 0
    evidence = at.evidence.copy()
    at.forget(0.5)
    np.testing.assert_array_equal(at.evidence, evidence / 2)
    assert np.flatnonzero(at.marks).tolist() == sorted({r >> 6 for r in rows})


def test_columns_are_taken_in_the_order_given():
    declared = Embeddings(4, 6)
    layout = declared.layout(4)
    swapped = Table(declared, SEED, np.array([1, 0]), 4, allocate(layout), allocate_touched(layout))
    pair = HASHES[:2].reshape(1, 2)
    np.testing.assert_array_equal(looked_up(swapped, pair)[0], [begin(pair[0, 1]), begin(pair[0, 0])])
    np.testing.assert_array_equal(taken(swapped, pair, 1)[0], [begin(pair[0, 1]), begin(pair[0, 0])])


def test_memory_stays_what_it_is_after_a_million_values():
    at = table(bits=8, columns=1, batch=4096)
    rng = np.random.default_rng(2)
    for now in range(1, 260):
        taken(at, rng.integers(1, 2**64, (4096, 1), dtype=np.uint64), now)
    assert len(at.tag) == 256
    assert at.counts[0] > 30_000
    assert at.counts.sum() + 256 == 259 * 4096


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dim": 0}, r"Embeddings\(dim=\).*from 1"),
        ({"bits": 5}, r"Embeddings\(bits=\).*from 6 to 30, got 5"),
        ({"lr": 0}, r"Embeddings\(lr=\).*above 0"),
        ({"start": -1}, r"Embeddings\(start=\)"),
        ({"half_life": "soon"}, r"Embeddings\(half_life=\)"),
        ({"eps": 0.0}, r"Embeddings\(eps=\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(DeclarationError, match=match):
        Embeddings(**settings)


def test_table_declares_how_its_rows_are_merged():
    layout = Embeddings(4, 6).layout(4)
    weight = layout[f"{GROUP}/weight"]
    assert (weight.merge, weight.by) == ("steps", f"{GROUP}/evidence")
    assert {a.rows for name, a in layout.items() if not name.endswith("counts")} == {GROUP}
