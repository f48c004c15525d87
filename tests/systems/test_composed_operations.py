"""The world of 36 composed tasks: what a row is, what carries loss, and that packed rows do not see one another."""

from __future__ import annotations

import pytest
import torch

from multitune.systems.composed_operations import (
    END,
    FIRST_OPERATION,
    FIRST_SYMBOL,
    LENGTH,
    NOTHING,
    PAIRS,
    SEPARATOR,
    Pair,
    _inputs,
    draw,
    encode,
    exact_match,
    rows_of,
    train,
    untrained,
)

FIVE = torch.tensor([[3, 1, 4, 10, 5]])


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ("reverse", "rotate", [10, 4, 1, 3, 5]),
        ("rotate", "reverse", [3, 5, 10, 4, 1]),
        ("sort", "add 1", [2, 4, 5, 6, 0]),
        ("swap ends", "add the one before", [8, 6, 5, 3, 2]),
    ],
)
def test_a_task_is_one_operation_after_the_other(first, second, answer):
    assert Pair(first, second).answer(FIVE).tolist() == [answer]


def test_pairs_that_change_nothing_are_known():
    assert len(set(PAIRS)) == 36
    assert [pair.name for pair in PAIRS if pair.changes_nothing] == ["reverse, reverse", "swap ends, swap ends"]


def test_a_row_and_its_labels():
    ids, labels = encode(Pair("rotate", "reverse"), FIVE)
    read = [FIRST_OPERATION + 1, FIRST_OPERATION, *(FIVE[0] + FIRST_SYMBOL).tolist(), SEPARATOR]
    answer = [symbol + FIRST_SYMBOL for symbol in (3, 5, 10, 4, 1)]
    assert ids.tolist() == [[*read, *answer, END]]
    assert labels.tolist() == [[-100] * 8 + [*answer, END]]
    untold, _ = encode(Pair("rotate", "reverse"), FIVE, told=False)
    assert untold.tolist() == [[NOTHING, NOTHING, *read[2:], *answer, END]]
    copied, _ = encode(None, FIVE)
    assert copied[0, 8:13].tolist() == copied[0, 2:7].tolist()


def test_fewer_rows_are_the_first_ones_and_full_loss_is_on_all_but_the_first():
    few, many = rows_of(PAIRS[:2], [3, 5], 0), rows_of(PAIRS[:2], [5, 5], 0)
    assert torch.equal(few.input_ids[:3], many.input_ids[:3])
    assert torch.equal(few.input_ids[3:], many.input_ids[5:])
    full = rows_of(PAIRS[:2], [3, 5], 0, full_loss=True)
    assert torch.equal(full.labels[:, 1:], full.input_ids[:, 1:])
    assert (full.labels[:, 0] == few.labels[:, 0]).all()


def test_rows_that_are_packed_apart_read_as_alone():
    model = untrained(0).eval()
    ids, labels = encode(PAIRS[3], draw(8, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        logits = {
            packing: model(**{k: v for k, v in _inputs(ids, labels, packing).items() if k != "labels"}).logits
            for packing in ("alone", "masked", "open")
        }
    as_rows = {packing: one.reshape(8, LENGTH, -1) for packing, one in logits.items()}
    assert torch.allclose(as_rows["masked"], as_rows["alone"], atol=1e-5)
    assert not torch.allclose(as_rows["open"][1], as_rows["alone"][1], atol=1e-3)
    assert torch.allclose(as_rows["open"][0], as_rows["alone"][0], atol=1e-5)


def test_a_task_without_a_share_is_never_drawn_and_training_is_the_seeds():
    rows = rows_of([Pair("reverse", "reverse"), Pair("sort", "sort")], [50, 50], 0)
    models = [untrained(0), untrained(0), untrained(0)]
    for model, shares in zip(models, ([1, 0], [1, 0], [0.5, 0.5]), strict=True):
        train(model, rows, shares, steps=3, rate=1e-3, seed=0)
    first, same, other = ([p.detach().clone() for p in model.parameters()] for model in models)
    assert all(map(torch.equal, first, same))
    assert not all(map(torch.equal, first, other))
    embedding = models[0].get_input_embeddings().weight - untrained(0).get_input_embeddings().weight
    sort = FIRST_OPERATION + 3
    assert embedding[sort].abs().max() < 1e-4  # weight decay alone
    assert embedding[FIRST_OPERATION].abs().max() > 1e-4


def test_an_answer_counts_only_whole():
    model, symbols = untrained(0), draw(20, torch.Generator().manual_seed(1))
    assert exact_match(model, PAIRS[0], symbols) == 0.0
    train(model, rows_of([PAIRS[0]], [40], 0), [1.0], steps=60, rate=5e-3, seed=0)
    known = rows_of([PAIRS[0]], [40], 0).input_ids[:, 2:7] - FIRST_SYMBOL
    assert exact_match(model, PAIRS[0], known) > exact_match(model, PAIRS[8], known)
