"""All kernels of a worker, loaded from Numba's cache or compiled before the first record comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from numba.core.event import install_timer

from ..connectors import record_batches, record_writer, spans
from . import arrow_text, fast_encode, fast_json, publisher
from .declaration import Pipeline
from .engine import Engine
from .snapshot import libraries

log = logging.getLogger("headrace")

SAY_SECONDS = 2.0  # what takes no longer is not worth a line


def load_kernels(pipeline: Pipeline, enter: Callable[[str], None]) -> Engine:
    """A new engine of this pipeline, and all that it and the worker call is ready. Says so when it had to compile.

    enter  told which stage of the engine's work begins
    """
    engine = Engine(pipeline)
    engine.enter = enter
    began = time.perf_counter()
    with install_timer("numba:compile", lambda seconds: None) as compiling:
        for part in (spans, record_batches, record_writer, fast_json, arrow_text, fast_encode, engine, publisher):
            part.warm_up()
    libraries()  # or the first snapshot would wait for their files
    if (seconds := time.perf_counter() - began) > SAY_SECONDS and compiling.done:
        log.info("compiled the kernels in %.1f s; from now on they are in the cache", seconds)
    return engine
