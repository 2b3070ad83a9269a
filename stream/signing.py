"""Models whose state is a pickle: it is kept in Redis signed, or not at all, and loaded only once that was verified."""

from __future__ import annotations

from ..errors import DeclarationError, InputError
from ..models.chain import as_chain
from .declaration import Pipeline
from .load import PIPELINE_MODULE
from .settings import KEY_VARIABLE, MAKE_KEY

KEY_REMEDY = (
    f"Give all workers of the pipeline the same secret in {KEY_VARIABLE}, made for instance by {MAKE_KEY}, and readers "
    "as SnapshotReader(..., hmac_key=...)"
)


def require_key(pipeline: Pipeline, key: bytes | None) -> None:
    """Raise InputError where a model's state is a pickle and there is no key to sign it with.

    Raises DeclarationError where functions or classes of the pipeline file are in the pickle: that file is a module of
    another name in each place.
    """
    for part in (part for model in pipeline.models_by_name.values() for part in as_chain(model).opaque().values()):
        if key is None:
            raise InputError(
                f"pipeline {pipeline.name!r}: the state of {part!r} is a pickle, and whoever may write to Redis could "
                f"run code by it where it is loaded: it is kept only signed. {KEY_REMEDY}. `headrace evaluate` needs "
                "no key"
            )
        if PIPELINE_MODULE.encode() in part.dump():
            raise DeclarationError(
                f"pipeline {pipeline.name!r}: the state of {part!r} refers to functions or classes of the pipeline "
                "file, which others could not import; put them into a module of their own beside it, and import them"
            )
