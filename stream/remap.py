"""A snapshot of an earlier declaration, carried over by name to a pipeline whose features have changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SnapshotError
from .engine import Engine
from .shared import EngineState
from .succession import carry_models


def carry_over(state: EngineState, engine: Engine) -> tuple[EngineState, list[str]]:
    """The state as `engine`, which has learned nothing yet, can load it; and what is different, in words.

    A new feature begins at its fill, a removed one is left behind, an aggregate or a detector of drift that is declared
    otherwise begins anew, as do dense weights that mix all features where there are others, everything else is kept;
    also predictions that wait keep the features that are still there.
    Raises SnapshotError when the task or the classes are others, or a model whose state is opaque: its settings are in
    the state.
    """
    blank = engine.state()
    here, there = blank.meta, state.meta
    before, now = (_features(meta) for meta in (there, here))
    for what in ("task", "classes"):
        was, is_now = there["declaration"][what], here["declaration"][what]
        if was != is_now:
            raise SnapshotError(
                f"the newest snapshot of {engine.pipeline.name!r} has {what} {was}, the pipeline declares {is_now}: "
                "what was learned does not fit; give the pipeline another name"
            )
    state, notes = carry_models(state, engine)
    there = state.meta
    if changes := differences(there.get("opaque", {}), here.get("opaque", {})):
        raise SnapshotError(
            f"the newest snapshot of {engine.pipeline.name!r} holds the state of another model: {'; '.join(changes)}. "
            "The settings are part of that state; declare the model as it was, or give the pipeline another name to "
            "begin anew"
        )
    notes += [f"`{name}` is new" for name in now if name not in before]
    notes += [f"`{name}` is gone" for name in before if name not in now]
    notes += [f"`{name}` is declared otherwise" for name in now if name in before and before[name] != now[name]]
    waits = [
        0 if side["declaration"]["labels"] is None else side["declaration"]["labels"]["within"]
        for side in (there, here)
    ]
    if waits[0] != waits[1]:
        notes.append("labels are waited for another time")
    weights = [(side["declaration"]["labels"] or {}).get("weight") for side in (there, here)]
    if weights[0] != weights[1]:
        notes.append("labels are weighted otherwise")
    if there["declaration"].get("drift") != here["declaration"].get("drift"):
        notes.append("drift is declared otherwise")
    names = {axis: (there[axis], here[axis]) for axis in ("numeric", "categories", "label_groups", "label_values")}
    if not notes and all(was == is_now for was, is_now in names.values()):
        return state, []
    anew = {
        f"aggregate/{fold.feature.name}/{array}"
        for folds in engine.folding.folds
        for fold, *_ in folds
        for array in fold.layout()
        if before.get(fold.feature.name) != now[fold.feature.name]
    }
    if _hearing(there) != _hearing(here):
        anew |= {name for name in blank.shared if name.startswith("drift/")}
    # in another order they are the same: who declares such an axis takes them by name
    others = any(sorted(names[axis][0]) != sorted(names[axis][1]) for axis in ("numeric", "categories"))
    shared: dict[str, NDArray] = {}
    for name in blank.shared:
        layout, given = engine.layout.get(name), state.shared.get(name)
        if given is None or name in anew or (layout is not None and layout.axis == "features" and others):
            shared[name] = blank.shared[name]
        elif layout is not None and layout.axis in ("numeric", "categories") and _fits(given, blank.shared[name]):
            shared[name] = _by_name(given, blank.shared[name], *names[layout.axis])
        else:
            shared[name] = given
    partitions = {p: _waiting(arrays, names) for p, arrays in state.partitions.items()}
    return EngineState(shared, partitions, state.meta), notes


def differences(was: Any, now: Any, place: str = "") -> list[str]:
    """What is not the same in two JSON values, in words, each with its place, `model.l2`."""
    if isinstance(was, Mapping) and isinstance(now, Mapping) and was.get("class") == now.get("class"):
        names = [*was, *(name for name in now if name not in was)]
        return [
            text for name in names for text in differences(was.get(name), now.get(name), f"{place}.{name}".lstrip("."))
        ]
    return [] if was == now else [f"`{place}` was {_short(was)}, is {_short(now)}"]


def _short(value: Any) -> str:
    """A JSON value in words: a model by its class, nothing as nothing."""
    if isinstance(value, Mapping):
        return str(value.get("class", "another")).rpartition(".")[2]
    return "not there" if value is None else repr(value)


def _hearing(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the detector of drift, without those that say what it leads to."""
    drift = meta["declaration"].get("drift") or {}
    return {name: value for name, value in drift.items() if name not in ("action", "boost")}


def _features(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {feature["name"]: feature for feature in meta["declaration"]["features"]}


def _fits(given: NDArray, blank: NDArray) -> bool:
    """Whether these are rows of the same shape; where they are not, whoever loads them says so."""
    return given.shape[1:] == blank.shape[1:]


def _by_name(given: NDArray, fill: NDArray, was: Sequence[str], now: Sequence[str]) -> NDArray:
    """Rows of `given`, one for each name it was made with, in the order of the names of now; new ones as in fill."""
    out = fill.copy()
    for i, name in enumerate(now):
        if name in was:
            out[i] = given[was.index(name)]
    return out


def _waiting(
    arrays: Mapping[str, NDArray], names: Mapping[str, tuple[Sequence[str], Sequence[str]]]
) -> dict[str, NDArray]:
    columns = {
        "pending/numeric": ("numeric", np.nan),
        "pending/categories": ("categories", 0),
        "pending/groups": ("label_groups", 0),
        "early/values": ("label_values", np.nan),
    }
    out = dict(arrays)
    for array, (axis, missing) in columns.items():
        given, (was, now) = arrays[array], names[axis]
        fill = np.full((len(now), len(given)), missing, given.dtype)
        out[array] = np.ascontiguousarray(_by_name(given.T, fill, was, now).T)
    out.setdefault("early/weight", np.ones(len(arrays["early/key"]), np.float32))  # read where labels have weights
    return out
