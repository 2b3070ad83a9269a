"""What `headrace up` does: an embedded Kafka and Redis until Ctrl-C."""

import signal
import time
from pathlib import Path

from ..connectors import embedded


def up(folder: Path | None) -> int:
    """Run Kafka and Redis until SIGINT or SIGTERM, and print how to reach them. Returns the exit status.

    folder  keeps their data between runs; None: the data is temporary

    Returns 0 when told to stop and 1 when a server ended by itself. Raises SetupError when one does not come up.
    To be called in the main thread: it handles the signals while it runs.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM is Ctrl-C from elsewhere
    try:
        print("Starting Kafka and Redis; the first start downloads Kafka (45 MB) ...", flush=True)
        with (
            embedded.kafka(folder and folder / "kafka") as broker,
            embedded.redis(folder and folder / "redis") as store,
        ):
            print(addresses(broker, store, folder), flush=True)
            try:
                while broker.running and store.running:
                    time.sleep(0.5)
            except KeyboardInterrupt:
                print("\nStopping Kafka and Redis ...", flush=True)
                return 0
            ended = store if broker.running else broker
            print(f"{ended.name} ended by itself. The last lines of its log:\n{ended.last_lines()}", flush=True)
            return 1
    except KeyboardInterrupt:
        print("\nStopped before they were up.", flush=True)
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def addresses(broker: embedded.Kafka, store: embedded.Redis, folder: Path | None) -> str:
    where = f"kept in {folder}" if folder else "temporary: it goes when they stop (`headrace up FOLDER` keeps it)"
    return f"""
Kafka  {broker.address}    (process {broker.pid}, log {broker.log})
Redis  {store.url}    (process {store.pid}, log {store.log})
Data   {where}

In another shell:

    export HEADRACE_BROKER={broker.address}
    export HEADRACE_REDIS={store.url}

Ctrl-C stops both."""
