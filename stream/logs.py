"""What a worker prints: its own lines, and of the libraries beneath it what a reader can act on."""

from __future__ import annotations

import logging
import sys

# Services of ours that speak for Faust, at INFO: "[^-WorkerApp]: Starting..."
SERVICES = ("headrace.stream.worker", "headrace.connectors.transport")
QUIET = ("kafka",)  # what its client says of a broker that does not answer, our error says once
HARMLESS = (
    "Group Coordinator Request failed: [Error 15]",  # a broker that makes the topic of the groups, or a new leader
    "FindCoordinator Request failed: [Error 15]",
    "Heartbeat failed for group",  # a rebalance begins
    "We experienced a crash! Reraising",  # the reason was said
    # what aiokafka says many times a second while a broker is away, and we say once
    "Unable to update metadata from",
    "Failed fetch messages from",
    "Group Coordinator Request failed: NodeNotReadyError",
    "Error sending HeartbeatRequest",
    "Heartbeat send request failed",
    "Marking the coordinator dead",
)
REPEATS_SECONDS = 30.0  # what a library says again meanwhile is not printed
KINDS = 1_000  # of lines that are remembered


def print_log(level: int = logging.INFO) -> None:
    """Print our lines from `level` on, and warnings of libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    handler.addFilter(_Useful())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("headrace").setLevel(level)
    for name in SERVICES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def hush_libraries() -> None:
    """From now on only we speak: what is torn down while it waits for an answer says so, and it does not matter."""
    for name in ("aiokafka", "faust", "mode", *SERVICES):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Useful:
    """Lets our lines through, and of the libraries' those that help, each once in REPEATS_SECONDS."""

    def __init__(self) -> None:
        self._printed: dict[tuple[str, str], float] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if any(words in said for words in HARMLESS):
            return False
        if record.name.partition(".")[0] == "headrace":
            return True
        kind = record.name, str(record.msg)  # the line before its values are filled in
        if record.created - self._printed.get(kind, 0.0) < REPEATS_SECONDS:
            return False
        if len(self._printed) >= KINDS:
            self._printed.clear()
        self._printed[kind] = record.created
        return True


class _Line(logging.Formatter):
    """15:10:47 what happened; warnings and errors say that they are, and those of libraries whose they are."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        library = record.name.partition(".")[0]
        words = [] if record.levelno < logging.WARNING else [f"{record.levelname.lower()}:"]
        words += [] if library == "headrace" else [f"{library}:"]
        return " ".join([record.asctime, *words, record.message])
