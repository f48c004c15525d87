"""The tokenizer of `tiny`: byte-level BPE over documents of the synthetic tasks."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multitune.tasks.synthetic import document

END, PAD = "<|endoftext|>", "<|pad|>"
SPECIAL_TOKENS = [END, PAD, "<|system|>", "<|user|>", "<|assistant|>"]

# Words with the space before them, every digit by itself, runs of marks, newlines apart from other space.
PIECES = r" ?\p{L}+| ?\p{N}|\n| ?[^\s\p{L}\p{N}]+|\s"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}"
    "{%- generation -%}{{- message['content'] + '<|endoftext|>' -}}{%- endgeneration -%}"
    "{%- elif message['role'] in ['system', 'user'] -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- else -%}"
    "{{- raise_exception('Roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def _corpus(seed: int, documents: int) -> Iterator[str]:
    rng = Random(f"tokenizer/{seed}")
    for _ in range(documents):
        for text, _ in document(rng):
            yield text.replace(END, "")


def train_tokenizer(
    seed: int, vocabulary: int = 2048, documents: int = 40_000, max_length: int = 1024
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on generated documents; any text can be encoded, nothing is unknown.

    No token is added at either end of a text: `<|endoftext|>` ends documents and turns, and is bos and eos.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=SPECIAL_TOKENS[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
