"""What `headrace evaluate` prints: a progress bar while it runs, then the figures, each beside its baseline."""

from __future__ import annotations

import json as jsonlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..models.measures import headline
from .contest import say_losses
from .engine import Engine
from .evaluate import evaluate_files
from .finite import finite
from .load import load_pipeline

BASELINES = {  # of each figure: what it is called in the results, and what it means
    "log_loss": {
        "log_loss_constant": "the share of each class, in hindsight",
        "log_loss_prior": "the share of each class so far",
    },
    "accuracy": {
        "accuracy_majority": "the most frequent class, in hindsight",
        "accuracy_no_change": "the label before",
    },
    "pinball": {
        "pinball_constant": "the quantile, in hindsight",
        "pinball_running_mean": "the mean so far",
        "pinball_no_change": "the label before",
    },
    "poisson_deviance": {
        "poisson_deviance_constant": "the mean, in hindsight",
        "poisson_deviance_running_mean": "the mean so far",
        "poisson_deviance_no_change": "the label before",
    },
    "mae": {
        "mae_constant": "the median, in hindsight",
        "mae_running_mean": "the mean so far",
        "mae_no_change": "the label before",
    },
    "rmse": {
        "rmse_constant": "the mean, in hindsight",
        "rmse_running_mean": "the mean so far",
        "rmse_no_change": "the label before",
    },
}
COUNTED = (
    *("events", "labels", "joined", "expired", "pending", "orphans", "late", "duplicates", "dead_letters", "drifts"),
    *("infinite", "unusable", "unanswered", "undeclared", "switches"),
    *("labels_below_zero", "skipped_steps", "evicted_embeddings", "refused_embeddings"),
)
MEANS = {  # what is counted only where something is odd
    "expired": "events that had no label in time",
    "orphans": "labels whose key no event had: is key= the same on both sides?",
    "late": "labels that came after the wait of their event",
    "infinite": "numbers that are infinite as float32, taken as missing",
    "unusable": "labels that name no class or are not finite: their events are predicted, and not learned",
    "unanswered": "predictions to which River had no answer",
    "undeclared": "predictions in which River told of a class that is not declared",
    "labels_below_zero": "labels below 0, of which a Poisson regression learned nothing",
    "skipped_steps": "steps whose scores, loss or slopes were not finite",
    "evicted_embeddings": "embeddings that had to leave their row",
    "refused_embeddings": "times that an embedding found no row",
}
OF_MODELS = {"served": "predictions served", "drifts": "drifts of each", "drift_actions": "boosts and resets"}
WORDS = {
    "log_loss": "log loss",
    "auc": "area under the ROC curve",
    "accuracy": "accuracy",
    "pinball": "mean pinball loss",
    "poisson_deviance": "mean Poisson deviance",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
}


def run(file: str, events: Path, labels: Path | None, json: bool) -> int:
    """Evaluate the pipeline in `file` and print the results; returns the exit status."""
    pipeline = load_pipeline(file)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("compiling kernels (the first time only)")

        def progress(engine: Engine) -> None:
            results = engine.results()
            name = headline(results) or ""
            loss = results.get(name)
            shown = f", {WORDS[name]} {loss:.4f}" if loss is not None else ""
            shown += say_losses(engine.results_of_models())
            bar.update(task, description=f"{engine.counters()['events']:,} events{shown}")

        evaluation = evaluate_files(pipeline, events, labels, progress)
    if json:
        print(jsonlib.dumps(finite(evaluation.results)))
        return 0
    console = Console()
    console.print(report(evaluation.results))
    for letter in evaluation.dead:
        at = f" at {letter.path}" if letter.path else ""
        console.print(f"bad record: {letter.role} line {letter.record.offset + 1}: {letter.reason}{at}", markup=False)
    return 0


def report(results: dict[str, Any]) -> Table:
    """The figures of an evaluation as a table: what, how much, and what the baseline reaches.

    Several models have a column each, and so has what was served where that was not always the first.
    """
    models: dict[str, dict[str, Any]] = results.get("models", {})
    served = "switches" in results or not models  # all of it is not what one model said
    values = (["served" if models else "value"] if served else []) + list(models)
    if not served:
        values[0] += " (serves)"
    blanks = [""] * (len(values) - 1)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", *values, "baseline", ""):
        table.add_column(name, justify="right" if name else "left")
    for name in COUNTED:
        if results.get(name) or name in ("events", "labels"):
            table.add_row(name.replace("_", " "), f"{results[name]:,}", *blanks, "", MEANS.get(name, ""))
    for name, words in OF_MODELS.items():
        if any(told.get(name) for told in models.values()):
            table.add_row(words, *[""] * served, *(f"{told[name]:,}" for told in models.values()))
    if results.get("last_drift_time") is not None:
        when = datetime.fromtimestamp(results["last_drift_time"], UTC)
        table.add_row("boosts and resets", f"{results['drift_actions']:,}")
        table.add_row("the last at example", f"{results['last_drift_example']:,}", "", f"{when:%Y-%m-%d %H:%M:%S} UTC")
    for name, words in WORDS.items():
        if results.get(name) is None:
            continue
        columns = ([results] if served else []) + list(models.values())
        shown = [f"{told[name]:.4f}" if told[name] is not None else "" for told in columns]
        known = [(at, means) for at, means in BASELINES.get(name, {}).items() if results[at] is not None]
        first, *others = [(f"{results[at]:z.4f}", means) for at, means in known] or [("", "")]
        table.add_row(words, *shown, *first)
        for row in others:
            table.add_row("", "", *blanks, *row)
    table.add_row("events per second", f"{results['events_per_second']:,.0f}")
    return table
