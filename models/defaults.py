"""A model to begin with: one for each task, chosen by what it does on many kinds of data.

docs/learners/defaults.md says what each is made of, what it costs, what it was compared with and on which data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import DeclarationError
from .adaptive_trees import HoeffdingAdaptiveTreeRegressor
from .base import Task
from .baselines import NoChange
from .blend import Blend
from .chain import Chain, as_chain
from .forests import ARFClassifier
from .linear import LinearRegression, LogisticRegression
from .optimizers import FTRL
from .scaler import StandardScaler
from .softmax import SoftmaxRegression

# Trees that split sooner than River's, which wait for certainty; 511 nodes keep 20 trees in the memory of 10
SOON: dict[str, Any] = {"delta": 0.05, "tau": 0.1}
DEFAULTS: Mapping[Task, Callable[[], Any]] = {
    "binary": lambda: Blend(
        StandardScaler() | LogisticRegression(),
        ARFClassifier(n_models=20, max_features=0.7, max_nodes=511, **SOON),
    ),
    "multiclass": lambda: Blend(
        StandardScaler() | SoftmaxRegression(),
        ARFClassifier(n_models=20, lambda_value=10, max_nodes=511, **SOON),
    ),
    # alpha and l1 are in the unit of the label, and suit labels that spread by 1 to 100; of less, scale them
    "regression": lambda: (
        StandardScaler()
        | Blend(
            LinearRegression(FTRL(alpha=1.0, l1=10.0, l2=1.0)),
            HoeffdingAdaptiveTreeRegressor(grace_period=50),
            NoChange(),
        )
    ),
}


def default(task: Task) -> Chain:
    """A new model for a task: "binary", "multiclass" or "regression".

    What it is may change between versions; `repr` tells, and a pipeline that is to stay as it is declares that.
    Raises DeclarationError for another task.
    """
    if task not in DEFAULTS:
        raise DeclarationError(f"models.default: expected one of {', '.join(map(repr, DEFAULTS))}, got {task!r}")
    return as_chain(DEFAULTS[task]())
