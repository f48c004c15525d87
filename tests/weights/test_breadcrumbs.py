"""The invariants of system 29: the band of magnitudes that a task vector keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multitune.errors import MultituneError
from multitune.weights.config import MergeConfig
from multitune.weights.merging import merge
from multitune.weights.methods import merge_tensors
from multitune.weights.parameters import check
from tests.weights.folders import family, read, write

ROW = torch.tensor([0.5, -0.1, 0.05, 0.9, -0.3, 0.02, -0.7, 0.2, 0.01, -0.4])
RISING = torch.arange(1.0, 11.0)
BAND = {"keep": 0.4, "drop_top": 0.1, "lambda": 1.0}


def merged(deltas: list[torch.Tensor], **parameters: object) -> torch.Tensor:
    return merge_tensors("breadcrumbs", torch.zeros_like(deltas[0]), deltas, BAND | parameters)


def test_the_hand_row_of_the_card() -> None:
    assert merged([ROW]).tolist() == pytest.approx([0.5, 0, 0, 0, -0.3, 0, -0.7, 0, 0, -0.4])
    kept_first = merged([ROW], remove_first=0)
    assert kept_first.tolist() == pytest.approx([0.5, 0, 0, 0, 0, 0, -0.7, 0, 0, -0.4])
    assert merged([RISING]).nonzero().flatten().tolist() == [5, 6, 7, 8]  # keeps 6, 7, 8, 9


def test_rows_and_layers_rank_differently() -> None:
    two = torch.stack([ROW, RISING])
    by_row = merged([two], granularity="row")
    assert torch.equal(by_row[0], merged([ROW]))
    assert torch.equal(by_row[1], merged([RISING]))
    by_layer = merged([two])
    assert by_layer[0].count_nonzero() == 0
    assert by_layer[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0, 0]


def test_the_whole_band_is_task_arithmetic_and_none_is_the_base() -> None:
    base, deltas = torch.randn(33), [torch.randn(33), torch.randn(33)]
    whole = merge_tensors("breadcrumbs", base, deltas, {"keep": 1, "drop_top": 0, "lambda": 0.4})
    assert torch.equal(whole, merge_tensors("task_arithmetic", base, deltas, {"lambda": 0.4}))
    assert torch.equal(merge_tensors("breadcrumbs", base, deltas, {"keep": 0, "drop_top": 0.1}), base)


def test_without_a_dropped_top_it_is_pruning_by_magnitude() -> None:
    delta = torch.randn(1000)
    kept = merged([delta], keep=0.3, drop_top=0)
    assert set(kept.nonzero().flatten().tolist()) == set(delta.abs().topk(300).indices.tolist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.floats(0, 1), st.floats(0, 1))
def test_exactly_k_survive_below_the_r_largest(values: list[int], share: float, keep: float) -> None:
    delta = torch.tensor(values, dtype=torch.float32) + 0.5  # no zeros: what is zero after was dropped
    drop_top = share * (1 - keep)
    kept = merged([delta], keep=keep, drop_top=drop_top) != 0
    dropped, wanted = int(len(values) * drop_top), int(len(values) * keep)
    order = sorted(range(len(values)), key=lambda i: (-abs(float(delta[i])), i))  # of equals the first ranks first
    assert kept.nonzero().flatten().tolist() == sorted(order[dropped : dropped + wanted])


def test_short_tensors_drop_nothing_at_the_top() -> None:
    kept = merged([RISING], keep=0.5, drop_top=0.006)
    assert kept.tolist() == [0, 0, 0, 0, 0, 6, 7, 8, 9, 10]


def test_a_scalar_passes_whole() -> None:
    assert merged([torch.tensor(2.0)]) == 2.0


def test_the_order_of_tasks_changes_rounding_at_most_and_copies_add_up() -> None:
    deltas = [torch.randn(500) for _ in range(3)]
    torch.testing.assert_close(merged(deltas), merged(deltas[::-1]))
    torch.testing.assert_close(merged(deltas[:1] * 4), 4 * merged(deltas[:1]))


def test_the_result_is_the_base_where_no_mask_is_one_and_linear_in_alpha() -> None:
    base, deltas = torch.randn(200), [torch.randn(200), torch.randn(200)]
    moved = merge_tensors("breadcrumbs", base, deltas, BAND) - base
    masks = torch.stack([merged([delta]) != 0 for delta in deltas]).any(0)
    assert torch.equal(moved[~masks], torch.zeros(int((~masks).sum())))
    torch.testing.assert_close(merged(deltas, **{"lambda": 0.7}), 0.7 * merged(deltas))


def test_tensors_do_not_touch_one_anothers_masks(tmp_path: Path) -> None:
    base, (model,) = family(tmp_path, 1)
    config = MergeConfig(method="breadcrumbs", base=str(base), models=[str(model)])
    merge(config, tmp_path / "before")
    tensors = read(model)
    write(model, tensors | {"lm_head.weight": 5 * tensors["lm_head.weight"]})
    merge(config, tmp_path / "after")
    before, after = read(tmp_path / "before"), read(tmp_path / "after")
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]


def test_more_than_everything_is_refused_with_both_fractions() -> None:
    config = MergeConfig(method="breadcrumbs", base="b", models=["m"], parameters={"keep": 0.95, "drop_top": 0.1})
    with pytest.raises(MultituneError, match=r"keep 0.95 and drop_top 0.1 are more than all"):
        check(config)
