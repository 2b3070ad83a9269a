"""What each feature of the flights earns: `python -m benchmarks.features` writes its table into benchmarks/README.md.

Progressive validation over all flights of 2013, with labels at their true delays, by the pipeline of
examples/flights.py: with its features added one by one, and with each of them left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.run import machine, today, write_section
from examples.flights import pipeline

from headrace.stream import flights
from headrace.stream.features import Cross, Feature


def main() -> int:
    departures, arrivals = flights.departures(), flights.arrivals()

    def log_loss(features: Sequence[Feature]) -> float:
        return float(replace(pipeline, features=list(features)).evaluate(departures, arrivals)["log_loss"])

    every = tuple(pipeline.features)
    lines = ["| feature | log loss with it and those above | without it alone |", "|---|---|---|"]
    for i, feature in enumerate(every):
        added, without = log_loss(every[: i + 1]), log_loss(every[:i] + every[i + 1 :])
        shown = feature.name if isinstance(feature, Cross) else repr(feature)
        lines.append(f"| `{shown}` | {added:.4f} | {without:.4f} |")
        print(lines[-1], flush=True)
    lines += ["", f"{today()}, {machine()}."]
    write_section("features", "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
