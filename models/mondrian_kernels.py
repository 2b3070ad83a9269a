"""The arithmetic of aggregated Mondrian forests in Numba: extend, split, weigh, row by row on flat arrays of nodes.

No fastmath: NaN means missing, and sums run in the order of the columns, so that every split comes out the same as in
River. What runs at every node stands in one loop, and its helpers take numbers. Nothing here allocates, as compiling.py
says.

A node holds the box of the rows that came by: a range for each numeric column, and for a category its values, as
indicators in 64 buckets. A row outside the box extends it, and may split the node: at a time that is drawn, by the more
it extends the sooner, and only if that comes before the time at which the node was split already.

Letters: B rows, N numeric columns, K categories, C classes (1 for values), T trees, M nodes of each. Nodes are numbered
through all trees; tree t has t M to (t + 1) M - 1, of which t M is the root. Children stand side by side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .compiling import copy_into, inlined, kernel
from .label_kernels import class_of
from .random_kernels import key_of_member, uniform

LEFT, PARENT = range(2)  # columns of `links`
TIME, TOTAL, WEIGHT, TREE, SHARE = range(5)  # columns of `numbers`
LOWEST, HIGHEST = range(2)  # of a range in `ranges`

HALF = math.log(0.5)
LATEST = 1e300  # time of a split, so that it is finite
LARGEST_VALUE = 1e30  # of a prediction, so that it fits float32


class Nodes(NamedTuple):
    """The state of all trees.

    numbers: when the node was made, the weight of its examples, the logarithm of its own weight in the aggregation,
    that of the weight of all subtrees below it, and the share of its own prediction in the two.
    """

    size: ndarray  # int64 (T,): nodes so far
    drawn: ndarray  # uint64 (T,): random numbers so far
    links: ndarray  # int32 (T M, 2): left child, 0 for a leaf; parent
    numbers: ndarray  # float64 (T M, 5)
    column: ndarray  # uint64 (T M,): key of the column that a branch asks
    threshold: ndarray  # float64 (T M,): at most that goes left; of a category: that bucket goes right
    told: ndarray  # float64 (T M, C): weights of the classes, or the mean
    ranges: ndarray  # float64 (N, T M, 2)
    known: ndarray  # uint8 (N, T M): 1 where there is a range
    buckets: ndarray  # uint64 (K, T M): a bit for each bucket that came


class Settings(NamedTuple):
    """What the learner was told."""

    classes: bool  # or else values
    seed: np.uint64
    step: float
    dirichlet: float
    aggregates: bool
    split_pure: bool


class Columns(NamedTuple):
    """The columns of the rows by their keys: a table with open addressing, of a power of two."""

    by_place: ndarray  # uint64 (N + K,): key of each column, numeric ones first
    keys: ndarray  # uint64
    places: ndarray  # int32: -1: free


# --- boxes


@inlined
def bucket_of(value: np.uint64) -> np.uint64:
    """The bucket of a value of a category, from its hash: 0 to 63."""
    return value >> np.uint64(58)


@inlined
def reach(x: float, lowest: float, highest: float) -> float:
    """How far x lies outside a range."""
    return lowest - x if x < lowest else max(x - highest, 0.0)


@inlined
def indicators_of(value: np.uint64, came: np.uint64) -> tuple[float, float]:
    """By how much a value extends indicators of a category: its own, and that of the only bucket which came so far.

    Where no other bucket came, the indicator of that one was always 1, and is 0 for the first time.
    """
    if value == 0 or came == 0 or (came >> bucket_of(value)) & np.uint64(1):
        return 0.0, 0.0
    return 1.0, 1.0 if came & (came - np.uint64(1)) == 0 else 0.0


@kernel
def choose(
    node: int, i: int, at: float, u: float, numeric: ndarray, categories: ndarray, ranges: ndarray, known: ndarray,
    buckets: ndarray,
) -> tuple[int, float, bool]:  # fmt: skip
    """The column that splits a node when row i comes, the threshold, and whether the row goes right.

    at  0 <= at < extension  columns are laid end to end, each as long as the row extends it: which of them this is in
    u   0 <= u < 1           how far the threshold lies between the box and the row, from the lower to the higher
    """
    place, threshold, right = -1, 0.0, False
    N = numeric.shape[1]
    for j in range(N):
        x = np.float64(numeric[i, j])
        if known[j, node] == 0 or x - x != 0.0:
            continue
        lowest, highest = ranges[j, node, LOWEST], ranges[j, node, HIGHEST]
        far = reach(x, lowest, highest)
        if far > 0.0:
            right = x > highest
            low, high = (highest, x) if right else (x, lowest)
            place, threshold = j, low + (high - low) * u
            if not threshold < high:  # rounded up to it
                threshold = low
            at -= far
            if at < 0.0:
                return place, threshold, right
    for k in range(categories.shape[1]):
        own, other = indicators_of(categories[i, k], buckets[k, node])
        if own > 0.0:
            place, threshold, right = N + k, np.float64(bucket_of(categories[i, k])), True
            at -= 1.0
            if at < 0.0:
                return place, threshold, right
        if other > 0.0:
            bit = 0
            while (buckets[k, node] >> np.uint64(bit)) != 1:
                bit += 1
            place, threshold, right = N + k, float(bit), False
            at -= 1.0
            if at < 0.0:
                return place, threshold, right
    return place, threshold, right  # rounding has left a little of `at`: the last one


# --- splits and weights


@inlined
def goes_right(value: float, threshold: float, category: bool) -> bool:
    """Which child of a branch a number, or a bucket, goes to."""
    return value == threshold if category else value > threshold


@inlined
def aggregated(alone: float, below: float) -> tuple[float, float]:
    """Logarithm of the weight of all prunings from a node on, and the share of that which cuts below it.

    alone, below  logarithms of the weight of the node's own prediction, and of all prunings of both children
    Source: Willems, Shtarkov and Tjalkens (1995), The context-tree weighting method.
    """
    less = math.exp(-abs(alone - below))
    share = (1.0 if alone > below else less) / (1.0 + less)
    return max(alone, below) + HALF + math.log1p(less), share


@kernel
def split(node: int, first: int, time: float, key: np.uint64, threshold: float, right: bool, nodes: Nodes) -> None:
    """Put a branch in the place of a node, with what the node was on one side and an empty leaf on the other.

    first   the left one of two free nodes, next to each other
    right   whether the empty leaf is the right one
    """
    links, numbers, ranges, known, buckets = nodes.links, nodes.numbers, nodes.ranges, nodes.known, nodes.buckets
    old, fresh = (first, first + 1) if right else (first + 1, first)
    copy_into(links[old], links[node])
    copy_into(numbers[old], numbers[node])
    nodes.column[old] = nodes.column[node]
    nodes.threshold[old] = nodes.threshold[node]
    copy_into(nodes.told[old], nodes.told[node])
    for j in range(known.shape[0]):
        copy_into(ranges[j, old], ranges[j, node])
        known[j, old] = known[j, node]
    for k in range(buckets.shape[0]):
        buckets[k, old] = buckets[k, node]
    if links[old, LEFT] != 0:
        links[links[old, LEFT], PARENT] = old
        links[links[old, LEFT] + 1, PARENT] = old
    links[old, PARENT] = node
    links[fresh, PARENT] = node
    numbers[old, TIME] = time
    numbers[fresh, TIME] = time
    links[node, LEFT] = first
    nodes.column[node] = key
    nodes.threshold[node] = threshold


# --- whole rows


@kernel
def write_means(sums: ndarray, trees: int, classes: bool, out: ndarray) -> None:
    """Write what trees predict together, sums float64 (B, C), to out: their mean."""
    for i in range(out.shape[0]):
        if not classes:
            out[i, 0] = min(max(sums[i, 0] / trees, -LARGEST_VALUE), LARGEST_VALUE)
            continue
        total = 0.0
        for c in range(sums.shape[1]):
            total += sums[i, c]
        for o in range(out.shape[1]):
            place = o + sums.shape[1] - out.shape[1]  # of two classes the second, true
            out[i, o] = sums[i, place] / total if total > 0.0 else 1.0 / sums.shape[1]


@kernel
def run_tree(
    t: int, before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, binary: bool,
    nodes: Nodes, settings: Settings, columns: Columns, sums: ndarray,
) -> None:  # fmt: skip
    """Let one tree predict before[i], add that to sums[i], then learn numeric[i], row by row.

    sums  float64 (B, C); (0, C) where no predictions are wanted
    Arguments as in `learn_mondrian`; y has no rows where nothing is to be learned.
    """
    links, numbers, column, threshold, told = nodes.links, nodes.numbers, nodes.column, nodes.threshold, nodes.told
    ranges, known, buckets, size, drawn = nodes.ranges, nodes.known, nodes.buckets, nodes.size, nodes.drawn
    keys, places = columns.keys, columns.places
    classes, step, dirichlet = settings.classes, settings.step, settings.dirichlet
    M, N, K, C = links.shape[0] // size.shape[0], numeric.shape[1], categories.shape[1], told.shape[1]
    root, mask = t * M, np.uint64(keys.shape[0] - 1)
    key = key_of_member(settings.seed, t)
    for i in range(numeric.shape[0]):
        for learns in range(2):  # down once to predict, once to learn
            c, label, w = 0, 0.0, 0.0
            if learns == 0:
                if i >= sums.shape[0] or size[t] == 0:
                    continue
            else:
                if i >= y.shape[0]:
                    continue
                label, w = np.float64(y[i, 0]), np.float64(weight[i])
                c = class_of(label, C, binary) if classes else 0
                if c < 0 or label - label != 0.0 or not (w > 0.0 and w - w == 0.0):
                    continue
            node, rest = root, 1.0
            fresh = learns == 1 and size[t] == 0  # a leaf that this row is the first of
            if fresh:
                size[t] = 1
            while True:
                leaf = links[node, LEFT] == 0
                if learns == 0:
                    share = rest if leaf else rest * numbers[node, SHARE]
                    rest -= share
                    if classes:
                        one = share / (numbers[node, TOTAL] + dirichlet * C)
                        for o in range(C):
                            sums[i, o] += one * (told[node, o] + dirichlet)
                    else:
                        sums[i, 0] += share * told[node, 0]
                else:
                    time = 0.0
                    pure = classes and not settings.split_pure and told[node, c] == numbers[node, TOTAL]
                    if not fresh and not pure and size[t] + 2 <= M:
                        whole = 0.0
                        for j in range(N):
                            x = np.float64(numeric[i, j])
                            if known[j, node] and x - x == 0.0:
                                whole += reach(x, ranges[j, node, LOWEST], ranges[j, node, HIGHEST])
                        for k in range(K):
                            own, other = indicators_of(categories[i, k], buckets[k, node])
                            whole += own + other
                        if whole > 0.0:
                            wait = -math.log(1.0 - uniform(key, drawn, t)) / whole
                            time = min(numbers[node, TIME] + wait, LATEST)
                            if not (leaf or time < numbers[links[node, LEFT], TIME]):
                                time = 0.0
                        if time > 0.0:
                            at = uniform(key, drawn, t) * whole
                            place, where, right = choose(
                                node, i, at, uniform(key, drawn, t), numeric, categories, ranges, known, buckets
                            )
                            split(node, root + size[t], time, columns.by_place[place], where, right, nodes)
                            size[t] += 2

                    for j in range(N):
                        x = np.float64(numeric[i, j])
                        if x - x != 0.0:
                            continue
                        if known[j, node] == 0:
                            known[j, node] = 1
                            ranges[j, node, LOWEST] = x
                            ranges[j, node, HIGHEST] = x
                        elif x < ranges[j, node, LOWEST]:
                            ranges[j, node, LOWEST] = x
                        elif x > ranges[j, node, HIGHEST]:
                            ranges[j, node, HIGHEST] = x
                    for k in range(K):
                        if categories[i, k] != 0:
                            buckets[k, node] |= np.uint64(1) << bucket_of(categories[i, k])

                    # What the node would have lost comes off its weight. Of a class as in River and the authors' own
                    # code: the example itself counts below the line already, and not above it.
                    if settings.aggregates and not fresh:
                        if classes:
                            p = (told[node, c] + dirichlet) / (numbers[node, TOTAL] + w + dirichlet * C)
                            numbers[node, WEIGHT] += step * w * math.log(p)
                        else:
                            off = told[node, 0] - label
                            numbers[node, WEIGHT] -= step * w * off * off / 2.0
                    numbers[node, TOTAL] += w
                    if classes:
                        told[node, c] += w
                    else:
                        told[node, 0] += (label - told[node, 0]) * (w / numbers[node, TOTAL])
                    if time > 0.0:
                        fresh = True
                        node = int(links[node, LEFT]) + int(right)
                        continue
                if leaf or fresh:
                    break

                h = column[node] & mask
                while places[np.intp(h)] >= 0 and keys[np.intp(h)] != column[node]:
                    h = (h + np.uint64(1)) & mask
                place = int(places[np.intp(h)])  # -1: its feature is gone
                value = np.nan
                if 0 <= place < N:
                    value = np.float64(before[i, place] if learns == 0 else numeric[i, place])
                elif place >= N and categories[i, place - N] != 0:
                    value = np.float64(bucket_of(categories[i, place - N]))
                left = int(links[node, LEFT])
                if value - value == 0.0:
                    node = left + int(goes_right(value, threshold[node], place >= N))
                else:
                    node = left + int(numbers[left, TOTAL] < numbers[left + 1, TOTAL])

            if learns == 1 and settings.aggregates:
                numbers[node, TREE] = numbers[node, WEIGHT]
                while node != root:
                    node = int(links[node, PARENT])
                    left = int(links[node, LEFT])
                    below = numbers[left, TREE] + numbers[left + 1, TREE]
                    numbers[node, TREE], numbers[node, SHARE] = aggregated(numbers[node, WEIGHT], below)


@kernel
def predict_mondrian(
    numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, nodes: Nodes, settings: Settings,
    columns: Columns, sums: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Write the predictions of B rows to out (B, O); the state is only read.

    y, weight  of no rows. Other arguments as in `learn_mondrian`
    """
    sums[:] = 0.0
    for t in range(nodes.size.shape[0]):
        run_tree(t, numeric, numeric, categories, y, weight, False, nodes, settings, columns, sums)
    write_means(sums, nodes.size.shape[0], settings.classes, out)


@kernel
def learn_mondrian(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, nodes: Nodes,
    settings: Settings, columns: Columns, sums: ndarray, out: ndarray,
) -> None:  # fmt: skip
    """Row by row: predict before[i] to out[i], then learn numeric[i], which is the same row after it was observed.

    before, numeric  float   (B, N)  NaN or infinite: missing
    categories       uint64  (B, K)  0: missing
    y, weight        float32 (B, 1), (B,)  a row with a label that is no class (or not finite), or a weight that is not
                                     above 0 and finite, is predicted and not learned
    nodes            the state, changed in place
    settings, columns                as their classes say
    sums             float64 (B, C)  scratch; (0, C) where no predictions are wanted
    out              float (B, O)    P(true), P of each class, or values; (0, O) where no predictions are wanted

    Trees do not know of each other, so that each goes through all rows while it is in the processor's cache.
    Result does not depend on where the stream is cut.
    Source: Mourtada, Gaiffas and Scornet (2021), AMF: Aggregated Mondrian forests for online learning.
    """
    sums[:] = 0.0
    for t in range(nodes.size.shape[0]):
        run_tree(t, before, numeric, categories, y, weight, out.shape[1] == 1, nodes, settings, columns, sums)
    write_means(sums, nodes.size.shape[0], settings.classes, out)
