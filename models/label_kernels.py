"""What a label says."""

from __future__ import annotations

import math

from .compiling import kernel


@kernel
def class_of(label: float, classes: int, binary: bool) -> int:
    """The class that a label names: of a binary task 1 from a half on, else its index. -1: none, as NaN does."""
    if label - label != 0.0:
        return -1
    if binary:
        return 1 if label >= 0.5 else 0
    return int(label) if 0.0 <= label < classes and label == math.floor(label) else -1
