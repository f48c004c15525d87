"""Adapters that are not what they are taken for: of another base, with other files, unmergeable, or out of place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.identity import base_digest, weights_digest
from multitune.models.loading import add_adapter, load_saved, save_backbone
from tests.adaptation.test_methods import FITTED, SIZES, TUNERS, adapted
from tests.models.conftest import small_tokenizer
from tests.small_llama import small_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # peft's advice

WITHOUT_WIDTH = ("adamss", "fourierft", "psoft", "unilora", "waveft")
"""Methods whose tensors tell nothing of the widths of their base."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models: two of one architecture with other weights, and one that is wider."""
    folder = tmp_path_factory.mktemp("bases")
    for name, changes in (("base", {}), ("wide", {"hidden_size": 64, "intermediate_size": 96})):
        model = small_llama(97, **SIZES | changes, attention_bias=True)
        model.save_pretrained(folder / name)
    with torch.no_grad():
        other = small_llama(97, **SIZES, attention_bias=True)
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    other.save_pretrained(folder / "other")
    for name in ("base", "wide", "other"):
        small_tokenizer(pad_token="<pad>").save_pretrained(folder / name)
    return folder


def saved(base: Path, folder: Path, method: str = "lora") -> Path:
    """A base of its own with an untrained adapter over it; the folder of the adapter."""
    shutil.copytree(base, folder / "base")
    backbone = adapted(folder / "base", method, **FITTED.get(method, {}))
    save_backbone(backbone, folder / "adapter", merged=False)
    return folder / "adapter"


def replaced(folder: Path, by: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


@pytest.mark.parametrize("method", [method for method in TUNERS if method != "delta_lora"])
def test_an_adapter_of_another_base_is_refused_by_hash_and_by_shapes(method: str, bases: Path, tmp_path: Path) -> None:
    folder = saved(bases / "base", tmp_path, method)
    load_saved(folder, "cpu")
    replaced(tmp_path / "base", bases / "other")
    with pytest.raises(MultituneError, match="was trained on other weights"):
        load_saved(folder, "cpu")
    wide = AutoModelForCausalLM.from_pretrained(bases / "wide")
    if method in WITHOUT_WIDTH:
        add_adapter(wide, folder)
        return
    with pytest.raises(MultituneError, match="does not fit its base"):
        add_adapter(wide, folder)


def test_what_peft_alone_wrote_is_held_against_the_shapes_only(bases: Path, tmp_path: Path) -> None:
    folder = saved(bases / "base", tmp_path)
    described = json.loads((folder / "multitune.json").read_text())
    replaced(tmp_path / "base", bases / "other")
    (folder / "multitune.json").write_text(json.dumps({k: v for k, v in described.items() if k != "base_digest"}))
    load_saved(folder, "cpu")
    (folder / "multitune.json").unlink()
    load_saved(folder, "cpu")


def test_a_digest_is_of_the_weights_and_not_of_their_files(bases: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases / "base")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert weights_digest(tmp_path / "shards") == weights_digest(bases / "base")
    assert weights_digest(bases / "other") != weights_digest(bases / "base")
    model.half().save_pretrained(tmp_path / "half")
    assert weights_digest(tmp_path / "half") != weights_digest(bases / "base")
    assert base_digest(ModelConfig(name="nobody/has-this")) is None


# -- files that are not its own ----------------------------------------------------------------------------------------


def test_a_whole_model_beside_an_adapter_is_told(bases: Path, tmp_path: Path) -> None:
    folder = saved(bases / "base", tmp_path)
    shutil.copy(bases / "base" / "model.safetensors", folder)
    with pytest.raises(MultituneError, match=r"holds a whole model \(model.safetensors\) and an adapter"):
        load_saved(folder, "cpu")
    with pytest.raises(MultituneError, match="holds a whole model"):
        add_adapter(AutoModelForCausalLM.from_pretrained(bases / "base"), folder)


@pytest.mark.parametrize("theirs", ["vera", "bottleneck", "prompt_tuning", "ept"])
@pytest.mark.parametrize("method", ["lora", "ept", "ia3", "mhr"])
def test_the_tensors_of_another_method_are_told(method: str, theirs: str, bases: Path, tmp_path: Path) -> None:
    if method == theirs:
        return
    folder = saved(bases / "base", tmp_path / "own", method)
    strange = saved(bases / "base", tmp_path / "theirs", theirs)
    shutil.copy(strange / "adapter_model.safetensors", folder)
    with pytest.raises(MultituneError, match="does not fit its base: its file has no tensor"):
        load_saved(folder, "cpu")


def test_a_tensor_too_few_or_too_many_is_told(bases: Path, tmp_path: Path) -> None:
    folder = saved(bases / "base", tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    last = sorted(tensors)[-1]
    save_file({name: tensor for name, tensor in tensors.items() if name != last}, file, {"format": "pt"})
    with pytest.raises(MultituneError, match=f"its file has no tensor '{last}'"):
        load_saved(folder, "cpu")
    save_file(tensors | {"notes": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(MultituneError, match="its file has the tensor 'notes', which is not its own"):
        load_saved(folder, "cpu")


def test_embeddings_that_peft_keeps_beside_an_adapter_are_its_own(bases: Path, tmp_path: Path) -> None:
    backbone = adapted(bases / "base", "lora")
    backbone.model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = add_adapter(AutoModelForCausalLM.from_pretrained(bases / "base"), tmp_path)
    assert len(get_peft_model_state_dict(loaded)) > 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"not a tensor"), "damaged or cut short"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no weights"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            "pickled .adapter_model.bin",
        ),
        (lambda folder: (folder / "multitune.json").write_text("{"), "not valid JSON"),
        (
            lambda folder: [
                (folder / "multitune.json").unlink(),
                (folder / "adapter_config.json").write_text("[1]"),
            ],
            "not valid JSON, or no object",
        ),
        (lambda folder: told(folder, peft_type="FUTURE"), "does not fit its base.*FUTURE"),
    ],
)
def test_a_damaged_folder_is_told(spoil, message: str, bases: Path, tmp_path: Path) -> None:
    folder = saved(bases / "base", tmp_path)
    spoil(folder)
    with pytest.raises(MultituneError, match=message):
        load_saved(folder, "cpu")


def told(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
