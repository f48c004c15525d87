"""Our tuners behave as peft's own on several architectures, and peft still keeps its list of methods as we found it."""

from __future__ import annotations

import subprocess
import sys

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
from multitune.models.tuners.bitfit import BitFitConfig, BitFitModel
from multitune.models.tuners.bottleneck import BottleneckConfig, BottleneckModel
from tests.small_llama import small_llama

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


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
    with torch.no_grad():
        out = model(input_ids=IDS, **({"labels": IDS} if encoder_decoder else {}))
    return out.logits if "logits" in out else out.last_hidden_state


def shake(model) -> None:
    """Move what trains, so that adapters which start at zero act."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


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


def test_bitfit_on_a_model_without_biases_says_what_can_be_done():
    with pytest.raises(ValueError, match="ln_tuning"):
        get_peft_model(small_llama(40), BitFitConfig())


@pytest.mark.parametrize("config", [BottleneckConfig(r=3, task_type="CAUSAL_LM"), BitFitConfig(task_type="CAUSAL_LM")])
def test_adapters_live_beside_one_another(config, tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
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


@pytest.mark.parametrize("config", [BottleneckConfig(r=3, task_type="CAUSAL_LM"), BitFitConfig(task_type="CAUSAL_LM")])
def test_gradients_are_the_same_with_checkpointing(config):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = get_peft_model(llama(), config)
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
