from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from multitune.errors import MultituneError
from multitune.models.heads import (
    Head,
    MultiTaskEncoder,
    encoder_with_heads,
    fit_scales,
    head_losses,
    load_heads,
    save_heads,
)
from multitune.tasks.task import Task

HEADS = (Head("a", "label", ("x", "y", "z")), Head("b.c", "regress"), Head("d", "label", ("no", "yes")))


@pytest.fixture
def model(make_model: Callable[..., Any]) -> MultiTaskEncoder:
    return MultiTaskEncoder(make_model("bert"), HEADS, seed=1).eval()


def batch() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 0], [10, 11, 12], [13, 0, 0], [0, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        "task_ids": torch.tensor([0, 1, 2, 0, -1]),
        "values": torch.tensor([2.0, 0.25, 1.0, 0.0, 0.0], dtype=torch.float64),
    }


def test_each_row_gets_the_logits_of_its_own_head(model: MultiTaskEncoder) -> None:
    rows = batch()
    logits = model(rows["input_ids"], rows["attention_mask"], rows["task_ids"])
    assert logits.shape == (5, 3)
    pooled = model.pooled(rows["input_ids"], rows["attention_mask"])
    columns = {0: slice(0, 3), 1: slice(3, 4), 2: slice(4, 6)}
    for row, task in enumerate(rows["task_ids"][:4].tolist()):
        expected = F.linear(pooled[row], model.weight[columns[task]], model.bias[columns[task]])
        torch.testing.assert_close(logits[row, : HEADS[task].outputs], expected)
        assert (logits[row, HEADS[task].outputs :] == float("-inf")).all()


def test_mean_pooling_leaves_padding_out(model: MultiTaskEncoder) -> None:
    short = model.pooled(torch.tensor([[8, 9]]), torch.tensor([[1, 1]]))
    padded = model.pooled(torch.tensor([[8, 9, 0, 0]]), torch.tensor([[1, 1, 0, 0]]))
    torch.testing.assert_close(short, padded, atol=1e-5, rtol=1e-5)
    states = model.encoder(torch.tensor([[8, 9]])).last_hidden_state[0]
    torch.testing.assert_close(short[0], states.mean(0), atol=1e-5, rtol=1e-5)


def test_cls_pooling_takes_the_first_token(make_model: Callable[..., Any]) -> None:
    model = MultiTaskEncoder(make_model("bert"), HEADS, pooling="cls").eval()
    ids = torch.tensor([[8, 9, 10]])
    torch.testing.assert_close(model.pooled(ids, torch.ones_like(ids)), model.encoder(ids)[0][:, 0])


def test_losses_are_cross_entropy_and_squared_error_of_rows_that_are_no_padding(model: MultiTaskEncoder) -> None:
    rows = batch()
    losses = head_losses(model, rows)
    logits = model(rows["input_ids"], rows["attention_mask"], rows["task_ids"])
    expected = [
        F.cross_entropy(logits[0], torch.tensor(2)),
        (logits[1, 0] - 0.25) ** 2,
        F.cross_entropy(logits[2, :2], torch.tensor(1)),
        F.cross_entropy(logits[3], torch.tensor(0)),
    ]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_gradients_are_finite_and_stay_in_the_heads_of_the_batchs_tasks(model: MultiTaskEncoder) -> None:
    rows = {name: tensor[:2] for name, tensor in batch().items()}
    head_losses(model, rows).sum().backward()
    assert torch.isfinite(model.weight.grad).all()
    assert (model.weight.grad[4:] == 0).all()
    assert (model.weight.grad[:4] != 0).any(dim=1).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_encoder_is_run_once_whatever_the_number_of_tasks(model: MultiTaskEncoder) -> None:
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    head_losses(model, batch())
    assert len(calls) == 1


def test_a_seed_gives_the_same_heads(make_model: Callable[..., Any]) -> None:
    encoder = make_model("bert")
    first, again, other = (MultiTaskEncoder(encoder, HEADS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
    assert (first.bias == 0).all()


def test_heads_survive_the_disk(model: MultiTaskEncoder, tmp_path: Path) -> None:
    save_heads(model, tmp_path)
    again = load_heads(model.encoder, tmp_path).eval()
    assert again.heads == model.heads
    rows = batch()
    inputs = (rows["input_ids"][:4], rows["attention_mask"][:4], rows["task_ids"][:4])
    assert torch.equal(again(*inputs), model(*inputs))


def test_damaged_heads_are_told(model: MultiTaskEncoder, tmp_path: Path) -> None:
    save_heads(model, tmp_path)
    file = tmp_path / "heads.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(MultituneError, match="cut short"):
        load_heads(model.encoder, tmp_path)
    file.unlink()
    with pytest.raises(MultituneError, match="heads of the encoder cannot be read"):
        load_heads(model.encoder, tmp_path)


@pytest.mark.parametrize("kind", ["choose", "generate"])
def test_kinds_without_a_fixed_set_of_outputs_are_refused(kind: str, make_model: Callable[..., Any]) -> None:
    with pytest.raises(MultituneError, match=f"kind {kind}") as caught:
        encoder_with_heads(make_model("bert"), [Task(name="t", kind=kind)], seed=0)
    assert caught.value.where == "task t"


def test_no_tasks_and_no_choices_are_refused(make_model: Callable[..., Any]) -> None:
    with pytest.raises(MultituneError, match="at least one task"):
        encoder_with_heads(make_model("bert"), [], seed=0)
    with pytest.raises(MultituneError, match="at least two choices"):
        encoder_with_heads(make_model("bert"), [Task(name="t", kind="label", choices=("only",))], seed=0)


def test_the_unused_pooler_does_not_train(make_model: Callable[..., Any]) -> None:
    model = encoder_with_heads(make_model("bert"), [Task(name="t", kind="regress")], seed=0)
    assert not any(p.requires_grad for p in model.encoder.pooler.parameters())
    head_losses(model, {n: t[1:2] for n, t in batch().items()} | {"task_ids": torch.tensor([0])}).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_unknown_task_has_no_index(model: MultiTaskEncoder) -> None:
    assert model.task_index("d") == 2
    with pytest.raises(MultituneError, match="no head for task 'e'"):
        model.task_index("e")


def test_values_are_standardised_by_those_of_training(model: MultiTaskEncoder, tmp_path: Path) -> None:
    fit_scales(model, {"b.c": np.array([1000.0, 3000.0]), "a": np.array([0.0, 1.0])})
    assert [head.scale for head in model.heads] == [None, (2000.0, 1000.0), None]
    rows = batch()
    rows["values"][1] = 4500.0
    output = model(rows["input_ids"], rows["attention_mask"], rows["task_ids"])[1, 0]
    torch.testing.assert_close(head_losses(model, rows)[1], (output - 2.5) ** 2)
    fit_scales(model, {"b.c": np.array([7.0, 9.0])})  # trained further: the weights are in the first scale
    assert model.heads[1].scale == (2000.0, 1000.0)
    save_heads(model, tmp_path)
    assert load_heads(model.encoder, tmp_path).heads == model.heads


def test_values_that_are_all_equal_have_a_deviation_of_one(model: MultiTaskEncoder) -> None:
    fit_scales(model, {"b.c": np.array([0.1, 0.1, 0.1])})
    assert model.heads[1].scale == (pytest.approx(0.1), 1.0)
