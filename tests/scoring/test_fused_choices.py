"""Choices are scored under the fused distribution by the same code that scores any model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from multitune.decoding.logit_fusion import LogitFusion
from multitune.decoding.prompt_pass import shares_prompts
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.models.pretrained import peft_warnings_logged
from multitune.scoring.choices import choice_log_probabilities, whole_text_log_probabilities

PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34]]
CHOICES = [[[40], [41, 42, 43], [44, 45]], [[50, 51]], [[60], [61]]]


@pytest.fixture(scope="module")
def fused(backbone_of):
    """Makes a fusion of a family's model with two LoRA experts over one small Llama."""

    def make(family: str) -> Backbone:
        large, small = backbone_of(family), backbone_of("llama")
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        torch.manual_seed(0)
        with peft_warnings_logged():
            shared = get_peft_model(copy.deepcopy(small.model), lora, adapter_name="a")
            shared.add_adapter("b", lora)
        base = Backbone(shared.eval(), small.tokenizer, "causal", small.config)
        if family == "llama":
            large = Backbone(copy.deepcopy(large.model), large.tokenizer, "causal", large.config)
        fusion = LogitFusion(large, base, ["a", "b"])
        return Backbone(fusion, large.tokenizer, "causal", ModelConfig(name="fusion"))

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bloom", "mistral"])
def test_choices_under_a_fusion_are_those_of_its_whole_texts(fused, family):
    backbone = fused(family)
    assert shares_prompts(backbone.model)
    found = choice_log_probabilities(backbone, PROMPTS, CHOICES)
    for prompt, choices, scores in zip(PROMPTS, CHOICES, found, strict=True):
        for choice, score in zip(choices, scores, strict=True):
            logits = backbone.model(input_ids=torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 : -1]
            direct = logits.log_softmax(-1)[torch.arange(len(choice)), choice].sum().item()
            assert score == pytest.approx(direct, abs=1e-3)
    for one, other in zip(found, whole_text_log_probabilities(backbone, PROMPTS, CHOICES), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_the_trace_of_choices_has_the_coefficients_of_their_first_tokens(fused):
    backbone = fused("llama")
    backbone.model.trace = []
    choice_log_probabilities(backbone, PROMPTS, CHOICES)
    assert sorted(text.prompt for text in backbone.model.trace) == sorted(PROMPTS)
    assert all(text.tokens == [] and len(text.alpha_ST) == 1 for text in backbone.model.trace)
