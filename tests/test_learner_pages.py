"""The pages about learners: what they show runs as it stands there, and none of the public learners is left out."""

import ast
import re
import runpy
from itertools import chain
from pathlib import Path

import pytest

from headrace import Pipeline, models
from headrace.models.base import NEEDS_TORCH, REGISTRY
from headrace.stream.check import report

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs" / "learners").glob("*.md"))}
SHOWN = {  # those that stand by themselves: the others go on from one before, as `with SnapshotReader(pipeline, url)` does
    f"{name}, {i}": code
    for name, page in PAGES.items()
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    if re.search(r"^(from|import) ", code, re.MULTILINE)
}
LEARNERS = sorted(
    name
    for name, one in ((name, getattr(models, name)) for name in (*models.__all__, *NEEDS_TORCH))
    if name not in ("Chain", "Learner", "Explainer", "Detector", "DriftDetector", "Metrics")
    and (hasattr(one, "learn") or hasattr(one, "update") or (name in REGISTRY and name in ("DCN", "MLP", "DeepFM")))
)
OF_RIVER = {("ARFRegressor", "disable_weighted_vote")}  # settings that a page names as a difference


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_page_shows_runs_and_its_pipeline_can_be_checked(name, tmp_path, capsys):
    (tmp_path / "shown.py").write_text(SHOWN[name])
    made = runpy.run_path(str(tmp_path / "shown.py"))
    for pipeline in (one for one in made.values() if isinstance(one, Pipeline)):
        assert dict(report(pipeline)["writes"])[pipeline.predictions.topic].startswith("a prediction for each event")
    if "print(np.flatnonzero(fired))" in SHOWN[name]:
        assert capsys.readouterr().out == "[1023]\n"  # of values that change at 1,000: the next that ADWIN looks at


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_has_a_page_and_a_place_in_the_readme(name):
    pages = [page for page, text in PAGES.items() if f"`{name}" in text or f"{name}(" in text]
    table = (ROOT / "README.md").read_text().split("## Learners")[1].split("\n## ")[0]
    assert pages and re.search(rf"`[^`]*\b{name}\b[^`]*`", table)


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#\s]+\.(?:md|png))(?:#[^)]*)?\)", PAGES[name]):
        assert (ROOT / "docs" / "learners" / target).exists(), target
    assert name in (ROOT / "README.md").read_text()


def test_settings_named_on_the_pages_are_settings():
    """`FTRL(alpha, beta, l1, l2)` or `Blend(..., memory=50)`: names of settings, not of what is gone."""
    unknown = []
    for page, text in PAGES.items():
        ours = re.findall(r"`(\w+\([^`]*\))", text)
        for call in chain.from_iterable(map(_calls, ours)):
            one = getattr(models, call.func.id, None) if call.func.id in {*models.__all__, *NEEDS_TORCH} else None
            fields = getattr(one, "__dataclass_fields__", None)
            if fields:
                unknown += [(call.func.id, k.arg, page) for k in call.keywords if k.arg not in fields]
    assert {(name, setting) for name, setting, _ in unknown} == OF_RIVER, unknown


def _calls(text):
    try:
        tree = ast.parse(text.replace("=)", "=None)"))
    except SyntaxError:
        return []
    return [one for one in ast.walk(tree) if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)]
