"""The architecture index against the state dicts of real models, built small on the meta device."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from multitune.models.architecture import TensorPlace, architecture_index

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_IMAGE = {"image_size": 8, "patch_size": 4}
GQA = TEXT | {"num_key_value_heads": 1}
IDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = IDS | {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
EXPERTS = GQA | {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}

QKVO, GATED = "k o q v", "down gate up"
# model class, config class, its options, then by stack: layers, attention parts, feed-forward parts, norms in a layer
TABLE: dict[str, tuple[str, str, dict[str, Any], dict[str, tuple[int, str, str, int]]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT, {"model.layers": (3, QKVO, GATED, 2)}),
    "mistral": ("MistralForCausalLM", "MistralConfig", GQA, {"model.layers": (3, QKVO, GATED, 2)}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GQA, {"model.layers": (3, QKVO, GATED, 2)}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GQA | {"head_dim": 8}, {"model.layers": (3, QKVO, GATED, 4)}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GQA | {"head_dim": 8}, {"model.layers": (3, QKVO, GATED, 2)}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GQA | {"head_dim": 8}, {"model.layers": (3, QKVO, GATED, 4)}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GQA, {"model.layers": (3, "o qkv", "down gate_up", 2)}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        IDS | {"n_embd": 16, "n_layer": 3, "n_head": 2},
        {"transformer.h": (3, "o qkv", "down up", 2)},
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        TEXT | {"ffn_dim": 32, "word_embed_proj_dim": 16},
        {"model.decoder.layers": (3, QKVO, "down up", 2)},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        IDS | {"hidden_size": 16, "n_layer": 3, "n_head": 2},
        {"transformer.h": (3, "o qkv", "down up", 2)},
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, {"bert.encoder.layer": (3, QKVO, "down up", 2)}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", TEXT, {"roberta.encoder.layer": (3, QKVO, "down up", 2)}),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50, "pad_token_id": 0},
        {"transformer.layer": (3, QKVO, "down up", 2)},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        {"encoder.block": (2, QKVO, "down up", 2), "decoder.block": (3, "k k o o q q v v", "down up", 3)},
    ),
    "t5 gated": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5 | {"feed_forward_proj": "gated-gelu"},
        {"encoder.block": (2, QKVO, GATED, 2), "decoder.block": (3, "k k o o q q v v", GATED, 3)},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", VISION | SMALL_IMAGE, {"vit.layers": (3, QKVO, "down up", 2)}),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": TEXT | {"num_hidden_layers": 2}, "vision_config": VISION | SMALL_IMAGE, "projection_dim": 8},
        {
            "text_model.encoder.layers": (2, QKVO, "down up", 2),
            "vision_model.encoder.layers": (3, QKVO, "down up", 2),
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        GQA | {"num_local_experts": 4},
        {"model.layers": (3, QKVO, "down gate_up", 2)},
    ),
    "qwen2 moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        EXPERTS,
        {"model.layers": (3, QKVO, "down down gate gate_up up", 2)},
    ),
}


def state_of(name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    model_class, config_class, options, _ = TABLE[name]
    config = getattr(transformers, config_class)(**options)
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    return shapes_of(model), config.to_dict()


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def weights(index: dict[str, TensorPlace], category: str, stack: str, layer: int) -> list[TensorPlace]:
    return [
        p
        for p in index.values()
        if p.category == category and (p.stack, p.layer) == (stack, layer) and not p.name.endswith("bias")
    ]


@pytest.mark.parametrize("name", TABLE)
def test_layers_categories_and_parts(name: str) -> None:
    index = architecture_index(state_of(name)[0])
    stacks = TABLE[name][3]
    assert {p.stack: p.layers for p in index.values() if p.layer is not None} == {s: e[0] for s, e in stacks.items()}
    for stack, (layers, attention, feed_forward, norms) in stacks.items():
        for layer in range(layers):
            found = {c: weights(index, c, stack, layer) for c in ("attention", "feed_forward", "norm")}
            assert sorted(p.part or "?" for p in found["attention"]) == attention.split()
            assert sorted(p.part or "?" for p in found["feed_forward"]) == feed_forward.split()
            assert len(found["norm"]) == norms
    for place in index.values():
        # the number in the name after the stack is the layer: no transformer here counts otherwise
        if place.layer is None:
            assert place.layers == 0 and place.category in ("embedding", "head", "norm", "other")
        else:
            assert place.name.startswith(f"{place.stack}.{place.layer}.")
            assert place.category not in ("embedding", "head")


@pytest.mark.parametrize("name", TABLE)
def test_order_of_names_changes_nothing(name: str) -> None:
    shapes, config = state_of(name)
    names = list(shapes)
    random.Random(3).shuffle(names)
    assert architecture_index({n: shapes[n] for n in names}, config) == architecture_index(shapes, config)


@pytest.mark.parametrize("name", TABLE)
def test_a_bias_stands_where_its_matrix_stands(name: str) -> None:
    index = architecture_index(state_of(name)[0])
    for place in index.values():
        weight = index.get(f"{place.unit}.weight")
        if place.name.endswith(".bias") and weight is not None:
            assert (place.category, place.part, place.layer) == (weight.category, weight.part, weight.layer)
            assert place.unit == weight.unit


OUTSIDE = {
    "llama": {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"},
    "gpt2": {
        "transformer.wte.weight": "embedding",
        "transformer.wpe.weight": "embedding",
        "transformer.ln_f.weight": "norm",
    },
    "bert": {
        "bert.embeddings.position_embeddings.weight": "embedding",
        "bert.embeddings.LayerNorm.weight": "norm",
        "bert.pooler.dense.weight": "head",
        "classifier.bias": "head",
    },
    "roberta": {"lm_head.dense.weight": "head", "lm_head.layer_norm.weight": "norm"},
    "t5": {"shared.weight": "embedding", "decoder.final_layer_norm.weight": "norm"},
    "vit": {
        "vit.embeddings.cls_token": "embedding",
        "vit.embeddings.patch_embeddings.projection.weight": "embedding",
        "classifier.weight": "head",
    },
    "clip": {
        "vision_model.pre_layrnorm.weight": "norm",
        "visual_projection.weight": "head",
        "logit_scale": "other",
        "vision_model.embeddings.class_embedding": "embedding",
    },
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_stacks(name: str) -> None:
    index = architecture_index(state_of(name)[0])
    assert {n: index[n].category for n in OUTSIDE[name]} == OUTSIDE[name]
    assert all(index[n].layer is None and index[n].stack == "" for n in OUTSIDE[name])


def test_a_tied_output_layer_is_the_embedding() -> None:
    shapes, config = state_of("gpt2")
    assert architecture_index(shapes, config)["lm_head.weight"].category == "embedding"
    assert architecture_index(shapes, config | {"tie_word_embeddings": False})["lm_head.weight"].category == "head"


def test_cross_attention_and_experts_are_told_apart() -> None:
    t5 = architecture_index(state_of("t5")[0])
    assert t5["decoder.block.1.layer.1.EncDecAttention.q.weight"].group == "cross"
    assert t5["decoder.block.1.layer.0.SelfAttention.q.weight"].group == ""
    relative = t5["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    assert (relative.category, relative.layer) == ("other", 0)
    experts = architecture_index(state_of("qwen2 moe")[0])
    assert experts["model.layers.2.mlp.experts.gate_up_proj"].group == "experts"
    assert experts["model.layers.2.mlp.shared_expert.up_proj.weight"].group == "shared_expert"
    for router in ("gate", "shared_expert_gate"):
        assert experts[f"model.layers.2.mlp.{router}.weight"].category == "other"


def test_experts_of_a_checkpoint_with_one_file_entry_each() -> None:
    """As Mixtral's and DeepSeek's own files name them; the first layer of the latter is dense."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(3):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{part}_proj.weight": (4, 4) for part in "qkvo"}
        shapes |= {f"{prefix}.{norm}.weight": (4,) for norm in ("input_layernorm", "post_attention_layernorm")}
        networks = ["mlp"] if layer == 0 else [f"mlp.experts.{expert}" for expert in range(8)]
        shapes |= {f"{prefix}.{n}.{part}_proj.weight": (4, 4) for n in networks for part in ("gate", "up", "down")}
        if layer:
            shapes[f"{prefix}.mlp.gate.weight"] = (8, 4)
    index = architecture_index(shapes)
    assert {(p.stack, p.layers) for p in index.values()} == {("model.layers", 3)}
    place = index["model.layers.2.mlp.experts.5.down_proj.weight"]
    assert (place.layer, place.part, place.group) == (2, "down", "experts.5")
    assert index["model.layers.2.mlp.gate.weight"].category == "other"
    assert index["model.layers.0.mlp.gate_proj.weight"].part == "gate"


@pytest.mark.parametrize(
    ("name", "layer", "category", "part", "group"),
    [
        ("vit.encoder.layer.1.attention.attention.query.weight", 1, "attention", "q", ""),
        ("vit.encoder.layer.1.attention.output.dense.bias", 1, "attention", "o", ""),
        ("vit.encoder.layer.1.output.dense.weight", 1, "feed_forward", "down", ""),
        ("swin.encoder.layers.1.blocks.0.attention.self.value.weight", 1, "attention", "v", ""),
        ("swin.encoder.layers.1.blocks.0.attention.self.relative_position_index", 1, "other", None, ""),
        ("model.layers.1.block_sparse_moe.experts.1.w1.weight", 1, "feed_forward", "gate", "experts.1"),
        ("model.layers.1.block_sparse_moe.gate.weight", 1, "other", None, ""),
        ("model.layers.1.mlp.experts.gate_up_proj_bias", 1, "feed_forward", "gate_up", "experts"),
        ("model.layers.1.mlp.router.weight", 1, "other", None, ""),
        ("visual.transformer.resblocks.1.attn.in_proj_weight", 1, "attention", "qkv", ""),
        ("visual.transformer.resblocks.1.mlp.c_proj.weight", 1, "feed_forward", "down", ""),
        ("gpt_neox.layers.1.attention.query_key_value.weight", 1, "attention", "qkv", ""),
    ],
)
def test_names_as_files_of_other_years_and_libraries_have_them(
    name: str, layer: int, category: str, part: str | None, group: str
) -> None:
    prefix, _, inner = name.partition(".1.")
    whole = [f"{prefix}.{number}.{inner}" for number in range(3)]
    beside = [f"{prefix}.{n}.{rest}" for n in range(3) for rest in ("a.weight", "block_sparse_moe.experts.0.w1.weight")]
    index = architecture_index(dict.fromkeys(whole if "swin" in name else whole + beside, (2, 2)))
    place = index[name]
    assert (place.stack, place.layer, place.layers) == (prefix, layer, 3)
    assert (place.category, place.part, place.group) == (category, part, group)


def test_stages_count_their_blocks_through() -> None:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 2, 2], num_heads=[1, 2, 2], window_size=2
    )
    with torch.device("meta"):
        index = architecture_index(shapes_of(transformers.SwinForImageClassification(config)))
    blocks = {
        match.group(): place.layer
        for place in index.values()
        if (match := re.match(r"swin\.encoder\.layers\.(\d)\.blocks\.(\d)", place.name))
    }
    assert list(blocks.values()) == [0, 1, 2, 3, 4]
    assert {p.layers for p in index.values() if p.layer is not None} == {5}
    assert index["swin.encoder.layers.0.downsample.reduction.weight"].layer == 0
    assert index["swin.encoder.layers.1.downsample.reduction.weight"].layer == 2
    table = [p for p in index.values() if p.name.endswith("relative_position_bias_table")]
    assert Counter(p.category for p in table) == {"other": 5}


def test_convolutional_stages() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3], layer_type="basic")
    with torch.device("meta"):
        index = architecture_index(shapes_of(transformers.ResNetForImageClassification(config)))
    assert {p.layers for p in index.values() if p.layer is not None} == {5}
    assert index["resnet.encoder.stages.1.layers.2.layer.1.convolution.weight"].layer == 4
    assert index["classifier.1.weight"].category == "head"  # a Sequential around a head is no stack


def test_numbers_inside_a_layer_are_no_layers() -> None:
    """The first number in a name would mis-assign all of these."""
    shapes = {
        f"tower.1.net.blocks.{layer}.{inner}": (4, 4)
        for layer in range(4)
        for inner in ("attn.in_proj_weight", "mlp.fc.0.weight", "mlp.fc.2.weight", "conv.0.weight")
    } | {"tower.0.weight": (4, 4), "head.0.weight": (4, 4), "head.2.weight": (4, 4)}
    index = architecture_index(shapes)
    assert index["tower.1.net.blocks.3.mlp.fc.0.weight"] == TensorPlace(
        "tower.1.net.blocks.3.mlp.fc.0.weight", "tower.1.net.blocks", 3, 4, "feed_forward", None
    )
    assert index["tower.1.net.blocks.3.attn.in_proj_weight"].part == "qkv"
    assert index["tower.0.weight"].layer is None
    assert (index["head.2.weight"].layer, index["head.2.weight"].category) == (None, "head")


def test_sequential_around_a_model() -> None:
    shapes, _ = state_of("bert")
    index = architecture_index({f"0.model.{name}": shape for name, shape in shapes.items()})
    assert {p.stack for p in index.values()} == {"", "0.model.bert.encoder.layer"}
    assert index["0.model.bert.encoder.layer.2.output.dense.weight"].layer == 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.calm = nn.LayerNorm(4)


def test_any_module_with_numbered_layers() -> None:
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "steps": nn.ModuleList(Block() for _ in range(3))})
    index = architecture_index(shapes_of(model))
    assert index["steps.2.mix.weight"] == TensorPlace("steps.2.mix.weight", "steps", 2, 3, "other", None)
    assert index["steps.0.calm.weight"].category == "norm"  # a weight that is a vector
    assert index["first.weight"].layer is None


def test_plain_sequential_of_linear_layers() -> None:
    index = architecture_index(shapes_of(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())))
    assert [(p.layer, p.layers) for p in index.values()] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_torch_encoder_layers_and_open_clip_names() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    index = architecture_index(shapes_of(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)))
    parts = {p.name.removeprefix("layers.1."): (p.category, p.part) for p in index.values() if p.layer == 1}
    assert parts["self_attn.in_proj_weight"] == parts["self_attn.in_proj_bias"] == ("attention", "qkv")
    assert parts["self_attn.out_proj.bias"] == ("attention", "o")
    assert (parts["linear1.weight"], parts["linear2.weight"]) == (("feed_forward", "up"), ("feed_forward", "down"))
    assert parts["norm2.weight"] == ("norm", None)


def test_needs_no_torch() -> None:
    code = (
        "import sys; from multitune.models.architecture import architecture_index as a;"
        "index = a({f'h.{layer}.attn.c_attn.weight': (4, 12) for layer in range(2)});"
        "print(index['h.1.attn.c_attn.weight'].layer, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False", "False"]
