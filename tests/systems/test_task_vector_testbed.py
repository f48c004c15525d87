"""The test bed of systems 25 and 29: what is drawn, what is shared, what is frozen."""

from __future__ import annotations

import pytest
import torch

from multitune.errors import MultituneError
from multitune.systems import task_vector_testbed as testbed
from multitune.systems.task_vector_testbed import Encoder, accuracy, build_bed, fine_tune


@pytest.fixture(scope="module")
def bed():
    return build_bed(0, targets=2, steps=40)


def test_the_encoder_has_the_forty_tensors_of_the_card(bed):
    assert len(bed.base.state_dict()) == 40  # times 5 vectors: the card's 200 coefficients
    features_BW = bed.base(bed.tasks[0].test.inputs)
    assert features_BW.norm(dim=-1) == pytest.approx(torch.ones(1000), abs=1e-5)


def test_heads_are_prototypes_of_length_twenty_and_rows_are_apart(bed):
    for task in bed.tasks:
        assert task.head.norm(dim=-1).tolist() == pytest.approx([20.0] * 6, rel=1e-5)
        assert [len(rows.labels) for rows in (task.train, task.learn, task.test)] == [2000, 150, 1000]
        everything = torch.cat([task.train.inputs, task.learn.inputs, task.test.inputs])
        assert len(everything.unique(dim=0)) == 3150
        assert task.train.labels.bincount(minlength=6).min() > 2000 / 6 / 4
    means = torch.stack([task.train.inputs.mean(0) for task in bed.tasks])
    assert (means[0] - means[1]).norm() > 1


def test_fine_tuning_helps_its_own_task_and_leaves_the_base_as_it_was(bed):
    before = {name: tensor.clone() for name, tensor in bed.base.state_dict().items()}
    for task, tuned in zip(bed.tasks, bed.fine_tuned, strict=True):
        assert accuracy(bed.base, tuned, task) > accuracy(bed.base, bed.base.state_dict(), task) + 0.1
    assert all(before[name].equal(tensor) for name, tensor in bed.base.state_dict().items())
    for name, delta in bed.deltas()[0].items():
        assert delta.equal(bed.fine_tuned[0][name] - before[name])


def test_more_tasks_change_none_of_the_first_and_a_seed_is_a_bed(bed, monkeypatch):
    base = Encoder()
    base.load_state_dict(bed.base.state_dict())
    monkeypatch.setattr(testbed, "_pretrained", lambda teacher, seed: base)  # spares a second pretraining
    three = build_bed(0, targets=3, steps=1)
    for few, many in zip(bed.tasks, three.tasks, strict=False):
        assert few.head.equal(many.head)
        assert few.test.inputs.equal(many.test.inputs)
        assert few.learn.labels.equal(many.learn.labels)
    assert not three.tasks[0].head.equal(build_bed(1, targets=1, steps=1).tasks[0].head)


def test_several_tasks_are_tuned_with_equal_shares(bed):
    joint = fine_tune(bed.base, [(task, task.learn) for task in bed.tasks], 60, torch.Generator().manual_seed(0))
    for task in bed.tasks:
        assert accuracy(bed.base, joint, task, task.learn) > accuracy(bed.base, bed.base.state_dict(), task, task.learn)


@pytest.mark.parametrize("wrong", [{"targets": 0}, {"steps": 0}])
def test_no_task_and_no_step_are_refused(wrong):
    with pytest.raises(MultituneError, match="cannot have"):
        build_bed(0, **wrong)
