"""Exact-match accuracy and loss of a causal model on the synthetic skills, with and without demonstrations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from multitune.models.tiny.batches import last_answer
from multitune.tasks.synthetic import (
    END,
    EPISODES,
    HELD_OUT_SKILLS,
    SKILLS,
    Document,
    draw,
    episode_document,
)

SHOTS = 5
EPISODE_SHOTS = 16


@dataclass(frozen=True, slots=True)
class SkillScore:
    """What a model gives on one skill."""

    exact: int  # answers that greedy decoding writes, followed by the end token or a new line
    documents: int
    loss_sum: float  # nats, over the tokens of the answers
    tokens: int

    @property
    def accuracy(self) -> float:
        """Share of documents answered exactly."""
        return self.exact / self.documents

    @property
    def loss(self) -> float:
        """Nats per token of the answers."""
        return self.loss_sum / self.tokens


@torch.no_grad()
def score_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: Iterable[Document], batch_size: int = 32
) -> SkillScore:
    """Score the last answer of each document, given all that stands before it.

    Where demonstrations stand before it, whether a document ends is a matter of taste: a new line counts as an end.
    """
    new_line = tokenizer.convert_tokens_to_ids("Ċ")
    encoded = sorted((last_answer(tokenizer, pieces) for pieces in documents), key=lambda pair: len(pair[0]))
    exact, loss_sum, tokens = 0, 0.0, 0
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        longest = max(len(ids) for ids, _ in rows)
        input_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in rows])
        targets = torch.full_like(input_ids, -100)
        for row, (ids, answer) in enumerate(rows):
            targets[row, len(ids) - answer - 1 : len(ids) - 1] = torch.tensor(ids[len(ids) - answer :])
        # Padding stands on the right, so that causal attention alone hides it from every real token.
        logits = model(input_ids=input_ids, use_cache=False).logits.float()
        asked = targets != -100
        loss_sum += float(cross_entropy(logits[asked], targets[asked], reduction="sum"))
        tokens += int(asked.sum())
        greedy = logits.argmax(-1)
        ended = (targets == tokenizer.eos_token_id) & (greedy == new_line)
        exact += int(((greedy == targets) | ended | ~asked).all(1).sum())
    return SkillScore(exact, len(encoded), loss_sum, tokens)


def question(skill_name: str, rng: Random, shots: int) -> Document:
    """A test row of a skill after `shots` solved training rows; the instruction stands on top when there are none."""
    skill = (SKILLS | HELD_OUT_SKILLS)[skill_name]
    row = draw(skill, rng, "test")
    pieces: Document = [] if shots else [(f"{row['instruction']}\n", False)]
    for _ in range(shots):
        shot = draw(skill, rng, "train")
        pieces += [(f"Input: {shot['input']}\nOutput:", False), (f" {shot['target']}\n\n", True)]
    return [*pieces, (f"Input: {row['input']}\nOutput:", False), (f" {row['target']}{END}", True)]


def score_skills(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, names: Iterable[str], shots: int, rows: int, seed: int
) -> dict[str, SkillScore]:
    """Score each named skill on `rows` test questions with `shots` demonstrations."""
    scores = {}
    for name in names:
        rng = Random(f"evaluate/{name}/{seed}")
        scores[name] = score_documents(model, tokenizer, [question(name, rng, shots) for _ in range(rows)])
    return scores


def score_episodes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: int, seed: int
) -> dict[str, SkillScore]:
    """Score the last of `EPISODE_SHOTS` rows of new episodes, whose rule only the rows before it tell."""
    scores = {}
    for name, episode in EPISODES.items():
        rng = Random(f"evaluate/{name}/{seed}")
        documents = [episode_document(rng, episode, EPISODE_SHOTS) for _ in range(rows)]
        scores[name] = score_documents(model, tokenizer, documents)
    return scores
