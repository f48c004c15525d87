"""Folders that cannot be trusted, and the reading of those that can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multitune.errors import MultituneError
from multitune.weights.checkpoints import Checkpoint
from tests.weights.folders import LLAMA, random_tensors, write


def test_headers_tell_names_shapes_and_types_and_data_are_mapped(tmp_path: Path) -> None:
    tensors = random_tensors(0, torch.bfloat16) | {"n": torch.tensor(3), "empty": torch.empty(0, 4)}
    checkpoint = Checkpoint.open(write(tmp_path / "m", tensors, shards=3))
    assert sorted(checkpoint.names) == sorted(tensors)
    assert checkpoint.bytes == sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert checkpoint.shapes[name] == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert checkpoint.dtypes["n"] == "I64"


def test_a_fingerprint_follows_the_headers(tmp_path: Path) -> None:
    first = Checkpoint.open(write(tmp_path / "a", random_tensors(0)))
    same = Checkpoint.open(write(tmp_path / "b", random_tensors(1)))
    other = Checkpoint.open(write(tmp_path / "c", random_tensors(0, width=9)))
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_tensors_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"a": torch.arange(5.0)})
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" " * (3 + (-len(data[8 : 8 + length].rstrip())) % 4)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert Checkpoint.open(folder).tensor("a").tolist() == [0, 1, 2, 3, 4]


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0), shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(MultituneError, match="damaged or cut short"):
        Checkpoint.open(folder)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MultituneError, match="incomplete: model-00002-of-00002"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("lie", ["elsewhere", "unlisted", "invented"])
def test_an_index_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0), shards=2)
    index = folder / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    places = told["weight_map"]
    if lie == "elsewhere":
        places["lm_head.weight"] = next(file for file in places.values() if file != places["lm_head.weight"])
    elif lie == "unlisted":
        del places["lm_head.weight"]
    else:
        places["model.more.weight"] = places["lm_head.weight"]
    index.write_text(json.dumps(told))
    with pytest.raises(MultituneError, match="The index puts the tensor"):
        Checkpoint.open(folder)


def test_a_header_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", {"a": torch.ones(4)})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[4]', b'"shape":[5]'))
    with pytest.raises(MultituneError, match=r"the tensor 'a' 16 bytes, and F32 \[5\] takes others"):
        Checkpoint.open(folder)


def test_headers_that_no_reader_takes_are_refused(tmp_path: Path) -> None:
    def with_header(header: Any) -> Path:
        folder = write(tmp_path / "m", {"a": torch.ones(4), "b": torch.ones(4)})
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
        return folder

    plain = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for header, words in (
        (
            {"a": {"shape": [4], "data_offsets": [0, 16]}, "b": plain},
            r"damaged|does not say type",
        ),
        ({"a": plain | {"shape": [-2, -2]}, "b": plain | {"data_offsets": [16, 32]}}, "takes others"),
        ({"a": plain, "b": plain | {"data_offsets": [8, 24]}, "c": plain | {"data_offsets": [16, 32]}}, "same bytes"),
    ):
        with pytest.raises(MultituneError, match=words):
            Checkpoint.open(with_header(header))


@pytest.mark.parametrize("told", [["a"], {"lm_head.weight": 1}])
def test_an_index_of_another_kind_is_refused(told: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0), shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    with pytest.raises(MultituneError, match="does not say which file holds which tensor"):
        Checkpoint.open(folder)


def test_a_config_that_is_a_list_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0))
    (folder / "config.json").write_text("[]")
    with pytest.raises(MultituneError, match="not valid JSON"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "changed its base"),
        ({"init_lora_weights": "olora"}, "changed its base"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "biases of its own"),
        ({"lora_alpha": 0}, None),
    ],
)
def test_only_what_is_a_sum_on_the_weights_counts_as_lora(told: dict[str, Any], words: str | None, tmp_path: Path):
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)}
    if told.get("lora_bias"):
        tensors[f"{module}.lora_B.bias"] = torch.ones(8)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | told))
    if words is not None:
        with pytest.raises(MultituneError, match=words):
            Checkpoint.open(folder)
    else:
        assert Checkpoint.open(folder).factored("model.layers.0.self_attn.q_proj.weight")[2] == 0


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0), shards=2)
    file = folder / "model-00001-of-00002.safetensors"
    other = load_file(folder / "model-00002-of-00002.safetensors")
    name = next(iter(other))
    save_file(load_file(file) | {name: other[name]}, file)
    with pytest.raises(MultituneError, match="is in two weight files"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pytorch_model.bin": "x"}, "pickled .* save_pretrained"),
        ({}, "has no weights"),
        ({"config.json": None, "model.safetensors": "x"}, "no config.json"),
    ],
)
def test_pickles_and_empty_folders_are_refused(files: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for name, text in files.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text)
    with pytest.raises(MultituneError) as caught:
        Checkpoint.open(folder)
    import re

    assert re.search(words, str(caught.value), re.DOTALL)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MultituneError, match="A model is a folder"):
        Checkpoint.open(tmp_path / "nowhere")


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", random_tensors(0))
    (folder / "config.json").write_text("{")
    with pytest.raises(MultituneError, match="not valid JSON"):
        Checkpoint.open(folder)
