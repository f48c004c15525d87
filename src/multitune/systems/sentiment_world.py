"""Made-up texts with a mood, and a small masked language model that has read some of them beside a label word.

A text is ten words, five of them positive or negative, each of which agrees with the text's class with probability
0.78; the rest is neutral.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from multitune.prompting.config import Pretraining
from multitune.prompting.learning import continue_pretraining
from multitune.prompting.template import Row

POSITIVE = tuple(f"good{n}" for n in range(20))
NEGATIVE = tuple(f"bad{n}" for n in range(20))
NEUTRAL = tuple(f"word{n}" for n in range(70))
LABEL_WORDS = ("terrible", "great")
TEMPLATE_WORDS = ("It", "was", ".")
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")

WORDS, MOODY, AGREEMENT = 10, 5, 0.78
LABELLED_SHARE = 0.1
"""Texts of the general corpus in which their label word stands, as 400 of 4000."""
TEMPLATE_SHARE = 0.2
"""Texts of the general corpus in which a word of the template stands, at random."""


def texts(rows: int, generator: np.random.Generator) -> tuple[list[list[str]], list[int]]:
    """Draw texts and their classes, 0 (negative) and 1 in equal shares."""
    classes = [int(each) for each in generator.permutation(rows) % 2]
    drawn = []
    for label in classes:
        agrees = generator.random(MOODY) < AGREEMENT
        moods = [(NEGATIVE, POSITIVE)[label if each else 1 - label] for each in agrees]
        words = [str(generator.choice(mood)) for mood in moods]
        words += [str(word) for word in generator.choice(NEUTRAL, WORDS - MOODY)]
        drawn.append([words[place] for place in generator.permutation(WORDS)])
    return drawn, classes


def labelled_rows(rows: int, generator: np.random.Generator) -> tuple[list[Row], list[float]]:
    """Draw rows with the field ``a``, and their classes."""
    drawn, classes = texts(rows, generator)
    return [{"a": " ".join(words)} for words in drawn], [float(label) for label in classes]


def few(each: int, generator: np.random.Generator) -> tuple[list[Row], list[float]]:
    """Draw as many rows of either class."""
    return labelled_rows(2 * each, generator)


def general_corpus(lines: int, generator: np.random.Generator) -> list[str]:
    """Draw what the model reads before anybody asks it anything."""
    found = []
    for words, label in zip(*texts(lines, generator), strict=True):
        if generator.random() < LABELLED_SHARE:
            words.insert(int(generator.integers(len(words) + 1)), LABEL_WORDS[label])
        if generator.random() < TEMPLATE_SHARE:
            words.insert(int(generator.integers(len(words) + 1)), str(generator.choice(TEMPLATE_WORDS)))
        found.append(" ".join(words))
    return found


def make_base(folder: Path, *, lines: int, pretraining: Pretraining, seed: int, work: Path) -> None:
    """Train a BERT of two layers and width 32 on a general corpus and save it with its tokenizer.

    Args:
        folder: receives the model.
        lines: of the corpus.
        pretraining: how.
        seed: of the corpus and the weights.
        work: for checkpoints.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = word_tokenizer((*POSITIVE, *NEGATIVE, *NEUTRAL, *LABEL_WORDS, *TEMPLATE_WORDS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=32,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    corpus = general_corpus(lines, np.random.default_rng(seed))
    continue_pretraining(model, tokenizer, corpus, pretraining, work, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def word_tokenizer(words: Sequence[str]):  # type: ignore[no-untyped-def]
    """Return a tokenizer of words parted by white space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
