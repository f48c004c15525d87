"""How much of the tasks of a file stands in a training text, and what that makes of a model's scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitune.errors import MultituneError
from multitune.recipes.scoring import tasks_of
from multitune.scoring.predictions import read_predictions
from multitune.scoring.score import scored_split
from multitune.tasks.bad_rows import BadRow, BadRows
from multitune.tasks.files import READERS, read_file, reader_of
from multitune.tasks.prompting import split_examples
from multitune.tasks.task import Split, Task

if TYPE_CHECKING:
    from multitune.scoring.in_context.contamination import Contamination, Item

CHUNK = 1 << 20
"""Letters of a text file that are read at once."""


def scan(
    file: Path,
    texts: Sequence[Path],
    *,
    split: Split = "test",
    predictions: Path | None = None,
    threshold: float = 0.02,
    fewest: int = 8,
) -> list[Contamination]:
    """Return for every task of a file which of its scored rows stand in a training text.

    Args:
        file: a recipe or suite file; only its tasks are read.
        texts: files or folders of what a model was trained on: plain text, or rows, of which all texts are read. None
            reads the training rows of the tasks themselves.
        split: of the rows that are looked for; a task without it is scanned by its validation rows.
        predictions: the folder that scoring wrote; its scores are split into clean and dirty.
        threshold: see ``in_context.contamination``.
        fewest: the smallest N.

    Raises:
        MultituneError: the file, a task, a text or the predictions cannot be read; no task has rows.
    """
    from multitune.scoring.in_context.contamination import contamination, matches

    tasks, folder = tasks_of(file)
    splits, items = _scored_items(tasks, folder, file, split)
    files = [one for path in texts for one in _files(path)]
    documents = _documents(files) if texts else _training_rows(tasks, folder, str(file))
    found = matches(items, documents, fewest=fewest)
    return [
        contamination(
            name,
            splits[name],
            rows,
            found.get(name, {}),
            _scores(predictions, name),
            threshold=threshold,
            fewest=fewest,
        )
        for name, rows in items.items()
    ]


@dataclass(frozen=True)
class PairOverlap:
    """How much of a task's scored rows stands in the training rows of a task.

    Attributes:
        trained, scored, split: the two tasks, and which rows of the second are looked for.
        n: those rows; dirty: how many stand in the training rows of the first.
        example: id of one of them, where it stands, and the words that both have; None where there is none.
    """

    trained: str
    scored: str
    split: Split
    n: int
    dirty: int
    example: tuple[str, str, str] | None

    @property
    def share(self) -> float:
        """Of the scored rows that were seen."""
        return self.dirty / self.n


def scan_pairs(file: Path, *, split: Split = "test", fewest: int = 8) -> list[PairOverlap]:
    """Return for every task with training rows, and every one with scored rows, how much of these the first holds.

    A row is compared by its fields, not by its prompt: the words of an instruction are no overlap. The n-grams of all
    scored rows are made once; training rows are read one after the other.

    Args:
        file, split, fewest: as for ``scan``.

    Raises:
        MultituneError: as ``scan``.
    """
    from multitune.scoring.in_context.contamination import Search

    tasks, folder = tasks_of(file)
    splits, items = _scored_items(tasks, folder, file, split)
    trained = [task for task in tasks if task.train is not None]
    if not trained:
        raise MultituneError(
            "No task of the file has training rows to look in.", str(file), "Give a task a train source."
        )
    search = Search(items, fewest=fewest)
    pairs = []
    for task in trained:
        found = search.find(_training_rows([task], folder, str(file)))
        for name, rows in items.items():
            if not rows:
                continue
            place, match = next(iter(sorted(found[name].items())), (0, None))
            example = (rows[place].id, match.where, match.words) if match else None
            pairs.append(PairOverlap(task.name, name, splits[name], len(rows), len(found[name]), example))
    return sorted(pairs, key=lambda pair: (-pair.share, pair.trained, pair.scored))


def _scored_items(
    tasks: Sequence[Task], folder: Path, file: Path, split: Split
) -> tuple[dict[str, Split], dict[str, list[Item]]]:
    """Return the split that is looked for, and its rows as words, of every task that has one."""
    from multitune.scoring.in_context.contamination import item_of

    splits = {task.name: own for task in tasks if (own := scored_split(task, split))}
    if not splits:
        raise MultituneError("No task has test or validation rows.", str(file), "Give a task a test source.")
    return splits, {
        task.name: [item_of(one.id, one.fields) for one in split_examples(task, splits[task.name], folder, BadRows())]
        for task in tasks
        if task.name in splits
    }


def _files(path: Path) -> list[Path]:
    """Return a file, or the files of a folder in the order of their names."""
    if path.is_file():
        return [path]
    found = sorted((one for one in path.rglob("*") if one.is_file()), key=Path.as_posix)
    if not found:
        raise MultituneError(f"There is no text in '{path}'.", str(path), "Name a file, or a folder of files.")
    return found


def _documents(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield (where, text) of every file: rows where the format has rows, else the text piece by piece."""
    for file in files:
        if reader_of(file) is not None:
            for place, row in read_file(file):
                if not isinstance(row, BadRow):
                    yield f"{file}{place}", " ".join(_texts(row))
            continue
        try:
            with file.open(encoding="utf-8", errors="replace") as stream:
                # to the end of a line, so that no word is cut, unless a line has more than CHUNK letters
                while piece := stream.read(CHUNK) + stream.readline(CHUNK):
                    yield str(file), piece
        except OSError as error:
            raise MultituneError(
                f"{file.name} cannot be read: {error.strerror or error}.",
                str(file),
                f"Give plain text, or rows as {', '.join(READERS)}.",
            ) from error


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    for value in row.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value)
        elif isinstance(value, list):
            yield from _texts({str(place): one for place, one in enumerate(value)})


def _training_rows(tasks: Sequence[Task], folder: Path, file: str) -> Iterator[tuple[str, str]]:
    trained = [task for task in tasks if task.train is not None]
    if not trained:
        raise MultituneError(
            "No task of the file has training rows to look in.", file, "Name the training text: --text FILE or FOLDER."
        )
    for task in trained:
        for one in split_examples(task, "train", folder, BadRows()):
            yield f"{task.name}, {one.where}", " ".join(_texts(one.fields))


def _scores(predictions: Path | None, task: str) -> dict[str, float]:
    """Return the mean score of every example over the templates it was asked through; {} where there are none."""
    if predictions is None:
        return {}
    scores: dict[str, list[float]] = {}
    for one in read_predictions(predictions / f"{task}.jsonl"):
        scores.setdefault(one.id, []).append(one.score)
    return {id: sum(values) / len(values) for id, values in scores.items()}
