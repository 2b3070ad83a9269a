"""The arithmetic of Hoeffding trees of classes in Numba: vote, observe, learn, row by row.

Letters and rules as in tree_nodes.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from .compiling import inlined, kernel
from .label_kernels import class_of
from .tree_columns import draw_columns, find_value, see_column
from .tree_nodes import (
    ADAPTIVE,
    ATTEMPT,
    BAYES,
    BAYES_RIGHT,
    COUNT,
    DEPTH,
    HIGHEST,
    KNOWN,
    LARGEST,
    LOWEST,
    MAJORITY_RIGHT,
    MEAN,
    NODES,
    NOTHING,
    PARENT,
    RANK,
    SHARES,
    SLOT,
    SLOTS,
    SQUARES,
    TOTAL,
    VOTES,
    Columns,
    Scratch,
    Settings,
    Tree,
    add_above,
    leaf_of,
)
from .tree_split_kernels import sum_of, try_to_split

HALF_LOG_TAU = 0.5 * math.log(math.tau)
LEAST_VOTE = -1e290  # of one column, so that a sum of votes is finite


@inlined
def total_of(node: int, links: ndarray, counts: ndarray, classes: ndarray) -> float:
    """The weight of the examples of a leaf, added up in the order of its classes."""
    total = 0.0
    for k in range(links[node, KNOWN]):
        total += counts[node, classes[node, k]]
    return total


@inlined
def number_vote(x: float, n: float, mean: float, squares: float) -> float:
    """Logarithm of the density of a finite x where n numbers have this mean and sum of squares; 0: nothing known."""
    variance = squares / (n - 1.0) if n > 1.0 else 0.0
    if not variance > 0.0:
        return 0.0
    d = min(max(x, -LARGEST), LARGEST) - mean
    log_density = d * d / (-2.0 * variance) - HALF_LOG_TAU - 0.5 * math.log(variance)
    return max(log_density, LEAST_VOTE) if log_density > -math.inf else 0.0


@inlined
def vote(
    node: int, numeric: ndarray, categories: ndarray, links: ndarray, counts: ndarray, classes: ndarray,
    gaussians: ndarray, values: ndarray, value_counts: ndarray, category_totals: ndarray, votes: ndarray,
    found: ndarray,
) -> bool:  # fmt: skip
    """Write naive Bayes' probabilities to votes (C,), in the order of the leaf's classes; False: nothing known.

    A column that says nothing about a class (fewer than two values, no variance, a value never seen with it) adds
    nothing to its vote. Arguments: of a row, of a `Tree`, of `Scratch`.
    """
    slot = int(links[node, SLOT])
    known = links[node, KNOWN]
    total = total_of(node, links, counts, classes)
    if known == 0 or total == 0.0:
        return False
    for k in range(categories.shape[0]):
        found[k] = find_value(categories[k], values[k, slot]) if categories[k] != 0 else -1
    for i in range(known):
        c = classes[node, i]
        if not counts[node, c] > 0.0:
            votes[i] = 0.0  # so it is in River: a class of no weight has the vote of a certain one
            continue
        votes[i] = max(math.log(counts[node, c] / total), LEAST_VOTE)
        for j in range(numeric.shape[0]):
            x = np.float64(numeric[j])
            if x - x == 0.0:
                n, mean = gaussians[j, slot, c, COUNT], gaussians[j, slot, c, MEAN]
                votes[i] += number_vote(x, n, mean, gaussians[j, slot, c, SQUARES])
        for k in range(categories.shape[0]):
            if found[k] >= 0:
                share = value_counts[k, slot, found[k], c] / category_totals[k, slot, c, 0]
                if share > 0.0:
                    votes[i] += math.log(share)
    most = votes[0]
    for i in range(1, known):
        most = max(most, votes[i])
    likelihood = 0.0
    for i in range(known):
        likelihood += math.exp(votes[i] - most)
    level = most + math.log(likelihood)
    for i in range(known):
        votes[i] = math.exp(votes[i] - level)
    return True


@inlined
def judge(
    node: int, numeric: ndarray, categories: ndarray, links: ndarray, weights: ndarray, counts: ndarray,
    classes: ndarray, gaussians: ndarray, values: ndarray, value_counts: ndarray, category_totals: ndarray,
    settings: Settings, votes: ndarray, found: ndarray,
) -> int:  # fmt: skip
    """Write what a leaf predicts to votes (C,), in the order of its classes; NOTHING, SHARES or VOTES."""
    total = total_of(node, links, counts, classes)
    bayes = links[node, SLOT] >= 0 and (
        (settings.prediction == BAYES and total >= settings.nb_threshold)
        or (settings.prediction == ADAPTIVE and weights[node, BAYES_RIGHT] >= weights[node, MAJORITY_RIGHT])
    )
    if bayes and vote(
        node, numeric, categories, links, counts, classes, gaussians, values, value_counts, category_totals, votes,
        found,
    ):  # fmt: skip
        return VOTES
    if not total > 0.0:
        return NOTHING
    scale = 1.0 / total
    for i in range(links[node, KNOWN]):
        votes[i] = counts[node, classes[node, i]] * scale
    return SHARES


@inlined
def write_prediction(out: ndarray, node: int, votes: ndarray, links: ndarray, classes: ndarray) -> None:
    """Write the votes of a leaf (C,), in the order of its classes, to out (O,): P(true), or P of each class."""
    out[:] = 0.0
    for i in range(links[node, KNOWN]):
        c = classes[node, i]
        p = min(votes[i], 1.0)
        if out.shape[0] > 1:
            out[c] = p
        elif c == 1:
            out[0] = p


@inlined
def predict_row(
    numeric: ndarray, categories: ndarray, size: ndarray, links: ndarray, column: ndarray, threshold: ndarray,
    value: ndarray, weights: ndarray, counts: ndarray, classes: ndarray, gaussians: ndarray, values: ndarray,
    value_counts: ndarray, category_totals: ndarray, settings: Settings, keys: ndarray, places: ndarray,
    votes: ndarray, found: ndarray, out: ndarray,
) -> tuple[bool, int, bool]:  # fmt: skip
    """Write the prediction of one row to out (O,); whether votes now holds naive Bayes' votes of its leaf.

    Besides what `leaf_of` says. Before anything was learned every class is as likely as another, and the leaf is -1.
    """
    if size[NODES] == 0:
        out[:] = 1.0 / counts.shape[1]
        return False, -1, True
    node, asked = leaf_of(0, numeric, categories, links, column, threshold, value, weights, keys, places)
    what = judge(
        node, numeric, categories, links, weights, counts, classes, gaussians, values, value_counts, category_totals,
        settings, votes, found,
    )  # fmt: skip
    if what == NOTHING:
        out[:] = 1.0 / counts.shape[1]
    else:
        write_prediction(out, node, votes, links, classes)
    return what == VOTES, node, asked


@kernel
def predict_rows(
    numeric: ndarray, categories: ndarray, tree: Tree, settings: Settings, columns: Columns, scratch: Scratch,
    out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, O); the state is only read. Arguments as in `learn_rows`."""
    # The helpers are handed the arrays they use: not inlined, a call hands over every array of a tuple.
    size, links, column, threshold, value = tree.size, tree.links, tree.column, tree.threshold, tree.value
    weights, counts, classes, gaussians = tree.weights, tree.counts, tree.classes, tree.gaussians
    values, value_counts, category_totals = tree.values, tree.value_counts, tree.category_totals
    keys, places, votes, found = columns.keys, columns.places, scratch.votes, scratch.found
    for i in range(numeric.shape[0]):
        predict_row(
            numeric[i], categories[i], size, links, column, threshold, value, weights, counts, classes, gaussians,
            values, value_counts, category_totals, settings, keys, places, votes, found, out[i],
        )  # fmt: skip


@kernel
def next_rank(ranks: ndarray) -> int:
    """The rank of the class that comes next, where ranks (C,) are those of the classes that came."""
    rank = 1
    for c in range(ranks.shape[0]):
        rank += ranks[c] > 0.0
    return rank


@inlined
def observe_number(x: float, j: int, slot: int, c: int, weight: float, gaussians: ndarray) -> None:
    """Fold a number of class c into the moments of column j at the leaf with this slot, gaussians (N, S, C, 6).

    Source: Welford (1962), with weights as in West (1979), Updating mean and variance estimates.
    """
    x = min(max(x, -LARGEST), LARGEST)
    if gaussians[j, slot, c, RANK] == 0.0:
        gaussians[j, slot, c, RANK] = next_rank(gaussians[j, slot, :, RANK])
        gaussians[j, slot, c, LOWEST] = x
        gaussians[j, slot, c, HIGHEST] = x
    gaussians[j, slot, c, LOWEST] = min(gaussians[j, slot, c, LOWEST], x)
    gaussians[j, slot, c, HIGHEST] = max(gaussians[j, slot, c, HIGHEST], x)
    count = gaussians[j, slot, c, COUNT] + weight
    before = gaussians[j, slot, c, MEAN]
    mean = before + weight / count * (x - before)
    gaussians[j, slot, c, COUNT] = count
    gaussians[j, slot, c, MEAN] = mean
    gaussians[j, slot, c, SQUARES] += weight * (x - before) * (x - mean)


@kernel
def observe_value(value: np.uint64, c: int, weight: float, values: ndarray, counts: ndarray, totals: ndarray) -> None:
    """Count a value of class c in its column: values (V,), counts (V, C), totals (C, 2).

    A value that finds no room takes the place of the lightest one if that is no heavier than itself; else it counts
    in the totals only. Where many are as light, the search begins at another place each time, so that a value that
    comes again soon is still there.
    """
    if totals[c, 1] == 0.0:
        totals[c, 1] = next_rank(totals[:, 1])
    totals[c, 0] += weight
    place = find_value(value, values)
    if place >= 0:
        counts[place, c] += weight
        return
    place = find_value(np.uint64(0), values)
    if place < 0:
        V = values.shape[0]
        start = int(sum_of(totals[:, 0], totals.shape[0]) % float(V))
        lightest = math.inf
        for i in range(V):
            v = (start + i) % V
            heaviness = sum_of(counts[v], counts.shape[1])
            if heaviness < lightest:
                place, lightest = v, heaviness
        if lightest > weight:
            return
    values[place] = value
    counts[place] = 0.0
    counts[place, c] = weight


@kernel
def first_largest(weights: ndarray, known: int) -> int:
    """Which of the first `known` weights is the largest; of equals the first."""
    best = 0
    for i in range(1, known):
        if weights[i] > weights[best]:
            best = i
    return best


@inlined
def score_leaf(
    node: int, c: int, weight: float, voted: bool, links: ndarray, counts: ndarray, classes: ndarray, weights: ndarray,
    votes: ndarray,
) -> None:  # fmt: skip
    """Note which of the two ways to predict would have been right about class c.

    voted   whether votes (C,) holds the votes of this leaf for this row; it is written over
    """
    known = links[node, KNOWN]
    if voted and classes[node, first_largest(votes, known)] == c:
        weights[node, BAYES_RIGHT] += weight
    total = total_of(node, links, counts, classes)
    scale = 1.0 / total if total > 0.0 else 1.0
    for i in range(known):
        votes[i] = counts[node, classes[node, i]] * scale
    if known == 0 or classes[node, first_largest(votes, known)] == c:
        weights[node, MAJORITY_RIGHT] += weight


@inlined
def learn_at_leaf(
    node: int, numeric: ndarray, categories: ndarray, c: int, weight: float, voted: bool, links: ndarray,
    weights: ndarray, counts: ndarray, classes: ndarray, seen: ndarray, first: ndarray, gaussians: ndarray,
    category_first: ndarray, values: ndarray, value_counts: ndarray, category_totals: ndarray, settings: Settings,
    votes: ndarray, found: ndarray, columns: ndarray, key: np.uint64, drawn: ndarray, member: int,
) -> float:  # fmt: skip
    """Learn at a leaf that one row is of class c; the total weight it has now.

    voted   whether votes (C,) holds naive Bayes' votes of this leaf for this row; it is written over
    columns, key, drawn, member      as in `draw_columns`; used where the leaf draws the columns that it observes
    """
    slot = int(links[node, SLOT])
    if settings.prediction == ADAPTIVE and slot >= 0:
        voted = voted or vote(
            node, numeric, categories, links, counts, classes, gaussians, values, value_counts, category_totals, votes,
            found,
        )  # fmt: skip
        score_leaf(node, c, weight, voted, links, counts, classes, weights, votes)
    known = links[node, KNOWN]
    new = True
    for i in range(known):
        new = new and classes[node, i] != c
    if new:
        classes[node, known] = c
        links[node, KNOWN] += 1
    counts[node, c] += weight
    total = total_of(node, links, counts, classes)
    weights[node, TOTAL] = total
    if slot < 0:
        return total

    some = settings.features > 0
    if some and seen[slot] == 0:
        draw_columns(
            numeric, categories, settings.features, slot, seen, first, category_first, columns, key, drawn, member
        )
    for j in range(numeric.shape[0]):
        if some and first[j, slot] == 0:
            continue
        x = np.float64(numeric[j])
        if x - x == 0.0:
            see_column(first, j, slot, seen)
            observe_number(x, j, slot, c, weight, gaussians)
    for k in range(categories.shape[0]):
        if some and category_first[k, slot] == 0:
            continue
        if categories[k] != 0:
            see_column(category_first, k, slot, seen)
            kept = values[k, slot], value_counts[k, slot], category_totals[k, slot]
            observe_value(categories[k], c, weight, *kept)
    return total


@inlined
def learn_row(
    numeric: ndarray, categories: ndarray, c: int, weight: float, voted: bool, size: ndarray, links: ndarray,
    column: ndarray, threshold: ndarray, value: ndarray, weights: ndarray, counts: ndarray, classes: ndarray,
    seen: ndarray, first: ndarray, gaussians: ndarray, category_first: ndarray, values: ndarray,
    value_counts: ndarray, category_totals: ndarray, settings: Settings, keys: ndarray, places: ndarray,
    votes: ndarray, found: ndarray, columns: ndarray, key: np.uint64, drawn: ndarray, member: int, root: int,
    first_slot: int, node: int, asked: bool,
) -> int:  # fmt: skip
    """Learn that one row is of class c in the tree below a root. The leaf that is now due to try to split; -1: none.

    node, asked  what `leaf_of` says of the row, where the tree has not changed since; node -1: not known
    """
    if size[NODES] == 0:
        size[NODES] = 1
        size[SLOTS] = 1
        links[root, PARENT] = -1
        links[root, SLOT] = first_slot
        node = root
    if node < 0:
        node, asked = leaf_of(root, numeric, categories, links, column, threshold, value, weights, keys, places)
    add_above(node, weight, links, weights)
    total = learn_at_leaf(
        node, numeric, categories, c, weight, voted, links, weights, counts, classes, seen, first, gaussians,
        category_first, values, value_counts, category_totals, settings, votes, found, columns, key, drawn, member,
    )  # fmt: skip
    if not asked or links[node, SLOT] < 0:
        return -1  # as River: a row that lacks what a branch asks is learned, and no cause to split
    if links[node, DEPTH] >= settings.max_depth:
        links[node, SLOT] = -1
    elif total - weights[node, ATTEMPT] >= settings.grace_period:
        return node
    return -1


@kernel
def learn_rows(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    settings: Settings, columns: Columns, scratch: Scratch, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing
    same             whether before and numeric are one array: rows then go down once, and votes are counted once
    categories       uint64  (B, K)  0: missing
    y, weight        float32 (B, 1), (B,)  a row with a label that is no class, or a weight that is not above 0 and
                                     finite, is predicted and not learned
    tree             the state, changed in place
    settings, columns, scratch       as their classes say
    out              float (B, O)    P(true) or P of each class; (0, O) where no predictions are wanted

    Result does not depend on where the stream is cut.
    Source: Domingos and Hulten (2000), Mining high-speed data streams.
    """
    # The helpers are handed the arrays they use: not inlined, a call hands over every array of a tuple.
    size, links, column, threshold, value = tree.size, tree.links, tree.column, tree.threshold, tree.value
    weights, counts, classes, gaussians = tree.weights, tree.counts, tree.classes, tree.gaussians
    values, value_counts, category_totals = tree.values, tree.value_counts, tree.category_totals
    keys, places, votes, found = columns.keys, columns.places, scratch.votes, scratch.found
    seen, first, category_first = tree.seen, tree.first, tree.category_first
    drawn = columns.keys[:0]  # a single tree draws nothing
    voted, node, asked = False, -1, True
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            voted, node, asked = predict_row(
                before[i], categories[i], size, links, column, threshold, value, weights, counts, classes, gaussians,
                values, value_counts, category_totals, settings, keys, places, votes, found, out[i],
            )  # fmt: skip
        c = class_of(np.float64(y[i, 0]), counts.shape[1], out.shape[1] == 1)
        w = np.float64(weight[i])
        if c >= 0 and w > 0.0 and w - w == 0.0:
            if not same:
                voted, node = False, -1
            leaf = learn_row(
                numeric[i], categories[i], c, w, voted, size, links, column, threshold, value, weights,
                counts, classes, seen, first, gaussians, category_first, values, value_counts, category_totals,
                settings, keys, places, votes, found, scratch.places, np.uint64(0), drawn, 0, 0, 0,
                node, asked,
            )  # fmt: skip
            if leaf >= 0:
                try_to_split(leaf, 0, tree, size, settings, columns, scratch)


@inlined
def write_shares(sums: ndarray, classes: int, out: ndarray) -> None:
    """Write sums of votes by class (C,) to out (O,) as P(true) or P of each class; no votes: all are as likely."""
    total = sum_of(sums, classes)
    if not total > 0.0:
        out[:] = 1.0 / classes
    elif out.shape[0] > 1:
        for c in range(classes):
            out[c] = sums[c] / total
    else:
        out[0] = sums[1] / total
