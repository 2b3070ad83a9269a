"""A torch module at work on a device: one copy in for each micro-batch, one stream, each step a CUDA graph.

Which row a category has is known on the host, where the tags are; the embeddings themselves, the dense weights and what
the optimizers keep are on the device, and come back to the engine's arrays with `pull`.
"""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SetupError
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
ALIGNED = 32  # float32: where a matrix begins, as matrix products want it
PULLED = 1 << 12  # blocks of 64 rows that are brought to the host at one go
WARM_UPS = 3  # libraries set themselves up in the first calls, which cannot be captured
_one_capture = threading.Lock()


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
        self.plan, self.state, self._optimizer, self._what = plan, state, learner.optimizer, repr(learner.module)
        self.device = torch.device(device)
        self._cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if self._cuda else None
        self._clip, self._steady = float(learner.clip), bool(vars(type(learner.module)).get("steady", False))
        self._lr, self._eps = float(learner.embeddings.lr), float(learner.embeddings.eps)
        try:
            with self._on_stream():
                self._prepare(learner, module, touched)
        except torch.OutOfMemoryError as error:
            room = 4 * (self._R * (plan.inputs.dim + 1) + self.most * plan.inputs.categories * 3 * plan.inputs.dim)
            raise SetupError(
                f"{self._what} does not fit on {self.device}: embeddings of {self._R:,} rows of {plan.inputs.dim} "
                f"numbers and a micro-batch of {self.most:,} rows take {room / 1e6:,.1f} MB beside the module, "
                "and twice that while a worker starts; declare fewer Embeddings(bits=, dim=), a smaller batch_size, or "
                f"device='cpu'. torch says: {error}"
            ) from error

    def _prepare(self, learner: Torch, module: nn.Module, touched: Mapping[str, np.ndarray]) -> None:
        """Lay everything out on the device, and capture the graphs."""
        self._R, self.most = 0, learner.batch_size
        if self.plan.inputs.categories:
            self._R = 1 << learner.embeddings.bits
        self.module = module.to(self.device).eval()
        self._flatten(learner)
        self._make_table(learner, touched)
        self._make_buffers()
        self.push()
        self.block = block_of(self._what, self.module, self.plan.inputs, self.device.type, BLOCKS)
        self._make_predicting()
        self._inputs["rows"].fill_(self._R)  # what is tried here is learned by no row
        self._fine.zero_()
        self._step_rows(1)  # Triton compiles its kernel
        self._steps_of: dict[int, Callable[[], None]] = {}
        self._answer_at_once: Callable[[], None] | None = None
        if self._cuda and self._steady:
            self._pool = torch.cuda.graph_pool_handle()
            self._answer_at_once = self._captured(self._answer)
            dense = [self._weight, self._steps, *self._moments.values()]
            kept = [t.clone() for t in dense]
            for size in reversed(self._sizes):
                self._steps_of[size] = self._captured(lambda size=size: self._step(size))  # type: ignore[misc]
            for tensor, value in zip(dense, kept, strict=True):
                tensor.copy_(value)

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
        self._places, at = {}, 0
        for name, parameter in self._learned.items():
            self._places[name] = slice(at, at + parameter.numel())
            at += -(-parameter.numel() // ALIGNED) * ALIGNED
        self._weight = torch.zeros(at, device=self.device)
        zeros = torch.zeros(ALIGNED, device=self.device)
        self._gaps = [zeros[: -p.numel() % ALIGNED] for p in self._learned.values()]  # behind each parameter
        self._moments = {name: torch.zeros_like(self._weight) for name in moments_of(learner.optimizer)}
        self._steps = torch.zeros(1, dtype=torch.float64, device=self.device)
        for name, parameter in self._learned.items():
            parameter.data = self._weight[self._places[name]].view(parameter.shape)

    def _make_table(self, learner: Torch, touched: Mapping[str, np.ndarray]) -> None:
        plan, self.table = self.plan, None
        if plan.inputs.categories:
            self.table = Table(
                learner.embeddings, learner.seed, plan.categories, learner.batch_size, self.state, touched
            )  # fmt: skip
        self._dirty = np.zeros(-(-self._R // 64), np.uint8)  # blocks of rows that the host does not have
        extra = 1 + max(BLOCKS) * plan.inputs.categories  # row R is 0, and those behind it are of unseen categories
        self._rows = torch.zeros(self._R + extra, plan.inputs.dim, device=self.device)
        self._evidence = torch.zeros(max(1, self._R), device=self.device)

    def _make_buffers(self) -> None:
        i, most = self.plan.inputs, self.most
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
        self._asked_embedded = torch.zeros(self.block, i.categories, i.dim, device=self.device)
        self._answered = torch.zeros(self.block, i.outputs, device=self.device)
        self._said = torch.zeros(self.block, i.outputs, pin_memory=self._cuda)

    # -- between the device and the arrays

    def push(self) -> None:
        """Bring the device up to date with the arrays."""
        with self._on_stream(), torch.no_grad():
            self._under_way.clear()  # the copies wait for all that was asked of the stream
            for name, part in self._places.items():
                self._weight[part] = self._given(f"module/{name}").reshape(-1)
                for moment, vector in self._moments.items():
                    vector[part] = self._given(f"{moment}/{name}").reshape(-1)
            for name, tensor in self._fixed.items():
                tensor.copy_(self._given(f"module/{name}").view(tensor.shape))
            self._steps.copy_(self._given(STEPS))
            if self.table is not None:
                self._rows[: self._R] = self._given(f"{GROUP}/weight")
                self._evidence[: self._R] = self._given(f"{GROUP}/evidence")
            self._dirty[:] = 0

    def _given(self, name: str) -> Tensor:
        return torch.from_numpy(self.state[name])

    def pull(self) -> None:
        """Bring the arrays up to date with the device: all dense ones, and the rows that were touched."""
        with self._on_stream(), torch.no_grad():
            for name, part in self._places.items():
                for prefix, vector in (("module", self._weight), *self._moments.items()):
                    array = self.state[f"{prefix}/{name}"]
                    array[...] = vector[part].cpu().numpy().reshape(array.shape)
            for name, tensor in self._fixed.items():
                array = self.state[f"module/{name}"]
                array[...] = tensor.detach().cpu().numpy().reshape(array.shape)
            self.state[STEPS][...] = self._steps.cpu().numpy()
            blocks = np.flatnonzero(self._dirty)
            for a in range(0, len(blocks), PULLED):
                rows = (blocks[a : a + PULLED, None] * 64 + np.arange(64)).reshape(-1)
                at_rows = torch.from_numpy(rows).to(self.device)
                self.state[f"{GROUP}/weight"][rows] = self._rows[at_rows].cpu().numpy()
                self.state[f"{GROUP}/evidence"][rows] = self._evidence[at_rows].cpu().numpy()
            self._dirty[:] = 0

    # -- at work

    def predict(self, x: Rows, offsets: np.ndarray, out: np.ndarray) -> None:
        """Write predictions of x to out (B, O): copy in, predict, copy out, wait for that copy alone."""
        for a in range(0, len(out), self.block):
            n = min(self.block, len(out) - a)
            with self._on_stream(), torch.inference_mode():
                self._ask(x, a, n)
                (self._answer_at_once or self._answer)()
                self._said.copy_(self._answered, non_blocking=True)
                if self._asked.read is not None:
                    self._asked.read.record()
            if self._asked.read is not None:
                self._asked.read.synchronize()
            torch_truth.write_predictions(self.plan.task, self._said.numpy(), offsets, out[a : a + n])

    def _ask(self, x: Rows, a: int, n: int) -> None:
        """Bring n rows of x, from a on, to the device. The caller waits for the copy before it asks again."""
        fields, split, dim = self._asked.fields, self._asked.fixed, self.plan.inputs.dim
        fields["numeric"][n:] = 0.0
        write_numeric(x.numeric[a : a + n], self.plan.numeric, self._clip, fields["numeric"][:n])
        unseen = 0
        if self.table is not None:
            fields["rows"][n:] = self._R
            begun = self._asked.tail.view(np.float32).reshape(-1, dim)
            unseen = self.table.find(x.categories[a : a + n], fields["rows"][:n], begun)
        used = split + unseen * dim
        self._asked_room[:used].copy_(self._asked.host[:used], non_blocking=True)
        if unseen:
            new = self._asked_room[split:used].view(torch.float32).view(unseen, dim)
            self._rows[self._R + 1 : self._R + 1 + unseen] = new

    def _answer(self) -> None:
        """Gather and forward, of the rows that were asked for."""
        with torch.inference_mode():
            self._embed(self._asked_rows, self._asked_embedded)
            self._answered.copy_(self.module(self._asked_numeric, self._asked_embedded))

    def _embed(self, rows: Tensor, out: Tensor) -> None:
        """Write the embeddings of rows int32 (B, K) to out (B, K, D)."""
        if self.table is not None:
            torch.index_select(self._rows, 0, rows.reshape(-1), out=out.flatten(0, 1))

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
        self._ask_for_step(slot, rows, used)
        self._under_way.append(slot)
        return done

    def _ask_for_step(self, slot: _Slot, rows: int, used: int) -> None:
        """Copy in, step, copy out whether it was fine; nobody waits. used: numbers of the slot's tail."""
        with self._on_stream():
            self._room[: slot.fixed + used].copy_(slot.host[: slot.fixed + used], non_blocking=True)
            if used:
                self._begin_rows(used // (1 + self.plan.inputs.dim), slot.fixed)
            if rows in self._steps_of:
                self._steps_of[rows]()
            else:
                self._step(rows)
            slot.fine.copy_(self._fine, non_blocking=True)
            if slot.read is not None:
                slot.read.record()

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
        fields["rows"][n:] = self._R
        new = self.table.take_for_device(categories, live, now, self._dirty, fields["rows"][:n])
        used = new * (1 + self.plan.inputs.dim)
        slot.tail[:new] = self.table.new[:new]
        self.table.write_starts(new, slot.tail[new:used].view(np.float32).reshape(new, self.plan.inputs.dim))
        return used

    def _begin_rows(self, count: int, at: int) -> None:
        """Write what new rows begin with, from the tail of the copy."""
        rows = self._room[at : at + count].long()
        begun = self._room[at + count : at + count * (1 + self.plan.inputs.dim)].view(torch.float32)
        self._rows.index_copy_(0, rows, begun.view(count, -1))
        self._evidence.index_fill_(0, rows, 0.0)

    def _step_dense(self, rows: int) -> None:
        """Gather, forward, slopes, backward, step of the dense weights; slopes of the embeddings and `fine` stay."""
        self._embed(self._inputs["rows"][:rows], self._embedded[:rows])
        leaf = self._embedded[:rows].detach().requires_grad_()
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
            parts = [t for s, gap in zip(slopes[1:], self._gaps, strict=True) for t in (s.reshape(-1), gap)]
            dense = torch.cat(parts) if parts else self._weight
            live = torch.where(scale.unsqueeze(1) != 0, read, 0.0)
            fine = torch_stepping.is_fine(live, slope, dense, slopes[0])
            torch_stepping.step(
                self._optimizer, self._weight, dense, list(self._moments.values()), self._steps, self._inputs["share"],
                fine,
            )  # fmt: skip
            self._embedded_slope[:rows] = slopes[0]
            self._fine[:] = fine

    def _step_rows(self, rows: int) -> None:
        """Step of the embeddings, by the slopes that `_step_dense` left."""
        if self.table is not None:
            step_rows(
                self._inputs["rows"][:rows].reshape(-1), self._embedded_slope[:rows].flatten(0, 1), self._rows,
                self._evidence, self._fine, self._R, self._lr, self._eps,
            )  # fmt: skip

    def _step(self, rows: int) -> None:
        self._step_dense(rows)
        self._step_rows(rows)

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work as a CUDA graph, which shares its memory with the others: they run one after another.

        Raises SetupError where it waits for the device, which a graph cannot.
        """
        graph = torch.cuda.CUDAGraph()
        with _capturing():
            for _ in range(WARM_UPS):
                work()
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    work()
            except RuntimeError as error:
                cause = error.__context__ or error  # what ends a capture that has failed raises too
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
                raise SetupError(
                    f"{self._what} cannot be captured as a CUDA graph: {cause}; if its forward waits for the device "
                    "(.item(), .cpu(), boolean masks), leave `steady` away in its class"
                ) from error
        return graph.replay

    def explain(self, x: Rows, offsets: np.ndarray, out: np.ndarray) -> None:
        """Write contributions to out (B, O, N + K + 1); see Torch.explain."""
        for a in range(0, len(out), self.block):
            n = min(self.block, len(out) - a)
            with self._on_stream():
                with torch.no_grad():
                    self._ask(x, a, n)
                    self._embed(self._asked_rows, self._asked_embedded)
                parts = integrate(self.module, self._asked_numeric[:n], self._asked_embedded[:n])
            write_contributions(parts, self.plan.numeric, self.plan.categories, offsets, out[a : a + n])

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


@contextmanager
def _capturing() -> Iterator[None]:
    """One thread at a time captures, for that begins with a wait for the whole device; and meanwhile nothing is
    collected, for graphs that nobody needs any more cannot be freed while another is captured."""
    with _one_capture:
        collecting = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collecting:
                gc.enable()
