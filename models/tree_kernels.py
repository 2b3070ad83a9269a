"""The arithmetic of Hoeffding trees in Numba: go down, vote, observe, split, row by row on flat arrays of nodes.

Helpers and kernels stand in one file because Numba's cache does not see a change in another file.
No fastmath: NaN means missing, and sums run in the order in which classes were first seen, as in River, so that merits,
thresholds and the example at which a leaf splits come out the same. What runs for every row is inlined by force, for
handing twenty arrays to a call takes longer than what the call does.

Nothing here allocates, as compiling.py says.

Letters: B rows, N numeric columns, K categories, C classes, M nodes, S slots for what leaves observe, V values kept of
a category at a leaf.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .compiling import copy_into, inlined, kernel

MAJORITY, BAYES, ADAPTIVE = 0, 1, 2  # what a leaf predicts with
INFO_GAIN, GINI = 0, 1
NOTHING, SHARES, VOTES = range(3)  # what a leaf has predicted with: it knows nothing, shares of classes, naive Bayes
STAY, FORGET, SPLIT = range(3)  # what to do with a leaf that is due

NODES, SLOTS, REFUSED = range(3)  # places in `size`
LEFT, PARENT, DEPTH, SLOT, KNOWN = range(5)  # columns of `links`
TOTAL, ATTEMPT, MAJORITY_RIGHT, BAYES_RIGHT = range(4)  # columns of `weights`
COUNT, MEAN, SQUARES, LOWEST, HIGHEST, RANK = range(6)  # of a Gaussian in `gaussians`

MEAN_ONLY, MODEL_ONLY, MEAN_OR_MODEL = 0, 1, 2  # what a leaf of a regression tree predicts with
PASSIVE = 4  # column of `links`, in the place of KNOWN
MEAN_ERROR, MODEL_ERROR = 2, 3  # columns of `weights`
GO, ADD, REMOVE, WEIGH = range(4)  # what is still to do on the walk through a search tree
AT_LEFT, AT_RIGHT, AT_NODE, AT_NODE_BELOW = range(4)  # how far the walk that prunes one is at a node

Moments = tuple[float, float, float]  # count, mean, sum of squares

WIDTH, SUM, DEVIATIONS = range(3)  # places in the `window_sums` of ADWIN
LEVELS, BUCKETS = 48, 5  # of its window: a bucket of level k stands for 2**k values, so no stream is too long
CLOCK, GRACE, LEAST_PART = 32, 10.0, 5.0  # values between two looks; in the window before the first; in each part
WATCHED, WRONG = range(2)  # columns of the `errors` of an adaptive tree: count and mean; then the sum of squares
SPARE = 4  # nodes that only alternates may take: for one of them, and for its split
BEGUN, TAKEN, GIVEN_UP = range(3)  # places in its `changes`
SERVES, GROWS = range(2)  # columns of the `members` of a forest
WARNINGS, DRIFTS = range(2)  # columns of its `changes`
ONE_IN_E = math.exp(-1.0)

HALF_LOG_TAU = 0.5 * math.log(math.tau)
LARGEST = 1e100  # numbers are held within these, so that their squares are finite
LARGEST_VALUE = 1e30  # of a prediction, so that it fits float32
LARGEST_SLOPE = 1e12  # of the loss; as River's clip_gradient
LEAST_VOTE = -1e290  # of one column, so that a sum of votes is finite
NEGLIGIBLE = 1e-12  # share of a weight that rounding may leave behind


class Tree(NamedTuple):
    """The state: the nodes, node 0 the root, and what leaves observe, each in a slot of its own."""

    size: ndarray  # int64 (3,): nodes in use, slots in use, splits refused for want of room
    links: ndarray  # int32 (M, 5): left child (0: a leaf; the right one follows), parent, depth, slot or -1, classes
    column: ndarray  # uint64 (M,): key of the column a branch asks
    threshold: ndarray  # float64 (M,): left where a number is <= this
    value: ndarray  # uint64 (M,): left where a category is this
    weights: ndarray  # float64 (M, 4): total, total at the last attempt, what each way to predict had right
    counts: ndarray  # float64 (M, C): weight of each class; of a branch as it stood when it split
    classes: ndarray  # int32 (M, C): the classes known, in the order in which they came
    seen: ndarray  # int32 (S,): columns seen
    first: ndarray  # int32 (N, S): when a column was first seen, 1 for the first; 0: not yet
    gaussians: ndarray  # float64 (N, S, C, 6): count, mean, sum of squares, lowest, highest, when the class came
    category_first: ndarray  # int32 (K, S): as `first`
    category_totals: ndarray  # float64 (K, S, C, 2): weight of a class, when it came
    values: ndarray  # uint64 (K, S, V): hashes of the values kept; 0: free
    value_counts: ndarray  # float64 (K, S, V, C): weight of each value and class


class Settings(NamedTuple):
    """What a tree is told: all of one type each, for another would be compiled anew."""

    prediction: int  # MAJORITY, BAYES, ADAPTIVE
    criterion: int  # INFO_GAIN, GINI
    grace_period: float
    log_confidence: float  # ln(1 / delta)
    tau: float
    max_depth: int
    nb_threshold: float
    n_splits: int
    min_branch_fraction: float
    max_share_to_split: float
    merit_preprune: bool
    features: int  # columns that a leaf draws to observe; 0: it observes all


class RegressionTree(NamedTuple):
    """The state of a tree that predicts values; what it shares with `Tree` is named and shaped as there.

    A leaf keeps its slot for as long as it is one.
    """

    size: ndarray
    links: ndarray  # int32 (M, 5): as in `Tree`, but for the last: 1: observes no more
    column: ndarray
    threshold: ndarray
    value: ndarray
    weights: ndarray  # float64 (M, 4): total, total at the last attempt, faded squared errors of mean and model
    targets: ndarray  # float64 (M, 3): count, mean, sum of squares; of a branch as it stood when it split
    intercepts: ndarray  # float64 (S,): of the linear models
    coefficients: ndarray  # float64 (N, S)
    seen: ndarray
    first: ndarray
    used: ndarray  # int32 (N, S): nodes in a search tree
    values: ndarray  # float64 (N, S, V): their numbers
    children: ndarray  # int32 (N, S, V, 2): lower and higher; 0: none
    moments: ndarray  # float64 (N, S, V, 3): targets at a number or below it, of those that came by
    category_first: ndarray
    categories: ndarray  # uint64 (K, S, W): hashes of the values kept; 0: free
    category_moments: ndarray  # float64 (K, S, W, 3): their targets


class RegressionSettings(NamedTuple):
    """What a tree that predicts values is told."""

    prediction: int  # MEAN_ONLY, MODEL_ONLY, MEAN_OR_MODEL
    grace_period: float
    log_confidence: float  # ln(1 / delta)
    tau: float
    max_depth: int
    min_samples_split: float
    factor: float  # numbers are rounded to multiples of 1 / factor
    model_selector_decay: float
    lr: float
    intercept_lr: float
    merit_preprune: bool
    features: int  # columns that a leaf draws to observe; 0: it observes all


AnyTree = Tree | RegressionTree


class Columns(NamedTuple):
    """The columns of the rows by their keys: a table with open addressing, of a power of two."""

    by_place: ndarray  # uint64 (N + K,): key of each column, numeric ones first
    keys: ndarray  # uint64 (T,)
    places: ndarray  # int32 (T,): -1: free


class Scratch(NamedTuple):
    """Room to work in; nothing in it lasts."""

    votes: ndarray  # float64 (C,)
    order: ndarray  # int32 (C,): classes in the order in which a column saw them
    deviations: ndarray  # float64 (C,)
    left: ndarray  # float64 (C,): weights of classes left of a split, in that order
    left_classes: ndarray  # int32 (C,)
    right: ndarray  # float64 (C,)
    right_classes: ndarray  # int32 (C,)
    found: ndarray  # int32 (K,): where the values of a row stand among those kept
    other_votes: ndarray  # float64 (C,): of another leaf
    sums: ndarray  # float64 (C,): votes of leaves together
    places: ndarray  # int32 (N + K,): columns to draw from


# --- going down


@inlined
def place_of(key: np.uint64, keys: ndarray, places: ndarray) -> int:
    """Which column of the rows has this key; -1: none, its feature is gone."""
    mask = np.uint64(keys.shape[0] - 1)
    h = key & mask
    while places[np.intp(h)] >= 0:
        if keys[np.intp(h)] == key:
            return int(places[np.intp(h)])
        h = (h + np.uint64(1)) & mask
    return -1


@inlined
def step_down(
    node: int, numeric: ndarray, categories: ndarray, links: ndarray, column: ndarray, threshold: ndarray,
    value: ndarray, weights: ndarray, keys: ndarray, places: ndarray,
) -> tuple[int, bool]:  # fmt: skip
    """The child of a branch that a row goes to, and whether the branch's column was there to ask.

    Where it is missing, or its feature is gone from the declaration, the row goes to the heavier child.
    Arguments: of a row, of a `Tree`, of `Columns`.
    """
    left = int(links[node, LEFT])
    place = place_of(column[node], keys, places)
    N = numeric.shape[0]
    if 0 <= place < N:
        x = np.float64(numeric[place])
        if x - x == 0.0:
            return (left if x <= threshold[node] else left + 1), True
    elif place >= N and categories[place - N] != 0:
        return (left if categories[place - N] == value[node] else left + 1), True
    heavier = left + 1 if weights[left, TOTAL] < weights[left + 1, TOTAL] else left
    return heavier, place < 0


@inlined
def leaf_of(
    root: int, numeric: ndarray, categories: ndarray, links: ndarray, column: ndarray, threshold: ndarray,
    value: ndarray, weights: ndarray, keys: ndarray, places: ndarray,
) -> tuple[int, bool]:  # fmt: skip
    """The leaf below a root that a row comes to, and whether all was there that was asked for on the way.

    Arguments as in `step_down`.
    """
    node, asked = root, True
    while links[node, LEFT] != 0:
        node, there = step_down(node, numeric, categories, links, column, threshold, value, weights, keys, places)
        asked = asked and there
    return node, asked


@inlined
def add_above(node: int, weight: float, links: ndarray, weights: ndarray) -> None:
    """Add the weight of an example to all branches above a leaf."""
    at = int(links[node, PARENT])
    while at >= 0:
        weights[at, TOTAL] += weight
        at = int(links[at, PARENT])


# --- predicting


@inlined
def total_of(node: int, links: ndarray, counts: ndarray, classes: ndarray) -> float:
    """The weight of the examples of a leaf, added up in the order of its classes."""
    total = 0.0
    for k in range(links[node, KNOWN]):
        total += counts[node, classes[node, k]]
    return total


@kernel
def find_value(value: np.uint64, values: ndarray) -> int:
    """Where a value stands among those kept, (V,); -1: it is not kept."""
    for v in range(values.shape[0]):
        if values[v] == value:
            return v
    return -1


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


# --- splitting


@kernel
def entropy_of(weights: ndarray, known: int) -> float:
    """Entropy, in bits, of the first `known` weights."""
    entropy = 0.0
    total = 0.0
    for i in range(known):
        if weights[i] > 0.0:
            entropy -= weights[i] * math.log2(weights[i])
            total += weights[i]
    return (entropy + total * math.log2(total)) / total if total > 0.0 else 0.0


@kernel
def gini_of(weights: ndarray, known: int, total: float) -> float:
    """Gini impurity of the first `known` weights, which add up to total."""
    gini = 1.0
    for i in range(known):
        gini -= (weights[i] / total) * (weights[i] / total)
    return gini


@kernel
def sum_of(weights: ndarray, known: int) -> float:
    """The first `known` weights added up, in order."""
    total = 0.0
    for i in range(known):
        total += weights[i]
    return total


@kernel
def merit_of(settings: Settings, entropy: float, lefts: int, rights: int, scratch: Scratch) -> float:
    """How good the split in scratch is, with so many classes on either side; -inf: one side is too small.

    entropy   of the leaf before the split
    """
    left, right = scratch.left, scratch.right
    a, b = sum_of(left, lefts), sum_of(right, rights)
    total = a + b
    least = settings.min_branch_fraction
    if not (total > 0.0 and a / total > least and b / total > least):
        return -math.inf
    if settings.criterion == GINI:
        return 1.0 - (a / total * gini_of(left, lefts, a) + b / total * gini_of(right, rights, b))
    return entropy - (a * entropy_of(left, lefts) + b * entropy_of(right, rights)) / total


@kernel
def order_classes(ranks: ndarray, order: ndarray) -> int:
    """Write the classes to order as ranks (C,), 1 for the first, say they came; how many came (rank above 0)."""
    came = 0
    for c in range(ranks.shape[0]):
        if ranks[c] > 0.0:
            order[int(ranks[c]) - 1] = c
            came += 1
    return came


@kernel
def prepare_gaussians(gaussians: ndarray, scratch: Scratch) -> int:
    """Order and standard deviations of the classes of one column at one leaf, to scratch; how many classes came.

    gaussians   float64 (C, 6)
    """
    came = order_classes(gaussians[:, RANK], scratch.order)
    for i in range(came):
        c = scratch.order[i]
        n = gaussians[c, COUNT]
        variance = gaussians[c, SQUARES] / (n - 1.0) if n > 1.0 else 0.0
        scratch.deviations[c] = math.sqrt(max(variance, 0.0))
    return came


@kernel
def divide_number(threshold: float, gaussians: ndarray, came: int, scratch: Scratch) -> tuple[int, int]:
    """Estimate in scratch what would come to either side of a threshold; how many classes on each.

    gaussians   float64 (C, 6), prepared
    """
    lefts = rights = 0
    for i in range(came):
        c = scratch.order[i]
        n = gaussians[c, COUNT]
        below = 0.0
        if threshold >= gaussians[c, HIGHEST]:
            below = n
        elif threshold >= gaussians[c, LOWEST] and scratch.deviations[c] > 0.0:
            z = (threshold - gaussians[c, MEAN]) / scratch.deviations[c]
            below = 0.5 * (1.0 + math.erf(z / math.sqrt(2.0))) * n
        if threshold >= gaussians[c, LOWEST]:
            scratch.left[lefts] = below
            scratch.left_classes[lefts] = c
            lefts += 1
        if threshold < gaussians[c, HIGHEST]:
            scratch.right[rights] = n - below
            scratch.right_classes[rights] = c
            rights += 1
    return lefts, rights


@kernel
def best_threshold(gaussians: ndarray, entropy: float, settings: Settings, scratch: Scratch) -> tuple[float, float]:
    """Merit and threshold of the best split of one numeric column at one leaf, gaussians (C, 6); -inf: there is none.

    Tried are n_splits points, evenly between the lowest and the highest value.
    """
    came = prepare_gaussians(gaussians, scratch)
    best, where = -math.inf, 0.0
    low, high = math.inf, -math.inf
    for i in range(came):
        low = min(low, gaussians[scratch.order[i], LOWEST])
        high = max(high, gaussians[scratch.order[i], HIGHEST])
    if came > 0:
        width = (high - low) / (settings.n_splits + 1.0)
        for i in range(settings.n_splits):
            threshold = low + width * (i + 1)
            if low < threshold < high:
                lefts, rights = divide_number(threshold, gaussians, came, scratch)
                merit = merit_of(settings, entropy, lefts, rights, scratch)
                if merit > best:
                    best, where = merit, threshold
    return best, where


@kernel
def divide_category(counts: ndarray, totals: ndarray, came: int, scratch: Scratch) -> tuple[int, int]:
    """Put in scratch what has one value of a category, and what has another; how many classes on each side.

    counts, totals  float64 (C,), (C, 2)   weights of the value; of the column, whose classes stand in scratch.order
    """
    lefts = rights = 0
    for i in range(came):
        c = scratch.order[i]
        if counts[c] > 0.0:
            scratch.left[lefts] = counts[c]
            scratch.left_classes[lefts] = c
            lefts += 1
        rest = totals[c, 0] - counts[c]
        if rest > NEGLIGIBLE * totals[c, 0]:
            scratch.right[rights] = rest
            scratch.right_classes[rights] = c
            rights += 1
    return lefts, rights


@kernel
def best_value(
    values: ndarray, counts: ndarray, totals: ndarray, entropy: float, settings: Settings, scratch: Scratch
) -> tuple[float, int]:
    """Merit and place of the best value to split one category by at one leaf; -inf: there is none.

    values, counts, totals   (V,), (V, C), (C, 2)
    """
    came = order_classes(totals[:, 1], scratch.order)
    best, where = -math.inf, 0
    for v in range(values.shape[0]):
        if values[v] != 0:
            lefts, rights = divide_category(counts[v], totals, came, scratch)
            merit = merit_of(settings, entropy, lefts, rights, scratch)
            if merit > best:
                best, where = merit, v
    return best, where


@kernel
def clear_slot(slot: int, columns_too: bool, tree: Tree) -> None:
    """Forget what a leaf has observed, and which columns it has seen too, or not."""
    if columns_too:
        tree.seen[slot] = 0
        for j in range(tree.first.shape[0]):
            tree.first[j, slot] = 0
        for k in range(tree.category_first.shape[0]):
            tree.category_first[k, slot] = 0
    for j in range(tree.first.shape[0]):
        tree.gaussians[j, slot] = 0.0
    for k in range(tree.category_first.shape[0]):
        tree.category_totals[k, slot] = 0.0
        tree.values[k, slot] = 0
        tree.value_counts[k, slot] = 0.0


@kernel
def add_child(
    node: int, parent: int, slot: int, weights: ndarray, classes: ndarray, known: int, tree: Tree
) -> float:  # fmt: skip
    """Make a node a leaf that begins with the weights (C,) of `known` classes; what they add up to."""
    tree.links[node, LEFT] = 0
    tree.links[node, PARENT] = parent
    tree.links[node, DEPTH] = tree.links[parent, DEPTH] + 1
    tree.links[node, SLOT] = slot
    tree.links[node, KNOWN] = known
    tree.counts[node] = 0.0
    for i in range(known):
        tree.classes[node, i] = classes[i]
        tree.counts[node, classes[i]] = weights[i]
    total = sum_of(weights, known)
    tree.weights[node, TOTAL] = total
    tree.weights[node, ATTEMPT] = total
    return total


@kernel
def find_split(
    node: int, total: float, tree: Tree, settings: Settings, scratch: Scratch
) -> tuple[int, int, float, int]:
    """What to do with a leaf of this total weight that is due, and the best split: column, threshold, place of value.

    SPLIT  the best column is better than the second by more than the bound
    FORGET not to split is the best: what the leaf observed is forgotten and observed anew
    STAY   not sure yet
    """
    known = tree.links[node, KNOWN]
    slot = int(tree.links[node, SLOT])
    kinds = 0
    largest = 0.0
    for i in range(known):
        count = tree.counts[node, tree.classes[node, i]]
        scratch.left[i] = count
        largest = max(largest, count)
        kinds += count != 0.0
    if kinds < 2:
        return STAY, 0, 0.0, 0
    if largest / total > settings.max_share_to_split:
        return FORGET, 0, 0.0, 0

    N = tree.first.shape[0]
    entropy = entropy_of(scratch.left, known)
    candidates = 1 if settings.merit_preprune else 0
    best, second, place, when = -math.inf, -math.inf, -1, 0
    threshold, v = 0.0, 0
    for p in range(N + tree.category_first.shape[0]):
        came = int(tree.first[p, slot] if p < N else tree.category_first[p - N, slot])
        if came == 0:
            continue
        candidates += 1
        t, u = 0.0, 0
        if p < N:
            merit, t = best_threshold(tree.gaussians[p, slot], entropy, settings, scratch)
        else:
            k = p - N
            merit, u = best_value(
                tree.values[k, slot], tree.value_counts[k, slot], tree.category_totals[k, slot], entropy, settings,
                scratch,
            )  # fmt: skip
        if merit > best or (merit == best and came > when):  # of equals, the one that came last
            best, second, place, when, threshold, v = merit, best, p, came, t, u
        else:
            second = max(second, merit)

    reach = math.log2(max(known, 2)) if settings.criterion == INFO_GAIN else 1.0
    bound = math.sqrt(reach * reach * settings.log_confidence / (2.0 * total))
    if candidates == 0 or (candidates > 1 and not (best - second > bound or bound < settings.tau)):
        return STAY, 0, 0.0, 0
    return (FORGET if best == -math.inf else SPLIT), place, threshold, v


@kernel
def split(
    node: int, place: int, threshold: float, v: int, left: int, new: int, tree: Tree, columns: Columns, scratch: Scratch
) -> None:
    """Make a leaf a branch on this column, with the nodes left and left + 1 as leaves.

    The left one takes its slot, the right one the slot `new`. They begin with what the split leaves on either side.
    """
    slot = int(tree.links[node, SLOT])
    tree.column[node] = columns.by_place[place]
    N = tree.first.shape[0]
    if place < N:
        gaussians = tree.gaussians[place, slot]
        tree.threshold[node] = threshold
        lefts, rights = divide_number(threshold, gaussians, prepare_gaussians(gaussians, scratch), scratch)
    else:
        k = place - N
        totals = tree.category_totals[k, slot]
        tree.value[node] = tree.values[k, slot, v]
        came = order_classes(totals[:, 1], scratch.order)
        lefts, rights = divide_category(tree.value_counts[k, slot, v], totals, came, scratch)
    clear_slot(slot, True, tree)
    a = add_child(left, node, slot, scratch.left, scratch.left_classes, lefts, tree)
    b = add_child(left + 1, node, new, scratch.right, scratch.right_classes, rights, tree)
    tree.links[node, LEFT] = left
    tree.links[node, SLOT] = -1
    more = a + b - tree.weights[node, TOTAL]  # rows that lack the column of the split are in neither child
    while node >= 0:
        tree.weights[node, TOTAL] += more
        node = int(tree.links[node, PARENT])


@kernel
def try_to_split(
    node: int, member: int, tree: Tree, size: ndarray, settings: Settings, columns: Columns, scratch: Scratch
) -> None:
    """Do with a leaf that is due what `find_split` says, if there is room.

    member  which of the trees that share the arrays in equal parts
    size    (3,)  of that tree
    """
    total = tree.weights[node, TOTAL]
    what, place, threshold, v = find_split(node, total, tree, settings, scratch)
    if what == FORGET:
        clear_slot(int(tree.links[node, SLOT]), settings.features == 0, tree)
    elif what == SPLIT:
        trees = tree.size.size // 3
        nodes = tree.links.shape[0] // trees
        if size[NODES] + 2 > nodes:
            size[REFUSED] += 1
        else:
            left = member * nodes + int(size[NODES])
            new = member * (tree.seen.shape[0] // trees) + int(size[SLOTS])
            size[NODES] += 2
            size[SLOTS] += 1
            split(node, place, threshold, v, left, new, tree, columns, scratch)
    tree.weights[node, ATTEMPT] = total


# --- random numbers: each member of a forest has a sequence of its own, and its state is how many it has drawn


@kernel
def mixed(z: np.uint64) -> np.uint64:
    """SplitMix64's finish: 64 bits that look random for any that are different."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def key_of_member(seed: np.uint64, member: int) -> np.uint64:
    """What names the sequence of one member of a forest."""
    return mixed(seed + np.uint64(member + 1) * np.uint64(0xD1B54A32D192ED03))


@kernel
def uniform(key: np.uint64, drawn: ndarray, member: int) -> float:
    """The next number of a sequence, from [0, 1); drawn uint64 (T,) counts on.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    drawn[member] += np.uint64(1)
    bits = mixed(key + drawn[member] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)
    return np.float64(bits) * 2.0**-53


@kernel
def poisson(least: float, key: np.uint64, drawn: ndarray, member: int) -> int:
    """A number with a Poisson distribution of rate -ln(least).

    Source: Knuth (1969), The art of computer programming, volume 2.
    """
    many = 0
    product = 1.0
    while product > least:
        many += 1
        product *= uniform(key, drawn, member)
    return many - 1


@kernel
def draw_columns(
    numeric: ndarray, categories: ndarray, features: int, slot: int, seen: ndarray, first: ndarray,
    category_first: ndarray, columns: ndarray, key: np.uint64, drawn: ndarray, member: int,
) -> None:  # fmt: skip
    """Choose so many of the columns that a row has for the leaf with this slot: it sees them now, and no others later.

    columns     int32 (N + K,)  scratch
    key, drawn, member          as in `uniform`
    """
    many = 0
    N = numeric.shape[0]
    for j in range(N):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            columns[many] = j
            many += 1
    for k in range(categories.shape[0]):
        if categories[k] != 0:
            columns[many] = N + k
            many += 1
    for i in range(min(features, many)):
        p = columns[i]
        if many >= features:
            other = i + int(uniform(key, drawn, member) * (many - i))
            p = columns[other]
            columns[other] = columns[i]
        if p < N:
            see_column(first, p, slot, seen)
        else:
            see_column(category_first, p - N, slot, seen)


# --- learning


@kernel
def next_rank(ranks: ndarray) -> int:
    """The rank of the class that comes next, where ranks (C,) are those of the classes that came."""
    rank = 1
    for c in range(ranks.shape[0]):
        rank += ranks[c] > 0.0
    return rank


@kernel
def see_column(first: ndarray, j: int, slot: int, seen: ndarray) -> None:
    """Note when the leaf with this slot first sees column j: first (., S), seen (S,)."""
    if first[j, slot] == 0:
        seen[slot] += 1
        first[j, slot] = seen[slot]


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
def class_of(y: float, classes: int, binary: bool) -> int:
    """The class of a label; -1: it is none."""
    if y - y != 0.0:
        return -1
    if binary:
        return 1 if y >= 0.5 else 0
    return int(y) if 0.0 <= y < classes and y == math.floor(y) else -1


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


# --- ADWIN, for trees that watch their own errors: as in `drift_kernels`, one value at a time


@kernel
def find_cut(delta: float, totals: ndarray, held: ndarray, sums: ndarray) -> bool:
    """Whether the window falls into an older and a newer part whose means differ more than chance allows."""
    width = sums[WIDTH]
    variance = sums[DEVIATIONS] / width
    confidence = math.log(2.0 * math.log(width) / delta)
    older = older_total = 0.0
    newer, newer_total = width, sums[SUM]
    size = 2.0**LEVELS
    for level in range(LEVELS - 1, -1, -1):
        size *= 0.5
        for k in range(held[level]):
            older += size
            newer -= size
            older_total += totals[level, k]
            newer_total -= totals[level, k]
            if newer < 1.0:
                return False
            if older < LEAST_PART or newer < LEAST_PART:
                continue
            rarity = 1.0 / (older - LEAST_PART + 1.0) + 1.0 / (newer - LEAST_PART + 1.0)
            bound = math.sqrt(2.0 * rarity * variance * confidence) + 2.0 / 3.0 * confidence * rarity
            if abs(older_total / older - newer_total / newer) > bound:
                return True
    return False


@kernel
def hear(x: float, delta: float, totals: ndarray, held: ndarray, sums: ndarray) -> bool:
    """Add a value to a window; whether the values have changed, in which case it is empty again.

    totals  float64 (LEVELS, BUCKETS + 1)  sum of each bucket, the oldest first    changed in place
    held    int64 (LEVELS,)                buckets of each level                   changed in place
    sums    float64 (3,)                   width, sum, squared distances from the mean  changed in place

    Source: Bifet and Gavalda (2007), Learning from time-changing data with adaptive windowing.
    """
    count = sums[WIDTH] + 1.0
    if count > 1.0:
        from_mean = x - sums[SUM] / (count - 1.0)
        sums[DEVIATIONS] += (count - 1.0) * from_mean * from_mean / count
    sums[WIDTH] = count
    sums[SUM] += x
    totals[0, held[0]] = x
    held[0] += 1
    level = 0
    while held[level] > BUCKETS:
        totals[level + 1, held[level + 1]] = totals[level, 0] + totals[level, 1]
        held[level + 1] += 1
        held[level] -= 2
        for k in range(held[level]):
            totals[level, k] = totals[level, k + 2]
        level += 1
    if np.int64(count) % CLOCK != 0 or count <= GRACE or not find_cut(delta, totals, held, sums):
        return False
    totals[:] = 0.0
    held[:] = 0
    sums[:] = 0.0
    return True


# --- an adaptive tree: each node watches its error, and a branch that gets worse grows a leaf that may take its place


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
def fold_in(y: float, weight: float, row: ndarray) -> None:
    """Fold a number into count, mean and sum of squares, (3,)."""
    row[0] += weight
    before = row[1]
    row[1] += weight / row[0] * (y - before)
    row[2] += weight * (y - before) * (y - row[1])


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


# --- a forest: members with two trees each, of which one serves and the other may grow in the background


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


# --- regression: leaves keep the moments of the target, of each numeric column in a search tree, and a linear model


@kernel
def added(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squares of two samples together.

    Source: Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance.
    """
    n = a[0] + b[0]
    if n == 0.0:
        return a
    d = a[1] - b[1]
    return n, (a[0] * a[1] + b[0] * b[1]) / n, a[2] + b[2] + d * d * a[0] * b[0] / n


@kernel
def taken_away(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squares of a sample without a part of it: the way back from `added`."""
    n = a[0] - b[0]
    mean = (a[0] * a[1] - b[0] * b[1]) / n if n > 0.0 else 0.0
    n = max(n, 0.0)
    d = mean - b[1]
    whole = n + b[0]
    return n, mean, a[2] - b[2] - (d * d * n * b[0] / whole if whole != 0.0 else 0.0)


@kernel
def variance_of(a: Moments) -> float:
    """Sample variance; 0 of fewer than two."""
    return a[2] / (a[0] - 1.0) if a[0] > 1.0 else 0.0


@kernel
def moments_at(row: ndarray) -> Moments:
    """Count, mean and sum of squares in a row of three."""
    return row[0], row[1], row[2]


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


@inlined
def model_of(node: int, numeric: ndarray, tree: RegressionTree) -> float:
    """What the linear model of a leaf says of a row; a missing number adds nothing."""
    slot = int(tree.links[node, SLOT])
    raw = 0.0
    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            raw += tree.coefficients[j, slot] * min(max(x, -LARGEST), LARGEST)
    return min(max(raw + tree.intercepts[slot], -LARGEST_VALUE), LARGEST_VALUE)


@inlined
def value_at(node: int, numeric: ndarray, tree: RegressionTree, settings: RegressionSettings) -> float:
    """What a leaf predicts for a row."""
    errors = tree.weights[node]
    if settings.prediction == MEAN_ONLY or (
        settings.prediction == MEAN_OR_MODEL and errors[MEAN_ERROR] < errors[MODEL_ERROR]
    ):
        return min(max(tree.targets[node, 1], -LARGEST_VALUE), LARGEST_VALUE)
    return model_of(node, numeric, tree)


@inlined
def value_of(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, size: ndarray, root: int,
    settings: RegressionSettings, columns: Columns,
) -> tuple[float, int, bool]:  # fmt: skip
    """The prediction of the tree below a root for one row, and what `leaf_of` says of it. size (3,): of that tree.

    Before anything was learned 0, and the leaf is -1.
    """
    if size[NODES] == 0:
        return 0.0, -1, True
    node, asked = leaf_of(
        root, numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    return value_at(node, numeric, tree, settings), node, asked


@kernel
def clear_regression_slot(slot: int, columns_too: bool, tree: RegressionTree) -> None:
    """Forget what a leaf has observed, and which columns it has seen too, or not; its model stays."""
    if columns_too:
        tree.seen[slot] = 0
        for j in range(tree.first.shape[0]):
            tree.first[j, slot] = 0
        for k in range(tree.category_first.shape[0]):
            tree.category_first[k, slot] = 0
    for j in range(tree.first.shape[0]):
        tree.used[j, slot] = 0
    for k in range(tree.category_first.shape[0]):
        tree.categories[k, slot] = 0
        tree.category_moments[k, slot] = 0.0


@kernel
def clear_model(slot: int, tree: RegressionTree) -> None:
    """Make a slot as if it had never been used."""
    clear_regression_slot(slot, True, tree)
    tree.intercepts[slot] = 0.0
    for j in range(tree.coefficients.shape[0]):
        tree.coefficients[j, slot] = 0.0


@kernel
def split_regression(
    node: int, place: int, where: float, v: int, left: Moments, right: Moments, first: int, new: int,
    tree: RegressionTree, columns: Columns,
) -> None:  # fmt: skip
    """Make a leaf a branch on this column, with the nodes first and first + 1 as leaves.

    They begin with these targets and with its model; the left one takes its slot, the right one the slot `new`.
    """
    slot = int(tree.links[node, SLOT])
    tree.column[node] = columns.by_place[place]
    if place < tree.first.shape[0]:
        tree.threshold[node] = where
    else:
        tree.value[node] = tree.categories[place - tree.first.shape[0], slot, v]
    clear_regression_slot(slot, True, tree)
    clear_regression_slot(new, True, tree)
    for j in range(tree.coefficients.shape[0]):
        tree.coefficients[j, new] = tree.coefficients[j, slot]
    tree.intercepts[new] = tree.intercepts[slot]
    for side in range(2):
        child = first + side
        targets = right if side == 1 else left
        tree.links[child, LEFT] = 0
        tree.links[child, PARENT] = node
        tree.links[child, PASSIVE] = 0
        tree.links[child, DEPTH] = tree.links[node, DEPTH] + 1
        tree.links[child, SLOT] = new if side == 1 else slot
        for i in range(3):
            tree.targets[child, i] = targets[i]
        tree.weights[child, TOTAL] = targets[0]
        tree.weights[child, ATTEMPT] = targets[0]
        tree.weights[child, MEAN_ERROR] = tree.weights[node, MEAN_ERROR]
        tree.weights[child, MODEL_ERROR] = tree.weights[node, MODEL_ERROR]
    tree.links[node, LEFT] = first
    tree.links[node, SLOT] = -1
    more = left[0] + right[0] - tree.weights[node, TOTAL]
    while node >= 0:
        tree.weights[node, TOTAL] += more
        node = int(tree.links[node, PARENT])


@kernel
def best_category(whole: Moments, least: float, values: ndarray, moments: ndarray) -> tuple[float, int]:
    """Merit and place of the best value to split a category by, values (V,), moments (V, 3); -inf: there is none.

    Of equals the lowest hash.
    """
    best, where = -math.inf, 0
    for v in range(values.shape[0]):
        if values[v] != 0:
            left = moments_at(moments[v])
            merit = reduction_of(whole, left, taken_away(whole, left), least)
            if merit > best or (merit == best and values[v] < values[where]):
                best, where = merit, v
    return best, where


@kernel
def find_value_split(
    node: int, tree: RegressionTree, settings: RegressionSettings, stack: ndarray, kept: ndarray
) -> tuple[int, int, float, int, Moments, Moments]:
    """What to do with a leaf that is due, and the best split: column, threshold, place of value, both sides.

    SPLIT  the second best column is worse than the best by more than the bound, as a ratio
    FORGET not to split is the best: what the leaf observed is forgotten and observed anew
    STAY   not sure yet; values without a chance were dropped
    """
    slot = int(tree.links[node, SLOT])
    whole = moments_at(tree.targets[node])
    least = settings.min_samples_split
    N = tree.first.shape[0]
    candidates = 1 if settings.merit_preprune else 0
    best, second, place, when = -math.inf, -math.inf, -1, 0
    where = 0.0
    v = 0
    left, right = whole, whole
    for p in range(N + tree.category_first.shape[0]):
        came = int(tree.first[p, slot] if p < N else tree.category_first[p - N, slot])
        if came == 0:
            continue
        candidates += 1
        t, u, a, b = 0.0, 0, whole, whole
        if p < N:
            merit, t, a, b = best_value_below(
                whole, least, int(tree.used[p, slot]), tree.values[p, slot], tree.children[p, slot],
                tree.moments[p, slot], stack,
            )  # fmt: skip
        else:
            merit, u = best_category(whole, least, tree.categories[p - N, slot], tree.category_moments[p - N, slot])
            a = moments_at(tree.category_moments[p - N, slot, u])
            b = taken_away(whole, a)
        if merit > best or (merit == best and came > when):  # of equals, the one that came last
            second = best
            best, place, when, where, v, left, right = merit, p, came, t, u, a, b
        else:
            second = max(second, merit)

    bound = math.sqrt(settings.log_confidence / (2.0 * whole[0]))
    if candidates == 0:
        return STAY, 0, 0.0, 0, whole, whole
    if candidates == 1 or (best > 0.0 and (second / best < 1.0 - bound or bound < settings.tau)):
        return (FORGET if best == -math.inf else SPLIT), place, where, v, left, right
    if best > 0.0 and second > 0.0:
        for j in range(N):
            if tree.first[j, slot] != 0:
                tree.used[j, slot] = prune(
                    whole, best, second / best - 2.0 * bound, least, int(tree.used[j, slot]),
                    tree.values[j, slot], tree.children[j, slot], tree.moments[j, slot], stack, kept,
                )  # fmt: skip
    return STAY, 0, 0.0, 0, whole, whole


@kernel
def try_to_split_regression(
    node: int, member: int, tree: RegressionTree, size: ndarray, settings: RegressionSettings, columns: Columns,
    stack: ndarray, kept: ndarray,
) -> None:  # fmt: skip
    """Do with a leaf that is due what `find_value_split` says, if there is room.

    member  which of the trees that share the arrays in equal parts
    size    (3,)  of that tree
    """
    total = tree.targets[node, 0]
    what, place, where, v, left, right = find_value_split(node, tree, settings, stack, kept)
    if what == FORGET:
        clear_regression_slot(int(tree.links[node, SLOT]), settings.features == 0, tree)
    elif what == SPLIT:
        trees = tree.size.size // 3
        nodes = tree.links.shape[0] // trees
        if size[NODES] + 2 > nodes:
            size[REFUSED] += 1
        else:
            first = member * nodes + int(size[NODES])
            new = member * (tree.seen.shape[0] // trees) + int(size[SLOTS])
            size[NODES] += 2
            size[SLOTS] += 1
            split_regression(node, place, where, v, left, right, first, new, tree, columns)
    tree.weights[node, ATTEMPT] = total


@kernel
def observe_target(y: float, value: np.uint64, weight: float, start: float, values: ndarray, moments: ndarray) -> None:
    """Fold the target of a value of a category into values (V,), moments (V, 3); room is made as in `observe_value`."""
    place = find_value(value, values)
    if place < 0:
        place = find_value(np.uint64(0), values)
        if place < 0:
            V = values.shape[0]
            first = int(start % float(V))
            lightest = math.inf
            for i in range(V):
                at = (first + i) % V
                if moments[at, 0] < lightest:
                    place, lightest = at, moments[at, 0]
            if lightest > weight:
                return
        values[place] = value
        moments[place] = 0.0
    fold_in(y, weight, moments[place])


@inlined
def learn_value_at_leaf(
    node: int, numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree,
    settings: RegressionSettings, places: ndarray, key: np.uint64, drawn: ndarray, member: int,
) -> None:  # fmt: skip
    """Learn at a leaf that one row has the target y.

    places, key, drawn, member   as in `draw_columns`; used where the leaf draws the columns that it observes
    """
    slot = int(tree.links[node, SLOT])
    targets = tree.targets[node]
    raw = 0.0
    if settings.prediction != MEAN_ONLY:
        raw = model_of(node, numeric, tree)
    if settings.prediction == MEAN_OR_MODEL:
        errors = tree.weights[node]
        errors[MEAN_ERROR] = settings.model_selector_decay * errors[MEAN_ERROR] + (y - targets[1]) * (y - targets[1])
        errors[MODEL_ERROR] = settings.model_selector_decay * errors[MODEL_ERROR] + (y - raw) * (y - raw)
    fold_in(y, weight, targets)
    tree.weights[node, TOTAL] = targets[0]
    if settings.prediction != MEAN_ONLY:
        slope = min(max(2.0 * (raw - y) * weight, -LARGEST_SLOPE), LARGEST_SLOPE)
        tree.intercepts[slot] -= settings.intercept_lr * slope
        for j in range(numeric.shape[0]):
            x = np.float64(numeric[j])
            if x - x == 0.0:
                tree.coefficients[j, slot] -= settings.lr * (slope * min(max(x, -LARGEST), LARGEST))
    if tree.links[node, PASSIVE] != 0:
        return

    some = settings.features > 0
    if some and tree.seen[slot] == 0:
        draw_columns(
            numeric, categories, settings.features, slot, tree.seen, tree.first, tree.category_first, places, key,
            drawn, member,
        )  # fmt: skip
    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0 and not (some and tree.first[j, slot] == 0):
            see_column(tree.first, j, slot, tree.seen)
            tree.used[j, slot] = insert(
                rounded(min(max(x, -LARGEST), LARGEST), settings.factor), y, weight, int(tree.used[j, slot]),
                tree.values[j, slot], tree.children[j, slot], tree.moments[j, slot],
            )  # fmt: skip
    for k in range(categories.shape[0]):
        if categories[k] != 0 and not (some and tree.category_first[k, slot] == 0):
            see_column(tree.category_first, k, slot, tree.seen)
            kept_here = tree.categories[k, slot], tree.category_moments[k, slot]
            observe_target(y, categories[k], weight, targets[0], *kept_here)


@inlined
def learn_value(
    numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree, size: ndarray, at: int,
    settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray, places: ndarray, key: np.uint64,
    drawn: ndarray, member: int, node: int, asked: bool,
) -> None:  # fmt: skip
    """Learn that one row has the target y in the tree `at` of those that share the arrays; size (3,): of that tree.

    places, key, drawn, member   as in `draw_columns`
    node, asked                  as in `learn_row`
    """
    trees = tree.size.size // 3
    root = at * (tree.links.shape[0] // trees)
    if size[NODES] == 0:
        size[NODES] = 1
        size[SLOTS] = 1
        tree.links[root, PARENT] = -1
        tree.links[root, SLOT] = at * (tree.seen.shape[0] // trees)
        node = root
    links, weights = tree.links, tree.weights
    if node < 0:
        node, asked = leaf_of(
            root, numeric, categories, links, tree.column, tree.threshold, tree.value, weights, columns.keys,
            columns.places,
        )  # fmt: skip
    add_above(node, weight, links, weights)
    learn_value_at_leaf(node, numeric, categories, y, weight, tree, settings, places, key, drawn, member)
    if links[node, PASSIVE] != 0 or not asked:
        return  # as River: a row that lacks what a branch asks is learned, and no cause to split
    if links[node, DEPTH] >= settings.max_depth:
        links[node, PASSIVE] = 1
    elif tree.targets[node, 0] - weights[node, ATTEMPT] >= settings.grace_period:
        try_to_split_regression(node, at, tree, size, settings, columns, stack, kept)


@kernel
def predict_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns,
    out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read. Arguments as in `learn_values`."""
    for i in range(numeric.shape[0]):
        out[i, 0] = value_of(numeric[i], categories[i], tree, tree.size, 0, settings, columns)[0]


@kernel
def learn_values(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray,
    tree: RegressionTree, settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing
    same             whether before and numeric are one array: rows then go down once
    categories       uint64  (B, K)  0: missing
    y, weight        float32 (B, 1), (B,)  a row with a label that is not finite, or a weight that is not above 0 and
                                     finite, is predicted and not learned
    tree             the state, changed in place
    settings, columns                as their classes say
    stack, kept      int32 (4 V + 4, 2), float64 (V, 6)   scratch
    out              float (B, 1), or (0, 1) where no predictions are wanted

    Result does not depend on where the stream is cut.
    Source: Ikonomovska, Gama and Dzeroski (2011), Learning model trees from evolving data streams.
    """
    nothing, none_drawn = columns.places[:0], columns.keys[:0]  # a single tree draws nothing
    node, asked = -1, True
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            out[i, 0], node, asked = value_of(before[i], categories[i], tree, tree.size, 0, settings, columns)
        t = np.float64(y[i, 0])
        w = np.float64(weight[i])
        if t - t == 0.0 and w > 0.0 and w - w == 0.0:
            if not same:
                node = -1
            learn_value(
                numeric[i], categories[i], t, w, tree, tree.size, 0, settings, columns, stack, kept, nothing,
                np.uint64(0), none_drawn, 0, node, asked,
            )  # fmt: skip


# --- an adaptive tree of values: as that of classes, but for what an error is and how errors are compared


@kernel
def compare_values(at: int, adaptive: Adaptive, choices: AdaptiveSettings) -> int:
    """1: the alternate of a branch is better than it, -1: it is worse, 0: nobody can tell yet. By a z-test."""
    mine, other = moments_at(adaptive.errors[at]), moments_at(adaptive.errors[int(adaptive.alternate[at])])
    if not (other[0] > choices.window and mine[0] > choices.window):
        return 0
    z = (other[1] - mine[1]) / math.sqrt(variance_of(other) / other[0] + variance_of(mine) / mine[0])
    if not 1.0 + math.erf(-abs(z) / math.sqrt(2.0)) <= choices.significance:
        return 0
    return 1 if other[1] < mine[1] else -1


@kernel
def learn_adaptive_value_leaf(
    node: int, numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree,
    adaptive: Adaptive, settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray,
    kept: ndarray, places: ndarray,
) -> float:  # fmt: skip
    """Learn at a leaf that one row has the target y, split the leaf if it is due; the weight that was learned."""
    error = abs(y - value_at(node, numeric, tree, settings))
    if choices.bootstrap:
        weight *= max(poisson(ONE_IN_E, choices.key, adaptive.drawn, 0), 1)
    watch(node, error, choices.drift_delta, adaptive)
    learn_value_at_leaf(
        node, numeric, categories, y, weight, tree, settings, places, choices.key, adaptive.drawn, 0
    )  # fmt: skip
    total = tree.targets[node, 0]
    if tree.links[node, PASSIVE] != 0 or total - tree.weights[node, ATTEMPT] < settings.grace_period:
        return weight
    if tree.links[node, DEPTH] >= settings.max_depth:
        tree.links[node, PASSIVE] = 1
        return weight
    what, place, where, v, left, right = find_value_split(node, tree, settings, stack, kept)
    if what == FORGET:
        clear_regression_slot(int(tree.links[node, SLOT]), True, tree)
    elif what == SPLIT:
        first = take_nodes(kept_from(node, tree), tree, adaptive)
        if first != 0:
            split_regression(
                node, place, where, v, left, right, first, take_slot(tree, adaptive), tree, columns
            )  # fmt: skip
            watch_anew(node, adaptive)
    tree.weights[node, ATTEMPT] = total
    return weight


@kernel
def learn_adaptive_value(
    numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree, adaptive: Adaptive,
    settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray, kept: ndarray,
    places: ndarray, path: ndarray,
) -> bool:  # fmt: skip
    """Learn that one row has the target y, from the root down; what has to be swapped is swapped at the end.

    Whether nodes came or went. path int32 (3, M): scratch
    """
    links, weights, targets = tree.links, tree.weights, tree.targets
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
    error = abs(y - value_at(node, numeric, tree, settings)) if many > 0 else 0.0
    for d in range(many):
        at = int(path[0, d])
        path[1, d] = 0  # whether its alternate takes its place
        fold_in(y, weight, targets[at])
        learns = False
        if watch(at, error, choices.drift_delta, adaptive) and adaptive.alternate[at] == 0:
            changed = True
            adaptive.errors[at] = 0.0
            other = begin_alternate(at, tree, adaptive)
            learns = other != 0
            if learns:
                clear_model(int(links[other, SLOT]), tree)
                targets[other] = 0.0
        elif adaptive.alternate[at] != 0:
            verdict = compare_values(at, adaptive, choices)
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
            learn_adaptive_value_leaf(
                other, numeric, categories, y, weight, tree, adaptive, settings, choices, columns, stack, kept, places
            )
            if links[other, LEFT] != 0:
                path[1, d] = 1  # as River: an alternate that splits takes the place of its branch at once
    learned = learn_adaptive_value_leaf(
        node, numeric, categories, y, weight, tree, adaptive, settings, choices, columns, stack, kept, places
    )
    changed = changed or links[node, LEFT] != 0
    for d in range(many):
        weights[path[0, d], TOTAL] += learned
    for d in range(many - 1, -1, -1):
        if path[1, d] != 0:
            changed = True
            at = int(path[0, d])
            copy_into(targets[at], targets[int(adaptive.alternate[at])])
            take_alternate(at, tree, adaptive, path[2])
    return changed


@kernel
def adaptive_value_of(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, settings: RegressionSettings,
    columns: Columns,
) -> float:  # fmt: skip
    """The mean of what the leaf of a row and the alternates on its way predict; 0 before anything was learned."""
    if tree.size[NODES] == 0:
        return 0.0
    links = tree.links
    total = many = 0.0
    node, there = 0, True
    while links[node, LEFT] != 0:
        if adaptive.alternate[node] != 0:
            times = 1.0 if there else 2.0  # as River, which meets a node twice where the row lacks what is asked above
            total += times * value_at(int(adaptive.alternate[node]), numeric, tree, settings)
            many += times
        node, there = step_down(
            node, numeric, categories, links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
            columns.places,
        )  # fmt: skip
    return (total + value_at(node, numeric, tree, settings)) / (many + 1.0)


@kernel
def predict_adaptive_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, adaptive: Adaptive, settings: RegressionSettings,
    columns: Columns, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read."""
    for i in range(numeric.shape[0]):
        out[i, 0] = adaptive_value_of(numeric[i], categories[i], tree, adaptive, settings, columns)


@kernel
def learn_adaptive_values(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: RegressionTree,
    adaptive: Adaptive, settings: RegressionSettings, choices: AdaptiveSettings, columns: Columns, stack: ndarray,
    kept: ndarray, places: ndarray, path: ndarray, out: ndarray,
) -> bool:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i]; whether nodes came or went, but for the first.

    Arguments as in `learn_values`, and

    adaptive         the rest of the state, changed in place
    places, path     int32 (N + K,), (3, M)  scratch

    Result does not depend on where the stream is cut.
    Source: Bifet and Gavalda (2009), Adaptive learning from evolving data streams.
    """
    changed = False
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            out[i, 0] = adaptive_value_of(before[i], categories[i], tree, adaptive, settings, columns)
        t = np.float64(y[i, 0])
        w = np.float64(weight[i])
        if t - t == 0.0 and w > 0.0 and w - w == 0.0:
            changed |= learn_adaptive_value(
                numeric[i], categories[i], t, w, tree, adaptive, settings, choices, columns, stack, kept, places, path
            )
    return changed


# --- a forest of values


class RegressionForest(NamedTuple):
    """What a forest keeps beside a `RegressionTree`, whose arrays 2 T trees share, as in `Forest`."""

    members: ndarray  # int32 (T, 2): which of its trees serves, whether the other one grows
    deviations: ndarray  # float64 (T, 3): count, mean and sum of squares of label less prediction
    changes: ndarray  # int64 (T, 2): warnings, drifts
    window_totals: ndarray  # float64 (T, 2, LEVELS, BUCKETS + 1): the windows of `hear`, for warnings and for drifts
    window_held: ndarray  # int64 (T, 2, LEVELS)
    window_sums: ndarray  # float64 (T, 2, 3)
    drawn: ndarray  # uint64 (T,): random numbers drawn


class RegressionForestSettings(NamedTuple):
    """What a forest of values is told beside `RegressionSettings`."""

    seed: np.uint64
    least: float  # exp(-lambda)
    median: bool  # or mean
    warning_delta: float  # 0: no warnings
    drift_delta: float  # 0: no drifts


@kernel
def clear_regression_tree(at: int, tree: RegressionTree) -> None:
    """Make one of the trees of a forest as if it had never been used."""
    size = tree.size[at]
    begin = at * (tree.links.shape[0] // tree.size.shape[0])
    end = begin + int(size[NODES])
    tree.links[begin:end] = 0
    tree.column[begin:end] = 0
    tree.threshold[begin:end] = 0.0
    tree.value[begin:end] = 0
    tree.weights[begin:end] = 0.0
    tree.targets[begin:end] = 0.0
    first = at * (tree.seen.shape[0] // tree.size.shape[0])
    for slot in range(first, first + int(size[SLOTS])):
        clear_model(slot, tree)
    size[:] = 0


@inlined
def watch_value_member(
    t: int, deviation: float, tree: RegressionTree, forest: RegressionForest, choices: RegressionForestSettings
) -> None:
    """Tell a member of a forest by how much it was wrong: a warning begins a tree in the background, a drift uses it.

    Heard is where the deviation lies between three standard deviations below 0 and three above: 0 to 1, mostly.
    """
    members = forest.members[t]
    totals, held, sums = forest.window_totals[t], forest.window_held[t], forest.window_sums[t]
    fold_in(deviation, 1.0, forest.deviations[t])
    spread = math.sqrt(variance_of(moments_at(forest.deviations[t])))
    heard = (deviation + 3.0 * spread) / (6.0 * spread) if spread > 0.0 else 0.5
    if choices.warning_delta > 0.0 and hear(heard, choices.warning_delta, totals[0], held[0], sums[0]):
        clear_regression_tree(2 * t + 1 - int(members[SERVES]), tree)
        members[GROWS] = 1
        forest.changes[t, WARNINGS] += 1
    if choices.drift_delta > 0.0 and hear(heard, choices.drift_delta, totals[1], held[1], sums[1]):
        clear_regression_tree(2 * t + int(members[SERVES]), tree)
        if members[GROWS] != 0:
            members[SERVES] = 1 - members[SERVES]
            members[GROWS] = 0
            totals[0] = 0.0
            held[0] = 0
            sums[0] = 0.0
        forest.changes[t, DRIFTS] += 1


@kernel
def middle_of(values: ndarray, median: bool) -> float:
    """The median or the mean of a few numbers, (T,), which are sorted in place."""
    T = values.shape[0]
    if not median:
        total = 0.0
        for k in range(T):
            total += values[k]
        return total / T
    for k in range(1, T):
        x = values[k]
        at = k
        while at > 0 and values[at - 1] > x:
            values[at] = values[at - 1]
            at -= 1
        values[at] = x
    return 0.5 * (values[(T - 1) // 2] + values[T // 2])


@kernel
def predict_forest_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, forest: RegressionForest,
    settings: RegressionSettings, choices: RegressionForestSettings, columns: Columns, values: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read. Arguments as in `learn_forest_values`."""
    B, T = numeric.shape[0], forest.members.shape[0]
    nodes = tree.links.shape[0] // (2 * T)
    for t in range(T):
        at = 2 * t + int(forest.members[t, SERVES])
        for i in range(B):
            values[i, t], _, _ = value_of(
                numeric[i], categories[i], tree, tree.size[at], at * nodes, settings, columns
            )  # fmt: skip
    for i in range(B):
        out[i, 0] = middle_of(values[i], choices.median)


@kernel
def learn_forest_values(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray,
    tree: RegressionTree, forest: RegressionForest, settings: RegressionSettings, choices: RegressionForestSettings,
    columns: Columns, stack: ndarray, kept: ndarray, places: ndarray, values: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Member by member, and row by row: predict before[i], then learn numeric[i]. Arguments as in `learn_values`, and

    same             whether before and numeric are one array: rows are then predicted once
    forest           the rest of the state, changed in place
    places           int32 (N + K,)  scratch
    values           float64 (B, T)  scratch; (0, T) where no predictions are wanted

    Result does not depend on where the stream is cut.
    Source: Gomes and others (2018), Adaptive random forests for data stream regression.
    """
    B, T = numeric.shape[0], forest.members.shape[0]
    nodes = tree.links.shape[0] // (2 * T)
    wanted = out.shape[0] > 0
    for t in range(T):
        key = key_of_member(choices.seed, t)
        for i in range(B):
            serving = 2 * t + int(forest.members[t, SERVES])
            predicted, node, asked = 0.0, -1, True
            if wanted:
                predicted, node, asked = value_of(
                    before[i], categories[i], tree, tree.size[serving], serving * nodes, settings, columns
                )
                values[i, t] = predicted
            label = np.float64(y[i, 0])
            w = np.float64(weight[i])
            if not (label - label == 0.0 and w > 0.0 and w - w == 0.0):
                continue
            if not (wanted and same):
                predicted, node, asked = value_of(
                    numeric[i], categories[i], tree, tree.size[serving], serving * nodes, settings, columns
                )
            many = poisson(choices.least, key, forest.drawn, t)
            if many == 0:
                continue
            for which in range(2):  # the tree in the background first, as River
                if which == 1 or forest.members[t, GROWS] != 0:
                    at, own_leaf = (serving, node) if which == 1 else (serving ^ 1, -1)
                    learn_value(
                        numeric[i], categories[i], label, w * many, tree, tree.size[at], at, settings, columns, stack,
                        kept, places, key, forest.drawn, t, own_leaf, asked,
                    )  # fmt: skip
            watch_value_member(t, label - predicted, tree, forest, choices)
    for i in range(B if wanted else 0):
        out[i, 0] = middle_of(values[i], choices.median)
