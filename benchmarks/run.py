"""Run the benchmarks and write their table into benchmarks/README.md: `make bench`."""

from __future__ import annotations

import argparse
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import throughput

README = Path(__file__).parent / "README.md"
LIBRARIES = ("numba", "numpy", "polars", "faust-streaming", "aiokafka", "msgspec")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=3_000_000, help="events in the topic")
    arguments.add_argument("--rounds", type=int, default=5, help="how often each runs; medians are told")
    arguments.add_argument("--only", help="one contestant, as in --only quix; the table is then printed, not written")
    chosen = arguments.parse_args()
    contestants = tuple(c for c in throughput.CONTESTANTS if not chosen.only or chosen.only in c.name.lower())
    if not contestants:
        arguments.error(f"--only {chosen.only}: expected one of {', '.join(c.name for c in throughput.CONTESTANTS)}")
    views, results = throughput.compare(chosen.events, contestants, chosen.rounds)
    written = table(views, results)
    print("\n" + written)
    if not chosen.only:
        write_section("throughput", written)
    return 0


def table(views: throughput.Views, results: list[throughput.Result]) -> str:
    """The results as Markdown, with all that is needed to judge and repeat them."""
    ours = next((r for r in results if r.contestant is throughput.HEADRACE), None)
    lines = [
        "| who | does | events | events/s | of the rounds | headrace is | log loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ratio = f"{ours.times_as_fast_as(r):.1f} times as fast" if ours and r is not ours else ""
        least, most = min(r.rates), max(r.rates)
        lost = "none repeated" if not r.repeats else f"{r.repeats:,} repeated"
        lines.append(
            f"| {r.contestant.name} | {r.contestant.does} | {r.predictions:,}, {lost} | {r.events_per_second:,.0f} "
            f"| {least:,.0f} to {most:,.0f} | {ratio} | {r.log_loss:.3f} |"
        )
    headrace = f"headrace {version('headrace')} on Python {platform.python_version()} with " + ", ".join(
        f"{name} {version(name)}" for name in LIBRARIES
    )
    peers = "; ".join(f"{r.contestant.name}: {r.versions}" for r in results if r.contestant.script)
    size = f"{views.count:,} events of {views.value_bytes / views.count:.0f} bytes"
    lines += [
        "",
        f"{today()}, {machine()}. {size} in {throughput.PARTITIONS} partitions; Apache Kafka 4.1.1 and Redis on the "
        f"same machine; one process each; medians of {len(results[0].rates)} rounds. Best constant: log loss "
        f"{views.log_loss_constant():.3f}.",
        "",
        f"{headrace}." + (f" {peers}." if peers else ""),
    ]
    return "\n".join(lines)


def write_section(name: str, text: str) -> None:
    """Replace what stands between the markers of a section of benchmarks/README.md."""
    begin, end = f"<!-- {name}: written by the benchmark -->", f"<!-- end of {name} -->"
    before, rest = README.read_text().split(begin)
    README.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")
    print(f"written to {README}")


def today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}"


def machine() -> str:
    """CPU model, usable cores and system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = named[0] if named else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()}"


if __name__ == "__main__":
    raise SystemExit(main())
