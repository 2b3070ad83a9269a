"""Kernels that are kept compiled are those of the sources as they stand."""

import subprocess
import sys

KERNEL = "from headrace.models.compiling import kernel\n"
SOURCES = {
    "__init__": "",
    "numbers": "STEP = 1.0\n",
    "helpers": KERNEL + "from .numbers import STEP\n\n@kernel\ndef raised(x):\n    return x + STEP\n",
    "callers": KERNEL + "from .helpers import raised\n\n@kernel\ndef twice(x):\n    return raised(raised(x))\n",
    "others": KERNEL + "\n@kernel\ndef half(x):\n    return 0.5 * x\n",
}
CALLS = """
from kept.callers import twice
from kept.others import half
for function in twice, half:
    print(function(1.0), sum(function.stats.cache_hits.values()))
"""


def called(folder):
    """What both kernels return in a new process, and whether they were kept."""
    told = subprocess.run([sys.executable, "-c", CALLS], cwd=folder, capture_output=True, text=True, check=True)
    return [tuple(map(float, line.split())) for line in told.stdout.splitlines()]


def test_kernel_is_compiled_anew_when_a_file_has_changed_from_which_it_draws_by_way_of_another(tmp_path):
    package = tmp_path / "kept"
    package.mkdir()
    for name, text in SOURCES.items():
        (package / f"{name}.py").write_text(text)
    assert called(tmp_path) == [(3.0, 0), (0.5, 0)]
    (package / "numbers.py").write_text("STEP = 10.0\n")
    assert called(tmp_path) == [(21.0, 0), (0.5, 1)]
