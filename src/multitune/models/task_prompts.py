"""Prompts of tasks before the inputs of a model that itself trains: every row reads the prompt of its own task.

Stage 2 of ProMoT (arXiv:2211.00635) tunes a model behind frozen prompts; afterwards a task of its own is asked with the
prompt, any other without. The prompts are parameters of a child of the transformers model and act by hooks, so that
whatever calls the model finds them read. Rows of unknown tasks, and rows whose task nobody told, read none.

Saved, every prompt is an ordinary adapter of peft (prompt tuning) in a folder beside the model.

Shape legend: ``B`` rows, ``s`` vectors of a prompt, ``n`` tokens of the input, ``d`` width, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.models.location import PROMPTS_FOLDER
from multitune.models.packed import without_adapters
from multitune.models.tuners.soft_prompt_model import Reading
from multitune.models.tuners.task_ids import PROMPTS, UNKNOWN, TaskIds

ADAPTER_FILE, VECTORS = "adapter_model.safetensors", "prompt_embeddings"
"""Where peft keeps the vectors of prompt tuning."""

SAVED_AS = ("PROMPT_TUNING", "P_TUNING")
"""peft's types of adapters that are vectors before the input and nothing else."""


class TaskPrompts(nn.Module):
    """The prompts of tasks, in float32 whatever the model.

    Attributes:
        names: of the tasks, in the order of the ids.
        vectors: [s, d] of each; tasks whose rows come together have equally many.
        task_ids: which of them each row of the current batch reads.
    """

    embedding: Callable[[], Any]
    """Returns the model's embedding of tokens."""

    def __init__(self, prompts: Mapping[str, Tensor], embedding: Callable[[], Any], *, trains: bool) -> None:
        super().__init__()
        self.names = tuple(prompts)
        self.vectors = nn.ParameterList(nn.Parameter(one.float(), requires_grad=trains) for one in prompts.values())
        self.task_ids = TaskIds()
        self.__dict__["embedding"] = embedding  # of the model, which is no child of its prompts

    @property
    def acting(self) -> str | None:
        """The task, or the first of the tasks, whose rows are read now; None where no row has a prompt.

        Raises:
            ValueError: some rows have a prompt and others none, or the prompts are not equally long.
        """
        ids = self.task_ids.current
        if ids is None:
            return None
        tasks = _of_rows(ids).unique().tolist()
        if tasks == [UNKNOWN]:
            return None
        if UNKNOWN in tasks:
            raise ValueError("rows with a prompt and rows without one cannot stand in one batch")
        if len(lengths := {len(self.vectors[task]) for task in tasks}) > 1:
            raise ValueError(f"prompts of {sorted(lengths)} vectors cannot stand in one batch")
        return self.names[tasks[0]]

    def length(self, name: str) -> int:
        """Return s of a task's prompt."""
        return len(self.vectors[self.names.index(name)])

    def folded(self, name: str) -> tuple[Tensor, None]:
        """Return the prompt [s, d] and what it adds to the text: nothing."""
        return self.vectors[self.names.index(name)], None

    def of_rows(self, name: str, shared_sd: Tensor, embedded: Tensor) -> Tensor:
        """Return the prompt of every row [B, s, d], where all rows have one.

        Args:
            name: of `acting`.
            shared_sd: its prompt.
            embedded: the input [B, n, d], which tells the rows.
        """
        ids = self.task_ids.of(embedded)
        assert ids is not None  # one of them acts
        task_U, row_B = _of_rows(ids).unique(return_inverse=True)
        return torch.stack([self.vectors[task] for task in task_U.tolist()])[row_B]


def _of_rows(ids: Tensor) -> Tensor:
    """Return the task of every row from those of its tokens, of which padding has none."""
    return ids.amax(dim=1) if ids.ndim == 2 else ids


def attach_prompts(model: Any, prompts: Mapping[str, Tensor], *, trains: bool = False) -> None:
    """Let every row of a task read its prompt, once `tuners.task_ids.set_tasks` tells the rows' tasks.

    Prompts that the model has already are replaced. To be called after adapting: what is attached is no part of what an
    adaptation freezes or trains.

    Args:
        model: causal or encoder-decoder LM, plain or adapted in its layers.
        prompts: [s, d] by task; none: the model is left without.
        trains: whether they learn together with the model; they are frozen otherwise.

    Raises:
        MultituneError: an encoder, a model that keeps a state in place of a cache, or one of another width.
    """
    if hasattr(model, "heads"):
        raise MultituneError(
            "An encoder has one head per task, and nothing that a prompt could keep.",
            "soft_prompt",
            "Take soft_prompt out, or take a causal or encoder-decoder model.",
        )
    detach_prompts(model)
    if not prompts:
        return
    plain = without_adapters(model)
    if getattr(plain, "_is_stateful", False):
        raise MultituneError(
            "A recurrent model keeps no cache that tells whether its prompt was read.",
            f"soft_prompt on {type(plain).__name__}",
            "Take soft_prompt out, or take a model with attention.",
        )
    weight_Vd = plain.get_input_embeddings().weight
    for name, vectors in prompts.items():
        if vectors.ndim != 2 or vectors.shape[1] != weight_Vd.shape[1]:
            raise MultituneError(
                f"The prompt of '{name}' has vectors of {vectors.shape[-1]} numbers, and the model embeds tokens in "
                f"{weight_Vd.shape[1]}: it was trained on another base.",
                f"soft_prompt of {name}",
                "Train the prompt on the model that it is to stand before.",
            )
    here = {name: vectors.detach().to(weight_Vd.device) for name, vectors in prompts.items()}
    host = TaskPrompts(here, plain.get_input_embeddings, trains=trains)
    host.train(plain.training)
    setattr(plain, PROMPTS, host)
    host.__dict__["reading"] = Reading(host, plain)


def detach_prompts(model: Any) -> dict[str, Tensor]:
    """Take the prompts of tasks off a model and return them, [s, d] by task; {} where it has none."""
    plain = without_adapters(getattr(model, "encoder", model) if hasattr(model, "heads") else model)
    host: TaskPrompts | None = getattr(plain, PROMPTS, None)
    if host is None:
        return {}
    host.__dict__.pop("reading").end()
    delattr(plain, PROMPTS)
    return {name: vectors.detach() for name, vectors in zip(host.names, host.vectors, strict=True)}


@contextmanager
def without_prompts(model: Any) -> Iterator[dict[str, Tensor]]:
    """Take a model's prompts off for a while, in which it is what it would be without; yields them by task."""
    plain = without_adapters(getattr(model, "encoder", model) if hasattr(model, "heads") else model)
    host: TaskPrompts | None = getattr(plain, PROMPTS, None)
    prompts = detach_prompts(model)
    try:
        yield prompts
    finally:
        if host is not None:
            setattr(plain, PROMPTS, host)
            host.__dict__["reading"] = Reading(host, plain)


def fresh_prompts(
    model: Any, names: Sequence[str], length: int, init: Literal["vocabulary", "uniform"], seed: int
) -> dict[str, Tensor]:
    """Return a prompt per task that nothing has trained yet, [length, d].

    Args:
        model: whose embedding says what vectors look like.
        names: of the tasks; each has draws of its own.
        length: s; 0 is allowed, and is no prompt at all.
        init: rows of the embedding, of tokens at random; or uniform numbers with the embedding's standard deviation.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    weight_Vd = without_adapters(model).get_input_embeddings().weight.detach().float().cpu()
    found = {}
    for name in names:
        if init == "vocabulary":
            found[name] = weight_Vd[torch.randint(len(weight_Vd), (length,), generator=generator)]
        else:
            unit_sd = 2 * torch.rand(length, weight_Vd.shape[1], generator=generator) - 1
            found[name] = math.sqrt(3) * weight_Vd.std() * unit_sd  # a uniform number within 1 deviates by 1 / sqrt(3)
    return found


# -- on the disk -------------------------------------------------------------------------------------------------------


def read_prompt(folder: Path) -> Tensor:
    """Return the vectors [s, d] of a prompt that peft, or `save_prompts`, wrote.

    Of an encoder-decoder's, which peft may keep for the decoder too, those of the encoder.

    Raises:
        MultituneError: the folder holds no prompt, or a damaged one.
    """
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind in SAVED_AS:
            return load_file(folder / ADAPTER_FILE)[VECTORS][: config.num_virtual_tokens].float()
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise MultituneError(
            f"The prompt cannot be read: {str(error).strip().splitlines()[0]}", str(folder), "Train it again."
        ) from error
    raise MultituneError(
        f"An adapter of type {kind.lower()} is more than a prompt before the input.",
        str(folder),
        "Train the first stage with adapt: prompt_tuning or p_tuning.",
    )


def save_prompts(prompts: Mapping[str, Tensor], folder: Path, *, base: str, task_type: str) -> None:
    """Write every prompt as an adapter of peft: ``folder/prompts/TASK``.

    Args:
        prompts: [s, d] by task.
        folder: of the model.
        base: what the adapters call the model before which they stand.
        task_type: of peft, CAUSAL_LM or SEQ_2_SEQ_LM.
    """
    for name, vectors in prompts.items():
        place = folder / PROMPTS_FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        config: Any = _config(len(vectors))
        config.base_model_name_or_path, config.task_type, config.inference_mode = base, task_type, True
        config.num_transformer_submodules, config.token_dim = 1, vectors.shape[1]
        config.save_pretrained(str(place))
        save_file({VECTORS: vectors.detach().float().cpu().contiguous()}, place / ADAPTER_FILE)
        # safetensors lets nobody else read its files
        (place / ADAPTER_FILE).chmod((place / "adapter_config.json").stat().st_mode)


def saved_prompts(folder: Path) -> dict[str, Tensor]:
    """Return the prompts that lie beside a model, by task; {} where there are none.

    Raises:
        MultituneError: one of them is no prompt, or damaged.
    """
    places = sorted((folder / PROMPTS_FOLDER).glob("*/adapter_config.json"))
    return {place.parent.name: read_prompt(place.parent) for place in places}


def _config(length: int) -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(num_virtual_tokens=length)
