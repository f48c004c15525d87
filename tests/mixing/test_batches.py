"""Micro-batches. Toy ids name their origin: row 3 of task a is made of 3s, of task b of 300s."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from multitune.errors import MultituneError
from multitune.mixing.batches import TrainingBatches
from multitune.mixing.mixture import Mixture
from multitune.mixing.packing import TokenBudget
from multitune.mixing.policies import Equal, Proportional

LENGTHS = {"a": [3, 5, 2, 9, 4, 7, 1, 6, 2, 8], "b": [10, 4, 16, 3, 12, 5]}
UNITS = {"a": 1, "b": 100}


@pytest.fixture
def make(toy_table):
    def batches(form="causal", pack=True, total=40, size=3, seed=0, mixture_seed=0, row_length=20):
        tables = [toy_table(task, UNITS[task], lengths, form) for task, lengths in LENGTHS.items()]
        mixture = Mixture(
            {task: len(lengths) for task, lengths in LENGTHS.items()}, Equal(), mixture_seed, total, block=8
        )
        return TrainingBatches(
            tables,
            mixture,
            form=form,
            pack=pack,
            row_length=row_length,
            micro_batch_size=size,
            pad_token_id=7777,
            seed=seed,
        )

    return batches


def examples_in(batch):
    """(example id, task, ids) of every example of a causal micro-batch, by its ids alone."""
    found = []
    for row in range(len(batch["input_ids"])):
        present = batch["example_ids"][row]
        for example in torch.unique_consecutive(present[present >= 0]).tolist():
            own = present == example
            task = torch.unique(batch["task_ids"][row][own])
            assert len(task) == 1
            found.append((example, int(task), batch["input_ids"][row][own].tolist()))
    return found


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("size", [1, 3, TokenBudget(60)])
def test_every_example_of_the_mixture_is_in_exactly_one_micro_batch_whole(make, pack, size):
    batches = make(pack=pack, size=size)
    found = sorted(example for index in range(len(batches)) for example in examples_in(batches[index]))
    drawn = batches.mixture.draw(0, 40).tolist()
    expected = []
    for place, (task, row, _) in enumerate(drawn):
        name = batches.mixture.names[task]
        expected.append((place, task, [(row + 1) * UNITS[name]] * LENGTHS[name][row]))
    assert found == expected


@pytest.mark.parametrize("pack", [True, False])
def test_causal_batches_keep_their_invariants(make, pack):
    batches = make(pack=pack)
    useful = positions = labelled = 0
    for index in range(len(batches)):
        batch = batches[index]
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        assert set(shapes) == {"input_ids", "labels", "position_ids", "task_ids", "example_ids"}
        assert len(set(shapes.values())) == 1
        assert all(tensor.dtype == torch.long for tensor in batch.values())
        rows, width = shapes["input_ids"]
        assert width == 20 if pack else width % 8 == 0 or width == 20
        padding = batch["example_ids"] == -1
        assert (batch["input_ids"][padding] == 7777).all() and (batch["input_ids"][~padding] != 7777).all()
        assert (batch["labels"][padding] == -100).all() and (batch["task_ids"][padding] == -1).all()
        carries = batch["labels"] != -100
        assert (batch["labels"][carries] == batch["input_ids"][carries]).all()
        # positions restart exactly where the example changes, and the first token there is no label
        starts = torch.ones_like(padding)
        starts[:, 1:] = batch["example_ids"][:, 1:] != batch["example_ids"][:, :-1]
        assert ((batch["position_ids"] == 0) == starts).all()
        assert (batch["position_ids"][:, 1:] - batch["position_ids"][:, :-1])[~starts[:, 1:]].eq(1).all()
        assert not (carries & starts).any()
        useful, positions, labelled = (
            useful + int((~padding).sum()),
            positions + rows * width,
            labelled + int(carries.sum()),
        )
    assert batches.fill == pytest.approx(useful / positions)
    assert batches.labelled_share == pytest.approx(labelled / useful)


@pytest.mark.parametrize("form", ["seq2seq", "encoder"])
def test_padded_forms_carry_inputs_and_targets(make, form):
    batches = make(form=form, pack=False)
    places, useful, positions = [], 0, 0
    for index in range(len(batches)):
        batch = batches[index]
        mask = batch["attention_mask"].bool()
        drawn = batches.mixture.draw(0, 40)
        assert (batch["input_ids"][~mask] == 7777).all()
        assert (mask.long().diff(dim=1) <= 0).all()  # padding stands on the right
        ids = batch["example_ids"] if form == "encoder" else batch["example_ids"][:, 0]
        tasks = batch["task_ids"] if form == "encoder" else batch["task_ids"][:, 0]
        for row, (place, task) in enumerate(zip(ids.tolist(), tasks.tolist(), strict=True)):
            name = batches.mixture.names[task]
            table_row = drawn[place, 1]
            value = (table_row + 1) * UNITS[name]
            assert drawn[place, 0] == task
            assert batch["input_ids"][row][mask[row]].tolist() == [value] * LENGTHS[name][table_row]
            if form == "encoder":
                assert batch["values"][row] == value
            else:
                labels = batch["labels"][row]
                assert labels[labels != -100].tolist() == [50_000 + value] * (1 + LENGTHS[name][table_row] // 2)
                assert ((labels == -100) == (batch["task_ids"][row] == -1)).all()
                assert ((labels == -100) == (batch["example_ids"][row] == -1)).all()
        places += ids.tolist()
        sides = [batch["input_ids"], batch["labels"]] if form == "seq2seq" else [batch["input_ids"]]
        useful += int(mask.sum()) + (int((batch["labels"] != -100).sum()) if form == "seq2seq" else 0)
        positions += sum(side.numel() for side in sides)
    assert sorted(places) == list(range(40))
    assert batches.fill == pytest.approx(useful / positions)
    assert form == "seq2seq" or batch["values"].dtype == torch.float64


@pytest.mark.parametrize("form", ["causal", "seq2seq", "encoder"])
def test_the_trailing_micro_batch_is_smaller_and_last_and_never_lost(make, form):
    batches = make(form=form, pack=False, total=40, size=3)
    sizes = [len(batches[index]["input_ids"]) for index in range(len(batches))]
    assert sizes == [3] * 13 + [1]


def test_a_token_budget_bounds_the_positions_of_a_micro_batch(make):
    batches = make(form="encoder", pack=False, size=TokenBudget(64))
    shapes = [batches[index]["input_ids"].shape for index in range(len(batches))]
    assert max(rows * width for rows, width in shapes) == 64
    assert {width: max(rows for rows, other in shapes if other == width) for width in (8, 16)} == {8: 8, 16: 4}
    assert sum(rows for rows, _ in shapes) == 40


@pytest.mark.parametrize("form", ["causal", "seq2seq", "encoder"])
def test_a_resumed_plan_equals_the_undisturbed_one(make, form):
    pack = form == "causal"
    whole = make(form=form, pack=pack)
    undisturbed = [whole[index] for index in range(len(whole))]
    resumed = make(form=form, pack=pack)
    for index in reversed(range(len(resumed))):  # any place, in any order
        for name, tensor in resumed[index].items():
            assert torch.equal(tensor, undisturbed[index][name])


def test_rows_do_not_depend_on_the_size_of_micro_batches(make):
    def rows(size):
        batches = make(size=size)
        return torch.cat([batches[index]["example_ids"] for index in range(len(batches))])

    assert torch.equal(rows(1), rows(3))
    assert torch.equal(rows(1), rows(5))


def test_seeds_change_the_rows(make):
    def rows(**seeds):
        batches = make(size=100, **seeds)
        return batches[0]["input_ids"]

    assert not torch.equal(rows(), rows(seed=1))
    assert not torch.equal(rows(), rows(mixture_seed=1))


def test_tokens_of_one_example_do_not_touch_its_neighbours(make, toy_table):
    first = make()
    before = first[0]
    tables = [toy_table("a", 5000, LENGTHS["a"]), toy_table("b", 100, LENGTHS["b"])]
    after = TrainingBatches(
        tables, first.mixture, form="causal", pack=True, row_length=20, micro_batch_size=3, pad_token_id=7777, seed=0
    )[0]
    changed = before["input_ids"] != after["input_ids"]
    assert torch.equal(changed, before["task_ids"] == 0)
    assert changed.any() and not changed.all()
    for name in ("position_ids", "task_ids", "example_ids"):
        assert torch.equal(before[name], after[name])


def test_repeats_count_the_passes_over_every_task(make):
    batches = make(total=60)
    seen = {"a": 0, "b": 0}
    for index in range(len(batches)):
        for _, task, _ in examples_in(batches[index]):
            seen["ab"[task]] += 1
        assert batches.repeats_at(index) == pytest.approx({"a": seen["a"] / 10, "b": seen["b"] / 6})
    assert batches.repeats_at(len(batches) - 1) == {"a": 3.0, "b": 5.0}
    afresh = make(total=60)
    for index in (4, 1, 6, 6, 0):  # in any order, as counted from the start
        assert batches.repeats_at(index) == afresh.repeats_at(index)
        afresh = make(total=60)


def test_batches_travel_to_workers_by_their_files(make):
    batches = make()
    copy = pickle.loads(pickle.dumps(batches))
    assert torch.equal(copy[1]["input_ids"], batches[1]["input_ids"])
    assert len(pickle.dumps(batches.tables[0])) < 1000


def test_instruction_lengths_leave_almost_no_padding(toy_table):
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 250, 2000).tolist()
    table = toy_table("a", 1, lengths, per_batch=1000)
    mixture = Mixture({"a": 2000}, Proportional(), 0, 2000)
    settings = {"form": "causal", "row_length": 512, "micro_batch_size": 8, "pad_token_id": 0, "seed": 0}
    packed = TrainingBatches([table], mixture, pack=True, **settings)
    padded = TrainingBatches([table], mixture, pack=False, **settings)
    assert packed.fill > 0.99
    assert padded.fill > 0.9


def test_an_example_longer_than_a_row_is_refused_by_task(make):
    with pytest.raises(MultituneError, match="Task 'b' has an example of 16 tokens; a row holds 15"):
        make(row_length=15)


def test_numbers_outside_the_run_are_refused(make):
    batches = make()
    with pytest.raises(IndexError):
        batches[len(batches)]
