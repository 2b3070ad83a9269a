"""A forest of classes in Numba: members with two trees each, of which one serves and the other may grow behind it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .adwin_kernels import hear
from .compiling import inlined, kernel
from .label_kernels import class_of
from .random_kernels import key_of_member, poisson
from .tree_kernels import judge, learn_row, write_shares
from .tree_nodes import KNOWN, NODES, NOTHING, SLOTS, VOTES, Columns, Scratch, Settings, Tree, leaf_of
from .tree_split_kernels import clear_slot, try_to_split

SERVES, GROWS = range(2)  # columns of the `members` of a forest
WARNINGS, DRIFTS = range(2)  # columns of its `changes`


class Forest(NamedTuple):
    """What a forest keeps beside a `Tree`, whose arrays 2 T trees share in equal parts: member t has 2 t and 2 t + 1.

    A column is seen by a leaf if the leaf has drawn it: `first` says so. Nodes and slots are those of the whole array.
    """

    members: ndarray  # int32 (T, 2): which of its trees serves, whether the other one grows
    scores: ndarray  # float64 (T, 2): weight of what the serving tree got right, and of all it was asked
    changes: ndarray  # int64 (T, 2): warnings, drifts
    window_totals: ndarray  # float64 (T, 2, LEVELS, BUCKETS + 1): the windows of `hear`, for warnings and for drifts
    window_held: ndarray  # int64 (T, 2, LEVELS)
    window_sums: ndarray  # float64 (T, 2, 3)
    drawn: ndarray  # uint64 (T,): random numbers drawn


class ForestSettings(NamedTuple):
    """What a forest is told beside `Settings`."""

    seed: np.uint64
    least: float  # exp(-lambda)
    weighted: bool  # whether the votes of a tree count by its accuracy
    warning_delta: float  # 0: no warnings
    drift_delta: float  # 0: no drifts


@kernel
def clear_tree(at: int, tree: Tree) -> None:
    """Make one of the trees of a forest as if it had never been used."""
    size = tree.size[at]
    begin = at * (tree.links.shape[0] // tree.size.shape[0])
    end = begin + int(size[NODES])
    tree.links[begin:end] = 0
    tree.column[begin:end] = 0
    tree.threshold[begin:end] = 0.0
    tree.value[begin:end] = 0
    tree.weights[begin:end] = 0.0
    tree.counts[begin:end] = 0.0
    tree.classes[begin:end] = 0
    first = at * (tree.seen.shape[0] // tree.size.shape[0])
    for slot in range(first, first + int(size[SLOTS])):
        clear_slot(slot, True, tree)
    size[:] = 0


@inlined
def most_likely(node: int, what: int, votes: ndarray, links: ndarray, classes: ndarray) -> int:
    """The class with most of the votes of a leaf, of equals the lowest; -1: it knows nothing."""
    best = -1
    most = -1.0
    if what != NOTHING:
        for i in range(links[node, KNOWN]):
            c = int(classes[node, i])
            if votes[i] > most or (votes[i] == most and c < best):
                best, most = c, votes[i]
    return best


@inlined
def watch_member(t: int, error: float, tree: Tree, forest: Forest, choices: ForestSettings) -> None:
    """Tell a member of a forest an error: a warning begins a tree in the background, a drift puts it in its place."""
    members = forest.members[t]
    totals, held, sums = forest.window_totals[t], forest.window_held[t], forest.window_sums[t]
    if choices.warning_delta > 0.0 and hear(error, choices.warning_delta, totals[0], held[0], sums[0]):
        clear_tree(2 * t + 1 - int(members[SERVES]), tree)
        members[GROWS] = 1
        forest.changes[t, WARNINGS] += 1
    if choices.drift_delta > 0.0 and hear(error, choices.drift_delta, totals[1], held[1], sums[1]):
        clear_tree(2 * t + int(members[SERVES]), tree)
        if members[GROWS] != 0:
            members[SERVES] = 1 - members[SERVES]
            members[GROWS] = 0
            totals[0] = 0.0
            held[0] = 0
            sums[0] = 0.0
        forest.scores[t] = 0.0
        forest.changes[t, DRIFTS] += 1


@kernel
def predict_forest(
    numeric: ndarray, categories: ndarray, tree: Tree, forest: Forest, settings: Settings, choices: ForestSettings,
    columns: Columns, scratch: Scratch, sums: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, O); the state is only read. Arguments as in `learn_forest`."""
    size, links, column, threshold, value = tree.size, tree.links, tree.column, tree.threshold, tree.value
    weights, counts, classes, gaussians = tree.weights, tree.counts, tree.classes, tree.gaussians
    values, value_counts, category_totals = tree.values, tree.value_counts, tree.category_totals
    keys, places, votes, found = columns.keys, columns.places, scratch.votes, scratch.found
    C, nodes = counts.shape[1], links.shape[0] // size.shape[0]
    sums[:] = 0.0
    for t in range(forest.members.shape[0]):
        serving = 2 * t + int(forest.members[t, SERVES])
        if size[serving, NODES] == 0:
            continue
        share = share_right(t, forest.scores) if choices.weighted else 1.0
        for i in range(numeric.shape[0]):
            node, _ = leaf_of(
                serving * nodes, numeric[i], categories[i], links, column, threshold, value, weights, keys, places
            )
            what = judge(
                node, numeric[i], categories[i], links, weights, counts, classes, gaussians, values, value_counts,
                category_totals, settings, votes, found,
            )  # fmt: skip
            if what != NOTHING:
                for k in range(links[node, KNOWN]):
                    sums[i, classes[node, k]] += votes[k] * share
    for i in range(numeric.shape[0]):
        write_shares(sums[i], C, out[i])


@inlined
def share_right(t: int, scores: ndarray) -> float:
    """By what the votes of a member count: the share it got right; 1 where that is none, as River."""
    return scores[t, 0] / scores[t, 1] if scores[t, 0] > 0.0 else 1.0


@kernel
def learn_forest(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    forest: Forest, settings: Settings, choices: ForestSettings, columns: Columns, scratch: Scratch, sums: ndarray,
    out: ndarray,
) -> None:  # fmt: skip
    """Member by member, and row by row: predict before[i], then learn numeric[i]. Arguments as in `learn_rows`, and

    forest           the rest of the state, changed in place
    sums             float64 (B, C)  scratch; (0, C) where no predictions are wanted

    Members do not know of each other, so that each goes through all rows while its trees are in the processor's cache.
    Result does not depend on where the stream is cut.
    Source: Gomes and others (2017), Adaptive random forests for evolving data stream classification.
    """
    size, links, column, threshold, value = tree.size, tree.links, tree.column, tree.threshold, tree.value
    weights, counts, classes, gaussians = tree.weights, tree.counts, tree.classes, tree.gaussians
    values, value_counts, category_totals = tree.values, tree.value_counts, tree.category_totals
    keys, places, votes, found = columns.keys, columns.places, scratch.votes, scratch.found
    seen, first, category_first = tree.seen, tree.first, tree.category_first
    members, scores, drawn = forest.members, forest.scores, forest.drawn
    B, C = numeric.shape[0], counts.shape[1]
    nodes, slots = links.shape[0] // size.shape[0], seen.shape[0] // size.shape[0]
    wanted = out.shape[0] > 0
    sums[:] = 0.0
    for t in range(members.shape[0]):
        key = key_of_member(choices.seed, t)
        for i in range(B):
            serving = 2 * t + int(members[t, SERVES])
            c = class_of(np.float64(y[i, 0]), C, out.shape[1] == 1)
            w = np.float64(weight[i])
            learns = c >= 0 and w > 0.0 and w - w == 0.0
            node, asked, what = -1, True, NOTHING
            for look in range(2):  # what is predicted, and what would be for the row as it is learned
                if not (wanted if look == 0 else learns and not (wanted and same)) or size[serving, NODES] == 0:
                    continue
                x = before[i] if look == 0 else numeric[i]
                node, asked = leaf_of(
                    serving * nodes, x, categories[i], links, column, threshold, value, weights, keys, places
                )
                what = judge(
                    node, x, categories[i], links, weights, counts, classes, gaussians, values, value_counts,
                    category_totals, settings, votes, found,
                )  # fmt: skip
                if look == 0 and what != NOTHING:
                    share = share_right(t, scores) if choices.weighted else 1.0
                    for k in range(links[node, KNOWN]):
                        sums[i, classes[node, k]] += votes[k] * share
            if not learns:
                continue
            error = 0.0 if most_likely(node, what, votes, links, classes) == c else 1.0
            scores[t, 0] += w * (1.0 - error)
            scores[t, 1] += w
            many = poisson(choices.least, key, drawn, t)
            if many == 0:
                continue
            for which in range(2):  # the tree in the background first, as River
                if which == 0 and members[t, GROWS] == 0:
                    continue
                at, voted, own_votes, own_leaf = serving, what == VOTES, votes, node
                if which == 0:
                    at, voted, own_votes, own_leaf = serving ^ 1, False, scratch.other_votes, -1
                leaf = learn_row(
                    numeric[i], categories[i], c, w * many, voted, size[at], links, column, threshold, value, weights,
                    counts, classes, seen, first, gaussians, category_first, values, value_counts, category_totals,
                    settings, keys, places, own_votes, found, scratch.places, key, drawn, t, at * nodes, at * slots,
                    own_leaf, asked,
                )  # fmt: skip
                if leaf >= 0:
                    try_to_split(leaf, at, tree, size[at], settings, columns, scratch)
            watch_member(t, error, tree, forest, choices)
    for i in range(B if wanted else 0):
        write_shares(sums[i], C, out[i])
