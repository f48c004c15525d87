from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from multitune.adaptation import AdaptationConfig, adapt, allocate_ranks, schedule_ranks, trainable_parameters
from multitune.adaptation.adapting import orthogonality
from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.heads import head_losses
from multitune.models.hidden import head_logits, hidden_route, hidden_states
from multitune.models.loading import Backbone, load_backbone, load_saved, model_facts, save_backbone
from multitune.models.packed import check_packing, packing_route
from multitune.tasks.task import Task

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
    ),  # peft 0.21 asks for it
    pytest.mark.filterwarnings("ignore::UserWarning"),  # peft's advice
]

VOCABULARY = 61
IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**IDS, **WIDE, num_key_value_heads=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(**IDS, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0)
    ),
    "bert": lambda: BertModel(BertConfig(**IDS, **WIDE)),
}
TASKS = (Task(name="mood", kind="label", choices=("bad", "good")), Task(name="score", kind="regress"))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[[str], Path]:
    def save(family: str) -> Path:
        torch.manual_seed(0)
        folder = tmp_path / family
        FAMILIES[family]().save_pretrained(folder)
        words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
        return folder

    return save


def adapted(folder: Path, method: str, **options: Any) -> Backbone:
    tasks = TASKS if folder.name == "bert" else ()
    return adapt(load_backbone(ModelConfig(name=str(folder)), tasks), AdaptationConfig(method=method, **options))


def disturb(backbone: Backbone) -> None:
    """Move every trainable weight a little, as training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


CAUSAL_IDS = torch.tensor([[5, 6, 7, 8]])


def causal_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=CAUSAL_IDS, attention_mask=torch.ones_like(CAUSAL_IDS), use_cache=False).logits[:, -4:]


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_other_causal_architectures(family: str, method: str, make_folder: Callable[[str], Path]) -> None:
    backbone = adapted(make_folder(family), method)
    disturb(backbone)
    batch = {"input_ids": CAUSAL_IDS, "position_ids": torch.arange(4)[None], "example_ids": torch.zeros(1, 4).long()}
    split = head_logits(backbone.model, hidden_states(backbone.model, batch))
    torch.testing.assert_close(split, causal_logits(backbone.model), atol=1e-5, rtol=1e-5)
    packable = family == "gpt2" and method in ("lora", "ia3")
    assert packing_route(backbone.model) == ("positions" if packable else "unpacked")
    check_packing(backbone)


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning", "prefix_tuning", "p_tuning"])
def test_encoder_decoder_models(method: str, make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    backbone = adapted(make_folder("t5"), method)
    disturb(backbone)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8], [15, 16, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": torch.tensor([[21, 22, 2], [31, 32, 2]]),
    }

    def own(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(**batch).logits[:, -3:]

    split = head_logits(backbone.model, hidden_states(backbone.model, batch))
    torch.testing.assert_close(split, own(backbone.model), atol=1e-5, rtol=1e-5)
    split.sum().backward()
    save_backbone(backbone, tmp_path / "out", merged=False)
    torch.testing.assert_close(own(load_saved(tmp_path / "out").model), own(backbone.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_encoders_keep_their_heads_and_both_train(
    method: str, merged: bool, make_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    if merged and method == "prompt_tuning":
        pytest.skip("virtual tokens cannot be added into weights")
    backbone = adapted(make_folder("bert"), method)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "task_ids": torch.tensor([0, 1]),
        "values": torch.tensor([1.0, 0.5], dtype=torch.float64),
    }
    head_losses(backbone.model, batch).sum().backward()
    trained = {name for name, p in backbone.model.named_parameters() if p.grad is not None}
    assert {"weight", "bias"} < trained
    assert trained == {name for name, p in backbone.model.named_parameters() if p.requires_grad}
    disturb(backbone)
    inputs = (batch["input_ids"], batch["attention_mask"], batch["task_ids"])
    save_backbone(backbone, tmp_path / "out", merged=merged)
    again = load_saved(tmp_path / "out")
    torch.testing.assert_close(again.model(*inputs), backbone.model.eval()(*inputs), atol=1e-5, rtol=1e-5)
    assert (tmp_path / "out" / "adapter_config.json").exists() != merged


def test_a_trained_language_head_is_used(make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make_folder("llama")
    for options in ({"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}):
        backbone = adapted(folder, "lora", **options)
        disturb(backbone)
        batch = {
            "input_ids": CAUSAL_IDS,
            "position_ids": torch.arange(4)[None],
            "example_ids": torch.zeros(1, 4).long(),
        }
        assert hidden_route(backbone.model) == "decoder"
        split = head_logits(backbone.model, hidden_states(backbone.model, batch))
        torch.testing.assert_close(split, causal_logits(backbone.model), atol=1e-5, rtol=1e-5)
        save_backbone(backbone, tmp_path / "merged", merged=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(causal_logits(merged), causal_logits(backbone.model), atol=1e-5, rtol=1e-5)


def test_an_adapter_finds_its_base_from_any_folder(
    make_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder("llama")
    monkeypatch.chdir(tmp_path)
    backbone = adapted(Path("llama"), "lora")
    disturb(backbone)
    save_backbone(backbone, tmp_path / "out", merged=False)
    monkeypatch.chdir("/")
    torch.testing.assert_close(causal_logits(load_saved(tmp_path / "out").model), causal_logits(backbone.model))
    (tmp_path / "out" / "multitune.json").unlink()  # as peft alone would have written it
    torch.testing.assert_close(causal_logits(load_saved(tmp_path / "out").model), causal_logits(backbone.model))


def test_an_adapter_of_another_base_is_told(make_folder: Callable[[str], Path], tmp_path: Path) -> None:
    save_backbone(adapted(make_folder("llama"), "lora"), tmp_path / "out", merged=False)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**IDS, **WIDE | {"hidden_size": 64}, num_key_value_heads=2)).save_pretrained(
        tmp_path / "llama"
    )
    with pytest.raises(MultituneError, match="was trained on other weights"):
        load_saved(tmp_path / "out")
    (tmp_path / "out" / "multitune.json").unlink()  # as peft alone would have written it
    with pytest.raises(MultituneError, match="does not fit its base"):
        load_saved(tmp_path / "out")


@pytest.mark.parametrize("family", ["llama", "t5", "bert", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora", "ia3", "prompt_tuning", "vera"])
def test_the_plan_counts_exactly_what_trains(family: str, method: str, make_folder: Callable[[str], Path]) -> None:
    folder = make_folder(family)
    tasks = TASKS if family == "bert" else ()
    planned = trainable_parameters(model_facts(ModelConfig(name=str(folder))), AdaptationConfig(method=method), tasks)
    if planned is None:
        pytest.skip("this method reads weights when it is placed")
    model = adapted(folder, method).model
    assert planned == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_lora_on_the_small_llama_by_hand(make_folder: Callable[[str], Path]) -> None:
    facts = model_facts(ModelConfig(name=str(make_folder("llama"))))
    attention = 4 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32)
    feed_forward = 4 * (32 + 48) * 3
    assert trainable_parameters(facts, AdaptationConfig(method="lora", r=4)) == 2 * (attention + feed_forward)


def test_a_seed_gives_the_same_adapter_whatever_happened_before(make_folder: Callable[[str], Path]) -> None:
    folder = make_folder("llama")

    def weights(seed: int) -> list[torch.Tensor]:
        torch.rand(seed + 1)
        backbone = adapt(load_backbone(ModelConfig(name=str(folder))), AdaptationConfig(method="lora"), seed=seed)
        return [p for name, p in backbone.model.named_parameters() if "lora_A" in name]

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert not torch.equal(weights(1)[0], weights(2)[0])


def test_full_trains_everything_and_changes_nothing(make_folder: Callable[[str], Path]) -> None:
    backbone = load_backbone(ModelConfig(name=str(make_folder("llama"))))
    assert adapt(backbone, AdaptationConfig()) is backbone
    assert all(p.requires_grad for p in backbone.model.parameters())


def test_quantised_weights_do_not_train_fully(make_folder: Callable[[str], Path]) -> None:
    backbone = load_backbone(ModelConfig(name=str(make_folder("llama"))))
    backbone.config = backbone.config.model_copy(update={"quantize": "4bit"})
    with pytest.raises(MultituneError, match="Quantised weights cannot train"):
        adapt(backbone, AdaptationConfig())


def test_a_second_adapter_is_refused(make_folder: Callable[[str], Path]) -> None:
    backbone = adapted(make_folder("llama"), "lora")
    with pytest.raises(MultituneError, match="has an adapter already"):
        adapt(backbone, AdaptationConfig(method="ia3"))


@pytest.mark.parametrize(
    ("family", "method", "options", "reason"),
    [
        ("llama", "lora", {"target_modules": ["no_such_layer"]}, "no_such_layer"),
        ("llama", "vblora", {"vector_length": 7}, "divisible"),
        ("gpt2", "beft", {}, "target_modules"),
        ("t5", "adaption_prompt", {}, "t5"),
        ("bert", "cpt", {"cpt_token_ids": [1]}, "CAUSAL_LM"),
    ],
)
def test_what_peft_cannot_place_is_told_in_its_words(
    family: str, method: str, options: dict[str, Any], reason: str, make_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(MultituneError, match=f"peft cannot place '{method}'.*{reason}") as caught:
        adapted(make_folder(family), method, **options)
    assert caught.value.where == f"adapt.method: {method}"


@pytest.mark.parametrize(
    ("family", "method", "options", "mend"),
    [
        ("gpt2", "beft", {}, "These can adapt GPT2LMHeadModel: bitfit, binary_mask, diff_pruning, ln_tuning, lora; "),
        ("t5", "adaption_prompt", {}, "These can adapt T5ForConditionalGeneration: "),
        ("bert", "cpt", {"cpt_token_ids": [1]}, "These can adapt BertModel: "),
        ("llama", "lora", {"target_modules": ["none"]}, "Change the option it speaks of: with its defaults 'lora' has"),
    ],
)
def test_methods_that_can_are_named_in_place_of_one_that_cannot(
    family: str, method: str, options: dict[str, Any], mend: str, make_folder: Callable[[str], Path]
) -> None:
    folder = make_folder(family)
    with pytest.raises(MultituneError) as placed:
        adapted(folder, method, **options)
    with pytest.raises(MultituneError) as planned:
        config = AdaptationConfig(method=method, **options)
        trainable_parameters(model_facts(ModelConfig(name=str(folder))), config, TASKS if family == "bert" else ())
    assert planned.value.mend == placed.value.mend
    assert placed.value.mend.startswith(mend)
    if "These can" in mend:
        for named in placed.value.mend.split(": ")[1].split(";")[0].split(", "):
            adapted(folder, named)


def test_adalora_gives_ranks_away_on_schedule(make_folder: Callable[[str], Path]) -> None:
    backbone = load_backbone(ModelConfig(name=str(make_folder("llama"))))
    config = AdaptationConfig(method="adalora", init_r=6, target_r=2)
    backbone = adapt(backbone, config)
    schedule_ranks(backbone.model, 10)
    peft_config = backbone.model.active_peft_config
    assert (peft_config.total_step, peft_config.tinit, peft_config.tfinal) == (10, 1, 5)
    for step in range(10):
        causal = backbone.model(input_ids=CAUSAL_IDS).logits.square().mean()
        causal.backward()
        allocate_ranks(backbone.model, step)
    values = [p for name, p in backbone.model.named_parameters() if "lora_E" in name]
    kept = sum(int((gates != 0).sum()) for gates in values)
    assert len(values) == 14
    assert kept <= 2 * len(values)


def test_other_models_have_no_ranks_to_allocate(make_folder: Callable[[str], Path]) -> None:
    for model in (
        load_backbone(ModelConfig(name=str(make_folder("llama")))).model,
        adapted(make_folder("bert"), "lora").model,
    ):
        schedule_ranks(model, 10)
        allocate_ranks(model, 0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_norm_tuning_finds_the_norms_of_any_architecture(family: str, make_folder: Callable[[str], Path]) -> None:
    model = adapted(make_folder(family), "ln_tuning").model
    trained = [
        name.lower() for name, p in model.named_parameters() if p.requires_grad and name not in ("weight", "bias")
    ]
    assert trained
    assert all("norm" in name or ".ln_" in name for name in trained)


def test_adaloras_penalty_is_the_one_peft_adds_to_a_loss_of_its_own(make_folder: Callable[[str], Path]) -> None:
    backbone = load_backbone(ModelConfig(name=str(make_folder("llama"))))
    adapted = adapt(backbone, AdaptationConfig(method="adalora", init_r=6, target_r=2), steps=10)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        outputs = adapted.model(input_ids=ids, labels=ids)
        plain = torch.nn.functional.cross_entropy(outputs.logits[0, :-1], ids[0, 1:])
        torch.testing.assert_close(orthogonality(adapted.model), outputs.loss - plain)
