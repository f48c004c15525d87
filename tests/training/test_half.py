"""Half fine-tuning in the loop: what is frozen stays to the bit, what trains has state, kills change nothing."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from multitune.adaptation.adapting import adapt
from multitune.adaptation.config import AdaptationConfig
from multitune.adaptation.half import MANIFEST_FILE, write_manifest
from multitune.errors import MultituneError
from multitune.mixing.policies import Proportional, Replay
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from multitune.training.interrupts import Interrupted
from multitune.training.trainer import MultiTaskTrainer
from tests.training.conftest import make_model

SETTINGS = {
    "steps": 6,
    "batch_size": 4,
    "max_length": 32,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "logging_steps": 1,
    "weight_decay": 0.1,
}


def halved(tokenizer: Any, *, seed: int = 0, rounds: int = 0, **options: Any) -> Backbone:
    backbone = Backbone(make_model(0.1), tokenizer, "causal", ModelConfig(name="toy"), rounds=rounds)
    return adapt(backbone, AdaptationConfig(method="half", **options), seed=seed)


def run(backbone: Backbone, tables: Any, folder: Any, **settings: Any) -> dict[str, torch.Tensor]:
    training.train(backbone, tables, Proportional(), TrainingConfig(**{**SETTINGS, **settings}), folder, seed=0)
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


@pytest.fixture
def steps(monkeypatch) -> list[dict[str, Any]]:
    """Receives at every step's end which parameters require gradients and what the optimiser knows."""
    seen: list[dict[str, Any]] = []

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs) -> None:
            trainer = self.trainer
            optimizer = trainer.optimizer
            names = {id(p): name for name, p in trainer.model.model.named_parameters()}
            seen.append(
                {
                    "trains": {name for name, p in trainer.model.model.named_parameters() if p.requires_grad},
                    "gradients": {n for n, p in trainer.model.model.named_parameters() if p.grad is not None},
                    "known": {names[id(p)] for group in optimizer.param_groups for p in group["params"]},
                    "state": {names[id(p)] for p in optimizer.state},
                }
            )

    make = MultiTaskTrainer.__init__

    def watched(self, *arguments: Any, **options: Any) -> None:
        watch = Watch()
        options["callbacks"] = [*options["callbacks"], watch]
        make(self, *arguments, **options)
        watch.trainer = self

    monkeypatch.setattr(MultiTaskTrainer, "__init__", watched)
    return seen


def test_frozen_tensors_stay_to_the_bit_and_all_others_move(tmp_path, tables, tokenizer, steps) -> None:
    backbone = halved(tokenizer)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    after = run(backbone, tables, tmp_path)
    frozen = backbone.half.frozen
    assert frozen
    for name in before:
        assert torch.equal(before[name], after[name]) == (name in frozen), name
    trained = set(before) - frozen
    for step in steps:
        assert step["trains"] == step["gradients"] == step["known"] == trained
    assert steps[-1]["state"] == trained  # weight decay of 0.1 would have moved what it knows


def test_a_checkpoint_holds_the_trained_half_alone(tmp_path, tables, tokenizer) -> None:
    backbone = halved(tokenizer)
    run(backbone, tables, tmp_path)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-6"
    trained = {f"model.{name}" for name in backbone.half.sizes if name not in backbone.half.frozen}
    assert set(load_file(checkpoint / "weights.safetensors")) == trained
    moments = [name for name in load_file(checkpoint / "optimizer.safetensors") if name.endswith(".exp_avg")]
    assert len(moments) == len(trained)


def test_the_whole_fraction_is_full_fine_tuning_to_the_bit(tmp_path, tables, tokenizer) -> None:
    full = Backbone(make_model(0.1), tokenizer, "causal", ModelConfig(name="toy"))
    plain = run(full, tables, tmp_path / "full", learning_rate=None)
    whole = run(halved(tokenizer, fraction=1.0), tables, tmp_path / "half", learning_rate=None)
    assert all(torch.equal(plain[name], whole[name]) for name in plain)


def test_the_empty_fraction_trains_embeddings_head_and_final_norm(tmp_path, tables, tokenizer) -> None:
    backbone = halved(tokenizer, fraction=0.0)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    after = run(backbone, tables, tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def killed_at(step: int, monkeypatch: Any) -> None:
    make = MultiTaskTrainer.__init__

    def with_kill(self, *arguments: Any, **options: Any) -> None:
        options["callbacks"] = [KillAt(step), *options["callbacks"]]
        make(self, *arguments, **options)

    monkeypatch.setattr(MultiTaskTrainer, "__init__", with_kill)


@pytest.mark.parametrize("resample", ["run", "epoch"])
@pytest.mark.parametrize("step", [3, 4])
def test_a_killed_run_goes_on_with_the_same_half(
    tmp_path, tables, tokenizer, monkeypatch, resample: str, step: int
) -> None:
    """The tables have 50 rows: with 2 epochs in 8 steps a new one begins after the fourth."""
    settings = {"steps": None, "epochs": 2, "batch_size": 13, "micro_batch_size": 1, "pack": "never"}
    undisturbed = run(halved(tokenizer, resample=resample), tables, tmp_path / "1", **settings)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        killed_at(step, patched)
        run(halved(tokenizer, resample=resample), tables, tmp_path / "2", **settings)
    resumed = run(halved(tokenizer, resample=resample), tables, tmp_path / "2", **settings)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def test_another_half_at_every_epoch(tmp_path, tables, tokenizer, steps) -> None:
    backbone = halved(tokenizer, resample="epoch")
    settings = {"steps": None, "epochs": 3, "batch_size": 10, "micro_batch_size": 1, "pack": "never"}
    run(backbone, tables, tmp_path, **settings)
    assert len(steps) == 15
    for epoch in range(3):
        first, *rest = steps[5 * epoch : 5 * epoch + 5]
        assert all(step["trains"] == first["trains"] for step in rest)
        assert first["trains"] == first["known"]
        assert first["state"] in (set(), first["trains"])  # nothing of the epoch before
    assert len({frozenset(step["trains"]) for step in steps}) == 3
    saved = load_file(tmp_path / "checkpoints" / "checkpoint-15" / "weights.safetensors")
    assert set(saved) == {f"model.{name}" for name in backbone.half.sizes}  # of every epoch's half


def test_gem_projects_the_gradient_of_the_trained_half_alone(tmp_path, tables, tokenizer, monkeypatch) -> None:
    """Task b is new, a an earlier one: no step goes against a's gradient, which holds nothing of what is frozen."""
    products, widths = [], set()

    class Watch(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs) -> None:
            gradient_TP = self.trainer.task_gradients._gradient_TP
            step_P = torch.cat([p.grad.flatten() for p in self.trainer.model.parameters() if p.requires_grad])
            products.append((gradient_TP @ step_P / gradient_TP.norm(dim=1) / step_P.norm()).tolist())
            widths.add(gradient_TP.shape[1])

    make = MultiTaskTrainer.__init__

    def watched(self, *arguments: Any, **options: Any) -> None:
        watch = Watch()
        options["callbacks"] = [*options["callbacks"], watch]
        make(self, *arguments, **options)
        watch.trainer = self

    monkeypatch.setattr(MultiTaskTrainer, "__init__", watched)
    backbone = halved(tokenizer)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    settings = {"balancer": {"method": "gem", "earlier": ["a"]}, "pack": "never", "batch_size": 8, "steps": 12}
    config = TrainingConfig(**{**SETTINGS, **settings})
    mixture = Replay(earlier=("a",), share=0.5)
    training.train(backbone, tables, mixture, config, tmp_path, seed=0)
    assert all(product_a >= -1e-5 for product_a, _ in products)
    assert any(abs(product_a) < 1e-5 for product_a, _ in products)  # and some had to be projected
    assert widths == {backbone.half.trainable}
    assert all(torch.equal(p, before[n]) for n, p in backbone.model.named_parameters() if n in backbone.half.frozen)


def test_weights_that_are_dealt_out_cannot_resample(tmp_path, tables, tokenizer, monkeypatch) -> None:
    make = MultiTaskTrainer.__init__

    def dealt_out(self, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self.is_fsdp_enabled = True  # as transformers says of itself on GPUs

    monkeypatch.setattr(MultiTaskTrainer, "__init__", dealt_out)
    with pytest.raises(MultituneError, match="cannot train with FSDP or DeepSpeed"):
        run(halved(tokenizer, resample="epoch"), tables, tmp_path)


def test_balancers_of_gradients_cannot_resample(tmp_path, tables, tokenizer) -> None:
    with pytest.raises(MultituneError, match="Another half"):
        run(halved(tokenizer, resample="epoch"), tables, tmp_path, balancer={"method": "pcgrad"})


def test_weights_in_16_bits_stay_in_16_bits_where_they_are_frozen(tmp_path, tables, tokenizer) -> None:
    backbone = Backbone(make_model().bfloat16(), tokenizer, "causal", ModelConfig(name="toy"))
    backbone = adapt(backbone, AdaptationConfig(method="half"), seed=0)
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    after = run(backbone, tables, tmp_path)
    saved = load_file(tmp_path / "checkpoints" / "checkpoint-6" / "weights.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(before[name], after[name]) for name in backbone.half.frozen)


def test_gradient_checkpointing_changes_nothing(tmp_path, tables, tokenizer) -> None:
    plain = run(halved(tokenizer), tables, tmp_path / "1")
    recomputed = run(halved(tokenizer), tables, tmp_path / "2", gradient_checkpointing=True)
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


def test_the_manifest_brings_the_half_back(tmp_path, tokenizer) -> None:
    backbone = halved(tokenizer, seed=1)
    write_manifest(backbone.half, tmp_path)
    written = json.loads((tmp_path / MANIFEST_FILE).read_text())
    assert written["trainable_parameters"] == sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    # another version of the package might draw another half: what is written stands
    other = halved(tokenizer, seed=2).half.frozen
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(written | {"frozen": sorted(other)}))
    fresh = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"))
    again = adapt(fresh, AdaptationConfig(method="half"), seed=1, folder=tmp_path)
    assert again.half.frozen == other != backbone.half.frozen
    next_round = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"), rounds=1)
    drawn = adapt(next_round, AdaptationConfig(method="half"), seed=1, folder=tmp_path).half
    assert drawn.frozen == halved(tokenizer, seed=1, rounds=1).half.frozen


def test_a_manifest_of_another_model_is_refused(tmp_path, tokenizer) -> None:
    backbone = halved(tokenizer)
    write_manifest(backbone.half, tmp_path)
    written = json.loads((tmp_path / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(written | {"frozen": ["no.such.weight"]}))
    fresh = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"))
    with pytest.raises(MultituneError, match=r"no\.such\.weight"):
        adapt(fresh, AdaptationConfig(method="half"), folder=tmp_path)
