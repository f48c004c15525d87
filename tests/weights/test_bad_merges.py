"""Merges that are refused, before or while data are read; nothing is left of them."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from multitune.errors import MultituneError
from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
from multitune.weights.writing import lay_out
from tests.weights.folders import family, read, write


def config_of(base: Path, models: list[Path], method: str = "ties", **fields: object) -> MergeConfig:
    return MergeConfig(method=method, base=str(base), models=[str(each) for each in models], **fields)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "dare_ties", "sce"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(method: str, value: float, tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    tensors = read(models[1])
    tensors["model.norm.weight"][3] = value
    write(models[1], tensors)
    parameters = {"density": 0.5} if method == "dare_ties" else {}
    with pytest.raises(MultituneError, match=r"'model.norm.weight' holds values that are not finite") as caught:
        merge(config_of(base, models, method, parameters=parameters), tmp_path / "out")
    assert str(models[1]) in caught.value.where
    assert sorted(each.name for each in tmp_path.iterdir()) == ["base", "model0", "model1"]


def test_a_result_too_large_for_its_type_is_refused(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1, torch.float16)
    with pytest.raises(MultituneError, match="is too large for float16"):
        merge(config_of(base, models, "task_arithmetic", parameters={"lambda": 1e7}), tmp_path / "out")


def test_an_output_inside_an_input_is_refused(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    for out in (base, base / "merged", tmp_path):
        with pytest.raises(MultituneError, match="lie in one another"):
            merge(config_of(base, models), out)


def test_an_output_that_holds_something_is_refused(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    out = tmp_path / "out"
    out.mkdir()
    merge(config_of(base, models), out)  # an empty folder will do
    with pytest.raises(MultituneError, match="exists and is not empty"):
        merge(config_of(base, models), out)


def test_a_disk_too_small_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = family(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    with pytest.raises(MultituneError, match=r"takes 0.0 GB, and 0.0 GB are free"):
        merge(config_of(base, models), tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()


def test_an_error_of_the_disk_keeps_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = family(tmp_path, 1)
    whole, calls = os.pwrite, []

    def full(descriptor: int, data: bytes, position: int) -> int:
        calls.append(position)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return whole(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(MultituneError, match="No space left on device"):
        merge(config_of(base, models), tmp_path / "out", threads=1)
    monkeypatch.undo()
    assert merge(config_of(base, models), tmp_path / "out").resumed == 3


def test_changed_inputs_are_not_mixed_with_an_older_attempt(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(config_of(base, models), tmp_path / "out", progress=stop)
    tensors = read(models[0])
    write(models[0], {name: tensor + 1 for name, tensor in tensors.items()})
    assert merge(config_of(base, models), tmp_path / "out").resumed == 0


def test_parameters_of_a_global_rank_cannot_differ(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    with pytest.raises(MultituneError, match="ranked over the whole model"):
        merge(config_of(base, models, parameters={"density": (0.1, 0.5)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_are_cut_where_they_are_full() -> None:
    tensors = [(name, "F32", (10,)) for name in "abcde"]
    layout = lay_out(tensors, {"format": "pt"}, shard_bytes=80)
    assert [slot.file for slot in layout.slots.values()] == [
        f"model-{number:05}-of-00003.safetensors" for number in (1, 1, 2, 2, 3)
    ]
    assert layout.index is not None
    assert layout.index["metadata"] == {"total_size": 200}
    assert lay_out(tensors, {}).index is None


def test_several_shards_load_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = family(tmp_path, 2)
    merge(config_of(base, models), tmp_path / "one")
    monkeypatch.setattr("multitune.weights.writing.lay_out.__defaults__", (1000,))
    merge(config_of(base, models), tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
