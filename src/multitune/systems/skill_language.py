"""A tiny language of skills, in which the small reproductions of several systems speak.

48 tokens: padding, end, 6 markers, 40 symbols. A row is a marker, the symbols that the skill reads, the symbols that it
answers, the end; only answer and end carry loss. What a model knows of a skill is measured exactly, and a skill is
learned from nothing in seconds.

Shape legend: ``N`` rows, ``I`` symbols read, ``O`` symbols answered, ``S`` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

PADDING, END, MARKERS, SYMBOLS = 0, 1, 6, 40
FIRST_SYMBOL = 2 + MARKERS
VOCABULARY = FIRST_SYMBOL + SYMBOLS
FACTS = 400


@dataclass(frozen=True)
class Skill:
    """A function of symbols under a marker.

    Attributes:
        name: as in tables.
        marker: 0 to 5; it alone tells the model which skill a row is of.
        reads: number of symbols that it reads.
        answer: symbols 0 to 39, integers [N, I] -> [N, O].
        prompts: [P, I], the only prompts there are (facts); None: any symbols.
    """

    name: str
    marker: int
    reads: int
    answer: Callable[[Tensor], Tensor]
    prompts: Tensor | None = None

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Draw prompts [rows, I] at random, with replacement."""
        if self.prompts is None:
            return torch.randint(SYMBOLS, (rows, self.reads), generator=generator)
        return self.prompts[torch.randint(len(self.prompts), (rows,), generator=generator)]


def facts(seed: int, marker: int) -> Skill:
    """Return 400 facts of a world: three symbols, all triples different, to two symbols at random."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randperm(SYMBOLS**3, generator=generator)[:FACTS]
    place = torch.tensor([SYMBOLS**2, SYMBOLS, 1])
    answer_by_code = torch.zeros(SYMBOLS**3, 2, dtype=torch.long)
    answer_by_code[codes] = torch.randint(SYMBOLS, (FACTS, 2), generator=generator)
    prompts = codes[:, None] // place % SYMBOLS
    return Skill("facts", marker, 3, lambda prompt_NI: answer_by_code[(prompt_NI * place).sum(-1)], prompts)


def copy(marker: int) -> Skill:
    """Four symbols as they are."""
    return Skill("copy", marker, 4, lambda prompt_NI: prompt_NI)


def reverse(marker: int) -> Skill:
    """Four symbols backwards."""
    return Skill("reverse", marker, 4, lambda prompt_NI: prompt_NI.flip(-1))


def sort(marker: int) -> Skill:
    """Five symbols in ascending order."""
    return Skill("sort", marker, 5, lambda prompt_NI: prompt_NI.sort(-1).values)


def add_seven(marker: int) -> Skill:
    """Four symbols, each plus 7 modulo 40."""
    return Skill("add 7", marker, 4, lambda prompt_NI: (prompt_NI + 7) % SYMBOLS)


def triple_reversed(marker: int) -> Skill:
    """Four symbols, each times 3 modulo 40, backwards."""
    return Skill("times 3 reversed", marker, 4, lambda prompt_NI: (3 * prompt_NI % SYMBOLS).flip(-1))


def rotate_and_add(marker: int) -> Skill:
    """Four symbols, the first moved to the end, each plus 13 modulo 40."""
    return Skill("rotate and add 13", marker, 4, lambda prompt_NI: (prompt_NI.roll(-1, -1) + 13) % SYMBOLS)


def encode(skill: Skill, prompt_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token ids of whole rows and their labels, both [N, S]; labels are not shifted, -100 without loss."""
    marker_N1 = torch.full((len(prompt_NI), 1), 2 + skill.marker)
    end_N1 = torch.full((len(prompt_NI), 1), END)
    input_ids = torch.cat([marker_N1, prompt_NI + FIRST_SYMBOL, skill.answer(prompt_NI) + FIRST_SYMBOL, end_N1], dim=1)
    labels = input_ids.clone()
    labels[:, : 1 + skill.reads] = -100
    return input_ids, labels


def sample(skills: Sequence[Skill], rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw rows of all skills in equal numbers: (input_ids, labels), [rows, S], padded on the right.

    Args:
        skills: at least one.
        rows: spread over the skills; the first ones get one more where it does not divide.
        generator: of the prompts.
    """
    counts = [rows // len(skills) + (place < rows % len(skills)) for place in range(len(skills))]
    parts = [
        encode(skill, skill.draw(count, generator)) for skill, count in zip(skills, counts, strict=True) if count > 0
    ]
    longest = max(input_ids.shape[1] for input_ids, _ in parts)

    def padded(part: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=value)

    return (
        torch.cat([padded(input_ids, PADDING) for input_ids, _ in parts]),
        torch.cat([padded(labels, -100) for _, labels in parts]),
    )


def decoder(seed: int, layers: int = 4, width: int = 64, intermediate: int = 128, heads: int = 4) -> LlamaForCausalLM:
    """Return a Llama with random weights of the seed, in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=width,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=heads,
                max_position_embeddings=32,
                pad_token_id=PADDING,
                eos_token_id=END,
                bos_token_id=None,
            )
        )


def pretrain(
    model: LlamaForCausalLM, skills: Sequence[Skill], *, steps: int, learning_rate: float, rows: int, seed: int
) -> None:
    """Train the parameters that require gradients on all skills alike: AdamW, decayed linearly, in place.

    Args:
        model: any causal model of the language.
        skills: drawn from in equal numbers at every step.
        steps, rows: optimiser steps and rows of each.
        learning_rate: of the first step.
        seed: of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(steps):
        input_ids, labels = sample(skills, rows, generator)
        optimizer.zero_grad()
        model(input_ids=input_ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def exact_match(model: torch.nn.Module, skill: Skill, prompt_NI: Tensor) -> float:
    """Return the share of prompts whose whole answer, its end included, greedy decoding would write.

    One pass over the right answers tells it: greedy decoding writes an answer exactly when each of its tokens is the
    likeliest after those before it.
    """
    input_ids, labels = encode(skill, prompt_NI)
    predicted = model(input_ids=input_ids).logits[:, :-1].argmax(-1)
    wanted = labels[:, 1:]
    return ((predicted == wanted) | (wanted == -100)).all(-1).double().mean().item()
