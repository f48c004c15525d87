"""Tokenised tasks: Arrow files in a cache, keyed by everything that made them, read through a memory map.

Letters: R rows of a table.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

import multitune
from multitune.errors import MultituneError
from multitune.mixing.chats import IGNORED
from multitune.mixing.encoding import (
    Encoded,
    encode,
    encode_all,
    encode_choice,
    encode_prompt,
    encode_prompts,
    prompt_affixes,
)
from multitune.mixing.training_demonstrations import TrainingDemonstrations
from multitune.mixing.truncation import truncate
from multitune.tasks.bad_rows import BadRows
from multitune.tasks.prompting import is_resolved, prompted_examples, resolve
from multitune.tasks.sources import source_fingerprint
from multitune.tasks.task import Form, Prompted, Split, Task

__all__ = ["TokenTable", "encode", "encode_choice", "encode_prompt", "encode_prompts", "tokenise"]

logger = logging.getLogger("multitune.mixing")

OnOverlong = Literal["refuse", "drop", "truncate"]

FORMAT_VERSION = 2
"""Raised when the same inputs would give other tokens, so that cached tables are not read."""

_BATCH = 1000  # examples per call of the tokenizer and per record batch of the file

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("label_count", pa.int32()),
        ("value", pa.float64()),
    ]
)


class TokenTable:
    """The token ids of one split of one task, in a memory-mapped file.

    Attributes:
        task: name of the task.
        form: what sort of backbone the ids are for.
        lengths: tokens of every row (the prompt's, for seq2seq and encoder); int32 [R].
        label_counts: tokens that carry loss, of every row; int32 [R].
        values: class index or regression target of every row, NaN where there is none; float64 [R].
        truncated: rows that were cut to the length limit.
        dropped: rows that were left out: too long, or without a token that carries loss.
        bad_rows: rows of the source that were skipped as unusable.
        fingerprint: digest of everything that made the table.
    """

    def __init__(self, path: Path) -> None:
        """Open a finished table; ``path`` is the Arrow file, beside it lies the JSON file of its facts."""
        facts = json.loads(_facts_path(path).read_text(encoding="utf-8"))
        self.path = path
        self.task: str = facts["task"]
        self.form: Form = facts["form"]
        self.truncated: int = facts["truncated"]
        self.dropped: int = facts["dropped"]
        self.bad_rows: int = facts["bad_rows"]
        self.fingerprint: str = facts["fingerprint"]
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._columns = {name: [_ragged(batch.column(name)) for batch in batches] for name in ("input_ids", "labels")}
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.lengths = _join([np.diff(offsets) for _, offsets in self._columns["input_ids"]], np.int32)
        self.label_counts = _join([batch.column("label_count").to_numpy() for batch in batches], np.int32)
        self.values = _join([batch.column("value").to_numpy() for batch in batches], np.float64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[type[TokenTable], tuple[Path]]:
        return TokenTable, (self.path,)  # another process maps the file itself

    def row(self, index: int) -> dict[str, np.ndarray]:
        """One row: input_ids int32, labels int32, value float64."""
        (ids,), (labels,) = self.slices("input_ids", [index]), self.slices("labels", [index])
        return {"input_ids": ids, "labels": labels, "value": self.values[index]}

    def slices(self, column: Literal["input_ids", "labels"], rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Views into the file, one int32 array per row asked for; nothing is copied."""
        chunks = self._columns[column]
        chunk_N = np.searchsorted(self._starts, rows, side="right") - 1
        found = []
        for chunk, place in zip(chunk_N.tolist(), (np.asarray(rows) - self._starts[chunk_N]).tolist(), strict=True):
            values, offsets = chunks[chunk]
            found.append(values[offsets[place] : offsets[place + 1]])
        return found


def tokenise(
    task: Task,
    split: Split,
    tokenizer: Any,
    form: Form,
    folder: Path,
    *,
    max_length: int,
    on_overlong: OnOverlong = "truncate",
    cache: Path,
    progress: Callable[[int], None] | None = None,
) -> TokenTable:
    """Tokenise one split of a task, or open the table when the same was tokenised before.

    Constant memory: examples stream through in batches. Safe when several processes do it at once: each writes its own
    temporary file, and the first whole one, or an equal one, ends up in the cache.

    Args:
        task: the task; what it leaves open is settled first.
        split: which of its sources; training rotates over the templates, the others use the first.
        tokenizer: a transformers tokenizer.
        form: what sort of backbone reads the tokens.
        folder: paths of the sources are relative to it.
        max_length: tokens that a row may have, at least 2; for seq2seq also labels.
        on_overlong: truncate (see ``mixing.truncation``), drop, or refuse.
        cache: folder of the tables; made when absent.
        progress: called with the number of examples after every batch.

    Raises:
        MultituneError: bad rows where the task refuses them, over-long examples where these are refused (how many and
            which), no row left, a kind that the backbone cannot learn, a cache that cannot be written.
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, not {max_length}")
    if not is_resolved(task):
        task = resolve(task, folder)
    _check_kind(task, form)
    fingerprint = _fingerprint(task, split, tokenizer, form, folder, max_length, on_overlong)
    path = cache / f"{task.name}-{split}-{fingerprint[:20]}.arrow"
    if not _facts_path(path).exists():
        shown = TrainingDemonstrations(task, folder) if split == "train" and task.train_shots else None
        writing = _TableWriter(task, split, tokenizer, form, max_length, on_overlong, shown)
        try:
            _write(path, fingerprint, writing, _examples(task, split, folder, writing.bad_rows), progress)
        except OSError as error:
            raise _unwritable(cache, error) from error
    table = TokenTable(path)
    _say(table, split)
    return table


class _TableWriter:
    """Turns batches of examples into record batches, and counts what it cuts, drops and skips."""

    def __init__(
        self,
        task: Task,
        split: Split,
        tokenizer: Any,
        form: Form,
        max_length: int,
        on_overlong: OnOverlong,
        demonstrations: TrainingDemonstrations | None = None,
    ) -> None:
        self.task, self.split, self.tokenizer, self.form = task, split, tokenizer, form
        self.max_length, self.on_overlong = max_length, on_overlong
        self.affixes = prompt_affixes(tokenizer, form)
        self.demonstrations = demonstrations
        self.bad_rows = BadRows()
        self.rows = self.read = self.truncated = self.dropped = self.overlong = 0
        self.longest: tuple[int, str] = (0, "")

    def record_batch(self, prompted: Sequence[Prompted]) -> pa.RecordBatch:
        """Encode examples; those without loss, and the over-long where the policy says so, are left out."""
        self.read += len(prompted)
        if self.demonstrations is not None:
            prompted = self.demonstrations.before(prompted, self.tokenizer, self.form, self.max_length)
        rows = [row for row in map(self._fitted, *self._encoded(prompted)) if row is not None]
        self.rows += len(rows)
        labels = [row[1] for row in rows]
        return pa.record_batch(
            [
                _list_array([row[0] for row in rows]),
                _list_array(labels),
                pa.array([len(row) - row.count(IGNORED) for row in labels], pa.int32()),
                pa.array([row[2] for row in rows], pa.float64()),
            ],
            schema=_SCHEMA,
        )

    def _encoded(self, prompted: Sequence[Prompted]) -> tuple[list[Prompted], list[Encoded]]:
        try:
            return list(prompted), encode_all(prompted, self.tokenizer, self.form, self.task.chat)
        except MultituneError:
            pass  # one of them cannot be encoded: the others can, one by one
        kept, encoded = [], []
        for example in prompted:
            try:
                encoded.append(encode(example, self.tokenizer, self.form, self.task.chat))
                kept.append(example)
            except MultituneError as error:
                if self.task.on_bad_row == "refuse":
                    raise
                self.bad_rows.add(example.example.where, error.what)
        return kept, encoded

    def _fitted(self, prompted: Prompted, encoded: Encoded) -> tuple[list[int], list[int], float] | None:
        ids, labels = encoded
        longest = max(len(ids), len(labels))
        if longest > self.max_length:
            self.overlong += 1
            self.longest = max(self.longest, (longest, prompted.example.where))
            if self.on_overlong != "truncate":
                self.dropped += 1
                return None
            ids, labels = truncate(ids, labels, self.form, self.max_length, self.affixes)
        if self.form != "encoder" and labels.count(IGNORED) == len(labels):
            self.dropped += 1
            return None
        self.truncated += longest > self.max_length
        return ids, labels, _value(prompted)

    def check(self) -> None:
        """Refuse over-long examples where the policy says so, and a table without rows."""
        if self.overlong and self.on_overlong == "refuse":
            length, where = self.longest
            raise MultituneError(
                f"{self.overlong} of {self.read} examples of task '{self.task.name}' ({self.split}) are longer than "
                f"{self.max_length} tokens; the longest has {length} ({where}).",
                f"tasks.{self.task.name}",
                f"Raise max_length to {length}, or set on_overlong to truncate or drop.",
            )
        if not self.rows:
            raise MultituneError(
                f"Task '{self.task.name}' has no {self.split} example that can be used: {self.read} were read, "
                f"{self.dropped} dropped, {self.bad_rows.count} bad.",
                f"tasks.{self.task.name}",
                "Look at its source and its templates, and raise max_length if examples were dropped for their length.",
            )


def _write(
    path: Path,
    fingerprint: str,
    writing: _TableWriter,
    examples: Iterable[Prompted],
    progress: Callable[[int], None] | None,
) -> None:
    """Write a table under a temporary name, move it to its own, and write its facts last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    iterator = iter(examples)
    try:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as arrow:
            while batch := list(islice(iterator, _BATCH)):
                arrow.write_batch(writing.record_batch(batch))
                if progress:
                    progress(len(batch))
        writing.check()
        facts = {
            "task": writing.task.name,
            "form": writing.form,
            "split": writing.split,
            "rows": writing.rows,
            "truncated": writing.truncated,
            "dropped": writing.dropped,
            "bad_rows": writing.bad_rows.count,
            "max_length": writing.max_length,
            "fingerprint": fingerprint,
        }
        os.replace(temporary, path)
        temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, _facts_path(path))
    finally:
        temporary.unlink(missing_ok=True)


def _examples(task: Task, split: Split, folder: Path, bad_rows: BadRows) -> Iterator[Prompted]:
    templates: Literal["rotate", "first"] = "rotate" if split == "train" else "first"
    try:
        yield from prompted_examples(task, split, folder, templates=templates, bad_rows=bad_rows)
    except OSError as error:  # told here, so that it is not taken for trouble with writing
        raise MultituneError(
            f"The {split} data of task '{task.name}' cannot be read: {error.strerror or error}.",
            f"tasks.{task.name}, {error.filename or folder}",
            "Check the path, the permissions and that the file is whole.",
        ) from error


def _check_kind(task: Task, form: Form) -> None:
    if form == "encoder" and task.kind not in ("label", "regress"):
        raise MultituneError(
            f"An encoder has one head per task and cannot learn a task of kind '{task.kind}'.",
            f"tasks.{task.name}",
            "Use kind label or regress, or a model that generates text.",
        )


def _value(prompted: Prompted) -> float:
    if prompted.label is not None:
        return float(prompted.label)
    return float("nan") if prompted.value is None else float(prompted.value)


def _say(table: TokenTable, split: Split) -> None:
    logger.info("task %s, %s: %d rows, %d tokens", table.task, split, len(table), int(table.lengths.sum()))
    if table.truncated or table.dropped or table.bad_rows:
        counts = f"{table.truncated} truncated, {table.dropped} dropped, {table.bad_rows} bad rows skipped"
        logger.warning("task %s, %s: %s", table.task, split, counts)


def _unwritable(cache: Path, error: OSError) -> MultituneError:
    if error.errno == errno.ENOSPC:
        return MultituneError("The disk is full.", str(cache), "Free some space, or give another folder.")
    return MultituneError(
        f"Tokenised data cannot be written: {error.strerror or error}.", str(cache), "Give a folder that is writable."
    )


def _fingerprint(
    task: Task, split: Split, tokenizer: Any, form: Form, folder: Path, max_length: int, on_overlong: OnOverlong
) -> str:
    """Digest of everything that decides the tokens of a table."""
    import tokenizers
    import transformers

    source = task.source(split)
    if source is None:
        raise MultituneError(
            f"Task '{task.name}' has no {split} data.", f"tasks.{task.name}", f"Give it a source under '{split}'."
        )
    if source.fraction is not None:
        source = task.train  # which of its rows is decided by their ids and by the fractions, which are in the task
    parts = {
        "versions": [FORMAT_VERSION, multitune.__version__, transformers.__version__, tokenizers.__version__],
        "task": task.model_dump(
            mode="json", exclude={"metrics", "weight", "tags", "held_out", "max_new_tokens", "stop"}
        ),
        "data": source and source_fingerprint(source, folder),
        "split": split,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "form": form,
        "max_length": max_length,
        "on_overlong": on_overlong,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_VOCABULARIES: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what a tokenizer does: vocabulary, merges and rules, special tokens, chat template."""
    size, vocabulary = _VOCABULARIES.get(tokenizer, (-1, ""))
    if size != len(tokenizer):  # a large vocabulary takes tenths of a second: once per tokenizer, not per task
        vocabulary = _vocabulary_digest(tokenizer)
        _VOCABULARIES[tokenizer] = (len(tokenizer), vocabulary)
    rest = [type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()


def _vocabulary_digest(tokenizer: Any) -> str:
    if not tokenizer.is_fast:
        settings = [sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # both are left over from the last call and say nothing of the tokenizer itself
    rules["truncation"] = rules["padding"] = None
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _facts_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _list_array(rows: list[list[int]]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    values = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _ragged(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of a list column, without copying."""
    return column.values.to_numpy(), column.offsets.to_numpy()


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype=dtype)
