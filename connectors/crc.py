"""CRC-32C (Castagnoli) of memory: the checksum of Kafka's record batches.

`crc32c(address, size)` is a Numba kernel for the CPU at hand: with the instruction of SSE 4.2 where Numba may use it
(20 GB/s), by tables elsewhere (1.5 GB/s).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, types, uint64
from numba.extending import intrinsic

from ..jit import njit
from .memory import load8, load64

_POLYNOMIAL = 0x82F63B78  # with its bits reversed
_STREAM = 1024  # bytes; three streams side by side, for the instruction takes three cycles until its result is there


def _tables() -> np.ndarray:
    """uint64 (8, 256): the register after each byte and 0 to 7 zero bytes more."""
    tables = np.zeros((8, 256), np.uint64)
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = (register >> 1) ^ (_POLYNOMIAL if register & 1 else 0)
        tables[0, byte] = register
    for more in range(1, 8):
        before = tables[more - 1]
        tables[more] = (before >> np.uint64(8)) ^ tables[0, (before & np.uint64(255)).astype(np.intp)]
    return tables


_BYTES = _tables()


def _after_zeros(size: int) -> np.ndarray:
    """uint64 (4, 256): what each byte of the register becomes in `size` zero bytes."""
    registers = np.arange(256, dtype=np.uint64) << (8 * np.arange(4, dtype=np.uint64))[:, None]
    for _ in range(size):
        registers = (registers >> np.uint64(8)) ^ _BYTES[0, (registers & np.uint64(255)).astype(np.intp)]
    return registers


_AFTER_ONE, _AFTER_TWO = _after_zeros(_STREAM), _after_zeros(2 * _STREAM)


def _instruction(bits: int) -> Any:
    @intrinsic
    def step(typingctx, register, data):
        def generate(context, builder, signature, args):
            of, wide = ir.IntType(bits), ir.IntType(64)
            register = wide if bits == 64 else ir.IntType(32)
            kind = ir.FunctionType(register, [register, of])
            name = f"llvm.x86.sse42.crc32.{register.width}.{bits}"
            function = builder.module.declare_intrinsic(name, (), kind)
            cut = [builder.trunc(arg, to) if to != wide else arg for arg, to in zip(args, kind.args, strict=True)]
            result = builder.call(function, cut)
            return result if bits == 64 else builder.zext(result, wide)

        return types.uint64(types.uint64, types.uint64), generate

    return step


_step8, _step64 = _instruction(8), _instruction(64)


@njit(cache=True, nogil=True)
def _zeros(table, register):
    """The register after as many zero bytes as the table is made for."""
    low = table[0, register & uint64(255)] ^ table[1, (register >> uint64(8)) & uint64(255)]
    return low ^ table[2, (register >> uint64(16)) & uint64(255)] ^ table[3, (register >> uint64(24)) & uint64(255)]


@njit(cache=True, nogil=True)
def crc32c_sse42(address, size):
    """CRC-32C of `size` bytes at an address, int64; only for CPUs with SSE 4.2."""
    register, end = uint64(0xFFFFFFFF), address + size
    while address + 3 * _STREAM <= end:
        second, third = uint64(0), uint64(0)
        for at in range(address, address + _STREAM, 8):
            register = _step64(register, load64(at))
            second = _step64(second, load64(at + _STREAM))
            third = _step64(third, load64(at + 2 * _STREAM))
        register = _zeros(_AFTER_TWO, register) ^ _zeros(_AFTER_ONE, second) ^ third
        address += 3 * _STREAM
    while address + 8 <= end:
        register = _step64(register, load64(address))
        address += 8
    while address < end:
        register = _step8(register, uint64(load8(address)))
        address += 1
    return np.int64(register ^ uint64(0xFFFFFFFF))


@njit(cache=True, nogil=True)
def crc32c_portable(address, size):
    """CRC-32C of `size` bytes at an address, int64; eight bytes at a time, by tables (Intel's slicing by 8)."""
    register, end = uint64(0xFFFFFFFF), address + size
    while address + 8 <= end:
        word = load64(address) ^ register
        register = uint64(0)
        for byte in range(8):
            register ^= _BYTES[7 - byte, (word >> uint64(8 * byte)) & uint64(255)]
        address += 8
    while address < end:
        register = _BYTES[0, (register ^ uint64(load8(address))) & uint64(255)] ^ (register >> uint64(8))
        address += 1
    return np.int64(register ^ uint64(0xFFFFFFFF))


def has_sse42() -> bool:
    """Whether the CPU that Numba compiles for has the instruction; NUMBA_CPU_NAME may name another than this one."""
    features: str | None = vars(config)["CPU_FEATURES"]
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return "+sse4.2" in features.split(",")


crc32c = crc32c_sse42 if has_sse42() else crc32c_portable
