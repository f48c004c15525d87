"""Packed rows of generated documents; a pure function of (seed, step).

Shapes: `B` rows, `S` tokens per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from multitune.tasks.synthetic import SKILLS, Document, document

TEXT_WEIGHT = 0.03  # of a token that is no answer; the inputs are mostly random, so little can be learned from them


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of documents that do not see one another."""

    input_ids: torch.Tensor  # int64 [B, S]
    targets: torch.Tensor  # int64 [B, S]: the next token of the same document
    weights: (
        torch.Tensor
    )  # float32 [B, S]: 1 before an answer's token, TEXT_WEIGHT before others, 0 at ends and padding
    position_ids: torch.Tensor  # int64 [B, S]
    mask: torch.Tensor  # bool [B, 1, S, S]: True where a token sees another


def encode_document(tokenizer: PreTrainedTokenizerFast, pieces: Document) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether it belongs to an answer; pieces are tokenised apart, like prompt and target."""
    ids: list[int] = []
    answers: list[bool] = []
    encodings = tokenizer.backend_tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
    for encoding, (_, is_answer) in zip(encodings, pieces, strict=True):
        ids += encoding.ids
        answers += [is_answer] * len(encoding.ids)
    return ids, answers


def _place(lengths: list[int], length: int, row_length: int) -> int | None:
    """The first row with room for `length` tokens."""
    return next((row for row, used in enumerate(lengths) if used + length <= row_length), None)


def build_batch(
    tokenizer: PreTrainedTokenizerFast,
    rng: Random,
    rows: int,
    row_length: int,
    max_shots: int,
    episodes: float,
    skills: Sequence[str] = tuple(SKILLS),
) -> Batch:
    """Fill `rows` rows of `row_length` tokens with documents, first fit; stops when ten in turn find no room."""
    ids_BS = np.full((rows, row_length), tokenizer.pad_token_id, dtype=np.int64)
    targets_BS = np.zeros((rows, row_length), dtype=np.int64)
    weights_BS = np.zeros((rows, row_length), dtype=np.float32)
    positions_BS = np.zeros((rows, row_length), dtype=np.int64)
    documents_BS = np.full((rows, row_length), -1, dtype=np.int64)
    used = [0] * rows
    misses = count = 0
    while misses < 10:
        pieces = document(rng, (2, max_shots), episodes, skills)
        if rng.random() < 0.1:
            pieces = [(tokenizer.bos_token, False), *pieces]
        ids, answers = encode_document(tokenizer, pieces)
        row = _place(used, len(ids), row_length)
        if row is None:
            misses += 1
            continue
        misses = 0
        start, stop = used[row], used[row] + len(ids)
        ids_BS[row, start:stop] = ids
        targets_BS[row, start : stop - 1] = ids[1:]
        weights_BS[row, start : stop - 1] = np.where(answers[1:], 1.0, TEXT_WEIGHT)
        positions_BS[row, start:stop] = np.arange(len(ids))
        documents_BS[row, start:stop] = count
        used[row], count = stop, count + 1
    documents = torch.from_numpy(documents_BS)
    mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()  # padding sees padding: no empty row
    return Batch(
        torch.from_numpy(ids_BS),
        torch.from_numpy(targets_BS),
        torch.from_numpy(weights_BS),
        torch.from_numpy(positions_BS),
        mask,
    )


def last_answer(tokenizer: PreTrainedTokenizerFast, pieces: Document) -> tuple[list[int], int]:
    """Token ids of a document, and how many of them, at its end, are its last answer with the end token."""
    ids, _ = encode_document(tokenizer, pieces)
    return ids, len(encode_document(tokenizer, pieces[-1:])[0])
