"""What each feature adds to a tree's prediction, in Numba: along the path that a row takes, and at its leaf.

How rows go down and how leaves vote is imported from tree_kernels.py; where that changes, delete `__pycache__`, for
Numba's cache does not see it. No fastmath.

Letters: B rows, N numeric columns, K categories, O outputs, C classes, M nodes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy import ndarray

from .tree_kernels import (
    ADAPTIVE,
    BAYES,
    BAYES_RIGHT,
    COUNT,
    KNOWN,
    LARGEST,
    LARGEST_VALUE,
    LEAST_VOTE,
    LEFT,
    MAJORITY_RIGHT,
    MEAN,
    MEAN_ERROR,
    MEAN_ONLY,
    MEAN_OR_MODEL,
    MODEL_ERROR,
    NODES,
    SLOT,
    SQUARES,
    Columns,
    RegressionSettings,
    RegressionTree,
    Scratch,
    Settings,
    Tree,
    find_value,
    learn_rows,
    learn_values,
    number_vote,
    place_of,
    step_down,
    total_of,
)


class Explaining(NamedTuple):
    """Room to explain in; nothing in it lasts."""

    order: ndarray  # int32 (M,): the nodes, each behind its parent
    sums: ndarray  # float64 (M, C): weight of each class below a node; (M, 2): weight and sum of the targets
    terms: ndarray  # float64 (N + K + 1, C): what each column adds to the votes; last: where they start
    votes: ndarray  # float64 (C,)
    shares: ndarray  # float64 (2, C)


@njit(cache=True, nogil=True, error_model="numpy")
def add_up(links: ndarray, order: ndarray, sums: ndarray) -> None:
    """Make the sums (M, .) of each branch those of its two children, where those of leaves are there.

    order   int32 (M,)   the nodes, each behind its parent, as `put_in_order` writes them
    """
    for at in range(order.shape[0] - 1, -1, -1):
        node = order[at]
        left = int(links[node, LEFT])
        if left != 0:
            for c in range(sums.shape[1]):
                sums[node, c] = sums[left, c] + sums[left + 1, c]


@njit(cache=True, nogil=True, error_model="numpy")
def put_in_order(links: ndarray, order: ndarray) -> int:
    """Write the nodes that hang on the root to order (M,), each behind its parent; how many they are."""
    order[0] = 0
    many = 1
    at = 0
    while at < many:
        left = links[order[at], LEFT]
        if left != 0:
            order[many] = left
            order[many + 1] = left + 1
            many += 2
        at += 1
    return many


@njit(cache=True, nogil=True, error_model="numpy")
def share_of(sums: ndarray, node: int, c: int) -> float:
    """The share of a class below a node; where nothing is below it, every class is as likely as another."""
    total = 0.0
    for k in range(sums.shape[1]):
        total += sums[node, k]
    return sums[node, c] / total if total > 0.0 else 1.0 / sums.shape[1]


@njit(cache=True, nogil=True, error_model="numpy")
def vote_by_column(node: int, numeric: ndarray, categories: ndarray, tree: Tree, terms: ndarray) -> None:
    """Write what each column of a row adds to the votes of a leaf, as `vote` has them, to terms (N + K + 1, C).

    The classes are in the order of the leaf; last is where the votes start.
    """
    N, K = numeric.shape[0], categories.shape[0]
    slot = int(tree.links[node, SLOT])
    total = total_of(node, tree.links, tree.counts, tree.classes)
    terms[:] = 0.0
    for i in range(tree.links[node, KNOWN]):
        c = tree.classes[node, i]
        if not tree.counts[node, c] > 0.0:
            continue
        terms[N + K, i] = max(math.log(tree.counts[node, c] / total), LEAST_VOTE)
        for j in range(N):
            x = np.float64(numeric[j])
            if x - x == 0.0:
                of = tree.gaussians[j, slot, c]
                terms[j, i] = number_vote(x, of[COUNT], of[MEAN], of[SQUARES])
        for k in range(K):
            place = find_value(categories[k], tree.values[k, slot]) if categories[k] != 0 else -1
            if place >= 0:
                share = tree.value_counts[k, slot, place, c] / tree.category_totals[k, slot, c, 0]
                if share > 0.0:
                    terms[N + k, i] = math.log(share)


@njit(cache=True, nogil=True, error_model="numpy")
def write_shares(votes: ndarray, known: int, shares: ndarray) -> None:
    """Write the exponentials of the first `known` votes, by their sum, to shares."""
    most = votes[0]
    for i in range(1, known):
        most = max(most, votes[i])
    total = 0.0
    for i in range(known):
        shares[i] = math.exp(votes[i] - most)
        total += shares[i]
    for i in range(known):
        shares[i] /= total


@njit(cache=True, nogil=True, error_model="numpy")
def explain_votes(node: int, tree: Tree, room: Explaining, out: ndarray) -> None:
    """Add to out (O, N + K + 1) by what naive Bayes differs from the shares of a leaf, its terms in room.terms.

    Each column gets what it changes when the columns are heard one after another, on average over the order in which
    they are declared and the reverse.
    """
    known, C = int(tree.links[node, KNOWN]), tree.counts.shape[1]
    votes, before, after = room.votes, room.shares[0], room.shares[1]
    F = out.shape[1] - 1
    first = C - out.shape[0]
    for way in range(2):
        for i in range(known):
            votes[i] = room.terms[F, i]
        write_shares(votes, known, before)
        if way == 0:  # a class of no weight votes as if it had all
            for i in range(known):
                c = tree.classes[node, i]
                if c >= first:
                    out[c - first, F] += before[i] - share_of(room.sums, node, c)
        for step in range(F):
            f = step if way == 0 else F - 1 - step
            for i in range(known):
                votes[i] += room.terms[f, i]
            write_shares(votes, known, after)
            for i in range(known):
                c = tree.classes[node, i]
                if c >= first:
                    out[c - first, f] += 0.5 * (after[i] - before[i])
                before[i] = after[i]


@njit(cache=True, nogil=True, error_model="numpy")
def explain_rows(
    numeric: ndarray, categories: ndarray, tree: Tree, settings: Settings, columns: Columns, room: Explaining,
    out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the predictions of B rows to out (B, O, N + K + 1); the state is only read.

    Last is the share of the class among all that the leaves hold. A branch adds to its column by what the share among
    what is below changes on the way to the child; one whose feature is gone adds to the last. Where a leaf predicts by
    naive Bayes `explain_votes` adds the rest. Other arguments as in `learn_rows`.
    Source: Saabas (2014), Interpreting random forests.
    """
    F, C = numeric.shape[1] + categories.shape[1], tree.counts.shape[1]
    first = C - out.shape[1]
    order = room.order[:0]
    if tree.size[NODES] > 0:
        order = room.order[: put_in_order(tree.links, room.order)]
        for at in range(order.shape[0]):
            room.sums[order[at]] = tree.counts[order[at]]
        add_up(tree.links, order, room.sums)
    for i in range(numeric.shape[0]):
        out[i] = 0.0
        for o in range(out.shape[1]):
            out[i, o, F] = share_of(room.sums, 0, o + first) if order.shape[0] > 0 else 1.0 / C
        if order.shape[0] == 0:
            continue
        node = 0
        while tree.links[node, LEFT] != 0:
            child, _ = step_down(
                node, numeric[i], categories[i], tree.links, tree.column, tree.threshold, tree.value, tree.weights,
                columns.keys, columns.places,
            )  # fmt: skip
            place = place_of(tree.column[node], columns.keys, columns.places)
            for o in range(out.shape[1]):
                change = share_of(room.sums, child, o + first) - share_of(room.sums, node, o + first)
                out[i, o, place if place >= 0 else F] += change
            node = child
        total = total_of(node, tree.links, tree.counts, tree.classes)
        bayes = tree.links[node, SLOT] >= 0 and (
            (settings.prediction == BAYES and total >= settings.nb_threshold)
            or (
                settings.prediction == ADAPTIVE
                and tree.weights[node, BAYES_RIGHT] >= tree.weights[node, MAJORITY_RIGHT]
            )
        )
        if bayes and tree.links[node, KNOWN] > 0 and total != 0.0:
            vote_by_column(node, numeric[i], categories[i], tree, room.terms)
            explain_votes(node, tree, room, out[i])


@njit(cache=True, nogil=True, error_model="numpy")
def explain_then_learn_rows(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    settings: Settings, columns: Columns, scratch: Scratch, room: Explaining, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_rows`."""
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_rows(before[row], categories[row], tree, settings, columns, room, contributions[row])
        learn_rows(
            before[row], numeric[row], same, categories[row], y[row], weight[row], tree, settings, columns, scratch,
            out[row],
        )  # fmt: skip


# --- regression


@njit(cache=True, nogil=True, error_model="numpy")
def mean_of(sums: ndarray, node: int) -> float:
    """The mean of the targets below a node; 0 where there are none."""
    mean = sums[node, 1] / sums[node, 0] if sums[node, 0] > 0.0 else 0.0
    return min(max(mean, -LARGEST_VALUE), LARGEST_VALUE)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns,
    room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the predictions of B rows to out (B, 1, N + K + 1); the state is only read.

    Last is the mean of all targets that the leaves hold. A branch adds to its column by what the mean of what is below
    changes on the way to the child; one whose feature is gone adds to the last. Where a leaf predicts by its linear
    model each column adds its weight times its value besides, and to the last comes by what the intercept differs from
    the mean of the leaf.
    Other arguments as in `learn_values`.
    Source: Saabas (2014), Interpreting random forests.
    """
    F = numeric.shape[1] + categories.shape[1]
    order = room.order[:0]
    if tree.size[NODES] > 0:
        order = room.order[: put_in_order(tree.links, room.order)]
        for at in range(order.shape[0]):
            count, mean = tree.targets[order[at], 0], tree.targets[order[at], 1]
            room.sums[order[at], 0] = count
            room.sums[order[at], 1] = count * mean
        add_up(tree.links, order, room.sums)
    for i in range(numeric.shape[0]):
        out[i] = 0.0
        if order.shape[0] == 0:
            continue
        out[i, 0, F] = mean_of(room.sums, 0)
        node = 0
        while tree.links[node, LEFT] != 0:
            child, _ = step_down(
                node, numeric[i], categories[i], tree.links, tree.column, tree.threshold, tree.value, tree.weights,
                columns.keys, columns.places,
            )  # fmt: skip
            place = place_of(tree.column[node], columns.keys, columns.places)
            out[i, 0, place if place >= 0 else F] += mean_of(room.sums, child) - mean_of(room.sums, node)
            node = child
        errors = tree.weights[node]
        if settings.prediction == MEAN_ONLY or (
            settings.prediction == MEAN_OR_MODEL and errors[MEAN_ERROR] < errors[MODEL_ERROR]
        ):
            continue
        slot = int(tree.links[node, SLOT])
        out[i, 0, F] += tree.intercepts[slot] - mean_of(room.sums, node)
        for j in range(numeric.shape[1]):
            x = np.float64(numeric[i, j])
            if x - x == 0.0:
                part = tree.coefficients[j, slot] * min(max(x, -LARGEST), LARGEST)
                out[i, 0, j] += min(max(part, -LARGEST_VALUE), LARGEST_VALUE)


@njit(cache=True, nogil=True, error_model="numpy")
def explain_then_learn_values(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: RegressionTree,
    settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray, room: Explaining, out: ndarray,
    contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_values`."""
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_values(before[row], categories[row], tree, settings, columns, room, contributions[row])
        learn_values(
            before[row], numeric[row], categories[row], y[row], weight[row], tree, settings, columns, stack, kept,
            out[row],
        )  # fmt: skip
