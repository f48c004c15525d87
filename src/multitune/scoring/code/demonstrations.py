"""Solved examples before a query: the same ones drawn at random for all queries, or those nearest to each.

A demonstration is a training example as it is trained on, prompt and target; a line break stands between two.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from multitune.errors import MultituneError

if TYPE_CHECKING:
    from multitune.models.loading import Backbone
    from multitune.tasks.task import Prompted, Task

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors of length 1, float [N, D]."""

BETWEEN = "\n"


def drawn(store: Sequence[Prompted], count: int, seed: int) -> list[Prompted]:
    """Draw ``count`` different examples of a store; those of a smaller count begin those of a larger one.

    Raises:
        MultituneError: the store has not so many.
    """
    _refuse_too_few(store, count)
    order = random.Random(f"demonstrations/{seed}").sample(range(len(store)), len(store))
    return [store[place] for place in order[:count]]


def nearest(store: Sequence[str], queries: Sequence[str], count: int, embed: Embed | None = None) -> np.ndarray:
    """Return places in the store of the ``count`` texts nearest to each query, nearest first; int [queries, count].

    Args:
        store, queries: texts.
        count: at most the size of the store.
        embed: the vectors whose cosine is the nearness; None: TF-IDF of the store's words.

    Raises:
        MultituneError: TF-IDF is asked for and scikit-learn is not installed.
    """
    if count == 0:
        return np.zeros((len(queries), 0), dtype=np.int64)
    if embed is None:
        vectors, asked = _tf_idf(store, queries)
    else:
        vectors, asked = embed(store), embed(queries)
    blocks = [asked[start : start + 256] @ vectors.T for start in range(0, len(queries), 256)]
    near = [block if isinstance(block, np.ndarray) else block.toarray() for block in blocks]
    # of two that are equally near the earlier one: rounding off makes their nearness equal
    return np.concatenate([np.argsort(-np.round(block, 9), axis=1, kind="stable")[:, :count] for block in near])


def with_demonstrations(query: Prompted, demonstrations: Sequence[Prompted]) -> Prompted:
    """Return a query whose prompt begins with demonstrations, in their order; none of them leaves it as it is."""
    shown = "".join(_solved(one) + BETWEEN for one in demonstrations)
    return replace(query, prompt=shown + query.prompt)


def fitted(query: Prompted, demonstrations: Sequence[Prompted], backbone: Backbone, task: Task) -> tuple[Prompted, int]:
    """Return a query behind as many demonstrations as fit the model's positions, and how many were left out.

    Demonstrations are left out whole, the last first: none is cut, nor is the query.

    Args:
        demonstrations: the most important first; they stand in the opposite order, so that it is next to the query.
        backbone: whose positions have to hold the prompt and the task's ``max_new_tokens``.

    Raises:
        MultituneError: not even the query alone fits.
    """
    from multitune.decoding.prompt_batches import context_length
    from multitune.mixing.encoding import encode_prompt

    room = context_length(backbone.model) - (0 if backbone.form == "seq2seq" else task.max_new_tokens)
    for kept in range(len(demonstrations), -1, -1):
        prompted = with_demonstrations(query, demonstrations[:kept][::-1])
        if len(encode_prompt(prompted, backbone.tokenizer, backbone.form, task)) <= room:
            return prompted, len(demonstrations) - kept
    raise MultituneError(
        f"The prompt does not fit the model's positions beside {task.max_new_tokens} new tokens.",
        query.example.where,
        "Leave the row out, shorten its prompt, or set a smaller max_new_tokens.",
    )


def sentence_encoder(path: str, batch: int = 64) -> Embed:
    """Return the vectors of an encoder of the hub or a folder: its last states averaged over the text's tokens.

    Raises:
        MultituneError: it cannot be loaded, or is no encoder.
    """
    from multitune.models.config import ModelConfig
    from multitune.models.pretrained import load_pretrained

    backbone = load_pretrained(ModelConfig(name=path), "auto", 0)
    if backbone.form != "encoder":
        raise MultituneError(f"'{path}' is no encoder.", f"--encoder {path}", "Name an encoder of sentences.")

    def embed(texts: Sequence[str]) -> np.ndarray:
        import torch

        rows = []
        with torch.no_grad():
            for start in range(0, len(texts), batch):
                inputs = backbone.tokenizer(
                    list(texts[start : start + batch]),
                    padding=True,
                    truncation=True,
                    max_length=512,
                    return_tensors="pt",
                ).to(backbone.model.device)
                states_BSD = backbone.model(**inputs).last_hidden_state.float()
                mask_BS1 = inputs["attention_mask"][..., None]
                mean_BD = (states_BSD * mask_BS1).sum(1) / mask_BS1.sum(1).clamp(min=1)
                rows.append(torch.nn.functional.normalize(mean_BD, dim=-1).cpu().numpy())
        return np.concatenate(rows)

    return embed


def _tf_idf(store: Sequence[str], queries: Sequence[str]) -> tuple[Any, Any]:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ModuleNotFoundError as error:
        raise MultituneError(
            "Nearest examples are found by scikit-learn, which is not installed.",
            "demonstrations",
            "pip install 'multitune[code]', or name an encoder of sentences.",
        ) from error
    # every word counts, single letters and signs too: in instructions for code they are what tells two apart
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", lowercase=True)
    return words.fit_transform(store), words.transform(queries)


def _solved(example: Prompted) -> str:
    if example.messages:
        raise MultituneError(
            "Rows that are chats cannot stand before a query as demonstrations.",
            example.example.where,
            "Write the task with prompt and target templates.",
        )
    apart = not example.prompt or example.prompt[-1].isspace() or example.target[:1].isspace()
    return example.prompt + ("" if apart else " ") + example.target


def _refuse_too_few(store: Sequence[Prompted], count: int) -> None:
    if count > len(store):
        raise MultituneError(
            f"{count} demonstrations are asked for, and the training rows are {len(store)}.",
            "demonstrations",
            "Ask for fewer, or give the task more training rows.",
        )
