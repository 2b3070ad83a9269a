"""The page about linear models shows what works."""

import re
import runpy
from pathlib import Path

from headrace.models import build

PAGE = (Path(__file__).parents[2] / "docs" / "learners" / "linear.md").read_text()


def test_pipeline_shown_is_declared_well(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shown.py").write_text(snippet)
    pipeline = runpy.run_path(str(tmp_path / "shown.py"))["pipeline"]
    assert pipeline.spec.task == "binary"
    assert build(pipeline.model.config()).learner.class_weight == [1.0, 5.0]
