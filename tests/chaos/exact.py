"""Bit for bit: headrace's own engine over the journal of a run with one slot, in a process that no fault ever met.

    python -m chaos.exact FILE BROKER FOLDER      (with `tests` on PYTHONPATH)

The only part of the checker that uses headrace. `beside` prepares FOLDER and starts that process, which prints what
differs as a JSON list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from chaos.account import Cycle
from chaos.readback import Ends, Made, Snapshot, Topics, consumer, records

TESTS = Path(__file__).parents[1]


@contextmanager
def beside(
    broker: str,
    topics: Topics,
    ends: Ends,
    file: Path,
    snapshot: Snapshot,
    made: dict[int, Made],
    cycles: Sequence[Cycle],
) -> Iterator[subprocess.Popen[str]]:
    """Run the engine over all cycles that the snapshot holds; the process is killed if it outlives the block."""
    with tempfile.TemporaryDirectory() as folder:
        run = {
            "inputs": [
                (role, p, topics.of(role), ends[topics.of(role), p]) for role in ("events", "labels") for p in made
            ],
            "cycles": [cycle.pieces for cycle in cycles if cycle.at <= snapshot.token],
        }
        Path(folder, "run.json").write_text(json.dumps(run))
        np.savez(Path(folder, "snapshot.npz"), **snapshot.arrays)
        for p, of in made.items():
            np.savez(Path(folder, f"made-{p}.npz"), offset=np.array(of.offset, np.int64), value=np.array(of.value))
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "chaos.exact", str(file), broker, folder],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()


def differences(process: subprocess.Popen[str]) -> list[str]:
    """What the process has found, when it ends. Raises RuntimeError with what it said when it fails."""
    found, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the engine failed over the journal: {said[-2000:]}")
    return json.loads(found.splitlines()[-1])


def run_engine(file: str, broker: str, folder: str) -> list[str]:
    """Drive the engine over the journal's pieces, each decoded alone; what differs from the run."""
    from headrace.stream.decode import Decoder
    from headrace.stream.engine import Engine
    from headrace.stream.load import load_pipeline
    from headrace.stream.slices import Record, Slice

    run = json.loads(Path(folder, "run.json").read_text())
    pipeline = load_pipeline(file)
    engine = Engine(pipeline)
    decoders = {role: Decoder(pipeline, role) for role in ("events", "labels")}
    inputs: dict[tuple[str, int], Stretches] = {}
    predictions: dict[int, dict[int, float]] = {}
    with ExitStack() as readers:
        for role, p, topic, end in run["inputs"]:
            reader = readers.enter_context(consumer(broker))
            inputs[role, p] = Stretches(records(reader, topic, p, end))
            predictions[p] = {}
            engine.own(p)
        for pieces in run["cycles"]:
            for role, p, start, next in pieces:
                taken = inputs[role, p].take(start, next)
                batch = decoders[role].decode(
                    Slice(
                        role,
                        p,
                        start,
                        next,
                        [Record(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in taken],
                    )
                )
                done = engine.process(batch, start, next)
                if done.predicted is not None:
                    shown = [float(str(value)) for value in done.predicted.out[:, 0]]  # as few digits as tell it
                    predictions[p].update(zip(batch.offset.tolist(), shown, strict=True))
            engine.end_cycle()
    return [*differing_predictions(predictions, folder), *differing_arrays(engine.state(), folder)]


class Stretches:
    """Records of a partition, taken in stretches of offsets that follow one another."""

    def __init__(self, batches: Iterator[list[Any]]) -> None:
        self._records = (record for batch in batches for record in batch)
        self._beyond: Any = None  # the first one behind the last stretch

    def take(self, start: int, end: int) -> list[Any]:
        """The records [start, end); those before are passed over."""
        taken = []
        while (record := self._beyond or next(self._records, None)) is not None and record.offset < end:
            self._beyond = None
            if record.offset >= start:
                taken.append(record)
        self._beyond = record
        return taken


def differing_predictions(predictions: dict[int, dict[int, float]], folder: str) -> Iterator[str]:
    for p, expected in predictions.items():
        made = np.load(Path(folder, f"made-{p}.npz"))
        for offset, value in zip(made["offset"].tolist(), made["value"].tolist()):
            if offset in expected and value != expected[offset]:
                yield f"prediction for event {p}@{offset}: {value!r}, the engine says {expected[offset]!r}"


def differing_arrays(state: Any, folder: str) -> Iterator[str]:
    expected = {f"shared/{name}": array for name, array in state.shared.items()}
    for p, own in state.partitions.items():
        expected |= {f"partition/{p}/{name}": array for name, array in own.items()}
    arrays = np.load(Path(folder, "snapshot.npz"))
    for name in sorted(set(expected) ^ set(arrays.files)):
        yield f"array {name}: {'only in the snapshot' if name in arrays.files else 'not in the snapshot'}"
    for name in sorted(set(expected) & set(arrays.files)):
        got, wanted = arrays[name], np.asarray(expected[name])
        if got.dtype != wanted.dtype or got.shape != wanted.shape or got.tobytes() != wanted.tobytes():
            yield f"array {name}"


if __name__ == "__main__":
    print(json.dumps(run_engine(*sys.argv[1:])))
