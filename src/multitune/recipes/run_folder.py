"""The folder of a run: what lies where, whole files only, one run at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from multitune.errors import MultituneError
from multitune.recipes.schema import Recipe

WRITING_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
"""What the operating system says when a file cannot be written."""

_OWN = ("recipe.yaml", "run.json", "scoreboard.parquet", "report.html", "steps", "sweep.json", "nodes", "variants")


_BEGINNINGS = {"recipe.yaml", "run.json", "sweep.json", "begun.json", ".lock"}
"""Files that stand before anything is trained or scored."""


class RunFolder:
    """Paths of a run and the few ways in which its files are written.

    Layout: ``recipe.yaml`` (as resolved), ``run.json``, ``scoreboard.parquet``, ``report.html`` and, per node,
    ``steps/<node>/`` with ``log.jsonl``, ``checkpoints/``, ``model/``, ``artifact.json`` (last), ``predictions/`` and
    ``scores.json`` (last).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scoreboard = path / "scoreboard.parquet"

    def node(self, name: str) -> Path:
        """Return the folder of a node; "<model>@score" shares the folder of the model it scores."""
        return self.path / "steps" / name.removesuffix("@score")

    def prepare(self, recipe: Recipe, command: str, *, fresh: bool) -> None:
        """Make the folder ready: refuse one that is no run, empty it when ``fresh``, write recipe and facts.

        Raises:
            MultituneError: the folder holds something else, or cannot be written.
        """
        refuse_strangers(self.path)
        if fresh:
            empty(self.path)
        if (self.path / "sweep.json").exists():
            raise MultituneError(
                "The folder holds a sweep, and the recipe has none.",
                str(self.path),
                "Choose another folder with --out, or forget the sweep with --fresh.",
            )
        write_whole(self.path / "recipe.yaml", resolved_text(recipe))
        begin_facts(self.path, {"name": recipe.name, "seed": recipe.seed}, command)

    def record(self, recipe: Recipe, command: str, seconds: float) -> None:
        """Write run.json anew after an invocation that did something: its command, and the time of all of them."""
        record_facts(self.path, {"name": recipe.name, "seed": recipe.seed}, command, seconds)


def begin_facts(folder: Path, whose: dict[str, Any], command: str) -> None:
    """Write run.json if there is none."""
    if not (folder / "run.json").exists():
        write_whole(folder / "run.json", json.dumps(_facts(whose, command), indent=2) + "\n")


def record_facts(folder: Path, whose: dict[str, Any], command: str, seconds: float) -> None:
    """Write run.json anew: begun when it was, with the seconds added, the rest as it is now."""
    before = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    facts = _facts(whose, command)
    facts["started"] = before["started"]
    facts["seconds"] = round(before.get("seconds", 0.0) + seconds, 2)
    facts["machine"]["accelerator"] = accelerator()
    write_whole(folder / "run.json", json.dumps(facts, indent=2) + "\n")


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder that holds something and is no run.

    Raises:
        MultituneError: naming what it holds.
    """
    if not folder.exists() or (folder / "run.json").exists():
        return
    if strangers := sorted(path.name for path in folder.iterdir() if path.name != ".lock"):
        raise MultituneError(
            f"The folder is no run: it holds {', '.join(strangers[:3])}.",
            str(folder),
            "Choose another folder with --out.",
        )


def empty(folder: Path) -> None:
    """Remove everything that a run or a sweep writes, and nothing else."""
    for name in _OWN:
        remove(folder / name)


@contextmanager
def locked_and_clean(folder: Path) -> Iterator[int]:
    """Hold a run folder as `locked` does; leave a new one as it was found when the run is refused.

    A folder that holds more than what every run begins with (a log, a checkpoint, scores) stays as it is.
    """
    existed = folder.exists()
    new = not existed or (folder.is_dir() and not any(folder.iterdir()))
    with locked(folder) as lock, _emptied_if_refused(folder, new=new, existed=existed):
        yield lock


@contextmanager
def _emptied_if_refused(folder: Path, *, new: bool, existed: bool) -> Iterator[None]:
    try:
        yield
    except MultituneError:
        if new and folder.is_dir() and {path.name for path in folder.rglob("*") if path.is_file()} <= _BEGINNINGS:
            empty(folder)
            remove(folder / ".lock")
            if not existed:
                folder.rmdir()
        raise


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a run folder for this process; give the lock's file descriptor, which child processes may hold on to.

    Raises:
        MultituneError: the folder cannot be made or written, or another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise MultituneError(
            f"The run folder cannot be written: {error.strerror}.", str(folder), "Choose another one with --out."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MultituneError(
                "Another run is writing this folder.", str(folder), "Wait for it, or choose another --out."
            ) from error
        yield lock.fileno()


def resolved_text(recipe: Recipe) -> str:
    """Return the recipe with every default as YAML, its paths absolute, so that it can be run from where it lies."""
    resolved = recipe.model_dump(mode="json", exclude_none=True, exclude={"data_folder"})
    for name, task in recipe.tasks.items():
        for split in ("train", "validation", "test"):
            source = task.source(split)
            if source is not None and source.path is not None:
                resolved["tasks"][name][split]["path"] = str(recipe.folder / Path(source.path).expanduser())
    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def read_finished(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return what a finished node wrote of itself, None when it is absent, damaged or of other inputs."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("fingerprint") == fingerprint else None


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is whole or absent.

    Raises:
        MultituneError: no space, or no right to write.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise disk_error(error, path) from error


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it is there; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def disk_error(error: OSError, path: Path) -> MultituneError:
    """Translate an error of the file system into what to do about it."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(existing).free / 2**20
        return MultituneError(
            f"The disk is full ({free:.0f} MiB free).", str(path), "Free some space and run the same command again."
        )
    return MultituneError(
        f"The file cannot be written: {error.strerror or error}.", str(path), "Make the folder writable."
    )


def _facts(whose: dict[str, Any], command: str) -> dict[str, Any]:
    return {
        **whose,
        "command": command or " ".join(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Return what may matter of this machine: nothing that names it."""
    return {
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }


def accelerator() -> str:
    """Return the GPU's name, or "none"; loads torch."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide results, as far as they are installed."""
    found = {}
    for package in ("multitune", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
