"""Examples of a source as a stream, the files behind it, and the digest of its content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError, nearest
from multitune.tasks.bad_rows import BadRow, BadRows
from multitune.tasks.files import READERS, Row, read_file, reader_of, unknown_format
from multitune.tasks.generators import generator_code, read_generator
from multitune.tasks.hub import hub_label_names, hub_revision, read_hub, read_saved, saved_files, saved_label_names
from multitune.tasks.task import Example, Source

logger = logging.getLogger("multitune.tasks")


def read_examples(source: Source, folder: Path, bad_rows: BadRows | None = None) -> Iterator[Example]:
    """Yield the examples of a source one by one, in constant memory; nothing is read past ``source.rows``.

    Args:
        source: where the rows are; not a share of train, which `prompting.prompted_examples` cuts.
        folder: paths are relative to it.
        bad_rows: takes the rows that cannot be read (malformed JSON, bytes that are not UTF-8, a wrong number of
            columns). Without it the first of them is refused.

    Raises:
        MultituneError: a file is missing, unknown or damaged; a hub data set that cannot be reached; a generator that
            does not exist or fails; a bad row where there is no ``bad_rows``.
    """
    return islice(_examples(source, folder, bad_rows), source.rows)


def source_files(source: Source, folder: Path) -> list[Path]:
    """The files of a source in the order in which they are read; [] for hub data sets and generators.

    Raises:
        MultituneError: there is no such file, or none that can be read.
    """
    if source.path is None:
        return []
    path = _located(source.path, folder)
    if path.is_dir():
        return saved_files(path) or _files_in(path, source.path)
    if path.exists():
        return [_known(path)]
    if not any(sign in source.path for sign in "*?["):
        raise _missing(path, source.path, folder)
    root = _nearest_folder(path)
    found = sorted((file for file in root.glob(str(path.relative_to(root))) if file.is_file()), key=Path.as_posix)
    if not found:
        raise MultituneError(
            f"No file matches '{source.path}'.", source.path, f"Check the pattern; it starts at {folder}."
        )
    return [_known(file) for file in found]


def source_fingerprint(source: Source, folder: Path) -> str:
    """Digest of everything that decides the examples of a source: 64 hexadecimal digits.

    The bytes of files, id and revision of a hub data set, code and arguments of a generator, and what ids are made of.
    """
    parts: dict[str, Any] = {"source": source.model_dump(mode="json", exclude={"path"})}
    if source.path is not None:
        root = _located(source.path, folder)
        files = source_files(source, folder)
        parts["files"] = [[_name(path, root), _file_digest(path, *_state(path))] for path in files]
    elif source.hub is not None:
        parts["revision"] = hub_revision(source.hub, source.revision)
    elif source.generator is not None:
        parts["code"] = [
            _file_digest(path, *_state(path)) for path in generator_code(source.generator, source.arguments, folder)
        ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def label_names(source: Source, folder: Path) -> dict[str, list[str]]:
    """Names of the integer labels by column, for data sets that carry them (`ClassLabel` of datasets); else {}."""
    if source.hub is not None:
        return hub_label_names(source)
    if source.path is not None and saved_files(path := _located(source.path, folder)):
        return saved_label_names(path, source.split)
    return {}


def _examples(source: Source, folder: Path, bad_rows: BadRows | None) -> Iterator[Example]:
    for name, where, rows in _streams(source, folder):
        for place, row in rows:
            if isinstance(row, BadRow):
                if bad_rows is None:
                    raise MultituneError(f"A row cannot be used: {row.reason}.", where + place, "Mend or remove it.")
                bad_rows.add(where + place, row.reason)
                continue
            yield Example(name + place, where + place, row)


def _streams(source: Source, folder: Path) -> Iterator[tuple[str, str, Iterator[Row]]]:
    """(beginning of ids, beginning of places, rows) of every file or other stream of a source."""
    if source.hub is not None:
        yield source.hub, f"{source.hub}/{source.split or ''}", read_hub(source)
    elif source.generator is not None:
        yield "", f"{source.generator} ", read_generator(source.generator, source.arguments, folder)
    elif source.path is not None:
        root = _located(source.path, folder)
        if saved_files(root):
            yield root.name, source.path, read_saved(root, source.split)
            return
        for path in source_files(source, folder):
            yield _name(path, root), _shown(path, folder), read_file(path)
    else:
        raise ValueError("a share of train is cut by prompted_examples, not read by itself")


def _located(path: str, folder: Path) -> Path:
    return folder / Path(path).expanduser()


def _name(path: Path, root: Path) -> str:
    """What a file is called in ids: its name; in a folder its path there, so that no two are equal."""
    if path == root:
        return path.name
    return path.relative_to(_nearest_folder(root)).as_posix()


def _nearest_folder(path: Path) -> Path:
    """The folder itself; for a pattern, the last one before its wild cards."""
    while not path.is_dir():
        path = path.parent
    return path


def _shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _files_in(path: Path, written: str) -> list[Path]:
    """The readable files of a folder and its folders, by their path there; hidden ones are left alone."""
    inside = sorted((file.relative_to(path) for file in path.rglob("*") if file.is_file()), key=Path.as_posix)
    visible = [file for file in inside if not any(part.startswith((".", "_")) for part in file.parts)]
    known = [file for file in visible if reader_of(file)]
    if not known:
        raise MultituneError(
            f"The folder '{written}' holds no file that can be read.",
            str(path),
            f"Known formats: {', '.join(READERS)}.",
        )
    if others := [file.as_posix() for file in visible if not reader_of(file)]:
        logger.info("%s: %d files are not data and are left alone: %s", written, len(others), ", ".join(others[:5]))
    return [path / file for file in known]


def _known(path: Path) -> Path:
    if reader_of(path) is None:
        raise unknown_format(path)
    return path


def _missing(path: Path, written: str, folder: Path) -> MultituneError:
    parent = path.parent
    if not parent.is_dir():
        mend = f"There is no folder {parent} either; paths start at {folder}."
    else:
        hint = nearest(path.name, sorted(other.name for other in parent.iterdir()))
        mend = f"Check the path; it starts at {folder}.{hint}"
    return MultituneError(f"The file '{written}' does not exist.", str(path), mend)


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """Digest of a file's bytes; asked again with the same size and time of change, it is not read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
