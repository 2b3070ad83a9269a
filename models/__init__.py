"""Learners, optimizers and metrics: arrays in, arrays out. No Kafka, Redis, files, clock or environment."""

from .adaptive_trees import HoeffdingAdaptiveTreeClassifier, HoeffdingAdaptiveTreeRegressor
from .average import Average
from .base import (
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
    register,
)
from .baselines import NoChange, Prior, RunningMean
from .bayes import GaussianNB, MultinomialNB
from .chain import Chain, as_chain
from .defaults import default
from .drift import ADWIN, DDM, KSWIN, DriftDetector, PageHinkley
from .forests import ARFClassifier, ARFRegressor
from .linear import LinearRegression, LogisticRegression
from .metrics import Metrics
from .optimizers import FTRL, SGD, AdaGrad
from .passive_aggressive import PAClassifier, PARegressor
from .river import River
from .scaler import StandardScaler
from .softmax import SoftmaxRegression
from .trees import HoeffdingTreeClassifier, HoeffdingTreeRegressor

__all__ = [
    "ADWIN",
    "ARFClassifier",
    "ARFRegressor",
    "DDM",
    "FTRL",
    "KSWIN",
    "SGD",
    "AdaGrad",
    "Array",
    "Average",
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
