"""A torch module at work on a CPU, on the engine's arrays themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..jit import njit
from . import dense_kernels, torch_truth
from .base import Rows, aligned_zeros
from .dense_optimizers import moments_of, stepper_of
from .embeddings import Table
from .torch_building import block_of, use_one_thread
from .torch_explain import integrate, write_contributions

if TYPE_CHECKING:
    from .torch_learner import Plan, Torch


@njit(cache=True, nogil=True)
def write_numeric(numeric: np.ndarray, order: np.ndarray, clip: float, out: np.ndarray) -> None:
    """Write to out float32 (B, 2 N): values within [-clip, clip], 0 where missing; then 1 where missing, else 0.

    numeric  float (B, N)  NaN or infinite: missing
    order    intp  (N,)    which column of numeric goes to which of out
    """
    N = order.shape[0]
    for i in range(numeric.shape[0]):
        for j in range(N):
            x = np.float64(numeric[i, order[j]])
            missing = x - x != 0.0
            out[i, j] = 0.0 if missing else min(max(x, -clip), clip)
            out[i, N + j] = 1.0 if missing else 0.0


class _Batch(NamedTuple):
    """Buffers of so many rows, as the kernels and as torch see them."""

    numeric: np.ndarray  # float32 (B, 2 N)
    embedded: np.ndarray  # float32 (B, K, D)
    embedded_slope: np.ndarray
    raw_slope: np.ndarray  # float32 (B, O)
    numeric_tensor: Tensor
    leaf: Tensor  # of embedded; its .grad is embedded_slope
    raw_slope_tensor: Tensor


class OnCpu:
    """Predicts and learns with a module whose parameters and buffers are views of the state."""

    def __init__(
        self,
        learner: Torch,
        plan: Plan,
        module: nn.Module,
        state: Mapping[str, np.ndarray],
        touched: Mapping[str, np.ndarray],
    ) -> None:
        use_one_thread()
        self.plan, self.module = plan, module
        self._clip = float(learner.clip)
        view_state(module, state)
        learned = {name: p for name, p in module.named_parameters() if p.requires_grad}
        weights = {name: state[f"module/{name}"] for name in learned}
        self._slopes = {name: zeros(w.shape) for name, w in weights.items()}
        for name, parameter in learned.items():
            parameter.grad = torch.from_numpy(self._slopes[name]).view(parameter.shape)  # slopes are added to it
        self._flat_slopes = [slope.reshape(-1) for slope in self._slopes.values()]
        self._step = stepper_of(learner.optimizer, weights, self._slopes, state)
        self._squares = [state[f"{m}/{name}"] for name in weights for m in moments_of(learner.optimizer)]

        inputs = plan.inputs
        self.table = None
        if inputs.categories:
            self.table = Table(
                learner.embeddings, learner.seed, plan.categories, learner.batch_size, state, touched
            )  # fmt: skip
        module.eval()
        self.block = block_of(repr(learner.module), module, inputs)
        self._numeric = zeros((self.block, inputs.numeric))
        self._embedded = zeros((self.block, inputs.categories, inputs.dim))
        self._read = torch.from_numpy(self._numeric), torch.from_numpy(self._embedded)
        size = learner.batch_size
        self._full = (
            zeros((size, inputs.numeric)),
            zeros((size, inputs.categories, inputs.dim)),
            zeros((size, inputs.categories, inputs.dim)),
            zeros((size, inputs.outputs)),
        )
        self._batch = self._batch_of(size)
        self._has_modes = not vars(type(learner.module)).get("steady", False)

    def _batch_of(self, rows: int) -> _Batch:
        numeric, embedded, embedded_slope, raw_slope = (buffer[:rows] for buffer in self._full)
        leaf = torch.from_numpy(embedded).requires_grad_()
        leaf.grad = torch.from_numpy(embedded_slope)
        tensors = torch.from_numpy(numeric), leaf, torch.from_numpy(raw_slope)
        return _Batch(numeric, embedded, embedded_slope, raw_slope, *tensors)

    def pull(self) -> None:
        return

    def push(self) -> None:
        return

    def drain(self) -> list[bool]:
        """Nothing is under way: every step is made before `learn` returns."""
        return []

    def predict(self, x: Rows, offsets: np.ndarray, out: np.ndarray) -> None:
        """Write predictions of x to out (B, O), so many rows at one go that their place does not matter."""
        use_one_thread()
        numeric, embedded = self._numeric, self._embedded
        with torch.inference_mode():
            for a in range(0, len(out), self.block):
                n = min(self.block, len(out) - a)
                write_numeric(x.numeric[a : a + n], self.plan.numeric, self._clip, numeric[:n])
                if self.table is not None:
                    self.table.look_up(x.categories[a : a + n], embedded[:n])
                if n < self.block:
                    numeric[n:] = 0.0
                    embedded[n:] = 0.0
                raw = self.module(*self._read).contiguous().numpy()
                torch_truth.write_predictions(self.plan.task, raw, offsets, out[a : a + n])

    def learn(
        self, numeric: np.ndarray, categories: np.ndarray, y: np.ndarray, weight: np.ndarray, live: np.ndarray,
        examples: int, now: int, offsets: np.ndarray,
    ) -> list[bool]:  # fmt: skip
        """One step from so many examples, the rows that are `live`; [False]: it could not be made, and was not."""
        use_one_thread()
        batch = self._batch if len(y) == len(self._full[0]) else self._batch_of(len(y))
        write_numeric(numeric, self.plan.numeric, self._clip, batch.numeric)
        if self.table is not None:
            self.table.take(categories, live, now)
            self.table.gather(batch.embedded)
        if self._has_modes:
            self.module.train()
        raw = self.module(batch.numeric_tensor, batch.leaf)
        if self._has_modes:
            self.module.eval()
        fine = torch_truth.write_slopes(
            self.plan.loss, raw.detach().contiguous().numpy(), y, weight, live, offsets, batch.raw_slope
        )
        if fine:
            raw.backward(batch.raw_slope_tensor)
            fine = all(map(dense_kernels.is_fine, self._flat_slopes))
            fine = fine and dense_kernels.is_fine(batch.embedded_slope.reshape(-1))
        if not fine:
            for slope in self._flat_slopes:
                slope[:] = 0.0
            batch.embedded_slope[:] = 0.0
            return [False]
        self._step(examples)
        if self.table is not None:
            self.table.learn(batch.embedded_slope)
        batch.embedded_slope[:] = 0.0
        return [True]

    def explain(self, x: Rows, offsets: np.ndarray, out: np.ndarray) -> None:
        """Write contributions to out (B, O, N + K + 1); see Torch.explain."""
        use_one_thread()
        inputs = self.plan.inputs
        numeric, embedded = zeros((len(out), inputs.numeric)), zeros((len(out), inputs.categories, inputs.dim))
        write_numeric(x.numeric, self.plan.numeric, self._clip, numeric)
        if self.table is not None:
            self.table.look_up(x.categories, embedded)
        parts = integrate(self.module, torch.from_numpy(numeric), torch.from_numpy(embedded))
        write_contributions(parts, self.plan.numeric, self.plan.categories, offsets, out)

    def forget_rows(self, factor: float) -> None:
        if self.table is not None:
            self.table.forget(factor)

    def forget_squares(self, factor: float) -> None:
        for squares in self._squares:
            squares *= factor


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """float32 zeros, aligned as the state is."""
    return aligned_zeros(shape, np.dtype(np.float32))


def view_state(module: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Make the module's parameters and buffers views of the arrays."""
    for name, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(state[f"module/{name}"]).view(parameter.shape)
    for name, buffer in module.named_buffers():
        viewed = torch.from_numpy(state[f"module/{name}"])
        if buffer.dtype == torch.bool:
            viewed = viewed.view(torch.bool)
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner)._buffers[attribute] = viewed.view(buffer.shape)
