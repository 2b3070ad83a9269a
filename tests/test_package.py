"""The package as it is imported and installed."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import headrace

SHOW_MODULES = "; import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


@pytest.mark.parametrize("statement", ["import headrace", "import headrace, headrace.models, headrace.errors"])
def test_models_need_neither_kafka_redis_faust_polars_nor_torch(statement: str) -> None:
    done = subprocess.run([sys.executable, "-c", statement + SHOW_MODULES], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "headrace" in loaded
    assert not loaded & {"faust", "mode", "aiokafka", "kafka", "redis", "polars", "msgspec", "torch", "typer", "rich"}


@pytest.mark.parametrize("name", headrace.__all__)
def test_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(headrace, name) is not None
    assert name in dir(headrace)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'headrace' has no attribute 'Pipline'"):
        headrace.Pipline  # noqa: B018


def test_python_m_headrace_is_headrace() -> None:
    command = Path(sys.executable).parent / "headrace"
    said = [
        subprocess.run([*start, "check", "no/such/file.py"], capture_output=True, text=True, check=False)
        for start in ([sys.executable, "-m", "headrace"], [str(command)])
    ]
    assert said[0].returncode == said[1].returncode == 1
    assert said[0].stderr == said[1].stderr != ""


def test_installed_version_is_the_version_of_the_code() -> None:
    assert version("headrace") == headrace.__version__


def test_types_are_announced_to_type_checkers() -> None:
    assert headrace.__file__ is not None
    assert (Path(headrace.__file__).parent / "py.typed").exists()
