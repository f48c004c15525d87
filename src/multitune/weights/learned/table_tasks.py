"""Tokenised tasks of any backbone as what coefficients are learned from, and what models are measured on.

Shape legend: ``B`` rows of a batch, ``S`` tokens of the longest, ``P`` predictions, ``L`` classes or words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from multitune.errors import MultituneError
from multitune.mixing.tokens import TokenTable
from multitune.models.loading import Backbone
from multitune.objectives.token_loss import IGNORED
from multitune.weights.learned.learning import LearningTask
from multitune.weights.learned.objectives import entropy
from multitune.weights.learned.routes import Forward
from multitune.weights.learned.tasks import shuffled


@dataclass(frozen=True)
class TaskRows:
    """Some rows of a tokenised task (``mixing.tokens.tokenise``); ``numbers_R`` are int64."""

    table: TokenTable
    numbers_R: Tensor


def all_rows(table: TokenTable) -> TaskRows:
    """Return every row of a table."""
    return TaskRows(table, torch.arange(len(table)))


def supervised_task(
    backbone: Backbone, rows: TaskRows, *, batch_size: int, least_batches: int = 1, seed: int
) -> LearningTask:
    """Return the loss of a task's answers as a task: per token, of a head per row.

    Rows are gone through again until an epoch has ``least_batches``.

    Raises:
        MultituneError: a table that was tokenised for a backbone of another form.
    """
    _same_form(backbone, rows.table)

    def loss(forward: Forward, drawn_B: Tensor) -> Tensor:
        return _loss(*predictions(backbone, rows.table, forward, drawn_B))

    return LearningTask(rows.table.task, _drawn(rows, batch_size, seed, least_batches), loss)


def unsupervised_task(backbone: Backbone, rows: TaskRows, *, batch_size: int, batches: int, seed: int) -> LearningTask:
    """Return the entropy of a task's predictions as a task, in epochs of so many batches; no label is read.

    Of a language model that is the entropy of the first token of its answer, over all words.

    Raises:
        MultituneError: a head that regresses, whose prediction has no entropy; a table of another form.
    """
    _same_form(backbone, rows.table)
    if backbone.form == "encoder" and _head(backbone, rows.table).kind == "regress":
        raise MultituneError(
            f"The task '{rows.table.task}' predicts a number, which has no entropy.",
            f"task {rows.table.task}",
            "Leave it out of the step's tasks.",
        )

    def loss(forward: Forward, drawn_B: Tensor) -> Tensor:
        if backbone.form == "encoder":
            return entropy(predictions(backbone, rows.table, forward, drawn_B)[0])
        return entropy(_first_answer(backbone, rows.table, forward, drawn_B))

    return LearningTask(rows.table.task, _drawn(rows, batch_size, seed, batches, batches), loss)


def minus_mean_loss(backbone: Backbone, tasks: Sequence[TaskRows], batch_size: int) -> Callable[[Forward], float]:
    """Return a score: minus the mean over tasks of the mean loss of their predictions; for validation rows.

    Raises:
        MultituneError: a table that was tokenised for a backbone of another form.
    """
    for one in tasks:
        _same_form(backbone, one.table)

    def mean_of(rows: TaskRows, forward: Forward) -> float:
        total, count = 0.0, 0
        for drawn_B in rows.numbers_R.split(batch_size):
            logits_PL, targets_P = predictions(backbone, rows.table, forward, drawn_B)
            total += len(targets_P) * float(_loss(logits_PL, targets_P))
            count += len(targets_P)
        return total / count

    def score(forward: Forward) -> float:
        with torch.no_grad():
            return -sum(mean_of(rows, forward) for rows in tasks) / len(tasks)

    return score


def batches_of_one_length(rows: TaskRows, batch_size: int) -> list[Tensor]:
    """Return batches without padding: row numbers of equally long inputs (and answers, where these are apart)."""

    def lengths(number: int) -> tuple[int, int]:
        apart = rows.table.form == "seq2seq"
        return int(rows.table.lengths[number]), int(rows.table.label_counts[number]) if apart else 0

    numbers = sorted(rows.numbers_R.tolist(), key=lengths)
    alike = (torch.tensor(list(group)) for _, group in groupby(numbers, key=lengths))
    return [batch for group in alike for batch in group.split(batch_size)]


def predictions(backbone: Backbone, table: TokenTable, forward: Forward, drawn_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [P, L] and what they should say [P]: of a head per row, of a language model per answered token.

    A head that regresses has L = 1 and float targets, standardised as in training.
    """
    device = next(backbone.model.parameters()).device
    inputs = _inputs(backbone, [_row(table, "input_ids", number) for number in drawn_B.tolist()], device)
    if backbone.form == "encoder":
        head = _head(backbone, table)
        task_B = torch.full((len(drawn_B),), backbone.model.task_index(table.task), device=device)
        logits_BL = forward(**inputs, task_ids=task_B)[:, : head.outputs]
        values_B = torch.from_numpy(table.values[drawn_B.numpy()]).to(device)
        if head.kind == "label":
            return logits_BL, values_B.long()
        mean, deviation = head.scale or (0.0, 1.0)
        return logits_BL, ((values_B - mean) / deviation).to(logits_BL)
    labels = [_row(table, "labels", number) for number in drawn_B.tolist()]
    labels_BS = pad_sequence(labels, batch_first=True, padding_value=IGNORED).to(device)
    if backbone.form == "causal":
        logits_BSL = forward(**inputs, use_cache=False).logits[:, :-1]
        labels_BS = labels_BS[:, 1:]
    else:
        logits_BSL = forward(**inputs, labels=labels_BS, use_cache=False).logits
    answered_BS = labels_BS != IGNORED
    return logits_BSL[answered_BS].float(), labels_BS[answered_BS]


def _first_answer(backbone: Backbone, table: TokenTable, forward: Forward, drawn_B: Tensor) -> Tensor:
    """Return the logits of the first token of every answer, [B, L]; rows are cut before it."""
    device = next(backbone.model.parameters()).device
    ids = [_row(table, "input_ids", number) for number in drawn_B.tolist()]
    if backbone.form == "seq2seq":
        start = backbone.model.config.decoder_start_token_id
        start_B1 = torch.full((len(ids), 1), start, device=device)
        output = forward(**_inputs(backbone, ids, device), decoder_input_ids=start_B1, use_cache=False)
        return output.logits[:, 0].float()
    answers = [int((_row(table, "labels", number) != IGNORED).nonzero()[0]) for number in drawn_B.tolist()]
    prompts = [row[: max(1, first)] for row, first in zip(ids, answers, strict=True)]
    logits_BSL = forward(**_inputs(backbone, prompts, device), use_cache=False).logits
    last_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    return logits_BSL[torch.arange(len(prompts), device=device), last_B].float()


def _inputs(backbone: Backbone, ids: Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
    ids_BS = pad_sequence(list(ids), batch_first=True, padding_value=backbone.tokenizer.pad_token_id)
    length_B = torch.tensor([len(row) for row in ids])
    mask_BS = (torch.arange(ids_BS.shape[1]) < length_B[:, None]).long()
    return {"input_ids": ids_BS.to(device), "attention_mask": mask_BS.to(device)}


def _row(table: TokenTable, column: Literal["input_ids", "labels"], number: int) -> Tensor:
    return torch.tensor(table.slices(column, [number])[0], dtype=torch.long)


def _head(backbone: Backbone, table: TokenTable) -> Any:
    return backbone.model.heads[backbone.model.task_index(table.task)]


def _same_form(backbone: Backbone, table: TokenTable) -> None:
    if table.form != backbone.form:
        raise MultituneError(
            f"Task '{table.task}' is tokenised for a {table.form} model, the backbone is a {backbone.form} one.",
            f"task {table.task}",
            "Tokenise it for this backbone.",
        )


def _loss(logits_PL: Tensor, targets_P: Tensor) -> Tensor:
    if targets_P.is_floating_point():
        return functional.mse_loss(logits_PL[:, 0], targets_P)
    return functional.cross_entropy(logits_PL, targets_P)


def _drawn(
    rows: TaskRows, batch_size: int, seed: int, least: int, most: int | None = None
) -> Callable[[int, Forward], list[Tensor]]:
    """Return an epoch's batches: all rows in a new order, and again until there are ``least``; at most ``most``."""

    def batches(epoch: int, forward: Forward) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = shuffled(len(rows.numbers_R), batch_size, generator, least)
        return [rows.numbers_R[drawn_B] for drawn_B in order[:most]]

    return batches
