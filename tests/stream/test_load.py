"""Loading a user's pipeline file: what is taken from it, and what a user is told when that fails."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from headrace import DeclarationError, InputError
from headrace.stream.check import check
from headrace.stream.load import load_pipeline

GOOD = """
import msgspec
import polars as pl
from headrace import Events, Labels, Pipeline, Predictions, count, mean, numeric
from headrace.models import LogisticRegression, StandardScaler


class Click(msgspec.Struct):
    user: str
    time: float
    price: float


class Buy(msgspec.Struct):
    user: str
    amount: float


def declare(name, feature=numeric("price")):
    return Pipeline(
        name=name,
        events=Events("clicks", Click, key="user", time="time", unit="s"),
        labels=Labels("buys", Buy, key="user", value=pl.col("amount") > 0, within="2h", otherwise=False),
        features=[feature, count(by="user", over="1h"), mean("label", by="user", half_life="1d")],
        model=StandardScaler() | LogisticRegression(),
        predictions=Predictions("buyers"),
    )
"""


@pytest.fixture(autouse=True)
def unchanged_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Loading a file changes sys.path and sys.modules for good, as a worker needs it; a test must not."""
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(text: str, name: str = "clicks.py", folder: Path | None = None) -> str:
    path = (folder or Path()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return str(path)


def test_only_pipeline_of_a_file_is_found_under_any_name() -> None:
    assert load_pipeline(write(GOOD + 'anything = declare("ctr")\nagain = anything')).name == "ctr"


def test_pipeline_is_chosen_by_name_where_there_are_several() -> None:
    file = write(GOOD + 'a = declare("first")\nb = declare("second")')
    assert load_pipeline(f"{file}:b").name == "second"
    with pytest.raises(InputError, match=r"clicks.py declares 2 pipelines; say which: clicks.py:a, clicks.py:b"):
        load_pipeline(file)


def test_file_may_have_any_name_and_lie_anywhere(tmp_path: Path) -> None:
    file = write(GOOD + 'p = declare("ctr")', "my-models v2.py", tmp_path / "some folder")
    assert load_pipeline(file).name == "ctr"
    assert load_pipeline(f"{file}:p").name == "ctr"


def test_types_are_found_in_a_file_with_postponed_annotations() -> None:
    file = write("from __future__ import annotations\n" + GOOD + 'p = declare("ctr")')
    assert load_pipeline(file).numeric[0] == "price"


def test_modules_beside_the_file_are_the_users_own_whatever_their_names(tmp_path: Path) -> None:
    """In a process of its own: what a test before has imported must not decide."""
    names = ["models", "connectors", "stream", "examples", "features"]
    for name in names:
        write("from headrace import numeric\nmine = numeric('price', name=__name__)", f"{name}.py", tmp_path / "user")
    ours = "".join(f"from {name} import mine as {name}\n" for name in names)
    file = write(GOOD + ours + 'p = declare("ctr", models)', folder=tmp_path / "user")
    script = f"from headrace.stream.load import load_pipeline; print(load_pipeline({file!r}).numeric[0])"
    repository = Path(__file__).parents[2]  # where folders of those names lie
    ran = subprocess.run([sys.executable, "-c", script], cwd=repository, capture_output=True, text=True, timeout=100)
    assert ran.stdout == "models\n", ran.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nothing.py", "there is no file nothing.py; paths are taken from"),
        ("click.py", "there is no file click.py; did you mean `clicks.py`?"),
        ("clicks", "there is no file clicks; did you mean `clicks.py`?"),
        ("nowhere/at/all.py", "there is no file nowhere/at/all.py"),
        ("folder", "folder is a folder; give the pipeline file, such as folder/one.py"),
        ("notes.txt", "notes.txt: expected a Python file, one that ends in .py"),
        ("clicks.py:", "expected the name of a pipeline after the colon, got ''"),
        ("clicks.py:a-b", "expected the name of a pipeline after the colon, got 'a-b'"),
        ("clicks.py:pipelin", "clicks.py declares no pipeline `pipelin`; did you mean `pipeline`?"),
        ("clicks.py:zzz", "clicks.py declares no pipeline `zzz`; it has `pipeline`"),
        ("clicks.py:Click", "clicks.py: `Click` is a StructMeta, not a Pipeline"),
    ],
)
def test_target_that_leads_nowhere_is_explained(target: str, words: str, tmp_path: Path) -> None:
    write(GOOD + 'pipeline = declare("ctr")')
    write("", "notes.txt")
    write("", "one.py", tmp_path / "folder")
    with pytest.raises(InputError) as caught:
        load_pipeline(target)
    assert words in str(caught.value)


BROKEN = {
    "def f(:\n    pass": "clicks.py:1: invalid syntax\n    def f(:",
    "x = (1,\ny = 2": "clicks.py:1: '(' was never closed",
    "x = 1": "clicks.py declares no pipeline; expected a line such as: pipeline = Pipeline(",
    "import sys\nsys.exit(3)": 'clicks.py:2: the file ends the program; put that under `if __name__ == "__main__":`',
    "x = 1\ny = x / 0": "clicks.py:2: ZeroDivisionError: division by zero\n    y = x / 0",
    "raise KeyError": "clicks.py:1: KeyError\n    raise KeyError",
    "def f():\n    return {}['a']\n\nx = f()": (
        "clicks.py:2: KeyError: 'a'\n    return {}['a']\n  called from\n    <module> at clicks.py:4: x = f()"
    ),
    "import nosuchmodule": "ModuleNotFoundError: No module named 'nosuchmodule'; it must lie beside the file",
    "from headrace import Pipelin": "did you mean `Pipeline`?",
    "from headrace.models import LogisticRegresion": "did you mean `LogisticRegression`?",
    "sum('price', by='user', over='1h')": "this is Python's own sum: add `from headrace import sum`",
    "max('price', by='user', over='1h')": "this is Python's own max: add `from headrace import max`",
    "from headrace import mean\n\nmean('price', over='1h', every='5s')": (
        "clicks.py:3: TypeError: mean() got an unexpected keyword argument 'every'"
    ),
    "from headrace import max\n\nmax('price', by='user', half_life='1h')": (
        "clicks.py:3: TypeError: max() got an unexpected keyword argument 'half_life'; it takes value, by, over, "
        "capacity, name\n    max("
    ),
    "from helper import x": "helper.py:2: ZeroDivisionError",
    "import broken": "broken.py:1: invalid syntax",
}


@pytest.mark.parametrize("source", BROKEN, ids=[source.replace("\n", "; ") for source in BROKEN])
def test_file_that_raises_is_blamed_on_its_own_line(source: str) -> None:
    file = write(source)
    write("y = 0\nx = 1 / y", "helper.py")
    write("x = = 1", "broken.py")
    with pytest.raises(InputError) as caught:
        load_pipeline(file)
    text = str(caught.value)
    assert BROKEN[source] in text
    assert "importlib" not in text


def test_wrong_declaration_is_blamed_on_the_line_that_made_it() -> None:
    file = write(GOOD + 'pipeline = declare("ctr", numeric("prise"))')
    line = next(i for i, text in enumerate(GOOD.splitlines(), 1) if "return Pipeline(" in text)
    with pytest.raises(DeclarationError) as caught:
        load_pipeline(file)
    assert str(caught.value) == (
        f"clicks.py:{line}: pipeline 'ctr': features[0] numeric(\"prise\"): "
        "Click has no field `prise`; did you mean `price`?"
    )


def test_file_that_is_not_text_is_refused() -> None:
    Path("clicks.py").write_bytes(b"x = '\xff\xfe'")
    with pytest.raises(InputError, match=r"clicks.py"):
        load_pipeline("clicks.py")


def test_file_that_failed_can_be_mended_and_loaded_again() -> None:
    file = write("x = 1 / 0")
    with pytest.raises(InputError):
        load_pipeline(file)
    write(GOOD + 'pipeline = declare("ctr")')
    assert load_pipeline(file).name == "ctr"


# --- headrace check


def test_check_prints_what_the_pipeline_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(write(GOOD + 'pipeline = declare("ctr")')) == 0
    printed = capsys.readouterr().out
    for words in [
        "ctr: declared well",
        "clicks", "Click, 3 fields; key `user`; time `time` in seconds; a new group begins at the oldest record",
        "buys", "Buy, 2 fields; key `user`; time the record's timestamp",
        'col("amount") > 0', "binary", "2h from the event's time; then the event is learned as False",
        "count_by_user_1h", "count by user, window of 1h; moves with each event; 100,000 keys",
        "mean_label_by_user_half_life_1d", "mean of the label by user, half-life of 1d; moves with each label",
        "StandardScaler", "LogisticRegression", "one example after another",
        "buyers", "buyers.dead-letters", "ctr.journal", "exactly once", "every 5s, 10 kept",
        "rate x wait x", "1,000 events/s that wait 2h take",
    ]:  # fmt: skip
        assert words in printed
    assert max(map(len, printed.splitlines())) < 200
    assert all(line == line.rstrip() for line in printed.splitlines())


def test_check_of_a_label_in_the_event_and_of_none(capsys: pytest.CaptureFixture[str]) -> None:
    source = GOOD.replace('"label", by="user", half', '"price", by="user", half')
    inside = source.replace(
        '"buys", Buy, key="user", value=pl.col("amount") > 0, within="2h", otherwise=False', 'value=pl.col("time") > 0'
    )
    check(write(inside + 'pipeline = declare("ctr")', "inside.py"))
    assert "none: the label is in the event" in capsys.readouterr().out
    without = "\n".join(line for line in source.splitlines() if "labels=" not in line)
    check(write(without + '\npipeline = declare("ctr")', "without.py"))
    printed = capsys.readouterr().out
    assert "predicts and does not learn" in printed
    assert "rate x wait" not in printed
