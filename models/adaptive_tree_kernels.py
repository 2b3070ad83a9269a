"""An adaptive tree of classes in Numba: a branch that gets worse grows a leaf that may take its place."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from .alternate_kernels import (
    GIVEN_UP,
    ONE_IN_E,
    TAKEN,
    WATCHED,
    WRONG,
    Adaptive,
    AdaptiveSettings,
    begin_alternate,
    drop_alternate,
    drop_below,
    give_slot,
    kept_from,
    take_alternate,
    take_nodes,
    take_slot,
    watch,
    watch_anew,
)
from .compiling import copy_into, kernel
from .label_kernels import class_of
from .random_kernels import poisson
from .tree_kernels import judge, learn_at_leaf, write_shares
from .tree_nodes import (
    ATTEMPT,
    DEPTH,
    FORGET,
    KNOWN,
    LEFT,
    NODES,
    NOTHING,
    PARENT,
    SLOT,
    SLOTS,
    SPLIT,
    TOTAL,
    VOTES,
    Columns,
    Scratch,
    Settings,
    Tree,
    step_down,
)
from .tree_split_kernels import clear_slot, find_split, split, sum_of


@kernel
def judge_adaptive(
    node: int, numeric: ndarray, categories: ndarray, tree: Tree, errors: ndarray, settings: Settings, votes: ndarray,
    found: ndarray,
) -> tuple[int, float]:  # fmt: skip
    """As `judge`, and by what to multiply the votes: the less a leaf errs, the more they count."""
    what = judge(
        node, numeric, categories, tree.links, tree.weights, tree.counts, tree.classes, tree.gaussians, tree.values,
        tree.value_counts, tree.category_totals, settings, votes, found,
    )  # fmt: skip
    if what == NOTHING:
        return what, 0.0
    divisor = sum_of(votes, tree.links[node, KNOWN]) * errors[node, WRONG] * errors[node, WRONG]
    return what, (1.0 / divisor if divisor > 0.0 else 1.0)


@kernel
def error_of(node: int, c: int, what: int, scale: float, tree: Tree, votes: ndarray) -> float:
    """1: a leaf that has voted so was wrong about class c; 0: it was right."""
    if what == NOTHING:
        return 1.0
    best = 0
    for i in range(1, tree.links[node, KNOWN]):
        if votes[i] * scale > votes[best] * scale:
            best = i
    return 0.0 if tree.classes[node, best] == c else 1.0


@kernel
def compare(at: int, adaptive: Adaptive, choices: AdaptiveSettings) -> int:
    """1: the alternate of a branch is better than it, -1: it is worse, 0: nobody can tell yet."""
    errors = adaptive.errors
    other = int(adaptive.alternate[at])
    if not (errors[other, WATCHED] > choices.window and errors[at, WATCHED] > choices.window):
        return 0
    rarity = 1.0 / errors[other, WATCHED] + 1.0 / errors[at, WATCHED]
    rate, rate_of_other = errors[at, WRONG], errors[other, WRONG]
    bound = math.sqrt(2.0 * rate * (1.0 - rate) * math.log(2.0 / choices.significance) * rarity)
    return 1 if bound < rate - rate_of_other else -1 if bound < rate_of_other - rate else 0


@kernel
def learn_adaptive_leaf(
    node: int, numeric: ndarray, categories: ndarray, c: int, weight: float, tree: Tree, adaptive: Adaptive,
    settings: Settings, choices: AdaptiveSettings, columns: Columns, scratch: Scratch,
) -> float:  # fmt: skip
    """Learn at a leaf that one row is of class c, split the leaf if it is due; the weight that was learned."""
    votes = scratch.other_votes
    what, scale = judge_adaptive(node, numeric, categories, tree, adaptive.errors, settings, votes, scratch.found)
    error = error_of(node, c, what, scale, tree, votes)
    if choices.bootstrap:
        weight *= max(poisson(ONE_IN_E, choices.key, adaptive.drawn, 0), 1)
    watch(node, error, choices.drift_delta, adaptive)
    total = learn_at_leaf(
        node, numeric, categories, c, weight, what == VOTES, tree.links, tree.weights, tree.counts, tree.classes,
        tree.seen, tree.first, tree.gaussians, tree.category_first, tree.values, tree.value_counts,
        tree.category_totals, settings, votes, scratch.found, scratch.places, choices.key, adaptive.drawn, 0,
    )  # fmt: skip
    slot = int(tree.links[node, SLOT])
    if slot < 0 or total - tree.weights[node, ATTEMPT] < settings.grace_period:
        return weight
    if tree.links[node, DEPTH] >= settings.max_depth:
        give_slot(slot, adaptive)
        tree.links[node, SLOT] = -1
        return weight
    decision, place, threshold, v = find_split(node, total, tree, settings, scratch)
    if decision == FORGET:
        clear_slot(slot, True, tree)
    elif decision == SPLIT:
        left = take_nodes(kept_from(node, tree), tree, adaptive)
        if left != 0:
            new = take_slot(tree, adaptive)
            clear_slot(new, True, tree)
            split(node, place, threshold, v, left, new, tree, columns, scratch)
            watch_anew(node, adaptive)
    tree.weights[node, ATTEMPT] = total
    return weight


@kernel
def learn_adaptive_row(
    numeric: ndarray, categories: ndarray, c: int, weight: float, tree: Tree, adaptive: Adaptive, settings: Settings,
    choices: AdaptiveSettings, columns: Columns, scratch: Scratch, path: ndarray,
) -> bool:  # fmt: skip
    """Learn that one row is of class c, from the root down; what has to be swapped is swapped at the end.

    Whether nodes came or went. path int32 (3, M): scratch
    """
    links, weights, classes, counts = tree.links, tree.weights, tree.classes, tree.counts
    if tree.size[NODES] == 0:
        tree.size[NODES] = 1
        tree.size[SLOTS] = 1
        links[0, PARENT] = -1
    node, many, changed = 0, 0, False
    while links[node, LEFT] != 0:
        path[0, many] = node
        many += 1
        node, _ = step_down(
            node, numeric, categories, links, tree.column, tree.threshold, tree.value, weights, columns.keys,
            columns.places,
        )  # fmt: skip
    error = 0.0
    if many > 0:
        what, scale = judge_adaptive(
            node, numeric, categories, tree, adaptive.errors, settings, scratch.votes, scratch.found
        )
        error = error_of(node, c, what, scale, tree, scratch.votes)
    for d in range(many):
        at = int(path[0, d])
        path[1, d] = 0  # whether its alternate takes its place
        known = links[at, KNOWN]
        new = True
        for i in range(known):
            new = new and classes[at, i] != c
        if new:
            classes[at, known] = c
            links[at, KNOWN] += 1
        counts[at, c] += weight

        learns = False
        if watch(at, error, choices.drift_delta, adaptive):
            changed = True
            adaptive.errors[at] = 0.0
            if adaptive.alternate[at] != 0:
                drop_alternate(at, tree, adaptive)
            other = begin_alternate(at, tree, adaptive)
            learns = other != 0
            if learns:
                clear_slot(int(links[other, SLOT]), True, tree)
                counts[other] = 0.0
        elif adaptive.alternate[at] != 0:
            verdict = compare(at, adaptive, choices)
            learns = verdict == 0
            if verdict > 0:
                path[1, d] = 1
                adaptive.changes[TAKEN] += 1
                adaptive.changes[GIVEN_UP] += drop_below(at, False, tree, adaptive, path[2])
                learns = at == 0  # as River: only that of the root learns the row that it is taken with
            elif verdict < 0:
                changed = True
                drop_alternate(at, tree, adaptive)
                adaptive.changes[GIVEN_UP] += 1
        if learns:
            other = int(adaptive.alternate[at])
            learn_adaptive_leaf(
                other, numeric, categories, c, weight, tree, adaptive, settings, choices, columns, scratch
            )
            if links[other, LEFT] != 0:
                path[1, d] = 1  # as River: an alternate that splits takes the place of its branch at once
    learned = learn_adaptive_leaf(
        node, numeric, categories, c, weight, tree, adaptive, settings, choices, columns, scratch
    )
    changed = changed or links[node, LEFT] != 0
    for d in range(many):
        weights[path[0, d], TOTAL] += learned
    for d in range(many - 1, -1, -1):
        if path[1, d] != 0:
            changed = True
            at = int(path[0, d])
            other = int(adaptive.alternate[at])
            copy_into(counts[at], counts[other])
            copy_into(classes[at], classes[other])
            take_alternate(at, tree, adaptive, path[2])
    return changed


@kernel
def predict_adaptive_row(
    numeric: ndarray, categories: ndarray, tree: Tree, adaptive: Adaptive, settings: Settings, columns: Columns,
    scratch: Scratch, out: ndarray,
) -> None:  # fmt: skip
    """Write to out (O,) what the leaf of a row and the alternates on its way predict together."""
    sums, links, C = scratch.sums, tree.links, tree.counts.shape[1]
    sums[:] = 0.0
    node, there = 0, True
    while tree.size[NODES] > 0:
        branch = links[node, LEFT] != 0
        leaf = int(adaptive.alternate[node]) if branch else node
        if leaf != 0 or not branch:
            what, scale = judge_adaptive(
                leaf, numeric, categories, tree, adaptive.errors, settings, scratch.votes, scratch.found
            )
            if branch and not there:
                scale *= 2.0  # as River, which meets a node twice where the row lacks what the one above it asks
            if what != NOTHING:
                for i in range(links[leaf, KNOWN]):
                    sums[tree.classes[leaf, i]] += scratch.votes[i] * scale
        if not branch:
            break
        node, there = step_down(
            node, numeric, categories, links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
            columns.places,
        )  # fmt: skip
    write_shares(sums, C, out)


@kernel
def predict_adaptive(
    numeric: ndarray, categories: ndarray, tree: Tree, adaptive: Adaptive, settings: Settings,
    choices: AdaptiveSettings, columns: Columns, scratch: Scratch, path: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, O); the state is only read. Arguments as in `learn_adaptive`."""
    for i in range(numeric.shape[0]):
        predict_adaptive_row(numeric[i], categories[i], tree, adaptive, settings, columns, scratch, out[i])


@kernel
def learn_adaptive(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    adaptive: Adaptive, settings: Settings, choices: AdaptiveSettings, columns: Columns, scratch: Scratch,
    path: ndarray, out: ndarray,
) -> bool:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i]; whether nodes came or went, but for the first.

    Arguments as in `learn_rows`, and

    adaptive         the rest of the state, changed in place
    path             int32 (3, M)  scratch

    Result does not depend on where the stream is cut.
    Source: Bifet and Gavalda (2009), Adaptive learning from evolving data streams.
    """
    changed = False
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            predict_adaptive_row(before[i], categories[i], tree, adaptive, settings, columns, scratch, out[i])
        c = class_of(np.float64(y[i, 0]), tree.counts.shape[1], out.shape[1] == 1)
        w = np.float64(weight[i])
        if c >= 0 and w > 0.0 and w - w == 0.0:
            changed |= learn_adaptive_row(
                numeric[i], categories[i], c, w, tree, adaptive, settings, choices, columns, scratch, path
            )
    return changed
