"""headrace: a streaming online-learning engine.

Faust agents consume event streams from Kafka, Numba kernels compute features, models learn from every labelled event
as it arrives, predictions go to a topic and snapshots of the model to Redis.

The public names are loaded at first use, so that `import headrace.models` needs numpy and numba alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import (
        DeclarationError,
        HeadraceError,
        InputError,
        Refused,
        SetupError,
        SnapshotError,
        StreamStopped,
        Unreachable,
    )
    from .stream.declaration import Best, Events, Labels, Pipeline, Predictions, Snapshots
    from .stream.features import (
        category,
        count,
        cross,
        ewm,
        last,
        max,
        mean,
        min,
        numeric,
        seconds_since,
        std,
        sum,
    )
    from .stream.reader import SnapshotReader

__version__ = "0.1.0"

__all__ = [
    "Best",
    "DeclarationError",
    "Events",
    "HeadraceError",
    "InputError",
    "Labels",
    "Pipeline",
    "Predictions",
    "Refused",
    "SetupError",
    "SnapshotError",
    "SnapshotReader",
    "Snapshots",
    "StreamStopped",
    "Unreachable",
    "__version__",
    "category",
    "count",
    "cross",
    "ewm",
    "last",
    "max",
    "mean",
    "min",
    "numeric",
    "seconds_since",
    "std",
    "sum",
]

_HOMES = {
    ".stream.declaration": ("Best", "Events", "Labels", "Pipeline", "Predictions", "Snapshots"),
    ".stream.features": (
        *("category", "count", "cross", "ewm", "last", "max", "mean", "min", "numeric", "seconds_since", "std", "sum"),
    ),
    ".stream.reader": ("SnapshotReader",),
    ".errors": (
        *("DeclarationError", "HeadraceError", "InputError", "Refused", "SetupError", "SnapshotError"),
        *("StreamStopped", "Unreachable"),
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value  # the next look-up is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
