"""Search trees over the numbers of a column in Numba, with the moments of the targets, to find the best threshold."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from .compiling import copy_into, kernel
from .moments_kernels import Moments, added, fold_in, moments_at, taken_away, variance_of

GO, ADD, REMOVE, WEIGH = range(4)  # what is still to do on the walk through a search tree
AT_LEFT, AT_RIGHT, AT_NODE, AT_NODE_BELOW = range(4)  # how far the walk that prunes one is at a node


@kernel
def reduction_of(whole: Moments, left: Moments, right: Moments, least: float) -> float:
    """By how much a split reduces the variance; 0 where one side has less than `least` weight."""
    if left[0] < least or right[0] < least:
        return 0.0
    reduction = variance_of(whole)
    reduction -= left[0] / whole[0] * variance_of(left)
    reduction -= right[0] / whole[0] * variance_of(right)
    return reduction


@kernel
def rounded(x: float, factor: float) -> float:
    """x rounded to the nearest multiple of 1 / factor, halves to even, as the decimal number it is."""
    y = x * factor
    if abs(y) >= 2.0**52:
        return x
    z = float(np.rint(y))
    if abs(y - z) == 0.5:
        # Which side of the half x really lies on: the error of the product, exactly (Dekker 1971).
        a = 134217729.0 * x
        a = a - (a - x)
        b = 134217729.0 * factor
        b = b - (b - factor)
        error = ((a * b - y) + a * (factor - b) + (x - a) * b) + (x - a) * (factor - b)
        if error > 0.0:
            z = math.floor(y) + 1.0
        elif error < 0.0:
            z = math.floor(y)
    return z / factor


@kernel
def insert(x: float, y: float, weight: float, used: int, values: ndarray, children: ndarray, moments: ndarray) -> int:
    """Add a number to a search tree, node 0 the root; how many nodes it then has.

    Each node keeps the moments of the targets that came with its value, or came by on their way to a lower one. A
    value that finds no room is in the moments of those it came by, and can itself be no threshold.
    values, children, moments   float64 (V,), int32 (V, 2), float64 (V, 3)   changed in place
    """
    at, parent, side = 0, -1, 0
    if used > 0:
        while True:
            if x <= values[at]:
                fold_in(y, weight, moments[at])
                if x == values[at]:
                    return used
                side = 0
            else:
                side = 1
            parent = at
            at = int(children[at, side])
            if at == 0:
                break
    if used == values.shape[0]:
        return used
    if parent >= 0:
        children[parent, side] = used
    values[used] = x
    children[used] = 0
    moments[used] = 0.0
    fold_in(y, weight, moments[used])
    return used + 1


@kernel
def best_value_below(
    whole: Moments, least: float, used: int, values: ndarray, children: ndarray, moments: ndarray, stack: ndarray
) -> tuple[float, float, Moments, Moments]:
    """Merit, threshold and the targets on either side of the best split of a search tree; -inf: it is empty.

    The tree is walked in order; `below` holds what stands under the nodes whose right side is being walked.
    stack   int32 (4 V + 4, 2)   scratch
    """
    best, where, best_left, best_right = -math.inf, 0.0, whole, whole
    below = (0.0, 0.0, 0.0)
    depth = 0
    if used > 0:
        stack[0, 0], stack[0, 1] = GO, 0
        depth = 1
    while depth > 0:
        depth -= 1
        what, node = stack[depth, 0], stack[depth, 1]
        if what == GO:
            if children[node, 1] != 0:
                stack[depth, 0], stack[depth, 1] = REMOVE, node
                stack[depth + 1, 0], stack[depth + 1, 1] = GO, children[node, 1]
                stack[depth + 2, 0], stack[depth + 2, 1] = ADD, node
                depth += 3
            stack[depth, 0], stack[depth, 1] = WEIGH, node
            depth += 1
            if children[node, 0] != 0:
                stack[depth, 0], stack[depth, 1] = GO, children[node, 0]
                depth += 1
        elif what == ADD:
            below = added(below, moments_at(moments[node]))
        elif what == REMOVE:
            below = taken_away(below, moments_at(moments[node]))
        else:
            left = added(moments_at(moments[node]), below)
            right = taken_away(whole, left)
            merit = reduction_of(whole, left, right, least)
            if merit > best:
                best, where, best_left, best_right = merit, values[node], left, right
    return best, where, best_left, best_right


@kernel
def prune(
    whole: Moments, best: float, floor: float, least: float, used: int,
    values: ndarray, children: ndarray, moments: ndarray, stack: ndarray, kept: ndarray,
) -> int:  # fmt: skip
    """Drop from a search tree the values that are hopeless, from the bottom up; how many nodes are left.

    Hopeless: merit / best < floor, and all below are. stack int32 (4 V + 4, 2), kept float64 (V, 6): scratch.
    Source: Ikonomovska, Gama and Dzeroski (2011), Learning model trees from evolving data streams.
    """
    if used == 0:
        return 0
    below = (0.0, 0.0, 0.0)
    hopeless = False  # of the subtree walked last
    depth = 1
    stack[0, 0], stack[0, 1] = 0, AT_LEFT
    while depth > 0:
        node, phase = stack[depth - 1, 0], stack[depth - 1, 1]
        if phase == AT_LEFT:
            stack[depth - 1, 1] = AT_RIGHT
            hopeless = True
            if children[node, 0] != 0:
                stack[depth, 0], stack[depth, 1] = children[node, 0], AT_LEFT
                depth += 1
            continue
        if phase == AT_RIGHT:
            if not hopeless:
                depth -= 1
                continue
            stack[depth - 1, 1] = AT_NODE
            if children[node, 1] != 0:
                below = added(below, moments_at(moments[node]))
                stack[depth - 1, 1] = AT_NODE_BELOW
                stack[depth, 0], stack[depth, 1] = children[node, 1], AT_LEFT
                depth += 1
            continue
        if phase == AT_NODE_BELOW:
            below = taken_away(below, moments_at(moments[node]))
        depth -= 1
        if hopeless:
            left = added(moments_at(moments[node]), below)
            hopeless = reduction_of(whole, left, taken_away(whole, left), least) / best < floor
            if hopeless:
                if depth == 0:
                    return 0
                parent = stack[depth - 1, 0]
                side = 0 if stack[depth - 1, 1] == AT_RIGHT else 1
                children[parent, side] = 0
                children[node] = 0
    return compact(used, values, children, moments, stack, kept)


@kernel
def compact(used: int, values: ndarray, children: ndarray, moments: ndarray, stack: ndarray, kept: ndarray) -> int:
    """Move the nodes of a search tree that hang together to the front; how many they are. Arguments as in `prune`."""
    for node in range(used):
        kept[node, 0] = values[node]
        copy_into(kept[node, 1:4], moments[node])
        kept[node, 4] = children[node, 0]
        kept[node, 5] = children[node, 1]
    many = 1
    depth = 1
    stack[0, 0], stack[0, 1] = 0, 0  # the node as it was, and where it goes
    while depth > 0:
        depth -= 1
        was, to = stack[depth, 0], stack[depth, 1]
        values[to] = kept[was, 0]
        copy_into(moments[to], kept[was, 1:4])
        for side in range(2):
            child = int(kept[was, 4 + side])
            children[to, side] = many if child != 0 else 0
            if child != 0:
                stack[depth, 0], stack[depth, 1] = child, many
                depth += 1
                many += 1
    return many
