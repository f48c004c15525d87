"""Which task each row, or each token, of a batch belongs to: known to every layer that routes by it.

peft's typed models drop a keyword for task ids, and a layer that is computed again in the backward pass must still find
them: so they stay on the model until others are set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from multitune.errors import MultituneError

logger = logging.getLogger("multitune.models")

UNKNOWN = -1

WhichPrompt = Literal["own", "off", "always"]

SOFT_PROMPT = "soft_prompt"
"""Name of the prompt of a soft-prompt adapter of ours in a transformers model."""

PROMPTS = "task_prompts"
"""Name of the prompts of tasks (`multitune.models.task_prompts`) in a transformers model."""


class TaskIds:
    """The task ids of the current batch, shared by the layers of one model.

    Attributes:
        current: int64 [B] (one per row) or [B, S] (one per token; UNKNOWN for padding); None: all unknown.
    """

    def __init__(self) -> None:
        self.current: Tensor | None = None

    def of(self, hidden: Tensor) -> Tensor | None:
        """Return the ids of a layer's input [B k, ..., d], one per row or per token: every row's k beams follow it.

        Raises:
            ValueError: the rows of the input are no multiple of those of the ids, or the tokens others.
        """
        ids = self.current
        if ids is None:
            return None
        rows = hidden.shape[0]
        if ids.ndim == 2 and ids.shape[1] != hidden.shape[1]:
            raise ValueError(f"the tasks of {ids.shape[1]} tokens are known, and the input has {hidden.shape[1]}")
        if rows % len(ids):
            raise ValueError(f"{rows} rows cannot belong to the {len(ids)} rows whose tasks are known")
        return ids.to(hidden.device).repeat_interleave(rows // len(ids), dim=0)


def set_task_ids(model: Any, ids: Tensor | None) -> None:
    """Tell a model, adapted by a method that routes by task, which task each row or token belongs to.

    They hold until others are set. Other models are left alone.

    Args:
        model: a transformers model, plain or adapted.
        ids: int64 [B] or [B, S], places in the adapter's ``tasks``; UNKNOWN and None are answered by the average.
    """
    holder = task_ids_of(model)
    if holder is not None:
        holder.current = ids


@contextmanager
def without_task_ids(model: Any) -> Iterator[None]:
    """Forget the task ids of the current batch for a moment, in which the model reads another one."""
    holders = [holder for holder in (task_ids_of(model), _prompt_ids_of(model)) if holder is not None]
    kept = [holder.current for holder in holders]
    for holder in holders:
        holder.current = None
    try:
        yield
    finally:
        for holder, current in zip(holders, kept, strict=True):
            holder.current = current


def task_ids_of(model: Any) -> TaskIds | None:
    """Return what holds the task ids of a model; None for one that does not route by task."""
    carrier = model.encoder if hasattr(model, "heads") else model  # an encoder with heads, or the model itself
    found: TaskIds | None = getattr(getattr(carrier, "base_model", None), "task_ids", None)
    return found


def set_tasks(model: Any, names: Sequence[str]) -> None:
    """Tell a model that routes by task the names of the rows' tasks, instead of their numbers.

    Args:
        model: as for `set_task_ids`.
        names: one per row, or one for all rows; a name that the adapter does not know is answered by the average, and
            the log says so.
    """
    places = places_of(model, names)
    if places is not None:
        for name in sorted({name for name, place in zip(names, places.tolist(), strict=True) if place == UNKNOWN}):
            logger.warning("The adapter was not trained on '%s', which the average of its tasks answers.", name)
    set_task_ids(model, places)


def places_of(model: Any, names: Sequence[str]) -> Tensor | None:
    """Return where tasks stand among those of the adapter, int64 [T]: UNKNOWN where nowhere; None without routing."""
    if task_ids_of(model) is None:
        return None
    carrier = model.encoder if hasattr(model, "heads") else model
    known = list(carrier.active_peft_config.tasks or ())
    return torch.tensor([known.index(name) if name in known else UNKNOWN for name in names])


def set_prompt_ids(model: Any, ids: Tensor | None) -> None:
    """Tell a model that keeps prompts of tasks which one each row reads; they hold until others are set.

    Args:
        model: as for `set_task_ids`; one without prompts is left alone.
        ids: int64 [B], [1] for all rows or [B, S], places among the prompts; UNKNOWN and None read no prompt.
    """
    holder = _prompt_ids_of(model)
    if holder is not None:
        holder.current = ids


def prompts_of(model: Any, names: Sequence[str]) -> Tensor | None:
    """Return where tasks stand among those with a prompt, int64 [T]: UNKNOWN where nowhere; None without prompts."""
    known = list(getattr(_prompts_in(model), "names", ()))
    return torch.tensor([known.index(name) if name in known else UNKNOWN for name in names]) if known else None


def read_prompt_of(model: Any, task: str, which: WhichPrompt = "own") -> None:
    """Say which prompt the following rows read, all of them of one task; models without prompts are left alone.

    Args:
        model: plain or adapted.
        task: its name.
        which: ``own``: the task's own prompt, or none; ``off``: none; ``always``: the task's own or, where it has none,
            the only one there is.

    Raises:
        MultituneError: ``always``, and there are several from which to choose.
    """
    host = _prompts_in(model)
    if host is None:
        return
    place = host.names.index(task) if task in host.names else UNKNOWN
    if which == "always" and place == UNKNOWN:
        if len(host.names) > 1:
            raise MultituneError(
                f"The task '{task}' has no prompt of its own, and the model keeps those of {', '.join(host.names)}.",
                "score.soft_prompt: always",
                "Set soft_prompt to own, or score with a model that keeps one prompt.",
            )
        place = 0
    set_prompt_ids(model, torch.tensor([UNKNOWN if which == "off" else place]))


def _prompt_ids_of(model: Any) -> TaskIds | None:
    found: TaskIds | None = getattr(_prompts_in(model), "task_ids", None)
    return found


def _prompts_in(model: Any) -> Any:
    return getattr(model.get_base_model() if hasattr(model, "get_base_model") else model, PROMPTS, None)
