"""A worker is a Faust worker: this builds its app, and starts it for `headrace run`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import faust
from faust.app.base import BootStrategy
from faust.exceptions import ConsumerNotStarted
from mode import Service

from ..connectors.leases import Lease, acquire
from ..connectors.redis_server import redis_address
from ..connectors.transport import Runs, Transport
from ..connectors.transport import Settings as Reading
from ..errors import HeadraceError
from . import start_over
from .declaration import Pipeline
from .health import LOOK_SECONDS, Page, View, Watch, liveness, look, readiness, waiting
from .logs import hush_libraries, print_log
from .metrics_page import render
from .preflight import check_port, check_redis, prepare_topics
from .runner import Runner
from .settings import WEB_HOST, Settings
from .signing import require_key
from .start_over import StartOver
from .waiting import Waiting, in_a_thread

log = logging.getLogger("headrace")

COLLECT_SHARE = 0.2  # of the latency, from a take of records to the next fetch
MAX_COLLECT_SECONDS = 0.05
SESSION_SECONDS = 30.0
REBALANCE_SECONDS = 60.0
REQUEST_SECONDS = 90.0  # after that a seek that does not come to an end crashes the worker
STOP_SECONDS = 60.0  # for a stop, whatever hangs
STOP_AWAY_SECONDS = 10.0  # for a stop while the broker or Redis is known to be away


class _Boot(BootStrategy):
    """Faust's services in Faust's order, but the web server first: it tells what the start waits for."""

    def server(self) -> Iterable[Any]:
        connected = self.kafka_producer(), self.kafka_consumer(), self.agents(), self.kafka_conductor(), self.tables()
        return self._chain(self.sensors(), self.web_server(), [_Start(self.app)], *connected)


class _Start(Service):
    """What comes before anything of Faust connects."""

    def __init__(self, app: WorkerApp) -> None:
        super().__init__(loop=app.loop, beacon=app.beacon)
        self.app = app

    async def on_start(self) -> None:
        await self.app.begin()


class WorkerApp(faust.App):
    """A Faust app with one agent over runs of records, and a runner that works on them."""

    BootStrategy = _Boot
    failure: BaseException | None = None
    lease: Lease | None = None

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self.pipeline, self.worker_settings = pipeline, settings
        self.runner = Runner(pipeline, settings, self.fail)
        self.waiting, self.watch = Waiting(), Watch()
        self._restarting = ""  # why it starts over; empty: it does not
        self._told_to_stop = threading.Event()
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

    # -- start

    async def start(self) -> None:
        """Faust would end without a word when a service of the app does not start."""
        start_over.take_signals()
        try:
            require_key(self.pipeline, self.worker_settings.hmac_key)
            if self.worker_settings.web_port is not None:
                check_port(self.worker_settings.web_port)
            await super().start()
        except Exception as error:
            if not self._told_to_stop.is_set():
                self.fail(error)

    async def begin(self) -> None:
        """Wait for the broker and for Redis, take a slot, and let the runner begin. The web server answers already."""
        self.add_future(self._look())
        self.runner.warm_up()
        pipeline, settings = self.pipeline, self.worker_settings
        broker, redis = settings.broker, redis_address(settings.redis)  # which has no password in it
        await self._answer_of("broker", broker, lambda: prepare_topics(pipeline, settings.broker))
        await self._answer_of("Redis", redis, lambda: check_redis(pipeline, settings.redis))
        lease = await self._answer_of("Redis", redis, self._take_slot)
        if self.should_stop:
            return
        self.lease = lease
        self.waiting.reasons.clear()
        self.conf.consumer_group_instance_id = f"{pipeline.group}-{lease.slot}"
        self.runner.begin(lease.slot)
        log.info("pipeline %s, slot %d: broker %s, Redis %s", pipeline.name, lease.slot, broker, redis)
        self.add_future(self.runner.run(self._ends, self._silent))

    async def _answer_of(self, name: str, address: str, question: Any) -> Any:
        try:
            return await self.waiting.until_answered(name, address, question)
        except HeadraceError as error:
            if not self._told_to_stop.is_set():
                self.end(error)  # all that can pass was waited for
            raise

    def _take_slot(self) -> Lease:
        return acquire(
            self.worker_settings.redis,
            self.pipeline.name,
            self.worker_settings.slot,
            say=self._wait_for_slot,
            on_lost=lambda why: self.fail(StartOver(why)),
            stop=self._told_to_stop,
        )

    def _wait_for_slot(self, why: str) -> None:
        log.info("%s", why)
        self.waiting.reasons["a slot"] = why

    # -- end

    async def stop(self) -> None:
        """However much of it hangs, a stop comes to an end."""
        if self._restarting and self.beacon.root.data._signal_stop_time is not None:
            os._exit(0)  # the signal came a moment before the trouble
        if not self._told_to_stop.is_set() and not self._restarting:
            self._told_to_stop.set()
            threading.Thread(target=self._end_in_time, name="headrace-stop", daemon=True).start()
        await super().stop()

    async def on_stop(self) -> None:
        """Before Faust stops anything: the cycle in hand is finished, the last snapshot published."""
        if self._restarting:
            await asyncio.Event().wait()
        hush_libraries()
        if self.lease is None and self.failure is None:
            log.info("told to stop before it began")
        if self.failure is None:
            await self.runner.close()
        else:
            await self.runner.abandon()
        await super().on_stop()

    async def on_shutdown(self) -> None:
        """After Faust has stopped everything."""
        if self.lease is not None:
            if self.failure is None:
                await self.runner.leave()
            if self.lease.problem is None:  # else it lapses
                await in_a_thread(self.lease.release)
        await super().on_shutdown()

    async def crash(self, reason: BaseException) -> None:
        """What Faust calls for an error in anything of the app."""
        self.fail(reason)

    def _crash(self, reason: BaseException) -> None:
        """What Faust calls, from any thread, for an error in a service beneath the app."""
        self.fail(reason)

    def fail(self, error: BaseException) -> None:
        """End the worker, or start over where that can help; what is in hand is not committed.

        The first error counts. Callable from any thread.
        """
        if threading.current_thread() is not threading.main_thread():
            self.loop.call_soon_threadsafe(self.fail, error)
            return
        if self.failure is not None:
            return
        if self._told_to_stop.is_set() and start_over.can_help(error):
            log.warning("%s; what was not committed is read again by the next start", error)
            return
        if start_over.can_help(error) and not start_over.too_often(error):
            self.failure, self._restarting = error, f"starting over: {error}"
            hush_libraries()
            for number in start_over.ENDING:  # Faust may be stopping by itself, and would not look at them
                signal.signal(number, lambda *_: os._exit(0))
            self._again = asyncio.ensure_future(self._start_over(start_over.announce(error)), loop=self.loop)
        else:
            self.end(error)

    def end(self, error: BaseException) -> None:
        """End the worker with exit status 1, and say why."""
        self.failure = error
        hush_libraries()
        if start_over.can_help(error) and start_over.too_often(error):
            log.error("%s. That was so %d times in a row, and nothing came of it", error, start_over.REFUSALS)
        elif isinstance(error, HeadraceError):
            log.error("%s", error)
        else:
            log.critical("a fault of the worker itself, please report it", exc_info=error)
        self.beacon.root.data.crash_reason = error  # for the exit status, also under `faust -A`
        os.kill(os.getpid(), signal.SIGTERM)

    async def _start_over(self, seconds: float) -> NoReturn:
        await asyncio.sleep(seconds)
        start_over.run_again()

    def _end_in_time(self) -> None:
        """In a thread: end the process when it has not come to its end by itself."""
        began = time.monotonic()
        try:
            while (seconds := time.monotonic() - began) < STOP_SECONDS:
                time.sleep(0.5)
                if seconds > STOP_AWAY_SECONDS and self.waits:
                    break
            waits = [waiting(name, why) for name, why in self.waits.items()]
            log.warning(
                "not stopped within %.0f s (%s): ending now; what was not committed is read again by the next start",
                seconds,
                "; ".join(waits) or self.runner.status.state,
            )
            start_over.flush()
        finally:
            os._exit(0 if self.failure is None else 1)

    # -- what others see of it

    @property
    def waits(self) -> dict[str, str]:
        """What is away and why, by its name."""
        problem = None if self.lease is None else self.lease.problem
        lease = {} if problem is None else {"Redis": problem}
        return {**self.waiting.reasons, **lease, **self.runner.waits}

    def view(self) -> View:
        """As of now."""
        runner, status = self.runner, self.runner.status
        state = status.state if self.lease is not None else "starting"
        for name, why in self.waiting.reasons.items():
            state = waiting(name, why)
        return View(
            state=self._restarting or state,
            slot=None if self.lease is None else self.lease.slot,
            waits=self.waits,
            replaying=status.replaying,
            held=runner.held,
            adopting=runner.adopting,
            ready=runner.ready and not self._restarting,
            progress=status.progress,
            lag=sum(runner.lag().values()),
        )

    def live(self) -> Page:
        return liveness(self.view(), self.watch)

    def ready(self) -> Page:
        return readiness(self.view())

    async def _look(self) -> None:
        while True:
            self.watch = look(self.watch, self.view(), time.monotonic())
            await asyncio.sleep(LOOK_SECONDS)

    # -- what Faust and the runner ask

    def _ends(self) -> dict[Any, int]:
        try:
            return self.consumer.ends()
        except ConsumerNotStarted:
            return {}

    def _silent(self) -> float | None:
        return self.consumer.silent_seconds()

    def _new_transport(self) -> Transport:
        events = self.pipeline.events
        topics = self.pipeline.topics.values()
        reading = Reading(
            topics=frozenset(topics),
            starts=dict.fromkeys(topics, events.start),
            lost=self.worker_settings.lost,
            collect_seconds=min(COLLECT_SHARE * self.pipeline.latency_us / 1e6, MAX_COLLECT_SECONDS),
            raw=not self.worker_settings.plain,
        )
        return Transport(self.conf.broker_consumer, self, self.runner, reading)


class _Process(faust.Worker):
    """Faust's worker, without its second of sleep at the end."""

    async def _sentinel_task(self) -> None:
        return None


def build_app(pipeline: Pipeline, settings: Settings) -> WorkerApp:
    """The Faust app of a worker; connects to nothing until it is started."""
    app = WorkerApp(pipeline, settings)

    @app.agent(app.topic(*pipeline.topics.values(), schema=Runs()), concurrency=1, name="headrace")
    async def learn_from(stream: Any) -> None:
        async for event in stream.noack().events():
            app.runner.add(event)

    @app.page("/metrics")
    async def metrics(web: Any, request: Any) -> Any:
        return web.text(render(app.runner, app.view()), content_type="text/plain")

    @app.page("/livez")
    async def livez(web: Any, request: Any) -> Any:
        page = app.live()
        return web.text(page.text, status=page.status)

    @app.page("/readyz")
    async def readyz(web: Any, request: Any) -> Any:
        page = app.ready()
        return web.text(page.text, status=page.status)

    return app


def run_worker(pipeline: Pipeline, settings: Settings) -> int:
    """Run a worker until SIGTERM or Ctrl-C; returns the exit status: 0 when it was told to stop, 1 when it had to."""
    print_log()
    app = build_app(pipeline, settings)
    worker = _Process(app, loglevel="warn", redirect_stdouts=False, quiet=True, override_logging=False)
    worker.spinner = None  # it writes control characters, also where there is no terminal
    try:
        worker.execute_from_commandline()
    except SystemExit as leaving:
        if app.failure is None and leaving.code not in (0, None):
            return 1
    return 1 if app.failure is not None else 0
