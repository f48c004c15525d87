"""The languages of system 15: what a row is, what is held out, and that targets count alike where they should."""

from __future__ import annotations

import math

import pytest
import torch

from multitune.systems import language_world, xmtf
from multitune.systems.language_world import (
    END,
    FIRST_LANGUAGE,
    FIRST_SYMBOL,
    FIRST_WORD,
    LONG,
    OPERATIONS,
    SEPARATOR,
    SYMBOLS,
    Cell,
    draw,
    encode,
    untrained,
)

FIVE = torch.tensor([[3, 1, 4, 15, 5]])
TINY = {"steps": 2, "before_steps": 2, "batch": 6, "test_rows": 4}


def test_a_row_is_in_its_language():
    ids, labels = encode(Cell("rotate", 2), FIVE)
    own = FIRST_SYMBOL + 2 * SYMBOLS
    answer = [own + symbol for symbol in (1, 4, 15, 5, 3)]
    read = [own + symbol for symbol in (3, 1, 4, 15, 5)]
    assert ids.tolist() == [[FIRST_WORD + 1, *read, SEPARATOR, *answer, END]]
    assert labels.tolist() == [[-100] * 7 + [*answer, END]]


def test_a_translation_is_the_same_symbols_in_another_language():
    ids, _ = encode(Cell("", 0, 3), FIVE)
    assert ids[0, 0] == FIRST_LANGUAGE + 3
    assert (ids[0, 7:12] - ids[0, 1:6]).tolist() == [3 * SYMBOLS] * 5


def test_the_long_task_is_twenty_times_as_long():
    lengths = [(encode(Cell(task, 0), FIVE)[1] != -100).sum().item() for task in ("sort", LONG)]
    assert lengths == [6, 121]


def test_every_operation_has_one_language_that_is_held_out():
    held_out = xmtf.held_out_languages(0)
    assert list(held_out) == list(OPERATIONS)
    assert set(held_out.values()) <= {1, 2, 3}
    assert held_out != xmtf.held_out_languages(1)


@pytest.mark.parametrize("aggregation", ["token_mean", "sample_mean"])
def test_the_loss_is_the_mean_over_tokens_or_over_targets(aggregation):
    model = untrained(0)
    rows = [encode(Cell(task, 0), draw(1, torch.Generator().manual_seed(0))) for task in ("sort", LONG)]
    with torch.no_grad():
        sums, counts = zip(*(_summed(model, *row) for row in rows), strict=True)
        length = rows[1][0].shape[1]
        ids = torch.cat([torch.nn.functional.pad(row[0], (0, length - row[0].shape[1])) for row in rows])
        labels = torch.cat([torch.nn.functional.pad(row[1], (0, length - row[1].shape[1]), value=-100) for row in rows])
        loss = language_world._loss(model, ids, labels, aggregation)
    wanted = sum(sums) / sum(counts) if aggregation == "token_mean" else (sums[0] / counts[0] + sums[1] / counts[1]) / 2
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def _summed(model, ids, labels):
    counted = (labels != -100).sum().item()
    return model(input_ids=ids, labels=labels).loss.item() * counted, counted


def test_the_arms_tell_what_the_claims_ask(tmp_path):
    arms = {arm.name: xmtf.run_small({**arm.settings, **TINY}, 0, tmp_path) for arm in xmtf.ARMS}
    assert all(math.isfinite(claim.effect(arms)) for claim in xmtf.CLAIMS)
    assert xmtf.run_small({**xmtf.ARMS[1].settings, **TINY}, 0, tmp_path) == arms["xP3"]
