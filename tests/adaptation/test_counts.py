"""What trains is what the registry's formulas say, number for number."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from multitune.adaptation import AdaptationConfig, adapt
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from tests.small_llama import small_llama

WIDTH, INNER, KEYS, LAYERS = 32, 48, 16, 2
PLACES = LAYERS * [
    (WIDTH, WIDTH), (WIDTH, KEYS), (WIDTH, KEYS), (WIDTH, WIDTH),  # q, k, v, o
    (WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH),  # gate, up, down
]  # fmt: skip
"""(d_in, d_out) of the linear layers."""


def over(formula) -> int:
    return sum(formula(d_in, d_out) for d_in, d_out in PLACES)


COUNTS = [
    ({"method": "lora", "r": 3}, over(lambda i, o: 3 * (i + o))),
    ({"method": "lora", "r": 3, "use_dora": True}, over(lambda i, o: 3 * (i + o) + o)),
    ({"method": "lora", "r": 3, "target_modules": ["q_proj"]}, LAYERS * 3 * 2 * WIDTH),
    ({"method": "lora_plus", "r": 3}, over(lambda i, o: 3 * (i + o))),
    ({"method": "lora_fa", "r": 3}, over(lambda i, o: 3 * o)),
    ({"method": "delta_lora", "r": 3}, over(lambda i, o: 3 * (i + o))),
    ({"method": "adapter_bias"}, LAYERS * (2 * WIDTH + 1)),
    ({"method": "compacter", "r": 8, "n": 4}, LAYERS * 2 * 3 * (WIDTH + 8) + 4**3),
    ({"method": "diff_fit"}, (2 * LAYERS + 1) * WIDTH + 2 * LAYERS),
    ({"method": "mam", "r": 3, "prefix_length": 5}, LAYERS * (2 * 5 * KEYS + 2 * 3 * WIDTH + 3 + WIDTH)),
    (
        {"method": "unipelt", "r": 3, "prefix_length": 5, "lora_r": 2},
        LAYERS * (2 * 5 * KEYS + WIDTH + 1 + 2 * (2 * WIDTH) + 2 * (WIDTH + KEYS) + 2 * (WIDTH + 1))
        + LAYERS * (2 * 3 * WIDTH + 3 + 2 * WIDTH + 1),
    ),
    ({"method": "adamix", "r": 3, "n_modules": 2}, 2 * LAYERS * 2 * (2 * 3 * WIDTH + 3 + WIDTH)),
    ({"method": "binary_mask"}, over(lambda i, o: i * o)),
    ({"method": "diff_pruning"}, over(lambda i, o: 2 * i * o)),
    ({"method": "bottleneck", "r": 3}, LAYERS * 2 * (2 * 3 * WIDTH + 3 + WIDTH)),
    ({"method": "adalora", "init_r": 3}, over(lambda i, o: 3 * (i + o + 1))),
    ({"method": "delora", "r": 3}, over(lambda i, o: 3 * (i + o) + 1)),
    ({"method": "deft", "r": 3}, over(lambda i, o: 3 * (i + o))),
    ({"method": "hira", "r": 3}, over(lambda i, o: 3 * (i + o))),
    ({"method": "loha", "r": 3}, over(lambda i, o: 2 * 3 * (i + o))),
    ({"method": "hra", "r": 4}, over(lambda i, o: 4 * i)),
    ({"method": "miss", "r": 4}, over(lambda i, o: 4 * o)),
    ({"method": "vera", "r": 5}, over(lambda i, o: 5 + o)),
    ({"method": "psoft", "r": 8}, over(lambda i, o: 8 * 7 // 2 + 2 * 8)),
    ({"method": "road", "group_size": 16}, over(lambda i, o: o)),
    ({"method": "tinylora", "u": 7}, over(lambda i, o: 7)),
    ({"method": "waveft", "n_frequency": 50}, over(lambda i, o: 50)),
    ({"method": "fourierft", "n_frequency": 50}, over(lambda i, o: 50)),
    ({"method": "unilora", "theta_d_length": 99}, 99),
    ({"method": "beft"}, LAYERS * KEYS),
    ({"method": "ia3"}, LAYERS * (2 * KEYS + INNER)),
    ({"method": "ln_tuning"}, (2 * LAYERS + 1) * WIDTH),
    ({"method": "prompt_tuning", "num_virtual_tokens": 6}, 6 * WIDTH),
    ({"method": "prefix_tuning", "num_virtual_tokens": 6}, 6 * 2 * LAYERS * KEYS),
    ({"method": "cartridge", "num_virtual_tokens": 6}, (6 - 1) * 2 * LAYERS * KEYS),
    ({"method": "adaption_prompt", "adapter_len": 4, "adapter_layers": 2}, LAYERS * (4 * WIDTH + 1)),
    ({"method": "trainable_tokens", "token_indices": [4, 5, 7]}, 3 * WIDTH),
]


def name_of(options) -> str:
    return options["method"] if isinstance(options, dict) else ""


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft's advice
@pytest.mark.parametrize(("options", "count"), COUNTS, ids=name_of)
def test_the_formula_counts_what_trains(options, count, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 4, "num_key_value_heads": 2}
    small_llama(61, **sizes).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    backbone = Backbone(model, None, "causal", ModelConfig(name=str(tmp_path)))
    adapted = adapt(backbone, AdaptationConfig(**options), steps=10)
    assert sum(p.numel() for p in adapted.model.parameters() if p.requires_grad) == count
