"""The loop: equal values however a step is split, undisturbed weights after a kill, clear ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from multitune.adaptation.adapting import adapt
from multitune.adaptation.config import AdaptationConfig
from multitune.errors import MultituneError
from multitune.mixing.policies import Proportional
from multitune.mixing.tokens import tokenise
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.objectives.aggregation import AGGREGATIONS
from multitune.training import train as training
from multitune.training.checkpoints import is_whole
from multitune.training.config import TrainingConfig
from multitune.training.interrupts import Interrupted
from tests.training.conftest import make_model, write_task

SETTINGS = {"steps": 6, "batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2}


def run(folder, tables, tokenizer, dropout=0.0, **settings):
    backbone = Backbone(make_model(dropout), tokenizer, "causal", ModelConfig(name="toy"), ())
    config = TrainingConfig(**{**SETTINGS, **settings})
    training.train(backbone, tables, Proportional(), config, folder, seed=0)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return backbone.model.state_dict(), log


def assert_same_weights(a, b, tolerance=0.0):
    for name in a:
        assert torch.allclose(a[name], b[name], atol=tolerance, rtol=0), name


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_accumulation_gives_the_losses_and_weights_of_one_big_batch(tmp_path, tables, tokenizer, aggregation):
    whole, log = run(tmp_path / "1", tables, tokenizer, aggregation=aggregation, micro_batch_size=4)
    split, log_split = run(tmp_path / "2", tables, tokenizer, aggregation=aggregation, micro_batch_size=1)
    assert_same_weights(whole, split, tolerance=2e-5)
    for one, many in zip(log, log_split, strict=True):
        assert one["loss"] == pytest.approx(many["loss"], abs=1e-4)
        for name, task in one["tasks"].items():
            assert task["tokens"] == many["tasks"][name]["tokens"]
            assert task["examples"] == many["tasks"][name]["examples"]
            assert task["loss"] == pytest.approx(many["tasks"][name]["loss"], abs=1e-4)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_that_are_not_packed_accumulate_alike(tmp_path, tables, tokenizer, aggregation):
    settings = {"aggregation": aggregation, "pack": "never"}
    whole, log = run(tmp_path / "1", tables, tokenizer, micro_batch_size=4, **settings)
    split, log_split = run(tmp_path / "2", tables, tokenizer, micro_batch_size=1, **settings)
    assert_same_weights(whole, split, tolerance=2e-5)
    for one, many in zip(log, log_split, strict=True):
        assert {n: t["examples"] for n, t in one["tasks"].items()} == {
            n: t["examples"] for n, t in many["tasks"].items()
        }


def test_a_step_whose_tasks_all_weigh_nothing_changes_nothing(tmp_path, tables, tokenizer):
    settings = {"task_weights": {"a": 0.0}, "batch_size": 1, "pack": "never", "steps": 8, "save_steps": 100}
    weights, _ = run(tmp_path, tables, tokenizer, **settings)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_run_killed_after_its_last_checkpoint_trains_no_step_more(tmp_path, tables, tokenizer):
    settings = {"schedule": "constant", "warmup": 0.0}
    first, _ = run(tmp_path, tables, tokenizer, **settings)
    again, log = run(tmp_path, tables, tokenizer, **settings)
    assert_same_weights(first, again)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_weights_in_16_bits_train_in_float32_and_are_given_back(tmp_path, tables, tokenizer):
    backbone = Backbone(make_model().bfloat16(), tokenizer, "causal", ModelConfig(name="toy"), ())
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    config = TrainingConfig(**{**SETTINGS, "learning_rate": 1e-3})
    training.train(backbone, tables, Proportional(), config, tmp_path, seed=0)
    saved = load_file(tmp_path / "checkpoints" / "checkpoint-6" / "weights.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert {p.dtype for p in backbone.model.parameters()} == {torch.bfloat16}
    assert not torch.equal(before["lm_head.weight"], backbone.model.lm_head.weight)


def test_the_last_step_is_logged_whatever_the_interval(tmp_path, tables, tokenizer):
    _, log = run(tmp_path, tables, tokenizer, logging_steps=4)
    assert [line["step"] for line in log] == [4, 6]


def test_the_logged_tasks_explain_the_logged_loss(tmp_path, tables, tokenizer):
    _, log = run(tmp_path, tables, tokenizer, aggregation="task_token_mean", pack="never")
    for line in log:
        tasks = line["tasks"].values()
        assert line["loss"] == pytest.approx(sum(task["loss"] for task in tasks) / len(tasks), abs=1e-4)
        assert sum(task["share"] for task in tasks) == pytest.approx(1.0)


def test_all_examples_are_drawn_once_in_one_epoch(tmp_path, tables, tokenizer):
    _, log = run(tmp_path, tables, tokenizer, steps=None, epochs=1)
    totals = {name: sum(line["tasks"].get(name, {"examples": 0})["examples"] for line in log) for name in "ab"}
    assert totals == {"a": 40, "b": 10}
    tokens = sum(task["tokens"] for line in log for task in line["tasks"].values())
    assert tokens == sum(int(table.label_counts.sum()) for table in tables)


def test_a_killed_run_ends_with_the_weights_and_log_of_an_undisturbed_one(tmp_path, tables, tokenizer):
    undisturbed, log = run(tmp_path / "1", tables, tokenizer, dropout=0.2)
    with pytest.raises(Interrupted):
        with_signal_at(3, run, tmp_path / "2", tables, tokenizer, dropout=0.2)
    resumed, resumed_log = run(tmp_path / "2", tables, tokenizer, dropout=0.2)
    assert_same_weights(undisturbed, resumed)
    assert [line["loss"] for line in log] == [line["loss"] for line in resumed_log]


def run_adalora(folder, tables, tokenizer):
    backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"), ())
    backbone = adapt(backbone, AdaptationConfig(method="adalora", init_r=6, target_r=2), steps=10)
    config = TrainingConfig(**{**SETTINGS, "steps": 10, "save_steps": 100})
    training.train(backbone, tables, Proportional(), config, folder, seed=0)
    log = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    return backbone.model.state_dict(), log


@pytest.mark.parametrize("step", [3, 7])  # while ranks are being moved, and after they have settled
def test_a_killed_adalora_ends_with_the_ranks_of_an_undisturbed_one(tmp_path, tables, tokenizer, step):
    undisturbed, log = run_adalora(tmp_path / "1", tables, tokenizer)
    with pytest.raises(Interrupted):
        with_signal_at(step, run_adalora, tmp_path / "2", tables, tokenizer)
    resumed, resumed_log = run_adalora(tmp_path / "2", tables, tokenizer)
    assert_same_weights(undisturbed, resumed)
    assert log == resumed_log
    assert any((tensor == 0).any() for name, tensor in resumed.items() if "lora_E" in name), "ranks were given away"


def run_routed(folder, tables, tokenizer):
    backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"), ())
    adaptation = AdaptationConfig(method="mhr", n_splits=2, n_skills=3, tasks=["a", "b"])
    backbone = adapt(backbone, adaptation, steps=6)
    config = TrainingConfig(**{**SETTINGS, "steps": 6, "save_steps": 100})
    training.train(backbone, tables, Proportional(), config, folder, seed=0)
    return backbone.model.state_dict()


def test_a_killed_run_with_routing_goes_on_at_both_of_its_speeds(tmp_path, tables, tokenizer):
    undisturbed = run_routed(tmp_path / "1", tables, tokenizer)
    with pytest.raises(Interrupted):
        with_signal_at(3, run_routed, tmp_path / "2", tables, tokenizer)
    assert_same_weights(undisturbed, run_routed(tmp_path / "2", tables, tokenizer))


def with_signal_at(step, function, *arguments, **settings):
    """Call the function and send this process SIGINT after the given optimiser step, as Ctrl-C does."""

    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)

    original = training.StopAtStepEnd
    made = []

    class WithPress(original, Press):
        def __init__(self, request):
            original.__init__(self, request)
            made.append(self)

    training.StopAtStepEnd = WithPress
    try:
        return function(*arguments, **settings)
    finally:
        training.StopAtStepEnd = original


def test_a_crash_between_checkpoints_goes_on_from_the_last_whole_one(tmp_path, tables, tokenizer):
    undisturbed, _ = run(tmp_path / "1", tables, tokenizer)
    run(tmp_path / "2", tables, tokenizer)
    newest = tmp_path / "2" / "checkpoints" / "checkpoint-6"
    (newest / "weights.safetensors").write_bytes(b"")  # cut short: 4 is the last whole one
    resumed, log = run(tmp_path / "2", tables, tokenizer)
    assert_same_weights(undisturbed, resumed)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_a_nan_loss_stops_names_the_task_and_keeps_the_checkpoint(tmp_path, tables, tokenizer):
    with pytest.raises(MultituneError, match="not a finite number"):
        run(tmp_path, tables, tokenizer, learning_rate=1e38, max_grad_norm=0, save_steps=1, optimizer="sgd", warmup=0.4)
    for path in (tmp_path / "checkpoints").glob("checkpoint-*"):
        assert (path / "whole.json").exists()
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path / "weights.safetensors").values())
    assert list((tmp_path / "checkpoints").glob("checkpoint-*")), "the step before the divergence is kept"


def test_weights_for_an_unknown_task_are_refused_with_the_nearest(tmp_path, tables, tokenizer):
    with pytest.raises(MultituneError, match="no task 'aa'"):
        run(tmp_path, tables, tokenizer, task_weights={"aa": 2.0})


def test_a_task_of_weight_zero_gives_no_gradient(tmp_path, tables, tokenizer):
    only_b, _ = run(tmp_path / "1", tables, tokenizer, task_weights={"a": 0.0}, steps=1, warmup=0.0)
    words_of_a = slice(2, 22)  # embedding rows of the targets of a; prompts share p-u
    head = make_model().state_dict()["lm_head.weight"]
    assert not torch.equal(only_b["lm_head.weight"], head)
    assert torch.equal(
        only_b["model.embed_tokens.weight"][words_of_a],
        make_model().state_dict()["model.embed_tokens.weight"][words_of_a],
    )


def test_the_steps_asked_for_are_reached_where_few_rows_hold_most_tokens(tmp_path, tokenizer):
    lines = [{"input": "p", "target": "a0 " * (2000 if i % 500 == 0 else 1)} for i in range(3000)]
    task = write_task(tmp_path, "a", lines, kind="generate")
    table = tokenise(task, "train", tokenizer, "causal", tmp_path, max_length=2048, cache=tmp_path / "cache")
    backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"), ())
    for seed in range(8):
        for steps in (2, 4, 6):
            config = TrainingConfig(steps=steps, batch_size=1, max_length=2048)
            batches = training.make_batches(backbone, [table], Proportional(), config, seed)
            assert len(batches) >= steps


def test_tensorboard_files_lie_beside_the_log_not_with_the_checkpoints(tmp_path, tables, tokenizer):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run(tmp_path, tables, tokenizer, report_to=("tensorboard",), steps=2)
    assert list((tmp_path / "tracking").rglob("events.out.tfevents.*"))
    assert not list((tmp_path / "checkpoints").rglob("events.out.tfevents.*"))


def test_nothing_to_train_is_refused(tmp_path, tables, tokenizer):
    backbone = Backbone(make_model().requires_grad_(False), tokenizer, "causal", ModelConfig(name="toy"), ())
    with pytest.raises(MultituneError, match="Nothing of the model trains"):
        training.train(backbone, tables, Proportional(), TrainingConfig(**SETTINGS), tmp_path, seed=0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds one checkpoint and no second one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_told_and_keeps_the_checkpoint_before(small_disk, tables, tokenizer):
    with pytest.raises(MultituneError, match="disk is full"):
        run(small_disk, tables, tokenizer)
    assert [p.name for p in (small_disk / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert is_whole(small_disk / "checkpoints" / "checkpoint-2")


@pytest.mark.filterwarnings("ignore")  # of torch itself, while it compiles
def test_a_compiled_model_trains_alike(tmp_path, tables, tokenizer):
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    plain, log = run(tmp_path / "1", tables, tokenizer, steps=3)
    compiled, log_compiled = run(tmp_path / "2", tables, tokenizer, steps=3, compile=True)
    assert_same_weights(plain, compiled, tolerance=1e-5)
    assert [line["loss"] for line in log_compiled] == pytest.approx([line["loss"] for line in log], abs=1e-5)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no fast bfloat16")
def test_a_cpu_computes_in_bfloat16_where_asked_and_keeps_its_weights_in_float32(tmp_path, tables, tokenizer):
    exact, log = run(tmp_path / "1", tables, tokenizer)
    rounded, log_rounded = run(tmp_path / "2", tables, tokenizer, precision="bfloat16")
    assert [line["loss"] for line in log_rounded] == pytest.approx([line["loss"] for line in log], abs=2e-2)
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)
    assert {tensor.dtype for tensor in rounded.values()} == {torch.float32}
