"""Soft prompts: tokens of their own in place of the template's and the labels' (after DART, arXiv:2108.13161)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from multitune.prompting.encoding import SOFT_LABEL, SOFT_WORD, tokens_of_texts
from multitune.prompting.template import Template
from multitune.prompting.verbalizer import Verbalizer, token_ids


def add_soft_tokens(model: Any, tokenizer: Any, template: Template, verbalizer: Verbalizer) -> tuple[int, ...]:
    """Add one token per token of the template and one per label word, each a copy of what it replaces; in place.

    The copies take embedding, output row and output bias, so that before any training the soft prompt gives the logits
    of the hard one. Saved with ``save_pretrained`` of both, the tokens come back with them.

    Args:
        model: a transformers model with a language-model head.
        tokenizer: of the model; its length, and not the model's vocabulary, says where new ids begin.
        template, verbalizer: the words that are replaced.

    Returns:
        the new token ids, template first: what ``peft.TrainableTokensConfig(token_indices=...)`` trains alone.
    """
    words = [token for literal in tokens_of_texts(tokenizer, template.literals) for token in literal]
    labels = token_ids(tokenizer, verbalizer)
    names = [SOFT_WORD.format(n) for n in range(len(words))] + [SOFT_LABEL.format(n) for n in range(len(labels))]
    tokenizer.add_tokens(names, special_tokens=True)
    new = tuple(tokenizer.convert_tokens_to_ids(names))
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _resize_second_bias(model)
    _copy_rows(model, [*words, *labels], list(new))
    return new


def _resize_second_bias(model: Any) -> None:
    """Give the head's second bias the length of the output layer's, as a tensor of its own where nothing is tied.

    transformers 5.23 leaves it behind where input and output are not tied, or makes the two one and saves but one of
    them, and then cannot load what it saves.
    """
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    for module in _owners(model, head):
        shared = module.bias is bias and not model.config.tie_word_embeddings
        if bias is not None and (shared or module.bias.shape != bias.shape):
            module.bias = nn.Parameter(bias.detach().clone())


def _owners(model: Any, head: nn.Module) -> list[Any]:
    """Return the modules that hold the output layer and a bias beside it."""
    holders = [module for module in model.modules() if any(child is head for child in module.children())]
    return [module for module in holders if isinstance(getattr(module, "bias", None), nn.Parameter)]


@torch.no_grad()
def _copy_rows(model: Any, sources: list[int], targets: list[int]) -> None:
    tables = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None:
        tables.append(head.weight)
        if getattr(head, "bias", None) is not None:
            tables.append(head.bias)
        tables += [module.bias for module in _owners(model, head)]
    for table in tables:  # twice the same rows where input and output are tied, which changes nothing
        table[targets] = table[sources]
