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
from .drift import ADWIN, DDM, KSWIN, DriftDetector, PageHinkley
from .linear import LinearRegression, LogisticRegression
from .metrics import Metrics
from .optimizers import FTRL, SGD, AdaGrad
from .scaler import StandardScaler

__all__ = [
    "ADWIN",
    "DDM",
    "FTRL",
    "KSWIN",
    "SGD",
    "AdaGrad",
    "Array",
    "Chain",
    "Detector",
    "DriftDetector",
    "Learner",
    "LinearRegression",
    "LogisticRegression",
    "Metrics",
    "Opaque",
    "PageHinkley",
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
