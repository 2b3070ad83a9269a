"""What the models of the slots should have learned, by the plain account: features, predictions, weights.

A pipeline of fixed features and one linear model, as shop.py declares it, in loops that Numba only makes quick.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from chaos.account import F64, HOUR, I64, NEVER, Join
from chaos.hashes import value_hash
from numba import njit
from numpy.typing import NDArray

COLUMNS = ("price", "off", "count_by_site_1h", "mean_price_by_site_1h", "mean_label_by_site_6h")
PRICE, OFF, COUNT, MEAN_PRICE, MEAN_LABEL = range(5)
PANES = 12
WIDTHS = (HOUR // PANES, HOUR // PANES, 6 * HOUR // PANES)  # of a pane of the three aggregates: COUNT and on

ALPHA, BETA, BITS = 0.1, 1.0, 10  # FTRL without l1 and l2, over a table of 2 ** BITS slots
SCALER_HALF_LIFE, FTRL_HALF_LIFE = 12 * HOUR, 6 * HOUR
FORGETTING_STEPS = 64  # per half-life
DECLARED = {
    "features": [*COLUMNS[:2], "site", *COLUMNS[2:]],
    "model": {
        "name": "Chain",
        "parts": [
            {"name": "StandardScaler", "half_life": "12h", "clip": None},
            {
                "name": "LogisticRegression",
                "optimizer": {"name": "FTRL", "alpha": 0.1, "beta": 1.0, "l1": 0.0, "l2": 0.0, "half_life": "6h"},
                "bits": 10, "base_rate": True, "intercept_lr": None, "dtype": "float64",
            },
        ],
    },
}  # fmt: skip

LEAST = 2.0**-24  # probabilities are held off 0 and 1 by this in the log loss


class State(NamedTuple):
    """What each of S slots has learned, for J sites and N numeric columns. Weights are pairs of FTRL's z and n."""

    clock: I64  # (S,)
    pane: I64  # (S, 3, J, PANES)  absolute number of the pane, NEVER: none
    rows: F64  # (S, 3, J, PANES)
    total: F64  # (S, 3, J, PANES)
    moments: F64  # (S, N, 3)  count, mean, variance
    columns: F64  # (S, N, 2)
    missing: F64  # (S, N, 2)
    table: F64  # (S, 2 ** BITS, 2)
    bias: F64  # (S, 2)
    base: F64  # (S, 2)  mean of the labels, and for how many it stands
    score: F64  # (S, 3)  labels, log loss, correct ones

    def of(self, slot: int) -> State:
        """A copy of what one slot has learned."""
        return State(*(values[slot].copy() for values in self))


def blank(slots: int, sites: int) -> State:
    windows, n = (slots, len(WIDTHS), sites, PANES), len(COLUMNS)
    base = np.zeros((slots, 2))
    base[:] = 0.5, 1.0  # as if half a label of each kind had been seen
    return State(
        np.full(slots, NEVER), np.full(windows, NEVER), np.zeros(windows), np.zeros(windows), np.zeros((slots, n, 3)),
        np.zeros((slots, n, 2)), np.zeros((slots, n, 2)), np.zeros((slots, 1 << BITS, 2)), np.zeros((slots, 2)),
        base, np.zeros((slots, 3)),
    )  # fmt: skip


class Seen(NamedTuple):
    """The inputs of all partitions as columns, and what was made of each event."""

    time: I64  # (E,)
    price: F64  # (E,)
    site: I64  # (E,)
    label_time: I64  # (L,)
    label: F64  # (L,)
    place: I64  # (J,)  the slot of each site in the table
    features: NDArray[np.float32]  # (E, N)  as of the prediction
    prediction: NDArray[np.float32]  # (E,)


@njit(cache=True)
def look(time, width, pane, rows, total):
    """(count, sum) over the window that ends with the pane of `time`."""
    now = time // width
    count = 0.0
    sum = 0.0
    for p in range(PANES):
        if now - PANES < pane[p] <= now:
            count += rows[p]
            sum += total[p]
    return count, sum


@njit(cache=True)
def fold(time, width, value, pane, rows, total):
    """Count a value in the pane of its time; one older than what the pane's place holds comes too late."""
    now = time // width
    p = now % PANES
    if pane[p] < now:
        pane[p] = now
        rows[p] = 0.0
        total[p] = 0.0
    if pane[p] == now:
        rows[p] += 1.0
        total[p] += value


@njit(cache=True)
def scaled(x, moments):
    """x less the mean, by the standard deviation; 0 where nothing varied yet, NaN stays."""
    if x != x:
        return np.nan
    return (x - moments[1]) / math.sqrt(moments[2]) if moments[2] > 0.0 else 0.0


@njit(cache=True)
def observe(x, moments):
    """Welford (1962)."""
    if x == x:
        moments[0] += 1.0
        before = x - moments[1]
        moments[1] += before / moments[0]
        moments[2] += (before * (x - moments[1]) - moments[2]) / moments[0]


@njit(cache=True)
def weight(zn):
    """McMahan et al. (2013), algorithm 1, without l1 and l2."""
    return -zn[0] / ((BETA + math.sqrt(zn[1])) / ALPHA)


@njit(cache=True)
def step(zn, gradient):
    """The same, one step."""
    n = zn[1] + gradient**2
    zn[0] += gradient - (math.sqrt(n) - math.sqrt(zn[1])) / ALPHA * weight(zn)
    zn[1] = n


@njit(cache=True)
def forget(zn, factor):
    """Scale the evidence; the weight stays."""
    kept = weight(zn)
    zn[1] *= factor
    zn[0] = -kept * (BETA + math.sqrt(zn[1])) / ALPHA


@njit(cache=True)
def probability(x, columns, missing, category, bias, base):
    """P(true) of a scaled row; a missing value is stood in for by a weight of its own."""
    mean = min(max(base[0], 1e-6), 1.0 - 1e-6)
    raw = math.log(mean / (1.0 - mean)) + weight(bias) + weight(category)
    for j in range(len(x)):
        raw += weight(columns[j]) * x[j] if x[j] == x[j] else weight(missing[j])
    return 1.0 / (1.0 + math.exp(-raw))


@njit(cache=True)
def pass_time(k, now, state):
    """Forget at every multiple of half_life / FORGETTING_STEPS that a slot's clock passes."""
    then = state.clock[k]
    if now <= then:
        return
    state.clock[k] = now
    if then == NEVER:
        return
    width = SCALER_HALF_LIFE // FORGETTING_STEPS
    factor = 2.0 ** (-(now // width - then // width) / FORGETTING_STEPS)
    if factor < 1.0:
        state.moments[k, :, 0] *= factor
    width = FTRL_HALF_LIFE // FORGETTING_STEPS
    factor = 2.0 ** (-(now // width - then // width) / FORGETTING_STEPS)
    if factor < 1.0:
        forget(state.bias[k], factor)
        for weights in (state.columns[k], state.missing[k], state.table[k]):
            for i in range(len(weights)):
                forget(weights[i], factor)
        state.base[k, 1] *= factor


@njit(cache=True)
def predict(k, event, seen, state):
    now, site, features = seen.time[event], seen.site[event], seen.features[event]
    pass_time(k, now, state)
    price = seen.price[event]
    features[PRICE] = price
    features[OFF] = abs(price - 5.0)
    for a in range(len(WIDTHS)):
        rows, total = look(now, WIDTHS[a], state.pane[k, a, site], state.rows[k, a, site], state.total[k, a, site])
        features[COUNT + a] = rows if a == 0 else (total / rows if rows > 0.0 else np.nan)
    fold(now, WIDTHS[0], 0.0, state.pane[k, 0, site], state.rows[k, 0, site], state.total[k, 0, site])
    if price == price:
        fold(now, WIDTHS[1], price, state.pane[k, 1, site], state.rows[k, 1, site], state.total[k, 1, site])
    x = np.empty(len(features))
    for j in range(len(features)):
        x[j] = scaled(np.float64(features[j]), state.moments[k, j])
        observe(np.float64(features[j]), state.moments[k, j])
    category = state.table[k, seen.place[site]]
    p = probability(x, state.columns[k], state.missing[k], category, state.bias[k], state.base[k])
    seen.prediction[event] = p


@njit(cache=True)
def learn(k, event, label, seen, state):
    y, site, features = seen.label[label], seen.site[event], seen.features[event]
    made = min(max(np.float64(seen.prediction[event]), LEAST), 1.0 - LEAST)
    state.score[k, 0] += 1.0
    state.score[k, 1] -= y * math.log(made) + (1.0 - y) * math.log1p(-made)
    state.score[k, 2] += (made >= 0.5) == (y >= 0.5)
    now = seen.label_time[label]
    fold(now, WIDTHS[2], y, state.pane[k, 2, site], state.rows[k, 2, site], state.total[k, 2, site])
    x = np.empty(len(features))
    for j in range(len(features)):
        x[j] = scaled(np.float64(features[j]), state.moments[k, j])
    columns, missing, category = state.columns[k], state.missing[k], state.table[k, seen.place[site]]
    slope = probability(x, columns, missing, category, state.bias[k], state.base[k]) - y
    step(state.bias[k], slope)
    step(category, slope)
    for j in range(len(features)):
        if x[j] == x[j]:
            step(columns[j], slope * x[j])
        else:
            step(missing[j], slope)
    base = state.base[k]
    base[1] += 1.0
    base[0] += (y - base[0]) / base[1]


@njit(cache=True)
def run(slot, event, label, seen, state):
    """Predictions and examples in order; slots here count from 0, without gaps."""
    for i in range(len(slot)):
        if label[i] < 0:
            predict(slot[i], event[i], seen, state)
        else:
            learn(slot[i], event[i], label[i], seen, state)


class Learning:
    """Carries out what a `Join` found: features, predictions, models."""

    def __init__(self, join: Join) -> None:
        self.join = join
        parts = join.partitions
        self.slots = sorted(join.counts)
        self.sites = sorted({site for part in parts for site in part.events.site})
        number = {site: j for j, site in enumerate(self.sites)}
        events = sum(len(part.events) for part in parts)
        self.seen = Seen(
            np.concatenate([part.events.time for part in parts]), np.concatenate([part.events.truth for part in parts]),
            np.array([number[site] for part in parts for site in part.events.site], np.int64),
            np.concatenate([part.labels.time for part in parts]), np.concatenate([part.labels.truth for part in parts]),
            np.array([place(site) for site in self.sites], np.int64),
            np.full((events, len(COLUMNS)), np.nan, np.float32), np.full(events, np.nan, np.float32),
        )  # fmt: skip
        self.state = blank(len(self.slots), len(self.sites))
        self._index = np.full(max(self.slots, default=0) + 1, -1)
        self._index[self.slots] = np.arange(len(self.slots))
        self._done = 0

    def advance(self, until: int | None = None) -> None:
        """Do the things that were done before number `until` of the join, or all."""
        todo = slice(self._done, len(self.join.slot) if until is None else until)
        join = self.join
        slot, event, label = (np.array(done[todo]) for done in (join.slot, join.event, join.label))
        run(self._index[slot], event, label, self.seen, self.state)
        self._done = todo.stop

    def of(self, slot: int) -> State:
        """What a slot has learned by now."""
        return self.state.of(int(self._index[slot]))


def place(site: str) -> int:
    """The slot of a site in the table: Fibonacci hashing of its hash."""
    return (value_hash("site", site) * 0x9E3779B97F4A7C15) % 2**64 >> (64 - BITS)
