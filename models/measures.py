"""What a quantile or a Poisson regression is judged by beside its errors: pinball loss, or deviance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy import ndarray

from ..jit import njit

LEAST_RATE = 2.0**-24  # a rate counts as this at least: whoever said 0 of what came did not err for ever
RECENT = 10_000  # labels that the recent loss stands for, as of the other metrics

PINBALL, DEVIANCE = range(2)
KINDS = {"pinball": PINBALL, "poisson_deviance": DEVIANCE}
LABELS, LOSS, RECENT_LOSS, MEAN, BEFORE, MEAN_LOSS, CHANGE_LOSS, LOGS = range(8)  # places in `own`
OWN = 8


@njit(cache=True, nogil=True, error_model="numpy")
def loss_of(kind: int, quantile: float, t: float, q: float) -> float:
    """The loss of saying q of a label t; NaN where one is not finite, and for a deviance where t is below 0."""
    if t - t != 0.0 or q - q != 0.0 or (kind == DEVIANCE and t < 0.0):
        return np.nan
    if kind == PINBALL:
        return quantile * (t - q) if t >= q else (1.0 - quantile) * (q - t)
    q = max(q, LEAST_RATE)
    return 2.0 * ((t * math.log(t / q) if t > 0.0 else 0.0) - t + q)


@njit(cache=True, nogil=True, error_model="numpy")
def losses(kind: int, quantile: float, y: ndarray, p: ndarray, out: ndarray) -> None:
    """Write the loss of each prediction p float32 (B,) of a label y float32 (B,) to out float64 (B,), by `loss_of`."""
    for i in range(y.shape[0]):
        out[i] = loss_of(kind, quantile, np.float64(y[i]), np.float64(p[i]))


@njit(cache=True, nogil=True, error_model="numpy")
def update(kind: int, quantile: float, y: ndarray, p: ndarray, own: ndarray) -> None:
    """Count B predictions in order, those whose loss is NaN excepted.

    y, p  float32 (B,)   label and prediction
    own   float64 (OWN,) sums of the losses of p, of the mean of the labels before, and of the label before; in place
    """
    for i in range(y.shape[0]):
        t = np.float64(y[i])
        loss = loss_of(kind, quantile, t, np.float64(p[i]))
        if loss - loss != 0.0:
            continue
        own[LOSS] += loss
        own[RECENT_LOSS] += (loss - own[RECENT_LOSS]) / min(own[LABELS] + 1.0, RECENT)
        if own[LABELS] > 0.0:  # before the first label no baseline could have said anything
            own[MEAN_LOSS] += loss_of(kind, quantile, t, own[MEAN])
            own[CHANGE_LOSS] += loss_of(kind, quantile, t, own[BEFORE])
        own[LABELS] += 1.0
        own[MEAN] += (t - own[MEAN]) / own[LABELS]
        own[BEFORE] = t
        if kind == DEVIANCE and t > 0.0:
            own[LOGS] += t * math.log(t)


class Measure(NamedTuple):
    """A loss that the predictions of a regression are judged by, beside absolute and squared errors.

    pinball           quantile (y - p) above p, (1 - quantile) (p - y) below it
    poisson_deviance  2 (y log(y / p) - y + p), of a rate p held at 2**-24 or above; of labels of at least 0 alone

    Source: Koenker and Bassett (1978), Regression quantiles; McCullagh and Nelder (1989), Generalized linear models.
    """

    name: Literal["pinball", "poisson_deviance"]
    quantile: float = 0.5  # of the pinball loss

    @property
    def array(self) -> str:
        """The name of its state, float64 (OWN,): of another quantile it is another one, which begins anew."""
        return f"{self.name}_{float(self.quantile)!r}" if self.name == "pinball" else self.name

    def losses(self, y: ndarray, p: ndarray) -> ndarray:
        """Of labels y float32 (B,) and predictions p float32 (B, 1), float64 (B,); NaN: not known."""
        out = np.empty(len(y))
        losses(KINDS[self.name], float(self.quantile), y, p[:, 0], out)
        return out

    def update(self, y: ndarray, p: ndarray, own: ndarray) -> None:
        """Count labels and the predictions of them, float32 (B,) each, in order."""
        update(KINDS[self.name], float(self.quantile), y, p, own)

    def results(self, own: ndarray, quantile: float | None) -> dict[str, float | None]:
        """The mean loss by name, beside its baselines; None where no label has told yet.

        quantile  the loss of the best constant in hindsight, where that is a quantile
        """
        n = own[LABELS]
        mean, later = own[MEAN], n - 1.0
        constant = quantile
        if self.name == "poisson_deviance" and n:
            constant = max(0.0, float(2.0 * (own[LOGS] / n - mean * math.log(mean)))) if mean > 0.0 else 0.0
        return {
            self.name: float(own[LOSS] / n) if n else None,
            f"{self.name}_constant": constant,
            f"{self.name}_running_mean": float(own[MEAN_LOSS] / later) if later > 0.0 else None,
            f"{self.name}_no_change": float(own[CHANGE_LOSS] / later) if later > 0.0 else None,
            f"recent_{self.name}": float(own[RECENT_LOSS]) if n else None,
        }


def headline(told: Mapping[str, float | int | None]) -> str | None:
    """The name of the figure by which results are told apart: what the model is judged by; None: there is none."""
    return next((name for name in ("log_loss", *KINDS, "mae") if name in told), None)
