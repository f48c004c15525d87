"""Which expert led every token, and how far: kept as texts are written, and as JSON lines.

Shape legend: ``B`` rows, ``S`` tokens written, ``T`` experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIGITS = 4  # of a coefficient in a file


@dataclass(frozen=True)
class TracedText:
    """The coefficients with which one text was written.

    Attributes:
        prompt: token ids, without padding.
        tokens: token ids that were written, the end included; empty where choices were scored after the prompt.
        alpha_ST: coefficient of every expert at every token; for choices one line, that of their first tokens.
    """

    prompt: list[int]
    tokens: list[int]
    alpha_ST: list[list[float]]


def traced_texts(
    sequence_BL: Tensor, mask: Tensor | None, prompt_length: int, steps: Sequence[Tensor], ends: Sequence[Any]
) -> list[TracedText]:
    """Return the texts of one batch with their coefficients; what follows the end of a row is left out.

    Args:
        sequence_BL: prompts, padded on the left, and what was written after them.
        mask: attention mask of the prompts; None where nothing is padded. Rows of it may stand for several sequences.
        prompt_length: columns of the prompts.
        steps: coefficients [B, T] of every step.
        ends: end-of-text token or tokens, and the padding token.
    """
    if mask is None:
        mask = torch.ones(len(sequence_BL), prompt_length, dtype=torch.long)
    mask = mask[:, :prompt_length].repeat_interleave(len(sequence_BL) // len(mask), 0).bool().cpu()
    alpha_BST = torch.stack(list(steps), dim=1).cpu()
    stops, padding = ends if ends else ((), None)
    stops = set(stops) if isinstance(stops, list | tuple) else {stops}
    texts = []
    for row, real, alpha_ST in zip(sequence_BL.cpu(), mask, alpha_BST, strict=True):
        tokens = row[prompt_length:].tolist()
        end = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
        while end == len(tokens) and tokens and tokens[-1] == padding and padding not in stops:
            tokens.pop()  # a row that a stop string ended
            end -= 1
        kept = alpha_ST[: end if ends else 1]
        texts.append(TracedText(row[:prompt_length][real].tolist(), tokens[:end], kept.tolist()))
    return texts


def write_trace(path: Path, texts: Iterable[TracedText], experts: Sequence[str], tokenizer: Any) -> None:
    """Write one line of JSON per text: the prompt, the tokens' texts and every expert's coefficient at each of them.

    Args:
        path: of the file; its folder is made.
        experts: their names, in the order of the coefficients.
        tokenizer: that of the large model.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        for text in texts:
            line = {
                "prompt": tokenizer.decode(text.prompt, skip_special_tokens=True),
                "tokens": tokenizer.convert_ids_to_tokens(text.tokens),
                "experts": list(experts),
                "alphas": [[round(alpha, DIGITS) for alpha in alpha_T] for alpha_T in text.alpha_ST],
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(path)
