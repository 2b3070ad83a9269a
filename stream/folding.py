"""Which aggregates of a pipeline move with an event and which with a label, and where they are read."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import NDArray

from ..models.base import Array
from .aggregate_kernels import NO_VALUE, THE_LABEL
from .aggregates import SLOTTED, Fold, FoldPlan, GroupTable, group_layout
from .columns import Group, groups_of, value_columns, value_name
from .declaration import Pipeline
from .features import Aggregate


class Folding:
    """The aggregates of a pipeline, over arrays that the engine owns.

    Once it is bound, three plans say what rows do: `events` what an event does, `looks` what a row does that only looks
    at them, `labels` what a label does; its groups are `label_groups` alone.
    """

    def __init__(self, pipeline: Pipeline, immediate: bool) -> None:
        """immediate  labels are in the event: what follows labels then moves with the event"""
        self.groups = groups_of(pipeline)
        column = {name: j for j, name in enumerate(pipeline.numeric)}
        values = {source: list(value_columns(pipeline, source)) for source in ("event", "label")}
        self.value_columns = {"events": len(values["event"]), "labels": len(values["label"])}  # of Batch.values
        # per group: (fold, column of numeric, source, column of Batch.values)
        self.folds: list[list[tuple[Fold, int, str, int]]] = [[] for _ in self.groups]
        for f in pipeline.features:
            if not isinstance(f, Aggregate):
                continue
            g = self.groups.index(Group(f.by, f.capacity))
            if f.value is None:
                at = NO_VALUE
            elif isinstance(f.value, str):
                at = THE_LABEL
            else:
                at = values[f.source].index(value_name(f.value))
            self.folds[g].append((Fold(f), column[f.name], f.source, at))
        self._moves_with_event = {"event", "label"} if immediate else {"event"}
        moved = [{s for _, _, s, _ in folds} for folds in self.folds]
        self._event_groups = [g for g, sources in enumerate(moved) if sources & self._moves_with_event]
        self.label_groups = [g for g, sources in enumerate(moved) if sources - self._moves_with_event]
        # arrays with a row for each slot of a group, and which group
        self.slotted = {f"group/{group.name}/{k}": g for g, group in enumerate(self.groups) for k in SLOTTED} | {
            f"aggregate/{fold.feature.name}/{k}": g
            for g, folds in enumerate(self.folds)
            for fold, *_ in folds
            for k in fold.layout()
        }
        self.derived = {f"group/{group.name}/index" for group in self.groups}  # not saved: made from the keys

    def layout(self) -> dict[str, Array]:
        """The arrays: "group/..." of the keys, "aggregate/..." of what is kept for each."""
        layout: dict[str, Array] = {}
        for group, folds in zip(self.groups, self.folds, strict=True):
            layout |= {f"group/{group.name}/{k}": a for k, a in group_layout(group.capacity).items()}
            for fold, *_ in folds:
                layout |= {f"aggregate/{fold.feature.name}/{k}": a for k, a in fold.layout().items()}
        return layout

    def used(self) -> dict[str, int]:
        """How many rows of each slotted array are in use; they are the first ones."""
        return {name: self.tables[g].size for name, g in self.slotted.items()}

    def bind(self, arrays: Mapping[str, NDArray]) -> None:
        """Work in place on arrays as `layout()` says; they stay where they are."""
        self.tables = [
            GroupTable(**{k: arrays[f"group/{group.name}/{k}"] for k in group_layout(group.capacity)})
            for group in self.groups
        ]
        own = [
            [{k: arrays[f"aggregate/{fold.feature.name}/{k}"] for k in fold.layout()} for fold, *_ in folds]
            for folds in self.folds
        ]
        at_event, looking, at_label = list[list[int]](), list[list[int]](), list[list[int]]()
        for g, folds in enumerate(self.folds):
            for (fold, column, source, at), a in zip(folds, own[g], strict=True):
                moves = source in self._moves_with_event
                at_event.append(fold.row(a, g, moves, at if moves else NO_VALUE, column))
                looking.append(fold.row(a, g, False, NO_VALUE, column))
        for row, g in enumerate(self.label_groups):
            for (fold, _, source, at), a in zip(self.folds[g], own[g], strict=True):
                moves = source == "label"
                at_label.append(fold.row(a, row, moves, at if moves and at >= 0 else THE_LABEL, -1))
        tables = list(enumerate(self.tables))
        self.events = FoldPlan([t.row(g, g in self._event_groups) for g, t in tables], at_event)
        self.looks = FoldPlan([t.row(g, False) for g, t in tables], looking)
        label_tables = [self.tables[g].row(row, True) for row, g in enumerate(self.label_groups)]
        self.labels = FoldPlan(label_tables, at_label)

    def evicted(self) -> int:
        """Keys that had to go, so far."""
        return sum(table.evicted for table in self.tables)

    def reindex(self) -> None:
        """Make what is derived."""
        for table in self.tables:
            table.reindex()
