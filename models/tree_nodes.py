"""Trees as flat arrays of nodes: what stands in which array, and how rows go down.

What runs for every row is inlined by force, for handing twenty arrays to a call takes longer than what the call does.
Nothing in the kernels of trees allocates, as compiling.py says. No fastmath in any of them: NaN means missing, and sums
run in the order in which classes were first seen, as in River, so that merits, thresholds and the example at which a
leaf splits come out the same.

Letters, here and in what builds on it: B rows, N numeric columns, K categories, O outputs, C classes, M nodes, S slots
for what leaves observe, V values kept of a category at a leaf, T trees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .compiling import inlined

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
LARGEST = 1e100  # numbers are held within these, so that their squares are finite
LARGEST_VALUE = 1e30  # of a prediction, so that it fits float32
LARGEST_SLOPE = 1e12  # of the loss; as River's clip_gradient


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
