"""What each feature adds to P of a tree of classes, or of several, in Numba: along a row's path, and at its leaf.

Letters and rules as in tree_nodes.py; A nodes of all trees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .adaptive_tree_kernels import judge_adaptive, learn_adaptive
from .alternate_kernels import Adaptive, AdaptiveSettings
from .compiling import copy_into, inlined, kernel
from .forest_kernels import SERVES, Forest, ForestSettings, learn_forest, share_right
from .tree_columns import find_value
from .tree_kernels import LEAST_VOTE, judge, learn_rows, number_vote, total_of
from .tree_nodes import (
    ADAPTIVE,
    BAYES,
    BAYES_RIGHT,
    COUNT,
    KNOWN,
    LEFT,
    MAJORITY_RIGHT,
    MEAN,
    NODES,
    NOTHING,
    PARENT,
    SLOT,
    SQUARES,
    VOTES,
    Columns,
    Scratch,
    Settings,
    Tree,
    leaf_of,
    place_of,
    step_down,
)
from .tree_split_kernels import sum_of


class Explaining(NamedTuple):
    """Room to explain in; nothing in it lasts."""

    order: ndarray  # int32 (M,): the nodes of a tree, each behind its parent
    sums: ndarray  # float64 (A, C): weight of each class below a node; (A, 2): weight and sum of the targets
    terms: ndarray  # float64 (N + K + 1, C): what each column adds to the votes; last: where they start
    votes: ndarray  # float64 (C,)
    shares: ndarray  # float64 (2, C)
    way: ndarray  # float64 (O, N + K + 1): what each column adds on the way to a node; last: the share at the root
    whole: ndarray  # float64 (O, N + K + 1): of several leaves together, each by its weight
    served: ndarray  # int64 (T,): of each of T trees that predict together, which one the sums are of
    counted: ndarray  # int64 (T,): how many nodes it had when they were counted; 0: they are not
    values: ndarray  # float64 (1, T): what each predicts
    weights: ndarray  # float64 (T,): by what that counts


@kernel
def add_up(links: ndarray, order: ndarray, sums: ndarray) -> None:
    """Make the sums (M, .) of each branch those of its two children, where those of leaves are there.

    order   int32 (M,)   the nodes, each behind its parent, as `put_in_order` writes them
    """
    for at in range(order.shape[0] - 1, -1, -1):
        if links[order[at], LEFT] != 0:
            add_children(order[at], links, sums)


@inlined
def add_children(branch: int, links: ndarray, sums: ndarray) -> None:
    """Make the sums of a branch those of its two children."""
    left = int(links[branch, LEFT])
    for c in range(sums.shape[1]):
        sums[branch, c] = sums[left, c] + sums[left + 1, c]


@kernel
def put_in_order(root: int, links: ndarray, order: ndarray) -> int:
    """Write the nodes that hang on a root to order (M,), each behind its parent; how many they are."""
    order[0] = root
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


@inlined
def share_of(sums: ndarray, node: int, c: int) -> float:
    """The share of a class below a node; where nothing is below it, every class is as likely as another."""
    total = 0.0
    for k in range(sums.shape[1]):
        total += sums[node, k]
    return sums[node, c] / total if total > 0.0 else 1.0 / sums.shape[1]


@inlined
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


@kernel
def write_softmax(votes: ndarray, known: int, shares: ndarray) -> None:
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


@inlined
def explain_votes(node: int, weight: float, tree: Tree, room: Explaining, out: ndarray) -> None:
    """Add to out (O, N + K + 1) by what naive Bayes differs from the shares of a leaf, its terms in room.terms.

    weight  by what all of it is multiplied

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
        write_softmax(votes, known, before)
        if way == 0:  # a class of no weight votes as if it had all
            for i in range(known):
                c = tree.classes[node, i]
                if c >= first:
                    out[c - first, F] += weight * (before[i] - share_of(room.sums, node, c))
        for step in range(F):
            f = step if way == 0 else F - 1 - step
            for i in range(known):
                votes[i] += room.terms[f, i]
            write_softmax(votes, known, after)
            for i in range(known):
                c = tree.classes[node, i]
                if c >= first:
                    out[c - first, f] += weight * (0.5 * (after[i] - before[i]))
                before[i] = after[i]


@kernel
def count_below(root: int, tree: Tree, room: Explaining) -> int:
    """Write the weight of each class below each node of a tree to room.sums; how many nodes room.order then has."""
    many = put_in_order(root, tree.links, room.order)
    order = room.order[:many]
    for at in range(many):
        copy_into(room.sums[order[at]], tree.counts[order[at]])
    add_up(tree.links, order, room.sums)
    return many


@inlined
def count_learned(
    root: int, numeric: ndarray, categories: ndarray, tree: Tree, columns: Columns, sums: ndarray
) -> None:
    """Make sums what `count_below` would, where since then a row was learned below the root and no leaf has split."""
    node, _ = leaf_of(
        root, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    copy_into(sums[node], tree.counts[node])
    node = int(tree.links[node, PARENT])
    while node >= 0:
        add_children(node, tree.links, sums)
        node = int(tree.links[node, PARENT])


@inlined
def start_at(root: int, sums: ndarray, out: ndarray) -> None:
    """Write to out (O, N + K + 1) what nothing has been added to: the shares of the classes at a root."""
    F, first = out.shape[1] - 1, sums.shape[1] - out.shape[0]
    out[:] = 0.0
    for o in range(out.shape[0]):
        out[o, F] = share_of(sums, root, o + first)


@inlined
def go_on(
    node: int, numeric: ndarray, categories: ndarray, tree: Tree, columns: Columns, sums: ndarray, out: ndarray
) -> tuple[int, bool]:
    """As `step_down`; what the share of each class changes is added to the column that is asked, or to the last."""
    F, first = out.shape[1] - 1, sums.shape[1] - out.shape[0]
    child, there = step_down(
        node, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    place = place_of(tree.column[node], columns.keys, columns.places)
    for o in range(out.shape[0]):
        change = share_of(sums, child, o + first) - share_of(sums, node, o + first)
        out[o, place if place >= 0 else F] += change
    return child, there


@kernel
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
    if tree.size[NODES] == 0:
        out[:] = 0.0
        out[:, :, F] = 1.0 / C
        return
    count_below(0, tree, room)
    for i in range(numeric.shape[0]):
        explain_row(numeric[i], categories[i], tree, settings, columns, room, out[i])


@inlined
def explain_row(
    numeric: ndarray, categories: ndarray, tree: Tree, settings: Settings, columns: Columns, room: Explaining,
    out: ndarray,
) -> None:  # fmt: skip
    """As `explain_rows`, of one row to out (O, N + K + 1), of a tree whose sums are counted."""
    start_at(0, room.sums, out)
    node = 0
    while tree.links[node, LEFT] != 0:
        node, _ = go_on(node, numeric, categories, tree, columns, room.sums, out)
    total = total_of(node, tree.links, tree.counts, tree.classes)
    bayes = tree.links[node, SLOT] >= 0 and (
        (settings.prediction == BAYES and total >= settings.nb_threshold)
        or (settings.prediction == ADAPTIVE and tree.weights[node, BAYES_RIGHT] >= tree.weights[node, MAJORITY_RIGHT])
    )
    if bayes and tree.links[node, KNOWN] > 0 and total != 0.0:
        vote_by_column(node, numeric, categories, tree, room.terms)
        explain_votes(node, 1.0, tree, room, out)


@kernel
def explain_then_learn_rows(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    settings: Settings, columns: Columns, scratch: Scratch, room: Explaining, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_rows`."""
    counted = 0  # nodes, by the sums as they stand
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        if counted == 0 or counted != tree.size[NODES]:
            explain_rows(before[row], categories[row], tree, settings, columns, room, contributions[row])
            counted = int(tree.size[NODES])
        else:
            explain_row(before[i], categories[i], tree, settings, columns, room, contributions[i])
        learn_rows(
            before[row], numeric[row], same, categories[row], y[row], weight[row], tree, settings, columns, scratch,
            out[row],
        )  # fmt: skip
        if counted > 0:
            count_learned(0, numeric[i], categories[i], tree, columns, room.sums)


@inlined
def add_weighted(weight: float, way: ndarray, whole: ndarray) -> None:
    """Add what each column adds on the way to a leaf, (O, N + K + 1), by the weight of the leaf, to that of all."""
    for o in range(whole.shape[0]):
        for f in range(whole.shape[1]):
            whole[o, f] += weight * way[o, f]


@inlined
def add_leaf(
    leaf: int, node: int, what: int, weight: float, numeric: ndarray, categories: ndarray, tree: Tree, room: Explaining
) -> None:
    """Add to room.whole, by its weight, what explains a leaf's vote: room.way leads to the node, in whose place it is.

    what   as `judge` has it, and not NOTHING
    """
    way, whole = room.way, room.whole
    F, first = whole.shape[1] - 1, room.sums.shape[1] - whole.shape[0]
    add_weighted(weight, way, whole)
    for o in range(whole.shape[0]):  # no feature has caused by what another leaf in the place of the node differs
        whole[o, F] += weight * (share_of(room.sums, leaf, o + first) - share_of(room.sums, node, o + first))
    if what == VOTES:
        vote_by_column(leaf, numeric, categories, tree, room.terms)
        explain_votes(leaf, weight, tree, room, whole)


@inlined
def write_whole(total: float, C: int, whole: ndarray, out: ndarray) -> None:
    """Write what leaves added, by the total of their weights, to out (O, N + K + 1); 0: all classes are as likely."""
    if total > 0.0:
        for o in range(out.shape[0]):
            for f in range(out.shape[1]):
                out[o, f] = whole[o, f] / total
    else:
        out[:] = 0.0
        out[:, out.shape[1] - 1] = 1.0 / C


@kernel
def explain_adaptive(
    numeric: ndarray, categories: ndarray, tree: Tree, adaptive: Adaptive, settings: Settings, columns: Columns,
    scratch: Scratch, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_rows`, of an adaptive tree: the mean over its leaf and the alternates, weighted as they vote.

    An alternate has the way to its branch in common with it; by what its shares differ from those of all that is below
    the branch is added to the last.
    """
    if tree.size[NODES] > 0:
        count_adaptive(tree, adaptive, room)
    for i in range(numeric.shape[0]):
        explain_adaptive_row(numeric[i], categories[i], tree, adaptive, settings, columns, scratch, room, out[i])


@kernel
def count_adaptive(tree: Tree, adaptive: Adaptive, room: Explaining) -> None:
    """As `count_below`, of an adaptive tree and its alternates."""
    for at in range(count_below(0, tree, room)):
        other = int(adaptive.alternate[room.order[at]])
        if other != 0:
            copy_into(room.sums[other], tree.counts[other])


@inlined
def count_learned_adaptive(
    numeric: ndarray, categories: ndarray, tree: Tree, adaptive: Adaptive, columns: Columns, sums: ndarray
) -> None:
    """Make sums what `count_adaptive` would, where since then a row was learned and no node came or went."""
    node = 0
    while tree.links[node, LEFT] != 0:
        other = int(adaptive.alternate[node])
        if other != 0:
            copy_into(sums[other], tree.counts[other])
        node, _ = step_down(
            node, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
            columns.places,
        )  # fmt: skip
    count_learned(node, numeric, categories, tree, columns, sums)


@inlined
def explain_adaptive_row(
    numeric: ndarray, categories: ndarray, tree: Tree, adaptive: Adaptive, settings: Settings, columns: Columns,
    scratch: Scratch, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_adaptive`, of one row to out (O, N + K + 1), of a tree whose sums are counted."""
    links = tree.links
    room.whole[:] = 0.0
    total = 0.0
    node, there = 0, True
    if tree.size[NODES] > 0:
        start_at(0, room.sums, room.way)
    while tree.size[NODES] > 0:
        branch = links[node, LEFT] != 0
        leaf = int(adaptive.alternate[node]) if branch else node
        if leaf != 0 or not branch:
            what, scale = judge_adaptive(
                leaf, numeric, categories, tree, adaptive.errors, settings, scratch.votes, scratch.found
            )
            if branch and not there:
                scale *= 2.0  # as it votes
            if what != NOTHING:
                weight = scale * sum_of(scratch.votes, links[leaf, KNOWN])
                total += weight
                add_leaf(leaf, node, what, weight, numeric, categories, tree, room)
        if not branch:
            break
        node, there = go_on(node, numeric, categories, tree, columns, room.sums, room.way)
    write_whole(total, tree.counts.shape[1], room.whole, out)


@kernel
def explain_then_learn_adaptive(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    adaptive: Adaptive, settings: Settings, choices: AdaptiveSettings, columns: Columns, scratch: Scratch,
    path: ndarray, room: Explaining, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_adaptive`."""
    counted = False  # whether the sums are those of the tree as it stands
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        if not counted and tree.size[NODES] > 0:
            count_adaptive(tree, adaptive, room)
            counted = True
        explain_adaptive_row(
            before[i], categories[i], tree, adaptive, settings, columns, scratch, room, contributions[i]
        )
        if learn_adaptive(
            before[row], numeric[row], categories[row], y[row], weight[row], tree, adaptive, settings, choices, columns,
            scratch, path, out[row],
        ):  # fmt: skip
            counted = False
        if counted:
            count_learned_adaptive(numeric[i], categories[i], tree, adaptive, columns, room.sums)


@kernel
def explain_forest(
    numeric: ndarray, categories: ndarray, tree: Tree, forest: Forest, settings: Settings, choices: ForestSettings,
    columns: Columns, scratch: Scratch, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_rows`, of a forest: the mean over the trees that serve, weighted as they vote."""
    nodes = tree.links.shape[0] // tree.size.shape[0]
    for t in range(forest.members.shape[0]):
        serving = 2 * t + int(forest.members[t, SERVES])
        if tree.size[serving, NODES] > 0:
            count_below(serving * nodes, tree, room)
    for i in range(numeric.shape[0]):
        explain_forest_row(
            numeric[i], categories[i], tree, forest, settings, choices, columns, scratch, room, out[i]
        )  # fmt: skip


@inlined
def explain_forest_row(
    numeric: ndarray, categories: ndarray, tree: Tree, forest: Forest, settings: Settings, choices: ForestSettings,
    columns: Columns, scratch: Scratch, room: Explaining, out: ndarray,
) -> None:  # fmt: skip
    """As `explain_forest`, of one row to out (O, N + K + 1), where the sums of the trees that serve are counted."""
    links, counts = tree.links, tree.counts
    nodes = links.shape[0] // tree.size.shape[0]
    room.whole[:] = 0.0
    total = 0.0
    for t in range(forest.members.shape[0]):
        serving = 2 * t + int(forest.members[t, SERVES])
        if tree.size[serving, NODES] == 0:
            continue
        node = serving * nodes
        start_at(node, room.sums, room.way)
        while links[node, LEFT] != 0:
            node, _ = go_on(node, numeric, categories, tree, columns, room.sums, room.way)
        what = judge(
            node, numeric, categories, links, tree.weights, counts, tree.classes, tree.gaussians, tree.values,
            tree.value_counts, tree.category_totals, settings, scratch.votes, scratch.found,
        )  # fmt: skip
        if what != NOTHING:
            share = share_right(t, forest.scores) if choices.weighted else 1.0
            weight = share * sum_of(scratch.votes, links[node, KNOWN])
            total += weight
            add_leaf(node, node, what, weight, numeric, categories, tree, room)
    write_whole(total, counts.shape[1], room.whole, out)


@kernel
def explain_then_learn_forest(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    forest: Forest, settings: Settings, choices: ForestSettings, columns: Columns, scratch: Scratch, room: Explaining,
    out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_forest`."""
    size, T = tree.size, forest.members.shape[0]
    nodes = tree.links.shape[0] // size.shape[0]
    served, counted = room.served, room.counted
    counted[:] = 0
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        for t in range(T):
            serving = 2 * t + int(forest.members[t, SERVES])
            many = int(size[serving, NODES])
            if many > 0 and not (serving == served[t] and many == counted[t]):
                count_below(serving * nodes, tree, room)
            served[t], counted[t] = serving, many
        explain_forest_row(
            before[i], categories[i], tree, forest, settings, choices, columns, scratch, room, contributions[i]
        )
        learn_forest(
            before[row], numeric[row], same, categories[row], y[row], weight[row], tree, forest, settings, choices,
            columns, scratch, room.shares[:1], out[row],
        )  # fmt: skip
        for t in range(T):
            if counted[t] > 0 and size[served[t], NODES] == counted[t]:
                count_learned(served[t] * nodes, numeric[i], categories[i], tree, columns, room.sums)
