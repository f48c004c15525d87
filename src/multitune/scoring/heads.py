"""Predictions of an encoder's heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from multitune.decoding.prompt_batches import batches_by_length, context_length, pad
from multitune.errors import MultituneError
from multitune.mixing.encoding import prompt_affixes
from multitune.mixing.truncation import truncate
from multitune.models.heads import Head, MultiTaskEncoder
from multitune.models.packed import evaluating

if TYPE_CHECKING:
    from multitune.models.loading import Backbone


def head_predictions(
    backbone: Backbone,
    task: str,
    prompts: Sequence[list[int]],
    *,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return what a task's head says of every prompt: label, the index of its highest logit, int64; regress, float64.

    Args:
        task: name of the task; the backbone has a head for it.
        prompts: token ids, with what the tokenizer puts around a text; one too long for the encoder's positions is cut
            on the right, as in training.
        batch_tokens: rows times longest prompt of a batch.
        progress: called with (prompts done, prompts in all) after every batch.

    Raises:
        MultituneError: there is no head for the task.
    """
    model: MultiTaskEncoder = backbone.model
    index = model.task_index(task)
    limit = context_length(model.encoder)
    affixes = prompt_affixes(backbone.tokenizer, "encoder")
    fitted = [truncate(list(prompt), [], "encoder", limit, affixes)[0] for prompt in prompts]

    logits_NK = np.empty((len(fitted), model.heads[index].outputs))
    done = 0
    with evaluating(model), torch.no_grad():
        for batch in batches_by_length(np.array([len(prompt) for prompt in fitted], dtype=np.int64), batch_tokens):
            input_ids, mask = pad([fitted[i] for i in batch], backbone.tokenizer.pad_token_id, "right", model.device)
            task_ids = torch.full((len(batch),), index, device=model.device)
            logits_NK[batch] = model(input_ids, mask, task_ids)[:, : logits_NK.shape[1]].cpu().numpy()
            done += len(batch)
            if progress is not None:
                progress(done, len(fitted))
    if model.heads[index].kind == "label":
        return logits_NK.argmax(1)
    mean, deviation = model.heads[index].scale or (0.0, 1.0)
    return mean + deviation * logits_NK[:, 0]


def head_of(backbone: Backbone, task: str, choices: tuple[str, ...]) -> Head:
    """Return the head of a task, having made sure that it was trained for these choices (() for regress).

    Raises:
        MultituneError: there is no head for the task, or it tells other choices apart.
    """
    head = backbone.model.heads[backbone.model.task_index(task)]
    if head.choices != choices:
        raise MultituneError(
            f"The head of task '{task}' tells {len(head.choices)} choices apart ({', '.join(head.choices[:5])}), "
            f"not the {len(choices)} of the task ({', '.join(choices[:5])}).",
            f"tasks.{task}.choices",
            "Give the task the choices with which the model was trained, in the same order.",
        )
    return head
