"""Numbers in text become the very bits that Python's own float() and int() give, or are left to the strict decoder."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from headrace.connectors.spans import Spans
from headrace.stream.decimals import read_float, read_int


@njit
def _read_all(data, start, size, as_int, bits, certain):
    base = data.ctypes.data
    for i in range(start.shape[0]):
        address = base + start[i]
        bits[i], end = read_int(address) if as_int else read_float(address)
        certain[i] = end == address + size[i]


def read(texts, as_int=False):
    """uint64 bits of each text, and bool: all of it was read, and certainly."""
    spans = Spans.of([part for text in texts for part in (text.encode(), b" ")]).take(slice(None, None, 2))
    bits, certain = np.empty(len(texts), np.uint64), np.empty(len(texts), np.bool_)
    _read_all(spans.data, spans.start, spans.size, as_int, bits, certain)
    return bits, certain


def float_bits(texts):
    return np.array([float(text) for text in texts]).view(np.uint64)


def _any_float(r):
    text = repr(struct.unpack("d", r.randbytes(8))[0])
    return "1.5" if "n" in text else text


def _half_way(r):
    """Exactly between two doubles, or one off in the last digit."""
    return str(((2 * r.randrange(2**52, 2**53) + 1) << r.randrange(9)) + r.choice([0, 0, 1, -1]))


def _half_way_below_one(r):
    power = r.randrange(1, 4)
    return f"{(2 * r.randrange(2**52, 2**53) + 1) * 5**power}e-{power}"


SHAPES = (
    _any_float,
    _half_way,
    _half_way_below_one,
    lambda r: repr(r.random() * 10 ** r.randrange(-8, 8)),
    lambda r: f"{r.randrange(10 ** r.randrange(1, 10))}.{r.randrange(10 ** r.randrange(1, 10))}",
    lambda r: f"{r.randrange(1, 10 ** r.randrange(1, 20))}e{r.randrange(-345, 310)}",
    lambda r: str(r.randrange(-(10 ** r.randrange(1, 19)), 10 ** r.randrange(1, 19))),
    lambda r: f"{r.uniform(-1e6, 1e6):.{r.randrange(18)}f}",
    lambda r: f"{r.uniform(-1, 1) * 10.0 ** r.randrange(-300, 300):.{r.randrange(1, 18)}e}",
    lambda r: f"0.{'0' * r.randrange(15)}{r.randrange(1, 10 ** r.randrange(1, 20))}",
)


def test_a_float_that_is_certain_has_the_bits_of_pythons():
    r = random.Random(5)
    texts = [SHAPES[i % len(SHAPES)](r) for i in range(200_000)]
    bits, certain = read(texts)
    wrong = np.flatnonzero(certain & (bits != float_bits(texts)))
    assert [texts[i] for i in wrong[:5]] == []
    assert certain.mean() > 0.97


@settings(deadline=None)  # the first one compiles
@given(
    st.lists(st.floats(min_value=1e-300, max_value=1e300) | st.floats(min_value=-1e300, max_value=-1e-300), min_size=1)
)
def test_a_float_as_python_prints_it_is_certain(values):
    bits, certain = read([repr(value) for value in values])
    assert certain.all()
    assert np.array_equal(bits, np.array(values).view(np.uint64))


PLAIN = "0 0.0 -0.0 -0e0 0e99999 1 1.5 -1.5 1e22 1e-22 1E+5 12345678 123456789 12345678.12345678 9007199254740993 1e23 8.5e22"
PLAIN += " 1.7976931348623157e308 2.2250738585072014e-308 9999999999999999999 0.000000000000000000000000001234567890123456789"


@pytest.mark.parametrize("text", PLAIN.split())
def test_what_is_rare_and_fits_is_certain(text):
    bits, certain = read([text])
    assert certain[0]
    assert bits[0] == float_bits([text])[0]


def test_an_integer_minus_zero_is_zero_without_a_sign():
    bits, certain = read(["-0"])
    assert certain[0]
    assert bits[0] == 0


NO_FLOATS = ". - + +1 .5 1. 01 -01 00 1e 1e+ 1.e5 --1 0x1 1_0 NaN Infinity -inf 1e400 -1e400 1e-400 5e-324 1e999999"
NO_FLOATS += " 12345678901234567890 0.12345678901234567890 18446744073709551616e0 1e0000000005 1.7976931348623159e308"


@pytest.mark.parametrize("text", ["", *NO_FLOATS.split()])
def test_what_is_no_number_or_out_of_range_is_not_certain(text):
    assert not read([text])[1][0]


def test_integers_are_certain_within_64_bits():
    r = random.Random(6)
    edges = [0, 1, -1, 9, 10, 99999999, 100000000, 2**53 + 1, 2**63 - 1, -(2**63)]
    values = [*edges, *(r.choice([1, -1]) * r.randrange(10 ** r.randrange(1, 19)) for _ in range(20_000))]
    bits, certain = read([str(value) for value in values], as_int=True)
    assert certain.all()
    assert bits.view(np.int64).tolist() == values


@pytest.mark.parametrize(
    "text", ["", "-", "-0", "00", "01", "-01", "+1", "1.0", "1e2", str(2**63), str(-(2**63) - 1), "9" * 20, "9" * 40]
)
def test_other_integers_are_not_certain(text):
    assert not read([text], as_int=True)[1][0]
