"""The pipeline that `benchmarks/durability.py` runs: that of clicks.py, and what a part of it changes.

The changes are read from the environment: NAME, DELIVERY, EVERY (between snapshots), and BITS. With BITS the table of
weights is so large, and three categories more are different for each view, so that it is written to all over.
"""

import os
from dataclasses import replace
from typing import Any

from benchmarks import clicks

from headrace import Predictions, Snapshots, category, cross
from headrace.models import FTRL, LogisticRegression, StandardScaler

name, bits = os.environ["NAME"], int(os.environ.get("BITS", "0"))
delivery: Any = os.environ.get("DELIVERY", "exactly_once")
pipeline = replace(
    clicks.pipeline,
    name=name,
    predictions=Predictions(f"{name}.predictions"),
    delivery=delivery,
    snapshots=Snapshots(every=os.environ.get("EVERY", "5s"), keep=3),
)
if bits:
    pipeline = replace(
        pipeline,
        features=[*clicks.pipeline.features, category("id"), cross("site", "id"), cross("ad", "id")],
        model=StandardScaler() | LogisticRegression(FTRL(), bits=bits),
    )
