"""What a worker tells of itself while it works: what it does, figures, a line of progress, what it waits for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..models.measures import headline
from .contest import say_losses
from .engine import Engine
from .stages import Profile

log = logging.getLogger("headrace")

FIGURES_SECONDS = 0.5
REPORT_SECONDS = 5.0
SAY_SECONDS = 30.0


@dataclass
class Status:
    """What a worker does at this moment.

    state        what it does or waits for, in words
    replaying    cycles of the journal are being processed again
    replay_left  records that are still to be processed for it
    progress     grows with whatever gets done
    """

    state: str = "starting"
    replaying: bool = False
    replay_left: int = 0
    progress: int = 0


class Figures:
    """Counters and metrics as of a moment ago, for log and metrics must not look at an engine at work.

    of_pipeline  by name
    of_models    the same of each model, where there are several
    old          the engine has gone on since
    """

    def __init__(self) -> None:
        self.of_pipeline: dict[str, float | int | None] = {}
        self.of_models: dict[str, dict[str, float | int | None]] = {}
        self.old = False
        self._due = 0.0

    def note(self, engine: Engine) -> None:
        """Note them now; nobody else may touch the engine meanwhile."""
        self.of_pipeline = engine.results() | engine.counters()
        self.of_models = engine.results_of_models()
        self._due, self.old = time.monotonic() + FIGURES_SECONDS, False

    def note_if_due(self, engine: Engine) -> None:
        """The same, where they are old and were not noted just now."""
        if self.old and time.monotonic() >= self._due:
            self.note(engine)


class Report:
    """A line of progress now and then, when there was any."""

    def __init__(self, figures: Figures, lag: Callable[[], int], profile: Profile | None) -> None:
        """lag  gives the records that are not committed yet"""
        self._figures, self._lag, self._profile = figures, lag, profile
        self._said = (0.0, 0)  # when, and the events until then

    def say_if_due(self) -> None:
        """Say it where REPORT_SECONDS have gone since the last time."""
        now = time.monotonic()
        then, events_then = self._said
        if now - then < REPORT_SECONDS:
            return
        figures = self._figures.of_pipeline
        events = int(figures["events"] or 0)
        if events > events_then and then:
            name = headline(figures) or ""
            loss, baseline = figures.get(name), figures.get(f"{name}_constant")
            shown = "" if loss is None else f", loss {loss:.4f}"
            shown += "" if baseline is None else f" (constant {baseline:.4f})"
            shown += say_losses(self._figures.of_models)
            rate = (events - events_then) / (now - then)
            log.info("%s events, %s/s, lag %s%s", f"{events:,}", f"{rate:,.0f}", f"{self._lag():,}", shown)
            if self._profile is not None:
                log.info("%s", self._profile.line())
        self._said = now, events


async def watch(waits: Callable[[], Mapping[str, str]]) -> None:
    """For ever: say what is waited for when it goes away, every half a minute, and when it is back.

    waits  gives what is away and why, by its name; Redis is left out: who misses it says so
    """
    said: dict[str, float] = {}
    while True:
        await asyncio.sleep(1.0)
        away, now = {name: why for name, why in waits().items() if name != "Redis"}, time.monotonic()
        for name, why in away.items():
            if now - said.get(name, -SAY_SECONDS) >= SAY_SECONDS:
                said[name] = now
                log.warning("waiting for the %s: %s", name, why)
        for name in said.keys() - away.keys():
            del said[name]
            log.info("the %s answers again", name)
