"""Choice scoring with one pass over the shared prompt against reading prompt and choice as one text.

    python benchmarks/choice_scoring.py [--rounds 3]

Both sides are this package's, and score the same texts with the same random Llama (8 M parameters, 8192 words) to the
same values. Three settings: eight demonstrations before the question and four choices; a short prompt and four choices
(where sharing has least to give); a short prompt and 150 choices. One thread, process time, A B B A in every round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.scoring.choices import choice_log_probabilities, whole_text_log_probabilities

WORDS = 8192
# name, tokens of a prompt (least, most), choices, tokens of a choice (least, most), examples
SETTINGS = [
    ("8 demonstrations, 4 choices", (320, 400), 4, (1, 4), 32),
    ("8 demonstrations, 4 one-token choices", (320, 400), 4, (1, 1), 32),
    ("short prompt, 4 choices", (20, 40), 4, (1, 4), 128),
    ("short prompt, 150 choices", (20, 40), 150, (1, 4), 12),
]


def random_backbone() -> Backbone:
    """Return a Llama of the embedded base's size with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    bare = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    return Backbone(LlamaForCausalLM(config).eval(), tokenizer, "causal", ModelConfig(name="random"))


def seconds(work: Callable[[], object]) -> float:
    """Return the process time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print seconds of both sides and their ratio for every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    backbone = random_backbone()
    generator = np.random.default_rng(0)

    def text(least: int, most: int) -> list[int]:
        return generator.integers(3, WORDS, size=generator.integers(least, most + 1)).tolist()

    print(f"{'setting':40} {'shared s':>9} {'whole s':>9} {'ratio':>6}   range over rounds")
    for name, prompt_tokens, choices, choice_tokens, examples in SETTINGS:
        prompts = [text(*prompt_tokens) for _ in range(examples)]
        shared_choices = [[text(*choice_tokens) for _ in range(choices)]] * examples

        def shared(prompts=prompts, choices=shared_choices) -> list[np.ndarray]:
            return choice_log_probabilities(backbone, prompts, choices)

        def whole(prompts=prompts, choices=shared_choices) -> list[np.ndarray]:
            return whole_text_log_probabilities(backbone, prompts, choices)

        difference = max(np.abs(a - b).max() for a, b in zip(shared(), whole(), strict=True))
        assert difference < 1e-3, difference
        rows = [(seconds(shared), seconds(whole), seconds(whole), seconds(shared)) for _ in range(rounds)]
        a = [(first + last) / 2 for first, _, _, last in rows]
        b = [(second + third) / 2 for _, second, third, _ in rows]
        ratios = [slow / fast for fast, slow in zip(a, b, strict=True)]
        figures = [statistics.median(a), statistics.median(b), statistics.median(ratios)]
        print(
            f"{name:40} {figures[0]:9.2f} {figures[1]:9.2f} {figures[2]:6.2f}   {min(ratios):.2f} to {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
