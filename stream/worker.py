"""A worker is a Faust worker: this builds its app, and starts it for `headrace run`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from typing import Any

import faust

from ..connectors.store import redis_address
from ..connectors.transport import Runs, Transport
from ..connectors.transport import Settings as Reading
from ..errors import HeadraceError
from .declaration import Pipeline
from .logs import hush_libraries, print_log
from .metrics_page import render
from .preflight import prepare
from .runner import Runner
from .settings import WEB_HOST, Settings

log = logging.getLogger("headrace")

SESSION_SECONDS = 30.0
REBALANCE_SECONDS = 60.0
REQUEST_SECONDS = 90.0  # after that a seek that does not come to an end crashes the worker


class WorkerApp(faust.App):
    """A Faust app with one agent over runs of records, and a runner that works on them."""

    failure: BaseException | None = None

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline, self.worker_settings = pipeline, settings
        self.runner = Runner(pipeline, settings, self.fail)
        super().__init__(
            pipeline.group,
            broker=f"kafka://{settings.broker.replace(',', ';')}",
            store="memory://",
            value_serializer="raw",
            topic_disable_leader=True,
            topic_partitions=1,
            web_enabled=settings.web_port is not None,
            web_bind=WEB_HOST,
            web_port=settings.web_port or 6066,
            consumer_group_instance_id=f"{pipeline.group}-{settings.slot}",
            consumer_auto_offset_reset="earliest",
            broker_session_timeout=SESSION_SECONDS,
            broker_heartbeat_interval=1.0,
            broker_rebalance_timeout=REBALANCE_SECONDS,
            broker_request_timeout=REQUEST_SECONDS,
            stream_buffer_maxsize=1 << 20,  # counts runs, and is shared by all partitions; bytes are bounded elsewhere
            consumer_max_fetch_size=4 << 20,
            datadir=os.path.join(
                tempfile.gettempdir(), f"headrace-{os.getuid()}"
            ),  # Faust makes it, nothing is kept there
        )

    async def on_start(self) -> None:
        """Check what must be true before anything is connected, then let the runner begin."""
        try:
            await asyncio.to_thread(prepare, self.pipeline, self.worker_settings)
        except HeadraceError as error:
            self.fail(error)
            await self._stopped.wait()
        if not self.should_stop:
            await super().on_start()
            self.add_future(self.runner.run(self._ends))

    async def on_stop(self) -> None:
        """Before Faust stops anything: the cycle in hand is finished, the last snapshot published."""
        hush_libraries()
        if self.failure is None:
            await self.runner.close()
        else:
            await self.runner.abandon()
        await super().on_stop()

    async def on_shutdown(self) -> None:
        """After Faust has stopped everything."""
        if self.failure is None:
            await self.runner.leave()
        await super().on_shutdown()

    async def crash(self, reason: BaseException) -> None:
        """What Faust calls for an error in anything of the app."""
        self.fail(reason)

    def fail(self, error: BaseException) -> None:
        """End the worker; what is in hand is not committed. The first error counts."""
        if self.failure is not None:
            return
        self.failure = error
        if isinstance(error, HeadraceError):
            log.error("%s", error)
        else:
            log.critical("a fault of the worker itself, please report it", exc_info=error)
        hush_libraries()
        self.beacon.root.data.crash_reason = error  # for the exit status, also under `faust -A`
        os.kill(os.getpid(), signal.SIGTERM)

    def _ends(self) -> dict[Any, int]:
        return self.consumer.ends()

    def _new_transport(self) -> Transport:
        events = self.pipeline.events
        topics = [events.topic] + ([self.pipeline.labels.topic] if self.pipeline.labels else [])
        reading = Reading(
            topics=frozenset(t for t in topics if t is not None),
            starts={t: events.start for t in topics if t is not None},
        )
        return Transport(self.conf.broker_consumer, self, self.runner, reading)


class _Process(faust.Worker):
    """Faust's worker, without its second of sleep at the end."""

    async def _sentinel_task(self) -> None:
        return None


def build_app(pipeline: Pipeline, settings: Settings) -> WorkerApp:
    """The Faust app of a worker; connects to nothing until it is started."""
    app = WorkerApp(pipeline, settings)
    topics = [pipeline.events.topic]
    if pipeline.labels is not None and pipeline.labels.topic is not None:
        topics.append(pipeline.labels.topic)

    @app.agent(app.topic(*topics, schema=Runs()), concurrency=1, name="headrace")
    async def learn_from(stream: Any) -> None:
        async for event in stream.noack().events():
            app.runner.add(event)

    @app.page("/metrics")
    async def metrics(web: Any, request: Any) -> Any:
        return web.text(render(app.runner), content_type="text/plain")

    @app.page("/livez")
    async def livez(web: Any, request: Any) -> Any:
        return web.text(app.runner.state)

    @app.page("/readyz")
    async def readyz(web: Any, request: Any) -> Any:
        return web.text(app.runner.state, status=200 if app.runner.state == "running" else 503)

    return app


def run_worker(pipeline: Pipeline, settings: Settings) -> int:
    """Run a worker until SIGTERM or Ctrl-C; returns the exit status: 0 when it was told to stop, 1 when it had to."""
    print_log()
    app = build_app(pipeline, settings)
    redis = redis_address(settings.redis)  # which has no password in it
    log.info("pipeline %s, slot %d: broker %s, Redis %s", pipeline.name, settings.slot, settings.broker, redis)
    worker = _Process(app, loglevel="warn", redirect_stdouts=False, quiet=True, override_logging=False)
    worker.spinner = None  # it writes control characters, also where there is no terminal
    try:
        worker.execute_from_commandline()
    except SystemExit as leaving:
        if app.failure is None and leaving.code not in (0, None):
            return 1
    return 1 if app.failure is not None else 0
