"""Methods that act on the optimiser: what is masked stays to the bit, what moves along moves by the equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from multitune.adaptation import AdaptationConfig, adapt, trainable_parameters
from multitune.adaptation.updates import kept_entries, largest_entries
from multitune.errors import MultituneError
from multitune.mixing.policies import Proportional
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone, merged_model, model_facts, save_backbone
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from multitune.training.trainer import MultiTaskTrainer
from multitune.training.updates import MASKS_FILE, fisher_information, refuse_rule
from tests.training.conftest import make_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*_checkpointing.*:FutureWarning")  # peft's

SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "max_length": 32,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "logging_steps": 1,
    "weight_decay": 0.1,
}
SMALL = {"r": 2, "lora_alpha": 4}


def adapted(tokenizer: Any, method: str, dropout: float = 0.1, **options: Any) -> Backbone:
    backbone = Backbone(make_model(dropout), tokenizer, "causal", ModelConfig(name="toy"))
    return adapt(backbone, AdaptationConfig(method=method, **options), seed=3)


def run(backbone: Backbone, tables: Any, folder: Any, **settings: Any) -> dict[str, torch.Tensor]:
    training.train(backbone, tables, Proportional(), TrainingConfig(**{**SETTINGS, **settings}), folder, seed=0)
    return values(backbone)


def values(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> int:
    return sum(int((before[name] != after[name]).sum()) for name in before)


@pytest.mark.parametrize(
    ("method", "options"),
    [("child_tuning", {"reserve": 1.0}), ("child_tuning", {"variant": "D", "reserve": 1.0}), ("fish", {"keep": 10**9})],
)
def test_a_mask_of_everything_is_full_fine_tuning_to_the_bit(method, options, tmp_path, tables, tokenizer):
    whole = run(adapted(tokenizer, "full"), tables, tmp_path / "full")
    masked = run(adapted(tokenizer, method, samples=4, **options) if method == "fish" or "variant" in options
                 else adapted(tokenizer, method, **options), tables, tmp_path / "masked")  # fmt: skip
    assert all(torch.equal(whole[name], masked[name]) for name in whole)


@pytest.mark.parametrize(
    ("method", "options", "kept"),
    [
        ("fish", {"keep": 100}, 100),
        ("fish", {"budget": 64}, 64),
        ("child_tuning", {"variant": "D", "reserve": 0.1}, None),
    ],
)
def test_entries_outside_the_mask_stay_to_the_bit_under_weight_decay(
    method, options, kept, tmp_path, tables, tokenizer
):
    backbone = adapted(tokenizer, method, samples=8, **options)
    before = values(backbone)
    result = training.train(backbone, tables, Proportional(), TrainingConfig(**SETTINGS), tmp_path, seed=0)
    entries = sum(p.numel() for p in before.values())
    assert result.trainable_parameters == (kept or int(0.1 * entries))
    assert 0 < moved(before, values(backbone)) <= result.trainable_parameters


def test_child_tuning_f_moves_another_share_of_the_entries_at_every_step(tmp_path, tables, tokenizer):
    backbone = adapted(tokenizer, "child_tuning", reserve=0.3)
    before = values(backbone)
    once = run(backbone, tables, tmp_path / "one", steps=1)
    entries = sum(p.numel() for p in before.values())
    assert moved(before, once) < 0.32 * entries
    twice = run(adapted(tokenizer, "child_tuning", reserve=0.3), tables, tmp_path / "six")
    assert moved(before, twice) > 0.5 * entries


def test_the_largest_entries_are_found_over_all_tensors_and_ties_are_broken_by_place():
    scores = {"a": torch.tensor([[3.0, 1.0], [2.0, 2.0]]), "b": torch.tensor([5.0, 2.0])}
    masks = largest_entries(scores, 3)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [True, False]
    assert sum(int(m.sum()) for m in largest_entries(scores, 6).values()) == 6


def test_the_fisher_information_is_the_mean_of_squared_gradients_of_single_examples(tables, tokenizer):
    backbone = adapted(tokenizer, "fish", dropout=0.0, samples=3)
    single = training._one_by_one(TrainingConfig(**SETTINGS), 3)
    batches = training.make_batches(backbone, tables, Proportional(), single, 0)
    assert len(batches) == 3
    found = fisher_information(backbone, batches)
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = dict(backbone.model.named_parameters())[name]
    squares = []
    for place in range(3):
        batch = batches[place]
        out = backbone.model(input_ids=batch["input_ids"], labels=batch["labels"])
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        squares.append(torch.autograd.grad(out.loss * tokens, weight)[0].square())
    torch.testing.assert_close(found[name], torch.stack(squares).mean(0))


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == step:
                raise RuntimeError("killed")

    make = MultiTaskTrainer.__init__

    def watched(self, *arguments: Any, **options: Any) -> None:
        options["callbacks"] = [*options["callbacks"], Kill()]
        make(self, *arguments, **options)

    monkeypatch.setattr(MultiTaskTrainer, "__init__", watched)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fish", {"keep": 200, "samples": 8}),
        ("child_tuning", {}),
        ("delta_lora", {**SMALL, "delta_start": 1}),
        ("lora_plus", SMALL),
        ("lora_fa", SMALL),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    method, options, tmp_path, tables, tokenizer, monkeypatch
):
    undisturbed = run(adapted(tokenizer, method, **options), tables, tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(5, patch)
        with pytest.raises(RuntimeError, match="killed"):
            run(adapted(tokenizer, method, **options), tables, tmp_path / "killed")
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-4").is_dir()
    resumed = run(adapted(tokenizer, method, **options), tables, tmp_path / "killed")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert (tmp_path / "killed" / MASKS_FILE).exists() == (method == "fish")


def test_delta_lora_at_zero_is_lora_to_the_bit(tmp_path, tables, tokenizer):
    lora = run(adapted(tokenizer, "lora", **SMALL), tables, tmp_path / "lora")
    delta = run(adapted(tokenizer, "delta_lora", delta_ratio=0.0, **SMALL), tables, tmp_path / "delta")
    assert all(torch.equal(lora[name], delta[name]) for name in lora)


def test_delta_lora_moves_the_base_by_what_the_product_has_moved_since_its_start(tmp_path, tables, tokenizer):
    backbone = adapted(tokenizer, "delta_lora", delta_ratio=0.5, **SMALL)
    before = values(backbone)
    run(backbone, tables, tmp_path)
    layers = [m for m in backbone.model.modules() if hasattr(m, "lora_A")]
    names = [name for name in before if name.endswith("base_layer.weight")]
    assert len(layers) == len(names) == 14
    for name, layer in zip(names, layers, strict=True):
        change = layer.get_delta_weight("default")  # B was zero
        assert change.abs().max() > 0
        torch.testing.assert_close(layer.base_layer.weight, before[name] + 0.5 * change)


def test_delta_lora_is_saved_merged_or_not_at_all(tmp_path, tables, tokenizer):
    backbone = adapted(tokenizer, "delta_lora", **SMALL)
    run(backbone, tables, tmp_path / "run")
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(MultituneError, match="moves the weights themselves"):
        save_backbone(backbone, tmp_path / "adapter", merged=False)
    with torch.no_grad():
        torch.testing.assert_close(merged_model(backbone)(ids).logits, backbone.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_lora_fa_leaves_a_as_it_was_drawn(tmp_path, tables, tokenizer):
    backbone = adapted(tokenizer, "lora_fa", **SMALL)
    before = values(backbone)
    after = run(backbone, tables, tmp_path)
    for name in before:
        assert torch.equal(before[name], after[name]) == (".lora_B." not in name), name


def test_lora_plus_gives_b_a_faster_rate(tmp_path, tables, tokenizer, monkeypatch):
    rates: list[dict[str, float]] = []
    make = MultiTaskTrainer.create_optimizer

    def watched(self, model=None):
        optimizer = make(self, model)
        names = {id(p): name for name, p in self.model.named_parameters()}
        rates.append({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})
        return optimizer

    monkeypatch.setattr(MultiTaskTrainer, "create_optimizer", watched)
    run(adapted(tokenizer, "lora_plus", rate_ratio=8, **SMALL), tables, tmp_path, steps=1)
    assert {rate for name, rate in rates[0].items() if ".lora_A." in name} == {1e-2}
    assert {rate for name, rate in rates[0].items() if ".lora_B." in name} == {8e-2}
    assert len(rates[0]) == 28


def test_the_plan_counts_what_trains(tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path)
    facts = model_facts(ModelConfig(name=str(tmp_path)))
    for method, options, count in [
        ("fish", {"keep": 77}, 77),
        ("fish", {"budget": 0.5}, int(0.5 * facts.parameters)),
        ("child_tuning", {"variant": "D", "reserve": 0.25}, int(0.25 * facts.parameters)),
        ("child_tuning", {}, facts.parameters),
        ("lora_fa", {"r": 3}, 3 * 2 * (16 + 8 + 8 + 16 + 32 + 32 + 16)),
    ]:
        assert trainable_parameters(facts, AdaptationConfig(method=method, **options)) == count
    assert kept_entries(AdaptationConfig(method="fish", keep=10**9).update, 50) == 50


def test_what_cannot_be_is_refused(tokenizer, monkeypatch):
    fish, lora_fa = adapted(tokenizer, "fish").update, adapted(tokenizer, "lora_fa", **SMALL).update
    with pytest.raises(MultituneError, match="finds its mask in one process"):
        refuse_rule(fish, 2, "adamw_torch")
    with pytest.raises(MultituneError, match="AdamW of its own"):
        refuse_rule(lora_fa, 1, "adafactor")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(MultituneError, match="acts on whole weights"):
        refuse_rule(fish, 1, "adamw_torch")


def test_masks_are_kept_for_a_run_that_goes_on_and_found_anew_otherwise(tmp_path, tables, tokenizer):
    run(adapted(tokenizer, "fish", keep=50, samples=4), tables, tmp_path)
    first = (tmp_path / MASKS_FILE).read_bytes()
    run(adapted(tokenizer, "fish", keep=60, samples=4), tables, tmp_path)
    assert (tmp_path / MASKS_FILE).read_bytes() != first
