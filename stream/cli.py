"""The command line: `headrace run|evaluate|check|up|demo|snapshots`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import HeadraceError
from .settings import DEFAULT_BROKER, DEFAULT_REDIS, Lost, hmac_key

app = typer.Typer(
    help="Streaming online learning on Kafka: predict each event as it comes, learn from its label when it comes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
snapshots_app = typer.Typer(help="Look at the snapshots of a pipeline in Redis.", no_args_is_help=True)
app.add_typer(snapshots_app, name="snapshots")

File = Annotated[str, typer.Argument(help="pipeline file, FILE or FILE:name", metavar="FILE")]
Broker = Annotated[str, typer.Option(envvar="HEADRACE_BROKER", help="host:port of a Kafka broker")]
Redis = Annotated[str, typer.Option(envvar="HEADRACE_REDIS", help="URL of the Redis that keeps the snapshots")]
Slot = Annotated[int, typer.Option(envvar="HEADRACE_SLOT", min=0, help="of which worker of the pipeline")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


@app.command()
def check(file: File) -> None:
    """Say what a pipeline file would do, or what is wrong with it. Connects to nothing."""
    from .check import check as run

    raise typer.Exit(run(file))


@app.command()
def evaluate(
    file: File,
    events: Annotated[Path, typer.Option(help="ndjson, csv or parquet, also .gz")],
    labels: Annotated[Path | None, typer.Option(help="the same, where labels have a topic of their own")] = None,
    json: Json = False,
) -> None:
    """Run a pipeline over files: progressive validation, without Kafka and Redis."""
    from .evaluate_report import run

    raise typer.Exit(run(file, events, labels, json))


@app.command()
def run(
    file: File,
    broker: Broker = DEFAULT_BROKER,
    redis: Redis = DEFAULT_REDIS,
    slot: Annotated[
        int | None,
        typer.Option(
            envvar="HEADRACE_SLOT", min=0, help="which worker of the pipeline this is; without it, the lowest free one"
        ),
    ] = None,
    web_port: Annotated[
        int, typer.Option(envvar="HEADRACE_WEB_PORT", min=0, max=65535, help="port of /metrics, on loopback; 0: none")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", envvar="HEADRACE_RESUME", help="go on after a stop that the journal records")
    ] = False,
    lost: Annotated[
        Lost,
        typer.Option(
            envvar="HEADRACE_LOST", help="where records are gone that must be read: stop, or go on from the earliest"
        ),
    ] = "stop",
    plain: Annotated[
        bool, typer.Option(envvar="HEADRACE_PLAIN", help="record by record, without the fast path: equal, but slower")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", envvar="HEADRACE_PROFILE", help="say every few seconds where the time goes")
    ] = False,
) -> None:
    """Start a worker. It goes on from the newest snapshot; SIGTERM ends it cleanly.

    With HEADRACE_HMAC_KEY it signs its snapshots, and loads none that is not signed.
    """
    from .load import load_pipeline
    from .settings import Settings
    from .worker import run_worker

    settings = Settings(broker, redis, slot, web_port or None, resume, lost, plain, profile, hmac_key())
    raise typer.Exit(run_worker(load_pipeline(file), settings))


@app.command()
def up(
    folder: Annotated[Path | None, typer.Option(help="keep the data here; else it goes with the servers")] = None,
) -> None:
    """Run a Kafka broker and a Redis on this machine until Ctrl-C."""
    from .up import up as run

    raise typer.Exit(run(folder))


@app.command()
def demo(
    events: Annotated[int | None, typer.Option(min=1_000, help="how many of the 328,521 departures")] = None,
    json: Json = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="leave Kafka and Redis running afterwards, until Ctrl-C")
    ] = False,
) -> None:
    """Predict the late flights of 2013 on a real Kafka and a real Redis, and show what happened."""
    from .demo import demo as run

    raise typer.Exit(run(events, json, keep))


@snapshots_app.command("list")
def list_snapshots(pipeline: str, redis: Redis = DEFAULT_REDIS, slot: Slot = 0, json: Json = False) -> None:
    """The snapshots of a pipeline that Redis keeps, newest first."""
    from .snapshots_cli import list_snapshots as run

    run(redis, pipeline, slot, as_json=json, hmac_key=hmac_key())


@snapshots_app.command("show")
def show_snapshot(
    pipeline: str,
    version: Annotated[int | None, typer.Option(help="default: the newest")] = None,
    redis: Redis = DEFAULT_REDIS,
    slot: Slot = 0,
    json: Json = False,
) -> None:
    """What one snapshot holds: arrays, offsets, metrics."""
    from .snapshots_cli import show_snapshot as run

    run(redis, pipeline, slot, version, as_json=json, hmac_key=hmac_key())


def main(arguments: list[str] | None = None) -> Any:
    """Entry point of `headrace`. An error a user can act on is one message and exit status 1, never a stack trace."""
    try:
        app(arguments)
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os._exit(0)  # the reader of our output has gone
