"""Micro-batches of a training run: which are planned from lengths alone, and built from token tables when asked for.

Letters: N examples, B rows, S tokens per row, T tasks, M micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from multitune.errors import MultituneError
from multitune.mixing.chats import IGNORED
from multitune.mixing.mixture import Mixture
from multitune.mixing.packing import Rows, TokenBudget, plan_groups, plan_packing
from multitune.mixing.tokens import TokenTable

if TYPE_CHECKING:
    from multitune.tasks.task import Form

_PIECE = 1 << 18  # examples drawn at once while planning
_MULTIPLE = 8  # padded widths are multiples of this, which matrix kernels like

Batch = dict[str, torch.Tensor]


class PlannedBatches(Dataset[Batch]):
    """Micro-batches by number, built from token tables by a plan of which examples share a row and a micro-batch.

    Args:
        tables: token tables in the order of the task ids.
        task_N: task of every example of the plan, int32 [N].
        row_N: its row in the task's table, int32 [N].
        form: what the backbone reads.
        pack: causal only: every row has ``row_length`` tokens; others are as long as the fullest row asks for.
        row_length: S; no row holds more.
        pad_token_id: fills what no example covers.

    Attributes:
        lengths_N: tokens of every example (the prompt's, for seq2seq and encoder), int64 [N].
    """

    def __init__(
        self,
        tables: Sequence[TokenTable],
        task_N: np.ndarray,
        row_N: np.ndarray,
        *,
        form: Form,
        pack: bool,
        row_length: int,
        pad_token_id: int,
    ) -> None:
        self.tables = tuple(tables)
        self.form, self.pack, self.row_length, self.pad_token_id = form, pack, row_length, pad_token_id
        self._task_N, self._row_N = task_N, row_N
        self.lengths_N = _per_example([table.lengths for table in tables], task_N, row_N)
        self._label_N = _per_example([table.label_counts for table in tables], task_N, row_N)
        if form == "encoder":
            self._value_N = _per_example([table.values for table in tables], task_N, row_N)

    def plan(self, rows: Rows, edges_M: np.ndarray) -> None:
        """Set the plan: ``rows`` of examples, and micro-batch m made of rows edges_M[m] .. edges_M[m + 1] - 1."""
        self._rows, self._edges_M = rows, edges_M

    def __len__(self) -> int:
        """Micro-batches in the run, on all processes together."""
        return len(self._edges_M) - 1

    def __getitem__(self, index: int) -> Batch:
        """Micro-batch number ``index``, of B rows.

        causal: input_ids, labels, position_ids, task_ids, example_ids, int64 [B, S]. Labels are not shifted; the first
        token of every example has none. Positions begin at 0 in every example, and in the padding behind them.
        seq2seq: input_ids, attention_mask [B, S]; labels, task_ids, example_ids [B, S of the targets].
        encoder: input_ids, attention_mask [B, S]; values float64 [B], task_ids, example_ids [B].
        Example ids number the examples of the whole run; where there is no example, both ids are -1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} is not within 0..{len(self) - 1}")
        arrays = {"causal": self._causal, "seq2seq": self._seq2seq, "encoder": self._encoder}[self.form](index)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def tokens_at(self, index: int) -> int:
        """Tokens of examples, not padding, in one micro-batch; for seq2seq those of the targets too."""
        examples = self._examples(index)
        labels = self._label_N[examples].sum() if self.form == "seq2seq" else 0
        return int(self.lengths_N[examples].sum() + labels)

    def _examples(self, index: int) -> np.ndarray:
        """The mixture's places that a micro-batch holds, row after row."""
        first, last = self._rows.offsets[self._edges_M[index : index + 2]]
        return self._rows.examples[first:last]

    def _width(self, longest: np.ndarray | int) -> np.ndarray:
        return np.minimum(-(-np.asarray(longest) // _MULTIPLE) * _MULTIPLE, self.row_length)

    def _causal(self, index: int) -> dict[str, np.ndarray]:
        first, last = self._edges_M[index : index + 2]
        examples = self._examples(index)
        row_N = np.repeat(np.arange(last - first), np.diff(self._rows.offsets[first : last + 1]))
        length_N = self.lengths_N[examples]
        start_N = _before(length_N)  # tokens of the micro-batch before an example, then of its row
        used_B = np.bincount(row_N, weights=length_N).astype(np.int64)
        start_N = start_N - _before(used_B)[row_N]
        width = self.row_length if self.pack else int(self._width(used_B.max()))
        shape = (int(last - first), width)
        place = _places(row_N * width + start_N, length_N)
        positions = np.arange(width) - used_B[:, None]  # right for the padding
        positions.ravel()[place] = _places(np.zeros_like(length_N), length_N)
        return {
            "input_ids": _filled(shape, self.pad_token_id, place, self._tokens("input_ids", examples)),
            "labels": _filled(shape, IGNORED, place, self._tokens("labels", examples)),
            "position_ids": positions,
            "task_ids": _filled(shape, -1, place, np.repeat(self._task_N[examples], length_N)),
            "example_ids": _filled(shape, -1, place, np.repeat(examples, length_N)),
        }

    def _inputs(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """input_ids and attention_mask of rows with one example each."""
        length_B = self.lengths_N[examples]
        shape = (len(examples), int(self._width(length_B.max())))
        place = _places(np.arange(len(examples)) * shape[1], length_B)
        return {
            "input_ids": _filled(shape, self.pad_token_id, place, self._tokens("input_ids", examples)),
            "attention_mask": _filled(shape, 0, place, np.ones_like(place)),
        }

    def _seq2seq(self, index: int) -> dict[str, np.ndarray]:
        examples = self._examples(index)
        length_B = self._label_N[examples]
        shape = (len(examples), int(self._width(length_B.max())))
        place = _places(np.arange(len(examples)) * shape[1], length_B)
        return {
            **self._inputs(examples),
            "labels": _filled(shape, IGNORED, place, self._tokens("labels", examples)),
            "task_ids": _filled(shape, -1, place, np.repeat(self._task_N[examples], length_B)),
            "example_ids": _filled(shape, -1, place, np.repeat(examples, length_B)),
        }

    def _encoder(self, index: int) -> dict[str, np.ndarray]:
        examples = self._examples(index)
        return {
            **self._inputs(examples),
            "values": self._value_N[examples],
            "task_ids": self._task_N[examples].astype(np.int64),
            "example_ids": examples,
        }

    def _tokens(self, column: str, examples: np.ndarray) -> np.ndarray:
        """Token ids or labels of examples, one after the other."""
        task_N, row_N = self._task_N[examples], self._row_N[examples]
        slices: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(examples)
        for task in np.unique(task_N):
            own = np.flatnonzero(task_N == task)
            for place, ids in zip(own.tolist(), self.tables[task].slices(column, row_N[own]), strict=True):
                slices[place] = ids
        return np.concatenate(slices)


class TrainingBatches(PlannedBatches):
    """All micro-batches of a run, by number; each is a pure function of the tables, the mixture and the seed.

    Packed rows hold several examples; other rows hold one, and micro-batches of rows are grouped by length. The last
    micro-batch may have fewer rows; none is lost.

    Args:
        tables: token tables in the order of the mixture's tasks.
        mixture: the stream of examples; each of its ``total`` examples is in exactly one micro-batch.
        form: what the backbone reads.
        pack: causal only: several examples per row of ``row_length`` tokens.
        row_length: S; no example may be longer.
        micro_batch_size: rows, or a budget of positions.
        pad_token_id: fills what no example covers.
        seed: of the shuffles of rows and micro-batches.
        rows_per_step: rows per optimiser step; rows that are not packed are sorted by length only inside a step.

    Attributes:
        fill: positions that hold tokens of an example, as a share of all positions of the run.
        labelled_share: tokens that carry loss, as a share of all tokens of the run; 0 for encoders.

    Raises:
        MultituneError: an example longer than a row.
    """

    def __init__(
        self,
        tables: Sequence[TokenTable],
        mixture: Mixture,
        *,
        form: Form,
        pack: bool,
        row_length: int,
        micro_batch_size: int | TokenBudget,
        pad_token_id: int,
        seed: int,
        rows_per_step: int | None = None,
    ) -> None:
        _check(tables, mixture, form, pack, row_length)
        self.mixture = mixture
        task_N, row_N = _draws(mixture)
        super().__init__(tables, task_N, row_N, form=form, pack=pack, row_length=row_length, pad_token_id=pad_token_id)
        tokens_N = self.lengths_N + self._label_N if form == "seq2seq" else self.lengths_N
        if pack:
            rows = plan_packing(self.lengths_N, row_length, seed)
            per_batch = micro_batch_size if isinstance(micro_batch_size, int) else micro_batch_size.tokens // row_length
            self.plan(rows, np.append(np.arange(0, len(rows), max(1, per_batch)), len(rows)))
        else:
            widths_N = self._width(self.lengths_N) + (self._width(self._label_N) if form == "seq2seq" else 0)
            groups = plan_groups(widths_N, micro_batch_size, seed, rows_per_step)
            self.plan(Rows(groups.examples, np.arange(len(groups.examples) + 1)), groups.offsets)
        self._counted = 0, np.zeros(len(tables), dtype=np.int64)
        self.fill = float(tokens_N.sum() / self._positions())
        self.labelled_share = float(self._label_N.sum() / tokens_N.sum())

    def repeats_at(self, index: int) -> dict[str, float]:
        """Times that each task's rows have been seen on average when micro-batch ``index`` is done."""
        end = int(self._rows.offsets[self._edges_M[index + 1]])
        counted, count_T = self._counted
        if end < counted:
            counted, count_T = 0, np.zeros_like(count_T)
        new = self._task_N[self._rows.examples[counted:end]]  # a log asks in order: only what came since is counted
        count_T = count_T + np.bincount(new, minlength=len(self.tables))
        self._counted = end, count_T
        return dict(zip(self.mixture.names, (count_T / self.mixture.rows_T).tolist(), strict=True))

    def _positions(self) -> int:
        """Positions of all micro-batches together, padding counted."""
        if self.pack:
            return len(self._rows) * self.row_length
        starts_M, rows_M = self._edges_M[:-1], np.diff(self._edges_M)
        columns = [self.lengths_N, self._label_N] if self.form == "seq2seq" else [self.lengths_N]
        longest_M = [np.maximum.reduceat(column[self._rows.examples], starts_M) for column in columns]
        return int(sum((rows_M * self._width(longest)).sum() for longest in longest_M))


def _check(tables: Sequence[TokenTable], mixture: Mixture, form: Form, pack: bool, row_length: int) -> None:
    if pack and form != "causal":
        raise ValueError(f"only causal rows can be packed, not {form}")
    if [table.task for table in tables] != list(mixture.names):
        raise ValueError(f"tables {[table.task for table in tables]} are not the mixture's tasks {mixture.names}")
    for table in tables:
        longest = int(max(table.lengths.max(), table.label_counts.max()))
        if longest > row_length:
            raise MultituneError(
                f"Task '{table.task}' has an example of {longest} tokens; a row holds {row_length}.",
                f"tasks.{table.task}",
                "Tokenise with a max_length of at most the row length.",
            )


def _draws(mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Task and row of every place of the mixture, int32 [N] each."""
    task_N, row_N = np.empty(len(mixture), dtype=np.int32), np.empty(len(mixture), dtype=np.int32)
    for start in range(0, len(mixture), _PIECE):
        drawn = mixture.draw(start, min(start + _PIECE, len(mixture)))
        task_N[start : start + _PIECE], row_N[start : start + _PIECE] = drawn[:, 0], drawn[:, 1]
    return task_N, row_N


def _per_example(columns: Sequence[np.ndarray], task_N: np.ndarray, row_N: np.ndarray) -> np.ndarray:
    """Pick, for every example, the value of its row from its task's column."""
    starts_T = _before(np.array([len(column) for column in columns]))
    picked = np.concatenate(columns)[starts_T[task_N] + row_N]
    return picked.astype(np.int64) if picked.dtype == np.int32 else picked


def _before(counts: np.ndarray) -> np.ndarray:
    """Sum of the counts before each."""
    return np.cumsum(counts) - counts


def _places(start_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + length - 1 of every example, one after the other."""
    return np.repeat(start_N - _before(length_N), length_N) + np.arange(length_N.sum())


def _filled(shape: tuple[int, int], fill: int, place: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An int64 array of one value, except at some flat places."""
    array = np.full(shape, fill, dtype=np.int64)
    array.ravel()[place] = values
    return array
