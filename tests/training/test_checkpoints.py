"""Checkpoints: whole or absent, exact, and only of this very run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multitune.training import checkpoints


def make_run(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for p in model[0].parameters():
        p.requires_grad = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return model, optimizer, schedule


def advance(model, optimizer, schedule, steps, generator):
    for _ in range(steps):
        loss = model(torch.randn(8, 4, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def write(folder, run, fingerprint="f"):
    model, optimizer, schedule = run
    checkpoints.write_checkpoint(
        folder,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        balancer={},
        random_states={"cpu": torch.get_rng_state()[None]},
        trainer_state="{}",
        fingerprint=fingerprint,
    )


def test_a_restored_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    generator = torch.Generator().manual_seed(3)
    run = make_run()
    advance(*run, 3, generator)
    write(tmp_path / "checkpoint-3", run)
    state = generator.get_state()
    advance(*run, 4, generator)

    other = make_run()
    checkpoints.load_weights(tmp_path / "checkpoint-3", other[0])
    checkpoints.load_optimizer(tmp_path / "checkpoint-3", other[1], other[2])
    generator.set_state(state)
    advance(*other, 4, generator)
    for (name, a), b in zip(run[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert other[2].get_last_lr() == run[2].get_last_lr()


def test_frozen_parameters_are_not_written(tmp_path):
    run = make_run()
    advance(*run, 1, torch.Generator().manual_seed(0))
    names = checkpoints.trainable_state(run[0])
    assert not any(name.startswith("0.") for name in names)
    assert "1.running_mean" in names


def test_tied_parameters_are_written_once_and_restored(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    write(tmp_path / "checkpoint-1", (model, optimizer, schedule))
    expected = model["a"].weight.detach().clone()
    with torch.no_grad():
        model["a"].weight.zero_()
    checkpoints.load_weights(tmp_path / "checkpoint-1", model)
    assert torch.equal(model["b"].weight, expected)


@pytest.mark.parametrize("victim", ["weights.safetensors", "optimizer.safetensors", "trainer_state.json", "whole.json"])
def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(tmp_path, victim):
    run = make_run()
    advance(*run, 1, torch.Generator().manual_seed(0))
    write(tmp_path / "checkpoint-1", run)
    write(tmp_path / "checkpoint-2", run)
    path = tmp_path / "checkpoint-2" / victim
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.find_checkpoint(tmp_path, "f") == tmp_path / "checkpoint-1"


def test_a_checkpoint_of_other_settings_is_passed_over(tmp_path):
    write(tmp_path / "checkpoint-5", make_run(), fingerprint="other")
    assert checkpoints.find_checkpoint(tmp_path, "f") is None


def test_newest_is_by_step_number_and_old_ones_are_removed(tmp_path):
    for step in (9, 10, 100):
        write(tmp_path / f"checkpoint-{step}", make_run())
    assert checkpoints.find_checkpoint(tmp_path, "f").name == "checkpoint-100"
    checkpoints.remove_old_checkpoints(tmp_path, 2)
    assert [p.name for p in checkpoints.sorted_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]


def test_a_failed_write_leaves_nothing_behind_and_keeps_the_old_one(tmp_path, monkeypatch):
    run = make_run()
    write(tmp_path / "checkpoint-1", run)

    class Full(dict):
        def state_dict(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "checkpoint-2", (run[0], run[1], Full()))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
