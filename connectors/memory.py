"""Memory at an address, for Numba kernels that read and write bytes: wide loads and stores, bit tricks.

Addresses are int64, as `array.ctypes.data` gives them; whoever calls keeps the array alive. Nothing is checked. Loads
of 8 bytes may reach past the last byte that matters, so buffers end with PADDING bytes more than they hold. Numba makes
int64 beside uint64 a float64: what is a bit pattern here is uint64 (`load64`, hashes), all other values are int64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..jit import njit

PADDING = 64  # zero bytes behind the last one that is used

_I8, _I64 = ir.IntType(8), ir.IntType(64)


def _load(bits: int, returns: Any) -> Any:
    @intrinsic
    def load(typingctx, address):
        def generate(context, builder, signature, args):
            of = ir.IntType(bits)
            value = builder.load(builder.inttoptr(args[0], of.as_pointer()))
            value.align = 1
            return value if bits == 64 else builder.zext(value, _I64)

        return returns(types.int64), generate

    return load


def _store(bits: int) -> Any:
    @intrinsic
    def store(typingctx, address, value):
        def generate(context, builder, signature, args):
            of = ir.IntType(bits)
            cut = args[1] if bits == 64 else builder.trunc(args[1], of)
            builder.store(cut, builder.inttoptr(args[0], of.as_pointer())).align = 1
            return context.get_dummy_value()

        of = types.uint64 if value == types.uint64 else types.int64
        return types.void(types.int64, of), generate

    return store


def _swap(bits: int) -> Any:
    @intrinsic
    def swap(typingctx, value):
        def generate(context, builder, signature, args):
            of = ir.IntType(bits)
            swapped = builder.bswap(args[0] if bits == 64 else builder.trunc(args[0], of))
            return swapped if bits == 64 else builder.sext(swapped, _I64)

        return types.int64(types.int64), generate

    return swap


# the little-endian value at an address, int64; load64 gives uint64
load8, load16, load32 = _load(8, types.int64), _load(16, types.int64), _load(32, types.int64)
load64 = _load(64, types.uint64)
# the low bits of a value to an address, little-endian
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)
# the value of the low bits with their bytes in the other order, with sign: what Kafka's big-endian fields say
swap16, swap32, swap64 = _swap(16), _swap(32), _swap(64)


def _pointer(of: Any) -> Any:
    @intrinsic
    def pointer(typingctx, address):
        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(of)(types.int64), generate

    return pointer


# where an array lies, for carray(floats_at(address), shape): a kernel that works on dozens of arrays is given addresses
ints_at, floats_at = _pointer(types.int64), _pointer(types.float64)
ints32_at, words_at = _pointer(types.int32), _pointer(types.uint64)


@intrinsic
def high_product(typingctx, a, b):
    """The upper 64 bits of the product of two uint64."""

    def generate(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _I64)

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def leading_zeros(typingctx, value):
    """Of a uint64 that is not 0."""

    def generate(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def trailing_zeros(typingctx, value):
    """Of a uint64 that is not 0."""

    def generate(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def float_of(typingctx, bits):
    """The float64 of these 64 bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.uint64), generate


@intrinsic
def bits_of(typingctx, value):
    """The 64 bits of a float64."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], _I64)

    return types.uint64(types.float64), generate


@intrinsic
def copy(typingctx, target, source, size):
    """Copy `size` bytes from one address to another; the two must not overlap."""

    def generate(context, builder, signature, args):
        to, origin = (builder.inttoptr(address, _I8.as_pointer()) for address in args[:2])
        cgutils.raw_memcpy(builder, to, origin, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def move32(typingctx, to, source):
    """32 bytes from one address to another."""

    def generate(context, builder, signature, args):
        of = ir.VectorType(_I64, 4).as_pointer()
        value = builder.load(builder.inttoptr(args[1], of))
        value.align = 1
        builder.store(value, builder.inttoptr(args[0], of)).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@njit(cache=True, nogil=True)
def put_bytes(to, source, size):
    """Copy few bytes, and up to 31 of what is behind them; return the address behind the copy."""
    for at in range(0, size, 32):
        move32(to + at, source + at)
    return to + size


def padded(size: int) -> np.ndarray:
    """uint8 (size + PADDING,): room for `size` bytes; the padding is zero."""
    data = np.empty(size + PADDING, np.uint8)
    data[size:] = 0
    return data


@njit(cache=True, nogil=True)
def address_of(data):
    """Where the first byte of an array lies: as `data.ctypes.data`, which takes five times as long."""
    return np.int64(data.ctypes.data)
