"""Runs one server process and ends it when its owner goes away, however the owner goes.

Run by path with the owner's pipe as standard input: `python -I guard.py FOLDER TEMPORARY COMMAND...`.
It prints the server's pid, then obeys one word on the pipe: `stop` (SIGTERM, then SIGKILL after 15 s) or `kill`
(SIGKILL). The end of the pipe, or another parent than at the start, means that the owner is gone: the server is
stopped, and its folder removed if TEMPORARY is "1". Exits with the server's status. Standard library alone.
"""

import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 15.0
LOCK_SECONDS = 5.0
FOLDER_IN_USE = 73


def main(folder: str, temporary: bool, command: list[str]) -> int:
    owner = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone decides
    lock = os.open(os.path.join(folder, "lock"), os.O_WRONLY | os.O_CREAT)  # held until this process ends
    if not take(lock, patience_seconds=LOCK_SECONDS):
        return FOLDER_IN_USE
    child_ended, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=2, preexec_fn=before_exec)
    print(server.pid, flush=True)

    word = b""
    while server.poll() is None and os.getppid() == owner:  # a forked child of the owner may hold the pipe open
        readable = select.select([0, child_ended], [], [], 1.0)[0]
        if 0 in readable:
            word = os.read(0, 16).strip()
            break
        if child_ended in readable:
            os.read(child_ended, 512)  # a server that was stopped and not ended says so, too
    owner_is_gone = server.poll() is None and not word
    if word == b"kill":
        server.kill()
    else:
        end(server)
    status = server.wait()
    if owner_is_gone and temporary:
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def end(server: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL for a server that has not ended after the grace."""
    server.terminate()
    try:
        server.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


def take(lock: int, patience_seconds: float) -> bool:
    """Lock the folder; a server whose owner was killed a moment ago gets time to finish."""
    until = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.2)


def before_exec() -> None:
    """In the server: take signals again, and on Linux die with this guard should it be killed itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2] == "1", sys.argv[3:]))
