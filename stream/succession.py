"""Models of an earlier declaration and those of now: what was learned goes on under the name of its model.

The one model of `model=` has no name. Where it becomes one of several it is the one with the same settings, else the
first; and where one of several becomes the only one, it is again the one with the same settings, else the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .counters import COUNTER_AT
from .engine import Engine
from .shared import EngineState

ALONE = ""  # in the place of a name
MOVED = ("model", "opaque", "drift", "contest")  # begin the names of arrays, and then comes that of the model


def carry_models(state: EngineState, engine: Engine) -> tuple[EngineState, list[str]]:
    """The state with the arrays of each model where `engine`, which has learned nothing yet, looks for them, and what
    is different, in words.

    A new model has no arrays: it begins. So does one that is made of other parts than the one of its name was. Those of
    a model that is gone are left out. Of predictions that wait, what a new model would have said is NaN, and what its
    learners would have said.
    """
    order = state.meta.get("models", [ALONE])
    names_now = [ALONE] if engine.contest is None else list(engine.contest.names)
    before_and_now = state.meta["declaration"], engine.pipeline.describe()
    was, now = (_models(d, names) for d, names in zip(before_and_now, (order, names_now), strict=True))
    serve = [d.get("serve") for d in before_and_now]
    if order == names_now and (order == [ALONE] or (was == now and serve[0] == serve[1])):
        return state, []
    source = _sources(was, now)
    notes = []
    for name, before in list(source.items()):
        if before is not None and _parts(was[before]) != _parts(now[name]):
            notes.append(f"model `{name or before}` is made of other parts and begins anew")
            source[name] = None
        elif before is None:
            notes.append(f"model `{name}` is new")
        elif before != name:
            notes.append(f"the only model goes on as `{name}`" if name else f"model `{before}` goes on as the only one")
        elif was[before] != now[name]:
            notes.append(f"model `{name}` is declared otherwise")
    notes += [f"model `{name}` is gone" for name in was if name and name not in source.values() and name not in now]
    if isinstance(serve[1], str) and serve[0] != serve[1]:
        notes.append(f"`{serve[1]}` serves from now on")
    elif serve[1] is not None and serve[0] != serve[1]:
        notes.append("serve is declared otherwise" if isinstance(serve[0], dict) else "the best of late serves now")
    shared = {k: array for k, array in state.shared.items() if k.split("/")[0] not in MOVED}
    for name, before in source.items():
        if before is not None:
            shared |= _arrays_of(state.shared, before, name)
    if engine.contest is not None:
        shared |= _told_of_all(state.shared, engine, order, source)
    asked = None if engine.contest is None else source
    partitions = {
        p: _said(arrays, order, asked) | _voices(arrays, state.meta, engine, source)
        for p, arrays in state.partitions.items()
    }
    meta = state.meta
    if opaque := _opaque(meta.get("opaque", {}), engine, source):
        meta = {**meta, "opaque": opaque}
    else:
        meta = {name: of for name, of in meta.items() if name != "opaque"}
    return EngineState(shared, partitions, meta), notes


def _opaque(before: Mapping[str, Any], engine: Engine, source: Mapping[str, str | None]) -> dict[str, Any]:
    """What the state of opaque models belongs to, under the names of now; a new one is as declared now."""
    out: dict[str, Any] = {}
    for name, was in source.items():
        new, old = f"{name}/" if name else "", f"{was}/" if was else ""
        if was is None:
            own = {k: part.config() for k, part in engine.model.opaque().items() if k.startswith(new)}
            out |= own
        else:
            out |= {new + k.removeprefix(old): of for k, of in before.items() if k.startswith(old)}
    return out


def _models(declaration: Mapping[str, Any], order: list[str]) -> dict[str, Any]:
    """The settings of each model, by its name, in their order and as JSON holds them."""
    models = {ALONE: declaration["model"]} if order == [ALONE] else declaration["models"]
    return {name: json.loads(json.dumps(models[name])) for name in order}


def _sources(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str | None]:
    """For each model of now the one of before that it goes on from; None: it is new."""
    if ALONE in now:
        return {ALONE: next((name for name, of in was.items() if of == now[ALONE]), next(iter(was)))}
    source: dict[str, str | None] = {name: name if name in was else None for name in now}
    if ALONE in was:
        source[next((name for name, of in now.items() if of == was[ALONE]), next(iter(now)))] = ALONE
    return source


def _parts(config: Any) -> Any:
    """What a model is made of, without the settings; a learner alone is as a chain of one."""
    if not isinstance(config, Mapping):
        return config
    parts = [_parts(part) for part in config.get("parts", ())]
    return parts[0] if config["name"] == "Chain" and len(parts) == 1 else (config["name"], *parts)


def _arrays_of(shared: Mapping[str, NDArray], before: str, name: str) -> dict[str, NDArray]:
    """The arrays of one model, under the name of now."""
    moved = {(kind, kind) for kind in MOVED}
    if before == ALONE:
        moved = (moved - {("contest", "contest")}) | {("metrics", "contest")}
    if name == ALONE:
        moved -= {("contest", "contest"), ("metrics", "contest")}  # what was served is measured apart
    out: dict[str, NDArray] = {}
    for kind, to in moved:
        old, new = (
            f"{kind}/{before}/" if before and kind != "metrics" else f"{kind}/",
            f"{to}/{name}/" if name else f"{to}/",
        )
        out |= {new + k.removeprefix(old): array for k, array in shared.items() if k.startswith(old)}
    return out


def _told_of_all(
    shared: Mapping[str, NDArray], engine: Engine, order: list[str], source: Mapping[str, str | None]
) -> dict[str, NDArray]:
    """The arrays that have a place for each model."""
    assert engine.contest is not None
    blank = {name: np.zeros_like(array) for name, array in engine.arrays.items() if name.startswith("contest/")}
    out = {name: blank[name] for name in ("contest/served", "contest/drifts")}
    at = {i: order.index(before) for i, before in enumerate(source.values()) if before is not None}
    for name, counter in (("contest/served", "predictions"), ("contest/drifts", "drifts")):
        counts = shared["counters"][[COUNTER_AT[counter]]] if order == [ALONE] else shared[name]
        for i, j in at.items():
            out[name][i] = counts[j]
    if engine.contest.best is None:
        return out
    out |= {f"contest/{name}": blank[f"contest/{name}"] for name in ("gained", "squares", "serving", "switches")}
    if "contest/gained" in shared:
        for name in ("contest/gained", "contest/squares"):
            for i, j in at.items():
                for k, m in at.items():
                    out[name][i, k] = shared[name][j, m]
        served = int(shared["contest/serving"][0])
        out["contest/serving"][0] = next((i for i, j in at.items() if j == served), 0)
        out["contest/switches"][:] = shared["contest/switches"]
    return out


def _said(
    arrays: Mapping[str, NDArray], order: list[str], source: Mapping[str, str | None] | None
) -> dict[str, NDArray]:
    """What waits in a partition, with what each model of now said; source None: there is one model alone."""
    out = {name: array for name, array in arrays.items() if name not in ("pending/said", "pending/voices")}
    if source is None:
        return out
    alone = arrays["pending/prediction"]
    said = np.full((len(alone), len(source), alone.shape[1]), np.nan, np.float32)
    for i, before in enumerate(source.values()):
        if before == ALONE:
            said[:, i] = alone
        elif before is not None:
            said[:, i] = arrays["pending/said"][:, order.index(before)]
    return out | {"pending/said": said}


def _voices(
    arrays: Mapping[str, NDArray], meta: Mapping[str, Any], engine: Engine, source: Mapping[str, str | None]
) -> dict[str, NDArray]:
    """What the learners of each model of now said of what waits in a partition; nothing where no model asks."""
    wanted = [engine.learning.voices]
    if engine.contest is not None:
        wanted = [learning.voices for learning in engine.contest.learnings]
    if not any(wanted):
        return {}
    given = arrays.get("pending/voices", np.empty((len(arrays["pending/key"]), 0), np.float32))
    order, widths = [ALONE], [given.shape[1]]
    if "models" in meta:
        order, widths = meta["models"], meta.get("voices", [])  # an earlier version does not tell
    at: dict[str | None, slice] = {
        name: slice(end - width, end) for name, width, end in zip(order, widths, accumulate(widths), strict=False)
    }
    heard = [given[:, at.get(before, slice(0))] for before in source.values()]
    blank = [np.full((len(given), width), np.nan, np.float32) for width in wanted]
    parts = [was if was.shape == none.shape else none for was, none in zip(heard, blank, strict=True)]
    return {"pending/voices": np.concatenate(parts, axis=1)}
