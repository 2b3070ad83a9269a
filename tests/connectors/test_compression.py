"""What is compressed here is what others take; tests/connectors/test_record_batches.py has what comes back damaged."""

import os

import numpy as np
import pytest
from aiokafka import codec

from headrace.connectors.compression import compress, decompress

MIB = 1 << 20
TEXTS = {
    "empty": b"",
    "a byte": b"a",
    "smaller": b'{"prediction":0.25}' * 1_000,
    "random": os.urandom(5_000),
    "a block": b"ab" * (MIB // 2),
    "a block and a byte": os.urandom(MIB + 1),
    "several blocks, the second random": b"x" * MIB + os.urandom(MIB) + b"y" * 99,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["gzip", "snappy", "lz4", "zstd"])
def test_what_is_compressed_comes_back(name, text):
    number, packed = compress(name, np.frombuffer(text, np.uint8))
    assert bytes(decompress(number, memoryview(packed))) == text
    if text:  # snappy has no frame for nothing
        assert bytes(getattr(codec, f"{name}_decode")(packed.tobytes())) == text


def test_lz4_is_written_in_blocks_that_stand_alone():
    """As `aiokafka.codec.lz4_encode` does; brokers refuse others. What does not get smaller is stored as it is."""
    random = os.urandom(MIB)
    _, packed = compress("lz4", np.frombuffer(b"x" * MIB + random, np.uint8))
    frame, theirs = packed.tobytes(), codec.lz4_encode(b"x" * 3 * MIB, level=1)
    assert frame[:4] == theirs[:4] and frame[4] & 0x20 == theirs[4] & 0x20 == 0x20
    first = int.from_bytes(frame[7:11], "little")
    assert first < MIB // 100
    assert frame[11 + first :] == (MIB | 1 << 31).to_bytes(4, "little") + random + bytes(4)


def test_what_gets_no_smaller_grows_by_a_few_bytes():
    for size in (0, 1, 100, MIB):
        _, packed = compress("lz4", np.frombuffer(os.urandom(size), np.uint8))
        assert len(packed) <= size + 15
