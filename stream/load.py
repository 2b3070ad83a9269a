"""Loads the pipeline out of a user's file, for the command line."""

from __future__ import annotations

import hashlib
import inspect
import linecache
import re
import sys
import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from ..errors import DeclarationError, HeadraceError, InputError
from ..models.base import NEEDS_TORCH
from .declaration import Pipeline
from .expressions import did_you_mean

PIPELINE_MODULE = "headrace_pipeline_"  # begins the names that pipeline files have as modules
OURS = ("headrace", "headrace.models")  # what a pipeline file imports
PACKAGE = Path(__file__).resolve().parent.parent


def load_pipeline(target: str) -> Pipeline:
    """The pipeline in a file, "flights.py", or the one of that name in it, "flights.py:nightly".

    The file's folder comes first on sys.path from then on, so that what lies beside the file can be imported.
    Raises InputError when there is no such file or it holds no such pipeline, and DeclarationError when the pipeline is
    declared wrongly; both name the line of the user's file that is to blame.
    """
    path, name = _split(target)
    module = _run(path)
    pipelines = {n: value for n, value in vars(module).items() if isinstance(value, Pipeline)}
    if name is not None:
        return _named(name, path, module, pipelines)
    if not pipelines:
        raise InputError(f"{path} declares no pipeline; expected a line such as: pipeline = Pipeline(name=..., ...)")
    if len({id(p) for p in pipelines.values()}) > 1:
        choices = ", ".join(f"{path}:{n}" for n in pipelines)
        raise InputError(f"{path} declares {len(pipelines)} pipelines; say which: {choices}")
    return next(iter(pipelines.values()))


def _named(name: str, path: Path, module: ModuleType, pipelines: dict[str, Pipeline]) -> Pipeline:
    if name in pipelines:
        return pipelines[name]
    if hasattr(module, name):
        raise InputError(f"{path}: `{name}` is a {type(getattr(module, name)).__name__}, not a Pipeline")
    has = did_you_mean(name, pipelines) or (f"; it has {', '.join(f'`{n}`' for n in pipelines)}" if pipelines else "")
    raise InputError(f"{path} declares no pipeline `{name}`{has}")


def _split(target: str) -> tuple[Path, str | None]:
    """FILE[:name] as a path that exists, and the name."""
    text, colon, name = target.rpartition(":")
    if not colon or "/" in name or name.endswith(".py"):
        text, colon, name = target, "", ""
    path = Path(text)
    if colon and not name.isidentifier():
        raise InputError(f"{target}: expected the name of a pipeline after the colon, got {name!r}")
    if path.is_dir():
        inside = ", ".join(sorted(str(p) for p in path.glob("*.py"))[:5])
        raise InputError(f"{path} is a folder; give the pipeline file{f', such as {inside}' if inside else ''}")
    if not path.exists():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        guess = did_you_mean(path.name, beside) or f"; paths are taken from {Path.cwd()}"
        raise InputError(f"there is no file {path}{guess}")
    if path.suffix != ".py":
        raise InputError(f"{path}: expected a Python file, one that ends in .py")
    return path, name if colon else None


def _run(path: Path) -> ModuleType:
    """Run the file as a module of a name that clashes with no other."""
    file = path.resolve()
    folder = str(file.parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    name = f"{PIPELINE_MODULE}{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # msgspec looks up the annotations of the Structs there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise _blame(error, path, file) from None
    return module


def _blame(error: BaseException, path: Path, file: Path) -> HeadraceError:
    """The error that tells a user which of their lines is to blame."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = path if Path(error.filename).resolve() == file else error.filename
        text = (error.text or "").rstrip()
        return InputError(f"{where}:{error.lineno}: {error.msg}" + (f"\n    {text.strip()}" if text else ""))
    frames = [
        (str(path) if Path(frame.filename).resolve() == file else frame.filename, frame.lineno, frame.name)
        for frame in traceback.extract_tb(error.__traceback__)
        if _is_users(frame.filename, file.parent)
    ]
    at = f"{frames[-1][0]}:{frames[-1][1]}" if frames else str(path)
    if isinstance(error, HeadraceError):
        kind = DeclarationError if isinstance(error, DeclarationError) else InputError
        return kind(f"{at}: {error}")
    if isinstance(error, SystemExit):
        return InputError(f'{at}: the file ends the program; put that under `if __name__ == "__main__":`')
    if isinstance(error, UnicodeDecodeError) and not frames:
        return InputError(f"{path} is not UTF-8 text: {error}")
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    trace = "".join(f"\n    {name} at {where}:{line}: {_source(where, line)}" for where, line, name in frames[:-1])
    source = f"\n    {_source(*frames[-1][:2])}" if frames else ""
    called = f"\n  called from{trace}" if trace else ""
    return InputError(f"{at}: {said}{_hint(error)}{source}{called}")


def _is_users(filename: str, folder: Path) -> bool:
    if filename.startswith("<"):  # made by dataclasses, the import system, ...
        return False
    where = Path(filename).resolve()
    return where.is_relative_to(folder) and not where.is_relative_to(PACKAGE) and "site-packages" not in where.parts


def _source(where: str, line: int | None) -> str:
    linecache.checkcache(where)
    return linecache.getline(where, line or 0).strip()


def _public(module: str) -> list[str]:
    """The names that a module of ours is imported for."""
    return [*import_module(module).__all__, *(NEEDS_TORCH if module == "headrace.models" else ())]


def _where_it_is(name: str, module: str) -> str:
    """What to import in the place of a name that a module of ours does not have."""
    for other in OURS:
        if name in _public(other):
            return f"; it is in {other}"
    plain = {known.lower(): known for known in _public(module)}
    close = did_you_mean(name.lower(), plain)
    return close and f"; did you mean `{plain[close.split('`')[1]]}`?"


def _settings(name: str) -> list[str]:
    """What a public class or function of ours takes by name; nothing where there is no such name."""
    for module in OURS:
        if name in _public(module):
            parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
            return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return []


def _hint(error: BaseException) -> str:
    """What is to be done about the errors that a new user meets first."""
    text = str(error)
    builtin = re.search(r"(?:keyword argument for (sum|min|max)\(\)|(sum|min|max)\(\) takes (?:no|at most))", text)
    if isinstance(error, TypeError) and builtin:  # ours are Python functions: their errors are worded otherwise
        name = builtin[1] or builtin[2]
        return f"; this is Python's own {name}: add `from headrace import {name}`"
    unknown = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unknown:
        settings = _settings(unknown[1])
        return (did_you_mean(unknown[2], settings) or "; it takes " + ", ".join(settings)) if settings else ""
    if isinstance(error, ImportError) and error.name in OURS:
        wanted = re.search(r"cannot import name '(\w+)'", text)
        return _where_it_is(wanted[1], error.name) if wanted else ""
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("headrace"):
        return f"; it must lie beside the file, or be installed where headrace is ({sys.executable} -m pip install ...)"
    return ""
