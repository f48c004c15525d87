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

_OWN = ("recipe.yaml", "run.json", "scoreboard.parquet", "report.html", "steps")


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
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / "run.json").exists():
            strangers = [p.name for p in self.path.iterdir() if p.name != ".lock"]
            if strangers:
                raise MultituneError(
                    f"The folder is no run: it holds {', '.join(sorted(strangers)[:3])}.",
                    str(self.path),
                    "Choose another folder with --out.",
                )
        if fresh:
            for name in _OWN:
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_whole(self.path / "recipe.yaml", resolved_text(recipe))
        if not (self.path / "run.json").exists():
            write_whole(self.path / "run.json", json.dumps(_facts(recipe, command), indent=2) + "\n")

    def record(self, recipe: Recipe, command: str, seconds: float) -> None:
        """Write run.json anew after an invocation that did something: its command, and the time of all of them."""
        before = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        facts = _facts(recipe, command)
        facts["started"] = before["started"]
        facts["seconds"] = round(before.get("seconds", 0.0) + seconds, 2)
        facts["machine"]["accelerator"] = accelerator()
        write_whole(self.path / "run.json", json.dumps(facts, indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            MultituneError: the folder cannot be made or written, or another run holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise MultituneError(
                f"The run folder cannot be written: {error.strerror}.", str(self.path), "Choose another one with --out."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MultituneError(
                    "Another run is writing this folder.", str(self.path), "Wait for it, or choose another --out."
                ) from error
            yield


def resolved_text(recipe: Recipe) -> str:
    """Return the recipe with every default as YAML, its paths absolute, so that it can be run from where it lies."""
    resolved = recipe.model_dump(mode="json", exclude_none=True)
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


def _facts(recipe: Recipe, command: str) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "seed": recipe.seed,
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
