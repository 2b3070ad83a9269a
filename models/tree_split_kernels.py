"""When a leaf of classes splits, and how, in Numba: merits of columns, the bound between the best, two new leaves."""

from __future__ import annotations

import math

from numpy import ndarray

from .compiling import kernel
from .tree_nodes import (
    ATTEMPT,
    COUNT,
    DEPTH,
    FORGET,
    GINI,
    HIGHEST,
    INFO_GAIN,
    KNOWN,
    LEFT,
    LOWEST,
    MEAN,
    NODES,
    PARENT,
    RANK,
    REFUSED,
    SLOT,
    SLOTS,
    SPLIT,
    SQUARES,
    STAY,
    TOTAL,
    Columns,
    Scratch,
    Settings,
    Tree,
)

NEGLIGIBLE = 1e-12  # share of a weight that rounding may leave behind


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
