"""The cost record: what is measured after training, with the adapter and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from multitune.adaptation import AdaptationConfig, adapt
from multitune.mixing.policies import Proportional
from multitune.models.config import ModelConfig
from multitune.models.loading import Backbone
from multitune.recipes.cost import milliseconds, size, told
from multitune.training import cost
from multitune.training import train as training
from multitune.training.config import TrainingConfig
from multitune.training.cost import StepTimes, peak_memory, reading_speeds, reset_peak_memory
from tests.training.conftest import make_model, make_tables
from tests.training.test_architectures import small_t5

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*_checkpointing.*:FutureWarning")  # peft's


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(cost, "ENOUGH_SECONDS", 0.0)


def adapted(tokenizer: Any, method: str, **options: Any) -> Backbone:
    backbone = Backbone(make_model(), tokenizer, "causal", ModelConfig(name="toy"))
    return adapt(backbone, AdaptationConfig(method=method, **options))


@pytest.mark.parametrize(
    ("method", "options", "merges", "measured"),
    [
        ("full", {}, True, {"merged"}),
        ("lora", {"r": 2}, True, {"unmerged", "merged"}),
        ("bottleneck", {"r": 2}, False, {"unmerged"}),
        ("prompt_tuning", {}, False, {"unmerged"}),
    ],
)
def test_both_ways_of_serving_are_measured_where_they_exist(method, options, merges, measured, tables, tokenizer):
    speeds = reading_speeds(adapted(tokenizer, method, **options), tables, 4, 32, merges=merges)
    assert {kind for kind, speed in speeds.items() if speed} == measured
    assert all(speed is None or speed > 0 for speed in speeds.values())


def test_an_encoder_decoder_is_measured_too(tokenizer, tmp_path):
    rows = make_tables(tokenizer, tmp_path, {"a": 8, "b": 4}, "seq2seq")
    backbone = adapt(
        Backbone(small_t5(), tokenizer, "seq2seq", ModelConfig(name="toy")), AdaptationConfig(method="lora")
    )
    speeds = reading_speeds(backbone, rows, 4, 32, merges=True)
    assert speeds["unmerged"] > 0 and speeds["merged"] > 0


def test_an_adapter_that_does_not_merge_ends_no_training(tables, tokenizer, caplog):
    speeds = reading_speeds(adapted(tokenizer, "bottleneck", r=2), tables, 4, 32, merges=True)
    assert speeds["unmerged"] and speeds["merged"] is None
    assert "could not be measured" in caplog.text


def test_a_training_tells_its_steps_and_its_peak(tmp_path, tables, tokenizer):
    config = TrainingConfig(steps=3, batch_size=4, max_length=32)
    result = training.train(adapted(tokenizer, "lora"), tables, Proportional(), config, tmp_path, seed=0)
    assert result.step_seconds is not None and 0 < result.step_seconds < result.seconds
    assert result.peak_bytes is not None and result.peak_bytes > 10**7


def test_the_peak_is_that_since_the_reset():
    reset_peak_memory()
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    with_block = peak_memory(torch.device("cpu"))
    assert with_block - before > 0.8 * len(block)
    del block
    assert peak_memory(torch.device("cpu")) > 0.99 * with_block, "what is freed stays in the peak"
    assert StepTimes().median is None


def test_costs_are_told_as_people_write_them():
    assert [size(number) for number in (None, 900, 45_200, 1_204_000, 3.4e9)] == [
        "",
        "1 kB",
        "45 kB",
        "1.20 MB",
        "3.40 GB",
    ]
    assert [milliseconds(seconds) for seconds in (None, 0.0123, 1.25)] == ["", "12.3 ms", "1.25 s"]
    record = {"trainable": 2368, "share": 0.01, "bytes": 9500, "peak_bytes": None, "step_seconds": 0.5}
    one = told("joint", record)
    assert (one.trainable, one.share, one.memory, one.unmerged, one.merged) == ("2,368", "1.00%", "", "", "")
    one = told("joint", record | {"tokens_per_second": {"unmerged": 1234.5, "merged": None}})
    assert (one.unmerged, one.merged) == ("1,234", "")
