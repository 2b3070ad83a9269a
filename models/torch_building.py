"""A torch module is built from its settings and a seed, and tried before anything is learned with it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import DeclarationError, HeadraceError
from .torch_modules import Inputs, TorchModule

BLOCKS = (32, 1)  # rows that are predicted at one go
DTYPES = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}  # of buffers
_threads = threading.local()


def use_one_thread() -> None:
    """Have torch compute in the calling thread alone: sums split among threads depend on how many there are.

    Holds for the whole process, once per calling thread.
    """
    if not getattr(_threads, "set", False):
        torch.set_num_threads(1)
        _threads.set = True


class Drawing(TorchDispatchMode):
    """Within it, what is drawn at random comes from `generator`, and the global one stays as it is.

    unseeded  operations that draw and cannot be given a generator, by name
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator
        self.unseeded: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            if not _takes_a_generator(func):
                other = getattr(func.overloadpacket, "generator", None)
                if other is None:
                    self.unseeded.append(str(func))
                func = other or func
            if _takes_a_generator(func):
                kwargs = kwargs | {"generator": self.generator}
        return func(*args, **kwargs)


def _takes_a_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def build_module(settings: TorchModule, inputs: Inputs, seed: int) -> nn.Module:
    """A module on the CPU, with parameters drawn from the seed.

    Raises DeclarationError where it cannot be built, or holds what is no state of ours.
    """
    what = repr(settings)
    try:
        with Drawing(torch.Generator().manual_seed(seed)) as drawing:
            module = settings.build(inputs)
    except HeadraceError:
        raise
    except Exception as error:
        raise DeclarationError(f"{what} cannot be built for {inputs}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise DeclarationError(f"{what}: expected build() to return an nn.Module, got {module!r}")
    if drawing.unseeded:
        raise DeclarationError(
            f"{what} draws with {', '.join(sorted(set(drawing.unseeded)))}, which takes no generator: two workers "
            "would not begin with the same weights; initialise with torch.nn.init or Tensor.uniform_ and its like"
        )
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise DeclarationError(
                f"{what}: parameter {name} is {parameter.dtype} on {parameter.device}; expected torch.float32 on the "
                "CPU: the learner moves it where it is needed"
            )
    for name, buffer in module.named_buffers():
        if buffer.dtype not in DTYPES or buffer.device.type != "cpu":
            raise DeclarationError(
                f"{what}: buffer {name} is {buffer.dtype} on {buffer.device}; expected one of "
                f"{', '.join(sorted(map(str, DTYPES)))} on the CPU"
            )
    return module


def probe_rows(inputs: Inputs, rows: int) -> tuple[Tensor, Tensor]:
    """Rows of nothing in particular, the same each time: numeric (B, 2 N), categories (B, K, D)."""
    rng = np.random.default_rng(7)
    half = inputs.numeric // 2
    numeric = rng.normal(size=(rows, 2 * half)).astype(np.float32)
    missing = rng.random((rows, half)) < 0.1
    numeric[:, :half][missing] = 0.0
    numeric[:, half:] = missing
    embedded = rng.normal(size=(rows, inputs.categories, inputs.dim)).astype(np.float32)
    return torch.from_numpy(numeric), torch.from_numpy(embedded)


def try_module(what: str, module: nn.Module, inputs: Inputs) -> None:
    """Call a module as it will be called, on two rows; its buffers are put back.

    Raises DeclarationError where it raises, returns anything but float32 (B, O), cannot be learned from, draws random
    numbers, or puts new buffers in the place of those it has.
    """
    numeric, embedded = probe_rows(inputs, 2)
    before = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
    module.train()
    try:
        with Drawing(torch.Generator().manual_seed(0)) as drawing:
            raw = module(numeric, embedded.requires_grad_())
    except Exception as error:
        raise DeclarationError(
            f"{what} raised {type(error).__name__} on numeric (2, {inputs.numeric}), categories "
            f"(2, {inputs.categories}, {inputs.dim}): {error}"
        ) from error
    after = dict(module.named_buffers())
    replaced = [name for name, (buffer, _) in before.items() if after.get(name) is not buffer]
    for buffer, value in before.values():
        with torch.no_grad():
            buffer.copy_(value)
    if not isinstance(raw, Tensor) or raw.dtype != torch.float32 or raw.shape != (2, inputs.outputs):
        came = f"{raw.dtype} {tuple(raw.shape)}" if isinstance(raw, Tensor) else repr(raw)
        raise DeclarationError(
            f"{what}: expected raw scores, float32 (B, {inputs.outputs}), for B rows; for 2 rows it returned {came}; "
            f"this pipeline has {inputs.outputs} output(s)"
        )
    if drawing.generator.get_state().ne(torch.Generator().manual_seed(0).get_state()).any() or drawing.unseeded:
        raise DeclarationError(
            f"{what} draws random numbers while it learns (dropout?): a worker that comes back would learn otherwise "
            "than the one before it; leave them out, and hold it back with weight_decay"
        )
    if replaced:
        raise DeclarationError(
            f"{what} puts a new tensor in the place of its buffer {replaced[0]}; change it in place (copy_, add_), so "
            "that it stays part of the snapshots"
        )
    if not raw.requires_grad:
        raise DeclarationError(f"{what}: its scores depend on no parameter and no embedding; is it under no_grad()?")


def block_of(
    what: str,
    module: nn.Module,
    inputs: Inputs,
    device: str = "cpu",
    blocks: tuple[int, ...] = BLOCKS,
) -> int:
    """How many rows are to be predicted at one go, so that a row has the same bits in whatever place it stands.

    Matrix products may add in another order where there are other numbers of rows, so the number is fixed, and here it
    is seen that the place does not matter, of a copy with weights drawn anew, for those of a new module may be 0.
    Raises DeclarationError where a row depends on the others.
    """
    forward = copy.deepcopy(module).eval()
    drawn = torch.Generator().manual_seed(7)
    for parameter in forward.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=drawn) / 4).to(device)
    numeric, embedded = (t.to(device) for t in probe_rows(inputs, blocks[0]))
    with torch.inference_mode():
        alone = torch.cat([forward(numeric[i : i + 1], embedded[i : i + 1]) for i in range(blocks[0])])
        for block in blocks:
            whole = torch.cat([forward(n, e) for n, e in zip(numeric.split(block), embedded.split(block), strict=True)])
            if not torch.allclose(whole, alone, rtol=1e-3, atol=1e-4):
                raise DeclarationError(
                    f"{what}: what it says of a row depends on the rows beside it, by up to "
                    f"{float((whole - alone).abs().max()):.2g}; while it predicts no row may depend on another"
                )
            if all(torch.equal(_rolled(forward, numeric, embedded, block, by), whole) for by in (1, block // 2, 3)):
                return block
    return 1


def _rolled(
    forward: Callable[[Tensor, Tensor], Tensor], numeric: Tensor, embedded: Tensor, block: int, by: int
) -> Tensor:
    """As without rolling, if the place of a row does not matter."""
    pairs = zip(numeric.split(block), embedded.split(block), strict=True)
    return torch.cat([forward(n.roll(by, 0), e.roll(by, 0)).roll(-by, 0) for n, e in pairs])
