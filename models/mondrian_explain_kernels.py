"""What each feature adds to the prediction of an aggregated Mondrian forest, in Numba: along a row's way through it.

How rows go down and what nodes say is as in `run_tree` of mondrian_kernels.py. No fastmath. Nothing here allocates, as
compiling.py says.

Letters: B rows, N numeric columns, K categories, O outputs, C classes (1 for values), T trees, M nodes of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from .compiling import kernel
from .mondrian_kernels import (
    LARGEST_VALUE,
    LEFT,
    SHARE,
    TOTAL,
    Columns,
    Nodes,
    Settings,
    bucket_of,
    goes_right,
    learn_mondrian,
)


class Explaining(NamedTuple):
    """Room to explain in; nothing in it lasts."""

    whole: ndarray  # float64 (O, N + K + 1): what each column adds
    above: ndarray  # float64 (O,): what the node above says
    sums: ndarray  # float64 (1, C): what the trees predict


@kernel
def explain_mondrian(
    numeric: ndarray, categories: ndarray, nodes: Nodes, settings: Settings, columns: Columns, room: Explaining,
    out: ndarray,
) -> None:  # fmt: skip
    """Write what each feature adds to the predictions of B rows to out (B, O, N + K + 1); the state is only read.

    Last is what the roots predict. A branch adds to its column by what the prediction changes from it to the child, as
    far as the nodes above and the branch itself have left the child a say; one whose feature is gone adds to the last.
    The mean over the trees. Other arguments as in `learn_mondrian`.
    Source: Saabas (2014), Interpreting random forests, for each pruning; their mean is that of Mourtada, Gaiffas and
    Scornet (2021), AMF: Aggregated Mondrian forests for online learning.
    """
    links, numbers, column, threshold, told = nodes.links, nodes.numbers, nodes.column, nodes.threshold, nodes.told
    keys, places, size = columns.keys, columns.places, nodes.size
    N, C, outputs, F = numeric.shape[1], told.shape[1], out.shape[1], out.shape[2] - 1
    M, mask, first = links.shape[0] // size.shape[0], np.uint64(keys.shape[0] - 1), C - outputs  # of two: the second
    whole, above = room.whole, room.above
    for i in range(out.shape[0]):
        whole[:] = 0.0
        trees = 0
        for t in range(size.shape[0]):
            if size[t] == 0:
                continue
            trees += 1
            node, to, rest = t * M, F, 1.0
            above[:] = 0.0
            while True:
                for o in range(outputs):
                    said = told[node, 0]
                    if settings.classes:
                        said = (told[node, o + first] + settings.dirichlet) / (
                            numbers[node, TOTAL] + settings.dirichlet * C
                        )
                    whole[o, to] += rest * (said - above[o])
                    above[o] = said
                if links[node, LEFT] == 0:
                    break
                rest -= rest * numbers[node, SHARE]

                h = column[node] & mask
                while places[np.intp(h)] >= 0 and keys[np.intp(h)] != column[node]:
                    h = (h + np.uint64(1)) & mask
                place = int(places[np.intp(h)])  # -1: its feature is gone
                value = np.nan
                if 0 <= place < N:
                    value = np.float64(numeric[i, place])
                elif place >= N and categories[i, place - N] != 0:
                    value = np.float64(bucket_of(categories[i, place - N]))
                to = place if place >= 0 else F
                left = int(links[node, LEFT])
                if value - value == 0.0:
                    node = left + int(goes_right(value, threshold[node], place >= N))
                else:
                    node = left + int(numbers[left, TOTAL] < numbers[left + 1, TOTAL])
        if trees == 0 and settings.classes:
            whole[:, F] = 1.0 / C
        for o in range(outputs):
            for f in range(F + 1):
                out[i, o, f] = min(max(whole[o, f] / max(trees, 1), -LARGEST_VALUE), LARGEST_VALUE)


@kernel
def explain_then_learn_mondrian(
    before: ndarray, numeric: ndarray, categories: ndarray, y: ndarray, weight: ndarray, nodes: Nodes,
    settings: Settings, columns: Columns, room: Explaining, out: ndarray, contributions: ndarray,
) -> None:  # fmt: skip
    """Row by row: explain before[i] to contributions[i], then as `learn_mondrian`."""
    for i in range(numeric.shape[0]):
        row = slice(i, i + 1)
        explain_mondrian(before[row], categories[row], nodes, settings, columns, room, contributions[row])
        learn_mondrian(
            before[row], numeric[row], categories[row], y[row], weight[row], nodes, settings, columns, room.sums,
            out[row],
        )  # fmt: skip
