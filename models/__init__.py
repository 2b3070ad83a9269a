"""Learners, optimizers and metrics: arrays in, arrays out. No Kafka, Redis, files, clock or environment."""

from .base import (
    Array,
    Detector,
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
)
from .chain import Chain, as_chain
from .linear import LinearRegression, LogisticRegression
from .metrics import Metrics
from .optimizers import FTRL, SGD, AdaGrad
from .scaler import StandardScaler
from .trees import HoeffdingTreeClassifier, HoeffdingTreeRegressor

__all__ = [
    "FTRL",
    "SGD",
    "AdaGrad",
    "Array",
    "Chain",
    "Detector",
    "HoeffdingTreeClassifier",
    "HoeffdingTreeRegressor",
    "Learner",
    "LinearRegression",
    "LogisticRegression",
    "Metrics",
    "Opaque",
    "Rows",
    "Spec",
    "StandardScaler",
    "Stateful",
    "Transform",
    "Truth",
    "allocate",
    "allocate_touched",
    "as_chain",
    "build",
]
