"""Our tuners behave as peft's own on several architectures, and peft still keeps its list of methods as we found it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from multitune.models.tuners import OURS, register_tuners
from multitune.models.tuners.adamix import AdaMixConfig
from multitune.models.tuners.adapter_bias import AdapterBiasConfig
from multitune.models.tuners.binary_mask import BinaryMaskConfig
from multitune.models.tuners.bitfit import BitFitConfig, BitFitModel
from multitune.models.tuners.bottleneck import BottleneckConfig, BottleneckModel
from multitune.models.tuners.compacter import CompacterConfig, kronecker_matrix
from multitune.models.tuners.diff_fit import DiffFitConfig
from multitune.models.tuners.diff_pruning import DiffPruningConfig
from multitune.models.tuners.hybrid_config import MamConfig, UniPeltConfig
from tests.small_llama import small_llama

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


CONFIGS = [
    AdaMixConfig(r=3, n_modules=2, task_type="CAUSAL_LM"),
    AdapterBiasConfig(task_type="CAUSAL_LM"),
    BinaryMaskConfig(task_type="CAUSAL_LM"),
    BitFitConfig(task_type="CAUSAL_LM"),
    BottleneckConfig(r=3, task_type="CAUSAL_LM"),
    CompacterConfig(r=4, n=2, task_type="CAUSAL_LM"),
    DiffFitConfig(task_type="CAUSAL_LM"),
    DiffPruningConfig(task_type="CAUSAL_LM"),
    MamConfig(r=3, prefix_length=4, task_type="CAUSAL_LM"),
    UniPeltConfig(r=3, prefix_length=4, lora_r=2, task_type="CAUSAL_LM"),
]


def llama():
    return small_llama(40, attention_bias=True).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=40, **sizes)).eval()


def t5():
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def output_of(model) -> torch.Tensor:
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    training = model.training
    model.eval()  # diff pruning draws its gates in training
    with torch.no_grad():
        out = model(input_ids=IDS, **({"labels": IDS} if encoder_decoder else {}))
    model.train(training)
    return out.logits if "logits" in out else out.last_hidden_state


def shake(model) -> None:
    """Move what trains, so that adapters which start at zero act."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def fresh(config):
    """A copy without what peft writes into a config that it has used."""
    return replace(config, target_modules=None, base_model_name_or_path=None)


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_peft_knows_our_methods_by_its_own_tables_and_registering_twice_changes_nothing():
    """Fails loudly where a new peft keeps its list of methods in another way."""
    members = list(PeftType)
    register_tuners()
    assert list(PeftType) == members
    for name in OURS:
        member = PeftType(name.upper())
        assert member is PeftType[name.upper()]
        assert (member.value, member.name, str.__str__(member)) == (name.upper(),) * 3
        assert member in members
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType["BITFIT"]] is BitFitConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType["BOTTLENECK"]] is BottleneckModel
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType["BITFIT"]] is BitFitModel


@pytest.mark.parametrize(
    ("build", "options", "places"),
    [
        (llama, {}, 4),
        (gpt2, {}, 4),
        (bert, {}, 4),
        (t5, {}, 2 * 2 + 2 * 3),  # self-attention and feed-forward; in the decoder cross-attention too
        (llama, {"placement": "pfeiffer"}, 2),
        (llama, {"placement": "parallel"}, 2),
        (gpt2, {"placement": "parallel"}, 2),
        (llama, {"drop_layers": 1}, 2),
        (llama, {"target_modules": ["o_proj"]}, 2),
    ],
)
def test_bottlenecks_stand_where_they_are_said_to_and_start_as_the_base(build, options, places):
    base = output_of(build())
    model = get_peft_model(build(), BottleneckConfig(r=3, task_type="FEATURE_EXTRACTION", **options))
    assert count(model) == places * (2 * 3 * 16 + 3 + 16)
    torch.testing.assert_close(output_of(model.base_model.model), base, atol=1e-6, rtol=0)
    shake(model)
    assert not torch.allclose(output_of(model.base_model.model), base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(output_of(model.base_model.model), base)


def test_a_bottleneck_computes_its_equation():
    model = get_peft_model(llama(), BottleneckConfig(r=3, scaling=0.5, activation="gelu", target_modules=["down_proj"]))
    shake(model)
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    plain = layer.base_layer(hidden)
    inner = torch.nn.functional.gelu(plain @ layer.bottleneck_down["default"].T + layer.bottleneck_down_bias["default"])
    added = inner @ layer.bottleneck_up["default"].T + layer.bottleneck_up_bias["default"]
    torch.testing.assert_close(layer(hidden), plain + 0.5 * added)
    layer.configs["default"].placement = "parallel"
    with pytest.raises(RuntimeError):
        layer(hidden)  # beside this matrix the widths differ


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (llama, {"drop_layers": 2}, "leaves no layer"),
        (bert, {"placement": "parallel"}, "no module of its own"),
    ],
)
def test_bottlenecks_that_have_no_place_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(build(), BottleneckConfig(r=3, **options))


@pytest.mark.parametrize("option", [{"placement": "behind"}, {"activation": "sharp"}])
def test_options_that_mean_nothing_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        BottleneckConfig(**option)


def test_a_bottleneck_does_not_merge():
    with pytest.raises(NotImplementedError, match="no equivalent"):
        get_peft_model(llama(), BottleneckConfig(r=3)).merge_and_unload()


@pytest.mark.parametrize(
    ("build", "options", "numbers"),
    [
        (gpt2, {}, 2 * (48 + 16 + 64 + 16 + 2 * 16) + 16),
        (bert, {"part": "query_and_intermediate"}, 2 * (16 + 32)),
        (llama, {}, 2 * (16 + 8 + 8 + 16)),
    ],
)
def test_bitfit_trains_the_biases_and_merges(build, options, numbers):
    base = output_of(build())
    model = get_peft_model(build(), BitFitConfig(task_type="FEATURE_EXTRACTION", **options))
    assert count(model) == numbers
    assert torch.equal(output_of(model.base_model.model), base)
    shake(model)
    moved = output_of(model.base_model.model)
    assert not torch.allclose(moved, base, atol=1e-3)
    model.merge_adapter()
    torch.testing.assert_close(output_of(model.base_model.model), moved, atol=1e-5, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(output_of(model.base_model.model), moved, atol=1e-5, rtol=0)
    torch.testing.assert_close(output_of(model.merge_and_unload()), moved, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("build", "numbers"),
    [
        (gpt2, 2 * (48 + 16 + 64 + 16) + 5 * 2 * 16 + 2 * 2),  # biases, norms, factors
        (bert, 2 * (3 * 16 + 16 + 32 + 16) + 5 * 2 * 16 + 16 + 2 * 2),  # the pooler has a bias
        (llama, 2 * (16 + 8 + 8 + 16) + 5 * 16 + 2 * 2),
        (t5, (2 * 2 + 2 * 3 + 2) * 16 + 2 * 2 + 2 * 3),
    ],
)
def test_diff_fit_trains_biases_norms_and_factors_and_merges(build, numbers):
    base = output_of(build())
    model = get_peft_model(build(), DiffFitConfig(task_type="FEATURE_EXTRACTION"))
    assert count(model) == numbers
    assert torch.equal(output_of(model.base_model.model), base)
    shake(model)
    moved = output_of(model.base_model.model)
    assert not torch.allclose(moved, base, atol=1e-3)
    model.merge_adapter()
    torch.testing.assert_close(output_of(model.base_model.model), moved, atol=1e-5, rtol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(output_of(model.base_model.model), moved, atol=1e-5, rtol=0)
    torch.testing.assert_close(output_of(model.merge_and_unload()), moved, atol=1e-5, rtol=0)


def test_diff_fit_computes_its_equations():
    model = get_peft_model(llama(), DiffFitConfig())
    shake(model)
    layer = model.base_model.model.model.layers[0]
    hidden = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    out = layer.self_attn.o_proj
    expected = out.diff_fit_factor["default"] * (out.base_layer(hidden) + out.diff_fit_bias["default"])
    torch.testing.assert_close(out(hidden), expected)
    norm = layer.input_layernorm
    plain = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.base_layer.variance_epsilon)
    torch.testing.assert_close(norm(hidden), plain * (norm.base_layer.weight + norm.diff_fit_gain["default"]))


@pytest.mark.parametrize(("build", "layers"), [(llama, 2), (gpt2, 2), (bert, 2), (t5, 4)])
def test_adapter_bias_shifts_every_feed_forward_by_its_equation(build, layers):
    base = output_of(build())
    model = get_peft_model(build(), AdapterBiasConfig(task_type="FEATURE_EXTRACTION"))
    assert count(model) == layers * (16 + 16 + 1)
    torch.testing.assert_close(output_of(model.base_model.model), base, atol=1e-6, rtol=0)
    shake(model)
    layer = next(module for module in model.modules() if hasattr(module, "adapter_bias_v"))
    hidden = torch.randn(2, 3, 64 if build is gpt2 else 32, generator=torch.Generator().manual_seed(2))
    plain = layer.base_layer(hidden)
    v, w, b = (getattr(layer, f"adapter_bias_{name}")["default"] for name in "vwb")
    torch.testing.assert_close(layer(hidden), plain + (plain * w).sum(-1, keepdim=True) * v + b * v)
    with pytest.raises(NotImplementedError, match="without a bias"):
        model.merge_and_unload()


def test_a_kronecker_sum_is_the_sum_of_kronecker_products():
    draw = torch.Generator().manual_seed(0)
    shared, left, right = (torch.randn(*s, generator=draw) for s in ((2, 2, 2), (2, 3), (2, 4)))
    expected = sum(torch.kron(shared[i], torch.outer(left[i], right[i])) for i in range(2))
    torch.testing.assert_close(kronecker_matrix(shared, left, right), expected)


def test_compacters_share_their_small_factors_over_all_layers():
    base = output_of(llama())
    model = get_peft_model(llama(), CompacterConfig(r=4, n=2, task_type="FEATURE_EXTRACTION"))
    assert count(model) == 4 * 3 * (16 + 4) + 2**3
    torch.testing.assert_close(output_of(model.base_model.model), base, atol=1e-6, rtol=0)
    shake(model)
    first, last = (m for m in model.modules() if hasattr(m, "compacter_bias") and m in _ends(model))
    assert len(first.compacter_shared) == 1
    assert len(last.compacter_shared) == 0
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    plain = last.base_layer(hidden)
    shared = first.compacter_shared["default"]
    down, up = (
        sum(
            torch.kron(shared[i], torch.outer(*(getattr(last, f"compacter_{side}_{f}")["default"][i] for f in FACTOR)))
            for i in range(2)
        )
        for side in ("down", "up")
    )
    bias = last.compacter_bias["default"]
    inner = torch.nn.functional.gelu(plain @ down + bias[:4])
    torch.testing.assert_close(last(hidden), plain + inner @ up + bias[4:])
    with pytest.raises(NotImplementedError, match="no equivalent"):
        model.merge_and_unload()


FACTOR = ("left", "right")


def _ends(model):
    layers = [m for m in model.modules() if hasattr(m, "compacter_bias")]
    return layers[0], layers[-1]


@pytest.mark.parametrize(
    ("options", "message"), [({"r": 6}, "no multiple"), ({"activation": "sharp"}, "activation"), ({"n": 3}, "divide")]
)
def test_compacters_of_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(llama(), CompacterConfig(**{"r": 12, "n": 4, **options}))


def test_bitfit_on_a_model_without_biases_says_what_can_be_done():
    with pytest.raises(ValueError, match="ln_tuning"):
        get_peft_model(small_llama(40), BitFitConfig())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.peft_type.value.lower())
def test_adapters_live_beside_one_another(config, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), fresh(config))
    shake(model)
    first = output_of(model)
    model.save_pretrained(tmp_path / "first")
    stored = sum(file.stat().st_size for file in (tmp_path / "first").glob("*.safetensors"))
    header = int.from_bytes((tmp_path / "first/adapter_model.safetensors").read_bytes()[:8], "little") + 8
    assert stored - header == 4 * count(model)

    model.load_adapter(str(tmp_path / "first"), "second")
    model.set_adapter("second")
    torch.testing.assert_close(output_of(model), first, atol=1e-6, rtol=0)
    shake(model)
    assert not torch.allclose(output_of(model), first, atol=1e-3)
    model.set_adapter("default")
    torch.testing.assert_close(output_of(model), first, atol=1e-6, rtol=0)
    model.add_adapter("third", fresh(config))
    model.set_adapter("third")
    assert count(model) * 4 == stored - header
    model.set_adapter("default")
    model.delete_adapter("third")
    model.delete_adapter("second")
    assert torch.equal(output_of(model), first)
    beams = model.generate(input_ids=IDS, max_new_tokens=3, num_beams=2, do_sample=False)
    assert beams.shape == (2, 7)

    program = (
        "import sys, torch; from multitune.models.tuners import register_tuners; register_tuners()\n"
        "from peft import PeftModel; from transformers import AutoModelForCausalLM\n"
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2]).eval()\n"
        "ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])\n"
        "torch.save(model(input_ids=ids).logits, sys.argv[3])"
    )
    words = [tmp_path / "base", tmp_path / "first", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", program, *map(str, words)], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), first, atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.peft_type.value.lower())
def test_gradients_are_the_same_with_checkpointing(config):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = get_peft_model(llama(), fresh(config))
        shake(model)
        model.train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)
