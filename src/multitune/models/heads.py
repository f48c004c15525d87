"""Encoders with one head per task.

All heads lie in one matrix: one pass of the encoder and one matrix product give the logits of every task for every row,
and each row then takes the slice of its own task. No loop over rows or tasks.

Shape legend: ``B`` rows, ``L`` positions, ``D`` width, ``C`` outputs of all heads together, ``K`` outputs of the widest
head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from multitune.errors import MultituneError
from multitune.models.location import check_safetensors
from multitune.tasks.task import Task

Pooling = Literal["mean", "cls"]

HEADS_FILE = "heads.json"
WEIGHTS_FILE = "heads.safetensors"

DEFAULT_DROPOUT = 0.1
"""Of the pooled vector, as BERT fine-tunes (arXiv:1810.04805), unless the model's config names another rate."""


@dataclass(frozen=True)
class Head:
    """One task's head.

    Attributes:
        task: its name.
        kind: what it predicts.
        choices: in the order of the logits (label only).
        scale: mean and standard deviation of the values that a regress head was trained on; its output is in these
            units. None before training: outputs are taken as they are.
    """

    task: str
    kind: Literal["label", "regress"]
    choices: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None

    def same_task(self, other: Head) -> bool:
        """Return whether two heads answer the same question, whatever their scales."""
        return (self.task, self.kind, self.choices) == (other.task, other.kind, other.choices)

    @property
    def outputs(self) -> int:
        """Number of logits: one per choice, or one number."""
        return len(self.choices) if self.kind == "label" else 1


class MultiTaskEncoder(nn.Module):
    """A shared encoder with a linear head per task.

    Args:
        encoder: a transformers encoder (or a PeftModel around one); gives ``last_hidden_state``.
        heads: in the order of the task ids.
        pooling: ``mean`` over tokens that are not padding (all-MiniLM-L6-v2 was trained so), or the first, ``cls``.
        dropout: rate on the pooled vector.
        seed: of the heads' initial weights, N(0, 0.02^2) with zero bias, as BERT.
    """

    outputs: Tensor
    offsets: Tensor

    def __init__(
        self,
        encoder: Any,
        heads: Sequence[Head],
        *,
        pooling: Pooling = "mean",
        dropout: float = DEFAULT_DROPOUT,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = tuple(heads)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        outputs_T = torch.tensor([head.outputs for head in self.heads])
        width, device = encoder.config.hidden_size, encoder.device
        generator = torch.Generator().manual_seed(seed)
        weight_CD = 0.02 * torch.randn(int(outputs_T.sum()), width, generator=generator)
        self.weight = nn.Parameter(weight_CD.to(device))
        self.bias = nn.Parameter(torch.zeros(int(outputs_T.sum()), device=device))
        self.register_buffer("outputs", outputs_T.to(device), persistent=False)
        self.register_buffer("offsets", (outputs_T.cumsum(0) - outputs_T).to(device), persistent=False)
        self.widest = int(outputs_T.max())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task_ids: Tensor) -> Tensor:
        """Return float32 logits [B, K]; past the outputs of a row's own task they are -inf.

        Args:
            input_ids: int64 [B, L].
            attention_mask: int64 [B, L], 0 on padding.
            task_ids: int64 [B], index into the heads; -1 marks a row that is padding (its logits are of no use).
        """
        pooled_BD = self.dropout(self.pooled(input_ids, attention_mask))
        logits_BC = F.linear(pooled_BD.to(self.weight.dtype), self.weight, self.bias).float()
        task_B = task_ids.clamp_min(0)
        place_K = torch.arange(self.widest, device=task_ids.device)
        column_BK = (self.offsets[task_B, None] + place_K).clamp_max(logits_BC.shape[1] - 1)
        absent_BK = place_K >= self.outputs[task_B, None]
        return logits_BC.gather(1, column_BK).masked_fill(absent_BK, float("-inf"))

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per row [B, D]."""
        states_BLD = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        states_BLD = states_BLD[:, -input_ids.shape[1] :]  # without the virtual tokens of prompt learning
        if self.pooling == "cls":
            return states_BLD[:, 0]
        mask_BL1 = attention_mask[..., None].to(states_BLD.dtype)
        return (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)

    def task_index(self, task: str) -> int:
        """Return the task id of a head.

        Raises:
            MultituneError: there is no head for the task.
        """
        names = [head.task for head in self.heads]
        if task not in names:
            raise MultituneError(
                f"The encoder has no head for task '{task}'.", f"task {task}", f"It has heads for: {', '.join(names)}."
            )
        return names.index(task)

    @property
    def config(self) -> Any:
        """The encoder's transformers config."""
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        """Where the heads lie."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder's weights."""
        return self.encoder.dtype


def batch_logits(model: MultiTaskEncoder, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits [n, K] of every row that is not padding; batch as in `head_losses`."""
    present_B = batch["task_ids"] >= 0
    logits_nK: Tensor = model(
        batch["input_ids"][present_B], batch["attention_mask"][present_B], batch["task_ids"][present_B]
    )
    return logits_nK


def head_losses(model: MultiTaskEncoder, batch: Mapping[str, Tensor], logits_nK: Tensor | None = None) -> Tensor:
    """Return cross-entropy (label) or squared error (regress) of every row that is not padding: float32 [n].

    The error of a regress head is that of standardised values, so that a task in thousands weighs no more than others.

    Args:
        model: encoder with heads.
        batch: ``input_ids``, ``attention_mask`` [B, L]; ``task_ids`` [B], -1 on padding; ``values`` float64 [B], the
            index of the choice or the number to predict.
        logits_nK: what `batch_logits` returned, where it is known already.
    """
    present_B = batch["task_ids"] >= 0
    task_n, values_n = batch["task_ids"][present_B], batch["values"][present_B]
    if logits_nK is None:
        logits_nK = batch_logits(model, batch)
    regresses_T = torch.tensor([head.kind == "regress" for head in model.heads], device=task_n.device)
    regresses_n = regresses_T[task_n]
    index_n = torch.where(regresses_n, 0, values_n).long()
    cross_entropy_n = F.cross_entropy(logits_nK, index_n, reduction="none")
    # the first logit is finite in every head, so that the branch not taken has finite gradients too
    scale_T2 = torch.tensor([head.scale or (0.0, 1.0) for head in model.heads], dtype=torch.float64)
    mean_n, deviation_n = scale_T2.to(task_n.device)[task_n].unbind(1)
    squared_error_n = (logits_nK[:, 0] - ((values_n - mean_n) / deviation_n).float()).square()
    return torch.where(regresses_n, squared_error_n, cross_entropy_n)


def fit_scales(model: MultiTaskEncoder, values: Mapping[str, np.ndarray]) -> None:
    """Give every regress head that has none yet the scale of its task's training values.

    A head that was trained before keeps its scale, in which its weights are. Values that are all equal have a
    deviation of 1: the head then predicts their mean.

    Args:
        model: its heads are changed in place.
        values: training values by task.
    """
    heads = []
    for head in model.heads:
        if head.kind == "regress" and head.scale is None and head.task in values:
            own = np.asarray(values[head.task], dtype=np.float64)
            mean, deviation = float(own.mean()), float(own.std())
            constant = deviation <= 1e-12 * max(1.0, abs(mean))  # what rounding leaves of nothing
            head = replace(head, scale=(mean, 1.0 if constant else deviation))
        heads.append(head)
    model.heads = tuple(heads)


def encoder_with_heads(encoder: Any, tasks: Sequence[Task], seed: int) -> MultiTaskEncoder:
    """Put a new head per task on an encoder.

    Raises:
        MultituneError: no task, or one that is neither label nor regress.
    """
    if not tasks:
        raise MultituneError(
            "An encoder needs at least one task to have a head for.",
            "tasks",
            "Give tasks of kind label or regress, or choose a causal or encoder-decoder model.",
        )
    freeze_pooler(encoder)
    rate = getattr(encoder.config, "classifier_dropout", None)
    dropout = DEFAULT_DROPOUT if rate is None else rate
    return MultiTaskEncoder(encoder, [task_head(task) for task in tasks], dropout=dropout, seed=seed)


def with_heads_for(
    model: MultiTaskEncoder, tasks: Sequence[Task], others: Sequence[Task], seed: int
) -> MultiTaskEncoder:
    """Put the heads of some tasks first on a trained encoder, in their order, so that task ids are their indices.

    A head that the model has for the same task and choices keeps its weights; the others are new.

    Args:
        model: as trained.
        tasks: resolved tasks to train on next.
        others: tasks whose learned heads stay behind them.
        seed: of new heads.
    """
    found = encoder_with_heads(model.encoder, [*tasks, *others], seed)
    found.pooling, found.dropout.p = model.pooling, model.dropout.p
    heads = list(found.heads)
    with torch.no_grad():
        for place, (head, offset) in enumerate(zip(found.heads, found.offsets.tolist(), strict=True)):
            for learned, start in zip(model.heads, model.offsets.tolist(), strict=True):
                if head.same_task(learned):
                    here, there = slice(offset, offset + head.outputs), slice(start, start + head.outputs)
                    found.weight[here], found.bias[here] = model.weight[there], model.bias[there]
                    heads[place] = learned
    found.heads = tuple(heads)
    return found


def freeze_pooler(encoder: Any) -> None:
    """BERT's own pooler takes no part in the loss: it must not count as trained."""
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def task_head(task: Task) -> Head:
    """Return the head that a resolved task needs.

    Raises:
        MultituneError: a kind that has no head, or a label task without choices.
    """
    where = f"task {task.name}"
    if task.kind == "regress":
        return Head(task.name, "regress")
    if task.kind != "label":
        raise MultituneError(
            f"An encoder cannot learn a task of kind {task.kind}: it has no fixed set of outputs.",
            where,
            "Make it kind label with fixed choices, or use a causal or encoder-decoder model for it.",
        )
    choices = tuple(dict.fromkeys(task.choices.values())) if isinstance(task.choices, dict) else task.choices
    if not isinstance(choices, tuple) or len(choices) < 2:
        raise MultituneError("A label task needs at least two choices.", where, "List them under choices.")
    return Head(task.name, "label", choices)


def save_heads(model: MultiTaskEncoder, folder: Path) -> None:
    """Write the heads beside the encoder: ``heads.safetensors`` (``task/weight``, ``task/bias``) and ``heads.json``."""
    tensors: dict[str, Tensor] = {}
    for head, offset in zip(model.heads, model.offsets.tolist(), strict=True):
        rows = slice(offset, offset + head.outputs)
        tensors[f"{head.task}/weight"] = model.weight.detach()[rows].cpu().contiguous().clone()
        tensors[f"{head.task}/bias"] = model.bias.detach()[rows].cpu().contiguous().clone()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    described = {
        "pooling": model.pooling,
        "dropout": model.dropout.p,
        "heads": [asdict(head) | {"outputs": head.outputs} for head in model.heads],
    }
    (folder / HEADS_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_heads(encoder: Any, folder: Path) -> MultiTaskEncoder:
    """Put the heads that `save_heads` wrote on an encoder.

    Raises:
        MultituneError: the files are missing or do not belong together.
    """
    try:
        check_safetensors(folder / WEIGHTS_FILE)
        described = json.loads((folder / HEADS_FILE).read_text(encoding="utf-8"))
        heads = [described_head(entry) for entry in described["heads"]]
        freeze_pooler(encoder)
        model = MultiTaskEncoder(encoder, heads, pooling=described["pooling"], dropout=described["dropout"])
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file, torch.no_grad():
            model.weight.copy_(torch.cat([file.get_tensor(f"{head.task}/weight") for head in heads]))
            model.bias.copy_(torch.cat([file.get_tensor(f"{head.task}/bias") for head in heads]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise MultituneError(
            f"The heads of the encoder cannot be read: {error}.", str(folder), "Train or copy the model again."
        ) from None
    return model


def described_head(entry: Mapping[str, Any]) -> Head:
    """Return the head of an entry of ``heads.json``."""
    scale = entry.get("scale")
    return Head(entry["task"], entry["kind"], tuple(entry["choices"]), tuple(scale) if scale else None)
