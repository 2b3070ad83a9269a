"""Progressive validation over files: the same figures whatever the format, and errors that say what a file lacks."""

import dataclasses
import gzip
import json

import msgspec
import numpy as np
import polars as pl
import pytest
from rich.console import Console

from headrace import Events, InputError, Labels, Pipeline, Predictions, category, mean, numeric
from headrace.models import FTRL, SGD, LinearRegression, LogisticRegression, StandardScaler
from headrace.stream import evaluate_report
from headrace.stream.evaluate import evaluate_files

T0 = 1_700_000_000
FORMATS = ("ndjson", "ndjson.gz", "csv", "csv.gz", "parquet", "parquet.gz")
TIMES = ("seconds", "events_per_second")


class Visit(msgspec.Struct):
    id: str
    time: float
    site: str
    pages: int
    price: float | None = None


class Sale(msgspec.Struct):
    id: str
    time: float
    sold: bool


def later(**changes):
    """A pipeline whose labels are in a file of their own."""
    parts = dict(
        name="later",
        events=Events("visits", Visit, key="id", time="time", unit="s"),
        labels=Labels("sales", Sale, key="id", time="time", unit="s", value="sold", within="1h"),
        features=[numeric("price"), numeric("pages"), category("site"), mean("label", by="site", over="6h")],
        model=StandardScaler() | LogisticRegression(FTRL(alpha=0.1)),
        predictions=Predictions("scores"),
    )
    return Pipeline(**(parts | changes))


def now(**changes):
    """A pipeline whose label is in the event."""
    labels = Labels(value=pl.col("price") * 2)
    return later(name="now", labels=labels, features=[numeric("pages")], model=LinearRegression(SGD(0.01)), **changes)


@pytest.fixture(scope="module")
def frames():
    """Visits, one a second, with prices that are missing at times, and sales up to half an hour later."""
    rng = np.random.default_rng(7)
    n = 1_000
    price = [None if rng.random() < 0.1 else round(float(rng.normal(5, 3)), 3) for _ in range(n)]
    visits = pl.DataFrame({
        "id": [f"v{i}" for i in range(n)],
        "time": T0 + np.arange(n) + 0.25,
        "site": rng.choice(list("abcde"), n),
        "pages": rng.integers(1, 20, n),
        "price": price,
        "comment": ['with "quotes", and a comma'] * n,
    })  # fmt: skip
    kept = np.flatnonzero(rng.random(n) < 0.95)
    sold = rng.random(n) < np.where(visits["site"].to_numpy() < "c", 0.2, 0.8)
    sales = pl.DataFrame({
        "id": visits["id"].to_numpy()[kept], "time": (visits["time"].to_numpy() + rng.uniform(1, 1800, n))[kept],
        "sold": sold[kept],
    }).sort("time")  # fmt: skip
    return visits, sales


def write(frame, path):
    """Write a frame in the format that the path's suffixes name."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    getattr(frame, f"write_{plain.suffix[1:]}")(plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return path


def figures(results):
    return {name: value for name, value in results.items() if name not in TIMES}


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_every_format_give_the_figures_of_the_frames(frames, tmp_path, format):
    visits, sales = frames
    events, labels = write(visits, tmp_path / f"visits.{format}"), write(sales, tmp_path / f"sales.{format}")
    results = evaluate_files(later(), events, labels).results
    assert figures(results) == figures(later().evaluate(visits, sales))
    assert results["events"] == 1_000
    assert results["labels"] == results["joined"] == len(sales)
    assert results["expired"] == 1_000 - len(sales)
    assert results["pending"] == results["dead_letters"] == 0
    assert results["log_loss"] < results["log_loss_constant"]


def test_json_has_every_figure_that_fits_the_task(frames, tmp_path, capsys):
    events, labels = write(frames[0], tmp_path / "v.ndjson"), write(frames[1], tmp_path / "s.ndjson")
    (tmp_path / "p.py").write_text(
        "from headrace import *\nfrom headrace.models import *\nimport msgspec\n"
        "class Visit(msgspec.Struct):\n    id: str\n    time: float\n    price: float | None\n"
        "class Sale(msgspec.Struct):\n    id: str\n    time: float\n    sold: bool\n"
        "pipeline = Pipeline(name='p', events=Events('v', Visit, key='id', time='time', unit='s'),\n"
        "    labels=Labels('s', Sale, key='id', time='time', unit='s', value='sold', within='1h'),\n"
        "    features=[numeric('price')], model=LogisticRegression(), predictions=Predictions('o'))\n"
    )
    assert evaluate_report.run(str(tmp_path / "p.py"), events, labels, json=True) == 0
    results = json.loads(capsys.readouterr().out)
    binary = {"log_loss", "log_loss_constant", "log_loss_prior", "auc", "accuracy", "accuracy_majority"}
    binary.add("accuracy_no_change")
    assert results.keys() >= {"events", "labels", "events_per_second"} | binary
    assert all(results[name] is not None for name in binary)


def test_regression_has_the_figures_of_regression(frames, tmp_path):
    visits, _ = frames
    results = evaluate_files(now(), write(visits, tmp_path / "v.parquet"), None).results
    known = 1_000 - visits["price"].null_count()
    assert (results["events"], results["labels"], results["examples"]) == (1_000, known, known)
    baselines = ("constant", "running_mean", "no_change")
    for name in ("mae", "rmse", *(f"{error}_{name}" for error in ("mae", "rmse") for name in baselines)):
        assert results[name] > 0


def test_pipeline_without_labels_only_predicts(frames, tmp_path):
    results = evaluate_files(
        later(labels=None, features=[numeric("price")]), write(frames[0], tmp_path / "v.csv"), None
    )
    assert results.results["predictions"] == 1_000
    assert results.results["examples"] == 0


def test_bad_rows_are_counted_and_the_first_ones_kept(frames, tmp_path):
    visits, sales = frames
    lines = write(visits, tmp_path / "v.ndjson").read_text().splitlines()
    lines[10] = "no JSON"
    lines[20] = lines[20].replace('"pages":', '"pages":"many","page":')
    lines.insert(5, "")  # an empty line is no record, but a line
    (tmp_path / "v.ndjson").write_text("\n".join(lines))
    done = evaluate_files(later(), tmp_path / "v.ndjson", write(sales, tmp_path / "s.ndjson"))
    assert (done.results["events"], done.results["dead_letters"], done.results["bad_events"]) == (998, 2, 2)
    assert [(letter.record.offset, letter.path) for letter in done.dead] == [(11, ""), (21, "$.pages")]
    assert done.results["orphans"] == 2 - (2 - sum(sales["id"].is_in(["v10", "v20"])))

    text = visits.with_columns(pages=pl.when(pl.col("id") == "v7").then(pl.lit("many")).otherwise(pl.col("pages")))
    done = evaluate_files(later(), write(text, tmp_path / "v.csv"), tmp_path / "s.ndjson")
    assert [(letter.record.offset, letter.path) for letter in done.dead] == [(7, "$.pages")]


def test_file_that_is_nearly_all_bad_is_refused(tmp_path):
    (tmp_path / "v.ndjson").write_text("\n".join(["nonsense"] * 3_000))
    (tmp_path / "s.ndjson").write_text("")
    with pytest.raises(InputError, match="of the last 1,000 records were bad"):
        evaluate_files(later(), tmp_path / "v.ndjson", tmp_path / "s.ndjson")


@pytest.mark.parametrize("format", FORMATS)
def test_missing_column_is_named(frames, tmp_path, format):
    visits, sales = frames
    events = write(visits.drop("site"), tmp_path / f"v.{format}")
    labels = write(sales, tmp_path / "s.ndjson")
    with pytest.raises(InputError, match="`site`"):
        evaluate_files(later(), events, labels)


def test_missing_column_of_a_frame_is_named_with_those_that_are_there(frames):
    visits, sales = frames
    with pytest.raises(InputError, match=r"events: no column `site`, which Visit requires; there are: id, time, pages"):
        later().evaluate(visits.drop("site"), sales)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("nowhere.ndjson", None, "nowhere.ndjson: no such file"),
        ("visits.xlsx", b"", "expected a file that ends in .ndjson"),
        ("visits", b"", "expected a file that ends in .ndjson"),
        ("visits.parquet", b"not parquet", "visits.parquet: cannot be read"),
        ("visits.ndjson.gz", b"not gzip", "visits.ndjson.gz: cannot be read"),
        ("visits.ndjson.gz", gzip.compress(b"{}\n" * 1_000, mtime=0)[:20], "visits.ndjson.gz: cannot be read"),
        ("visits.csv.gz", gzip.compress(b"a,b\n" * 1_000, mtime=0)[:20], "visits.csv.gz: cannot be read"),
        ("visits.csv", b"", "visits.csv: cannot be read"),
    ],
)
def test_file_that_cannot_be_read_is_named(frames, tmp_path, file, content, words):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        evaluate_files(later(), tmp_path / file, write(frames[1], tmp_path / "s.ndjson"))


def test_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "v.ndjson").mkdir()
    with pytest.raises(InputError, match=r"v\.ndjson: cannot be read: Is a directory"):
        evaluate_files(now(), tmp_path / "v.ndjson", None)


def test_labels_that_are_missing_or_not_wanted_are_told(frames):
    visits, sales = frames
    with pytest.raises(InputError, match="reads its labels from a topic of their own: give --labels FILE too"):
        later().evaluate(visits)
    with pytest.raises(InputError, match="has no labels topic: leave --labels away"):
        now().evaluate(visits, sales)


def test_report_says_what_is_odd_about_labels(frames, tmp_path, capsys):
    visits, sales = frames
    strangers = sales.with_columns(("x" + pl.col("id")).alias("id"))
    waits = dataclasses.replace(later().labels, otherwise=False)
    Console(width=200).print(evaluate_report.report(later(labels=waits).evaluate(visits, strangers)))
    printed = capsys.readouterr().out
    assert f"orphans {len(sales):,} labels whose key no event had" in " ".join(printed.split())
    assert "-0.0000" not in printed  # of labels that are all the same the best constant has a loss of 0
    file = tmp_path / "p.py"
    file.write_text(
        "from headrace import *\nfrom headrace.models import *\nimport msgspec\n"
        "class Visit(msgspec.Struct):\n    id: str\n    site: str\n    time: float\n"
        "pipeline = Pipeline(name='p', events=Events('v', Visit, key='id', time='time', unit='s'),\n"
        "    labels=Labels(value='site', classes=['A', 'B']), features=[numeric('time')],\n"
        "    model=Prior(), predictions=Predictions('o'))\n"
    )
    assert evaluate_report.run(str(file), write(visits, tmp_path / "v.ndjson"), None, json=False) == 0
    assert f"unusable {len(visits):,} labels that name no class" in " ".join(capsys.readouterr().out.split())


def test_report_shows_figures_baselines_and_dead_letters(frames, tmp_path, capsys):
    visits, _ = frames
    lines = write(visits, tmp_path / "v.ndjson").read_text().splitlines()
    lines[10] = "no JSON"
    (tmp_path / "v.ndjson").write_text("\n".join(lines))
    (tmp_path / "p.py").write_text(
        "from headrace import *\nfrom headrace.models import *\nimport msgspec\n"
        "class Visit(msgspec.Struct):\n    id: str\n    pages: int\n    time: float\n"
        "pipeline = Pipeline(name='p', events=Events('v', Visit, key='id', time='time', unit='s'),\n"
        "    labels=Labels(value='pages', task='regression'), features=[numeric('time')],\n"
        "    model=StandardScaler() | LinearRegression(), predictions=Predictions('o'))\n"
    )
    assert evaluate_report.run(str(tmp_path / "p.py"), tmp_path / "v.ndjson", None, json=False) == 0
    printed = capsys.readouterr().out
    for words in (
        "999",
        "mean absolute error",
        "the median, in hindsight",
        "the mean so far",
        "the label before",
        "baseline",
        "bad record: events line 11: not valid JSON",
        "events per second",
    ):
        assert words in printed
