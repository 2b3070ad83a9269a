"""The checker finds nothing wrong with a clean run, and names every damage with its place."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import redis
from chaos import load
from chaos.account import COUNTERS, Cycle, Input, Join, Raw
from chaos.checker import Problems, check, check_journal, check_learned, tell
from chaos.learning import Learning
from chaos.readback import Topics, consumer, raw, records, settled_ends
from chaos.shop import PARTITIONS, T0, write_pipeline
from kafka import KafkaProducer

from headrace.connectors.embedded import free_port
from headrace.connectors.topics import committed_offsets, create_topics, end_offsets
from headrace.stream.decode import Decoder
from headrace.stream.engine import Engine
from headrace.stream.load import load_pipeline
from headrace.stream.slices import Record, Slice

EVENTS = 3_000
PATIENCE_SECONDS = 90.0
NOW_MS = 1_800_000_000_000


class Run:
    """One worker's work on 3,000 events, the labels that belong to them and those that do not, in 2.5 hours."""

    def __init__(self, kafka, redis_url, folder):
        self.kafka, self.redis_url = kafka, redis_url
        name = f"checked-{os.urandom(3).hex()}"
        self.file = write_pipeline(folder, name)
        self.topics = Topics(
            events=f"{name}.visits", labels=f"{name}.sales", predictions=f"{name}.scores",
            dead_letters=f"{name}.scores.dead-letters", journal=f"{name}.journal", group=f"headrace.{name}",
        )  # fmt: skip
        self.inputs = {self.topics.events: PARTITIONS, self.topics.labels: PARTITIONS}
        create_topics(kafka, self.inputs)

        stream = load.Stream(seed=5, size=500)
        self.blocks = [stream.next() for _ in range(EVENTS // 500)]
        self.blocks += [([], sales) for sales in stream.rest()]

    def produce(self, blocks):
        with closing(KafkaProducer(bootstrap_servers=self.kafka)) as producer:
            for block in blocks:
                for topic, messages in zip((self.topics.events, self.topics.labels), block):
                    for key, value in messages:
                        producer.send(topic, value, key=key, partition=crc32(key) % PARTITIONS)
            producer.flush()

    def work(self):
        """One worker, until it has committed all there is, and SIGTERM.

        The second half comes when the first is committed: there are two cycles at least.
        """
        half = EVENTS // 500 // 2
        self.produce(self.blocks[:half])
        command = [Path(sys.executable).parent / "headrace", "run", self.file, "--web-port", str(free_port())]
        settings = {"HEADRACE_BROKER": self.kafka, "HEADRACE_REDIS": self.redis_url, "HEADRACE_SLOT": "0"}
        log = self.file.with_suffix(".log")
        with log.open("wb") as out:
            worker = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | settings)
        try:
            self.wait_until_committed(worker, log)
            self.produce(self.blocks[half:])
            self.wait_until_committed(worker, log)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE_SECONDS) == 0, log.read_text()
        finally:
            worker.kill()
            worker.wait()

    def wait_until_committed(self, worker, log):
        ends = end_offsets(self.kafka, [(topic, p) for topic, count in self.inputs.items() for p in range(count)])
        until = time.monotonic() + PATIENCE_SECONDS
        while committed_offsets(self.kafka, self.topics.group) != ends:
            assert worker.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)

    def check(self, redis_url=None, exact=False, **topics):
        """The verdict, with some of the topics, or Redis, replaced by damaged ones."""
        topics = self.topics._replace(**topics)
        return check(topics, self.kafka, redis_url or self.redis_url, self.file, [0], PARTITIONS, exact_model=exact)

    def read(self, role):
        """All records of a topic, by partition."""
        topic = getattr(self.topics, role)
        ends = settled_ends(self.kafka, self.topics, PARTITIONS)
        with consumer(self.kafka) as reader:
            return {
                p: [raw(r) for batch in records(reader, topic, p, end) for r in batch]
                for (name, p), end in ends.items()
                if name == topic
            }

    def write(self, role, rows):
        """Records by partition to a topic of their own; returns its name. Those of the journal keep their offsets."""
        topic, kept = f"{getattr(self.topics, role)}-{os.urandom(3).hex()}", role == "journal"
        create_topics(self.kafka, {topic: len(rows)})
        with closing(KafkaProducer(bootstrap_servers=self.kafka, transactional_id=topic if kept else None)) as producer:
            if kept:
                producer.init_transactions()
            for p, row in ((p, row) for p, of in rows.items() for row in of):
                if kept:
                    producer.begin_transaction()
                producer.send(topic, row.value, key=row.key, partition=p, headers=list(row.headers))
                if kept:
                    producer.commit_transaction()
        return topic


@pytest.fixture(scope="module")
def run(kafka, redis_url, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "STEP_SECONDS", 3.0)
        run = Run(kafka, redis_url, tmp_path_factory.mktemp("run"))
        run.work()
    return run


def found(problems, kind):
    """What was found of one kind: how many, and where."""
    (line,) = [line for line in problems if line.startswith(f"{kind}: ")] or [f"{kind}: 0: "]
    count, _, where = line.removeprefix(f"{kind}: ").partition(": ")
    return int(count), where


def test_clean_run_has_no_problems(run):
    verdict = run.check(exact=True)
    assert verdict.problems == []
    figures = verdict.figures
    bad = figures["bad_events"]
    assert figures["events"] == figures["predictions_read"] == EVENTS - bad
    assert figures["dead_letters"] == figures["dead_letters_read"] == bad + figures["bad_labels"]
    assert min(figures[name] for name in ("bad_labels", "expired", "late", "duplicates", "orphans", "repeated")) > 0
    assert 0 < figures["prediction_error"] < 1e-7  # printed with as few digits as tell a float32
    assert figures["model_error"] < 1e-9


def test_every_damage_to_predictions_is_named_with_its_place(run):
    made = run.read("predictions")
    twice, lost, other, elsewhere, renamed, surplus, garbled, moved = made[1][10:18]
    source = {r: json.loads(r.value)["source"].rpartition("-") for r in made[1]}
    events = run.topics.events

    def place(record):
        return f"{events}-1@{source[record][2]}"

    made[1] += [
        twice,
        other._replace(value=with_value(other, lambda body: body | {"prediction": body["prediction"] * (1 + 1e-5)})),
        renamed._replace(key=b"another"),
        surplus._replace(value=with_value(surplus, lambda body: body | {"source": f"{events}-1-999999"})),
        garbled._replace(value=b'{"prediction": NaN}'),
        moved._replace(value=with_value(moved, lambda body: body | {"time": body["time"] + 1})),
    ]
    gone = (lost, other, elsewhere, renamed, surplus, garbled, moved)
    made[1] = [record for record in made[1] if record not in gone]
    made[2].append(elsewhere)
    problems = run.check(predictions=run.write("predictions", made)).problems
    assert found(problems, "more than one prediction") == (1, f"{place(twice)}: 2 predictions")
    missing = sorted([lost, elsewhere, surplus, garbled], key=lambda record: int(source[record][2]))
    assert found(problems, "no prediction") == (4, "; ".join(map(place, missing)))
    count, where = found(problems, "a prediction of another value")
    assert count == 1 and where.startswith(place(other))
    count, where = found(problems, "a prediction under another key")
    assert count == 1 and where.startswith(place(renamed)) and "b'another'" in where
    assert found(problems, "a prediction for no valid event") == (1, f"{events}-1@999999")
    count, where = found(problems, "a record that is no prediction for an event of its partition")
    assert count == 2 and f"made for {events}-1-{source[elsewhere][2]}" in where
    count, where = found(problems, "a prediction of another time")
    assert count == 1 and where.startswith(place(moved))
    assert len(problems) == 7


def with_value(record, change):
    return json.dumps(change(json.loads(record.value))).encode()


def test_every_damage_to_dead_letters_is_named_with_its_place(run):
    letters = run.read("dead_letters")
    p = max(letters, key=lambda p: len(letters[p]))
    lost, twice, altered = letters[p][:3]
    headers = {**dict(twice.headers), "headrace-offset": b"999999"}
    surplus = twice._replace(headers=tuple(headers.items()))
    letters[p][:3] = [twice, twice, altered._replace(value=b"another"), surplus, twice._replace(headers=())]
    topic = run.write("dead_letters", letters)
    problems = run.check(dead_letters=topic).problems

    def place(letter):
        about = dict(letter.headers)
        topic, number, offset = (about[f"headrace-{name}"].decode() for name in ("topic", "partition", "offset"))
        return f"{topic}-{number}@{offset}"

    assert sorted(problems) == sorted(
        [
            f"no dead letter: 1: {place(lost)}",
            f"more than one dead letter: 1: {place(twice)}: 2",
            f"a dead letter that is not as its record was: 1: {place(altered)}",
            f"a dead letter for a record that is not bad: 1: {place(surplus)}: {headers['headrace-reason'].decode()}",
            f"a dead letter that does not say of what: 1: {topic}-{p}@4: {{}}",
        ]
    )


def test_journal_that_tells_labels_twice_is_not_what_the_worker_did(run):
    """As if a cycle had been committed and then done again: an overlap, and the counts do not agree."""
    journal, piece = run.read("journal"), []

    def again(pieces):
        piece.extend(next(piece for piece in pieces if piece[0] == "labels"))
        return [*pieces, piece]

    change_first(journal, again)
    problems = run.check(journal=run.write("journal", journal)).problems
    count, where = found(problems, "an overlap in the journal")
    assert count == 1 and where.startswith(f"{run.topics.labels}-{piece[1]}@{piece[2]} to {piece[3]}")
    count, where = found(problems, "counts are not the account's")
    assert count > 0 and "labels" in where


def test_labels_that_the_journal_leaves_out_are_named(run):
    journal = run.read("journal")
    change_first(journal, without_first_labels)
    problems = run.check(journal=run.write("journal", journal)).problems
    for kind in ("a gap in the journal", "a labelled event was not learned", "the model is not the account's"):
        assert found(problems, kind)[0] > 0, problems


def without_first_labels(pieces):
    at = next(at for at, piece in enumerate(pieces) if piece[0] == "labels")
    return pieces[:at] + pieces[at + 1 :]


def change_first(journal, change):
    """Change the pieces of the first cycle that had labels."""
    bodies = [json.loads(record.value) for record in journal[0]]
    at = next(at for at, body in enumerate(bodies) if any(piece[0] == "labels" for piece in body["pieces"]))
    value = json.dumps(bodies[at] | {"pieces": change(bodies[at]["pieces"])}).encode()
    journal[0][at] = journal[0][at]._replace(value=value)


@pytest.fixture
def forge(run, redis_url):
    """forge(change) -> the url of a Redis with the run's last snapshot, changed: change(manifest, arrays)."""
    url = redis_url.removesuffix("/0") + "/7"
    name = f"headrace:{{{run.topics.group.removeprefix('headrace.')}}}:0"

    def forge(change):
        with redis.Redis.from_url(redis_url) as store, redis.Redis.from_url(url) as forged:
            pointer = store.hgetall(f"{name}:recovery")
            manifest = json.loads(store.hget(f"{name}:manifest:{int(pointer[b'version'])}", "body"))
            entries = {entry["name"]: entry for entry in manifest["arrays"]}
            arrays = {}
            for entry in manifest["arrays"]:
                chunk = b"".join(store.get(f"{name}:chunk:{digest}") for digest, _ in entry["chunks"])
                arrays[entry["name"]] = np.frombuffer(chunk, entry["dtype"]).reshape(entry["shape"]).copy()
            change(manifest, arrays)
            for of, array in arrays.items():
                digest = hashlib.sha256(array.tobytes()).hexdigest()
                entries[of]["chunks"] = [[digest, array.nbytes]] if array.nbytes else []
                forged.set(f"{name}:chunk:{digest}", array.tobytes())
            body = json.dumps(manifest).encode()
            pointer[b"manifest"] = hashlib.sha256(body).hexdigest().encode()
            forged.hset(f"{name}:manifest:{int(pointer[b'version'])}", "body", body)
            forged.hset(f"{name}:recovery", mapping=pointer)
        return url

    yield forge
    with redis.Redis.from_url(url) as forged:
        forged.flushdb()


def test_model_of_which_one_number_is_another_is_named(run, forge):
    def change(manifest, arrays):
        arrays["shared/model/1/columns"][3, 0] += 2e-6 * max(1.0, abs(arrays["shared/model/1/columns"][3, 0]))

    (problem,) = run.check(redis_url=forge(change)).problems
    assert problem.startswith("the model is not the account's: 1: slot 0, ") and "columns[3, 0]" in problem


def test_model_of_which_one_bit_is_another_is_not_bit_for_bit(run, forge):
    def change(manifest, arrays):
        table = arrays["shared/model/1/table"]
        used = np.flatnonzero(table[:, 1])[0]
        table[used, 1] = np.nextafter(table[used, 1], np.inf)

    assert run.check(redis_url=forge(change), exact=True).problems == ["not bit for bit: 1: array shared/model/1/table"]


def test_whatever_else_a_snapshot_has_of_its_own_is_named(run, forge):
    def change(manifest, arrays):
        manifest["meta"]["metrics"]["joined"] += 1
        manifest["meta"]["offsets"]["labels"]["3"] -= 1
        manifest["meta"]["declaration"]["model"]["parts"][1]["bits"] = 11
        arrays["partition/2/pending/settled"][-1] ^= 1

    problems = run.check(redis_url=forge(change)).problems
    for kind, what in [
        ("counts are not the account's", "joined: "),
        ("a snapshot of other offsets", f"{run.topics.labels}-3: "),
        ("the account is of another pipeline", "declaration: "),
        ("what waits is not the account's", "settled of 2: "),
    ]:
        count, where = found(problems, kind)
        assert count == 1 and what in where


def test_last_snapshot_that_lacks_cycles_is_named(run, forge):
    first = run.read("journal")[0][0].offset

    def change(manifest, arrays):
        manifest["token"] = first

    problems = run.check(redis_url=forge(change)).problems
    assert found(problems, "the last snapshot of a slot lacks cycles")[0] == 1
    assert found(problems, "counts are not the account's")[0] > 0


def test_snapshot_that_stands_at_no_cycle_is_named(run, forge):
    """Nothing it holds could be compared with the account."""

    def change(manifest, arrays):
        manifest["token"] += 1

    problems = run.check(redis_url=forge(change)).problems
    count, where = found(problems, "a snapshot of no cycle")
    assert count == 1 and where.startswith("slot 0, version ")


def test_snapshot_that_was_altered_is_not_whole(run, forge):
    url = forge(lambda manifest, arrays: None)
    with redis.Redis.from_url(url) as store:
        chunk = next(iter(store.scan_iter("*:chunk:*")))
        store.append(chunk, b"x")
    problems = run.check(redis_url=url).problems
    assert found(problems, "a snapshot is not whole")[0] == 1


def test_account_of_two_slots_follows_a_partition_that_moves_between_them(tmp_path, monkeypatch):
    """Two engines at work on two partitions; the second partition moves to and fro, with what waits there."""
    monkeypatch.setattr(load, "STEP_SECONDS", 3.0)
    stream = load.Stream(seed=6, size=100)
    pipeline = load_pipeline(str(write_pipeline(tmp_path, "moving")))
    decoders = {role: Decoder(pipeline, role) for role in ("events", "labels")}
    engines = [Engine(pipeline), Engine(pipeline)]
    engines[0].own(0)
    engines[0].own(1)
    owner, inputs, cycles = 0, {(role, p): Input(role, 0) for role in ("events", "labels") for p in (0, 1)}, []
    predictions = {0: [], 1: []}
    for block in range(40):
        if block % 7 == 6:
            engines[1 - owner].load_partition(1, engines[owner].state().partitions[1])
            engines[owner].disown(1)
            owner = 1 - owner
        for role, messages in zip(("events", "labels"), stream.next()):
            for p, slot in ((0, 0), (1, owner)):
                rows = inputs[role, p]
                mine = [message for message in messages if crc32(message[0]) % 2 == p]
                start, rows.end = rows.end, rows.end + len(mine)
                raws = [Raw(at, NOW_MS, key, value) for at, (key, value) in enumerate(mine, start)]
                rows.add(raws)
                cycles.append(Cycle(len(cycles), slot, 0, [(role, p, start, rows.end)]))
                batch = decoders[role].decode(Slice(role, p, start, rows.end, [Record(*raw) for raw in raws]))
                done = engines[slot].process(batch, start, rows.end)
                if done.predicted is not None:
                    predictions[p] += done.predicted.out[:, 0].tolist()
    join = Join(inputs, 2)
    for cycle in cycles:
        join.follow(cycle)
    learning = Learning(join)
    learning.advance()
    np.testing.assert_allclose(learning.seen.prediction, predictions[0] + predictions[1], rtol=1e-6)
    for slot, engine in enumerate(engines):
        engine.end_cycle()
        counters, of = engine.counters(), learning.of(slot)
        assert {name: counters[name] for name in COUNTERS} == join.counts[slot]
        assert counters["joined"] > 100
        assert counters["expired"] > 0
        for name in ("columns", "missing", "table"):
            np.testing.assert_allclose(engine.arrays[f"model/1/{name}"], getattr(of, name), rtol=1e-9, atol=1e-12)


# --- the journal alone


def told(*bodies):
    """Problems of a journal over one partition with 10 events and 6 labels, whose offsets name slot `by`."""
    inputs = {("events", 0): Input("events", 10), ("labels", 0): Input("labels", 6)}
    topics = Topics("visits", "sales", "", "", "", "")
    problems, defaults = Problems(), {"stop": None, "owned": None, "adopted": []}
    journal = [tell(at, defaults | body, problems) for at, body in enumerate(bodies)]
    by = str(journal[-1].cycle.slot)
    committed = {("events", 0): (10, by), ("labels", 0): (6, by)}
    check_journal(topics, inputs, journal, committed, problems)
    return problems.lines()


def cycle(slot, number, *pieces, **more):
    return {"slot": slot, "cycle": number, "pieces": pieces, **more}


ALL = (("events", 0, 0, 10), ("labels", 0, 0, 6))


def test_journal_without_holes_has_no_problems():
    assert told(cycle(0, 0, ALL[0], owned=[0]), cycle(0, 1, ALL[1])) == []


def test_partition_may_move_when_its_state_is_adopted():
    first = cycle(0, 0, ("events", 0, 0, 4), owned=[0])
    rest = cycle(1, 1, ("events", 0, 4, 10), ALL[1])
    assert told(first, cycle(1, 0, owned=[0], adopted=[0]), rest) == []
    assert told(first, cycle(1, 0, owned=[0]), rest) == [
        "a slot worked on a partition without its state: 2: visits-0@4 to 10: slot 1, cycle 1, journal@2; 0 had it; "
        "sales-0@0 to 6: slot 1, cycle 1, journal@2; 0 had it"
    ]


def test_partition_comes_back_without_adoption_where_nobody_has_worked_on_it_since():
    first, adopted = cycle(0, 0, ("events", 0, 0, 4), owned=[0]), cycle(1, 0, owned=[0], adopted=[0])
    assert told(first, adopted, cycle(0, 1, ("events", 0, 4, 10), ALL[1], owned=[0])) == []


def test_partition_that_another_has_worked_on_since_needs_adoption_again():
    first, adopted = cycle(0, 0, ("events", 0, 0, 4), owned=[0]), cycle(1, 0, owned=[0], adopted=[0])
    (line,) = told(first, adopted, cycle(1, 1, ("events", 0, 4, 10)), cycle(0, 1, ALL[1]))
    assert line.startswith("a slot worked on a partition without its state: 1: sales-0@0 to 6")


@pytest.mark.parametrize(
    ("journal", "problem"),
    [
        ([cycle(0, 0, *ALL), cycle(0, 2)], "cycles of a slot are not numbered on: 1: slot 0, cycle 2, journal@1"),
        ([cycle(0, 0, ("events", 0, 1, 10), ALL[1])], "a gap in the journal: 1: visits-0@1 to 10 follows 0"),
        ([cycle(0, 0, *ALL), cycle(0, 1, ALL[1])], "an overlap in the journal: 1: sales-0@0 to 6 follows 6"),
        ([cycle(0, 0, ALL[0], ("labels", 0, 0, 5))], "not read to the end: 1: sales-0: the journal ends at 5"),
        ([cycle(0, 0, *ALL, owned=[])], "a slot worked on a partition that it does not own: 2: visits-0@0 to 10"),
        ([cycle(0, 0, *ALL, owned=[0]), cycle(1, 0)], "offsets name another slot: 2: visits-0: '1', 0 had it last"),
        ([cycle(0, 0, *ALL, stop="too many bad")], "`stop` in the journal: 1: slot 0, cycle 0: too many bad"),
        ([cycle(0, 0, *ALL, poison=[["events", 0, 3]])], "`poison` in the journal: 1: slot 0, cycle 0"),
    ],
)
def test_journal_with_a_flaw_is_told(journal, problem):
    (line,) = told(*journal)
    assert line.startswith(problem)


def test_label_in_time_has_to_be_learned_and_others_need_not():
    """
    events   a ... b ............ c      c's key comes twice, b's label more than an hour after it
    labels      a .......... b    c
    """
    events, labels = Input("events", 4), Input("labels", 3)
    visit = '{"id": "%s", "time": %d, "site": "s", "price": 1}'
    for at, (key, hours) in enumerate([("a", 0), ("b", 0.5), ("c", 2), ("c", 2)]):
        events.add([Raw(at, NOW_MS, b"", (visit % (key, T0 + 3600 * hours)).encode())])
    for at, (key, hours) in enumerate([("a", 0.1), ("b", 1.6), ("c", 2)]):
        labels.add(
            [Raw(at, NOW_MS, b"", (b'{"id": "%b", "time": %d, "sold": true}' % (key.encode(), T0 + 3600 * hours)))]
        )
    join = Join({("events", 0): events, ("labels", 0): labels}, 1)
    assert join.must_be_learned() == {0: 0}
    problems = Problems()
    check_learned(Topics("visits", "sales", "", "", "", ""), join, problems)
    assert problems.lines() == ["a labelled event was not learned: 1: visits-0@0"]
    join.follow(Cycle(0, 0, 0, [("events", 0, 0, 1), ("labels", 0, 0, 1)]))
    problems = Problems()
    check_learned(Topics("visits", "sales", "", "", "", ""), join, problems)
    assert problems.lines() == []
