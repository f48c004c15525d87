"""The house's own tasks, tokenised for a language model, as what coefficients are learned from.

Shape legend: ``B`` rows of a batch, ``S`` tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multitune.errors import MultituneError
from multitune.mixing.tokens import TokenTable
from multitune.models.loading import Backbone
from multitune.objectives.token_loss import IGNORED
from multitune.weights.learned.learning import LearningTask
from multitune.weights.learned.routes import Forward
from multitune.weights.learned.tasks import shuffled


def language_task(
    backbone: Backbone,
    table: TokenTable,
    *,
    batch_size: int = 32,
    least_batches: int = 1,
    weight: float = 1.0,
    seed: int = 0,
) -> LearningTask:
    """Return the loss per token of a task's answers as a task, for ``learn_coefficients(backbone.model, ...)``.

    Args:
        backbone: causal or seq2seq.
        table: of ``mixing.tokens.tokenise``; its prompts carry no loss.
        batch_size, least_batches, weight, seed: as of ``labelled_task``.

    Raises:
        MultituneError: an encoder (its tasks are ``labelled_task`` with its own logits), a table of another form.
    """
    _language_model(backbone, table)

    def batches(epoch: int, forward: Forward) -> list[Tensor]:
        return shuffled(len(table), batch_size, torch.Generator().manual_seed(seed * 100_003 + epoch), least_batches)

    def loss(forward: Forward, drawn_B: Tensor) -> Tensor:
        return answer_loss(backbone, table, forward, drawn_B)

    return LearningTask(table.task, batches, loss, weight)


def mean_likelihood(backbone: Backbone, tables: list[TokenTable], batch_size: int = 32) -> Callable[[Forward], float]:
    """Return a score: minus the mean over tasks of the nats per labelled token; for validation tables."""
    for table in tables:
        _language_model(backbone, table)

    def score(forward: Forward) -> float:
        return -sum(_nats(backbone, table, forward, batch_size) for table in tables) / len(tables)

    return score


def answer_loss(backbone: Backbone, table: TokenTable, forward: Forward, drawn_B: Tensor) -> Tensor:
    """Return the mean over the labelled tokens of some rows of a table [], in nats."""
    device = next(backbone.model.parameters()).device
    ids_BS = _padded(table, "input_ids", drawn_B, backbone.tokenizer.pad_token_id)
    labels_BS = _padded(table, "labels", drawn_B, IGNORED)
    length_B = torch.from_numpy(table.lengths[drawn_B.numpy()])
    mask_BS = (torch.arange(ids_BS.shape[1]) < length_B[:, None]).long()
    output = forward(
        input_ids=ids_BS.to(device), attention_mask=mask_BS.to(device), labels=labels_BS.to(device), use_cache=False
    )
    loss: Tensor = output.loss
    return loss


def _nats(backbone: Backbone, table: TokenTable, forward: Forward, batch_size: int) -> float:
    total = 0.0
    with torch.no_grad():
        for drawn_B in torch.arange(len(table)).split(batch_size):
            labelled = int(table.label_counts[drawn_B.numpy()].sum())
            total += labelled * float(answer_loss(backbone, table, forward, drawn_B))
    return total / int(table.label_counts.sum())


def _padded(table: TokenTable, column: Literal["input_ids", "labels"], drawn_B: Tensor, fill: int) -> Tensor:
    rows = [torch.tensor(row, dtype=torch.long) for row in table.slices(column, drawn_B.tolist())]
    return pad_sequence(rows, batch_first=True, padding_value=fill)


def _language_model(backbone: Backbone, table: TokenTable) -> None:
    if backbone.form == "encoder" or table.form != backbone.form:
        raise MultituneError(
            f"Task '{table.task}' is tokenised for a {table.form} model, the backbone is a {backbone.form} one.",
            f"task {table.task}",
            "Tokenise it for a causal or seq2seq backbone; give an encoder's tasks as `labelled_task`.",
        )
