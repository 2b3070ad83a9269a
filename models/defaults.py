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
from .mondrian import AMFClassifier, AMFRegressor
from .optimizers import FTRL
from .scaler import StandardScaler
from .softmax import SoftmaxRegression

# Trees that split sooner than River's, which wait for certainty
FOREST: dict[str, Any] = {"delta": 0.05, "tau": 0.1, "max_nodes": 511}
# Mondrian forests twice: with columns as they are, for units may mean something, and scaled, for often they do not
DEFAULTS: Mapping[Task, Callable[[], Any]] = {
    "binary": lambda: Blend(
        StandardScaler() | LogisticRegression(),
        ARFClassifier(max_features=0.7, **FOREST),
        StandardScaler() | AMFClassifier(split_pure=True),
        AMFClassifier(split_pure=True),
        AMFClassifier(dirichlet=0.1),
    ),
    "multiclass": lambda: Blend(
        StandardScaler() | SoftmaxRegression(),
        ARFClassifier(lambda_value=10, **FOREST),
        StandardScaler() | AMFClassifier(dirichlet=0.1),
        AMFClassifier(dirichlet=0.1),
    ),
    # alpha and l1 are in the unit of the label, and suit labels that spread by 1 to 100; of less, scale them
    "regression": lambda: (
        StandardScaler()
        | Blend(
            LinearRegression(FTRL(alpha=1.0, l1=10.0, l2=1.0)),
            HoeffdingAdaptiveTreeRegressor(grace_period=50),
            NoChange(),
            AMFRegressor(n_estimators=5),
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
