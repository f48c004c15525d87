"""Positions that a model has for tokens, measured by what it takes."""

from __future__ import annotations

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModel

from multitune.models.positions import usable_positions
from multitune.models.pretrained import peft_warnings_logged

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "positions"),
    [("bert", 20), ("roberta", 18), ("xlm-roberta", 18), ("camembert", 18), ("mpnet", 18), ("data2vec-text", 18)],
)
def test_every_usable_position_works_and_not_one_more(family, positions):
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    assert usable_positions(model) == positions
    with torch.device("meta"):
        assert usable_positions(AutoModel.from_config(AutoConfig.for_model(family, **SIZES))) == positions
    longest = torch.full((1, positions), 7)
    assert model(input_ids=longest, attention_mask=torch.ones_like(longest)).last_hidden_state.isfinite().all()
    longer = torch.full((1, positions + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize(("family", "positions"), [("llama", 64), ("gpt2", 64), ("opt", 64), ("t5", None)])
def test_positions_of_language_models(make_model, family, positions):
    assert usable_positions(make_model(family)) == positions


def test_virtual_tokens_take_positions(make_model):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    with peft_warnings_logged():
        assert usable_positions(get_peft_model(make_model("gpt2"), config)) == 59
