"""The arithmetic of Hoeffding trees in Numba: go down, vote, observe, split, row by row on flat arrays of nodes.

Helpers and kernels stand in one file because Numba's cache does not see a change in another file.
No fastmath: NaN means missing, and sums run in the order in which classes were first seen, as in River, so that merits,
thresholds and the example at which a leaf splits come out the same. What runs for every row is inlined by force, for
handing twenty arrays to a call takes longer than what the call does.

Letters: B rows, N numeric columns, K categories, C classes, M nodes, S slots for what leaves observe, V values kept of
a category at a leaf.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy import ndarray

MAJORITY, BAYES, ADAPTIVE = 0, 1, 2  # what a leaf predicts with
INFO_GAIN, GINI = 0, 1

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


# --- going down


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def place_of(key: np.uint64, keys: ndarray, places: ndarray) -> int:
    """Which column of the rows has this key; -1: none, its feature is gone."""
    mask = np.uint64(keys.shape[0] - 1)
    h = key & mask
    while places[np.intp(h)] >= 0:
        if keys[np.intp(h)] == key:
            return int(places[np.intp(h)])
        h = (h + np.uint64(1)) & mask
    return -1


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
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


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def leaf_of(
    numeric: ndarray, categories: ndarray, links: ndarray, column: ndarray, threshold: ndarray, value: ndarray,
    weights: ndarray, keys: ndarray, places: ndarray,
) -> int:  # fmt: skip
    """The leaf that a row comes to. Arguments as in `step_down`."""
    node = 0
    while links[node, LEFT] != 0:
        node, _ = step_down(node, numeric, categories, links, column, threshold, value, weights, keys, places)
    return node


# --- predicting


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def total_of(node: int, links: ndarray, counts: ndarray, classes: ndarray) -> float:
    """The weight of the examples of a leaf, added up in the order of its classes."""
    total = 0.0
    for k in range(links[node, KNOWN]):
        total += counts[node, classes[node, k]]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def find_value(value: np.uint64, values: ndarray) -> int:
    """Where a value stands among those kept, (V,); -1: it is not kept."""
    for v in range(values.shape[0]):
        if values[v] == value:
            return v
    return -1


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def number_vote(x: float, n: float, mean: float, squares: float) -> float:
    """Logarithm of the density of a finite x where n numbers have this mean and sum of squares; 0: nothing known."""
    variance = squares / (n - 1.0) if n > 1.0 else 0.0
    if not variance > 0.0:
        return 0.0
    d = min(max(x, -LARGEST), LARGEST) - mean
    log_density = d * d / (-2.0 * variance) - HALF_LOG_TAU - 0.5 * math.log(variance)
    return max(log_density, LEAST_VOTE) if log_density > -math.inf else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def write_prediction(
    out: ndarray, node: int, probabilities: ndarray, scale: float, by_class: bool, links: ndarray, classes: ndarray
) -> None:
    """Write probabilities times scale to out (O,): P(true), or P of each class.

    probabilities   (C,), by class or in the order of the leaf's classes
    """
    out[:] = 0.0
    for i in range(links[node, KNOWN]):
        c = classes[node, i]
        p = min((probabilities[c] if by_class else probabilities[i]) * scale, 1.0)
        if out.shape[0] > 1:
            out[c] = p
        elif c == 1:
            out[0] = p


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def predict_row(
    numeric: ndarray, categories: ndarray, size: ndarray, links: ndarray, column: ndarray, threshold: ndarray,
    value: ndarray, weights: ndarray, counts: ndarray, classes: ndarray, gaussians: ndarray, values: ndarray,
    value_counts: ndarray, category_totals: ndarray, settings: Settings, keys: ndarray, places: ndarray,
    votes: ndarray, found: ndarray, out: ndarray,
) -> bool:  # fmt: skip
    """Write the prediction of one row to out (O,); whether votes now holds the votes of its leaf.

    Before anything was learned every class is as likely as another.
    """
    if size[NODES] == 0:
        out[:] = 1.0 / counts.shape[1]
        return False
    node = leaf_of(numeric, categories, links, column, threshold, value, weights, keys, places)
    total = total_of(node, links, counts, classes)
    bayes = links[node, SLOT] >= 0 and (
        (settings.prediction == BAYES and total >= settings.nb_threshold)
        or (settings.prediction == ADAPTIVE and weights[node, BAYES_RIGHT] >= weights[node, MAJORITY_RIGHT])
    )
    if bayes and vote(
        node, numeric, categories, links, counts, classes, gaussians, values, value_counts, category_totals, votes,
        found,
    ):  # fmt: skip
        write_prediction(out, node, votes, 1.0, False, links, classes)
        return True
    if total > 0.0:
        write_prediction(out, node, counts[node], 1.0 / total, True, links, classes)
    else:
        out[:] = 1.0 / counts.shape[1]
    return False


@njit(cache=True, nogil=True, error_model="numpy")
def predict_rows(
    numeric: ndarray, categories: ndarray, tree: Tree, settings: Settings, columns: Columns, scratch: Scratch,
    out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, O); the state is only read. Arguments as in `learn_rows`."""
    # Taking an array out of a tuple is counted, and counting costs: each once, and the helpers are handed arrays.
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


@njit(cache=True, nogil=True, error_model="numpy")
def entropy_of(weights: ndarray, known: int) -> float:
    """Entropy, in bits, of the first `known` weights."""
    entropy = 0.0
    total = 0.0
    for i in range(known):
        if weights[i] > 0.0:
            entropy -= weights[i] * math.log2(weights[i])
            total += weights[i]
    return (entropy + total * math.log2(total)) / total if total > 0.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def gini_of(weights: ndarray, known: int, total: float) -> float:
    """Gini impurity of the first `known` weights, which add up to total."""
    gini = 1.0
    for i in range(known):
        gini -= (weights[i] / total) * (weights[i] / total)
    return gini


@njit(cache=True, nogil=True, error_model="numpy")
def sum_of(weights: ndarray, known: int) -> float:
    """The first `known` weights added up, in order."""
    total = 0.0
    for i in range(known):
        total += weights[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def order_classes(ranks: ndarray, order: ndarray) -> int:
    """Write the classes to order as ranks (C,), 1 for the first, say they came; how many came (rank above 0)."""
    came = 0
    for c in range(ranks.shape[0]):
        if ranks[c] > 0.0:
            order[int(ranks[c]) - 1] = c
            came += 1
    return came


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def clear_slot(slot: int, tree: Tree) -> None:
    """Forget what a leaf has observed."""
    tree.seen[slot] = 0
    for j in range(tree.first.shape[0]):
        tree.first[j, slot] = 0
        tree.gaussians[j, slot] = 0.0
    for k in range(tree.category_first.shape[0]):
        tree.category_first[k, slot] = 0
        tree.category_totals[k, slot] = 0.0
        tree.values[k, slot] = 0
        tree.value_counts[k, slot] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def add_child(
    node: int, parent: int, slot: int, weights: ndarray, classes: ndarray, known: int, tree: Tree
) -> float:  # fmt: skip
    """Make a node a leaf that begins with the weights (C,) of `known` classes; what they add up to."""
    tree.links[node, LEFT] = 0
    tree.links[node, PARENT] = parent
    tree.links[node, DEPTH] = tree.links[parent, DEPTH] + 1
    tree.links[node, SLOT] = slot
    tree.links[node, KNOWN] = known
    for i in range(known):
        tree.classes[node, i] = classes[i]
        tree.counts[node, classes[i]] = weights[i]
    total = sum_of(weights, known)
    tree.weights[node, TOTAL] = total
    tree.weights[node, ATTEMPT] = total
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def split(node: int, lefts: int, rights: int, tree: Tree, scratch: Scratch) -> None:
    """Give a leaf two children, which begin with what stands in scratch; the left one takes its slot."""
    left = int(tree.size[NODES])
    slot = int(tree.links[node, SLOT])
    clear_slot(slot, tree)
    a = add_child(left, node, slot, scratch.left, scratch.left_classes, lefts, tree)
    b = add_child(left + 1, node, int(tree.size[SLOTS]), scratch.right, scratch.right_classes, rights, tree)
    tree.size[NODES] += 2
    tree.size[SLOTS] += 1
    tree.links[node, LEFT] = left
    tree.links[node, SLOT] = -1
    more = a + b - tree.weights[node, TOTAL]  # rows that lack the column of the split are in neither child
    while node >= 0:
        tree.weights[node, TOTAL] += more
        node = int(tree.links[node, PARENT])


@njit(cache=True, nogil=True, error_model="numpy")
def try_to_split(node: int, total: float, tree: Tree, settings: Settings, columns: Columns, scratch: Scratch) -> None:
    """Split a leaf of this total weight if the best column is better than the second by more than the bound.

    Where not to split is the best, what the leaf observed is forgotten and observed anew.
    """
    known = tree.links[node, KNOWN]
    slot = int(tree.links[node, SLOT])
    kinds = 0
    largest = 0.0
    for i in range(known):
        count = tree.counts[node, tree.classes[node, i]]
        scratch.votes[i] = count
        largest = max(largest, count)
        kinds += count != 0.0
    if kinds < 2:
        return
    if largest / total > settings.max_share_to_split:
        clear_slot(slot, tree)
        return

    N = tree.first.shape[0]
    entropy = entropy_of(scratch.votes, known)
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
        return
    if best == -math.inf:
        clear_slot(slot, tree)
    elif tree.size[NODES] + 2 > tree.links.shape[0]:
        tree.size[REFUSED] += 1
    else:
        tree.column[node] = columns.by_place[place]
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
        split(node, lefts, rights, tree, scratch)


# --- learning


@njit(cache=True, nogil=True, error_model="numpy")
def next_rank(ranks: ndarray) -> int:
    """The rank of the class that comes next, where ranks (C,) are those of the classes that came."""
    rank = 1
    for c in range(ranks.shape[0]):
        rank += ranks[c] > 0.0
    return rank


@njit(cache=True, nogil=True, error_model="numpy")
def see_column(first: ndarray, j: int, slot: int, seen: ndarray) -> None:
    """Note when the leaf with this slot first sees column j: first (., S), seen (S,)."""
    if first[j, slot] == 0:
        seen[slot] += 1
        first[j, slot] = seen[slot]


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def first_largest(weights: ndarray, known: int) -> int:
    """Which of the first `known` weights is the largest; of equals the first."""
    best = 0
    for i in range(1, known):
        if weights[i] > weights[best]:
            best = i
    return best


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
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


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def learn_row(
    numeric: ndarray, categories: ndarray, c: int, weight: float, voted: bool, size: ndarray, links: ndarray,
    column: ndarray, threshold: ndarray, value: ndarray, weights: ndarray, counts: ndarray, classes: ndarray,
    seen: ndarray, first: ndarray, gaussians: ndarray, category_first: ndarray, values: ndarray,
    value_counts: ndarray, category_totals: ndarray, settings: Settings, keys: ndarray, places: ndarray,
    votes: ndarray, found: ndarray,
) -> int:  # fmt: skip
    """Learn that one row is of class c. The leaf that is now due to try to split; -1: none."""
    if size[NODES] == 0:
        size[NODES] = 1
        size[SLOTS] = 1
        links[0, PARENT] = -1
    node, asked = 0, True
    while links[node, LEFT] != 0:
        weights[node, TOTAL] += weight
        node, there = step_down(node, numeric, categories, links, column, threshold, value, weights, keys, places)
        asked = asked and there

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
        return -1

    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            see_column(first, j, slot, seen)
            observe_number(x, j, slot, c, weight, gaussians)
    for k in range(categories.shape[0]):
        if categories[k] != 0:
            see_column(category_first, k, slot, seen)
            kept = values[k, slot], value_counts[k, slot], category_totals[k, slot]
            observe_value(categories[k], c, weight, *kept)
    if not asked:
        return -1  # as River: a row that lacks what a branch asks is learned, and no cause to split
    if links[node, DEPTH] >= settings.max_depth:
        links[node, SLOT] = -1
    elif total - weights[node, ATTEMPT] >= settings.grace_period:
        return node
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def class_of(y: float, classes: int, binary: bool) -> int:
    """The class of a label; -1: it is none."""
    if y - y != 0.0:
        return -1
    if binary:
        return 1 if y >= 0.5 else 0
    return int(y) if 0.0 <= y < classes else -1


@njit(cache=True, nogil=True, error_model="numpy")
def learn_rows(
    before: ndarray, numeric: ndarray, same: bool, categories: ndarray, y: ndarray, weight: ndarray, tree: Tree,
    settings: Settings, columns: Columns, scratch: Scratch, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing
    same             whether before and numeric are one array: votes are then counted once
    categories       uint64  (B, K)  0: missing
    y, weight        float32 (B, 1), (B,)  a row with a label that is no class, or a weight that is not above 0 and
                                     finite, is predicted and not learned
    tree             the state, changed in place
    settings, columns, scratch       as their classes say
    out              float (B, O)    P(true) or P of each class; (0, O) where no predictions are wanted

    Result does not depend on where the stream is cut.
    Source: Domingos and Hulten (2000), Mining high-speed data streams.
    """
    # Taking an array out of a tuple is counted, and counting costs: each once, and the helpers are handed arrays.
    size, links, column, threshold, value = tree.size, tree.links, tree.column, tree.threshold, tree.value
    weights, counts, classes, gaussians = tree.weights, tree.counts, tree.classes, tree.gaussians
    values, value_counts, category_totals = tree.values, tree.value_counts, tree.category_totals
    keys, places, votes, found = columns.keys, columns.places, scratch.votes, scratch.found
    seen, first, category_first = tree.seen, tree.first, tree.category_first
    voted = False
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            voted = predict_row(
                before[i], categories[i], size, links, column, threshold, value, weights, counts, classes, gaussians,
                values, value_counts, category_totals, settings, keys, places, votes, found, out[i],
            )  # fmt: skip
        c = class_of(np.float64(y[i, 0]), counts.shape[1], out.shape[1] == 1)
        w = np.float64(weight[i])
        if c >= 0 and w > 0.0 and w - w == 0.0:
            leaf = learn_row(
                numeric[i], categories[i], c, w, voted and same, size, links, column, threshold, value, weights,
                counts, classes, seen, first, gaussians, category_first, values, value_counts, category_totals,
                settings, keys, places, votes, found,
            )  # fmt: skip
            if leaf >= 0:
                total = weights[leaf, TOTAL]
                try_to_split(leaf, total, tree, settings, columns, scratch)
                weights[leaf, ATTEMPT] = total


# --- regression: leaves keep the moments of the target, of each numeric column in a search tree, and a linear model


@njit(cache=True, nogil=True, error_model="numpy")
def added(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squares of two samples together.

    Source: Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance.
    """
    n = a[0] + b[0]
    if n == 0.0:
        return a
    d = a[1] - b[1]
    return n, (a[0] * a[1] + b[0] * b[1]) / n, a[2] + b[2] + d * d * a[0] * b[0] / n


@njit(cache=True, nogil=True, error_model="numpy")
def taken_away(a: Moments, b: Moments) -> Moments:
    """Count, mean and sum of squares of a sample without a part of it: the way back from `added`."""
    n = a[0] - b[0]
    mean = (a[0] * a[1] - b[0] * b[1]) / n if n > 0.0 else 0.0
    n = max(n, 0.0)
    d = mean - b[1]
    whole = n + b[0]
    return n, mean, a[2] - b[2] - (d * d * n * b[0] / whole if whole != 0.0 else 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def variance_of(a: Moments) -> float:
    """Sample variance; 0 of fewer than two."""
    return a[2] / (a[0] - 1.0) if a[0] > 1.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def moments_at(row: ndarray) -> Moments:
    """Count, mean and sum of squares in a row of three."""
    return row[0], row[1], row[2]


@njit(cache=True, nogil=True, error_model="numpy")
def fold_in(y: float, weight: float, row: ndarray) -> None:
    """Fold a target into count, mean and sum of squares, (3,)."""
    row[0] += weight
    before = row[1]
    row[1] += weight / row[0] * (y - before)
    row[2] += weight * (y - before) * (y - row[1])


@njit(cache=True, nogil=True, error_model="numpy")
def reduction_of(whole: Moments, left: Moments, right: Moments, least: float) -> float:
    """By how much a split reduces the variance; 0 where one side has less than `least` weight."""
    if left[0] < least or right[0] < least:
        return 0.0
    reduction = variance_of(whole)
    reduction -= left[0] / whole[0] * variance_of(left)
    reduction -= right[0] / whole[0] * variance_of(right)
    return reduction


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def compact(used: int, values: ndarray, children: ndarray, moments: ndarray, stack: ndarray, kept: ndarray) -> int:
    """Move the nodes of a search tree that hang together to the front; how many they are. Arguments as in `prune`."""
    for node in range(used):
        kept[node, 0] = values[node]
        kept[node, 1:4] = moments[node]
        kept[node, 4] = children[node, 0]
        kept[node, 5] = children[node, 1]
    many = 1
    depth = 1
    stack[0, 0], stack[0, 1] = 0, 0  # the node as it was, and where it goes
    while depth > 0:
        depth -= 1
        was, to = stack[depth, 0], stack[depth, 1]
        values[to] = kept[was, 0]
        moments[to] = kept[was, 1:4]
        for side in range(2):
            child = int(kept[was, 4 + side])
            children[to, side] = many if child != 0 else 0
            if child != 0:
                stack[depth, 0], stack[depth, 1] = child, many
                depth += 1
                many += 1
    return many


@njit(cache=True, nogil=True, error_model="numpy")
def model_of(node: int, numeric: ndarray, tree: RegressionTree) -> float:
    """What the linear model of a leaf says of a row; a missing number adds nothing."""
    slot = int(tree.links[node, SLOT])
    raw = 0.0
    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            raw += tree.coefficients[j, slot] * min(max(x, -LARGEST), LARGEST)
    return min(max(raw + tree.intercepts[slot], -LARGEST_VALUE), LARGEST_VALUE)


@njit(cache=True, nogil=True, error_model="numpy")
def value_of(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns
) -> float:
    """The prediction for one row; 0 before anything was learned."""
    if tree.size[NODES] == 0:
        return 0.0
    node = leaf_of(
        numeric, categories, tree.links, tree.column, tree.threshold, tree.value, tree.weights, columns.keys,
        columns.places,
    )  # fmt: skip
    errors = tree.weights[node]
    if settings.prediction == MEAN_ONLY or (
        settings.prediction == MEAN_OR_MODEL and errors[MEAN_ERROR] < errors[MODEL_ERROR]
    ):
        return min(max(tree.targets[node, 1], -LARGEST_VALUE), LARGEST_VALUE)
    return model_of(node, numeric, tree)


@njit(cache=True, nogil=True, error_model="numpy")
def clear_regression_slot(slot: int, tree: RegressionTree) -> None:
    """Forget what a leaf has observed; its model stays."""
    tree.seen[slot] = 0
    for j in range(tree.first.shape[0]):
        tree.first[j, slot] = 0
        tree.used[j, slot] = 0
    for k in range(tree.category_first.shape[0]):
        tree.category_first[k, slot] = 0
        tree.categories[k, slot] = 0
        tree.category_moments[k, slot] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def split_regression(node: int, left: Moments, right: Moments, tree: RegressionTree) -> None:
    """Give a leaf two children that begin with these targets and with its model; the left one takes its slot."""
    first = int(tree.size[NODES])
    slot, new = int(tree.links[node, SLOT]), int(tree.size[SLOTS])
    clear_regression_slot(slot, tree)
    for j in range(tree.coefficients.shape[0]):
        tree.coefficients[j, new] = tree.coefficients[j, slot]
    tree.intercepts[new] = tree.intercepts[slot]
    for side in range(2):
        child = first + side
        targets = right if side == 1 else left
        tree.links[child, PARENT] = node
        tree.links[child, DEPTH] = tree.links[node, DEPTH] + 1
        tree.links[child, SLOT] = new if side == 1 else slot
        for i in range(3):
            tree.targets[child, i] = targets[i]
        tree.weights[child, TOTAL] = targets[0]
        tree.weights[child, ATTEMPT] = targets[0]
        tree.weights[child, MEAN_ERROR] = tree.weights[node, MEAN_ERROR]
        tree.weights[child, MODEL_ERROR] = tree.weights[node, MODEL_ERROR]
    tree.size[NODES] += 2
    tree.size[SLOTS] += 1
    tree.links[node, LEFT] = first
    tree.links[node, SLOT] = -1
    more = left[0] + right[0] - tree.weights[node, TOTAL]
    while node >= 0:
        tree.weights[node, TOTAL] += more
        node = int(tree.links[node, PARENT])


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def try_to_split_regression(
    node: int, tree: RegressionTree, settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray
) -> None:
    """Split a leaf if the second best column is worse than the best by more than the bound, as a ratio.

    Where none splits, values without a chance are dropped; where not to split is the best, what the leaf observed is.
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
        return
    if candidates == 1 or (best > 0.0 and (second / best < 1.0 - bound or bound < settings.tau)):
        if best == -math.inf:
            clear_regression_slot(slot, tree)
        elif tree.size[NODES] + 2 > tree.links.shape[0]:
            tree.size[REFUSED] += 1
        else:
            tree.column[node] = columns.by_place[place]
            if place < N:
                tree.threshold[node] = where
            else:
                tree.value[node] = tree.categories[place - N, slot, v]
            split_regression(node, left, right, tree)
    elif best > 0.0 and second > 0.0:
        for j in range(N):
            if tree.first[j, slot] != 0:
                tree.used[j, slot] = prune(
                    whole, best, second / best - 2.0 * bound, least, int(tree.used[j, slot]),
                    tree.values[j, slot], tree.children[j, slot], tree.moments[j, slot], stack, kept,
                )  # fmt: skip


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def learn_value(
    numeric: ndarray, categories: ndarray, y: float, weight: float, tree: RegressionTree,
    settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray,
) -> None:  # fmt: skip
    """Learn that one row has the target y."""
    if tree.size[NODES] == 0:
        tree.size[NODES] = 1
        tree.size[SLOTS] = 1
        tree.links[0, PARENT] = -1
    links, weights = tree.links, tree.weights
    column, threshold, value, keys, places = tree.column, tree.threshold, tree.value, columns.keys, columns.places
    node, asked = 0, True
    while links[node, LEFT] != 0:
        weights[node, TOTAL] += weight
        node, there = step_down(node, numeric, categories, links, column, threshold, value, weights, keys, places)
        asked = asked and there

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

    for j in range(numeric.shape[0]):
        x = np.float64(numeric[j])
        if x - x == 0.0:
            see_column(tree.first, j, slot, tree.seen)
            tree.used[j, slot] = insert(
                rounded(min(max(x, -LARGEST), LARGEST), settings.factor), y, weight, int(tree.used[j, slot]),
                tree.values[j, slot], tree.children[j, slot], tree.moments[j, slot],
            )  # fmt: skip
    for k in range(categories.shape[0]):
        if categories[k] != 0:
            see_column(tree.category_first, k, slot, tree.seen)
            kept_here = tree.categories[k, slot], tree.category_moments[k, slot]
            observe_target(y, categories[k], weight, targets[0], *kept_here)
    if not asked:
        return  # as River: a row that lacks what a branch asks is learned, and no cause to split
    if tree.links[node, DEPTH] >= settings.max_depth:
        tree.links[node, PASSIVE] = 1
    elif targets[0] - tree.weights[node, ATTEMPT] >= settings.grace_period:
        total = targets[0]
        try_to_split_regression(node, tree, settings, columns, stack, kept)
        tree.weights[node, ATTEMPT] = total


@njit(cache=True, nogil=True, error_model="numpy")
def predict_values(
    numeric: ndarray, categories: ndarray, tree: RegressionTree, settings: RegressionSettings, columns: Columns,
    out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, 1); the state is only read. Arguments as in `learn_values`."""
    for i in range(numeric.shape[0]):
        out[i, 0] = value_of(numeric[i], categories[i], tree, settings, columns)


@njit(cache=True, nogil=True, error_model="numpy")
def learn_values(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, tree: RegressionTree,
    settings: RegressionSettings, columns: Columns, stack: ndarray, kept: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing
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
    for i in range(numeric.shape[0]):
        if out.shape[0] > 0:
            out[i, 0] = value_of(before[i], categories[i], tree, settings, columns)
        t = np.float64(y[i, 0])
        w = np.float64(weight[i])
        if t - t == 0.0 and w > 0.0 and w - w == 0.0:
            learn_value(numeric[i], categories[i], t, w, tree, settings, columns, stack, kept)
