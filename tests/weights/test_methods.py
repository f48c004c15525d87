"""What every method must do, and worked numbers of each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from multitune.weights.methods import METHODS, merge_tensors
from multitune.weights.methods.dropped import uniform
from multitune.weights.methods.layer import Layer
from multitune.weights.parameters import METHOD_PARAMETERS, WITHOUT_BASE

PEER = json.loads((Path(__file__).parent / "data" / "mergekit_0.1.5.json").read_text())

ON_TASK_VECTORS = [each for each in METHODS if each not in WITHOUT_BASE | {"half_reset"}]
KEEP_ALL: dict[str, dict[str, Any]] = {
    "ties": {"density": 1},
    "breadcrumbs": {"keep": 1, "drop_top": 0, "lambda": 1},
    "breadcrumbs_ties": {"keep": 1, "drop_top": 0, "lambda": 1},
    "consensus": {"agreement": 1, "threshold": 0},
    "tall_mask": {"threshold": 0},
}
"""Parameters with which a method drops nothing."""


def tensors(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def test_every_method_has_parameters_and_every_parameter_a_method() -> None:
    assert METHODS.keys() == METHOD_PARAMETERS.keys()
    for method in METHODS.values():
        assert method.__doc__


@pytest.mark.parametrize("method", ON_TASK_VECTORS)
def test_no_change_anywhere_leaves_the_base(method: str) -> None:
    (base,) = tensors(1, 6, 5)
    assert torch.equal(merge_tensors(method, base, [torch.zeros(6, 5)] * 2), base)


@pytest.mark.parametrize("method", [each for each in ON_TASK_VECTORS if "lambda" in METHOD_PARAMETERS[each]])
def test_a_factor_of_zero_leaves_the_base(method: str) -> None:
    base, *deltas = tensors(3, 6, 5)
    assert torch.equal(merge_tensors(method, base, deltas, {"lambda": 0}), base)


@pytest.mark.parametrize("method", [each for each in ON_TASK_VECTORS if each not in ("model_stock", "sce")])
def test_one_whole_model_is_that_model(method: str) -> None:
    base, delta = tensors(2, 6, 5)
    result = merge_tensors(method, base, [delta], KEEP_ALL.get(method))
    torch.testing.assert_close(result, base + delta)


@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "model_stock", "multislerp", "sce", "ties", "consensus"]
)
def test_the_order_of_models_changes_rounding_at_most(method: str) -> None:
    base, *deltas = tensors(4, 40)
    torch.testing.assert_close(merge_tensors(method, base, deltas), merge_tensors(method, base, deltas[::-1]))


@pytest.mark.parametrize("method", ["ties", "model_stock", "sce", "multislerp", "linear"])
def test_copies_of_one_model_are_that_model(method: str) -> None:
    (delta,) = tensors(1, 40)
    zero = torch.zeros(40)
    result = merge_tensors(method, zero, [delta] * 3, KEEP_ALL.get(method))
    torch.testing.assert_close(result, delta)


@pytest.mark.parametrize("case", PEER["cases"], ids=lambda case: case["method"])
def test_mergekit_mode_gives_mergekits_numbers(case: dict[str, Any]) -> None:
    told = {
        name: [value[model] for model in "abc"] if isinstance(value, dict) else float(value)
        for name, value in case["parameters"].items()
    }
    if case["method"].startswith("breadcrumbs"):
        told["keep"], told["drop_top"] = told.pop("density"), told.pop("gamma")
    base = torch.tensor(PEER["base"]) if case["base"] else torch.zeros(12)
    deltas = [torch.tensor(model) - base for model in PEER["models"][: case["models"]]]
    result = merge_tensors(case["method"], base, deltas, told, compat="mergekit")
    torch.testing.assert_close(result, torch.tensor(case["result"]), atol=2e-6, rtol=0)


HAND = [torch.tensor([3.0, -1.0, 0.2, 0.0]), torch.tensor([-2.0, -2.0, 0.1, 4.0])]


@pytest.mark.parametrize("compat", ["authors", "mergekit"])
def test_ties_by_hand(compat: str) -> None:
    result = merge_tensors("ties", torch.zeros(4), HAND, {"density": 1}, compat=compat)
    assert result.tolist() == pytest.approx([3, -1.5, 0.15, 4])
    summed = merge_tensors("ties", torch.zeros(4), HAND, {"density": 1, "aggregate": "sum"})
    assert summed.tolist() == pytest.approx([3, -3, 0.3, 4])
    largest = merge_tensors("ties", torch.zeros(4), HAND, {"density": 1, "aggregate": "max"})
    assert largest.tolist() == pytest.approx([3, -2, 0.2, 4])


def test_task_arithmetic_by_hand() -> None:
    result = merge_tensors("task_arithmetic", torch.zeros(4), HAND, {"weight": [0.5, 0.25]})
    assert result.tolist() == [1, -1, 0.125, 1]


def test_a_sum_of_zero_takes_the_majoritys_sign_with_the_authors_and_plus_with_mergekit() -> None:
    deltas = [torch.tensor([1.0, -1.0, -2.0]), torch.tensor([-1.0, -1.0, -2.0])]
    ours = merge_tensors("ties", torch.zeros(3), deltas, {"density": 1})
    theirs = merge_tensors("ties", torch.zeros(3), deltas, {"density": 1}, compat="mergekit")
    assert ours.tolist() == [-1, -1, -2]
    assert theirs.tolist() == [1, -1, -2]


def authors_ties(deltas: list[torch.Tensor], share: float) -> torch.Tensor:
    """TIES as its authors' program works on flat vectors, written for clarity."""
    stacked = torch.stack(deltas)
    numel = stacked.shape[1]
    thresholds = stacked.abs().kthvalue(numel - int(numel * share), dim=1, keepdim=True).values
    kept = torch.where(stacked.abs() >= thresholds, stacked, 0)
    sign = kept.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agreeing = torch.where(kept.sign() == sign, kept, 0)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_ties_of_a_whole_vector_is_the_authors(share: float) -> None:
    deltas = tensors(4, 1001)
    result = merge_tensors("ties", torch.zeros(1001), deltas, {"density": share})
    torch.testing.assert_close(result, authors_ties(deltas, share))


def test_dare_keeps_its_share_and_its_expected_sum() -> None:
    delta = torch.ones(200, 1000)
    kept = merge_tensors("dare_linear", torch.zeros(200, 1000), [delta], {"density": 0.3}, name="a")
    assert sorted(kept.unique().tolist()) == pytest.approx([0, 1 / 0.3])
    share = float((kept != 0).float().mean())
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 200_000)
    plain = merge_tensors("dare_linear", torch.zeros(200, 1000), [delta], {"density": 0.3, "rescale": 0}, name="a")
    assert torch.equal(plain != 0, kept != 0)
    scaled = merge_tensors(
        "dare_linear", torch.zeros(200, 1000), [delta], {"density": 0.3}, name="a", compat="mergekit"
    )
    assert float(scaled.sum()) == pytest.approx(200_000)  # the sum of magnitudes, to the number
    assert torch.equal(scaled != 0, kept != 0)


def test_random_masks_depend_on_seed_task_tensor_and_index_alone() -> None:
    whole = uniform(Layer("a", (100,), seed=1), 0, 100)
    for start in (0, 1, 7, 8, 30):
        assert torch.equal(uniform(Layer("a", (100,), start=start, seed=1), 0, 100 - start), whole[start:])
    others = [
        uniform(Layer(name, (100,), seed=seed), task, 100)
        for name, seed, task in (("b", 1, 0), ("a", 2, 0), ("a", 1, 1))
    ]
    assert all(not torch.equal(other, whole) for other in others)
    many = uniform(Layer("a", (1 << 18,)), 0, 1 << 18) / 2**32 + 0.5
    assert abs(float(many.mean()) - 0.5) < 0.003
    assert abs(float(many.var()) - 1 / 12) < 0.001


def test_della_keeps_large_entries_more_often() -> None:
    rows = torch.arange(1.0, 101.0).repeat(4000, 1)
    parameters = {"density": 0.5, "epsilon": 0.2, "rescale": 0}
    kept = merge_tensors("della_linear", torch.zeros(4000, 100), [rows], parameters) != 0
    share = kept.float().mean(0)
    expected = 0.3 + 0.4 * torch.arange(100) / 99
    assert float((share - expected).abs().max()) < 5 * math.sqrt(0.25 / 4000)
    scaled = merge_tensors("della_linear", torch.zeros(4000, 100), [rows], parameters | {"rescale": 1})
    torch.testing.assert_close(scaled[kept], (rows / expected)[kept])


def test_slerp_keeps_the_circle_and_is_linear_between_parallels() -> None:
    zero, one, two = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for t in (0, 0.25, 0.5, 1):
        angle = t * math.pi / 2
        result = merge_tensors("slerp", zero, [one, two], {"t": t})
        assert result.tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-6)
    assert merge_tensors("slerp", zero, [one, 3 * one], {"t": 0.5}).tolist() == [2, 0]


def test_multislerp_of_two_equal_weights_is_half_way() -> None:
    one, two = tensors(2, 30)
    two = two / two.norm() * one.norm()
    result = merge_tensors("multislerp", torch.zeros(30), [one, two])
    torch.testing.assert_close(result, merge_tensors("slerp", torch.zeros(30), [one, two]))


def test_model_stock_by_hand() -> None:
    one, two = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])  # cosine 1 / sqrt(2), ratio 2 c / (1 + c)
    ratio = 2 * math.sqrt(0.5) / (1 + math.sqrt(0.5))
    result = merge_tensors("model_stock", torch.zeros(2), [one, two])
    assert result.tolist() == pytest.approx([ratio, ratio / 2])
    assert merge_tensors("model_stock", torch.zeros(2), [one, -one]).tolist() == [0, 0]


def test_sce_by_hand() -> None:
    deltas = [torch.tensor([3.0, 1.0, -1.0]), torch.tensor([-1.0, 1.0, -1.0])]
    # squares 11 and 3: coefficients 11/14 and 3/14; in the first entry the second model has not the sign of the sum
    assert merge_tensors("sce", torch.zeros(3), deltas).tolist() == pytest.approx([3, 1, -1])
    only = merge_tensors("sce", torch.zeros(3), deltas, {"select_topk": 1.0})
    assert only.tolist() == pytest.approx([3, 1, -1])
    selected = [torch.tensor([3.0, 1.0, -1.0, 0.5]), torch.tensor([-1.0, 2.0, -1.0, 0.5])]
    half = merge_tensors("sce", torch.zeros(4), selected, {"select_topk": 0.5})  # of two that vary, one
    assert half.tolist() == pytest.approx([3, 0, 0, 0])


def test_tall_masks_and_consensus_by_hand() -> None:
    deltas = [torch.tensor([2.0, 0.1, 1.0, 0.0]), torch.tensor([2.0, 2.0, -1.0, 0.0])]
    # sums 4, 2.1, 0, 0; |tau - tau_1| = 2, 2, 1, 0 and |tau - tau_2| = 2, .1, 1, 0; masks at 0.5: 1 0 1 0 and 1 1 1 0
    zero, threshold = torch.zeros(4), {"threshold": 0.5}
    assert merge_tensors("tall_mask", zero, deltas, threshold | {"task": 0}).tolist() == pytest.approx([4, 0, 0, 0])
    assert merge_tensors("tall_mask", zero, deltas, threshold | {"task": 1}).tolist() == pytest.approx([4, 2.1, 0, 0])
    assert merge_tensors("consensus", zero, deltas, threshold).tolist() == pytest.approx([4, 0, 0, 0])
    one = merge_tensors("consensus", zero, deltas, threshold | {"agreement": 1})
    assert one.tolist() == pytest.approx([4, 2.1, 0, 0])


def test_passthrough_and_unnormalised_averages() -> None:
    one, two = tensors(2, 5)
    zero = torch.zeros(5)
    assert torch.equal(merge_tensors("passthrough", zero, [one], {"scale": 2}), 2 * one)
    torch.testing.assert_close(merge_tensors("linear", zero, [one, two], {"weight": [1, 3]}), (one + 3 * two) / 4)
    torch.testing.assert_close(
        merge_tensors("linear", zero, [one, two], {"weight": [1, 3], "normalize": 0}), one + 3 * two
    )
