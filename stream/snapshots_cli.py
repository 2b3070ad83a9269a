"""`headrace snapshots list` and `show`: what lies in Redis for one slot of a pipeline, in tables or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..connectors.leases import Slots
from ..connectors.store import SnapshotInfo, SnapshotStore
from ..errors import SnapshotError

IN_JSON_ALONE = ("pipeline", "declaration", "label_groups", "label_values")  # long, and for machines
LOSSES = ("log_loss", "loss", "pinball", "poisson_deviance", "mae", "rmse")


def list_snapshots(
    url: str,
    pipeline: str,
    slot: int = 0,
    *,
    as_json: bool = False,
    hmac_key: bytes | None = None,
    console: Console | None = None,
) -> None:
    """Print the kept snapshots, newest first: version, age, size, events, labels, loss, offsets.

    Below them, unless there is nothing but slot 0: which slots there are, and which workers hold them.

    Raises SnapshotError, naming what the Redis does hold, when there is none; Unreachable and Refused as the store.
    """
    store = SnapshotStore(url, pipeline, slot, hmac_key=hmac_key)
    console = console or Console()
    infos = _kept(store)[::-1]
    current = store.current()
    if as_json:
        console.out(json.dumps([summary(info) for info in infos], indent=2), highlight=False)
        return
    table = Table(title=Text(f"snapshots of {pipeline}, slot {slot}, in {store.address}"), title_justify="left")
    for column in ("version", "age", "size", "events", "labels", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("offsets", overflow="fold")
    for info in infos:
        mark = "*" if current is not None and info.version == current.version else ""
        found = summary(info)
        loss = "-" if found["loss"] is None else f"{found['loss']:.4f}"
        table.add_row(
            f"{mark}{info.version}",
            age(time.time() - info.created),
            size(info.bytes_total),
            _count(found["events"]),
            _count(found["labels"]),
            loss,
            Text(_text(found["offsets"]) if found["offsets"] else "-"),
        )
    console.print(table)
    console.print("* the current one: workers start from it, readers serve it")
    if told := _slots(Slots(url, pipeline)):
        console.print(Text(told))


def show_snapshot(
    url: str,
    pipeline: str,
    slot: int = 0,
    version: int | None = None,
    *,
    as_json: bool = False,
    hmac_key: bytes | None = None,
    console: Console | None = None,
) -> None:
    """Print the manifest of one version, the current one if none is given: what it stands for and its arrays.

    Raises as `list_snapshots` does, and SnapshotError when the version is not kept or was altered.
    """
    store = SnapshotStore(url, pipeline, slot, hmac_key=hmac_key)
    console = console or Console()
    if version is None and store.current() is None:
        _kept(store)  # raises with what the Redis holds
    info = store.show(version)
    if as_json:
        console.out(json.dumps(msgspec.to_builtins(info), indent=2), highlight=False)
        return
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("version", f"{info.version}, after {info.parent or 'none'}"),
        ("pipeline", f"{info.pipeline}, slot {info.slot}, in {store.address}"),
        ("created", f"{age(time.time() - info.created)} ago"),
        ("token", str(info.token)),
        ("size", f"{size(info.bytes_total)} in {len(info.arrays)} arrays"),
        *((key, _text(value)) for key, value in info.meta.items() if key not in IN_JSON_ALONE),
    ):
        facts.add_row(Text(name), Text(value))
    console.print(facts)
    table = Table()
    table.add_column("array", overflow="fold")
    for column in ("dtype", "shape", "size", "chunks"):
        table.add_column(column, justify="right")
    for entry in info.arrays:
        taken = sum(part for _, part in entry.chunks)
        table.add_row(Text(entry.name), entry.dtype, str(entry.shape), size(taken), str(len(entry.chunks)))
    console.print(table)


def summary(info: SnapshotInfo) -> dict[str, Any]:
    """What one line of the list says, as values; None where the meta does not tell."""
    metrics = info.meta.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    loss = next((metrics[name] for name in LOSSES if isinstance(metrics.get(name), int | float)), None)
    return {
        "version": info.version,
        "token": info.token,
        "created": info.created,
        "bytes": info.bytes_total,
        "events": metrics.get("events"),
        "labels": metrics.get("labels"),
        "loss": loss,
        "offsets": info.meta.get("offsets"),
    }


def age(seconds: float) -> str:
    """A duration in its largest unit: 3 s, 12 min, 5 h, 2 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(count: int) -> str:
    """Bytes in B, KB, MB or GB of 1024."""
    amount, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024 or unit == "GB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def _slots(slots: Slots) -> str:
    """`slots: 0, held by pid 7 on a since ...; 1, held by nobody`; empty if slot 0 alone exists and nobody holds it."""
    found = {number: slot for number, slot in slots.look().items() if slot.exists or slot.holder is not None}
    if [*found] == [0] and found[0].holder is None:
        return ""
    return "slots: " + "; ".join(f"{number}, held by {slot.holder or 'nobody'}" for number, slot in found.items())


def _kept(store: SnapshotStore) -> list[SnapshotInfo]:
    try:
        return store.kept()
    except SnapshotError:
        if store.current() is not None:
            raise
        others = [f"{pipeline} (slot {slot})" for pipeline, slot in store.neighbours()]
        there = f"holds {', '.join(others)}" if others else "holds no snapshots at all; check --redis"
        raise SnapshotError(f'no snapshot under "{store.name}"; Redis at {store.address} {there}') from None


def _text(value: Any) -> str:
    """A JSON value in one line: {"events": {"0": 5}} becomes `events 0: 5`."""
    if isinstance(value, Mapping):
        parts = []
        numbered = all(key.isdigit() for key in value)
        for key, inner in sorted(value.items(), key=lambda item: int(item[0])) if numbered else value.items():
            parts.append(f"{key} {_text(inner)}" if isinstance(inner, Mapping) else f"{key}: {_text(inner)}")
        return ", ".join(parts)
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
