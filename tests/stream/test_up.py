"""`headrace up`: both servers until told to stop."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import redis as redis_client

COMMAND = "import sys; from pathlib import Path; from headrace.stream.up import up; sys.exit(up(Path(sys.argv[1])))"


def test_up_prints_what_to_export_runs_until_sigterm_and_keeps_the_folder(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Starting Kafka and Redis")
        shown = "".join(iter(process.stdout.readline, "Ctrl-C stops both.\n"))
        exported = dict(re.findall(r"^ *export (\w+)=(\S+)$", shown, re.MULTILINE))
        assert set(exported) == {"HEADRACE_BROKER", "HEADRACE_REDIS"}
        assert redis_client.Redis.from_url(exported["HEADRACE_REDIS"]).ping()

        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().strip() == "Stopping Kafka and Redis ..."
        assert process.wait(30) == 0
        assert (tmp_path / "kafka" / "server.log").exists()
        assert (tmp_path / "redis" / "server.log").exists()
    finally:
        process.kill()
        process.wait()


def test_up_ends_with_status_1_when_a_server_ends_by_itself() -> None:
    command = "import sys; from headrace.stream.up import up; sys.exit(up(None))"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        shown = "".join(iter(process.stdout.readline, "Ctrl-C stops both.\n"))
        url = re.search(r"export HEADRACE_REDIS=(\S+)", shown)
        assert url is not None
        redis_client.Redis.from_url(url[1]).shutdown(nosave=True)
        assert process.wait(30) == 1
        assert "Redis ended by itself" in process.stdout.read()
    finally:
        process.kill()
        process.wait()
