"""A worker in doubt starts over: the same process, the same command, nothing left open; and not for ever."""

import json
import re
import socket
import subprocess
import sys

import aiokafka.errors
import pytest
import redis

from headrace.connectors.groups import CommitRefused
from headrace.connectors.store import Fenced
from headrace.errors import DeclarationError, InputError, Refused, SnapshotError, StreamStopped, Unreachable
from headrace.stream import start_over
from headrace.stream.start_over import VARIABLE, StartOver, Starts

SCRIPT = """
import os, signal, socket, sys, threading
from headrace.stream import start_over
from headrace.stream.start_over import StartOver, Starts

total = Starts.so_far().total
print(total, os.getpid(), [sys.flags.optimize, __spec__ and __spec__.name, *sys.argv[1:]], os.environ.get("TOLD"), sorted(os.listdir("/proc/self/fd")))
if total < 3:
    open_ones = [socket.create_server(("127.0.0.1", 0)), *socket.socketpair(), open(__file__), *os.pipe()]
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: print("too early"))
    start_over.announce(StartOver("a reason", {"TOLD": f"by {total}"}))
    start_over.run_again()
os.kill(os.getpid(), signal.SIGTERM)
print("waits")
signal.signal(signal.SIGTERM, lambda *_: print("taken"))
start_over.take_signals()
"""


@pytest.fixture
def environment(monkeypatch):
    """Set what earlier starts have told."""

    def tell(*books):
        monkeypatch.setenv(VARIABLE, " ".join(map(str, books)))

    tell()
    return tell


@pytest.mark.parametrize("how", ["script", "module"])
def test_process_goes_on_as_the_same_command_with_nothing_open_and_signals_wait(tmp_path, how):
    (tmp_path / "again.py").write_text(SCRIPT)
    command = [sys.executable, "-O", *({"script": ["again.py"], "module": ["-m", "again"]}[how]), "a b", "--c=d"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *starts, waits, taken = done.stdout.splitlines()
    assert (waits, taken) == ("waits", "taken")
    told = [re.fullmatch(r"(\d) (\d+) (\[.*\]) (None|by \d) (\[.*\])", line).groups() for line in starts]
    totals, pids, arguments, reasons, files = map(list, zip(*told))
    assert totals == ["0", "1", "2", "3"]
    assert reasons == ["None", "by 0", "by 1", "by 2"]
    assert set(arguments) == {f"[1, {None if how == 'script' else 'again'!r}, 'a b', '--c=d']"}
    assert len(set(pids)) == len(set(files)) == 1


def test_pause_grows_until_a_cycle_is_committed(environment):
    pauses = []
    for _ in range(9):
        pauses.append(start_over.announce(Unreachable("no answer")))
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15]
    start_over.succeeded()
    assert Starts.so_far() == (9, 0, 0)
    assert start_over.announce(Unreachable("no answer")) == 0.2


REFUSALS = [
    Refused("read only"),
    CommitRefused("fenced"),
    Fenced("behind"),
    aiokafka.errors.GroupAuthorizationFailedError(),
]
PASSING = [
    Unreachable("no answer"), StartOver("lease lost"), ConnectionResetError(), TimeoutError(), socket.gaierror(),
    aiokafka.errors.KafkaConnectionError(), aiokafka.errors.ConsumerStoppedError(),
]  # fmt: skip
USELESS = [
    StreamStopped("not finite"), InputError("no topic"), DeclarationError("no model"), SnapshotError("torn"),
    RuntimeError("ours"), AssertionError(), OSError(28, "No space left on device"), KeyError("p"),
]  # fmt: skip


@pytest.mark.parametrize("error", REFUSALS + PASSING + USELESS, ids=repr)
def test_starting_over_helps_against_servers_alone(environment, error):
    assert start_over.can_help(error) == (error in REFUSALS + PASSING)


@pytest.mark.parametrize("error", REFUSALS + PASSING, ids=repr)
def test_refusals_in_a_row_are_too_many_at_last_and_outages_never(environment, error):
    environment(50, 50, 8)
    assert not start_over.too_often(error)
    environment(50, 50, 9)
    assert start_over.too_often(error) == (error in REFUSALS)


def test_server_that_cannot_now_does_not_count_as_one_that_refuses(environment):
    error = Refused("did not take 3 records")
    error.__cause__ = aiokafka.errors.NotEnoughReplicasError()
    environment(50, 50, 9)
    assert not start_over.too_often(error)


# -- workers

COMMANDS = {
    "headrace": lambda shop: [str(shop.scripts / "headrace"), "run", str(shop.file)],
    "python -m": lambda shop: [sys.executable, "-m", "faust", "-A", "shop", "worker", "-l", "warn"],
    "faust": lambda shop: [str(shop.scripts / "faust"), "-A", "shop", "worker", "-l", "warn"],
}


def steal(shop, milliseconds):
    """Another process holds the lease of slot 0 for a while."""
    holder = dict(host="elsewhere", pid=1, started=None, machine=None, since=0.0, id="x")
    key = f"headrace:{{{shop.name}}}:lease:0"
    redis.Redis.from_url(shop.redis_url).set(key, json.dumps(holder), px=milliseconds)


@pytest.mark.parametrize("command", COMMANDS)
def test_worker_that_loses_its_slot_starts_over_and_goes_on(open_shop, visits_and_sales, command):
    shop = open_shop(command, changes="latency='20ms', snapshots=Snapshots('300ms')")
    shop.file.write_text(
        "import os, sys\nprint('start', os.getpid(), sorted(os.listdir('/proc/self/fd')), file=sys.__stderr__)\n"
        + shop.file.read_text()
    )
    rows = visits_and_sales(1, 900)
    shop.produce(rows[:800])
    worker = shop.start(command=COMMANDS[command](shop))
    worker.until(events=200, running=1)
    steal(shop, 5_000)
    worker.until(starts_over=1, running=1)
    shop.produce(rows[800:])
    worker.until(events=900, labels=sum(role == "labels" for role, _ in rows))
    assert worker.end() == 0, worker.printed
    assert "is held by pid 1 on elsewhere" in worker.printed
    starts = re.findall(r"start (\d+) (\[.*\])", worker.printed)
    assert len(starts) == 2
    assert len(set(starts)) == 1, "another process, or files left open"
    assert starts[0][0] == str(worker.process.pid)
    assert shop.sources() == shop.events()


def test_worker_that_waits_to_start_over_says_so_and_ends_when_told_to(open_shop):
    shop = open_shop("backoff")
    worker = shop.start(**{VARIABLE: "20 9 0"})
    worker.until(running=1)
    steal(shop, 60_000)
    worker.says("Starting over in 15.0 s")
    status, text = worker.page("/livez")
    assert (status, text.startswith("starting over: slot 0 of pipeline")) == (200, True)
    assert worker.page_or_error("/readyz")[0] == 503
    assert worker.metrics()["starts_over"] == 21
    assert worker.end() == 0
    assert "Traceback" not in worker.printed


def test_worker_that_waits_for_its_slot_says_so_and_ends_when_told_to(open_shop):
    shop = open_shop("slot")
    steal(shop, 60_000)
    worker = shop.start(slot=0)
    worker.says("slot 0 is held by pid 1 on elsewhere")
    status, text = worker.page_or_error("/readyz")
    assert (status, text.startswith("waiting for a slot: slot 0 is held by")) == (503, True)
    assert worker.end() == 0
    assert worker.printed.splitlines()[-1].endswith(" told to stop before it began")


def test_worker_whose_slot_another_keeps_ends_and_names_it(open_shop):
    shop = open_shop("taken")
    steal(shop, 60_000)
    worker = shop.start(slot=0)
    assert worker.ends() == 1
    assert f"error: slot 0 of pipeline {shop.name} is held by pid 1 on elsewhere" in worker.printed.splitlines()[-1]
    assert "waiting for Redis" not in worker.printed


def test_worker_that_is_refused_again_and_again_ends(open_shop, visits_and_sales):
    shop = open_shop("refused")
    shop.create({shop.scores: 2}, max_message_bytes=100)
    shop.produce(visits_and_sales(2, 20))
    worker = shop.start(**{VARIABLE: "8 0 8"})
    assert worker.ends() == 1
    assert worker.printed.count("Starting over in 0.2 s") == 1
    last = worker.printed.splitlines()[-1]
    assert "error: " in last
    assert "10 times in a row" in last
    assert "Traceback" not in worker.printed
