"""Heads answer every prompt as if it were alone, and only for the choices they were made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.heads import Head, MultiTaskEncoder
from multitune.models.loading import Backbone
from multitune.scoring.heads import head_of, head_predictions

CHOICES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def encoder_backbone(tokenizer) -> Backbone:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    encoder = BertModel(config, add_pooling_layer=False)
    heads = [Head("colour", "label", CHOICES), Head("size", "regress")]
    model = MultiTaskEncoder(encoder, heads)
    backbone = Backbone(model, tokenizer, "encoder", ModelConfig(name="bert"))
    with torch.no_grad():  # centred, so that every choice is somebody's
        logits = np.mean([logits_alone(backbone, prompt, 0) for prompt in prompts_of((9, 20, 4))], axis=0)
        model.bias[:3] = -torch.from_numpy(logits)
    return backbone


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 259, size=n).tolist() for n in lengths]


def logits_alone(backbone: Backbone, prompt: list[int], head: int) -> np.ndarray:
    backbone.model.eval()
    with torch.no_grad():
        row = torch.tensor([prompt])
        return backbone.model(row, torch.ones_like(row), torch.tensor([head]))[0].numpy()


@pytest.mark.parametrize("batch_tokens", [1, 50, 4096])
def test_labels_and_numbers_are_those_of_the_prompt_alone(encoder_backbone, batch_tokens):
    prompts = prompts_of((3, 40, 1, 12, 12, 25, 7, 2, 31, 5))
    labels = head_predictions(encoder_backbone, "colour", prompts, batch_tokens=batch_tokens)
    assert labels.tolist() == [logits_alone(encoder_backbone, prompt, 0)[:3].argmax() for prompt in prompts]
    assert len(set(labels.tolist())) > 1
    sizes = head_predictions(encoder_backbone, "size", prompts, batch_tokens=batch_tokens)
    np.testing.assert_allclose(sizes, [logits_alone(encoder_backbone, prompt, 1)[0] for prompt in prompts], atol=1e-5)


def test_a_prompt_longer_than_the_positions_keeps_its_beginning(encoder_backbone):
    (long,) = prompts_of((100,))
    found = head_predictions(encoder_backbone, "size", [long, long[:64]])
    assert found[0] == pytest.approx(found[1])


def test_no_prompts(encoder_backbone):
    assert head_predictions(encoder_backbone, "colour", []).shape == (0,)


def test_dropout_is_off_and_the_mode_stays(encoder_backbone):
    encoder_backbone.model.train()
    prompts = prompts_of((5, 9))
    first, second = (head_predictions(encoder_backbone, "size", prompts) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert encoder_backbone.model.training


def test_the_head_must_know_the_task_and_its_choices(encoder_backbone):
    assert head_of(encoder_backbone, "colour", CHOICES).outputs == 3
    with pytest.raises(MultituneError, match="no head for task 'shape'"):
        head_predictions(encoder_backbone, "shape", [[5]])
    with pytest.raises(MultituneError, match="tells 3 choices apart"):
        head_of(encoder_backbone, "colour", CHOICES[::-1])
