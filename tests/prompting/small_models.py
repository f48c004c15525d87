"""Tokenizers and masked language models of a few thousand parameters, made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

TEXTS = [
    "a b It was great . terrible bad okay good This is subjective objective",
    "p . Maybe , in this case h . Yes , I think that No ? Clearly Yet",
    "Description Entity Expression Human Location Number : incorrect correct negative positive world sports",
    "the film moved me and the play bored us , but the song was long and the book short",
]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like RoBERTa's: byte-level BPE, a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {text}" for text in TEXTS for _ in range(4)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def word_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are parted by white space, like an old BERT's without pieces."""
    known = words or sorted({word for text in TEXTS for word in text.split()})
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: n for n, word in enumerate([*special, *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


def small_roberta(tokenizer: Any, **changes: Any) -> RobertaForMaskedLM:
    """Return a RoBERTa with random weights for a tokenizer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": len(tokenizer),
    }
    config = RobertaConfig(max_position_embeddings=66, pad_token_id=tokenizer.pad_token_id, **sizes | changes)
    return _varied(RobertaForMaskedLM(config).eval())


def small_bert(tokenizer: Any, **changes: Any) -> BertForMaskedLM:
    """Return a BERT with random weights for a tokenizer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": len(tokenizer),
    }
    config = BertConfig(max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id, **sizes | changes)
    return _varied(BertForMaskedLM(config).eval())


@torch.no_grad()
def _varied(model: Any) -> Any:
    """Give the output bias values of its own, which begin at 0 and would hide what forgets them."""
    bias = model.get_output_embeddings().bias
    bias.copy_(torch.randn(bias.shape) * 0.1)
    return model
