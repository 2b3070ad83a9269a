"""Learners, optimizers and metrics: arrays in, arrays out. No Kafka, Redis, files, clock or environment.

What needs PyTorch is imported at first use, so that a worker without it starts as fast as ever.
"""

from typing import TYPE_CHECKING

from .adaptive_trees import HoeffdingAdaptiveTreeClassifier, HoeffdingAdaptiveTreeRegressor
from .average import Average
from .base import (
    NEEDS_TORCH,
    Array,
    Configured,
    Detector,
    Explainer,
    Learner,
    Opaque,
    Rows,
    Spec,
    Stateful,
    Transform,
    Truth,
    allocate,
    allocate_touched,
    build,
    import_model,
    register,
)
from .baselines import NoChange, Prior, RunningMean
from .bayes import GaussianNB, MultinomialNB
from .blend import Blend
from .chain import Chain, as_chain
from .defaults import default
from .drift import ADWIN, DDM, KSWIN, DriftDetector, PageHinkley
from .forests import ARFClassifier, ARFRegressor
from .linear import LinearRegression, LogisticRegression
from .metrics import Metrics
from .mondrian import AMFClassifier, AMFRegressor
from .optimizers import FTRL, SGD, AdaGrad
from .passive_aggressive import PAClassifier, PARegressor
from .river import River
from .scaler import StandardScaler
from .softmax import SoftmaxRegression
from .trees import HoeffdingTreeClassifier, HoeffdingTreeRegressor

if TYPE_CHECKING:
    from .dense_optimizers import Adam as Adam
    from .embeddings import Embeddings as Embeddings
    from .torch_learner import Torch as Torch
    from .torch_modules import DCN as DCN
    from .torch_modules import MLP as MLP
    from .torch_modules import DeepFM as DeepFM
    from .torch_modules import Imported as Imported
    from .torch_modules import Inputs as Inputs
    from .torch_modules import TorchModule as TorchModule

__all__ = [  # but for what needs torch: `import *` works without it
    "ADWIN",
    "AMFClassifier",
    "AMFRegressor",
    "ARFClassifier",
    "ARFRegressor",
    "DDM",
    "FTRL",
    "KSWIN",
    "SGD",
    "AdaGrad",
    "Array",
    "Average",
    "Blend",
    "Chain",
    "Configured",
    "Detector",
    "Explainer",
    "GaussianNB",
    "DriftDetector",
    "HoeffdingAdaptiveTreeClassifier",
    "HoeffdingAdaptiveTreeRegressor",
    "HoeffdingTreeClassifier",
    "HoeffdingTreeRegressor",
    "Learner",
    "LinearRegression",
    "LogisticRegression",
    "Metrics",
    "NoChange",
    "MultinomialNB",
    "Opaque",
    "PAClassifier",
    "PARegressor",
    "PageHinkley",
    "Rows",
    "SoftmaxRegression",
    "Prior",
    "River",
    "RunningMean",
    "Spec",
    "StandardScaler",
    "Stateful",
    "Transform",
    "Truth",
    "allocate",
    "allocate_touched",
    "as_chain",
    "build",
    "default",
    "register",
]


def __getattr__(name: str) -> object:
    if name not in NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_model(name)
    globals()[name] = value  # the next look-up is an ordinary one
    return value
