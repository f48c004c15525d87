"""Rows that Python writes: a generator function of the user's, or one of the package's synthetic skills."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from multitune.errors import MultituneError, nearest
from multitune.tasks.bad_rows import BadRow
from multitune.tasks.files import Row

PACKAGED = {"synthetic": "multitune.tasks.synthetic", "gpt3": "multitune.tasks.gpt3"}
"""Modules of the package whose ``generate`` takes what follows the colon as its first argument."""


def read_generator(name: str, arguments: Mapping[str, Any], folder: Path) -> Iterator[Row]:
    """Yield (place, row) from a generator; the place is its own id, or ":row 12" where it gives none.

    Args:
        name: "synthetic:SKILL", "gpt3:TASK", or "package.module:function" of a generator function that yields mappings.
        arguments: its keyword arguments.
        folder: a module beside the recipe is found here first.

    Raises:
        MultituneError: there is no such function, it does not take the arguments, or it raises.
    """
    function = _function(name, folder)
    packaged, _, item = name.partition(":")
    first = [item] if packaged in PACKAGED else []
    # files that its arguments name lie beside the recipe
    own_arguments = {"folder": folder} if packaged == "gpt3" else {}
    try:
        inspect.signature(function).bind(*first, **own_arguments, **arguments)
    except TypeError as error:
        raise MultituneError(
            f"The generator does not take these arguments: {error}.",
            f"generator '{name}'",
            f"It is called as {function.__name__}{inspect.signature(function)}.",
        ) from error
    number = 0
    try:
        for number, fields in enumerate(function(*first, **own_arguments, **arguments), start=1):
            if not isinstance(fields, Mapping):
                yield f":row {number}", BadRow(f"the generator yielded {type(fields).__name__}, not a mapping")
            else:
                place = str(fields["id"]) if "id" in fields else f"{name}:row {number}"
                yield place, dict(fields)
    except MultituneError:
        raise
    except Exception as error:
        raise MultituneError(
            f"The generator failed after {number} rows: {type(error).__name__}: {error}",
            f"generator '{name}'",
            "Mend it; --debug shows where it failed.",
        ) from error


def generator_code(name: str, arguments: Mapping[str, Any], folder: Path) -> list[Path]:
    """The files that decide what a generator yields: its module's, those of all skills, and a list of words.

    What the module imports in turn is not followed.
    """
    packaged = name.partition(":")[0]
    if packaged in PACKAGED:
        skills = importlib.import_module(PACKAGED["synthetic"])
        code = sorted(Path(str(skills.__file__)).parent.glob("*.py"))
        if packaged == "synthetic":
            return code
        module = importlib.import_module(PACKAGED[packaged])
        listed = folder / str(arguments.get("words") or "")
        return [*code, Path(str(module.__file__)), *([listed] if listed.is_file() else [])]
    source = inspect.getsourcefile(_function(name, folder))
    return [Path(source)] if source else []


def _function(name: str, folder: Path) -> Callable[..., Iterator[Any]]:
    module_name, _, function_name = name.partition(":")
    if module_name in PACKAGED:
        generate: Callable[..., Iterator[Any]] = importlib.import_module(PACKAGED[module_name]).generate
        return generate
    if not module_name or not function_name:
        raise MultituneError(
            f"'{name}' names no generator.", "generator", "Write package.module:function, synthetic:SKILL or gpt3:TASK."
        )
    module = _module(module_name, folder, name)
    function = vars(module).get(function_name)
    if function is None:
        functions = [key for key, value in vars(module).items() if inspect.isgeneratorfunction(value)]
        raise MultituneError(
            f"The module {module_name} has no function '{function_name}'.{nearest(function_name, functions)}",
            f"generator '{name}'",
            f"Its generators are: {', '.join(functions) or 'none'}.",
        )
    # Nothing else is called: a recipe must not be a way to run any function there is.
    if not inspect.isgeneratorfunction(function):
        raise MultituneError(
            f"'{function_name}' is not a generator function.", f"generator '{name}'", "Let it yield its rows."
        )
    return function


def _module(module_name: str, folder: Path, name: str) -> ModuleType:
    """Import what the user names: a file beside the recipe, else an installed module."""
    path = (folder / Path(*module_name.split("."))).with_suffix(".py").resolve()
    try:
        return _module_of_file(path) if path.is_file() else importlib.import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name in (module_name, module_name.partition(".")[0])
        what = f"There is no module '{module_name}'." if absent else f"The module '{module_name}' fails: {error!r}"
        raise MultituneError(
            what, f"generator '{name}'", f"Install it, or put {path.name} into {path.parent}."
        ) from error


def _module_of_file(path: Path) -> ModuleType:
    """The module of a file under a name that holds its path: equal names in two folders stay apart."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()
    unique = f"_multitune_generator_{digest[:16]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    sys.path.append(str(path.parent))  # for what it imports from beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module
