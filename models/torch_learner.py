"""Any torch module as a learner, which learns in micro-batches and keeps all it knows in the engine's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from ..errors import DeclarationError, SetupError
from . import torch_truth as truths
from .base import (
    Array,
    Configured,
    Decay,
    Explainer,
    Link,
    NotFinite,
    Rows,
    Spec,
    Truth,
    check_number,
    check_whole,
    declared_task,
    register,
)
from .dense_optimizers import DenseOptimizer, check_dense, layout_of
from .durations import parse_duration
from .embedding_gpu import HAS_TRITON
from .embeddings import GROUP, Embeddings
from .optimizers import AdaGrad
from .torch_building import build_module, try_module
from .torch_cpu import OnCpu
from .torch_device import OnDevice
from .torch_modules import Inputs, TorchModule

LOSSES = {  # by task, the first is the default
    "binary": {"log": truths.LOG},
    "multiclass": {"cross_entropy": truths.CROSS_ENTROPY},
    "regression": {"squared": truths.SQUARED, "absolute": truths.ABSOLUTE, "huber": truths.HUBER},
}
KINDS = {"binary": truths.BINARY, "multiclass": truths.MULTICLASS, "regression": truths.REGRESSION}
SKIPPED = "skipped"  # the array that counts steps that were not made: in all, and one after another just now
ARRAYS = {torch.bool: "uint8"}  # numpy has the other dtypes by the same name


class Plan(NamedTuple):
    """What is fixed once the features and the task are known."""

    inputs: Inputs
    task: int  # of torch_truth.py
    loss: int
    numeric: np.ndarray  # intp (N,)  columns in the order of their names, so that the order declared does not matter
    categories: np.ndarray  # intp (K,)


class InMicroBatches(Configured, Explainer):
    """A learner that makes one step for several examples."""

    updates: Literal["sequential", "micro_batch"] = "micro_batch"


@register
@dataclass(eq=False)
class Torch(InMicroBatches):
    """A torch module over numbers and embeddings of categories, for any task; learned in micro-batches.

    module      MLP(), DCN(), DeepFM(); of your own: a registered TorchModule, or Imported("package.nets:Towers")
    loss        "": by the task "log", "cross_entropy" or, for a regression, "squared"; there also "absolute" (the
                median) and "huber" (straight beyond one deviation of the labels)
    optimizer   of the dense weights: AdaGrad, Adam or SGD, with momentum
    batch_size  examples of a step. The last ones of a cycle make a short step
    embeddings  of the categories
    seed        of the first weights; the same seed gives the same bits, on the same kind of machine
    base_rate   raw scores stand on what labels alone say, learned from the stream: log-odds, frequencies; of a
                regression the mean, and raw scores are in units of the deviation of the labels
    half_life   of the weight of what the base rate was learned from, in event time; None: never forget
    clip        numbers are held within [-clip, clip]; scale them first (StandardScaler)
    max_skipped a step whose scores, loss or slopes are not finite (or beyond 1e18) is skipped, and counted; after so
                many one after another the learner raises NotFinite
    device      "auto": a GPU where there is one; "cpu", "cuda"

    A step goes down the slope of the loss, each example's multiplied by its weight: for dense weights the mean over the
    examples of the micro-batch, for each embedding the sum. Rows without a label, or with weight 0, are masked. A
    negative weight goes up the slope as it is now.

    Micro-batch: the result depends on where micro-batches begin, which the engine fixes (the n-th example since the
    last end of a cycle), and not on how rows are handed to `predict`.
    Not promised: that two kinds of CPU or GPU, or two versions of torch, give the same bits.
    """

    module: TorchModule
    loss: str = ""
    optimizer: DenseOptimizer = field(default_factory=lambda: AdaGrad(0.05))
    batch_size: int = 32
    _: KW_ONLY
    embeddings: Embeddings = field(default_factory=Embeddings)
    seed: int = 0
    base_rate: bool = True
    half_life: str | None = "30d"
    clip: float = 1e3
    max_skipped: int = 10
    device: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.module, TorchModule):
            raise DeclarationError(
                f'Torch(module=): expected MLP(), DCN(), DeepFM(), Imported("package.nets:Towers", width=32) or a '
                f"registered TorchModule, which are settings that a snapshot can name, got {self.module!r}"
            )
        losses = {name for of in LOSSES.values() for name in of}
        if self.loss and self.loss not in losses:
            raise DeclarationError(f"Torch(loss=): expected one of {', '.join(sorted(losses))}, got {self.loss!r}")
        check_dense(self.optimizer)
        if not isinstance(self.embeddings, Embeddings):
            raise DeclarationError(f"Torch(embeddings=): expected Embeddings(dim=16), got {self.embeddings!r}")
        whole = (("batch_size", 1, 1 << 20), ("seed", 0, 2**63 - 1), ("max_skipped", 0, 1 << 31))
        for name, low, high in whole:
            check_whole(f"Torch({name}=)", getattr(self, name), low, high)
        check_number("Torch(clip=)", self.clip, 0.0, above=True, high=1e30)
        if self.half_life is not None:
            parse_duration(self.half_life, "Torch(half_life=)")
        if self.device not in ("auto", "cpu", "cuda"):
            raise DeclarationError(f"Torch(device=): expected 'auto', 'cpu' or 'cuda', got {self.device!r}")
        self._side: OnCpu | OnDevice  # since bind
        self._built: tuple[Spec, Plan, nn.Module] | None = None
        self._layout: tuple[Spec, Mapping[str, Array]] | None = None

    # -- state

    def plan(self, spec: Spec) -> Plan:
        """What spec makes of the settings; raises DeclarationError where the task does not fit the loss."""
        task = spec.task or ""
        if task not in LOSSES or (spec.outputs > 1) != (task == "multiclass"):
            raise DeclarationError(
                f"Torch learns a binary or regression task with one output or a multiclass task with one per class, "
                f"the pipeline declares {declared_task(spec)}"
            )
        if self.loss and self.loss not in LOSSES[task]:
            raise DeclarationError(
                f"Torch(loss={self.loss!r}): the pipeline declares a {task} task; expected one of "
                f"{', '.join(LOSSES[task])}, or leave it away"
            )
        inputs = Inputs(
            2 * len(spec.numeric),
            len(spec.categories),
            self.module.embedding_width(self.embeddings.dim, spec.outputs),
            spec.outputs,
        )
        loss = LOSSES[task][self.loss or next(iter(LOSSES[task]))]
        numeric, categories = (
            np.array(sorted(range(len(names)), key=names.__getitem__), np.intp)
            for names in (spec.numeric, spec.categories)
        )
        return Plan(inputs, KINDS[task], loss, numeric, categories)

    def _module(self, spec: Spec) -> tuple[Plan, nn.Module]:
        """The module as it begins, built once for a spec."""
        if self._built is None or self._built[0] != spec:
            plan = self.plan(spec)
            module = build_module(self.module, plan.inputs, self.seed)
            try_module(repr(self.module), module, plan.inputs)
            self._built = spec, plan, module
        return self._built[1], self._built[2]

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """Arrays of the model. Raises DeclarationError when the task does not fit, or the module is refused."""
        if self._layout is None or self._layout[0] != spec:
            self._layout = spec, self._arrays(spec)
        return self._layout[1]

    def _arrays(self, spec: Spec) -> Mapping[str, Array]:
        plan, module = self._module(spec)
        learned = {name: tuple(p.shape) or (1,) for name, p in module.named_parameters() if p.requires_grad}
        arrays = {
            f"module/{name}": Array(
                tuple(t.shape) or (1,), ARRAYS.get(t.dtype, str(t.dtype).removeprefix("torch.")), axis="features",
                merge="mean" if t.dtype.is_floating_point else "owner",
            )
            for name, t in _tensors(module).items()
        }  # fmt: skip
        arrays |= layout_of(self.optimizer, learned)
        if plan.inputs.categories:
            arrays |= self.embeddings.layout(plan.inputs.dim)
        of_values = plan.task == truths.REGRESSION
        classes = max(2, spec.outputs)
        shares = Array((classes,), "float64", 1 / classes, merge="moments", by="base_count")
        moment = Array((1,), "float64", merge="moments", by="base_count")
        arrays |= {"base_mean": moment, "base_variance": moment} if of_values else {"base": shares}
        return arrays | {
            "base_count": Array((1,), "float64", 0.0 if of_values else 1.0, merge="sum"),
            SKIPPED: Array((2,), "int64"),
            "batches": Array((1,), "int64", merge="max"),
            "begun": Array((1,), "uint8", axis="features", merge="max"),  # 0: the module has no weights yet
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        """Work in place on state; where it was never bound before, the first weights are written there.

        On a CPU the module's parameters and buffers are views of the arrays. touched["embeddings"] gets a 1 for every
        64 rows of which one was written.
        """
        plan, module = self._module(spec)
        self._built = None  # its tensors become views, or are taken to a device
        if not state["begun"][0]:
            for name, tensor in _tensors(module).items():
                state[f"module/{name}"][...] = tensor.detach().numpy().reshape(state[f"module/{name}"].shape)
            state["begun"][0] = 1
        if hasattr(self, "_side"):  # a device may not have room for two
            self._side.drain()
            del self._side
        self._side = self._on(plan, module, state, touched)
        self._state, self._task = state, plan.task
        self._base = state["base_mean" if plan.task == truths.REGRESSION else "base"]
        self._variance = state.get("base_variance", np.zeros(1))
        self._batches, self._skipped = state["batches"], state[SKIPPED]
        self._live = np.zeros(self.batch_size, np.uint8)
        self._offsets = np.zeros(spec.outputs + 1)

    def _on(
        self, plan: Plan, module: nn.Module, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]
    ) -> OnCpu | OnDevice:
        """The module at work where `device` says."""
        if self.device == "cpu" or (self.device == "auto" and not torch.cuda.is_available()):
            return OnCpu(self, plan, module, state, touched)
        if not torch.cuda.is_available():
            raise SetupError("Torch(device='cuda'): torch sees no GPU; install its driver, or declare device='auto'")
        if not HAS_TRITON:
            raise SetupError(
                "Torch on a GPU needs Triton, which steps embeddings in an order that does not change: "
                "pip install triton, or declare device='cpu'"
            )
        return OnDevice(self, plan, module, state, touched, "cuda")

    def pull(self) -> None:
        """Wait for a device, and bring the arrays up to date with it. Raises NotFinite as `learn` does."""
        self._note(self._side.drain())
        self._side.pull()

    def push(self) -> None:
        self._side.push()

    # -- at work

    def predict(self, x: Rows, out: np.ndarray) -> None:
        """Write P(true), P of each class or values to out; changes no state, and no row looks at another."""
        self._write_offsets()
        self._side.predict(x, self._offsets, out)

    def learn(self, x: Rows, truth: Truth) -> None:
        """One step for each `batch_size` rows, in order, and one for what is left.

        Raises NotFinite when more than max_skipped steps one after another could not be made.
        """
        for a in range(0, len(truth.y), self.batch_size):
            rows = slice(a, a + self.batch_size)
            self._learn(x.numeric[rows], x.categories[rows], truth.y[rows], truth.weight[rows])

    def test_then_learn(self, x: Rows, truth: Truth, out: np.ndarray, learned: Rows | None = None) -> None:
        """Micro-batch by micro-batch: predict its rows, then learn them."""
        after = x if learned is None else learned
        for a in range(0, len(out), self.batch_size):
            rows = slice(a, a + self.batch_size)
            self.predict(Rows(x.numeric[rows], x.categories[rows]), out[rows])
            self._learn(after.numeric[rows], after.categories[rows], truth.y[rows], truth.weight[rows])

    def _learn(self, numeric: np.ndarray, categories: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
        live = self._live[: len(y)]
        examples = truths.take_truth(self._task, y, weight, len(self._offsets) - 1, live)
        if not examples:
            return
        self._batches[0] += 1
        truths.observe(self._task, y, weight, live, self._base, self._variance, self._state["base_count"])
        self._write_offsets()
        now = int(self._batches[0])
        self._note(self._side.learn(numeric, categories, y, weight, live, examples, now, self._offsets))

    def _write_offsets(self) -> None:
        truths.write_offsets(self._task, self.base_rate, self._base, self._variance, self._offsets)

    def _note(self, made: list[bool]) -> None:
        """Count the steps that could not be made."""
        for fine in made:
            self._skipped[0] += not fine
            self._skipped[1] = 0 if fine else self._skipped[1] + 1
        if self._skipped[1] > self.max_skipped:
            raise NotFinite(
                f"{self.module!r}: scores, loss or slopes of {int(self._skipped[1])} micro-batches one after another "
                f"are not finite, max_skipped is {self.max_skipped}; start from an earlier snapshot, with a smaller "
                "learning rate, or scale the features (StandardScaler)"
            )

    def link(self, spec: Spec) -> Link:
        """What makes predictions of raw scores."""
        links: dict[str | None, Link] = {"binary": "logit", "multiclass": "softmax"}
        return links.get(spec.task, "identity")

    def explain(self, x: Rows, out: np.ndarray) -> None:
        """Write to out float32 (B, O, N + K + 1) what each feature adds to the raw score; the last is the rest.

        The raw score is the log-odds, the logarithm of each P but for a constant, or the value. Contributions are
        integrated gradients on the way from a row of zeros (numbers at 0, nothing missing, embeddings at 0) to the row;
        the last number is the score of that row of zeros. They add up to the score but for the error of the integral,
        which is taken at 64 points. A missing number's contribution is its indicator's. Changes no state.
        Source: Sundararajan, Taly and Yan (2017), Axiomatic attribution for deep networks.
        """
        self._write_offsets()
        self._side.explain(x, self._offsets, out)
        np.clip(out, -1e30, 1e30, out=out)

    def decays(self) -> list[Decay]:
        decays: list[Decay] = []
        if self.half_life is not None:
            decays.append((parse_duration(self.half_life), self.decay))
        if self.embeddings.half_life is not None:
            decays.append((parse_duration(self.embeddings.half_life), self._forget_rows))
        half_life = getattr(self.optimizer, "half_life", None)
        if half_life is not None:
            decays.append((parse_duration(half_life), self._forget_squares))
        return decays

    def decay(self, factor: float) -> None:
        """Scale the weight of what the base rate was learned from; the base stays."""
        self._state["base_count"] *= factor

    def _forget_rows(self, factor: float) -> None:
        self._side.forget_rows(factor)

    def _forget_squares(self, factor: float) -> None:
        """Scale AdaGrad's evidence."""
        self._side.forget_squares(factor)

    def counters(self) -> dict[str, int]:
        """Steps that could not be made; embeddings that left their row to others, and that found none in their slot.

        They are in the state, so a replay counts the same. On a device the last few steps may not be counted yet.
        """
        counts = {"skipped_steps": int(self._skipped[0])}
        table = self._state.get(f"{GROUP}/counts")
        if table is not None:
            evicted, refused = table.tolist()
            counts |= {"evicted_embeddings": evicted, "refused_embeddings": refused}
        return counts


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())
