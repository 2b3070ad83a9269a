"""Reads back all that a chaos run left, and compares it with the plain account of what should be.

    verdict = check(Topics("x.visits", ...), broker, redis_url, file, slots=[0, 1], partitions=4, exact_model=False)
    assert not verdict.problems, verdict

Shares no code with the worker: account.py, learning.py and readback.py know rules and formats from documentation alone.
Only exact.py asks the same engine for the same bits, in a process of its own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from chaos import exact
from chaos.account import COUNTERS, NEVER, Cycle, Input, Join, Raw, Waiting
from chaos.hashes import key_hash, value_hash
from chaos.learning import DECLARED, Learning, State
from chaos.readback import (
    Made,
    Snapshot,
    Topics,
    committed_offsets,
    read_snapshot,
    read_topics,
    settled_ends,
)
from numpy.typing import NDArray

SHOWN = 5  # problems of a kind
CLOSE = 1e-6


@dataclass
class Verdict:
    """What is wrong, one line for each kind, and what was counted and measured."""

    problems: list[str]
    figures: dict[str, Any]


class Problems:
    """Collects problems by kind."""

    def __init__(self) -> None:
        self._found: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, *where: str) -> None:
        self._found[kind] += where

    def lines(self) -> list[str]:
        """One for each kind: what, how many, and the first of them."""
        return [
            f"{kind}: {len(all)}: {'; '.join(all[:SHOWN])}{' ...' if len(all) > SHOWN else ''}"
            for kind, all in self._found.items()
            if all
        ]


def check(
    topics: Topics,
    broker: str,
    redis_url: str,
    file: Path,
    slots: Collection[int],
    partitions: int,
    *,
    exact_model: bool,
) -> Verdict:
    """Compare all that workers left, when they have ended and read everything.

    slots        those whose worker ended by SIGTERM: their last snapshot must hold all they did
    exact_model  whether a run of the engine over the same journal must give the same bits; for a single slot

    Raises TimeoutError when a transaction stays open, ValueError when the beginning of a topic is gone.
    """
    problems, began = Problems(), time.monotonic()
    ends = settled_ends(broker, topics, partitions)
    inputs, made, letters, records = read_topics(broker, topics, ends)
    journal = [tell(offset, body, problems) for offset, body in records]
    read = time.monotonic()
    check_journal(topics, inputs, journal, committed_offsets(broker, topics), problems)
    snapshots: dict[int, Snapshot | None] = {}
    for slot in sorted({told.cycle.slot for told in journal} | set(slots)):
        try:
            snapshots[slot] = read_snapshot(redis_url, topics, slot)
        except ValueError as error:
            problems.add("a snapshot is not whole", str(error))
            snapshots[slot] = None
    for slot in slots:
        check_last(slot, journal, snapshots[slot], problems)
    with ExitStack() as beside:
        engine = None
        if exact_model:
            (slot,) = slots
            held, cycles = snapshots[slot], [told.cycle for told in journal]
            if held is not None:  # else it was said already
                engine = beside.enter_context(exact.beside(broker, topics, ends, file, held, made, cycles))
        join, learning, stood = account_for(inputs, partitions, journal, snapshots)
        check_learned(topics, join, problems)
        check_dead_letters(topics, inputs, letters, problems)
        prediction_error = check_predictions(topics, join, learning, made, problems)
        model_error = 0.0
        for slot, snapshot in snapshots.items():
            if snapshot is not None and slot not in stood:
                place = f"slot {slot}, version {snapshot.version} stands at journal@{snapshot.token}"
                problems.add("a snapshot of no cycle", place)
        for slot, then in stood.items():
            model_error = max(model_error, check_snapshot(topics, slot, then, learning, problems))
        accounted = time.monotonic()
        if engine is not None:
            problems.add("not bit for bit", *exact.differences(engine))
    totals = Counter[str]()
    for counts in join.counts.values():
        totals.update(counts)
    figures = {
        **totals,
        "predictions_read": sum(len(of.offset) for of in made.values()),
        "dead_letters_read": sum(map(len, letters.values())),
        "cycles": len(journal),
        "examples_by_slot": {slot: counts["examples"] for slot, counts in sorted(join.counts.items())},
        "prediction_error": prediction_error,
        "model_error": model_error,
        "seconds_reading": round(read - began, 1),
        "seconds_accounting": round(accounted - read, 1),
        "seconds_checking": round(time.monotonic() - began, 1),
    }
    return Verdict(problems.lines(), figures)


class Told(NamedTuple):
    """A record of the journal, and what it says of the partitions that its slot owns."""

    cycle: Cycle
    owned: list[int] | None  # None: as before
    adopted: list[int]


def tell(offset: int, body: dict[str, Any], problems: Problems) -> Told:
    """Read a record of the journal; what no chaos should bring about is a problem."""
    cycle = Cycle(offset, body["slot"], body["cycle"], [(r, p, a, b) for r, p, a, b in body["pieces"]])
    where = f"slot {cycle.slot}, cycle {cycle.number}"
    for unwanted in ("stop", "poison", "rollback", "disowned"):
        if body.get(unwanted):
            problems.add(f"`{unwanted}` in the journal", f"{where}: {body[unwanted]}")
    return Told(cycle, body.get("owned"), body.get("adopted") or [])


def check_journal(
    topics: Topics,
    inputs: dict[tuple[str, int], Input],
    journal: Sequence[Told],
    committed: dict[tuple[str, int], tuple[int, str]],
    problems: Problems,
) -> None:
    """Pieces follow one another to the end of what was written, cycles are numbered, owners hand over."""
    reached = dict.fromkeys(inputs, 0)
    numbers: dict[int, int] = {}
    owned: dict[int, list[int]] = {}
    holders = Holders()
    for told in journal:
        (at, slot, number, pieces), owns, _ = told
        where = f"slot {slot}, cycle {number}, journal@{at}"
        if number != numbers.get(slot, 0):
            problems.add("cycles of a slot are not numbered on", f"{where} follows cycle {numbers.get(slot, 0) - 1}")
        numbers[slot] = number + 1
        if owns is not None:
            owned[slot] = owns
        for role, p, start, next in pieces:
            piece = f"{topics.of(role)}-{p}@{start} to {next}"
            if start != reached[role, p]:
                what = "a gap" if start > reached[role, p] else "an overlap"
                problems.add(f"{what} in the journal", f"{piece} follows {reached[role, p]}: {where}")
            if p not in owned.get(slot, [p]):
                problems.add("a slot worked on a partition that it does not own", f"{piece}: {where}")
            if slot not in holders.of(p, slot):
                had = ", ".join(map(str, holders.of(p, slot)))
                problems.add("a slot worked on a partition without its state", f"{piece}: {where}; {had} had it")
            reached[role, p] = max(next, reached[role, p])
        holders.hear(told)
    for (role, p), rows in inputs.items():
        offset, metadata = committed.get((role, p), (0, ""))
        name = f"{topics.of(role)}-{p}"
        if not reached[role, p] == offset == rows.end:
            ends = f"the journal ends at {reached[role, p]}, the group at {offset}, the topic at {rows.end}"
            problems.add("not read to the end", f"{name}: {ends}")
        if owned and offset and metadata not in map(str, holders.of(p, 0)):
            had = ", ".join(map(str, holders.of(p, 0)))
            problems.add("offsets name another slot", f"{name}: {metadata!r}, {had} had it last")


class Holders:
    """Which slots hold the state of a partition: who worked on it last, and who has adopted it since."""

    def __init__(self) -> None:
        self._of: dict[int, set[int]] = {}

    def hear(self, told: Told) -> None:
        for p in told.adopted:
            self._of.setdefault(p, set()).add(told.cycle.slot)
        for _, p, _, _ in told.cycle.pieces:
            self._of[p] = {told.cycle.slot}

    def of(self, partition: int, nobody: int) -> set[int]:
        """The slots; {nobody} while none has worked on it."""
        return self._of.get(partition, {nobody})


def check_last(slot: int, journal: Sequence[Told], snapshot: Snapshot | None, problems: Problems) -> None:
    """The last snapshot of a slot that ended in peace holds all that it did."""
    last = max((told.cycle.at for told in journal if told.cycle.slot == slot and told.cycle.pieces), default=None)
    if last is not None and (snapshot is None or snapshot.token < last):
        held = "there is none" if snapshot is None else f"version {snapshot.version} stands at journal@{snapshot.token}"
        problems.add("the last snapshot of a slot lacks cycles", f"slot {slot} ended at journal@{last}, {held}")


class Then(NamedTuple):
    """The account of a slot at the moment of its last snapshot; done: how many things the join had found by then."""

    snapshot: Snapshot
    done: int
    counts: dict[str, int]
    waiting: dict[int, Waiting]
    reached: dict[tuple[str, int], int]
    state: State | None


def account_for(
    inputs: dict[tuple[str, int], Input],
    partitions: int,
    journal: Sequence[Told],
    snapshots: dict[int, Snapshot | None],
) -> tuple[Join, Learning, dict[int, Then]]:
    """The account of the whole journal, and how things stood for each slot when its last snapshot was taken."""
    join, holders = Join(inputs, partitions), Holders()
    reached: dict[tuple[str, int], int] = {}
    stood: dict[int, Then] = {}
    for told in journal:
        cycle, slot = told.cycle, told.cycle.slot
        join.follow(cycle)
        holders.hear(told)
        reached |= {(role, p): next for role, p, _, next in cycle.pieces}
        snapshot = snapshots[slot]
        if snapshot is not None and snapshot.token == cycle.at:
            mine = [p for p in snapshot.partitions if slot in holders.of(p, slot)]
            offsets = {(role, p): at for (role, p), at in reached.items() if p in mine}
            waiting = {p: join.waiting(p) for p in mine}
            stood[slot] = Then(snapshot, len(join.slot), dict(join.counts[slot]), waiting, offsets, None)
    learning = Learning(join)
    for slot, then in sorted(stood.items(), key=lambda item: item[1].done):
        learning.advance(then.done)
        stood[slot] = then._replace(state=learning.of(slot))
    learning.advance()
    return join, learning, stood


def check_learned(topics: Topics, join: Join, problems: Problems) -> None:
    """Every event whose label cannot have been missed was learned with it."""
    for event, label in join.must_be_learned().items():
        if join.learned[event] != label:
            problems.add("a labelled event was not learned", f"{name_of(topics, join, event)}")


def name_of(topics: Topics, join: Join, event: int) -> str:
    """topic-partition@offset"""
    p = max(p for p, part in enumerate(join.partitions) if part.event_base <= event)
    part = join.partitions[p]
    return f"{topics.events}-{p}@{part.events.offset[event - part.event_base]}"


def check_predictions(
    topics: Topics, join: Join, learning: Learning, made: dict[int, Made], problems: Problems
) -> float:
    """One for each event, none for others, in the right place with the right value; returns the largest error."""
    worst = 0.0
    for p, part in enumerate(join.partitions):
        of, events = made[p], part.events
        name = f"{topics.events}-{p}"
        problems.add("a record that is no prediction for an event of its partition", *of.strange)
        offset = np.array(of.offset, np.int64)
        unique, first, count = np.unique(offset, return_index=True, return_counts=True)
        for i in np.flatnonzero(count > 1).tolist():
            problems.add("more than one prediction", f"{name}@{unique[i]}: {count[i]} predictions")
        for missing in np.setdiff1d(events.offset, unique).tolist():
            problems.add("no prediction", f"{name}@{missing}")
        for surplus in np.setdiff1d(unique, events.offset).tolist():
            problems.add("a prediction for no valid event", f"{name}@{surplus}")
        _, event, at = np.intersect1d(events.offset, unique, assume_unique=True, return_indices=True)
        value = np.array(of.value)[first[at]]
        expected = learning.seen.prediction[part.event_base + event].astype(np.float64)
        error = np.abs(value - expected) / np.maximum(expected, CLOSE)
        worst = max(worst, float(error.max(initial=0.0)))
        for i in np.flatnonzero(~(error <= CLOSE)).tolist():
            place = f"{name}@{events.offset[event[i]]}"
            problems.add("a prediction of another value", f"{place}: {value[i]}, the account says {expected[i]:.9g}")
        when = np.array(of.time)[first[at]]
        for i in np.flatnonzero(np.abs(when - events.time[event] / 1e6) > 1e-6).tolist():
            problems.add("a prediction of another time", f"{name}@{events.offset[event[i]]}: {when[i]}")
        for i, k in zip(event.tolist(), first[at].tolist()):
            if of.key[k] != events.key[i] or of.record_key[k] != events.record_key[i]:
                keys = f"{of.key[k]!r} under {of.record_key[k]!r}"
                problems.add("a prediction under another key", f"{name}@{events.offset[i]}: {keys}")
    return worst


def check_dead_letters(
    topics: Topics, inputs: dict[tuple[str, int], Input], letters: dict[int, list[Raw]], problems: Problems
) -> None:
    """One for each bad record, as it came, none for others."""
    bad = {(topics.of(role), p, raw.offset): raw for (role, p), rows in inputs.items() for raw in rows.bad}
    seen: Counter[tuple[str, int, int]] = Counter()
    for p, letter in ((p, letter) for p, all in letters.items() for letter in all):
        about = {name: value.decode() for name, value in letter.headers if name.startswith("headrace-")}
        try:
            of = about["headrace-topic"], int(about["headrace-partition"]), int(about["headrace-offset"])
        except (KeyError, ValueError):
            problems.add(
                "a dead letter that does not say of what", f"{topics.dead_letters}-{p}@{letter.offset}: {about}"
            )
            continue
        seen[of] += 1
        record, place = bad.get(of), f"{of[0]}-{of[1]}@{of[2]}"
        if record is None:
            problems.add("a dead letter for a record that is not bad", f"{place}: {about.get('headrace-reason')}")
        elif (letter.key, letter.value, p) != (record.key, record.value, of[1]):
            problems.add("a dead letter that is not as its record was", place)
    problems.add("more than one dead letter", *(f"{t}-{p}@{at}: {n}" for (t, p, at), n in seen.items() if n > 1))
    problems.add("no dead letter", *(f"{t}-{p}@{at}" for t, p, at in bad if (t, p, at) not in seen))


@dataclass
class Comparison:
    """Compares what a snapshot holds with the account, place by place."""

    what: str
    problems: Problems
    worst: float = field(default=0.0)

    def close(self, name: str, got: Any, expected: Any) -> None:
        """Equal to CLOSE, relative to the larger of the two, or 1 where both are small."""
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        if got.shape != expected.shape:
            self.problems.add("the model is not the account's", f"{self.what} {name}: {got.shape} for {expected.shape}")
            return
        size = np.maximum(np.maximum(np.abs(got), np.abs(expected)), 1.0)
        both_missing = np.isnan(got) & np.isnan(expected)
        error = np.where(both_missing, 0.0, np.abs(got - expected) / np.where(both_missing, 1.0, size))
        self.worst = max(self.worst, float(np.nan_to_num(error, nan=np.inf).max(initial=0.0)))
        off = np.argwhere(~(error <= CLOSE))
        if len(off):
            at = tuple(off[0].tolist())
            told = f"{self.what} {name}{list(at)} is {got[at]}, the account says {expected[at]}"
            self.problems.add("the model is not the account's", f"{told} ({len(off)} of {got.size} differ)")

    def equal(self, kind: str, name: str, got: Any, expected: Any) -> None:
        if got != expected:
            self.problems.add(kind, f"{self.what} {name}: {short(got)}, the account says {short(expected)}")


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]} ..."


def check_snapshot(topics: Topics, slot: int, then: Then, learning: Learning, problems: Problems) -> float:
    """Model, aggregates, counts and what waits, as of the snapshot's last cycle; returns the largest error."""
    snapshot = then.snapshot
    compare = Comparison(f"slot {slot}, snapshot {snapshot.version}:", problems)
    arrays, meta, state = snapshot.arrays, snapshot.meta, then.state
    assert state is not None
    declared = {
        "features": [feature["name"] for feature in meta["declaration"]["features"]],
        "model": meta["declaration"]["model"],
    }
    compare.equal("the account is of another pipeline", "declaration", declared, DECLARED)

    for i, name in enumerate(("count", "mean", "variance")):
        compare.close(f"scaler {name}", arrays[f"shared/model/0/{name}"], state.moments[:, i])
    for name in ("columns", "missing", "table"):
        compare.close(name, arrays[f"shared/model/1/{name}"], getattr(state, name))
    compare.close("bias", arrays["shared/model/1/bias"], state.bias[None])
    for i, name in enumerate(("base_mean", "base_count")):
        compare.close(name, arrays[f"shared/model/1/{name}"], state.base[i : i + 1])
    compare.close("clock", arrays["shared/clock"], [state.clock])
    check_aggregates(compare, arrays, state, learning)

    metrics = meta["metrics"]
    labels, loss, correct = state.score.tolist()
    if labels:
        compare.close("log loss", metrics["log_loss"], loss / labels)
        compare.close("accuracy", metrics["accuracy"], correct / labels)
    for name in COUNTERS:
        compare.equal("counts are not the account's", name, metrics[name], then.counts[name])
    offsets = {(role, int(p)): at for role, of in meta["offsets"].items() for p, at in of.items()}
    for of, at in then.reached.items():
        compare.equal("a snapshot of other offsets", f"{topics.of(of[0])}-{of[1]}", offsets.get(of), at)
    for p, waiting in then.waiting.items():
        own = {name.split("/", 2)[2]: a for name, a in arrays.items() if name.startswith(f"partition/{p}/")}
        check_waiting(compare, p, own, waiting, learning)
    return compare.worst


def check_aggregates(compare: Comparison, arrays: dict[str, NDArray[Any]], state: State, learning: Learning) -> None:
    (name,) = [name for name in arrays if name.startswith("shared/group/") and name.endswith("/keys")]
    row = {key: i for i, key in enumerate(arrays[name].tolist())}
    seen = np.flatnonzero((state.pane != NEVER).any((0, 2))).tolist()
    hashes = [value_hash("site", learning.sites[j]) for j in seen]
    compare.equal("the model is not the account's", "sites", sorted(row), sorted(hashes))
    if set(row) != set(hashes):
        return
    rows = [row[key] for key in hashes]
    for a, feature in enumerate(DECLARED["features"][3:]):
        for part, own in (("pane", state.pane), ("n", state.rows), ("s", state.total)):
            compare.close(f"{feature} {part}", arrays[f"shared/aggregate/{feature}/{part}"][rows], own[a, seen])


def check_waiting(
    compare: Comparison, p: int, own: dict[str, NDArray[Any]], waiting: Waiting, learning: Learning
) -> None:
    """Predictions that wait for their label, with features and order; labels that wait for their event; clocks."""
    part, what = learning.join.partitions[p], "what waits is not the account's"
    keys = [key_hash(part.events.key[event - part.event_base]) for event in waiting.pending]
    compare.equal(what, f"pending of {p}", list(map(tuple, own["pending/key"].tolist())), keys)
    compare.equal(what, f"settled of {p}", own["pending/settled"].astype(bool).tolist(), waiting.settled)
    early = [key_hash(part.labels.key[label - part.label_base]) for label in waiting.early]
    compare.equal(what, f"early labels of {p}", list(map(tuple, own["early/key"].tolist())), early)
    compare.equal(what, f"early settled of {p}", own["early/settled"].astype(bool).tolist(), waiting.early_settled)
    compare.equal(what, f"clocks of {p}", tuple(own["clocks"][:2].tolist()), waiting.clocks)
    if len(own["pending/key"]) == len(keys):
        compare.close(f"features that wait in {p}", own["pending/numeric"], learning.seen.features[waiting.pending])
        made = learning.seen.prediction[waiting.pending]
        compare.close(f"predictions that wait in {p}", own["pending/prediction"][:, 0], made)
