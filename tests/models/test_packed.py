from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.models.packed import (
    ROUTES,
    UNPACKED_METHODS,
    block_causal_mask,
    check_packing,
    known_route,
    packed_forward_inputs,
    packing_error,
    packing_leak,
    packing_route,
    packs,
)
from multitune.models.pretrained import peft_warnings_logged

EXACT = ["llama", "qwen2", "qwen3", "gpt2", "opt", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2"]
EXAMPLES = [torch.tensor([11, 12, 13, 14, 15]), torch.tensor([21, 22]), torch.tensor([31, 32, 33])]
PADDING = 2


def packed(examples: list[Tensor] = EXAMPLES) -> dict[str, Tensor]:
    """One row with all examples and some padding; positions restart at 0."""
    pieces = [*examples, torch.zeros(PADDING, dtype=torch.long)]
    ids = [*range(len(examples)), -1]
    return {
        "input_ids": torch.cat(pieces)[None],
        "position_ids": torch.cat([torch.arange(len(piece)) for piece in pieces])[None],
        "example_ids": torch.cat([torch.full((len(piece),), i) for i, piece in zip(ids, pieces, strict=True)])[None],
    }


def packed_logits(model: Any, examples: list[Tensor] = EXAMPLES) -> list[Tensor]:
    logits = model(**packed_forward_inputs(model, packed(examples))).logits[0, :-PADDING]
    return list(logits.split([len(example) for example in examples]))


def backbone_of(model: Any) -> Backbone:
    return Backbone(model, None, "causal", ModelConfig(name="small"))


@pytest.mark.parametrize("family", EXACT)
def test_logits_of_a_packed_row_are_those_of_its_examples_alone(family: str, make_model: Callable[..., Any]) -> None:
    model = make_model(family)
    assert model.config.use_cache is not False, "the default that hides packed rows must not be needed"
    for together, example in zip(packed_logits(model), EXAMPLES, strict=True):
        torch.testing.assert_close(together, model(input_ids=example[None]).logits[0], atol=1e-5, rtol=1e-5)
    check_packing(backbone_of(model))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
def test_gradients_of_the_summed_loss_are_the_same_packed_and_alone(
    family: str, make_model: Callable[..., Any]
) -> None:
    model = make_model(family)

    def gradients(pieces: list[Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        losses = [
            torch.nn.functional.cross_entropy(piece[:-1], example[1:], reduction="sum")
            for piece, example in zip(pieces, EXAMPLES, strict=True)
        ]
        sum(losses).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = gradients(packed_logits(model))
    alone = gradients([model(input_ids=example[None]).logits[0] for example in EXAMPLES])
    assert together.keys() == alone.keys()
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for name, gradient in together.items():
        torch.testing.assert_close(gradient / largest, alone[name] / largest, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
def test_a_neighbours_tokens_leave_logits_and_gradients_bitwise_unchanged(
    family: str, make_model: Callable[..., Any]
) -> None:
    model = make_model(family)

    def of_second(first: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logits = packed_logits(model, [first, *EXAMPLES[1:]])[1]
        logits.sum().backward()
        named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return logits.detach(), named

    logits, gradients = of_second(EXAMPLES[0])
    other_logits, other_gradients = of_second(EXAMPLES[0] + 40)
    assert torch.equal(logits, other_logits)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, other_gradients[name]), name
    assert packing_leak(model) == 0.0


@pytest.mark.parametrize(
    ("family", "route"), [("llama", "positions"), ("opt", "mask"), ("bloom", "unpacked"), ("mpt", "mask")]
)
def test_routes(family: str, route: str, make_model: Callable[..., Any]) -> None:
    assert packing_route(make_model(family)) == route


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_architecture_that_leaks_on_every_route_is_not_packed(make_model: Callable[..., Any]) -> None:
    assert "mamba" not in ROUTES
    assert packing_route(make_model("mamba")) == "unpacked"


def test_probing_finds_the_route_that_the_table_names(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("llama", "opt", "bloom"):
        expected = ROUTES[family]
        monkeypatch.delitem(ROUTES, family)
        assert packing_route(make_model(family)) == expected


def test_encoder_decoder_models_are_not_packed(make_model: Callable[..., Any]) -> None:
    model = make_model("t5")
    assert packing_route(model) == "unpacked"
    check_packing(Backbone(model, None, "seq2seq", ModelConfig(name="small")))


def test_bloom_takes_one_example_per_row_and_refuses_more(make_model: Callable[..., Any]) -> None:
    model = make_model("bloom")
    inputs = packed_forward_inputs(model, packed(EXAMPLES[:1]))
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0]]
    assert inputs["use_cache"] is False
    logits = model(**inputs).logits[0, :5]
    torch.testing.assert_close(logits, model(input_ids=EXAMPLES[0][None]).logits[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(MultituneError, match="cannot keep several examples of one row apart"):
        packed_forward_inputs(model, packed())


def test_a_model_that_leaks_is_refused(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    exact = model.model.forward

    def forward_that_forgets_positions(*arguments: Any, position_ids: Tensor | None = None, **named: Any) -> Any:
        return exact(*arguments, **named)

    model.model.forward = forward_that_forgets_positions
    assert packing_error(model) > 0.1
    assert packing_leak(model) > 0.01
    with pytest.raises(MultituneError, match="Packed rows change what LlamaForCausalLM computes"):
        check_packing(backbone_of(model))


def test_a_leak_is_seen_in_bfloat16_too(make_model: Callable[..., Any]) -> None:
    model = make_model("llama").to(torch.bfloat16)
    check_packing(backbone_of(model))
    exact = model.model.forward
    model.model.forward = lambda *arguments, position_ids=None, **named: exact(*arguments, **named)
    with pytest.raises(MultituneError, match="leak"):
        check_packing(backbone_of(model))


def test_the_check_leaves_every_module_in_its_own_mode(make_model: Callable[..., Any]) -> None:
    model = make_model("llama").train()
    model.model.norm.eval()
    check_packing(backbone_of(model))
    assert model.training
    assert model.model.layers[0].training
    assert not model.model.norm.training


def test_block_causal_mask_by_hand() -> None:
    least = torch.finfo(torch.float32).min
    mask = block_causal_mask(torch.tensor([[4, 4, 9, -1]]), torch.float32)
    assert mask.shape == (1, 1, 4, 4)
    assert (mask[0, 0] == 0).long().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert mask.min() == least


def test_flash_attention_gets_the_rows_as_one_with_their_lengths(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    inputs = packed_forward_inputs(model, packed())
    assert inputs["input_ids"].shape == (1, 12)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 5, 7, 10, 12]
    assert inputs["max_length_q"] == 5


def test_what_names_tell_of_the_route_is_what_the_adapted_model_takes(make_model: Callable[..., Any]) -> None:
    from peft import LilyConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    adapters = {
        "lora": LoraConfig(task_type="CAUSAL_LM"),
        "lily": LilyConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
        "prefix_tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    }
    for family in ("llama", "opt", "bloom"):
        assert known_route(family, "full", flash=False) == packing_route(make_model(family))
    for method, config in adapters.items():
        with peft_warnings_logged():
            adapted = get_peft_model(make_model("llama"), config)
        assert known_route("llama", method, flash=False) == packing_route(adapted)
    assert known_route("opt", "lora", flash=True) == "unpacked"
    assert known_route("a_family_of_next_year", "lora", flash=False) is None


def test_every_prompt_learning_method_trains_unpacked() -> None:
    from peft.config import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    learning = {
        kind.value.lower()
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if issubclass(config, PromptLearningConfig)
    }
    soft_prompts_of_ours = {"dept", "ept", "mpt"}
    assert learning | soft_prompts_of_ours | {"lily"} == set(UNPACKED_METHODS)


def test_only_causal_rows_of_a_route_are_packed() -> None:
    assert packs("causal", "auto", "mask", "A") and packs("causal", "always", None, "A")
    assert not packs("causal", "never", "positions", "A")
    assert not packs("causal", "auto", "unpacked", "A") and not packs("encoder", "auto", "positions", "A")
    with pytest.raises(MultituneError, match="A cannot train on packed rows"):
        packs("seq2seq", "always", None, "A")
