"""Kernels that are kept compiled are those of the sources as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

NJIT = "from headrace.jit import njit\n"
SOURCES = {
    "__init__": "",
    "below/__init__": "",
    "below/numbers": "STEP = 1.0\n",
    "below/places": "from . import (\n    numbers,\n)\n\nSTEP = numbers.STEP\n",
    "helpers": NJIT + "from .below.places import STEP\n\n@njit(cache=True)\ndef raised(x):\n    return x + STEP\n",
    "above/__init__": "",
    "above/callers": NJIT + "from ..helpers import raised\n\n@njit(cache=True)\ndef twice(x):\n    return raised(raised(x))\n",
    "above/others": NJIT + "\n@njit(cache=True)\ndef half(x):\n    return 0.5 * x\n",
}  # fmt: skip
CALLS = """
from kept.above.callers import twice
from kept.above.others import half
for function in twice, half:
    print(function(1.0), sum(function.stats.cache_hits.values()))
"""


def called(folder):
    """What both kernels return in a new process, and whether they were kept."""
    told = subprocess.run([sys.executable, "-c", CALLS], cwd=folder, capture_output=True, text=True, check=True)
    return [tuple(map(float, line.split())) for line in told.stdout.splitlines()]


@pytest.mark.parametrize(
    ("changed", "text", "raised"),
    [
        ("below/numbers", "STEP = 10.0\n", 21.0),
        ("helpers", SOURCES["helpers"].replace("x + STEP", "x - STEP"), -1.0),
        ("above/callers", SOURCES["above/callers"].replace("raised(raised(x))", "3.0 * raised(x)"), 6.0),
    ],
)
def test_kernel_is_compiled_anew_when_a_file_has_changed_from_which_it_draws(tmp_path, changed, text, raised):
    for name, source in SOURCES.items():
        file = tmp_path / "kept" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    assert called(tmp_path) == [(3.0, 0), (0.5, 0)]
    assert called(tmp_path) == [(3.0, 1), (0.5, 1)]
    (tmp_path / "kept" / f"{changed}.py").write_text(text)
    assert called(tmp_path) == [(raised, 0), (0.5, 1)]


def test_every_kernel_of_headrace_is_compiled_so():
    """Numba's own decorator would keep it as it was."""
    files = [file for folder in headrace.__path__ for file in Path(folder).glob("*/*.py")]
    assert len(files) > 150
    own = re.compile(r"^(from numba import [^\n]*\bn?jit\b|.*\bnumba\.(n?jit|vectorize|guvectorize)\b)", re.MULTILINE)
    assert [file.name for file in files if own.search(file.read_text())] == []
