"""What the demo shows at its end: a table in plain words, and the loss over the year as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from .demo_result import constant_loss

DAYS_FOR_WEEKS = 60  # a shorter stream is shown day by day
MODEL, CONSTANT, QUIET = "#1f6f8b", "#b5532d", "#5f6368"


def report(results: dict[str, Any]) -> Table:
    """The results as a table: each figure with its baseline, each count with what it means."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "value", "baseline"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_column("", overflow="fold")
    for rows in (_quality(results), _counts(results), _speed(results)):
        for row in rows:
            table.add_row(*row)
        table.add_row()
    return table


Row = tuple[str, str, str, str]  # what, value, baseline, in plain words


def _quality(results: dict[str, Any]) -> list[Row]:
    late = f"{results['late_share']:.1%}"
    shown: list[tuple[str, str, float, str]] = [
        ("log loss", "log_loss", results["log_loss_constant"],
         f"less is better; baseline: always say {late}, the share of late flights"),
        ("", "", results["log_loss_prior"], "baseline: the share of late flights among those that have landed"),
        ("area under ROC curve", "auc", 0.5, "how often a late flight was given more than a punctual one"),
        ("accuracy", "accuracy", results["accuracy_majority"],
         "taking 50 % and more for late; baseline: none is late"),
        ("", "", results["accuracy_no_change"], "baseline: as the flight that landed before"),
    ]  # fmt: skip
    return [(name, f"{results[at]:.4f}" if at else "", f"{base:.4f}", text) for name, at, base, text in shown]


def _counts(results: dict[str, Any]) -> list[Row]:
    newest = results["snapshot_version"]
    words = {
        "events": ("departures", "sent to Kafka"),
        "predictions": ("predictions", "read back from Kafka: one for each departure, none twice"),
        "joined": ("  joined", "met their arrival: scored, then learned from"),
        "expired": ("  expired", "no arrival, for the flight was diverted: nothing to learn"),
        "pending": ("  pending", "still wait for their arrival"),
        "labels": ("arrivals", "sent to Kafka"),
        "orphans": ("  orphans", "without a departure"),
        "dead_letters": ("dead letters", "records that could not be used"),
        "snapshots": ("snapshots", f"of the model, kept in Redis; the newest is version {newest}"),
    }
    return [(name, f"{results[at]:,}", "", text) for at, (name, text) in words.items()]


def _speed(results: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    latency, records = results["latency_ms"], results["records_per_second"]
    if records is not None:
        text = f"departures a second, exactly once; {records:,} records with the arrivals"
        rows.append(("throughput", f"{results['events_per_second']:,}", "", text))
    pace = latency["records_per_second"]
    text = f"from departure sent to prediction readable, at {pace:,} records a second"
    if records is not None and records < pace:
        text += ": more than it can do here, they queue"
    rows.append(("latency, median", f"{latency['p50']:,.0f} ms", "", text))
    rows.append(("latency, 99 %", f"{latency['p99']:,.0f} ms", "", "99 of 100 predictions were faster"))
    return rows


def draw(joined: pl.DataFrame, path: Path) -> None:
    """Write the progressive log loss by date of departure as a PNG, beside the constant's: by week or day, and so far.

    joined  as in Outcome
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import dates
    from matplotlib import pyplot as plt

    losses = by_date(joined)
    figure, axes = plt.subplots(figsize=(10, 5), dpi=120, layout="constrained")
    when = losses["date"].to_numpy()
    rate = float(np.mean(joined["late"].to_numpy()))
    weeks = _in_weeks(joined)
    unit = "week" if weeks else "day"
    axes.plot(when, losses["constant"], color=CONSTANT, lw=1.2, alpha=0.6)
    axes.plot(when, losses["model"], color=MODEL, lw=1.2, alpha=0.6, marker=".", ms=4)
    axes.plot(when, losses["constant_so_far"], color=CONSTANT, lw=2.2)
    axes.plot(when, losses["model_so_far"], color=MODEL, lw=2.2)
    for name, color, words in (("constant", CONSTANT, "constant"), ("model", MODEL, "model")):
        value = float(losses[f"{name}_so_far"][-1])
        axes.annotate(
            f"{words}\n{value:.4f}",
            (when[-1], value),
            xytext=(8, 0),
            textcoords="offset points",
            color=color,
            va="center",
            weight="bold",
        )
    figure.suptitle(
        "Will a flight land more than 15 minutes late? Asked at departure, learned at arrival",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    axes.set_title(
        f"Thin lines: each {unit} by itself. Thick lines: all flights so far. "
        f"The constant always says {rate:.1%}: the share of late flights, known in hindsight.",
        loc="left",
        fontsize=9,
        color=QUIET,
    )
    axes.set_ylabel("log loss of the predictions")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(dates.MonthLocator() if weeks else dates.DayLocator(interval=len(when) // 10 + 1))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%b" if weeks else "%d %b"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.92")
    figure.savefig(path)
    plt.close(figure)


def by_date(joined: pl.DataFrame) -> pl.DataFrame:
    """date, and the mean loss of model and constant: of that week (or day), and of all flights so far."""
    late = joined["late"].to_numpy()
    constant = constant_loss(late, float(np.mean(late)))
    every = "1w" if _in_weeks(joined) else "1d"
    date = pl.from_epoch(pl.col("time").cast(pl.Int64), time_unit="s").dt.truncate(every).alias("date")
    sums = (
        joined.with_columns(date, constant=pl.Series(constant))
        .group_by("date")
        .agg(pl.len().alias("flights"), model=pl.col("loss").sum(), constant=pl.col("constant").sum())
        .sort("date")
    )
    flights = pl.col("flights")
    return sums.select(
        "date",
        model=pl.col("model") / flights,
        constant=pl.col("constant") / flights,
        model_so_far=pl.col("model").cum_sum() / flights.cum_sum(),
        constant_so_far=pl.col("constant").cum_sum() / flights.cum_sum(),
    )


def _in_weeks(joined: pl.DataFrame) -> bool:
    span = float(joined["time"].max()) - float(joined["time"].min())  # type: ignore[arg-type]
    return span > DAYS_FOR_WEEKS * 86_400
