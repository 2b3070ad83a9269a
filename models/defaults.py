"""A model to begin with: one for each task, chosen by what it does on many kinds of data.

The figures that the choice rests on, accuracy or mean absolute error as benchmarks/quality.py takes them, the best of
River's learners in its table in brackets: Bananas .837 (.643), Phishing .886 (.890), ImageSegments .886 (.826),
ChickWeights 24.6 (23.2), TrumpApproval .264 (.956), SolarFlare .483 (.457).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import DeclarationError
from .base import Task
from .chain import Chain, as_chain
from .linear import LinearRegression
from .optimizers import FTRL
from .scaler import StandardScaler
from .softmax import SoftmaxRegression
from .trees import HoeffdingTreeClassifier

DEFAULTS: Mapping[Task, Callable[[], Any]] = {
    # River's own settings wait for certainty: with them the tree reaches .643 on Bananas
    "binary": lambda: HoeffdingTreeClassifier(grace_period=50, delta=0.01, tau=0.1),
    "multiclass": lambda: StandardScaler() | SoftmaxRegression(FTRL(alpha=0.3)),
    # alpha and l1 are in the unit of the label, and suit labels that spread by 1 to 100; of less, scale them
    "regression": lambda: StandardScaler() | LinearRegression(FTRL(alpha=1.0, l1=10.0, l2=1.0)),
}


def default(task: Task) -> Chain:
    """A new model for a task: "binary", "multiclass" or "regression".

    What it is may change between versions; `repr` tells, and a pipeline that is to stay as it is declares that.
    Raises DeclarationError for another task.
    """
    if task not in DEFAULTS:
        raise DeclarationError(f"models.default: expected one of {', '.join(map(repr, DEFAULTS))}, got {task!r}")
    return as_chain(DEFAULTS[task]())
