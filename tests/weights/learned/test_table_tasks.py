"""The house's tokenised tasks as what coefficients are learned from: a decoder with task vectors of its own skills."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from multitune.errors import MultituneError
from multitune.mixing.tokens import tokenise
from multitune.systems.mftcoder import sequence_task, small_decoder
from multitune.weights.learned.config import LearningConfig
from multitune.weights.learned.learning import learn_coefficients
from multitune.weights.learned.table_tasks import all_rows, minus_mean_loss, supervised_task
from multitune.weights.learned.vectors import difference


@pytest.fixture
def skills(tmp_path):
    """A decoder, two copies that were tuned to one skill each, and the skills' training and validation tables."""
    backbone = small_decoder(0)
    backbone.model.eval()
    tasks = [sequence_task(name, 40, 20, 0) for name in ("max", "rotate")]
    tables = {
        split: [
            tokenise(task, split, backbone.tokenizer, "causal", tmp_path, max_length=16, cache=tmp_path / "tokens")
            for task in tasks
        ]
        for split in ("train", "validation")
    }
    tuned = []
    for table in tables["train"]:
        one, task = copy.deepcopy(backbone.model), supervised_task(backbone, all_rows(table), batch_size=40, seed=0)
        optimizer = torch.optim.AdamW(one.parameters(), lr=3e-3)
        for _ in range(12):
            optimizer.zero_grad()
            task.loss(one, torch.arange(40)).backward()
            optimizer.step()
        tuned.append(one)
    return backbone, tables, tuned


def row_by_row(backbone, table):
    """Nats per labelled token, without padding or batches."""
    total, count = 0.0, 0
    for number in range(len(table)):
        row = table.row(number)
        ids, labels = (torch.tensor(row[column], dtype=torch.long) for column in ("input_ids", "labels"))
        with torch.no_grad():
            log_p = backbone.model(ids[None]).logits[0].log_softmax(-1)
        places = [place for place in range(1, len(labels)) if labels[place] >= 0]
        total -= sum(float(log_p[place - 1, labels[place]]) for place in places)
        count += len(places)
    return total / count


def test_both_skills_are_composed_and_the_score_is_the_loss_row_by_row(skills):
    backbone, tables, tuned = skills
    vectors = [difference(backbone.model.state_dict(), one.state_dict()) for one in tuned]
    score = minus_mean_loss(backbone, [all_rows(table) for table in tables["validation"]], batch_size=7)
    learned = learn_coefficients(
        backbone.model,
        vectors,
        [supervised_task(backbone, all_rows(table), batch_size=20, seed=0) for table in tables["train"]],
        LearningConfig(learning_rate=0.1, epochs=4),
        evaluate=score,
    )
    assert learned.epoch > 0 and max(learned.scores) > learned.scores[0]
    learned.fold_into(backbone.model)
    losses = [row_by_row(backbone, table) for table in tables["validation"]]
    assert sum(losses) / 2 == pytest.approx(-max(learned.scores), rel=1e-5)


def test_an_encoder_and_a_table_of_another_form_are_refused(skills):
    backbone, tables, _ = skills
    for form in ("encoder", "seq2seq"):
        with pytest.raises(MultituneError, match=f"the backbone is a {form} one"):
            supervised_task(replace(backbone, form=form), all_rows(tables["train"][0]), batch_size=4, seed=0)
