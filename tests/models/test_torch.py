"""Torch modules as learners: equal to plain torch step by step, and nothing of them lives outside of the arrays."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from headrace.errors import DeclarationError
from headrace.models import (
    DCN,
    FTRL,
    MLP,
    SGD,
    AdaGrad,
    Adam,
    DeepFM,
    Embeddings,
    Imported,
    LogisticRegression,
    Rows,
    Spec,
    StandardScaler,
    Torch,
    TorchModule,
    Truth,
    allocate,
    allocate_touched,
    as_chain,
    build,
)
from headrace.models.base import NotFinite, register
from headrace.models.embedding_kernels import write_start
from headrace.models.torch_building import build_module
from headrace.models.torch_modules import Inputs

TABLE = {"embeddings": Embeddings(4, 8, lr=0.1, start=0.1)}
READY = {"mlp": MLP([8]), "dcn": DCN(2, [8]), "low_rank": DCN(1, [8], rank=3), "deepfm": DeepFM([8])}
STREAMS = {"binary": "binary", "multiclass": "classes", "regression": "value"}  # labels of each task


def rows_of(x, a, b):
    return Rows(x.numeric[a:b], x.categories[a:b])


def truth_of(t, a, b):
    return Truth(t.y[a:b], t.weight[a:b])


def predicted(bound, x):
    out = np.full((len(x.numeric), bound.spec.outputs), np.nan, np.float32)
    bound.chain.predict(x, out)
    return out


# --- equal to plain torch


class Plain:
    """The same learner written out with autograd, torch.optim and a dict of embeddings, in float32."""

    def __init__(self, settings, task, outputs, seed, optimizer, lr, start, base_rate):
        self.dim = settings.embedding_width(4, outputs)
        self.module = build_module(settings, Inputs(6, 2, self.dim, outputs), seed)
        self.optimizer = optimizer(self.module.parameters())
        self.task, self.outputs, self.seed, self.lr, self.start = task, outputs, seed, lr, start
        self.base_rate, self.labels, self.weights = base_rate, [], []
        self.rows, self.n = {}, {}

    def row(self, h):
        if h not in self.rows:
            new = np.empty(self.dim, np.float32)
            write_start(np.uint64(h), self.seed, self.start, new)
            return torch.from_numpy(new)
        return self.rows[h]

    def inputs(self, x):
        missing = torch.from_numpy(~np.isfinite(x.numeric))
        numeric = torch.from_numpy(np.nan_to_num(x.numeric)).float()
        zero = torch.zeros(self.dim)
        embedded = torch.stack([torch.stack([self.row(int(h)) if h else zero for h in row]) for row in x.categories])
        return torch.cat([numeric, missing.float()], 1), embedded

    def base(self):
        """What is added to the raw scores, and their unit."""
        y, w = np.array(self.labels), np.array(self.weights)
        if not self.base_rate:
            return torch.zeros(self.outputs), 1.0
        if self.task == "regression":
            mean = np.average(y, weights=w) if len(y) else 0.0
            deviation = np.sqrt(np.average((y - mean) ** 2, weights=w)) if len(y) > 1 else 1.0
            return torch.tensor([mean]), float(deviation)
        classes = max(2, self.outputs)
        count = np.array([w[y == c].sum() + 1 / classes for c in range(classes)])
        count /= count.sum()
        if self.task == "binary":
            return torch.tensor([np.log(count[1] / count[0])]), 1.0
        return torch.tensor(np.log(count)), 1.0

    def predict(self, x):
        with torch.no_grad():
            raw = self.module(*self.inputs(x))
        base, unit = self.base()
        if self.task == "regression":
            return raw * unit + base
        return torch.sigmoid(raw + base) if self.task == "binary" else torch.softmax(raw + base, 1)

    def learn(self, x, truth):
        y, w = torch.from_numpy(truth.y[:, 0].copy()), torch.from_numpy(truth.weight.copy())
        self.labels += y.tolist()
        self.weights += w.tolist()
        numeric, embedded = self.inputs(x)
        raw = self.module(numeric, embedded.requires_grad_())
        base, unit = self.base()
        if self.task == "binary":
            losses = functional.binary_cross_entropy_with_logits((raw + base)[:, 0].float(), y, reduction="none")
        elif self.task == "multiclass":
            losses = functional.cross_entropy((raw + base).float(), y.long(), reduction="none")
        else:
            losses = (raw[:, 0] - (y - base) / unit) ** 2 / 2
        self.optimizer.zero_grad()
        (losses * w).sum().backward()
        for parameter in self.module.parameters():
            parameter.grad /= len(y)
        self.optimizer.step()
        slopes = {}
        for i, row in enumerate(x.categories):
            for k, h in enumerate(row):
                if h:
                    slopes[int(h)] = slopes.get(int(h), 0) + embedded.grad[i, k]
        for h, g in slopes.items():
            n = self.n.get(h, 0.0) + float((g**2).mean())
            self.rows[h], self.n[h] = self.row(h) - self.lr * g / (n**0.5 + 1e-8), n


OPTIMIZERS = {
    "adamw": (Adam(0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    "adagrad": (AdaGrad(0.05, 1e-20, l2=0.01), lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.01)),
    "momentum": (SGD(0.02, momentum=0.9, l2=0.01), lambda p: torch.optim.SGD(p, 0.02, 0.9, weight_decay=0.01)),
    "sgd": (SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
}


@pytest.mark.parametrize(
    ("module", "optimizer", "task", "base_rate"),
    [
        ("mlp", "adamw", "binary", True),
        ("mlp", "adagrad", "multiclass", True),
        ("mlp", "momentum", "regression", True),
        ("dcn", "sgd", "binary", False),
        ("dcn", "adamw", "multiclass", False),
        ("low_rank", "adamw", "binary", True),
        ("deepfm", "adagrad", "regression", True),
        ("deepfm", "momentum", "multiclass", True),
    ],
)
def test_learner_does_as_plain_torch_step_by_step(bind, stream, module, optimizer, task, base_rate):
    settings, (ours, theirs) = READY[module], OPTIMIZERS[optimizer]
    declared = Torch(settings, optimizer=ours, batch_size=8, seed=5, base_rate=base_rate, **TABLE)
    bound = bind(declared, task=task)
    plain = Plain(settings, task, bound.spec.outputs, 5, theirs, 0.1, 0.1, base_rate)
    x, truth = stream(100, 3, STREAMS[task])
    x.numeric[:] /= 20
    for a in range(0, 100, 8):  # the last one is short
        piece = rows_of(x, a, a + 8)
        np.testing.assert_allclose(predicted(bound, piece), plain.predict(piece), rtol=2e-3, atol=2e-4)
        bound.chain.learn(piece, truth_of(truth, a, a + 8))
        plain.learn(piece, truth_of(truth, a, a + 8))
    for name, parameter in plain.module.named_parameters():
        np.testing.assert_allclose(bound.state[f"0/module/{name}"], parameter.detach(), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("loss", ["absolute", "huber"])
def test_losses_of_a_regression_step_as_far_as_their_slope_says(bind, stream, loss):
    bound = bind(Torch(MLP([]), loss, SGD(1.0), batch_size=1, base_rate=False, half_life=None), 1, 0, "regression")
    x = Rows(np.ones((4, 1), np.float32), np.empty((4, 0), np.uint64))
    bound.chain.learn(x, Truth(np.float32([[0.25], [8.0], [8.0], [-8.0]]), np.float32([1, 1, 0.5, 1])))
    # the score is weight + bias, so each step moves it by twice the slope
    slopes = {"absolute": [1, 1, 0.5, -1], "huber": [0.25, 1, 0.5, -1]}[loss]
    assert predicted(bound, rows_of(x, 0, 1))[0, 0] == pytest.approx(2 * sum(slopes))


def test_dense_slopes_are_averaged_and_those_of_embeddings_summed(bind):
    """Twice the same example: dense weights go as far as for one, its embedding twice as far."""
    states = []
    for rows in (1, 2):
        bound = bind(Torch(MLP([4]), optimizer=SGD(0.1), batch_size=2, base_rate=False, **TABLE), 1, 1)
        x = Rows(np.ones((rows, 1), np.float32), np.full((rows, 1), 77, np.uint64))
        for _ in range(2):  # the last layer begins at 0, so embeddings move from the second step on
            bound.chain.learn(x, Truth(np.ones((rows, 1), np.float32), np.ones(rows, np.float32)))
        states.append(bound.state)
    np.testing.assert_allclose(states[1]["0/module/last.weight"], states[0]["0/module/last.weight"], rtol=1e-5)
    assert states[1]["0/embeddings/evidence"].max() == pytest.approx(
        4 * states[0]["0/embeddings/evidence"].max(), rel=1e-3
    )


def test_masked_rows_of_a_micro_batch_count_for_nothing(bind, stream):
    """A short micro-batch, and one filled up with rows that have no label, no weight, or a weight of no number."""
    x, truth = stream(8, 1)
    masked = Truth(truth.y.copy(), truth.weight.copy())
    masked.y[5], masked.weight[6], masked.weight[7] = np.nan, 0.0, np.nan
    short, full = (bind(Torch(DCN(1, [4]), optimizer=SGD(0.1, momentum=0.5), batch_size=8, **TABLE)) for _ in range(2))
    for _ in range(3):
        short.chain.learn(rows_of(x, 0, 5), truth_of(truth, 0, 5))
        full.chain.learn(x, masked)
    for name, array in short.state.items():
        np.testing.assert_allclose(full.state[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
    bits = full.bits()
    full.chain.learn(x, Truth(np.full((8, 1), np.nan, np.float32), truth.weight))
    assert full.bits() == bits


# --- state


def test_parameters_are_views_of_the_arrays(bind, stream):
    bound = bind(Torch(MLP([4]), optimizer=Adam(), **TABLE))
    x, truth = stream(40)
    learner = bound.chain.learner
    for name, parameter in learner._side.module.named_parameters():
        assert np.shares_memory(parameter.detach().numpy(), bound.state[f"0/module/{name}"])
    before = predicted(bound, x)
    bound.state["0/module/last.bias"][:] = 3.0
    assert not np.array_equal(predicted(bound, x), before)
    bound.chain.learn(x, truth)
    assert bound.state["0/module/last.bias"][0] != 3.0
    float_state = {n: a for n, a in bound.state.items() if n.startswith(("0/module", "0/mean", "0/square"))}
    assert {a.dtype.name for a in float_state.values()} == {"float32"}
    assert {n.split("/")[1] for n in float_state} == {"module", "mean", "square"}


def test_every_array_lies_at_the_beginning_of_a_cache_line(bind):
    bound = bind(StandardScaler() | Torch(MLP([5]), **TABLE))
    assert all(array.ctypes.data % 64 == 0 for array in bound.state.values())


def test_seed_makes_the_weights_and_the_global_generator_is_left_alone(bind):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    weights = [bind(Torch(DeepFM([8]), seed=seed)).state for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    weights.append(bind(Torch(DeepFM([8]), seed=0)).state)
    first, again, other, later = (w["0/module/deep.0.weight"].tobytes() for w in weights)
    assert first == again == later
    assert first != other
    assert weights[0]["0/module/vectors"].any()


@register
@dataclass(eq=False)
class Normed(TorchModule):
    """Batch normalisation: it does not do the same while it learns, and has buffers."""

    width_of_layer: int = 4

    def build(self, inputs):
        class Net(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.norm = nn.BatchNorm1d(inputs.numeric)
                self.last = nn.Linear(inputs.numeric, inputs.outputs)
                self.scale = nn.Parameter(torch.tensor(1.0))

            def forward(self, numeric, categories):
                return self.last(self.norm(numeric)) * self.scale + 0 * categories.sum((1, 2)).unsqueeze(1)

        return Net(self.width_of_layer)


def test_buffers_are_state_and_prediction_uses_what_they_learned(bind, stream):
    x, truth = stream(64)
    bound = bind(Torch(Normed(), batch_size=16, clip=1e6))
    bound.chain.learn(x, truth)
    assert bound.state["0/module/norm.num_batches_tracked"].tolist() == [4]
    assert np.abs(bound.state["0/module/norm.running_mean"][:3]).max() > 0.1
    bits = bound.bits()
    out = predicted(bound, x)
    assert bound.bits() == bits
    np.testing.assert_array_equal(predicted(bound, rows_of(x, 7, 8)), out[7:8])


def test_features_in_another_order_are_the_same_features(bind, stream):
    x, truth = stream(50)
    spec = Spec(("a", "b", "c"), ("p", "q"), "binary")
    turned = Spec(("c", "a", "b"), ("q", "p"), "binary")
    model = StandardScaler() | Torch(DCN(1, [4]), batch_size=8, **TABLE)
    outs = []
    for spec_, numeric, categories in ((spec, [0, 1, 2], [0, 1]), (turned, [2, 0, 1], [1, 0])):
        chain = model.unbound()
        from headrace.models import allocate, allocate_touched

        layout = chain.layout(spec_)
        chain.bind(spec_, allocate(layout), allocate_touched(layout))
        rows = Rows(np.ascontiguousarray(x.numeric[:, numeric]), np.ascontiguousarray(x.categories[:, categories]))
        out = np.empty((50, 1), np.float32)
        chain.test_then_learn(rows, truth, out)
        contributions = np.empty((50, 1, 6), np.float32)
        scaled = np.empty((50, 3))
        chain.parts[0].apply(rows, Rows(scaled, rows.categories))
        chain.learner.explain(Rows(scaled, rows.categories), contributions)
        outs.append((out, contributions[:, :, np.argsort([*numeric, *(3 + np.array(categories)), 5])]))
    assert outs[0][0].tobytes() == outs[1][0].tobytes()
    assert outs[0][1].tobytes() == outs[1][1].tobytes()


# --- micro-batches


@pytest.mark.parametrize("module", READY)
def test_row_has_the_same_prediction_wherever_it_stands(bind, stream, module):
    bound = bind(StandardScaler() | Torch(READY[module], batch_size=8, **TABLE))
    x, truth = stream(300)
    bound.chain.learn(x, truth)
    whole = predicted(bound, x)
    rng = np.random.default_rng(0)
    order = rng.permutation(300)
    turned = Rows(x.numeric[order], x.categories[order])
    assert predicted(bound, turned).tobytes() == whole[order].tobytes()
    one_by_one = np.concatenate([predicted(bound, rows_of(x, i, i + 1)) for i in range(300)])
    assert one_by_one.tobytes() == whole.tobytes()


def test_step_is_made_for_each_batch_size_rows_and_one_for_the_rest(bind, stream):
    x, truth = stream(21)
    whole, pieces = (bind(Torch(MLP([4]), batch_size=8, **TABLE)) for _ in range(2))
    whole.chain.learn(x, truth)
    assert whole.state["0/steps"].tolist() == [3]
    for a, b in ((0, 8), (8, 16), (16, 21)):
        pieces.chain.learn(rows_of(x, a, b), truth_of(truth, a, b))
    assert pieces.bits() == whole.bits()
    otherwise = bind(Torch(MLP([4]), batch_size=8, **TABLE))
    for a, b in ((0, 4), (4, 16), (16, 21)):
        otherwise.chain.learn(rows_of(x, a, b), truth_of(truth, a, b))
    assert otherwise.bits() != whole.bits()


# --- what goes wrong


@register
@dataclass(eq=False)
class Broken(TorchModule):
    """Modules of users that do what they should not."""

    how: str = ""

    def build(self, inputs):
        return BrokenNet(inputs, self.how)


class BrokenNet(nn.Module):
    calls: ClassVar[int] = 0

    def __init__(self, inputs, how):
        super().__init__()
        if how == "raises in build":
            raise KeyError("width")
        self.how, self.outputs = how, inputs.outputs
        self.layer = nn.Linear(inputs.numeric, inputs.outputs)
        self.drop = nn.Dropout(0.5)
        if how == "double":
            self.layer.double()
        if how in ("new buffer", "half buffer"):
            dtype = torch.float16 if how == "half buffer" else torch.float32
            self.register_buffer("seen", torch.zeros(1, dtype=dtype))
        if how == "unseeded":
            self.layer.weight.data.copy_(torch.native_dropout(torch.ones(inputs.outputs, inputs.numeric), 0.5, True)[0])

    def forward(self, numeric, categories):
        raw = self.layer(numeric)
        if self.how == "columns":
            return torch.cat([raw, raw], 1)
        if self.how == "one dimension":
            return raw[:, 0]
        if self.how == "numpy":
            return raw.detach().numpy()
        if self.how == "raises":
            raise RuntimeError("mat1 and mat2")
        if self.how == "dropout":
            return self.drop(raw)
        if self.how == "noise":
            return raw + torch.randn(1)
        if self.how == "new buffer":
            self.seen = self.seen + 1
        if self.how == "no slope":
            return raw.detach()
        if self.how == "mixes":
            return raw - raw.mean(0)
        return raw


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("columns", r"Broken\(how='columns'\): expected raw scores, float32 \(B, 1\).*returned torch.float32 \(2, 2\)"),
        ("one dimension", r"returned torch.float32 \(2,\)"),
        ("numpy", "returned array"),
        ("raises", r"raised RuntimeError on numeric \(2, 6\), categories \(2, 2, 16\): mat1"),
        ("raises in build", "cannot be built.*KeyError.*width"),
        ("dropout", "random numbers while it learns"),
        ("noise", "random numbers while it learns"),
        ("new buffer", "in the place of its buffer seen"),
        ("half buffer", "buffer seen is torch.float16"),
        ("double", r"parameter layer.weight is torch.float64"),
        ("no slope", "depend on no parameter"),
        ("mixes", "depends on the rows beside it"),
        ("unseeded", "takes no generator"),
    ],
)
def test_module_that_does_what_it_should_not_is_refused_when_it_is_bound(bind, how, match):
    with pytest.raises(DeclarationError, match=match):
        bind(Torch(Broken(how)), task="binary")


def test_step_that_is_not_finite_is_skipped_counted_and_too_many_stop(bind, stream):
    bound = bind(
        Torch(MLP([4]), "squared", SGD(0.01), batch_size=4, max_skipped=2, base_rate=False, **TABLE), task="regression"
    )
    x, truth = stream(12, 0, "value")
    x.numeric[:] /= 20
    bound.chain.learn(x, truth)
    dense = {n: a.tobytes() for n, a in bound.state.items() if "module" in n or n.endswith(("weight", "evidence"))}
    wild = Truth(np.full((4, 1), 3e38, np.float32), np.ones(4, np.float32))
    four = rows_of(x, 0, 4)
    bound.chain.learn(four, wild)
    bound.chain.learn(four, wild)
    assert bound.state["0/skipped"].tolist() == [2, 2]
    assert {n: a.tobytes() for n, a in bound.state.items() if n in dense} == dense
    bound.chain.learn(four, truth_of(truth, 0, 4))
    assert bound.state["0/skipped"].tolist() == [2, 0]
    assert bound.state["0/steps"].tolist() == [4]
    for _ in range(2):
        bound.chain.learn(four, wild)
    with pytest.raises(NotFinite, match=r"MLP\(hidden=\[4\]\).*3 micro-batches.*max_skipped is 2.*smaller"):
        bound.chain.learn(four, wild)
    assert bound.chain.counters()["skipped_steps"] == 5


def test_embeddings_that_left_their_row_and_those_that_found_none_are_counted(bind):
    model = Torch(MLP([4]), batch_size=256, embeddings=Embeddings(4, 6))
    bound = bind(StandardScaler() | model, numeric=0, categories=1)
    assert bound.chain.counters() == {"skipped_steps": 0, "evicted_embeddings": 0, "refused_embeddings": 0}
    values = np.random.default_rng(0).integers(1, 2**64, (512, 1), np.uint64)
    truth = Truth(np.zeros((256, 1), np.float32), np.ones(256, np.float32))
    for of in (values[:256], values[256:]):  # each fills all 64 rows
        bound.chain.learn(Rows(np.empty((256, 0), np.float32), np.ascontiguousarray(of)), truth)
    assert bound.chain.counters() == {
        "skipped_steps": 0, "evicted_embeddings": 64, "refused_embeddings": 2 * (256 - 64),
    }  # fmt: skip
    assert bind(Torch(MLP([4])), categories=0).chain.counters() == {"skipped_steps": 0}


def test_slopes_of_a_skipped_step_do_not_come_back_in_the_next(bind, stream):
    x, truth = stream(8)
    through, aside = (
        bind(Torch(DCN(1, [4]), optimizer=SGD(0.1), batch_size=8, half_life=None, **TABLE)) for _ in range(2)
    )
    for bound in (through, aside):
        bound.chain.learn(x, truth)
    bound = through
    kept = {name: bound.state[name].copy() for name in ("0/base", "0/base_count")}
    bound.chain.learn(x, Truth(truth.y, np.full(8, 0.9e18, np.float32)))
    assert bound.state["0/skipped"].tolist() == [1, 1]
    for name, array in kept.items():
        bound.state[name][:] = array
    for bound in (through, aside):
        bound.chain.learn(x, truth)
    np.testing.assert_array_equal(through.state["0/module/last.weight"], aside.state["0/module/last.weight"])
    np.testing.assert_array_equal(through.state["0/embeddings/weight"], aside.state["0/embeddings/weight"])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Torch(nn.Linear(3, 1)), r"Torch\(module=\).*settings that a snapshot can name.*Linear"),
        (lambda: Torch(MLP(), "hinge"), r"Torch\(loss=\).*cross_entropy.*'hinge'"),
        (lambda: Torch(MLP(), optimizer=FTRL()), r"Torch\(optimizer=\).*Adam\(0.001\).*FTRL"),
        (lambda: Torch(MLP(), batch_size=0), r"Torch\(batch_size=\).*from 1 to 1,048,576, got 0"),
        (lambda: Torch(MLP(), seed=-1), r"Torch\(seed=\)"),
        (lambda: Torch(MLP(), device="tpu"), r"Torch\(device=\).*'tpu'"),
        (lambda: Torch(MLP(), embeddings=16), r"Torch\(embeddings=\).*got 16"),
        (lambda: Torch(MLP(), half_life="soon"), r"Torch\(half_life=\)"),
        (lambda: Torch(MLP(), clip=0), r"Torch\(clip=\)"),
        (lambda: MLP(64), r"MLP\(hidden=\).*\[64, 32\], got 64"),
        (lambda: DCN(-1), r"DCN\(cross=\)"),
        (lambda: DCN(rank=0), r"DCN\(rank=\)"),
        (lambda: Adam(beta1=1.0), r"Adam\(beta1=\)"),
        (lambda: SGD(momentum=1.0), r"SGD\(momentum=\)"),
        (lambda: LogisticRegression(SGD(momentum=0.9)), "momentum is for torch modules"),
        (lambda: LogisticRegression(Adam()), "expected an optimizer"),
        (lambda: Imported("nets"), r'Imported: expected a path such as "package.nets:Towers", got \'nets\''),
        (lambda: Imported("no_such_nets:Towers"), "No module named 'no_such_nets'; is the file beside"),
        (lambda: Imported("math:towers"), "no attribute 'towers'"),
        (lambda: Imported("math:pi"), "expected a class or function, got 3.14"),
        (lambda: Imported("torch.nn:Linear", widths={"a": 1}), r"widths=\).*got \{'a': 1\}"),
        (lambda: Imported("torch.nn:Linear", act=nn.ReLU()), r"act=\).*ReLU"),
    ],
)
def test_declared_wrongly_it_says_what_to_write(make, match):
    with pytest.raises(DeclarationError, match=match):
        make()


@pytest.mark.parametrize(
    ("model", "task", "outputs", "match"),
    [
        (Torch(MLP(), "huber"), "binary", 1, r"loss='huber'.*a binary task; expected one of log"),
        (Torch(MLP(), "log"), "regression", 1, "squared, absolute, huber"),
        (Torch(MLP()), None, 1, "declares no labels"),
        (Torch(MLP()), "multiclass", 1, r"multiclass task with 1 output"),
        (Torch(MLP()), "binary", 2, r"binary task with 2 output"),
        (Torch(Imported("math:sqrt")), "binary", 1, "cannot be built.*TypeError"),
        (Torch(Imported("builtins:list")), "binary", 1, "return an nn.Module"),
    ],
)
def test_task_or_module_that_does_not_fit_is_refused(model, task, outputs, match):
    with pytest.raises(DeclarationError, match=match):
        model.layout(Spec(("a",), (), task, outputs))


# --- made anew from settings


def towers(inputs, width, names=()):
    return nn.Sequential(
        Flat(), nn.Linear(inputs.numeric + inputs.categories * inputs.dim, width), nn.Linear(width, inputs.outputs)
    )


class Flat(nn.Module):
    def forward(self, numeric, categories=None):
        return numeric


def test_settings_rebuild_the_whole_learner():
    model = StandardScaler() | Torch(DCN(1, [8, 4], rank=2), "log", SGD(0.1, momentum=0.9), 64, seed=4, **TABLE)
    again = build(json.loads(json.dumps(model.config())))
    assert again.config() == model.config()
    assert repr(again) == repr(model)
    assert "momentum" not in SGD(0.1).config()  # what was written down before there was such a setting


def test_module_of_ones_own_is_imported_by_its_path(bind, stream, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "class Towers(torch.nn.Module):\n"
        "    def __init__(self, inputs, width, deep=False):\n"
        "        super().__init__()\n"
        "        self.first = torch.nn.Linear(inputs.numeric + inputs.categories * inputs.dim, width)\n"
        "        self.last = torch.nn.Linear(width, inputs.outputs)\n"
        "    def forward(self, numeric, categories):\n"
        "        x = torch.cat((numeric, categories.flatten(1)), 1)\n"
        "        return self.last(torch.tanh(self.first(x)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = StandardScaler() | Torch(Imported("my_nets:Towers", width=8, deep=True), optimizer=Adam(0.01), batch_size=8)
    again = build(json.loads(json.dumps(model.config())))
    assert again.config() == model.config()
    bounds = bind(model, task="binary"), bind(again, task="binary")
    x, truth = stream(2000)
    outs = [np.empty((2000, 1), np.float32) for _ in bounds]
    for bound, out in zip(bounds, outs):
        bound.chain.test_then_learn(x, truth, out)
    assert outs[0].tobytes() == outs[1].tobytes()
    loss = -np.log(np.where(truth.y == 1, outs[0], 1 - outs[0]))
    assert loss[-500:].mean() < 0.85 * np.log(2)


# --- explanations


@pytest.mark.parametrize(("module", "task"), [("mlp", "binary"), ("dcn", "regression"), ("deepfm", "multiclass")])
def test_contributions_add_up_to_the_raw_score(bind, stream, module, task):
    x, truth = stream(400, 2, STREAMS[task])
    x.numeric[:] /= 20
    bound = bind(Torch(READY[module], optimizer=Adam(0.02), batch_size=8, **TABLE), task=task)
    bound.chain.learn(x, truth)
    bits, out = bound.bits(), predicted(bound, x).astype(float)
    raw = {
        "binary": lambda: np.log(out / (1 - out)),
        "multiclass": lambda: np.log(out) - np.log(out).mean(1, keepdims=True),
        "regression": lambda: out,
    }[task]()
    contributions = np.full((400, out.shape[1], 6), np.nan, np.float32)
    bound.chain.learner.explain(x, contributions)
    assert bound.bits() == bits
    total = contributions.astype(float).sum(2)
    if task == "multiclass":
        total -= total.mean(1, keepdims=True)
    np.testing.assert_allclose(total, raw, atol=0.005 * np.abs(raw).max(), rtol=0.0)
    missing = x.categories[:, 0] == 0
    assert missing.any()
    assert not contributions[missing][:, :, 3].any()


def test_contribution_of_a_linear_module_is_weight_times_value(bind):
    bound = bind(Torch(MLP([]), base_rate=False), 2, 0, "regression")
    bound.state["0/module/last.weight"][:] = [[2.0, -3.0, 0.5, 7.0]]
    bound.state["0/module/last.bias"][:] = 1.0
    x = Rows(np.float32([[1, 2], [np.nan, 1], [4, np.nan]]), np.empty((3, 0), np.uint64))
    out = np.empty((3, 1, 3), np.float32)
    bound.chain.learner.explain(x, out)
    np.testing.assert_allclose(out[:, 0], [[2, -6, 1], [0.5, -3, 1], [8, 7, 1]], rtol=1e-5)


def test_contributions_stand_where_the_features_are_declared_in_whatever_order(stream):
    x, truth = stream(40, 2)
    outs = []
    for numeric, categories in (([0, 1, 2], [0, 1]), ([2, 0, 1], [1, 0])):
        names = tuple(f"n{j}" for j in numeric), tuple(f"c{k}" for k in categories)
        chain = as_chain(Torch(MLP([4]), optimizer=Adam(0.02), batch_size=8, **TABLE))
        spec = Spec(*names, "binary", 1)
        layout = chain.layout(spec)
        chain.bind(spec, allocate(layout), allocate_touched(layout))
        moved = Rows(np.ascontiguousarray(x.numeric[:, numeric]), np.ascontiguousarray(x.categories[:, categories]))
        chain.learn(moved, truth)
        out = np.empty((40, 1, 6), np.float32)
        chain.explain(moved, out)
        back = np.empty_like(out)
        back[:, :, [*numeric, *(3 + k for k in categories), 5]] = out
        outs.append(back)
    assert np.abs(outs[0][:, :, :5]).max() > 0
    assert outs[0].tobytes() == outs[1].tobytes()


# --- without torch


def test_importing_headrace_leaves_torch_alone_and_names_the_extra_where_it_is_missing():
    code = (
        "import sys, headrace, headrace.models as m, headrace.stream.engine\n"
        "print('torch' in sys.modules, m.SGD(0.1, momentum=0.5))\n"
        "sys.modules['torch'] = None\n"
        "from headrace.errors import SetupError\n"
        "for ask in ('from headrace.models import Torch', \"m.build({'name': 'MLP', 'hidden': [3]})\"):\n"
        "    try: exec(ask)\n"
        "    except SetupError as error: print(error)\n"
        "print(hasattr(m, 'Tensor'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    first, torch_says, mlp_says, last = done.stdout.splitlines()
    assert first.startswith("False SGD")
    assert torch_says == "Torch needs PyTorch, which is not installed: pip install headrace[torch]"
    assert mlp_says.startswith("MLP needs PyTorch")
    assert last == "False"


def test_learner_is_built_from_its_name_where_nothing_of_it_was_imported():
    config = json.dumps(Torch(MLP([3]), optimizer=Adam(0.1)).config())
    code = f"import json, headrace.models as m; print(m.build(json.loads({config!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=os.environ
    )
    assert done.stdout.startswith("Torch(module=MLP(hidden=[3])")


PLAIN = """
import numpy as np
np.seterr(over="ignore", invalid="ignore")
from headrace.models import *
from headrace.models import DCN, MLP, Adam, Embeddings, Torch
rng = np.random.default_rng(5)
for task, outputs, optimizer in (
    ("binary", 1, Adam(0.01)), ("multiclass", 3, AdaGrad(0.1)), ("regression", 1, SGD(0.1, momentum=0.5)),
):
    chain = as_chain(Torch(DCN(1, [4]), optimizer=optimizer, batch_size=5, embeddings=Embeddings(2, 6)))
    spec = Spec(("a", "b"), ("c",), task, outputs)
    layout = chain.layout(spec)
    state = allocate(layout)
    chain.bind(spec, state, allocate_touched(layout))
    x = Rows(rng.normal(size=(22, 2)).astype("f4"), rng.integers(0, 90, (22, 1), dtype=np.uint64))
    x.numeric[::9] = np.nan
    truth = Truth((rng.random((22, 1)) < 0.4).astype("f4"), np.ones(22, "f4"))
    out = np.empty((22, outputs), "f4")
    chain.test_then_learn(x, truth, out)
    for _, decay in chain.decays():
        decay(0.9)
    for array in (*state.values(), out):
        print(*(float(v).hex() for v in array.ravel()))
"""


def test_kernels_do_the_same_with_the_jit_off():
    outputs = []
    for jit in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PLAIN],
            env=os.environ | {"NUMBA_DISABLE_JIT": jit}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append([[float.fromhex(v) for v in line.split()] for line in done.stdout.splitlines()])
    assert sum(map(len, outputs[0])) > 1000
    for compiled, plain in zip(*outputs, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-3, atol=1e-5)


def test_pipeline_and_module_shown_on_the_page_are_declared_well(tmp_path):
    import re
    import runpy
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "learners" / "torch.md").read_text()
    whole, own = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for name, snippet in (("whole", whole), ("own", own)):
        (tmp_path / f"{name}.py").write_text(snippet)
    assert runpy.run_path(str(tmp_path / "whole.py"))["pipeline"].spec.task == "binary"
    spec = Spec(("a",), ("b",), "binary")
    assert "module/gate.weight" in runpy.run_path(str(tmp_path / "own.py"))["model"].layout(spec)
