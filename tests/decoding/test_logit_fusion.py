"""A fusion is a causal language model: cached, batched and sampled as any other, and its parts stay as they are."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)

from multitune.decoding.fusion_config import FusionConfig
from multitune.decoding.fusion_search import fuse
from multitune.decoding.fusion_trace import write_trace
from multitune.decoding.generate import generate
from multitune.decoding.logit_fusion import LogitFusion
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.models.pretrained import peft_warnings_logged

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34, 35, 36], [200, 201]]


@pytest.fixture
def llama(tokenizer):
    """Makes a Llama with random weights, its vocabulary padded by so many rows."""

    def make(width: int = 16, layers: int = 1, seed: int = 0, padded: int = 0) -> Backbone:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer) + padded, hidden_size=width, intermediate_size=32, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3, **SPECIAL,
        )  # fmt: skip
        return Backbone(LlamaForCausalLM(config).eval(), tokenizer, "causal", ModelConfig(name=f"llama-{width}"))

    return make


def tuned(backbone: Backbone, seed: int) -> Backbone:
    """Return a copy that has moved away from the given model."""
    other = copy.deepcopy(backbone.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return Backbone(other, backbone.tokenizer, "causal", ModelConfig(name=f"expert-{seed}"))


@pytest.fixture
def parts(llama):
    """A large model, a small base, two experts."""
    small = llama()
    return llama(32, 2, seed=1), small, [tuned(small, 2), tuned(small, 3)]


def backbone_of(fusion: LogitFusion, tokenizer) -> Backbone:
    return Backbone(fusion, tokenizer, "causal", ModelConfig(name="fusion"))


def directly(large: nn.Module, small: nn.Module, experts: list[nn.Module], ids: list[int], config: FusionConfig):
    """Fuse at every position of one sequence, without cache, padding or batch."""
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = [model(input_ids=row).logits[0] for model in (large, small, *experts)]
    return fuse(logits[0], logits[1], torch.stack(logits[2:], dim=1), config)


@pytest.mark.parametrize("search", ["grid", "joint", "bisection"])
def test_the_forward_pass_fuses_every_position(parts, search) -> None:
    large, small, experts = parts
    config = FusionConfig(search=search)
    fusion = LogitFusion(large, small, experts, config)
    found = fusion(input_ids=torch.tensor([PROMPTS[2]])).logits
    wanted = directly(large.model, small.model, [one.model for one in experts], PROMPTS[2], config)
    torch.testing.assert_close(found[0], wanted.logits_BV, atol=1e-4, rtol=1e-4)
    assert not found.requires_grad


@pytest.mark.parametrize("alpha", ["dynamic", 1.0, (0.5, 0.25)])
def test_cached_batched_texts_are_those_of_no_cache_one_by_one(parts, tokenizer, alpha) -> None:
    large, small, experts = parts
    config = FusionConfig(alpha=alpha)
    fusion = LogitFusion(large, small, experts, config)
    written = []
    for prompt in PROMPTS:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and ids[-1] != 2:
            fused = directly(large.model, small.model, [one.model for one in experts], ids, config)
            ids.append(int(fused.logits_BV[-1].argmax()))
        written.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    assert len(set(written)) == len(PROMPTS)
    backbone = backbone_of(fusion, tokenizer)
    assert generate(backbone, PROMPTS, max_new_tokens=12) == written
    assert generate(backbone, PROMPTS, max_new_tokens=12, batch_tokens=1) == written
    uncached = fusion.generate(input_ids=torch.tensor([PROMPTS[2]]), max_new_tokens=12, use_cache=False)
    assert tokenizer.decode(uncached[0, 7:], skip_special_tokens=True) == written[2]


def test_rows_that_end_at_different_times_are_as_alone(chain, ids) -> None:
    letters = {"a": {"b": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}, "d": {"</s>": 1.0}}
    large, small = chain(letters), chain({"a": {"x": 1.0}})
    expert = chain({"a": {"x": 1.0}, "c": {"</s>": 1.0}})
    fusion = LogitFusion(large, small, [expert], FusionConfig(alpha=1.5))
    backbone = backbone_of(fusion, large.tokenizer)
    prompts = [ids("a"), ids("zzb"), ids("d"), ids("c")]
    fusion.trace = []
    assert generate(backbone, prompts, max_new_tokens=10) == ["bc", "c", "", ""]
    lengths = {tuple(text.prompt): len(text.tokens) for text in fusion.trace}
    assert lengths == {tuple(prompt): n for prompt, n in zip(prompts, (3, 2, 1, 1), strict=True)}
    assert all(len(text.alpha_ST) == len(text.tokens) for text in fusion.trace)
    assert generate(backbone, [ids("a"), ids("c")], max_new_tokens=10, stop=["c"]) == ["b", ""]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_experts_over_one_base_are_as_models_of_their_own(llama, tokenizer, family) -> None:
    small = llama()
    if family == "gpt2":
        torch.manual_seed(5)
        config = GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64, **SPECIAL)
        small = Backbone(GPT2LMHeadModel(config).eval(), tokenizer, "causal", ModelConfig(name="gpt2"))
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    alone = []
    with peft_warnings_logged():
        shared = get_peft_model(copy.deepcopy(small.model), lora, adapter_name="first")
        shared.add_adapter("second", lora)
        shared.eval()
        for name in ("first", "second"):
            own = copy.deepcopy(shared)
            own.set_adapter(name)
            alone.append(Backbone(own.merge_and_unload(), tokenizer, "causal", ModelConfig(name=name)))
    large = llama(32, 2, seed=1)
    config = FusionConfig()
    together = Backbone(shared, tokenizer, "causal", ModelConfig(name="shared"))
    one = LogitFusion(large, together, ["second", "first"], config)
    many = LogitFusion(large, small, alone[::-1], config)
    assert sum(p.numel() for p in one.parameters()) < sum(p.numel() for p in many.parameters())
    row = torch.tensor([PROMPTS[2]])
    torch.testing.assert_close(one(input_ids=row).logits, many(input_ids=row).logits, atol=1e-4, rtol=1e-4)
    texts = [generate(backbone_of(fusion, tokenizer), PROMPTS, max_new_tokens=8) for fusion in (one, many)]
    assert texts[0] == texts[1]
    mixed = LogitFusion(large, together, ["second", alone[0]], config)
    torch.testing.assert_close(mixed(input_ids=row).logits, many(input_ids=row).logits, atol=1e-4, rtol=1e-4)
    beams = [
        fusion.generate(input_ids=row, num_beams=3, num_return_sequences=2, max_new_tokens=6) for fusion in (one, many)
    ]
    assert torch.equal(*beams)


def test_no_parameter_changes_or_gets_a_gradient(parts, tokenizer) -> None:
    large, small, experts = parts
    fusion = LogitFusion(large, small, experts)
    before = {name: parameter.clone() for name, parameter in fusion.named_parameters()}
    wanted = {name: parameter.requires_grad for name, parameter in fusion.named_parameters()}
    generate(backbone_of(fusion, tokenizer), PROMPTS, max_new_tokens=4)
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad == wanted[name]


def test_logits_processors_and_temperature_come_after_the_fusion(parts) -> None:
    large, small, experts = parts
    seen: list[Tensor] = []

    class Forbid(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            seen.append(scores)
            scores = scores.clone()
            scores[:, 3:] = -torch.inf
            return scores

    row = torch.tensor([PROMPTS[0]])
    fusion = LogitFusion(large, small, experts)
    output = fusion.generate(
        input_ids=row, logits_processor=LogitsProcessorList([Forbid()]), do_sample=True, temperature=2.0, top_k=0,
        max_new_tokens=1, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    fused = fusion(input_ids=row).logits[:, -1]
    torch.testing.assert_close(seen[0], fused)
    torch.testing.assert_close(output.scores[0][:, :3], fused[:, :3] / 2.0)
    assert output.sequences[0, -1] < 3


def test_sampling_is_seeded(parts, tokenizer) -> None:
    backbone = backbone_of(LogitFusion(*parts), tokenizer)
    one, again, other = (
        generate(backbone, PROMPTS, max_new_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_the_trace_tells_every_token_and_can_be_written(parts, tokenizer, tmp_path) -> None:
    large, small, experts = parts
    fusion = LogitFusion(large, small, experts)
    fusion.trace = []
    generate(backbone_of(fusion, tokenizer), PROMPTS, max_new_tokens=6)
    assert sorted(text.prompt for text in fusion.trace) == sorted(PROMPTS)
    for text in fusion.trace:
        ids = text.prompt + text.tokens
        wanted = directly(large.model, small.model, [one.model for one in experts], ids, FusionConfig()).alpha_BT
        found = torch.tensor(text.alpha_ST)
        torch.testing.assert_close(found, wanted[len(text.prompt) - 1 : -1])
        assert ((found > 0).sum(1) <= 1).all()
    write_trace(tmp_path / "deep" / "trace.jsonl", fusion.trace, ["a", "b"], tokenizer)
    lines = [json.loads(line) for line in (tmp_path / "deep" / "trace.jsonl").read_text().splitlines()]
    assert len(lines) == len(PROMPTS)
    assert lines[0]["experts"] == ["a", "b"]
    assert len(lines[0]["tokens"]) == len(lines[0]["alphas"]) > 0


def test_padded_embeddings_are_cut_to_the_shared_words(llama, tokenizer) -> None:
    large, small = llama(32, 2, seed=1, padded=5), llama(padded=1)
    expert = tuned(small, 2)
    fusion = LogitFusion(large, small, [expert])
    found = fusion(input_ids=torch.tensor([PROMPTS[0]])).logits[0]
    assert found.shape == (3, len(tokenizer))
    row = torch.tensor([PROMPTS[0]])
    logits = [one.model(input_ids=row).logits[0, :, : len(tokenizer)] for one in (large, small, expert)]
    wanted = fuse(logits[0], logits[1], logits[2][:, None], FusionConfig()).logits_BV
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_words_are_mapped_by_their_texts_where_ids_differ(llama, tokenizer) -> None:
    large, small = llama(32, 2, seed=1), llama()
    expert = tuned(small, 2)
    words = len(tokenizer)
    place_V = torch.randperm(words, generator=torch.Generator().manual_seed(0))  # the other tokenizer's id of each id
    names = tokenizer.convert_ids_to_tokens(list(range(words)))
    names = ["<end>" if name == "</s>" else name for name in names]
    bare = Tokenizer(models.BPE(vocab={name: int(place_V[i]) for i, name in enumerate(names)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="<end>")

    def renumbered(backbone: Backbone) -> Backbone:
        model = copy.deepcopy(backbone.model)
        with torch.no_grad():
            model.model.embed_tokens.weight[place_V] = backbone.model.model.embed_tokens.weight
            model.lm_head.weight[place_V] = backbone.model.lm_head.weight
        return Backbone(model, other, "causal", ModelConfig(name="renumbered"))

    row = torch.tensor([PROMPTS[2]])
    plain = LogitFusion(large, small, [expert])(input_ids=row).logits
    mapped = LogitFusion(large, renumbered(small), [renumbered(expert)])(input_ids=row).logits
    torch.testing.assert_close(mapped, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("begins", [False, True])
def test_a_prompt_of_its_own_stands_before_what_a_role_reads(parts, tokenizer, ids, begins) -> None:
    large, small, experts = parts
    if begins:
        tokenizer = copy.deepcopy(tokenizer)
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        for one in (large, small, *experts):
            one.tokenizer = tokenizer
    config = FusionConfig(large_prompt="demo: ")
    fusion = LogitFusion(large, small, experts, config)
    first = [1] if begins else []
    prompts = [[*first, *prompt] for prompt in PROMPTS]
    demo = [*first, *ids("demo: ")]
    written = []
    for prompt in PROMPTS:
        answer: list[int] = []
        for _ in range(5):
            row_L, row_S = torch.tensor([demo + prompt + answer]), torch.tensor([first + prompt + answer])
            logits_L = large.model(input_ids=row_L).logits[:, -1]
            logits_S = [one.model(input_ids=row_S).logits[:, -1] for one in (small, *experts)]
            fused = fuse(logits_L, logits_S[0], torch.stack(logits_S[1:], dim=1), config)
            answer.append(int(fused.logits_BV.argmax()))
        written.append(tokenizer.decode(answer, skip_special_tokens=True))
    assert generate(backbone_of(fusion, tokenizer), prompts, max_new_tokens=5) == written
    assert fusion.config.max_position_embeddings == 64 - len(demo)


def refused(what: str, *arguments, **options) -> MultituneError:
    with pytest.raises(MultituneError) as caught:
        LogitFusion(*arguments, **options)
    assert what in caught.value.what, caught.value.what
    return caught.value


def test_models_that_cannot_be_fused_are_refused(parts, llama, random_backbone, tokenizer) -> None:
    large, small, experts = parts
    refused("no expert", large, small, [])
    refused("no small base", large, None, experts)
    refused("reversed", large, small, experts, FusionConfig(ranges=((1.0, 0.0),)))
    refused("below 0", large, small, experts, FusionConfig(alpha=-1.0))
    refused("no tuned version of the small base", large, small, [llama(24)])
    refused("given twice", large, small, [experts[0], experts[0]])
    refused("given twice", large, small, [small])
    refused("given twice", large, large, [tuned(large, 4)])
    refused("of form seq2seq", random_backbone("bart"), small, experts)
    encoder = Backbone(small.model, tokenizer, "encoder", ModelConfig(name="bert"))
    refused("of form encoder", large, encoder, experts)
    refused("holds no adapter 'math'", large, small, ["math"])
    refused("leave no position", large, small, experts, FusionConfig(large_prompt="x" * 70))


def test_adapters_that_cannot_share_a_batch_are_refused(llama, tokenizer) -> None:
    def over(small: Backbone, config) -> Backbone:
        with peft_warnings_logged():
            model = get_peft_model(copy.deepcopy(small.model), config, adapter_name="one")
        return Backbone(model.eval(), tokenizer, "causal", ModelConfig(name="adapted"))

    large, small = llama(32, 2), llama()
    dora = LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    refused("no plain LoRA", large, over(small, dora), ["one"])
    prompt = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    refused("learns a prompt", large, small, [over(small, prompt)])
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    refused("'one' is given twice", large, over(small, lora), ["one", "one"])


def test_words_that_are_not_shared_are_refused(parts, tokenizer) -> None:
    large, small, experts = parts
    names = ["<pad>", "<s>", "</s>", *(f"word{i}" for i in range(256))]
    bare = Tokenizer(models.WordLevel(vocab={name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    other = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    small.tokenizer = other
    assert "256 of the large model's 259 words" in refused("does not know", large, small, experts).what
    small.tokenizer = tokenizer
    experts[1].tokenizer = other
    refused("The expert does not know", large, small, experts)


def test_added_words_of_the_large_model_alone_are_left_out(llama, tokenizer) -> None:
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    large, small = llama(32, 2, padded=3), llama()
    large.tokenizer = larger
    fusion = LogitFusion(large, small, [tuned(small, 2)])
    assert fusion(input_ids=torch.tensor([PROMPTS[0]])).logits.shape[-1] == len(tokenizer)
    with pytest.raises(MultituneError, match="token 259"):
        fusion(input_ids=torch.tensor([[259]]))
    large.model.generation_config.eos_token_id = 259
    refused("end-of-text token 259", large, small, [tuned(small, 3)])


def test_a_fusion_is_not_saved_as_weights(parts, tmp_path) -> None:
    with pytest.raises(MultituneError, match="no weights of its own"):
        LogitFusion(*parts).save_pretrained(tmp_path)
