"""The code of a GPU: on a CPU beside the other one, its Triton kernel in the interpreter, and on a GPU where there is one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from headrace.models import DCN, MLP, SGD, AdaGrad, Adam, DeepFM, Embeddings, Rows, StandardScaler, Torch, Truth
from headrace.models.base import NotFinite
from headrace.models.embedding_gpu import step_rows
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
def test_state_moves_between_devices_bit_for_bit(bind, values, device):
    settings = dict(optimizer=Adam(0.01), batch_size=10, embeddings=TABLE)
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
