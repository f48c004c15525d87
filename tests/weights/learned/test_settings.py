"""What coefficients are learned for: addition, negation, few shots, tests without labels; and how a run goes on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from multitune.weights.learned.adamerging import adamerging
from multitune.weights.learned.composition import composed
from multitune.weights.learned.config import SETTINGS, LearningConfig
from multitune.weights.learned.disentanglement import disentanglement_error, mean_disentanglement_error
from multitune.weights.learned.learning import LearningTask, _slope, learn_coefficients
from multitune.weights.learned.objectives import entropy
from multitune.weights.learned.routes import routed
from multitune.weights.learned.selection import feature_selection, whole_vectors
from multitune.weights.learned.tasks import (
    Labelled,
    Unlabelled,
    accuracy_on,
    called,
    entropy_task,
    labelled_task,
    negation_score,
    normalised_accuracy,
    quarter_trusted,
    shuffled,
    simclr_task,
    ufm_task,
)
from multitune.weights.learned.vectors import dense_vector

FAST = LearningConfig(learning_rate=0.1, epochs=6)


def taught_by(bench, number, rows=60):
    """Rows that the fine-tuned model ``number`` labels: its own vector is the answer."""
    inputs = torch.randn(rows, 4, generator=torch.Generator().manual_seed(70 + number), dtype=torch.float64)
    with torch.no_grad():
        labels = bench.tuned[number](inputs).argmax(-1)
    return Labelled(rows, lambda drawn: (inputs[drawn], labels[drawn]))


def seen_from(rows, noise=0.3):
    """The same rows without labels, in noisier views."""

    def draw(drawn, view, generator):
        inputs, _ = rows.draw(drawn)
        scale = {"plain": 0.0, "weak": 0.1, "strong": noise}[view]
        return inputs + scale * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)

    return Unlabelled(rows.count, draw)


def test_addition_learns_one_model_for_both_tasks_and_keeps_its_best_epoch(bench):
    rows = [taught_by(bench, number) for number in range(2)]
    score = normalised_accuracy([(accuracy_on(one), 1.0) for one in rows])
    learned = learn_coefficients(
        bench.model,
        bench.vectors,
        [labelled_task(f"task {number}", one, batch_size=20) for number, one in enumerate(rows)],
        FAST,
        evaluate=score,
    )
    assert len(learned.scores) == 7 and len(learned.losses) == 6
    assert learned.epoch == learned.scores.index(max(learned.scores)) > 0
    assert max(learned.scores) > learned.scores[0] + 0.05
    learned.fold_into(bench.model)
    assert score(bench.model) == max(learned.scores)


def test_the_start_is_kept_when_no_epoch_is_better(bench):
    rows = taught_by(bench, 0)
    with torch.no_grad():
        own = bench.model(torch.cat([rows.draw(torch.arange(60))[0]])).argmax(-1)
    perfect = Labelled(60, lambda drawn: (rows.draw(drawn)[0], own[drawn]))  # the pretrained model's own labels
    learned = learn_coefficients(
        bench.model, bench.vectors, [labelled_task("rows", rows)], FAST, evaluate=accuracy_on(perfect)
    )
    assert learned.epoch == 0
    assert learned.scores[0] == 1.0
    assert learned.lam_NC.eq(0).all()


def test_negation_unlearns_the_target_and_stops_below_the_control(bench):
    target, control = taught_by(bench, 0), taught_by(bench, 1)
    tasks = [labelled_task("target", target, weight=-1.0), labelled_task("control", control)]
    config = SETTINGS["negation"].model_copy(update={"learning_rate": 0.05, "epochs": 30})
    score = negation_score(accuracy_on(target), accuracy_on(control))
    learned = learn_coefficients(bench.model, bench.vectors[:1], tasks, config, evaluate=score)
    assert max(learned.scores) > learned.scores[0]
    control_before = accuracy_on(control)(bench.model)
    learned.fold_into(bench.model)
    assert accuracy_on(control)(bench.model) >= 0.95 * control_before


def test_a_control_that_falls_ends_the_run_with_what_was_kept(bench):
    controls = iter([0.8, 0.79, 0.75, 1.0])
    targets = iter([0.6, 0.5, 0.1, 0.0])
    score = negation_score(lambda forward: next(targets), lambda forward: next(controls))
    task = labelled_task("rows", taught_by(bench, 0))
    learned = learn_coefficients(bench.model, bench.vectors, [task], FAST, evaluate=score)
    assert learned.scores == [-0.6, -0.5, -math.inf]  # 0.75 < 0.95 * 0.8
    assert learned.epoch == 1


def test_few_shots_are_gone_through_again_until_there_are_ten_batches():
    generator = torch.Generator().manual_seed(0)
    batches = shuffled(3, 2, generator, least=10)
    assert [len(one) for one in batches] == [2, 1] * 5
    for pass_number in range(5):
        assert sorted(torch.cat(batches[2 * pass_number : 2 * pass_number + 2]).tolist()) == [0, 1, 2]
    assert len(shuffled(300, 20, generator, least=10)) == 15


def test_a_target_is_learned_without_its_own_vector(bench):
    others = whole_vectors(torch.tensor([1]), 2, 10)
    composition = composed(bench.model, bench.vectors, chosen_NC=others)
    task = labelled_task("rows", taught_by(bench, 0), least_batches=10)
    learned = learn_coefficients(bench.model, composition, [task], SETTINGS["few-shot"])
    assert learned.lam_NC[0].eq(0).all()
    assert learned.lam_NC[1].ne(0).all()
    assert learned.losses[-1] < learned.losses[0]


def test_feature_selection_takes_the_most_alike():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    chosen_NC = feature_selection(torch.tensor([1.0, 0.8]), features, columns=4, budget=2)
    assert chosen_NC.tolist() == [[True] * 4, [False] * 4, [True] * 4]


@pytest.mark.parametrize("kind", ["entropy", "simclr", "ufm"])
def test_unlabelled_rows_adapt_at_test_time(bench, kind):
    rows = seen_from(taught_by(bench, 0))
    task = {
        "entropy": lambda: entropy_task("rows", rows, margin=1.0, batch_size=20),
        "simclr": lambda: simclr_task("rows", rows, batch_size=20),
        "ufm": lambda: ufm_task("rows", rows, epochs=6, exponent=2.0, batch_size=20),
    }[kind]()
    config = SETTINGS["test-time"].model_copy(update={"learning_rate": 0.02, "epochs": 6, "sharpness_radius": 0.05})
    learned = learn_coefficients(bench.model, bench.vectors, [task], config)
    again = learn_coefficients(bench.model, bench.vectors, [task], config)
    assert learned.epoch == 6
    assert learned.lam_NC.equal(again.lam_NC)
    if kind == "ufm":  # its loss is another in every epoch: other rows are trusted, and fewer of the rest are sure
        assert learned.lam_NC.abs().min() > 0
    else:
        assert learned.losses[-1] < learned.losses[0]


def test_unsupervised_fixmatch_raises_its_threshold_and_trusts_anew_in_every_epoch(bench):
    rows = taught_by(bench, 0)
    task = ufm_task("rows", seen_from(rows), epochs=3, batch_size=20, most_trusted=4)
    thresholds, trusted = [], []
    for epoch, model in zip((1, 2, 3), (bench.model, bench.tuned[0], bench.tuned[1]), strict=True):
        batches = task.batches(epoch, model)
        thresholds += [threshold for _, _, threshold, _ in batches]
        drawn, labels = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:2])
        trusted.append(dict(zip(drawn[labels >= 0].tolist(), labels[labels >= 0].tolist(), strict=True)))
        with torch.no_grad():
            probability = model(rows.draw(torch.arange(60))[0]).softmax(-1)
        for row, label in trusted[-1].items():
            assert row in probability[:, label].topk(4).indices
        for drawn, labels, *_ in batches[:-1]:
            assert len(drawn) == 20 and labels[:5].ge(0).all() and labels[5:].lt(0).all()
    assert thresholds == sorted(thresholds)
    assert thresholds[0] == 0.9 and thresholds[-1] == pytest.approx(1.0)
    assert trusted[0] != trusted[1]


def test_batches_without_trusted_or_without_other_rows_are_plain():
    generator = torch.Generator().manual_seed(0)
    for none in (torch.zeros(7, dtype=torch.bool), torch.ones(7, dtype=torch.bool)):
        assert sorted(torch.cat(quarter_trusted(none, 4, generator)).tolist()) == list(range(7))


@pytest.mark.parametrize(("wise", "columns"), [("task", 1), ("layer", 10)])
def test_adamerging_starts_at_three_tenths_and_stays_between_zero_and_one(bench, wise, columns):
    rows = [seen_from(taught_by(bench, number)) for number in range(2)]
    tasks = [entropy_task(f"task {n}", one, margin=None, batch_size=16) for n, one in enumerate(rows)]
    config = SETTINGS["adamerging"].model_copy(update={"epochs": 2})
    learned = adamerging(bench.model, bench.vectors, tasks, wise, config)
    assert learned.lam_NC.shape == (2, columns)
    assert (learned.lam_NC - 0.3).abs().max() <= 8 * 1e-3 + 1e-12  # 8 steps of Adam, each at most its rate
    assert learned.lam_NC.ne(0.3).all()
    far = adamerging(bench.model, bench.vectors, tasks, wise, config.model_copy(update={"learning_rate": 1.0}))
    assert far.lam_NC.min() >= 0 and far.lam_NC.max() <= 1
    assert {0.0, 1.0} & set(far.lam_NC.flatten().tolist())


def test_adamergings_first_step_goes_down_the_summed_entropy(bench):
    """Adam's first step is its rate against the sign of the gradient."""
    rows = [seen_from(taught_by(bench, number, rows=16)) for number in range(2)]
    tasks = [entropy_task(f"task {n}", one, margin=None, batch_size=16) for n, one in enumerate(rows)]
    learned = adamerging(bench.model, bench.vectors, tasks, "task")
    lam_N1 = torch.full((2, 1), 0.3, dtype=torch.float64, requires_grad=True)
    theta = dict(composed(bench.model, bench.vectors, "all").tensors(lam_N1))
    everything = torch.arange(16)
    total = sum(
        entropy(torch.func.functional_call(bench.model, theta, (one.draw(everything, "plain", torch.Generator()),)))
        for one in rows
    )
    (slope,) = torch.autograd.grad(total, lam_N1)
    assert learned.lam_NC == pytest.approx(0.3 - 1e-3 * slope.sign(), abs=1e-7)


def test_sharpness_takes_the_gradient_up_the_slope():
    """On L(w) = w^2 / 2 with one vector of 1, at lam 1 and radius 0.5, the gradient is that at 1.5."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    composition = composed(model, [dense_vector({"weight": torch.ones(1, 1, dtype=torch.float64)})])
    one = torch.ones(1, 1, dtype=torch.float64)
    with routed("streamed", model, composition) as route:
        losses = [lambda forward: 0.5 * forward(one).square().sum()]
        assert _slope(route, one, losses, 0.5, lambda: None) == (0.5, torch.tensor([[1.5]], dtype=torch.float64))
        assert _slope(route, one, losses, 0.0, lambda: None) == (0.5, one)


def test_one_step_of_a_cosine_by_hand():
    """AdamW's first steps have the length of the rate: 1 at the first of two, half at the second."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    vector = dense_vector({"weight": torch.ones(1, 1, dtype=torch.float64)})
    task = LearningTask(
        "down", lambda epoch, forward: [0], lambda forward, batch: forward(torch.ones(1, 1).double()).sum()
    )
    config = LearningConfig(learning_rate=1.0, weight_decay=0.0, epochs=2, schedule="cosine")
    learned = learn_coefficients(model, [vector], [task], config)
    assert float(learned.lam_NC) == pytest.approx(-1.5, abs=1e-6)
    decayed = learn_coefficients(model, [vector], [task], config.model_copy(update={"weight_decay": 0.1}))
    assert float(decayed.lam_NC) == pytest.approx(-1 * (1 - 0.5 * 0.1) - 0.5, abs=1e-6)  # decoupled, as AdamW's is


def test_disentanglement_counts_labels_that_another_vector_changes(bench):
    task = labelled_task("rows", taught_by(bench, 0))
    learned = learn_coefficients(bench.model, bench.vectors, [task], FAST)
    inputs = taught_by(bench, 0).draw(torch.arange(60))[0]
    alone, both = learned.lam_NC.clone(), learned.lam_NC
    alone[1] = 0
    labels = [
        torch.func.functional_call(bench.model, dict(learned.composition.tensors(lam)), (inputs,)).argmax(-1)
        for lam in (alone, both)
    ]
    expected = float(labels[0].ne(labels[1]).double().mean())
    assert disentanglement_error(bench.model, learned, inputs, 0, 1) == expected
    other = disentanglement_error(bench.model, learned, inputs, 1, 0)
    mean = mean_disentanglement_error(bench.model, learned, [inputs, inputs], [called, called])
    assert mean == pytest.approx((expected + other) / 2)


def test_an_epoch_ends_with_the_smallest_task(bench):
    seen = []

    def watched(name, batches):
        def loss(forward, batch):
            seen.append(name)
            return functional.cross_entropy(forward(bench.inputs), bench.labels)

        return LearningTask(name, lambda epoch, forward: range(batches), loss)

    learn_coefficients(bench.model, bench.vectors, [watched("a", 5), watched("b", 2)], LearningConfig(epochs=3))
    assert seen == ["a", "b"] * 2 * 3
