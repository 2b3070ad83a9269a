"""Nodes that watch their errors in Numba, and leaves that learn beside a branch and may take its place."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .adwin_kernels import LEVELS, hear
from .compiling import copy_into, kernel
from .moments_kernels import fold_in
from .tree_nodes import DEPTH, LEFT, NODES, PARENT, REFUSED, SLOT, SLOTS, TOTAL, AnyTree

WATCHED, WRONG = range(2)  # columns of the `errors` of an adaptive tree: count and mean; then the sum of squares
SPARE = 4  # nodes that only alternates may take: for one of them, and for its split
BEGUN, TAKEN, GIVEN_UP = range(3)  # places in its `changes`
ONE_IN_E = math.exp(-1.0)


class Adaptive(NamedTuple):
    """What an adaptive tree keeps beside a `Tree`. Nodes and slots that are given back are used again."""

    alternate: ndarray  # int32 (M,): the leaf that learns beside a branch; 0: none
    errors: ndarray  # float64 (M, 3): count, mean and sum of squares of the errors of a node
    window_totals: ndarray  # float64 (M, LEVELS, BUCKETS + 1): the windows of `hear`
    window_held: ndarray  # int64 (M, LEVELS)
    window_sums: ndarray  # float64 (M, 3)
    free: ndarray  # int64 (2,): pairs of nodes, and slots, that were given back
    free_nodes: ndarray  # int32 (S,): the first of each such pair
    free_slots: ndarray  # int32 (S,)
    changes: ndarray  # int64 (3,): alternates begun, taken by the test, given up
    drawn: ndarray  # uint64 (1,): random numbers drawn


class AdaptiveSettings(NamedTuple):
    """What an adaptive tree is told beside `Settings`."""

    drift_delta: float
    window: float  # examples that a branch and its alternate have seen before they are compared
    significance: float  # chance that a difference between them is none
    bootstrap: bool
    key: np.uint64


@kernel
def clear_node(node: int, tree: AnyTree, adaptive: Adaptive) -> None:
    """Make a node as if it had never been used, but for what it knows of the labels: leaves begin with that."""
    tree.links[node] = 0
    tree.column[node] = 0
    tree.threshold[node] = 0.0
    tree.value[node] = 0
    tree.weights[node] = 0.0
    adaptive.alternate[node] = 0
    watch_anew(node, adaptive)


@kernel
def watch_anew(node: int, adaptive: Adaptive) -> None:
    """Forget how a node did."""
    adaptive.errors[node] = 0.0
    adaptive.window_totals[node] = 0.0
    adaptive.window_held[node] = 0
    adaptive.window_sums[node] = 0.0


@kernel
def take_nodes(spare: int, tree: AnyTree, adaptive: Adaptive) -> int:
    """The first of two nodes that are free, so that as many as `spare` still are; 0: there is no room."""
    if tree.size[NODES] - 2 * adaptive.free[0] + 2 + spare > tree.links.shape[0]:
        tree.size[REFUSED] += 1
        return 0
    if adaptive.free[0] > 0:
        adaptive.free[0] -= 1
        return int(adaptive.free_nodes[adaptive.free[0]])
    tree.size[NODES] += 2
    return int(tree.size[NODES]) - 2


@kernel
def kept_from(leaf: int, tree: AnyTree) -> int:
    """How many nodes a leaf that splits leaves free: a full tree could not adapt if it took what alternates need."""
    return 0 if leaf != 0 and tree.links[leaf, PARENT] < 0 else SPARE


@kernel
def give_nodes(first: int, adaptive: Adaptive) -> None:
    """Give back two nodes, which were cleared."""
    adaptive.free_nodes[adaptive.free[0]] = first
    adaptive.free[0] += 1


@kernel
def take_slot(tree: AnyTree, adaptive: Adaptive) -> int:
    """A slot that is free, to be cleared: whoever found room for two nodes finds one."""
    if adaptive.free[1] > 0:
        adaptive.free[1] -= 1
        return int(adaptive.free_slots[adaptive.free[1]])
    tree.size[SLOTS] += 1
    return int(tree.size[SLOTS]) - 1


@kernel
def give_slot(slot: int, adaptive: Adaptive) -> None:
    """Give back a slot; -1: there is none."""
    if slot >= 0:
        adaptive.free_slots[adaptive.free[1]] = slot
        adaptive.free[1] += 1


@kernel
def begin_alternate(at: int, tree: AnyTree, adaptive: Adaptive) -> int:
    """Let a leaf, whose slot is to be cleared, learn beside a branch; the leaf, or 0 if there is no room for it."""
    node = take_nodes(0, tree, adaptive)
    if node != 0:
        tree.links[node, PARENT] = -1
        tree.links[node, DEPTH] = tree.links[at, DEPTH]
        tree.links[node, SLOT] = take_slot(tree, adaptive)
        adaptive.alternate[at] = node
        adaptive.changes[BEGUN] += 1
    return node


@kernel
def drop_alternate(at: int, tree: AnyTree, adaptive: Adaptive) -> None:
    """Give up the leaf that learns beside a branch."""
    node = int(adaptive.alternate[at])
    give_slot(int(tree.links[node, SLOT]), adaptive)
    clear_node(node, tree, adaptive)
    give_nodes(node, adaptive)
    adaptive.alternate[at] = 0


@kernel
def drop_below(branch: int, nodes_too: bool, tree: AnyTree, adaptive: Adaptive, stack: ndarray) -> int:
    """Give up all alternates below a branch, and give back its nodes and slots too, or not; how many alternates.

    stack   int32 (M,)  scratch
    """
    alternates = 0
    stack[0] = branch
    depth = 1
    while depth > 0:
        depth -= 1
        at = int(stack[depth])
        left = int(tree.links[at, LEFT])
        if at != branch:
            if adaptive.alternate[at] != 0:
                drop_alternate(at, tree, adaptive)
                alternates += 1
            if nodes_too:
                give_slot(int(tree.links[at, SLOT]), adaptive)
                clear_node(at, tree, adaptive)
        if left != 0:
            if nodes_too:
                give_nodes(left, adaptive)  # what is given is taken by nobody before this is done
            stack[depth], stack[depth + 1] = left, left + 1
            depth += 2
    return alternates


@kernel
def take_alternate(at: int, tree: AnyTree, adaptive: Adaptive, stack: ndarray) -> None:
    """Put the alternate of a branch in its place, and give back what was below the branch.

    What it knows of the labels is left to the caller.
    """
    drop_below(at, True, tree, adaptive, stack)
    node = int(adaptive.alternate[at])
    parent = int(tree.links[at, PARENT])
    more = tree.weights[node, TOTAL] - tree.weights[at, TOTAL]
    copy_into(tree.links[at], tree.links[node])
    tree.links[at, PARENT] = parent
    tree.column[at] = tree.column[node]
    tree.threshold[at] = tree.threshold[node]
    tree.value[at] = tree.value[node]
    copy_into(tree.weights[at], tree.weights[node])
    adaptive.alternate[at] = 0
    copy_into(adaptive.errors[at], adaptive.errors[node])
    for level in range(LEVELS):
        copy_into(adaptive.window_totals[at, level], adaptive.window_totals[node, level])
    copy_into(adaptive.window_held[at], adaptive.window_held[node])
    copy_into(adaptive.window_sums[at], adaptive.window_sums[node])
    left = int(tree.links[at, LEFT])
    if left != 0:
        tree.links[left, PARENT] = at
        tree.links[left + 1, PARENT] = at
    clear_node(node, tree, adaptive)
    give_nodes(node, adaptive)
    while parent >= 0:
        tree.weights[parent, TOTAL] += more
        parent = int(tree.links[parent, PARENT])


@kernel
def watch(node: int, error: float, delta: float, adaptive: Adaptive) -> bool:
    """Tell a node an error; whether its errors have changed, and not for the better."""
    before = adaptive.errors[node, WRONG]
    window = adaptive.window_totals[node], adaptive.window_held[node], adaptive.window_sums[node]
    changed = hear(error, delta, *window)
    fold_in(error, 1.0, adaptive.errors[node])
    if changed and before > adaptive.errors[node, WRONG]:
        adaptive.errors[node] = 0.0
        return False
    return changed
