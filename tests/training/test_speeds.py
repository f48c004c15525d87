"""Prompts and routing learn at speeds of their own; all else stays in the groups where it was."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from multitune.models.tuners import register_tuners
from multitune.models.tuners.soft_prompt_config import DeptConfig, EptConfig, MptConfig
from multitune.training.speeds import PROMPT_SPEED, speed_up_prompts
from tests.small_llama import small_llama

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()


def groups(config, learning_rate=None):
    """Learning rate, weight decay and names of every group."""
    model = get_peft_model(small_llama(40), config)
    names = {id(p): name.split(".")[-2] for name, p in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trainable, "weight_decay": 0.3}], lr=1e-3)
    speed_up_prompts(optimizer, model, learning_rate)
    return [(g["lr"], g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in optimizer.param_groups]


def test_a_prompt_learns_faster_than_what_it_changes_of_the_text():
    slow, fast = groups(EptConfig())
    assert slow == (1e-3, 0.3, {"offset_A", "offset_B"})
    assert fast == (1e-3 * PROMPT_SPEED, 0.3, {"vectors", "space_D", "space_U", "space_gate"})
    assert groups(DeptConfig(), 0.3)[1] == (0.3, 0.3, {"vectors"})


@pytest.mark.parametrize("config", [DeptConfig(r=0), MptConfig(), LoraConfig(target_modules=["q_proj"])])
def test_where_nothing_is_slow_there_is_one_rate(config):
    (only,) = groups(config)
    assert only[:2] == (1e-3, 0.3)
    assert len(groups(config, 0.3)) == (1 if isinstance(config, LoraConfig) else 2)
