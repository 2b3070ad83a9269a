"""Numbers in JSON: the shortest digits that read back as the same number, in the form of msgspec."""

import msgspec
import numpy as np
import pytest
from numba import njit

from headrace.connectors.memory import padded
from headrace.stream.number_text import LONGEST, ROOM, put_float32, put_float64, put_int64

FRAME = 0xA5


def one_after_another(put):
    @njit
    def write(values, address, room, sizes):
        for i in range(values.shape[0]):
            sizes[i] = put(address + i * room, values[i]) - (address + i * room)

    return write


WRITERS = {np.dtype(t): one_after_another(put) for t, put in ((np.float32, put_float32), (np.float64, put_float64), (np.int64, put_int64))}  # fmt: skip


def texts_of(values):
    """Each value as it is written; nothing is written beyond its ROOM."""
    wide = 2 * ROOM
    out, sizes = padded(len(values) * wide), np.zeros(len(values), np.int64)
    out[:] = FRAME
    WRITERS[values.dtype](values, out.ctypes.data, wide, sizes)
    rows = out[: len(values) * wide].reshape(-1, wide)
    assert (rows[:, ROOM:] == FRAME).all() and sizes.max() <= LONGEST
    return [row[:size].tobytes() for row, size in zip(rows, sizes.tolist())]


def expected(values):
    """msgspec's text; of a float32 that of the float64 with the same digits."""
    if values.dtype == np.float32:
        values = np.array([float(str(value)) for value in values])
    return [msgspec.json.encode(value) for value in values.tolist()]


def check(values):
    wrong = [(v, got, want) for v, got, want in zip(values.tolist(), texts_of(values), expected(values)) if got != want]
    assert not wrong, f"{len(wrong)} of {len(values)}: {wrong[:3]}"


def around(values):
    """The values, their neighbours, and the negatives of all."""
    near = np.concatenate([values, np.nextafter(values, values.dtype.type(0)), np.nextafter(values, values.dtype.type(1e38))])  # fmt: skip
    return np.concatenate([near, -near])


def powers(dtype):
    """Of 2, which are nearer to the number below than to the one above, and of 10, where exponents change."""
    info = np.finfo(dtype)
    lowest = info.minexp - info.nmant
    twos = np.ldexp(1.0, np.arange(lowest, info.maxexp))
    tens = [float(f"1e{n}") for n in range(int(lowest * 0.30103), int(np.log10(info.max)) + 1)]
    return np.concatenate([twos, tens]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_form_is_that_of_msgspec(dtype):
    check(np.array([0, -0.0, 1, -1, 0.1, -2.5, 1e-4, 1e-5, 9.9999e-6, 1e-6, 1.5e-7, 1e-12, 1e15, 9.999e15, 1e16, 1.5e16, 1e22, 123456.5, 100, 1e30], dtype))  # fmt: skip
    check(np.array([np.nan, np.inf, -np.inf], dtype))  # null: JSON has no such numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_powers_and_their_neighbours_have_the_shortest_digits(dtype):
    check(around(powers(dtype)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_smallest_and_the_largest_have_the_shortest_digits(dtype):
    bits = np.arange(1, 3000, dtype=f"u{dtype().itemsize}")
    check(bits.view(dtype))  # subnormal
    check((np.array(np.finfo(dtype).max).view(bits.dtype) - bits).view(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_bits_have_the_shortest_digits(dtype):
    bits = np.random.default_rng(3).integers(0, 2 ** (8 * dtype().itemsize) - 1, 200_000, f"u{dtype().itemsize}")
    check(bits.view(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_of_everyday_have_the_shortest_digits(dtype):
    rng = np.random.default_rng(4)
    whole = rng.integers(-(2**53), 2**53, 20_000) >> rng.integers(0, 53, 20_000)
    for values in (rng.random(20_000), whole, whole / 8, rng.integers(0, 10**6, 20_000) / 1e4, 1 - 10.0 ** -rng.uniform(0, 9, 20_000)):  # fmt: skip
        check(values.astype(dtype))


def test_whole_numbers_are_written():
    rng = np.random.default_rng(5)
    tens = 10 ** np.arange(19)
    any_size = rng.integers(-(2**63), 2**63 - 1, 20_000) >> rng.integers(0, 63, 20_000)
    check(np.concatenate([any_size, tens, tens - 1, -tens, [2**63 - 1, -(2**63)]]))
