"""A torch module at work on a device: one copy in for each micro-batch, one stream, the dense part as a CUDA graph.

Which row a category has is known on the host, where the tags are; the embeddings themselves, the dense weights and what
the optimizers keep are on the device, and come back to the engine's arrays with `pull`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import torch_stepping, torch_truth
from .base import Rows
from .dense_optimizers import STEPS, moments_of
from .embedding_gpu import step_rows
from .embeddings import GROUP, Table
from .torch_building import block_of
from .torch_cpu import write_numeric
from .torch_explain import integrate, write_contributions

if TYPE_CHECKING:
    from .torch_learner import Plan, Torch

SIZES = (256, 1024, 4096, 8192)  # rows that a graph is captured for; a micro-batch is padded to the next
SLOTS = 4  # of staging: so many steps may be under way
BLOCKS = (256, 32, 1)  # rows that are predicted at one go


class _Slot:
    """Pinned memory for the inputs of one micro-batch, which `fields` are views of, and an event: it was read."""

    def __init__(self, shapes: Mapping[str, tuple[Any, tuple[int, ...]]], tail: int, pinned: bool) -> None:
        sizes = {name: int(np.prod(shape)) for name, (_, shape) in shapes.items()}
        self.fixed = sum(sizes.values())
        self.host = torch.zeros(self.fixed + tail, dtype=torch.int32, pin_memory=pinned)
        self.fields = _views(self.host.numpy(), shapes)
        self.tail = self.host.numpy()[self.fixed :]
        self.fine = torch.ones(1, dtype=torch.int32, pin_memory=pinned)
        self.read = torch.cuda.Event() if pinned else None


def _views(room: np.ndarray, shapes: Mapping[str, tuple[Any, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    views, at = {}, 0
    for name, (dtype, shape) in shapes.items():
        size = int(np.prod(shape))
        views[name] = room[at : at + size].view(dtype).reshape(shape)
        at += size
    return views


class OnDevice:
    """Predicts and learns with a module on a device; device "cpu" does the same without graphs, for the tests."""

    def __init__(
        self,
        learner: Torch,
        plan: Plan,
        module: nn.Module,
        state: Mapping[str, np.ndarray],
        touched: Mapping[str, np.ndarray],
        device: str,
    ) -> None:
        self.plan, self.state, self._optimizer = plan, state, learner.optimizer
        self.device = torch.device(device)
        self._cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if self._cuda else None
        self._clip, self._steady = float(learner.clip), bool(vars(type(learner.module)).get("steady", False))
        self._lr, self._eps = float(learner.embeddings.lr), float(learner.embeddings.eps)
        with self._on_stream():
            self.module = module.to(self.device).eval()
            self._flatten(learner)
            self._make_table(learner, touched)
            self._make_buffers(learner)
            self.push()
            self.block = block_of(repr(learner.module), self.module, plan.inputs, device, BLOCKS)
            self._make_predicting()
            self._graphs: dict[int, Any] = {}
            if self._cuda and self._steady:
                for size in self._sizes:
                    self._graphs[size] = self._capture(size)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    # -- what lies on the device

    def _flatten(self, learner: Torch) -> None:
        """All learned parameters become views of one vector, so that an optimizer makes a step at one go."""
        self._learned = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._fixed = {
            name: tensor
            for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]
            if name not in self._learned
        }
        size = sum(p.numel() for p in self._learned.values())
        self._weight = torch.zeros(size, device=self.device)
        self._moments = {name: torch.zeros_like(self._weight) for name in moments_of(learner.optimizer)}
        self._steps = torch.zeros(1, dtype=torch.float64, device=self.device)
        at = 0
        for parameter in self._learned.values():
            parameter.data = self._weight[at : at + parameter.numel()].view(parameter.shape)
            at += parameter.numel()

    def _make_table(self, learner: Torch, touched: Mapping[str, np.ndarray]) -> None:
        plan, self.table = self.plan, None
        self._R = 0
        if plan.inputs.categories:
            self.table = Table(
                learner.embeddings, learner.seed, plan.categories, learner.batch_size, self.state, touched
            )  # fmt: skip
            self._R = len(self.table.weight)
        self._dirty = np.zeros(-(-self._R // 64), np.uint8)  # blocks of rows that the host does not have
        extra = 1 + max(BLOCKS) * plan.inputs.categories  # row R is 0, and those behind it are of unseen categories
        self._rows = torch.zeros(self._R + extra, plan.inputs.dim, device=self.device)
        self._evidence = torch.zeros(max(1, self._R), device=self.device)

    def _make_buffers(self, learner: Torch) -> None:
        i, most = self.plan.inputs, learner.batch_size
        self._sizes = sorted({size for size in SIZES if size < most} | {next((s for s in SIZES if s >= most), most)})
        size = self._sizes[-1]
        self._shapes = {
            "rows": (np.int32, (size, i.categories)),
            "numeric": (np.float32, (size, i.numeric)),
            "target": (np.float32, (size,)),
            "scale": (np.float32, (size,)),
            "offsets": (np.float32, (i.outputs,)),
            "share": (np.float32, (1,)),
        }
        tail = most * i.categories * (1 + i.dim)  # new rows, and what they begin with
        self._slots = deque(_Slot(self._shapes, tail, self._cuda) for _ in range(SLOTS))
        self._under_way: deque[_Slot] = deque()
        self._room = torch.zeros(self._slots[0].fixed + tail, dtype=torch.int32, device=self.device)
        self._inputs: dict[str, Tensor] = {}
        at = 0
        for name, (dtype, shape) in self._shapes.items():
            count = int(np.prod(shape))
            part = self._room[at : at + count]
            self._inputs[name] = (part if dtype is np.int32 else part.view(torch.float32)).view(shape)
            at += count
        self._embedded = torch.zeros(size, i.categories, i.dim, device=self.device)
        self._embedded_slope = torch.zeros_like(self._embedded)
        self._fine = torch.ones(1, dtype=torch.int32, device=self.device)

    def _make_predicting(self) -> None:
        i = self.plan.inputs
        shapes = {"rows": (np.int32, (self.block, i.categories)), "numeric": (np.float32, (self.block, i.numeric))}
        self._asked = _Slot(shapes, self.block * i.categories * i.dim, self._cuda)
        self._asked_room = torch.zeros(len(self._asked.host), dtype=torch.int32, device=self.device)
        split = self.block * i.categories
        self._asked_rows = self._asked_room[:split].view(self.block, i.categories)
        self._asked_numeric = (
            self._asked_room[split : self._asked.fixed].view(torch.float32).view(self.block, i.numeric)
        )
        self._said = torch.zeros(self.block, i.outputs, pin_memory=self._cuda)

    # -- between the device and the arrays

    def push(self) -> None:
        """Bring the device up to date with the arrays."""
        with self._on_stream(), torch.no_grad():
            self._under_way.clear()
            at = 0
            for name, parameter in self._learned.items():
                part = slice(at, at + parameter.numel())
                self._weight[part] = self._given(f"module/{name}").reshape(-1)
                for moment, vector in self._moments.items():
                    vector[part] = self._given(f"{moment}/{name}").reshape(-1)
                at += parameter.numel()
            for name, tensor in self._fixed.items():
                tensor.copy_(self._given(f"module/{name}").view(tensor.shape))
            self._steps.copy_(self._given(STEPS))
            if self.table is not None:
                self._rows[: self._R] = self._given(f"{GROUP}/weight")
                self._evidence[: self._R] = self._given(f"{GROUP}/evidence")
            self._dirty[:] = 0

    def _given(self, name: str) -> Tensor:
        return torch.from_numpy(self.state[name]).to(self.device)

    def pull(self) -> None:
        """Bring the arrays up to date with the device: all dense ones, and the rows that were touched."""
        with self._on_stream(), torch.no_grad():
            at = 0
            for name, parameter in self._learned.items():
                part = slice(at, at + parameter.numel())
                for prefix, vector in (("module", self._weight), *self._moments.items()):
                    array = self.state[f"{prefix}/{name}"]
                    array[...] = vector[part].cpu().numpy().reshape(array.shape)
                at += parameter.numel()
            for name, tensor in self._fixed.items():
                array = self.state[f"module/{name}"]
                array[...] = tensor.detach().cpu().numpy().reshape(array.shape)
            self.state[STEPS][...] = self._steps.cpu().numpy()
            if self.table is not None and self._dirty.any():
                rows = (np.flatnonzero(self._dirty)[:, None] * 64 + np.arange(64)).reshape(-1)
                at_rows = torch.from_numpy(rows).to(self.device)
                self.state[f"{GROUP}/weight"][rows] = self._rows[at_rows].cpu().numpy()
                self.state[f"{GROUP}/evidence"][rows] = self._evidence[at_rows].cpu().numpy()
                self._dirty[:] = 0

    # -- at work

    def predict(self, x: Rows, offsets: np.ndarray, out: np.ndarray) -> None:
        """Write predictions of x to out (B, O): copy in, predict, copy out, wait for that copy alone."""
        fields, split = self._asked.fields, self._asked.fixed
        begun = self._asked.tail.view(np.float32).reshape(-1, self.plan.inputs.dim)
        for a in range(0, len(out), self.block):
            n = min(self.block, len(out) - a)
            fields["numeric"][n:] = 0.0
            write_numeric(x.numeric[a : a + n], self.plan.numeric, self._clip, fields["numeric"][:n])
            unseen = 0
            if self.table is not None:
                fields["rows"][n:] = self._R
                unseen = self.table.find(x.categories[a : a + n], fields["rows"][:n], begun)
            used = split + unseen * self.plan.inputs.dim
            with self._on_stream(), torch.inference_mode():
                self._asked_room[:used].copy_(self._asked.host[:used], non_blocking=True)
                if unseen:
                    new = self._asked_room[split:used].view(torch.float32).view(unseen, -1)
                    self._rows[self._R + 1 : self._R + 1 + unseen] = new
                embedded = self._rows[self._asked_rows.reshape(-1)].view(*self._asked_rows.shape, -1)
                raw = self.module(self._asked_numeric, embedded)
                self._said.copy_(raw, non_blocking=True)
                if self._asked.read is not None:
                    self._asked.read.record()
            if self._asked.read is not None:
                self._asked.read.synchronize()
            torch_truth.write_predictions(self.plan.task, self._said.numpy(), offsets, out[a : a + n])

    def learn(
        self, numeric: np.ndarray, categories: np.ndarray, y: np.ndarray, weight: np.ndarray, live: np.ndarray,
        examples: int, now: int, offsets: np.ndarray,
    ) -> list[bool]:  # fmt: skip
        """Have one step made, from so many examples; what is known by now of earlier ones: whether they were made."""
        done = [self._finish()] if len(self._under_way) == len(self._slots) else []
        slot = self._slots[0]
        self._slots.rotate(-1)
        used = self._stage(slot, numeric, categories, y, weight, live, examples, now, offsets)
        rows = len(y) if not self._steady else next(size for size in self._sizes if size >= len(y))
        with self._on_stream():
            self._room[: slot.fixed + used].copy_(slot.host[: slot.fixed + used], non_blocking=True)
            if used:
                self._begin_rows(used // (1 + self.plan.inputs.dim), slot.fixed)
            if rows in self._graphs:
                self._graphs[rows].replay()
            else:
                self._step_dense(rows)
            if self.table is not None:
                step_rows(
                    self._inputs["rows"][:rows].reshape(-1), self._embedded_slope[:rows].flatten(0, 1), self._rows,
                    self._evidence, self._fine, self._R, self._lr, self._eps,
                )  # fmt: skip
            slot.fine.copy_(self._fine, non_blocking=True)
            if slot.read is not None:
                slot.read.record()
        self._under_way.append(slot)
        return done

    def drain(self) -> list[bool]:
        """Wait for all steps; whether each was made."""
        return [self._finish() for _ in range(len(self._under_way))]

    def _finish(self) -> bool:
        slot = self._under_way.popleft()
        if slot.read is not None:
            slot.read.synchronize()
        return bool(slot.fine[0])

    def _stage(
        self, slot: _Slot, numeric: np.ndarray, categories: np.ndarray, y: np.ndarray, weight: np.ndarray,
        live: np.ndarray, examples: int, now: int, offsets: np.ndarray,
    ) -> int:  # fmt: skip
        """Write a micro-batch to a slot; how many numbers of its tail are used."""
        fields, n = slot.fields, len(y)
        write_numeric(numeric, self.plan.numeric, self._clip, fields["numeric"][:n])
        fields["numeric"][n:] = 0.0
        torch_truth.write_targets(self.plan.task, y, weight, live, offsets, fields["target"], fields["scale"])
        fields["offsets"][:] = offsets[:-1] if self.plan.task != torch_truth.REGRESSION else 0.0
        fields["share"][0] = 1.0 / examples
        if self.table is None:
            return 0
        table = self.table
        table.take(categories, live, now)
        taken = table.rows[: table.used]
        of = table.of[:n]
        fields["rows"][n:] = self._R
        if table.used:
            fields["rows"][:n] = np.where(of >= 0, taken[of], self._R)
        else:
            fields["rows"][:n] = self._R
        self._dirty[taken >> 6] = 1
        new = taken[table.fresh[: table.used] != 0]
        slot.tail[: len(new)] = new
        used = len(new) * (1 + self.plan.inputs.dim)
        slot.tail[len(new) : used] = table.weight[new].reshape(-1).view(np.int32)
        return used

    def _begin_rows(self, count: int, at: int) -> None:
        """Write what new rows begin with, from the tail of the copy."""
        rows = self._room[at : at + count].long()
        begun = self._room[at + count : at + count * (1 + self.plan.inputs.dim)].view(torch.float32)
        self._rows.index_copy_(0, rows, begun.view(count, -1))
        self._evidence.index_fill_(0, rows, 0.0)

    def _step_dense(self, rows: int) -> None:
        """Gather, forward, slopes, backward, step of the dense weights; slopes of the embeddings and `fine` stay."""
        leaf = self._embedded[:rows]
        if self.table is not None:
            torch.index_select(self._rows, 0, self._inputs["rows"][:rows].reshape(-1), out=leaf.flatten(0, 1))
        leaf = leaf.detach().requires_grad_()
        scale = self._inputs["scale"][:rows]
        if not self._steady:
            self.module.train()
        raw = self.module(self._inputs["numeric"][:rows], leaf)
        if not self._steady:
            self.module.eval()
        with torch.no_grad():
            read = raw.detach()
            slope = torch_stepping.slopes_of(
                self.plan.loss, read, self._inputs["target"][:rows], scale, self._inputs["offsets"]
            )
            parameters = list(self._learned.values())
        slopes = torch.autograd.grad(raw, [leaf, *parameters], slope, materialize_grads=True)
        with torch.no_grad():
            dense = torch.cat([s.reshape(-1) for s in slopes[1:]]) if parameters else self._weight
            live = torch.where(scale.unsqueeze(1) != 0, read, 0.0)
            fine = torch_stepping.is_fine(live, slope, dense, slopes[0])
            torch_stepping.step(
                self._optimizer, self._weight, dense, list(self._moments.values()), self._steps, self._inputs["share"],
                fine,
            )  # fmt: skip
            self._embedded_slope[:rows] = slopes[0]
            self._fine[:] = fine

    def _capture(self, rows: int) -> Any:
        """The dense step of so many rows as a CUDA graph; the weights are as before."""
        kept = [t.clone() for t in (self._weight, self._steps, *self._moments.values())]
        for _ in range(3):  # libraries set themselves up in the first calls, which cannot be captured
            self._step_dense(rows)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.current_stream().synchronize()
        with torch.cuda.graph(graph, stream=self._stream):
            self._step_dense(rows)
        for tensor, value in zip((self._weight, self._steps, *self._moments.values()), kept, strict=True):
            tensor.copy_(value)
        return graph

    def explain(self, x: Rows, offsets: np.ndarray, out: np.ndarray) -> None:
        """Write contributions to out (B, O, N + K + 1); see Torch.explain."""
        i = self.plan.inputs
        numeric = np.zeros((len(out), i.numeric), np.float32)
        embedded = np.zeros((len(out), i.categories, i.dim), np.float32)
        write_numeric(x.numeric, self.plan.numeric, self._clip, numeric)
        self.pull()
        if self.table is not None:
            self.table.look_up(x.categories, embedded)
        with self._on_stream():
            tensors = torch.from_numpy(numeric).to(self.device), torch.from_numpy(embedded).to(self.device)
            parts = integrate(self.module, *tensors)
        write_contributions(parts, self.plan.numeric, self.plan.categories, offsets, out)

    def forget_rows(self, factor: float) -> None:
        if self.table is None:
            return
        with self._on_stream():
            self._evidence *= factor
        used = np.flatnonzero(self.table.tag)
        self._dirty[used >> 6] = 1
        self.table.marks[used >> 6] = 1

    def forget_squares(self, factor: float) -> None:
        with self._on_stream():
            for squares in self._moments.values():
                squares *= factor
