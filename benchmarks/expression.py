"""As clicks.py, with a Polars expression among the features. What `benchmarks/throughput.py` runs."""

from dataclasses import replace

import polars as pl
from benchmarks import clicks

from headrace import Predictions, numeric

pipeline = replace(
    clicks.pipeline,
    name=f"expression{clicks.RUN}",
    features=[*clicks.FEATURES, numeric(pl.col("price").log1p() * pl.col("depth"), name="price_by_depth")],
    predictions=Predictions(f"expression.headrace{clicks.RUN}", compression="lz4"),
)
