"""Detectors of drift: they hear one number after another, and say in which row the stream has changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from ..errors import DeclarationError
from . import drift_kernels as kernels
from .base import Array, Configured, Detector, Spec, check_number, check_whole, register

ON = ("loss", "error")
ACTIONS = ("report", "boost", "reset")
MODES = {"up": kernels.UP, "down": kernels.DOWN, "both": kernels.UP | kernels.DOWN}


@dataclass(eq=False)
class DriftDetector(Configured, Detector):
    """What all detectors share: what a pipeline lets them hear, and what it does when they fire.

    on      "loss": the log loss of a binary or multiclass prediction, the absolute error of a regression; "error": 1
            where another class was the more likely one, else 0. Of the prediction made before the label was known
    action  "report": it is counted, nothing else; "boost": the evidence of the learner is scaled by `boost`, so that
            it learns faster from now on; "reset": the learner starts over, transforms before it keep what they know
    boost   share of the evidence that is kept, above 0 and below 1

    A pipeline acts at the end of each block of 32 examples in which the detector fired because the loss rose; where it
    fired because the loss fell, that is only counted. Alone, a detector is bound to arrays (`layout`, `bind`) and then
    told values (`update`). Raises DeclarationError for settings that cannot be.
    """

    _: KW_ONLY
    on: str = "loss"
    action: str = "report"
    boost: float = 0.1

    def __post_init__(self) -> None:
        name = type(self).__name__
        for setting, known in (("on", ON), ("action", ACTIONS)):
            value = getattr(self, setting)
            if not isinstance(value, str) or value not in known:
                raise DeclarationError(f"{name}({setting}=): expected one of {', '.join(known)}, got {value!r}")
        check_number(f"{name}(boost=)", self.boost, 0.0, above=True, high=1.0)
        if self.boost == 1.0:
            raise DeclarationError(f"{name}(boost=): keeps all evidence, so nothing would change; take less than 1")

    def layout(self, spec: Spec) -> Mapping[str, Array]:
        """The arrays; raises DeclarationError where the labels of spec have no such loss."""
        if spec.task is None:
            raise DeclarationError(f"{type(self).__name__} hears the loss of predictions, and without labels is none")
        if spec.task == "regression" and self.on == "error":
            raise DeclarationError(
                f"{type(self).__name__}(on='error') counts wrong classes, and a regression has none; {self.instead}"
            )
        return self.arrays()

    instead: ClassVar[str] = "use on='loss', the absolute error"

    def arrays(self) -> Mapping[str, Array]:
        """What the detector keeps, whatever it hears."""
        raise NotImplementedError

    def update(self, values: np.ndarray, fired: np.ndarray) -> None:
        """Hear values, float64 (B,), in order; write to fired, bool (B,), where the stream changed.

        The same whatever the cuts. NaN and infinite values are not heard, those beyond 1e100 count as 1e100.
        Raises ValueError for other shapes or types.
        """
        self.hear(values, fired, np.empty(len(values), np.bool_))

    def hear(self, values: np.ndarray, fired: np.ndarray, rose: np.ndarray) -> None:
        """As `update`; to rose, bool (B,), where it changed to greater values."""
        if values.dtype != np.float64 or fired.dtype != np.bool_ or fired.shape != values.shape or values.ndim != 1:
            raise ValueError(
                f"{type(self).__name__}: expected float64 (B,) and bool (B,), got {values.dtype} {values.shape} and "
                f"{fired.dtype} {fired.shape}"
            )
        if not fired.flags.carray:
            raise ValueError(f"{type(self).__name__}: fired must be contiguous and writable")
        values = values if values.flags.carray else np.require(values, requirements=["C", "W", "A"])
        self._hear(values, fired, rose)

    def _hear(self, values: np.ndarray, fired: np.ndarray, rose: np.ndarray) -> None:
        raise NotImplementedError


@register
@dataclass(eq=False)
class ADWIN(DriftDetector):
    """Adaptive windowing: fires when the window falls into two parts whose means differ more than chance allows.

    |mean0 - mean1| > sqrt(2 m s^2 d) + 2/3 m d, m = 1 / (n0 - l + 1) + 1 / (n1 - l + 1), d = ln(2 ln(n) / delta), for
    a cut into n0 older and n1 newer values, both at least l = min_window_length; s^2 is the variance of the window.

    delta              the smaller, the fewer false alarms
    clock              values between two looks
    max_buckets        of each size in the histogram that stands for the window: more of them, finer cuts
    min_window_length  values that each part has at least
    grace_period       no look before the window has more values than this

    The bound is meant for values within [0, 1]: a loss of a much larger unit is heard too eagerly, of a much smaller
    one too late. 3.5 kB, whatever the width of the window. Fires in the same rows as River's drift.ADWIN, which after a
    detection begins with an empty window (the paper keeps the newer part of it).
    Source: Bifet and Gavalda (2007), Learning from time-changing data with adaptive windowing.
    """

    delta: float = 0.002
    clock: int = 32
    max_buckets: int = 5
    min_window_length: int = 5
    grace_period: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ADWIN(delta=)", self.delta, 0.0, above=True, high=1.0)
        check_whole("ADWIN(clock=)", self.clock, 1)
        check_whole("ADWIN(max_buckets=)", self.max_buckets, 2, 1_000)
        check_whole("ADWIN(min_window_length=)", self.min_window_length, 1)
        check_whole("ADWIN(grace_period=)", self.grace_period, 1)

    def arrays(self) -> Mapping[str, Array]:
        return {
            "totals": Array((kernels.LEVELS, self.max_buckets + 1), "float64"),
            "held": Array((kernels.LEVELS,), "int64"),
            "sums": Array((3,), "float64"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        least, grace = float(self.min_window_length), float(self.grace_period)
        self._settings = float(self.delta), int(self.clock), least, grace
        self._state = state["totals"], state["held"], state["sums"]

    def _hear(self, values: np.ndarray, fired: np.ndarray, rose: np.ndarray) -> None:
        kernels.adwin(values, *self._settings, *self._state, fired, rose)


@register
@dataclass(eq=False)
class PageHinkley(DriftDetector):
    """The Page-Hinkley test: fires when the sum of distances from the running mean leaves its least by `threshold`.

    up = alpha up + (x - mean) - delta, down = alpha down + (x - mean) + delta; fires where up - min(up) > threshold
    (the values rose), or max(down) - down > threshold (they fell).

    min_instances  values before the first detection
    delta          a distance from the mean that is let pass, in the unit of the values
    threshold      in the same unit: the smaller, the sooner and the more false alarms
    alpha          what is kept of the sums at each value
    mode           "up": only what rises, "down": only what falls, "both"

    Fires in the same rows as River's drift.PageHinkley. Source: Page (1954), Continuous inspection schemes.
    """

    min_instances: int = 30
    delta: float = 0.005
    threshold: float = 50.0
    alpha: float = 1 - 0.0001
    mode: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("PageHinkley(min_instances=)", self.min_instances, 1)
        check_number("PageHinkley(delta=)", self.delta, 0.0)
        check_number("PageHinkley(threshold=)", self.threshold, 0.0, above=True)
        check_number("PageHinkley(alpha=)", self.alpha, 0.0, above=True, high=1.0)
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise DeclarationError(f"PageHinkley(mode=): expected one of {', '.join(MODES)}, got {self.mode!r}")

    def arrays(self) -> Mapping[str, Array]:
        return {"sums": Array((6,), "float64")}

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        bounds = float(self.min_instances), float(self.delta), float(self.threshold)
        self._settings = *bounds, float(self.alpha), MODES[self.mode]
        self._sums = state["sums"]

    def _hear(self, values: np.ndarray, fired: np.ndarray, rose: np.ndarray) -> None:
        kernels.page_hinkley(values, *self._settings, self._sums, fired, rose)


@register
@dataclass(eq=False)
class DDM(DriftDetector):
    """Drift detection method: fires when the rate of errors has risen well above the least that it was.

    p + s > p_min + drift_threshold s_min, for the rate p, s = sqrt(p (1 - p) / n), and both where p + s was least.

    warm_start       values before the first detection
    drift_threshold  in deviations

    Values are errors, 0 or 1 (any others are held within [0, 1]), so on="error" alone fits, and a regression has none.
    Slow to see what changes late in a long stream: the rate is that of all values since the last detection.
    Fires in the same rows as River's drift.binary.DDM; its zone of warning is left out.
    Source: Gama, Medas, Castillo and Rodrigues (2004), Learning with drift detection.
    """

    warm_start: int = 30
    drift_threshold: float = 3.0
    _: KW_ONLY
    on: str = "error"

    instead: ClassVar[str] = "use ADWIN or PageHinkley, which hear the absolute error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on != "error":
            raise DeclarationError("DDM(on=): hears errors alone; leave on='error', or use ADWIN for the loss")
        check_whole("DDM(warm_start=)", self.warm_start, 1)
        check_number("DDM(drift_threshold=)", self.drift_threshold, 0.0, above=True)

    def arrays(self) -> Mapping[str, Array]:
        return {"sums": Array((4,), "float64")}

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        self._settings = float(self.warm_start), float(self.drift_threshold)
        self._sums = state["sums"]

    def _hear(self, values: np.ndarray, fired: np.ndarray, rose: np.ndarray) -> None:
        kernels.ddm(values, *self._settings, self._sums, fired, rose)


@register
@dataclass(eq=False)
class KSWIN(DriftDetector):
    """Kolmogorov-Smirnov windowing: fires when the newest values are distributed otherwise than those before them.

    Of the last window_size values the stat_size newest are compared with as many drawn from the others: it fires where
    the two-sample test gives a p-value (the exact one) of at most alpha, and their distance is above 0.1.

    alpha        the smaller, the fewer false alarms; every value is a test, so take much less than for a single one
    window_size  values; after a detection it fills again before the next test
    stat_size    at most 10,000 and half of window_size
    seed         of the draws; the same seed gives the same bits

    Also sees what leaves the mean where it is. About 1.5 us a value with these settings. Detections are those of
    River's drift.KSWIN but for the draws, which come from another generator.
    Source: Raab, Heusinger and Schleif (2020), Reactive soft prototype computing for concept drift streams.
    """

    alpha: float = 0.005
    window_size: int = 100
    stat_size: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("KSWIN(alpha=)", self.alpha, 0.0, above=True, high=1.0)
        check_whole("KSWIN(stat_size=)", self.stat_size, 1, 10_000)
        check_whole("KSWIN(window_size=)", self.window_size, 2, 1_000_000)
        check_whole("KSWIN(seed=)", self.seed, 0, 2**63 - 1)
        if self.window_size < 2 * self.stat_size:
            raise DeclarationError(
                f"KSWIN(stat_size=): {self.stat_size} newest values and as many of those before are compared, so "
                f"window_size must be {2 * self.stat_size} or more, got {self.window_size}"
            )

    def arrays(self) -> Mapping[str, Array]:
        return {
            "window": Array((self.window_size,), "float64"),
            "heard": Array((1,), "int64"),
            "drawn": Array((1,), "uint64"),
        }

    def bind(self, spec: Spec, state: Mapping[str, np.ndarray], touched: Mapping[str, np.ndarray]) -> None:
        self._settings = critical_distance(self.stat_size, self.alpha), np.uint64(self.seed)
        self._state = state["window"], state["heard"], state["drawn"]
        places = np.empty(self.window_size - self.stat_size, np.intp)
        self._scratch = places, np.empty(self.stat_size), np.empty(self.stat_size)

    def _hear(self, values: np.ndarray, fired: np.ndarray, rose: np.ndarray) -> None:
        kernels.kswin(values, *self._settings, *self._state, *self._scratch, fired, rose)


def critical_distance(size: int, alpha: float) -> int:
    """size times the least Kolmogorov-Smirnov distance, above 0.1, whose p-value is at most alpha; size + 1: none.

    For two samples of `size` values each the p-value of the distance h / size is exactly
    2 sum over k >= 1 of (-1)^(k + 1) C(2 size, size - k h) / C(2 size, size).
    Source: Gnedenko and Korolyuk (1951).
    """
    bound = Fraction(alpha) * math.comb(2 * size, size)
    low, high = size // 10 + 1, size + 1  # the p-value falls with the distance
    while low < high:
        h = (low + high) // 2
        ways = sum((-1) ** (k + 1) * math.comb(2 * size, size - k * h) for k in range(1, size // h + 1))
        low, high = (low, h) if 2 * ways <= bound else (h + 1, high)
    return low


def watched(on: str, task: Any, y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """What a detector hears of predictions, float64 (B,): labels y float32 (B,), prediction float32 (B, O)."""
    values = np.empty(len(y))
    kind = kernels.WRONG if on == "error" else kernels.ABSOLUTE if task == "regression" else kernels.LOG_LOSS
    kernels.losses(y, prediction, kind, values)
    return values
