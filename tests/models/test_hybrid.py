"""MAM and UniPELT: learned keys attend as peft's prefixes do, and closed gates are the base to the bit."""

from __future__ import annotations

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model

from multitune.models.tuners import register_tuners
from multitune.models.tuners.hybrid_config import MamConfig, UniPeltConfig
from multitune.models.tuners.prefix_attention import IMPLEMENTATION, attend
from tests.models.conftest import small_model

pytestmark = pytest.mark.filterwarnings("ignore:`.*_checkpointing.*` is deprecated:FutureWarning")  # peft 0.21 asks

register_tuners()
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
SMALL = {"r": 3, "prefix_length": 4, "task_type": "FEATURE_EXTRACTION"}
FAMILIES = ["llama", "gpt2", "gemma", "opt", "phi3", "bert", "t5", "bart"]


def adapted(family, config, **options):
    return get_peft_model(small_model(family, **options), config)


def output_of(model, mask=MASK):
    more = {"labels": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        out = model(input_ids=IDS, attention_mask=mask, **more)
    return out.logits if "logits" in out else out.last_hidden_state


def shake(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def gates_of(model):
    return {name: p for name, p in model.named_parameters() if "_gate." in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_unipelt_with_all_gates_closed_is_the_base_and_each_gate_opens_its_own_part(family):
    base = output_of(small_model(family))
    model = adapted(family, UniPeltConfig(lora_r=2, **SMALL)).base_model.model
    shake(model)
    gates = gates_of(model)
    for gate in gates.values():
        gate.data.zero_()[-1] = -1e9
    closed = output_of(model)
    torch.testing.assert_close(closed, base, atol=1e-5, rtol=1e-5)
    for part in ("prefix_gate", "low_rank_gate", "adapter_gate"):
        opened = [gate for name, gate in gates.items() if part in name]
        assert opened
        for gate in opened:
            gate.data[-1] = 1.0
        assert not torch.allclose(output_of(model), closed, atol=1e-3), part
        for gate in opened:
            gate.data[-1] = -1e9
    assert torch.equal(output_of(model), closed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_learned_keys_attend_as_peft_s_prefixes(family):
    length = 4
    prefixes = get_peft_model(small_model(family), PrefixTuningConfig(num_virtual_tokens=length, task_type="CAUSAL_LM"))
    ours = adapted(family, MamConfig(r=3, prefix_length=length, task_type="CAUSAL_LM"))
    holders = [module for module in ours.modules() if len(getattr(module, "prefix_keys", ()))]
    stored = prefixes.prompt_encoder["default"].embedding.weight.data
    positions = length + torch.arange(5).expand(2, -1)  # peft's prefix takes the first ones
    width = stored.shape[1] // (2 * len(holders))
    for place, holder in enumerate(holders):  # keys and values of the layers, one after the other
        start = 2 * place * width
        holder.prefix_keys["default"].data = stored[:, start : start + width].clone()
        holder.prefix_values["default"].data = stored[:, start + width : start + 2 * width].clone()
    with torch.no_grad():
        expected = prefixes.eval()(input_ids=IDS, attention_mask=MASK).logits
        found = ours.eval()(input_ids=IDS, attention_mask=MASK, position_ids=positions).logits
        bare = small_model(family)(input_ids=IDS, attention_mask=MASK).logits
    torch.testing.assert_close(found[MASK == 1], expected[MASK == 1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, bare, atol=1e-1)


def test_a_gate_multiplies_the_weights_that_the_softmax_gives_a_prefix():
    model = adapted("llama", UniPeltConfig(lora_r=2, **SMALL), num_hidden_layers=1, num_key_value_heads=4)
    holder = next(module for module in model.modules() if len(getattr(module, "prefix_keys", ())))
    attention = model.base_model.model.model.layers[0].self_attn
    shake(model)
    draw = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 4, 3, 8, generator=draw) for _ in range(3))
    logs = torch.nn.functional.logsigmoid(torch.randn(2, 3, 1, generator=draw))
    holder._log_gates["default"] = logs
    found, _ = attend(attention, query, key, value, None, scaling=0.3, dropout=0.0)
    keys, values = (p["default"].detach().unflatten(1, (4, 8)) for p in (holder.prefix_keys, holder.prefix_values))
    text = (0.3 * query @ key.mT).exp().tril()
    prefix = logs.exp()[:, None] * (0.3 * torch.einsum("bhqd,lhd->bhql", query, keys)).exp()
    total = text.sum(-1, keepdim=True) + prefix.sum(-1, keepdim=True)
    expected = (text @ value + torch.einsum("bhql,lhd->bhqd", prefix, values)) / total
    torch.testing.assert_close(found.detach(), expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_mam_adds_a_scaled_adapter_beside_the_feed_forward(family):
    model = adapted(family, MamConfig(scaling=2.0, **SMALL))
    shake(model)
    last = next(module for module in model.modules() if hasattr(module, "firsts"))
    first = last.firsts[last.key]
    draw = torch.Generator().manual_seed(2)
    read, inner = torch.randn(2, 3, 32, generator=draw), torch.randn(2, 3, 48, generator=draw)
    first(read)
    down, up = last.adapter_down["default"], last.adapter_up["default"]
    expected = torch.relu(read @ down.T + last.adapter_down_bias["default"]) @ up.T + last.adapter_up_bias["default"]
    torch.testing.assert_close(last(inner), last.base_layer(inner) + 2.0 * expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [MamConfig, UniPeltConfig])
def test_padding_changes_nothing_and_unloading_gives_the_base_back(family, config):
    base = output_of(small_model(family))
    model = adapted(family, config(**SMALL))
    shake(model)
    plain = model.base_model.model
    moved = output_of(plain)
    assert not torch.allclose(moved, base, atol=1e-2)
    if not plain.config.is_encoder_decoder:
        with torch.no_grad():
            alone = plain(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4])[0]
        torch.testing.assert_close(moved[1:, :4], alone, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        assert torch.equal(output_of(plain), base)
    with pytest.raises(NotImplementedError, match="no equivalent"):
        model.merge_and_unload()
    unloaded = model.unload()
    assert torch.equal(output_of(unloaded), base)
    assert all(getattr(m.config, "_attn_implementation", "") != IMPLEMENTATION for m in unloaded.modules()
               if hasattr(m, "config"))  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_step_by_step_a_model_reads_what_it_reads_at_once(family, implementation):
    model = adapted(family, UniPeltConfig(**SMALL | {"task_type": None}), attn_implementation=implementation)
    shake(model)
    plain = model.base_model.model
    with torch.no_grad():
        written = plain.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, num_beams=2, do_sample=False)
        again = plain.generate(
            input_ids=IDS, attention_mask=MASK, max_new_tokens=4, num_beams=2, do_sample=False, use_cache=False
        )
    assert torch.equal(written, again)


@pytest.mark.parametrize("config", [MamConfig, UniPeltConfig])
def test_gradients_of_an_encoder_decoder_are_the_same_with_checkpointing(config):
    def gradients(checkpointing):
        model = adapted("t5", config(**SMALL))
        shake(model)
        plain = model.base_model.model.train()
        for module in plain.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for module in plain.modules():
            if type(module).__name__ == "T5Attention":
                module.dropout = 0.0
        if checkpointing:
            model.enable_input_require_grads()
            plain.gradient_checkpointing_enable({"use_reentrant": False})
        plain(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("bloom", {}, "computes attention by itself"),
        ("mamba", {}, "not found"),
        ("llama", {"target_modules": ["o_proj"]}, "neither of queries"),
        ("llama", {"target_modules": ["down_proj"]}, "is no target"),
    ],
)
def test_places_that_do_not_exist_are_refused(family, options, message):
    with pytest.raises(ValueError, match=message):
        adapted(family, MamConfig(**SMALL, **options))


@pytest.mark.parametrize("options", [{"r": 0}, {"prefix_length": 0}, {"lora_r": 0}, {"activation": "sharp"}])
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        UniPeltConfig(**options)
