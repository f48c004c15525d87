"""Which texts of a store are nearest to a query: by their words, or by an encoder of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from multitune.errors import MultituneError

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors of length 1, float [N, D]."""


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
            "rag",
            "pip install 'multitune[code]', or name an encoder of sentences.",
        ) from error
    # every word counts, single letters and signs too: in instructions for code they are what tells two apart
    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", lowercase=True)
    return words.fit_transform(store), words.transform(queries)
