"""The invariants of system 24: a factor by depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from multitune.models.architecture import TensorPlace, architecture_index
from multitune.weights.config import Lines, MergeConfig
from multitune.weights.lines import depth_factor
from multitune.weights.merging import merge
from tests.weights.folders import family, random_tensors, read, write
from tests.weights.test_arrangement import Q, adapter, lora


def place(layer: int | None, layers: int, category: str = "attention") -> TensorPlace:
    return TensorPlace("name", "layers" if layer is not None else "", layer, layers, category, None)  # type: ignore[arg-type]


def moved(out: Path, base: Path, models: list[Path], lines: Lines, method: str = "task_arithmetic") -> dict:
    """Merge with LiNeS; return the merged task vector."""
    config = MergeConfig(method=method, base=str(base), models=[str(each) for each in models], lines=lines)
    merge(config, out)
    before = read(base)
    return {name: tensor - before[name] for name, tensor in read(out).items()}


def test_factors_by_hand() -> None:
    lines = Lines(alpha=0.2, beta=0.8)
    factors = [depth_factor(place(layer, 5), lines, 0.2) for layer in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    for category in ("embedding", "norm", "head", "other"):
        assert depth_factor(place(None, 0, category), lines, 0.2) == 0.2


def test_a_single_layer_is_the_deepest() -> None:
    assert depth_factor(place(0, 1), Lines(alpha=0.2, beta=0.7), 0.2) == pytest.approx(0.9)


def test_what_is_behind_the_layers_may_count_as_deepest() -> None:
    lines = Lines(alpha=0.2, beta=0.8, outside="deepest")
    found = [depth_factor(place(None, 0, category), lines, 0.2) for category in ("embedding", "norm", "head")]
    assert found == pytest.approx([0.2, 1.0, 1.0])


def test_identity_uniform_scaling_and_the_base(tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    tuned, before = read(models[0]), read(base)
    same = moved(tmp_path / "same", base, models, Lines(alpha=1.0, beta=0.0))
    half = moved(tmp_path / "half", base, models, Lines(alpha=0.5, beta=0.0))
    none = moved(tmp_path / "none", base, models, Lines(alpha=0.0, beta=0.0))
    for name in before:
        torch.testing.assert_close(same[name], tuned[name] - before[name])
        torch.testing.assert_close(half[name], (tuned[name] - before[name]) / 2)
        assert torch.equal(none[name], torch.zeros_like(before[name]))


def test_linear_in_the_task_vectors(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    lines = Lines(alpha=0.3, beta=0.4)
    apart = [moved(tmp_path / str(number), base, [model], lines) for number, model in enumerate(models)]
    together = moved(tmp_path / "both", base, models, lines)
    for name in together:
        torch.testing.assert_close(together[name], apart[0][name] + apart[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "parameters", "alpha"),
    [
        ("task_arithmetic", {}, 1 / 3),
        ("task_arithmetic", {"normalize": 1}, 1.0),
        ("task_arithmetic", {"lambda": 2.0}, 1 / 6),
        ("linear", {}, 1.0),
        ("ties", {"density": 1}, 1.0),
    ],
)
def test_norm_rule_on_copies(method: str, parameters: dict, alpha: float, tmp_path: Path) -> None:
    """Of N equal task vectors the sum gives 1/N, the mean 1; a factor c on the merged vector divides by c."""
    base, (model,) = family(tmp_path, 1)
    copies = [write(tmp_path / f"copy{number}", read(model)) for number in range(3)]
    config = MergeConfig(
        method=method, base=str(base), models=[str(each) for each in copies], parameters=parameters, lines=Lines()
    )
    report = merge(config, tmp_path / "out")
    assert report.lines_alpha == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "breadcrumbs", "consensus"])
def test_norm_rule_of_one_model_is_one_where_the_method_returns_it(method: str, tmp_path: Path) -> None:
    base, models = family(tmp_path, 1)
    parameters = {"breadcrumbs": {"lambda": 1.0}, "consensus": {"agreement": 1, "threshold": 0}}.get(method, {})
    config = MergeConfig(
        method=method, base=str(base), models=[str(models[0])], parameters=parameters, lines=Lines(beta=0.0)
    )
    assert merge(config, tmp_path / "out").lines_alpha == pytest.approx(1.0, rel=1e-6)


def test_norm_rule_counts_the_thinned_vectors(tmp_path: Path) -> None:
    base, models = family(tmp_path, 2)
    config = MergeConfig(
        method="ties",
        base=str(base),
        models=[str(each) for each in models],
        parameters={"density": 0.3, "granularity": "layer"},
        compat="mergekit",
    )
    report = merge(config.model_copy(update={"lines": Lines()}), tmp_path / "lines")
    merge(config, tmp_path / "plain")
    before, plain = read(base), read(tmp_path / "plain")
    thinned = 0.0
    for name in before:
        deltas = [read(each)[name] - before[name] for each in models]
        kept = [
            torch.where(delta.abs() >= delta.abs().flatten().topk(int(0.3 * delta.numel())).values[-1], delta, 0)
            for delta in deltas
        ]
        thinned += float(sum(kept).abs().sum())
    whole = sum(float((plain[name] - before[name]).abs().sum()) for name in before)
    assert report.lines_alpha == pytest.approx(thinned / whole / 2, rel=1e-4)


def test_scaling_an_adapters_b_is_the_same(tmp_path: Path) -> None:
    base, _ = family(tmp_path, 1)
    factors = lora(3)
    path = adapter(tmp_path / "lora", factors)
    lines = Lines(alpha=0.25, beta=0.5)
    dense = moved(tmp_path / "dense", base, [path], lines)[f"{Q}.weight"]
    scaled_b = 0.25 * factors[f"{Q}.lora_B.weight"]
    torch.testing.assert_close(dense, 3.0 * scaled_b @ factors[f"{Q}.lora_A.weight"], atol=1e-6, rtol=1e-5)


def test_the_order_of_tensors_changes_nothing(tmp_path: Path) -> None:
    base, (model,) = family(tmp_path, 1)
    lines = Lines(alpha=0.1, beta=0.9)
    before = moved(tmp_path / "one", base, [model], lines)
    write(model, dict(reversed(read(model).items())))
    after = moved(tmp_path / "two", base, [model], lines)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_types_and_integers_stay(tmp_path: Path) -> None:
    base = random_tensors(0, torch.float16) | {"position_ids": torch.arange(4)}
    tuned = random_tensors(1, torch.float16) | {"position_ids": torch.arange(4)}
    config = MergeConfig(
        method="task_arithmetic",
        base=str(write(tmp_path / "base", base)),
        models=[str(write(tmp_path / "m", tuned))],
        lines=Lines(),
    )
    merge(config, tmp_path / "out")
    result = read(tmp_path / "out")
    assert {str(tensor.dtype) for tensor in result.values()} == {"torch.float16", "torch.int64"}
    places = architecture_index({name: tuple(tensor.shape) for name, tensor in result.items()})
    name = "model.layers.1.mlp.up_proj.weight"
    exact = base[name].double() + depth_factor(places[name], Lines(), 1.0) * (
        tuned[name].double() - base[name].double()
    )
    assert torch.equal(result[name], exact.to(torch.float16))
