"""The checksum of record batches: both kernels give the known values, for any size, wherever the bytes lie."""

import os
import subprocess
import sys

import numpy as np
import pytest
from aiokafka.record._crc32c import crc as reference

from headrace.connectors.crc import crc32c, crc32c_portable, crc32c_sse42, has_sse42

KERNELS = [
    crc32c_portable,
    pytest.param(crc32c_sse42, marks=pytest.mark.skipif(not has_sse42(), reason="a CPU without SSE 4.2")),
]
KNOWN = {  # RFC 3720, B.4, and the check value of the catalogue of CRCs
    b"": 0,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
    bytes(reversed(range(32))): 0x113FDB5C,
}


def of(kernel, data: bytes, shift: int = 0) -> int:
    buffer = np.frombuffer(bytes(shift) + data + b"\xaa", np.uint8)
    return kernel(buffer.ctypes.data + shift, len(data))


@pytest.mark.parametrize("kernel", KERNELS)
def test_known_values_are_found(kernel) -> None:
    assert {data: of(kernel, data) for data in KNOWN} == KNOWN


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_size_at_any_address_is_summed(kernel) -> None:
    data = np.random.default_rng(1).bytes(7000)
    for size in [*range(200), *range(2900, 3300), 6143, 6144, 6145, 7000]:
        assert of(kernel, data[:size], shift=size % 9) == reference(data[:size]), size


@pytest.mark.skipif(not has_sse42(), reason="a CPU without SSE 4.2")
def test_both_kernels_agree() -> None:
    buffer = np.random.default_rng(2).integers(0, 256, 5100, np.uint8)
    at = buffer.ctypes.data
    for size in range(5001):
        assert crc32c_sse42(at + size % 31, size) == crc32c_portable(at + size % 31, size), size


def test_the_instruction_is_used_where_numba_may_use_it() -> None:
    assert crc32c is (crc32c_sse42 if has_sse42() else crc32c_portable)
    code = "from headrace.connectors.crc import *; import numpy as np; "
    code += "print(crc32c.__name__, crc32c(np.frombuffer(b'123456789', np.uint8).ctypes.data, 9))"
    environment = os.environ | {"NUMBA_CPU_NAME": "generic"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["crc32c_portable", str(0xE3069283)]
