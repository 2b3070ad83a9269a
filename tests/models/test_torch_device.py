"""The code of a GPU: on a CPU beside the other one, its Triton kernel in the interpreter, and on a GPU where there is one."""

import os
import re
import subprocess
import sys
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.errors import SetupError
from headrace.models import (
    DCN,
    MLP,
    SGD,
    AdaGrad,
    Adam,
    DeepFM,
    Embeddings,
    Rows,
    StandardScaler,
    Torch,
    TorchModule,
    Truth,
    torch_device,
)  # fmt: skip
from headrace.models.base import NotFinite, register
from headrace.models.embedding_gpu import launched_with, step_rows
from headrace.models.embedding_kernels import learn_rows
from headrace.models.torch_device import OnDevice

TABLE = Embeddings(4, 6, lr=0.1, start=0.1)  # so small that rows are evicted
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine"),
]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])


class Deviced(Torch):
    """A learner whose module is on a device, even if that is the CPU."""

    on = "cpu"

    def _on(self, *parts):
        return OnDevice(self, *parts, self.on)


def deviced(device, *settings, **named):
    learner = Deviced(*settings, **named)
    learner.on = device
    return learner


@pytest.fixture
def values(stream):
    """A stream with three hundred values of each category, some of which never come again."""

    def values(rows, labels="binary", seed=0):
        x, truth = stream(rows, seed, labels)
        rng = np.random.default_rng(seed)
        hashes = rng.integers(1, 2**64, 300, dtype=np.uint64)
        new = rng.random(x.categories.shape) < 0.9
        x.categories[new] = hashes[(300 * rng.random(int(new.sum())) ** 3).astype(int)]
        truth.y[::13] = np.nan
        return x, truth

    return values


def rows_of(x, a, b):
    return Rows(x.numeric[a:b], x.categories[a:b])


CASES = {
    "adam": (MLP([8]), "binary", "binary", dict(optimizer=Adam(0.01, weight_decay=0.01))),
    "adagrad": (DCN(1, [8]), "multiclass", "classes", dict(optimizer=AdaGrad(0.05, l2=0.01))),
    "momentum": (DeepFM([8]), "regression", "value", dict(loss="huber", optimizer=SGD(0.02, momentum=0.9))),
    "sgd": (DCN(1, [4], rank=2), "regression", "value", dict(loss="absolute", optimizer=SGD(0.02, l2=0.01))),
}


@devices
@pytest.mark.parametrize("case", CASES)
def test_device_predicts_and_learns_as_the_cpu_does(bind, values, device, case):
    module, task, labels, settings = CASES[case]
    settings = dict(batch_size=10, embeddings=TABLE, seed=2, **settings)
    ours = bind(StandardScaler() | deviced(device, module, **settings), task=task)
    plain = bind(StandardScaler() | Torch(module, device="cpu", **settings), task=task)
    x, truth = values(400, labels)
    outs, learned = [], []
    for bound in (ours, plain):
        out = np.full((400, bound.spec.outputs), np.nan, np.float32)
        bound.chain.test_then_learn(x, truth, out)
        bound.chain.pull()
        learned.append(bound.state["1/embeddings/weight"].copy())
        for _, decay in bound.chain.decays():
            decay(0.5)
        bound.chain.test_then_learn(rows_of(x, 0, 35), Truth(truth.y[:35], truth.weight[:35]), out[:35])
        bound.chain.pull()
        outs.append(out)
    np.testing.assert_allclose(outs[0], outs[1], rtol=5e-3, atol=1e-3)
    np.testing.assert_allclose(*learned, rtol=1e-2, atol=2e-3)
    assert plain.state["1/embeddings/counts"][0] > 20
    for name, array in plain.state.items():
        if name.endswith(
            ("tag", "stamp", "counts", "steps", "batches", "skipped", "base", "base_mean", "base_variance")
        ):
            np.testing.assert_array_equal(ours.state[name], array, err_msg=name)
        else:
            np.testing.assert_allclose(ours.state[name], array, rtol=1e-2, atol=2e-3, err_msg=name)
    for group, marks in plain.touched.items():
        np.testing.assert_array_equal(ours.touched[group], marks)
    contributions = np.empty((2, 5, ours.spec.outputs, 6), np.float32)
    for bound, to in zip((ours, plain), contributions):
        bound.chain.learner.explain(rows_of(x, 0, 5), to)
    np.testing.assert_allclose(*contributions, rtol=1e-2, atol=5e-3)


@devices
def test_state_moves_between_devices_bit_for_bit(bind, values, device, monkeypatch):
    monkeypatch.setattr(torch_device, "PULLED", 2)  # of eight blocks
    settings = dict(optimizer=Adam(0.01), batch_size=10, embeddings=Embeddings(4, 9, lr=0.1, start=0.1))
    first, second = (bind(deviced(device, DCN(1, [8]), **settings), task="binary") for _ in range(2))
    x, truth = values(300)
    first.chain.learn(rows_of(x, 0, 200), Truth(truth.y[:200], truth.weight[:200]))
    first.chain.pull()
    for name, array in first.state.items():
        second.state[name][...] = array
    second.chain.push()
    outs = []
    for bound in (first, second):
        out = np.empty((100, 1), np.float32)
        bound.chain.test_then_learn(rows_of(x, 200, 300), Truth(truth.y[200:], truth.weight[200:]), out)
        bound.chain.pull()
        outs.append(out)
    assert outs[0].tobytes() == outs[1].tobytes()
    assert first.bits() == second.bits()


@devices
def test_every_row_that_was_stepped_is_pulled(bind, values, device):
    bound = bind(deviced(device, MLP([4]), batch_size=10, embeddings=Embeddings(4, 12)), task="binary")
    x, truth = values(30)
    for a, b in ((0, 5), (0, 5), (10, 30)):  # new rows, the same once more, others
        before = bound.state["0/embeddings/weight"].copy()
        bound.chain.learn(rows_of(x, a, b), Truth(truth.y[a:b], truth.weight[a:b]))
        bound.chain.pull()
        after = bound.state["0/embeddings/weight"]
        assert (after != before).any()
        np.testing.assert_array_equal(after, bound.chain.learner._side._rows[: len(after)].cpu())


@devices
def test_same_stream_gives_the_same_bits_and_rows_the_same_prediction_wherever_they_stand(bind, values, device):
    bounds = [bind(deviced(device, DCN(2, [16]), batch_size=64, embeddings=TABLE), task="binary") for _ in range(2)]
    x, truth = values(700)
    for bound in bounds:
        bound.chain.learn(x, truth)
        bound.chain.pull()
    assert bounds[0].bits() == bounds[1].bits()
    whole, parts = np.empty((2, 700, 1), np.float32)
    bounds[0].chain.predict(x, whole)
    for a, b in ((0, 1), (1, 300), (300, 310), (310, 700)):
        bounds[1].chain.predict(rows_of(x, a, b), parts[a:b])
    assert whole.tobytes() == parts.tobytes()


@devices
def test_step_of_a_device_that_is_not_finite_is_skipped_and_told_of_when_it_is_waited_for(bind, values, device):
    settings = dict(batch_size=4, embeddings=TABLE, base_rate=False, max_skipped=5)
    bound = bind(deviced(device, MLP([4]), "squared", SGD(0.01), **settings), task="regression")
    x, truth = values(12, "value")
    bound.chain.learn(x, truth)
    bound.chain.pull()
    dense = {n: a.copy() for n, a in bound.state.items() if "module" in n or n.endswith(("weight", "evidence"))}
    wild = Truth(np.full((4, 1), 3e38, np.float32), np.ones(4, np.float32))
    for _ in range(5):
        bound.chain.learn(rows_of(x, 4, 8), wild)
    bound.chain.pull()
    assert bound.state["0/skipped"].tolist() == [5, 5]
    for name, array in dense.items():
        np.testing.assert_array_equal(bound.state[name], array)
    bound.chain.learn(rows_of(x, 4, 8), wild)
    with pytest.raises(NotFinite, match="6 micro-batches"):
        bound.chain.pull()


@devices
def test_device_explains_what_it_has_learned_without_a_look_at_the_arrays(bind, values, device):
    bound = bind(deviced(device, MLP([8]), batch_size=10, embeddings=TABLE), task="binary")
    x, truth = values(300)
    bound.chain.learn(x, truth)
    before, out, why = bound.bits(), np.empty((40, 1), np.float32), np.empty((40, 1, 6), np.float32)
    bound.chain.predict(rows_of(x, 0, 40), out)
    bound.chain.learner.explain(rows_of(x, 0, 40), why)
    assert bound.bits() == before
    np.testing.assert_allclose(why.sum(2), np.log(out / (1 - out)), atol=0.02)
    assert np.ptp(why.sum(2)) > 0.5


class There(TorchDispatchMode):
    """Within it, all that comes of an operation lies on one device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        came = {t.device.type for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t)}
        assert came <= {"meta"}, f"{func} leads to {came}"
        return out


@pytest.mark.parametrize("case", CASES)
def test_what_is_captured_stays_on_its_device_and_waits_for_nothing(bind, case):
    module, task, _, settings = CASES[case]
    bound = bind(deviced("cpu", module, batch_size=10, embeddings=TABLE, **settings), task=task)
    side = bound.chain.learner._side
    with FakeTensorMode():  # tensors with shapes and devices, but without numbers: nobody can ask for one

        def fake(value):
            if torch.is_tensor(value):
                return torch.empty(value.shape, dtype=value.dtype, device="meta")
            if isinstance(value, dict):
                return {name: fake(v) for name, v in value.items()}
            if isinstance(value, list):
                return [fake(v) for v in value]
            return value

        for name, value in vars(side).items():
            setattr(side, name, fake(value))
        for part in side.module.modules():
            for name, p in [*part.named_parameters(recurse=False)]:
                setattr(part, name, nn.Parameter(torch.empty(p.shape, device="meta")))
        side._learned = dict(side.module.named_parameters())
        with There():
            side._begin_rows(2, side._slots[0].fixed)
            side._step_dense(8)
            side._answer()
        assert not side._answered.requires_grad


def test_what_was_bound_before_has_left_the_device_when_it_is_bound_anew(bind):
    gone = []

    class Watched(Deviced):
        def _on(self, *parts):
            gone.append(was() if gone else None)
            return super()._on(*parts)

    bound = bind(Watched(MLP([4]), batch_size=4, embeddings=TABLE), task="binary")
    was = weakref.ref(bound.chain.learner._side)
    bound.chain.learner.bind(
        bound.spec, *[{n.removeprefix("0/"): a for n, a in arrays.items()} for arrays in bound[2:]]
    )
    assert gone == [None, None]


@register
@dataclass(eq=False)
class Greedy(TorchModule):
    def build(self, inputs):
        return GreedyNet(inputs.numeric, inputs.outputs)


class GreedyNet(nn.Linear):
    def forward(self, numeric, categories):
        if len(numeric) > 100:
            raise torch.OutOfMemoryError("tried to allocate 80.00 GiB")
        return super().forward(numeric)


def test_what_does_not_fit_on_a_device_is_an_error_that_says_what_takes_the_room(bind):
    learner = deviced("cpu", Greedy(), batch_size=10, embeddings=Embeddings(16, 10))
    with pytest.raises(SetupError, match=r"1,024 rows of 16 numbers .* 0\.1 MB .*Embeddings\(bits=.* 80.00 GiB"):
        bind(learner, task="binary")


@devices
@pytest.mark.parametrize("D", [1, 4, 7])
def test_rows_of_a_micro_batch_are_stepped_as_the_kernel_of_the_cpu_does(device, D):
    compare_steps(device, D)


def compare_steps(device, D):
    """step_rows beside learn_rows: hot rows, rows that are not learned, a step that is not fine."""
    rng = np.random.default_rng(D)
    R, n = 40, 333
    rows = np.where(rng.random(n) < 0.3, 7, rng.integers(0, R, n)).astype(np.int32)
    rows[rng.random(n) < 0.1] = -1
    rows[rng.random(n) < 0.1] = R
    slope = rng.normal(size=(n, D)).astype(np.float32)
    weight = rng.normal(size=(R + 3, D)).astype(np.float32)
    evidence = rng.random(R).astype(np.float32)
    state = [torch.from_numpy(a.copy()).to(device) for a in (weight, evidence)]
    given = [torch.from_numpy(a).to(device) for a in (rows, slope)]
    fine = torch.zeros(1, dtype=torch.int32, device=device)
    step_rows(*given, *state, fine, R, 0.1, 1e-8)
    np.testing.assert_array_equal(state[0].cpu(), weight)
    step_rows(*given, *state, fine + 1, R, 0.1, 1e-8)

    learned = (rows >= 0) & (rows < R)
    taken = np.unique(rows[learned])
    of = np.full((n, 1), -1, np.int32)
    of[learned, 0] = np.searchsorted(taken, rows[learned])
    learn_rows(
        taken, len(taken), of, slope[:, None, :].copy(), 0.1, 1e-8, weight, evidence, np.empty((n, D), np.float32)
    )
    np.testing.assert_allclose(state[0].cpu(), weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state[1].cpu(), evidence, rtol=1e-5)
    print("stepped", len(taken))


def test_triton_kernel_does_the_same_in_its_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        "import runpy, sys\n"
        "compare_steps = runpy.run_path(sys.argv[1])['compare_steps']\n"
        "from headrace.models.embedding_gpu import is_interpreted\n"
        "assert is_interpreted()\n"
        "compare_steps('cpu', 7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stepped")


def test_triton_kernel_is_compiled_for_gpus_that_are_not_here(tmp_path, monkeypatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from headrace.models.embedding_gpu import _step_segments

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    kinds = dict.fromkeys(("slope", "weight", "evidence"), "*fp32") | {"rows": "*i32", "places": "*i64", "fine": "*i32"}
    kinds |= {"n": "i32", "R": "i32", "lr": "fp32", "eps": "fp32"}
    for D, capability in ((1, 80), (16, 80), (16, 90), (64, 90), (1025, 90)):
        options = launched_with(D)
        constants = {name: options.pop(name) for name in [*options] if name.isupper()}
        signature = {name: kinds.get(name, "constexpr") for name in _step_segments.arg_names}
        source = ASTSource(fn=_step_segments, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        (tmp_path / "cubin").write_bytes(compiled.asm["cubin"])
        told = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", tmp_path / "cubin"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "STACK:0 " in told, (D, capability, told)  # nothing is spilled
        assert int(re.search(r"REG:(\d+)", told)[1]) <= 128
