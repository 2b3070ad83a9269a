"""What came of the demo, from what lies in Kafka: committed predictions, read back and joined with the true arrivals.

Nothing here comes from the worker, so that its own counts can be checked against it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import polars as pl
from aiokafka import AIOKafkaConsumer, TopicPartition

from ..errors import Unreachable

READ_SECONDS = 120.0
LATE_MINUTES = 15.0
TOLERANCE = {
    "log_loss": 1e-6, "log_loss_constant": 1e-6, "log_loss_prior": 1e-6, "accuracy": 1e-9, "accuracy_majority": 1e-9,
    "auc": 1e-3,
}  # fmt: skip
NEVER = 2.0**-24  # probabilities are held within [NEVER, 1 - NEVER], as the worker's own loss does


class Prediction(msgspec.Struct):
    """Of a prediction record, what is needed here."""

    key: str
    prediction: float
    source: str


@dataclass
class Read:
    """Committed records of one topic, in the order of their arrival here."""

    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)  # of the record, ms since the epoch
    arrived: list[float] = field(default_factory=list)  # when a consumer had it in hand, seconds since the epoch

    def predictions(self) -> pl.DataFrame:
        """flight, prediction, source, stamp, arrived: a row for each record."""
        decode = msgspec.json.Decoder(Prediction).decode
        made = [decode(value or b"") for value in self.values]
        return pl.DataFrame(
            {
                "flight": [p.key for p in made],
                "prediction": [p.prediction for p in made],
                "source": [p.source for p in made],
                "stamp": self.stamps,
                "arrived": self.arrived,
            },
            schema={
                "flight": pl.String,
                "prediction": pl.Float64,
                "source": pl.String,
                "stamp": pl.Int64,
                "arrived": pl.Float64,
            },
        )


async def read_topic(broker: str, topic: str, partitions: int, into: Read, enough: Callable[[], bool] | None) -> None:
    """Read a topic from its beginning to where it ends now, or on until `enough()`."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        mine = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(mine)
        ends = await consumer.end_offsets(mine)
        await consumer.seek_to_beginning(*mine)
        until = time.monotonic() + READ_SECONDS
        while not enough() if enough else any([await consumer.position(tp) < ends[tp] for tp in mine]):
            if time.monotonic() > until:
                raise Unreachable(f"topic {topic} of broker {broker} could not be read in {READ_SECONDS:.0f} s")
            fetched = await consumer.getmany(timeout_ms=200)
            now = time.time()
            for records in fetched.values():
                into.values += [record.value for record in records]
                into.keys += [record.key for record in records]
                into.stamps += [record.timestamp for record in records]
                into.arrived += [now] * len(records)
    finally:
        await consumer.stop()


def read_committed(broker: str, topic: str, partitions: int) -> Read:
    """All committed records that a topic holds now. Raises Unreachable when that takes too long."""
    found = Read()
    asyncio.run(read_topic(broker, topic, partitions, found, None))
    return found


class Watcher(threading.Thread):
    """A consumer that reads a topic as it grows, to see when each record can be read, until told to stop."""

    def __init__(self, broker: str, topic: str, partitions: int) -> None:
        super().__init__(name=f"reader of {topic}", daemon=True)
        self.seen = Read()
        self._error: BaseException | None = None
        self._where = broker, topic, partitions
        self._told = threading.Event()

    def run(self) -> None:
        """In the thread."""
        try:
            asyncio.run(read_topic(*self._where, self.seen, self._told.is_set))
        except BaseException as error:
            self._error = error

    def count(self) -> int:
        """Records so far. Raises what ended the reading."""
        if self._error is not None:
            raise self._error
        return len(self.seen.arrived)

    def close(self) -> None:
        """Returns when it has ended."""
        self._told.set()
        self.join(10.0)


@dataclass(frozen=True)
class Outcome:
    """The predictions of the demo beside what really happened.

    joined  a row for each prediction whose flight arrived: time (of departure, seconds), prediction, late, loss,
            landed (which arrival it was, in their order)
    """

    predictions: int
    repeated: int  # records with the source of another
    strangers: int  # predictions for flights that did not depart
    joined: pl.DataFrame
    seconds: float  # from the first prediction in Kafka to the last
    events_per_second: float | None  # None: all came at once

    def figures(self) -> dict[str, float]:
        """Each figure beside its baselines: the best constant and the majority, known in hindsight, and what could have
        been said: the share of late flights so far, and what the flight was that landed before.

        The AUC is exact; the worker's is taken in bins.
        """
        late, p = self.joined["late"].to_numpy(), self.joined["prediction"].to_numpy()
        landed = self.joined.sort("landed")["late"].to_numpy()
        rate = float(late.mean())
        return {
            "log_loss": float(self.joined["loss"].mean()),  # type: ignore[arg-type]
            "log_loss_constant": float(np.mean(constant_loss(late, rate))),
            "log_loss_prior": float(np.mean(prior_loss(landed))),
            "auc": area_under_curve(late, p),
            "accuracy": float(np.mean((p >= 0.5) == late)),
            "accuracy_majority": max(rate, 1.0 - rate),
            "accuracy_no_change": float(np.mean(landed[1:] == landed[:-1])) if len(landed) > 1 else math.nan,
            "late_share": rate,
        }


def join_with_arrivals(read: Read, departures: pl.DataFrame, arrivals: pl.DataFrame) -> Outcome:
    """Join predictions with the arrivals of their flights."""
    made = read.predictions()
    known = made.join(departures.select("flight", "time"), on="flight", how="inner")
    truth = arrivals.select("flight", late=pl.col("arr_delay") > LATE_MINUTES).with_row_index("landed")
    joined = known.unique("flight", keep="first").join(truth, on="flight", how="inner").sort("time", "flight")
    p = pl.col("prediction").clip(NEVER, 1 - NEVER)
    loss = -pl.when("late").then(p.log()).otherwise((-p).log1p())
    seconds, rate = 0.0, None
    if len(made):
        first, last = int(made["stamp"].min()), int(made["stamp"].max())  # type: ignore[arg-type]
        seconds = (last - first) / 1000
        rate = float((made["stamp"] > first).sum()) / seconds if seconds else None
    return Outcome(
        predictions=len(made),
        repeated=len(made) - made["source"].n_unique(),
        strangers=len(made) - len(known),
        joined=joined.select("time", "prediction", "late", "landed", loss=loss),
        seconds=seconds,
        events_per_second=rate,
    )


def constant_loss(late: np.ndarray, rate: float) -> np.ndarray:
    """The log loss, label by label, of saying `rate` each time."""
    rate = min(max(rate, NEVER), 1 - NEVER)
    return np.where(late, -math.log(rate), -math.log1p(-rate))


def prior_loss(late: np.ndarray) -> np.ndarray:
    """The log loss, label by label, of saying the share of late flights so far, with half a flight of each kind before
    the first."""
    seen = np.arange(len(late))
    rate = (np.cumsum(late) - late + 0.5) / (seen + 1)
    return -np.log(np.where(late, rate, 1 - rate))


def area_under_curve(late: np.ndarray, prediction: np.ndarray) -> float:
    """The share of (late, punctual) pairs in which the late flight was given more; a tie counts half."""
    positives = int(late.sum())
    negatives = len(late) - positives
    if not positives or not negatives:
        return math.nan
    ranks = pl.Series(prediction).rank("average").to_numpy()
    return float((ranks[late].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def latency(produced: Read, seen: Read, running_in: float) -> dict[str, float]:
    """How long after its event was due to be produced each prediction could be read, in milliseconds: p50, p99, count.

    produced    the events topic, stamped by the producer
    seen        the predictions topic, as a consumer saw it grow
    running_in  seconds from the first event whose predictions are left out
    """
    due = pl.DataFrame({"flight": [(key or b"").decode() for key in produced.keys], "due": produced.stamps})
    due = due.filter(pl.col("due") >= pl.col("due").min() + running_in * 1000)
    waited = seen.predictions().join(due, on="flight").select(ms=pl.col("arrived") * 1000 - pl.col("due"))["ms"]
    p50, p99 = (waited.quantile(q, "linear") for q in (0.5, 0.99))
    return {"p50": round(p50 or 0.0, 1), "p99": round(p99 or 0.0, 1), "predictions": len(waited)}


def problems(
    outcome: Outcome, dead: int, told: Mapping[str, float], saved: Mapping[str, float], events: int, labels: int
) -> list[str]:
    """What does not add up; empty: nothing.

    dead            dead letters in Kafka
    told, saved     what the worker counted, in its metrics at the end and in its last snapshot
    events, labels  what was sent
    """
    joined = len(outcome.joined)
    expected: list[tuple[str, float, str, float]] = [
        ("departures sent", events, "predictions in Kafka", outcome.predictions),
        ("arrivals sent", labels, "predictions in Kafka that have an arrival", joined),
        ("expected", 0, "predictions with the source of another", outcome.repeated),
        ("expected", 0, "predictions for flights that did not depart", outcome.strangers),
        ("expected", 0, "dead letters in Kafka", dead),
    ]
    for who, count in (("the worker's", told), ("the last snapshot's", saved)):
        if not count:
            return [f"there are no counts where {who} should be"]
        settled = sum(count[name] for name in ("joined", "expired", "pending"))
        met = sum(count[name] for name in ("joined", "orphans", "late", "duplicates", "misplaced", "early"))
        expected += [
            ("departures sent", events, f"{who} events", count["events"]),
            ("departures sent", events, f"{who} predictions", count["predictions"]),
            ("arrivals sent", labels, f"{who} labels", count["labels"]),
            ("predictions in Kafka that have an arrival", joined, f"{who} joined", count["joined"]),
            ("departures without an arrival", events - joined, f"{who} expired", count["expired"]),
            (f"{who} predictions", count["predictions"], f"{who} joined + expired + pending", settled),
            (f"{who} labels", count["labels"], f"{who} joined and all that could not be", met),
            (f"{who} joined", count["joined"], f"{who} examples", count["examples"]),
            ("dead letters in Kafka", dead, f"{who} dead letters", count["dead_letters"]),
        ]
    found = [f"{a}: {int(x):,}, but {b}: {int(y):,}" for a, x, b, y in expected if x != y]
    figures = outcome.figures()
    for name, tolerance in TOLERANCE.items():
        value, theirs = figures[name], told.get(name, math.nan)
        if not abs(value - theirs) <= tolerance:
            found.append(f"{name} of the predictions in Kafka: {value:.6f}, but the worker's: {theirs:.6f}")
    return found
