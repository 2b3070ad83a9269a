"""Carries a plan out: real servers, real workers and a load; then all that was written is read back and checked.

    figures = endure(plan, folder, rate=20_000)

Whatever it starts it stops, by pid, also when it fails; what is left of a test process that was killed ends by itself.
What a failed run with a broker of its own has left can be read back again:

    PYTHONPATH=tests python -m chaos.run FOLDER
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from chaos.checker import Topics, Verdict, check
from chaos.cluster import Brokers
from chaos.plan import Plan
from chaos.shop import INPUTS, PARTITIONS
from chaos.stage import READY_SECONDS, Stage
from chaos.worker import Finding

from headrace.connectors import embedded
from headrace.connectors.topics import create_topics


def endure(
    plan: Plan,
    folder: Path,
    *,
    rate: int,
    brokers: Brokers | None = None,
    options: Sequence[str] = (),
    most_events: int = 20_000_000,
    seconds_to_process: float = 900.0,
) -> dict[str, Any]:
    """Carry the plan out under a load of `rate` events a second, then check all that came of it.

    brokers      running already; None: one of its own
    options      of `headrace run`, beside the file
    most_events  after which the load ends, whatever is left of the plan: the disk must hold them
    folder       takes logs and data; the data of servers are removed when nothing was found

    Returns figures of the run and of the checker. Raises Finding, with the plan, the command that repeats it and the
    ends of the logs, for whatever is wrong.
    """
    with ExitStack() as servers:
        if brokers is None:
            brokers = Brokers([servers.enter_context(embedded.kafka(folder / "kafka"))])
        redis = servers.enter_context(embedded.redis(folder / "redis"))
        name = f"chaos-{os.urandom(3).hex()}"
        topics = {f"{name}.{topic}": PARTITIONS for topic in INPUTS}
        create_topics(brokers.address, topics)
        stage = Stage(plan, folder, name, brokers, redis, options)
        print(f"\n{plan}\nrepeat: {command(plan)}", flush=True)
        with told(stage):
            began = time.monotonic()
            try:
                for number in range(plan.workers):
                    stage.start_worker(number)
                stage.start_load(rate, most_events)
                stage.suffer()
                stage.see_off()
                stage.figures["seconds of faults"] = round(time.monotonic() - began)
                stage.end_load(READY_SECONDS)
                stage.wait_until_processed(seconds_to_process)
                stage.figures["seconds until all was processed"] = round(time.monotonic() - began)
                left = Left(name, stage.slots(), plan.slot)
                (folder / "left.json").write_bytes(msgspec.json.encode(left))
                stage.end_workers()
            finally:
                stage.stop()
            verdict = left.check(folder, brokers.address, redis.url)
            figures = {**stage.figures, **verdict.figures, "seconds in all": round(time.monotonic() - began)}
            print(shown(figures), flush=True)
            if verdict.problems:
                raise Finding("what was read back is not what should be:\n" + "\n".join(verdict.problems))
    shutil.rmtree(folder / "kafka", ignore_errors=True)
    shutil.rmtree(folder / "redis", ignore_errors=True)
    return figures


class Left(msgspec.Struct):
    """What a run has left to be read back: of which pipeline, the slots whose workers ended by SIGTERM, and whether one
    slot has learned everything, so that its model must be bit for bit that of a run without faults."""

    name: str
    slots: list[int]
    alone: bool

    def check(self, folder: Path, broker: str, redis_url: str) -> Verdict:
        """Hand over to the checker."""
        topics = Topics(
            events=f"{self.name}.visits", labels=f"{self.name}.sales", predictions=f"{self.name}.scores",
            dead_letters=f"{self.name}.scores.dead-letters", journal=f"{self.name}.journal",
            group=f"headrace.{self.name}",
        )  # fmt: skip
        file = folder / "shop.py"
        return check(topics, broker, redis_url, file, self.slots, PARTITIONS, exact_model=self.alone)


def check_again(folder: Path) -> None:
    """Read back once more what a failed run has left in `folder`, and print what is wrong with it."""
    left = msgspec.json.decode((folder / "left.json").read_bytes(), type=Left)
    with embedded.kafka(folder / "kafka") as kafka, embedded.redis(folder / "redis") as redis:
        verdict = left.check(folder, kafka.address, redis.url)
    print("\n".join([shown(verdict.figures), *verdict.problems]))


def shown(figures: dict[str, Any]) -> str:
    """One figure to a line."""
    return "\n".join(f"  {name}: {f'{of:,}' if isinstance(of, int) else of}" for name, of in figures.items())


@contextmanager
def told(stage: Stage) -> Iterator[None]:
    """A failure within tells what was going on: plan, command and logs."""
    __tracebackhide__ = True  # the text says more than the way here
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, Finding) else f"{type(error).__name__}: "
        text = (
            f"{kind}{error}\n\n{stage.tails()}\n\n{stage.plan}\nrepeat: {command(stage.plan)}\nleft in: {stage.folder}"
        )
        raise Finding(text) from (None if isinstance(error, Finding) else error)


def command(plan: Plan) -> str:
    """What repeats the test that runs now."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[2].partition(" ")[0]
    counts = [
        f"{name}={value}" for name, value in os.environ.items() if name.startswith("CHAOS_") and name != "CHAOS_SEED"
    ]
    return " ".join(["make chaos", f"SEED={plan.seed}", f"ONLY={test}", *counts])


if __name__ == "__main__":
    check_again(Path(sys.argv[1]))
