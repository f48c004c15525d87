"""Which half is frozen: the card's counts and rules, on shapes alone."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from multitune.adaptation.half import HalfRound, half_round
from multitune.adaptation.half_config import HalfConfig
from multitune.errors import MultituneError

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def on_meta(model_class: type, config: Any) -> Any:
    with torch.device("meta"):
        return model_class(config)


def llama(layers: int, **changes: Any) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 4, "vocab_size": 50}
    return on_meta(LlamaForCausalLM, LlamaConfig(**IDS, num_hidden_layers=layers, **sizes | changes))


@pytest.fixture(scope="module")
def llama_2_7b() -> Any:
    return on_meta(LlamaForCausalLM, LlamaConfig(**IDS))  # the defaults are its shapes


def frozen_units(half: HalfRound, category: str) -> Counter[int]:
    """Count the frozen units of a category by layer; layers without any count 0."""
    units = {(p.layer, p.unit) for n, p in half.places.items() if n in half.frozen and p.category == category}
    layers = {p.layer for p in half.places.values() if p.layer is not None}
    return Counter({layer: sum(layer == other for other, _ in units) for layer in layers})


def test_llama_2_7b_trains_3500281856_of_6738415616(llama_2_7b: Any) -> None:
    half = half_round(llama_2_7b, HalfConfig(), seed=0)
    assert half.parameters == 6_738_415_616
    assert half.trainable == 3_500_281_856
    matrices = {n: s for n, s in half.sizes.items() if half.places[n].category in ("attention", "feed_forward")}
    assert sum(matrices.values()) == 2 * 3_238_002_688
    assert sum(size for name, size in matrices.items() if name not in half.frozen) == 3_238_002_688
    norms = [n for n, p in half.places.items() if p.category == "norm" and p.layer is not None]
    assert sum(half.sizes[n] for n in norms if n not in half.frozen) == 32 * 4096
    assert sum(half.sizes[n] for n in norms) == 64 * 4096
    outside = {n for n, p in half.places.items() if p.layer is None}
    assert outside == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert not outside & half.frozen
    assert half.shares()["all"] == pytest.approx(0.5195, abs=5e-5)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 7, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rule_of_every_layer(layers: int, seed: int) -> None:
    half = half_round(llama(layers), HalfConfig(), seed=seed)
    assert set(frozen_units(half, "attention").values()) == {2}
    assert set(frozen_units(half, "norm").values()) == {1}
    feed_forward = frozen_units(half, "feed_forward")
    assert set(feed_forward.values()) <= {1, 2}
    assert sum(feed_forward.values()) == (3 * layers if layers % 2 == 0 else 3 * layers - 1) // 2
    assert sum(count == 2 for count in feed_forward.values()) == layers // 2


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.4, 0.6, 0.75, 0.9, 1.0])
def test_other_fractions_freeze_round_of_n_spread_evenly(fraction: float) -> None:
    half = half_round(llama(6), HalfConfig(fraction=fraction), seed=3)
    for category, per_layer in (("attention", 4), ("feed_forward", 3), ("norm", 2)):
        counts = frozen_units(half, category)
        assert sum(counts.values()) == math.ceil((1 - fraction) * 6 * per_layer - 0.5 - 1e-9)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_all_and_nothing() -> None:
    model = llama(3)
    assert half_round(model, HalfConfig(fraction=1), seed=0).frozen == frozenset()
    nothing = half_round(model, HalfConfig(fraction=0), seed=0)
    assert set(nothing.sizes) - nothing.frozen == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize("granularity", ["category", "layer", "model"])
@pytest.mark.parametrize("balance", ["count", "params"])
def test_same_seed_and_round_same_half(granularity: Any, balance: Any) -> None:
    config = HalfConfig(granularity=granularity, balance=balance)
    drawn = {
        (seed, round, epoch): half_round(llama(16), config, seed=seed, round=round, epoch=epoch).frozen
        for seed, round, epoch in itertools.product((0, 1), (1, 2), (0, 1))
    }
    assert len(set(drawn.values())) == len(drawn)
    assert half_round(llama(16), config, seed=1, round=2, epoch=1).frozen == drawn[1, 2, 1]


def test_the_draw_is_the_same_in_every_process_and_version() -> None:
    """Written down once: neither hash seeds nor a library's shuffling may change it."""
    code = (
        "from multitune.models.architecture import architecture_index;"
        "from multitune.adaptation.half_selection import frozen_half;"
        "from multitune.adaptation.half_config import HalfConfig; import sys;"
        "names = [f'h.{i}.attn.{p}_proj.weight' for i in range(2) for p in 'qkvo'];"
        "shapes = {name: (4, 4) for name in names};"
        "half = frozen_half(architecture_index(shapes), dict.fromkeys(names, 16), HalfConfig(), seed=7, round=1);"
        "print('torch' in sys.modules, *sorted(name[2] + name[9] for name in half))"
    )
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stdout.split() == ["False", "0q", "0v", "1k", "1v"]


def test_every_unit_is_drawn_alike_often() -> None:
    model = llama(4)
    frozen: Counter[str] = Counter()
    for seed in range(200):
        frozen.update(half_round(model, HalfConfig(), seed=seed).frozen)
    for name in half_round(model, HalfConfig(), seed=0).sizes:
        # 200 draws at 1/2: five standard deviations are 35
        assert abs(frozen[name] - (0 if ".layers." not in name else 100)) <= 35


def test_biases_follow_and_query_norms_are_norms() -> None:
    qwen = Qwen3Config(
        **IDS, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, head_dim=8,
        num_key_value_heads=1, vocab_size=50, attention_bias=True,
    )  # fmt: skip
    half = half_round(on_meta(Qwen3ForCausalLM, qwen), HalfConfig(), seed=0)
    biases = [name for name in half.sizes if name.endswith(".bias")]
    assert len(biases) == 16
    for name in biases:
        assert (name in half.frozen) == (name.replace(".bias", ".weight") in half.frozen)
    assert set(frozen_units(half, "norm").values()) == {2}  # of input, post-attention, q and k


def test_fused_matrices_are_one_unit() -> None:
    phi = Phi3Config(
        **IDS, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, vocab_size=50
    )
    half = half_round(on_meta(Phi3ForCausalLM, phi), HalfConfig(), seed=0)
    assert set(frozen_units(half, "attention").values()) == {1}  # of qkv and o
    assert set(frozen_units(half, "feed_forward").values()) == {1}  # of gate_up and down


def test_stacks_cross_attention_and_experts_are_halved_apart() -> None:
    t5 = T5Config(**IDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=4, num_heads=2, vocab_size=50)
    half = half_round(on_meta(T5ForConditionalGeneration, t5), HalfConfig(), seed=0)
    by_network = Counter(
        (p.stack, p.layer, p.group) for n, p in half.places.items() if n in half.frozen and p.category == "attention"
    )
    assert set(by_network.values()) == {2}
    assert len(by_network) == 2 + 4 + 4
    mixtral = MixtralConfig(
        **IDS, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, vocab_size=50,
    )  # fmt: skip
    experts = half_round(on_meta(MixtralForCausalLM, mixtral), HalfConfig(), seed=0)
    assert set(frozen_units(experts, "feed_forward").values()) == {1}  # of gate_up and down of all experts together
    assert sum(frozen_units(experts, "other").values()) == 2  # routers


def test_balance_by_parameters_where_keys_and_values_are_small() -> None:
    """Llama-3-8B's attention: queries and outputs are four times as large as keys and values."""
    model = llama(32, hidden_size=64, intermediate_size=128, num_attention_heads=8, num_key_value_heads=2)
    by_count = [half_round(model, HalfConfig(), seed=seed).shares()["attention"] for seed in range(5)]
    by_parameters = [
        half_round(model, HalfConfig(balance="params"), seed=seed).shares()["attention"] for seed in range(5)
    ]
    assert by_parameters == [0.5] * 5
    assert max(abs(share - 0.5) for share in by_count) > 0.01
    feed_forward = half_round(model, HalfConfig(balance="params"), seed=0)
    assert sum(frozen_units(feed_forward, "feed_forward").values()) == 48
    assert len({half_round(model, HalfConfig(balance="params"), seed=seed).frozen for seed in range(5)}) == 5


@pytest.mark.parametrize("balance", ["count", "params"])
def test_layer_granularity_freezes_whole_layers(balance: Any) -> None:
    half = half_round(llama(8), HalfConfig(granularity="layer", balance=balance), seed=0)
    by_layer = Counter(half.places[name].layer for name in half.frozen)
    assert sorted(by_layer.values()) == [9] * 4


@pytest.mark.parametrize("balance", ["count", "params"])
def test_model_granularity_freezes_half_of_the_matrices_anywhere(balance: Any) -> None:
    half = half_round(llama(32), HalfConfig(granularity="model", balance=balance), seed=0)
    counts = frozen_units(half, "attention")
    assert len(set(counts.values())) > 2  # not the same number in every layer
    assert sum(frozen_units(half, "norm").values()) == 32
    if balance == "count":
        assert sum(counts.values()) + sum(frozen_units(half, "feed_forward").values()) == 32 * 7 // 2
    else:
        assert half.shares()["attention"] * 4 * 16 * 16 + half.shares()["feed_forward"] * 3 * 16 * 40 == pytest.approx(
            (4 * 16 * 16 + 3 * 16 * 40) / 2, rel=0.01
        )


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(MultituneError, match="no numbered layers"):
        half_round(torch.nn.ModuleDict({"only": torch.nn.Linear(2, 2)}), HalfConfig(), seed=0)
