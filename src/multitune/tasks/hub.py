"""Rows of Hugging Face data sets: streamed from the hub, or read from what `Dataset.save_to_disk` left."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multitune.errors import MultituneError, nearest
from multitune.tasks.files import Row
from multitune.tasks.task import Source

logger = logging.getLogger("multitune.tasks")


def read_hub(source: Source) -> Iterator[Row]:
    """Yield (place, row) from a data set of the hub, as a stream.

    Raises:
        MultituneError: it cannot be reached (the mend says how to give a path), or it has several splits and the source
            names none of them.
    """
    number = 0
    try:
        for number, fields in enumerate(_stream(source), start=1):
            yield f":row {number}", dict(fields)
    except MultituneError:
        raise
    except Exception as error:  # the network can fail in the ways of four libraries
        raise _unreachable(source, error, number) from error


def read_saved(path: Path, split: str | None) -> Iterator[Row]:
    """Yield (place, row) from a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` left."""
    for number, fields in enumerate(_saved(path, split), start=1):
        yield f":row {number}", dict(fields)


def saved_files(path: Path) -> list[Path]:
    """The files of a saved data set, its Arrow files included; [] when the folder is none."""
    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return []
    return sorted(file for file in path.rglob("*") if file.suffix in (".arrow", ".json") and file.is_file())


def saved_label_names(path: Path, split: str | None) -> dict[str, list[str]]:
    """Names of the integer labels by column."""
    return _names(_saved(path, split).features)


def hub_label_names(source: Source) -> dict[str, list[str]]:
    """Names of the integer labels by column; {} where the hub does not say."""
    try:
        return _names(_stream(source).features)
    except MultituneError:
        raise
    except Exception as error:
        raise _unreachable(source, error, 0) from error


def hub_revision(hub: str, revision: str | None) -> str:
    """The commit that a hub data set is at; the given revision, or "unknown", when the hub cannot be asked."""
    try:
        return _commit(hub, revision)
    except Exception as error:
        known = revision or "unknown"
        logger.warning(
            "The hub does not say at which commit %s is (%s); taken as %s.", hub, type(error).__name__, known
        )
        return known


def _commit(hub: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(hub, revision=revision, timeout=10).sha)


def _stream(source: Source) -> Any:
    # Asked first, because without a network load_dataset tries for half a minute before it says so.
    commit = _commit(str(source.hub), source.revision)

    from datasets import load_dataset

    found = load_dataset(source.hub, source.name, split=source.split, revision=commit, streaming=True)
    return _one_split(found, None, str(source.hub))


def _saved(path: Path, split: str | None) -> Any:
    from datasets import load_from_disk

    try:
        found = load_from_disk(str(path))
    except Exception as error:
        raise MultituneError(
            f"The saved data set cannot be read: {error}", str(path), "Save it again with Dataset.save_to_disk."
        ) from error
    return _one_split(found, split, str(path))


def _one_split(found: Any, split: str | None, where: str) -> Any:
    if not isinstance(found, Mapping):
        return found
    splits = sorted(found)
    if split is None and len(splits) == 1:
        return found[splits[0]]
    if split not in splits:
        what = "The data set has several splits." if split is None else f"The data set has no split '{split}'."
        raise MultituneError(
            what + nearest(split or "", splits), where, f"Add split: to the source, one of {', '.join(splits)}."
        )
    return found[split]


def _names(features: Any) -> dict[str, list[str]]:
    from datasets import ClassLabel

    found = {} if features is None else features
    return {column: list(kind.names) for column, kind in found.items() if isinstance(kind, ClassLabel)}


def _unreachable(source: Source, error: Exception, rows: int) -> MultituneError:
    after = f" after {rows} rows" if rows else ""
    return MultituneError(
        f"The data set '{source.hub}' cannot be read from the hub{after}: {type(error).__name__}: {error}",
        f"hub: {source.hub}",
        "Check the id, the configuration and the network; without a network, give path: a file, or a folder that "
        "Dataset.save_to_disk left.",
    )
