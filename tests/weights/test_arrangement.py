"""How tensors of inputs find one another: adapters, tied heads, vocabularies, slices, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from multitune.errors import MultituneError
from multitune.weights.checkpoints import Checkpoint
from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
from multitune.weights.planning import plan_merge
from multitune.weights.streaming import Factored
from tests.weights.folders import LLAMA, family, random_tensors, read, write

Q = "model.layers.0.self_attn.q_proj"


def merged(tmp_path: Path, **fields: Any) -> dict[str, torch.Tensor]:
    merge(MergeConfig(**fields), tmp_path / "out")
    return read(tmp_path / "out")


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    folder.mkdir()
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]} | fields
    (folder / "adapter_config.json").write_text(json.dumps(told))
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def lora(seed: int, rows: int = 8, columns: int = 8, name: str = Q) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"{name}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }


def test_a_product_that_was_read_to_its_end_is_not_kept() -> None:
    factors = lora(5)
    product = Factored(factors[f"{Q}.lora_B.weight"], factors[f"{Q}.lora_A.weight"], 3.0)
    whole, half = torch.empty(64), torch.empty(32)
    product.fill(0, half)
    assert product._block is not None
    product.fill(0, whole)
    assert product._block is None
    torch.testing.assert_close(whole.view(8, 8), 3.0 * factors[f"{Q}.lora_B.weight"] @ factors[f"{Q}.lora_A.weight"])


def test_an_adapter_is_a_task_vector(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    factors = lora(5)
    path = adapter(tmp_path / "lora", factors)
    result = merged(
        tmp_path,
        method="task_arithmetic",
        base=str(base),
        models=[str(models[0]), str(path)],
        parameters={"weight": 0.5},
    )
    before, tuned = read(base), read(models[0])
    delta = 3.0 * factors[f"{Q}.lora_B.weight"] @ factors[f"{Q}.lora_A.weight"]
    expected = before[f"{Q}.weight"] + 0.5 * (tuned[f"{Q}.weight"] - before[f"{Q}.weight"]) + 0.5 * delta
    torch.testing.assert_close(result[f"{Q}.weight"], expected)
    other = "model.layers.1.self_attn.q_proj.weight"  # untouched by the adapter
    torch.testing.assert_close(result[other], before[other] + 0.5 * (tuned[other] - before[other]))


def test_a_method_on_weights_sees_the_adapters_model(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    factors = lora(5)
    path = adapter(tmp_path / "lora", factors)
    result = merged(tmp_path, method="linear", base=str(base), models=[str(models[0]), str(path)])
    delta = 3.0 * factors[f"{Q}.lora_B.weight"] @ factors[f"{Q}.lora_A.weight"]
    expected = (read(models[0])[f"{Q}.weight"] + read(base)[f"{Q}.weight"] + delta) / 2
    torch.testing.assert_close(result[f"{Q}.weight"], expected)


def test_scales_of_adapters(tmp_path: Path) -> None:
    plain = Checkpoint.open(adapter(tmp_path / "plain", lora(1)))
    stabilised = Checkpoint.open(adapter(tmp_path / "rs", lora(1), use_rslora=True))
    patterned = Checkpoint.open(adapter(tmp_path / "pattern", lora(1), alpha_pattern={"self_attn.q_proj": 4}))
    assert plain.factored(f"{Q}.weight")[2] == 3.0
    assert stabilised.factored(f"{Q}.weight")[2] == pytest.approx(6 / 2**0.5)
    assert patterned.factored(f"{Q}.weight")[2] == 2.0
    transposed = Checkpoint.open(adapter(tmp_path / "conv1d", lora(1, 6, 8), fan_in_fan_out=True))
    b, a, _ = transposed.factored(f"{Q}.weight")
    assert (b @ a).shape == transposed.factored_shape(f"{Q}.weight") == (8, 6)


def test_adapters_alone_need_their_base(tmp_path: Path) -> None:
    paths = [str(adapter(tmp_path / name, lora(1))) for name in ("a", "b")]
    with pytest.raises(MultituneError, match="only adapters"):
        plan_merge(MergeConfig(method="linear", models=paths))


@pytest.mark.parametrize(
    ("fields", "extra", "words"),
    [
        ({"peft_type": "IA3"}, {}, "a IA3 adapter"),
        ({"use_dora": True}, {}, "DoRA"),
        ({}, {f"{Q}.lora_magnitude_vector": torch.ones(8)}, "DoRA"),
    ],
)
def test_other_adapters_are_refused(
    fields: dict[str, Any], extra: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    with pytest.raises(MultituneError, match=words):
        Checkpoint.open(adapter(tmp_path / "adapter", lora(1) | extra, **fields))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base, _ = family(tmp_path, 1)
    elsewhere = adapter(tmp_path / "a", lora(1, name="model.layers.7.self_attn.q_proj"))
    with pytest.raises(MultituneError, match=r"changes 'model.layers.7.self_attn.q_proj.weight', which the base"):
        plan_merge(MergeConfig(method="task_arithmetic", base=str(base), models=[str(elsewhere)]))
    wide = adapter(tmp_path / "b", lora(1, columns=16))
    with pytest.raises(MultituneError, match=r"shape \[8, 16\] and not \[8, 8\]"):
        plan_merge(MergeConfig(method="task_arithmetic", base=str(base), models=[str(wide)]))


def test_tied_heads_are_merged_once(tmp_path: Path) -> None:
    tied = LLAMA | {"tie_word_embeddings": True}
    base, tuned = random_tensors(0), random_tensors(1)
    base_path = write(tmp_path / "base", base, tied)  # has a head all the same, as some files do
    del tuned["lm_head.weight"]
    result = merged(
        tmp_path, method="task_arithmetic", base=str(base_path), models=[str(write(tmp_path / "m", tuned, tied))]
    )
    assert "lm_head.weight" not in result
    torch.testing.assert_close(result["model.embed_tokens.weight"], tuned["model.embed_tokens.weight"])
    plan = plan_merge(MergeConfig(method="linear", models=[str(base_path), str(tmp_path / "m")]))
    assert plan.left_out == {"base: lm_head.weight": "tied to the embedding, which is merged once"}


def test_a_tied_model_lends_its_embedding_to_an_untied_base(tmp_path: Path) -> None:
    base, tuned = random_tensors(0), random_tensors(1)
    del tuned["lm_head.weight"]
    model = write(tmp_path / "m", tuned, LLAMA | {"tie_word_embeddings": True})
    result = merged(tmp_path, method="task_arithmetic", base=str(write(tmp_path / "base", base)), models=[str(model)])
    torch.testing.assert_close(result["lm_head.weight"], tuned["model.embed_tokens.weight"])


def test_tensors_that_are_missing_or_too_many_are_listed(tmp_path: Path) -> None:
    base, (model,) = family(tmp_path, 1)
    tensors = read(model)
    del tensors[f"{Q}.weight"]
    tensors["model.extra.weight"] = torch.ones(2)
    write(model, tensors)
    with pytest.raises(MultituneError, match=rf"lacks '{Q}.weight' and has besides 'model.extra.weight'"):
        plan_merge(MergeConfig(method="task_arithmetic", base=str(base), models=[str(model)]))


def test_other_shapes_and_architectures_are_refused(tmp_path: Path) -> None:
    base, (model,) = family(tmp_path, 1)
    tensors = read(model)
    tensors[f"{Q}.weight"] = torch.ones(8, 9)
    write(model, tensors)
    with pytest.raises(MultituneError, match=r"has the shape \[8, 9\] and not \[8, 8\]"):
        plan_merge(MergeConfig(method="task_arithmetic", base=str(base), models=[str(model)]))
    write(model, read(base), {"model_type": "gpt2"})
    with pytest.raises(MultituneError, match="different architectures: gpt2 and llama"):
        plan_merge(MergeConfig(method="task_arithmetic", base=str(base), models=[str(model)]))


def test_a_folder_under_two_names_is_refused(tmp_path: Path) -> None:
    base, (model,) = family(tmp_path, 1)
    (tmp_path / "link").symlink_to(model)
    with pytest.raises(MultituneError, match="is given twice"):
        plan_merge(MergeConfig(method="linear", models=[str(model), str(tmp_path / "link")]))
    with pytest.raises(MultituneError, match="is given twice"):
        (tmp_path / "link2").symlink_to(base)
        plan_merge(MergeConfig(method="ties", base=str(base), models=[str(model), str(tmp_path / "link2")]))


def tokenizer(folder: Path, tokens: list[str], special: tuple[str, ...] = ()) -> None:
    vocab = {token: number for number, token in enumerate(tokens)}
    added = [{"id": vocab[token], "content": token, "special": True} for token in special]
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": added})
    )


def with_vocabulary(tmp_path: Path, rule: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any]:
    """Merge a base of tokens a b c (and one row of padding) with models of tokens c a d and c e b."""
    tensors = [random_tensors(seed) for seed in (0, 1, 2)]
    for each, rows in zip(tensors, (4, 3, 3), strict=True):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            each[name] = each[name][:rows].clone()
    paths = [write(tmp_path / name, each, LLAMA) for name, each in zip(("base", "m1", "m2"), tensors, strict=True)]
    for path, tokens in zip(paths, ("abc", "cad", "ceb"), strict=True):
        tokenizer(path, list(tokens), ("d",) if tokens == "cad" else ())
    config = MergeConfig(
        method="task_arithmetic", base=str(paths[0]), models=[str(each) for each in paths[1:]], vocabulary=rule
    )
    merge(config, tmp_path / "out")
    name = "model.embed_tokens.weight"
    rows = {
        key: dict(zip(tokens, each[name], strict=False))
        for key, tokens, each in zip(("base", "m1", "m2"), ("abc_", "cad", "ceb"), tensors, strict=True)
    }
    return read(tmp_path / "out"), rows, json.loads((tmp_path / "out" / "tokenizer.json").read_text())


def test_rows_are_matched_by_token(tmp_path: Path) -> None:
    result, rows, _ = with_vocabulary(tmp_path, "base")
    base, m1, m2 = rows["base"], rows["m1"], rows["m2"]
    expected = [m1["a"], m2["b"], m1["c"] + m2["c"] - base["c"], base["_"]]  # of the padding nobody says anything
    torch.testing.assert_close(result["model.embed_tokens.weight"], torch.stack(expected))


def test_the_union_has_every_token_and_a_tokenizer_that_knows_it(tmp_path: Path) -> None:
    result, rows, told = with_vocabulary(tmp_path, "union")
    base, m1, m2 = rows["base"], rows["m1"], rows["m2"]
    expected = [m1["a"], m2["b"], m1["c"] + m2["c"] - base["c"], m1["d"], m2["e"]]
    torch.testing.assert_close(result["model.embed_tokens.weight"], torch.stack(expected))
    assert result["lm_head.weight"].shape == (5, 8)
    assert [(each["content"], each["id"], each["special"]) for each in told["added_tokens"]] == [
        ("d", 3, True),
        ("e", 4, False),
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 5


def test_other_vocabularies_are_refused_even_of_one_size(tmp_path: Path) -> None:
    base, (model,) = family(tmp_path, 1)
    tokenizer(base, list("abcdefghijkl"))
    tokenizer(model, list("abcdefghijlk"))
    with pytest.raises(MultituneError, match=r"vocabularies differ: 12 rows against 12, 4 pairs .* 'k' \(10\) first"):
        plan_merge(MergeConfig(method="ties", base=str(base), models=[str(model)]))
    (model / "tokenizer.json").unlink()  # nothing to compare: as many rows are taken for the same
    plan_merge(MergeConfig(method="ties", base=str(base), models=[str(model)]))


def test_layers_are_stacked(tmp_path: Path) -> None:
    _, (first, second) = family(tmp_path, 2, layers=3)
    for path in (first, second):
        (path / "config.json").write_text(
            json.dumps(LLAMA | {"num_hidden_layers": 3, "layer_types": [f"{path.name}-{i}" for i in range(3)]})
        )
    slices = [
        {"sources": [{"model": str(first), "layers": (0, 2)}]},
        {"sources": [{"model": str(second), "layers": (1, 3), "parameters": {"scale": 2.0}}]},
    ]
    result = merged(tmp_path, method="passthrough", slices=slices)
    one, two = read(first), read(second)
    rest = "self_attn.q_proj.weight"
    stacked = [result[f"model.layers.{layer}.{rest}"] for layer in range(4)]
    assert torch.equal(stacked[1], one[f"model.layers.1.{rest}"])
    assert torch.equal(stacked[2], 2 * two[f"model.layers.1.{rest}"])
    assert torch.equal(stacked[3], 2 * two[f"model.layers.2.{rest}"])
    assert torch.equal(result["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    assert torch.equal(result["lm_head.weight"], 2 * two["lm_head.weight"])
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["num_hidden_layers"] == 4
    assert told["layer_types"] == ["model0-0", "model0-1", "model1-1", "model1-2"]


def test_slices_must_fit(tmp_path: Path) -> None:
    _, (first, second) = family(tmp_path, 2)
    sources = [{"model": str(first), "layers": (0, 2)}, {"model": str(second), "layers": (1, 2)}]
    with pytest.raises(MultituneError, match="have 1, 2 layers"):
        plan_merge(MergeConfig(method="linear", slices=[{"sources": sources}]))
    with pytest.raises(MultituneError, match=r"layers 1 to 3 .* of 2 layers"):
        plan_merge(MergeConfig(method="passthrough", slices=[{"sources": [{"model": str(first), "layers": (1, 3)}]}]))


def test_the_plan_counts_bytes_from_headers(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2, torch.bfloat16)
    plan = plan_merge(MergeConfig(method="ties", base=str(base), models=[str(each) for each in models]))
    size = sum(tensor.nbytes for tensor in read(base).values())
    assert (plan.bytes_to_read, plan.bytes_to_write, plan.passes) == (3 * size, size, 3.6)
    assert plan.tensors == plan.merged == len(read(base))
    assert plan.parameters["model.norm.weight"]["density"] == [0.2, 0.2]


def stacked(*models: Path) -> MergeConfig:
    return MergeConfig(
        method="passthrough", slices=[{"sources": [{"model": str(model), "layers": (0, 2)}]} for model in models]
    )


def test_slices_of_models_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "first", random_tensors(0))
    other = random_tensors(1) | {"model.layers.1.self_attn.q_proj.bias": torch.ones(8)}
    second = write(tmp_path / "second", other)
    with pytest.raises(MultituneError, match=r"has besides 'model\.layers\.1\.self_attn\.q_proj\.bias'"):
        plan_merge(stacked(first, second))
    write(second, random_tensors(1), config={"model_type": "qwen2", "tie_word_embeddings": False})
    with pytest.raises(MultituneError, match="different architectures: qwen2 and llama"):
        plan_merge(stacked(first, second))
    write(second, random_tensors(1))
    for folder, words in ((first, ["a", "b"]), (second, ["b", "a"])):
        (folder / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(MultituneError, match="vocabularies differ"):
        plan_merge(stacked(first, second))


def test_an_adapter_has_the_layers_of_its_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base", random_tensors(0))
    sources = [{"model": str(adapter(tmp_path / "lora", lora(5))), "layers": (0, 7)}]
    with pytest.raises(MultituneError, match="The layers 0 to 7"):
        plan_merge(MergeConfig(method="task_arithmetic", base=str(base), slices=[{"sources": sources}]))


@pytest.mark.parametrize("names", [("vocab.txt", "vocab.txt"), ("tokenizer.model", "tokenizer.model")])
def test_vocabularies_without_a_tokenizer_json_are_compared_too(names: tuple[str, str], tmp_path: Path) -> None:
    folders = [write(tmp_path / name, random_tensors(seed)) for seed, name in enumerate("ab")]
    for folder, name, text in zip(folders, names, ("x\ny\n", "y\nx\n"), strict=True):
        (folder / name).write_text(text)
    config = MergeConfig(method="linear", models=[str(folder) for folder in folders])
    with pytest.raises(MultituneError, match="vocabularies differ"):
        plan_merge(config)


def test_a_rule_that_no_tensor_has_is_refused(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, random_tensors(seed)) for seed, name in enumerate("ab")]
    told = {"method": "linear", "models": [str(folder) for folder in folders]}
    plan_merge(MergeConfig(**told, parameters={"weight": {"*mlp*": 0.5, "default": 0.1}}))
    with pytest.raises(MultituneError, match=r"No tensor is called '\*mpl\*'") as error:
        plan_merge(MergeConfig(**told, parameters={"weight": {"*mpl*": 0.5, "default": 0.1}}))
    assert error.value.where == "parameters.weight"


def test_factors_may_differ_where_ranks_run_over_the_whole_model(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    config = {"method": "ties", "base": str(base), "models": [str(model) for model in models]}
    half = merged(tmp_path / "half", **config, parameters={"lambda": 0.5})
    rule = merged(tmp_path / "rule", **config, parameters={"lambda": {"*mlp*": 0.5, "default": 1.0}})
    whole = merged(tmp_path / "whole", **config, parameters={"lambda": 1.0})
    for name, tensor in rule.items():
        assert torch.equal(tensor, half[name] if "mlp" in name else whole[name]), name
    with pytest.raises(MultituneError, match="ranked over the whole model"):
        merged(tmp_path / "ranks", **config, parameters={"density": {"*mlp*": 0.5, "default": 1.0}})
