"""Have memory fetched before it is needed: tables of millions of rows lie outside the cache, a miss costs 0.1 us."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

AHEAD = 8  # rows that kernels look ahead: the work on so many takes about as long as memory does


@intrinsic
def _fetch(typingctx: Any, address: Any) -> Any:
    """Have the cache line of an address (int64) fetched; any address will do, and nothing changes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        builder.call(function, [builder.inttoptr(args[0], pointer), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _leave(address: int) -> None:
    """Nothing: without its compiler Python has no say in what is fetched."""


prefetch: Any = _leave if config.DISABLE_JIT else _fetch  # type: ignore[attr-defined]
