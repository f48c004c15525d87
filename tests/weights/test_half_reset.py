"""Half-Reset: every tensor is the base's or the tuned one's, and the half is the one that half fine-tuning draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from multitune.adaptation.half_config import HalfConfig
from multitune.errors import MultituneError
from multitune.weights.config import MergeConfig
from multitune.weights.half_reset import half_reset
from multitune.weights.merging import merge
from multitune.weights.parameters import check
from tests.small_llama import small_llama
from tests.weights.folders import read, write


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a tuned model of four layers, in two shards; no element of a tensor is the same."""
    model = small_llama(20, num_hidden_layers=4)
    base, config = model.state_dict(), model.config.to_dict()
    tuned = {name: tensor + 0.1 + torch.rand_like(tensor) / 3 for name, tensor in base.items()}
    return write(tmp_path / "base", base, config, 2), write(tmp_path / "tuned", tuned, config, 2)


def reset(pair: tuple[Path, Path], out: Path, **parameters: Any) -> dict[str, torch.Tensor]:
    seed = parameters.pop("seed", 0)
    config = MergeConfig(
        method="half_reset", base=str(pair[0]), models=[str(pair[1])], parameters=parameters, seed=seed
    )
    merge(config, out)
    return read(out)


def is_base(result: dict[str, torch.Tensor], pair: tuple[Path, Path]) -> dict[str, bool]:
    base, tuned = read(pair[0]), read(pair[1])
    assert result.keys() == base.keys()
    for name, tensor in result.items():
        assert torch.equal(tensor, base[name]) or torch.equal(tensor, tuned[name]), name
    return {name: torch.equal(tensor, base[name]) for name, tensor in result.items()}


def test_every_tensor_is_the_old_or_the_tuned_one_by_the_rule_of_halves(pair, tmp_path) -> None:
    taken = is_base(reset(pair, tmp_path / "out"), pair)
    for layer in range(4):
        names = [name for name in taken if f".{layer}.self_attn." in name]
        assert sum(taken[name] for name in names) == 2
        assert sum(taken[name] for name in taken if f".{layer}." in name and "norm" in name) == 1
    assert sum(taken[name] for name in taken if ".mlp." in name) == 6
    assert not any(taken[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"))


def test_a_fraction_of_1_is_the_tuned_model_and_of_0_the_base_inside_the_layers(pair, tmp_path) -> None:
    assert not any(is_base(reset(pair, tmp_path / "all", fraction=1.0), pair).values())
    nothing = is_base(reset(pair, tmp_path / "none", fraction=0.0), pair)
    assert all(nothing[name] == (".layers." in name) for name in nothing)


def test_files_and_state_dicts_are_reset_alike(pair, tmp_path) -> None:
    base, tuned = read(pair[0]), read(pair[1])
    for seed, round in ((0, 1), (0, 2), (1, 1)):
        result = reset(pair, tmp_path / f"{seed}-{round}", seed=seed, round=round)
        expected = half_reset(base, tuned, HalfConfig(), seed=seed, round=round)
        assert all(torch.equal(result[name], expected[name]) for name in expected)
    whole_layers = is_base(reset(pair, tmp_path / "layers", granularity="layer"), pair)
    assert sum(whole_layers.values()) == 2 * 9


def test_parameters_that_differ_from_tensor_to_tensor_are_refused(pair, tmp_path) -> None:
    with pytest.raises(MultituneError, match="one for the whole model"):
        reset(pair, tmp_path / "out", fraction=(0.2, 0.8))


def test_slices_are_refused(pair) -> None:
    source = {"model": str(pair[1]), "layers": (0, 2)}
    with pytest.raises(MultituneError, match="draws over a whole model"):
        check(MergeConfig(method="half_reset", base=str(pair[0]), slices=[{"sources": [source]}]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 asks for it
def test_an_adapter_is_reset_to_its_base(pair, tmp_path) -> None:
    """The delta of a LoRA adapter counts where the draw keeps it, and nowhere else."""
    base = LlamaForCausalLM.from_pretrained(pair[0])
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    result = reset((pair[0], tmp_path / "adapter"), tmp_path / "out")
    old, tuned = read(pair[0]), adapted.merge_and_unload().state_dict()
    changed = {name for name, tensor in result.items() if not torch.equal(tensor, old[name])}
    assert all(torch.allclose(result[name], tuned[name], atol=1e-6) for name in changed)
    assert len([name for name in changed if "self_attn" in name]) == 8


def test_a_base_and_one_model_are_needed(pair) -> None:
    with pytest.raises(MultituneError, match="needs the base model"):
        check(MergeConfig(method="half_reset", models=[str(pair[1])]))
    with pytest.raises(MultituneError, match=r"merges 1 model\(s\)"):
        check(MergeConfig(method="half_reset", base=str(pair[0]), models=["a", "b"]))
