"""Fisher merging and RegMean against closed forms and hand cases."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from multitune.errors import MultituneError
from multitune.weights.learned.fisher import FisherAverage, diagonal_fisher, fisher_merge
from multitune.weights.learned.regmean import RegMeanAverage, gram_matrices, regmean


def logistic(weight):
    """Two classes from two inputs, in float64."""
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
    return model


def test_fisher_information_of_a_softmax_layer_in_closed_form():
    """d log p_y / d W_ck = (1[c = y] - p_c) x_k, so F_ck = p_c (1 - p_c) x_k^2."""
    model = logistic([[1.0, 0.5], [-0.3, 0.2]])
    rows = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]], dtype=torch.float64)
    p_BL = model(rows).detach().softmax(-1)
    expected = ((p_BL * (1 - p_BL))[:, :, None] * rows[:, None].square()).mean(0)
    fisher = diagonal_fisher(model, rows.split(1))
    assert fisher["weight"] == pytest.approx(expected, abs=1e-14)
    sampled = diagonal_fisher(model, rows.repeat(700, 1).split(1), labels="sampled", seed=1)
    assert sampled["weight"] == pytest.approx(expected, rel=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_drawn_labels_take_batches_and_expect_the_same():
    """The square of a batch's summed gradient expects the sum of its rows' squares: other rows' gradients cancel."""
    model = logistic([[1.0, 0.5], [-0.3, 0.2]])
    rows = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]], dtype=torch.float64)
    expected = diagonal_fisher(model, rows.split(1))["weight"]
    batches = rows.repeat(4000, 1).split(3)
    assert diagonal_fisher(model, batches, labels="sampled", seed=1)["weight"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("labels", "size"), [("expected", 1), ("sampled", 4)])
def test_one_output_is_the_mean_of_a_normal_distribution(labels, size):
    """log p = -(y - f)^2 / 2, so F = (d f / d W)^2 = x^2."""
    model = nn.Linear(2, 1, bias=False).double()
    rows = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0], [2.0, 0.0]], dtype=torch.float64)
    batches = rows.repeat(1 if size == 1 else 5000, 1).split(size)
    found = diagonal_fisher(model, batches, labels=labels, seed=0)["weight"][0]
    assert found == pytest.approx(rows.square().mean(0), rel=1e-12 if size == 1 else 0.05)


@pytest.mark.parametrize("kind", [FisherAverage, RegMeanAverage])
def test_models_are_given_one_after_the_other_and_none_is_kept(kind):
    average = kind()
    left = []
    for _ in range(3):
        tensor = torch.randn(4, 5)
        left.append(weakref.ref(tensor))
        average.add({"w": tensor}, {"w": torch.eye(5) if kind is RegMeanAverage else torch.rand(4, 5)})
        del tensor
    assert all(one() is None for one in left)
    assert average.result()["w"].shape == (4, 5)


def test_a_frozen_parameter_is_left_out_and_the_models_mode_comes_back():
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model[1].eval()
    fisher = diagonal_fisher(model, torch.ones(2, 2).split(1))
    assert sorted(fisher) == ["2.bias", "2.weight"]
    assert model.training and not model[1].training
    assert fisher["2.weight"].dtype == torch.float32


def test_fisher_merge_by_hand():
    states = [{"w": torch.tensor([1.0, 1.0, 2.0])}, {"w": torch.tensor([3.0, 5.0, 6.0])}]
    fishers = [{"w": torch.tensor([3.0, 0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0, 0.0])}]
    merged = fisher_merge(states, fishers, normalise=False)["w"]
    assert merged == pytest.approx(torch.tensor([1.5, 5.0, 4.0]), abs=1e-5)  # nobody needs the last: the plain mean
    weighted = fisher_merge(states, fishers, [1.0, 3.0], normalise=False)["w"]
    assert weighted == pytest.approx(torch.tensor([2.0, 5.0, 5.0]), abs=1e-5)
    louder = [fishers[0], {"w": 1000 * fishers[1]["w"]}]
    assert fisher_merge(states, louder)["w"] == pytest.approx(fisher_merge(states, fishers)["w"])


def test_equal_information_is_the_plain_mean_and_one_model_is_itself():
    states = [{"w": torch.randn(3, 4), "steps": torch.tensor(3)} for _ in range(3)]
    equal = [{"w": torch.full((3, 4), 0.7)} for _ in states]
    mean = torch.stack([one["w"] for one in states]).mean(0)
    assert fisher_merge(states, equal)["w"] == pytest.approx(mean, abs=1e-6)
    assert fisher_merge(states, [{}, {}, {}])["w"] == pytest.approx(mean, abs=1e-6)
    assert fisher_merge(states, equal)["steps"] == 3
    assert fisher_merge(states[:1], equal[:1])["w"] == pytest.approx(states[0]["w"], abs=1e-6)


def linear_models(seed, count=3, inputs=5, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    models, rows = [], []
    for _ in range(count):
        model = nn.Linear(inputs, outputs).double()
        with torch.no_grad():
            model.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        models.append(model)
        rows.append(torch.randn(40, inputs, generator=generator, dtype=torch.float64))
    return models, rows


def test_regmean_is_the_least_squares_solution():
    """With alpha 1: the W that brings X_i W closest to X_i W_i over all models, by stacking the rows."""
    models, rows = linear_models(0)
    grams = [gram_matrices(model, [x]) for model, x in zip(models, rows, strict=True)]
    merged = regmean([model.state_dict() for model in models], grams, alpha=1.0)
    stacked = torch.cat(rows)
    wanted = torch.cat([x @ model.weight.detach().T for model, x in zip(models, rows, strict=True)])
    assert merged["weight"] == pytest.approx(torch.linalg.lstsq(stacked, wanted).solution.T, abs=1e-10)
    assert merged["bias"] == pytest.approx(torch.stack([model.bias.detach() for model in models]).mean(0))


def test_regmean_with_alpha_is_the_formula_and_alpha_zero_weighs_each_input_alone():
    models, rows = linear_models(1)
    states = [model.state_dict() for model in models]
    grams = [gram_matrices(model, [x]) for model, x in zip(models, rows, strict=True)]
    for alpha in (0.9, 0.0):
        shrunk = [alpha * g["weight"] + (1 - alpha) * torch.diag(g["weight"].diag()) for g in grams]
        expected = torch.linalg.inv(sum(shrunk)) @ sum(g @ s["weight"].T for g, s in zip(shrunk, states, strict=True))
        assert regmean(states, grams, alpha)["weight"] == pytest.approx(expected.T, abs=1e-10)
    power = torch.stack([g["weight"].diag() for g in grams])  # mean square of each input in each model
    weights = torch.stack([s["weight"] for s in states])
    assert regmean(states, grams, 0.0)["weight"] == pytest.approx(
        (power[:, None] * weights).sum(0) / power.sum(0), abs=1e-12
    )


def test_inputs_that_never_occur_keep_the_mean():
    models, rows = linear_models(2)
    for x in rows:
        x[:, 0] = 0
    grams = [gram_matrices(model, [x]) for model, x in zip(models, rows, strict=True)]
    merged = regmean([model.state_dict() for model in models], grams, alpha=1.0)["weight"]
    assert merged[:, 0] == pytest.approx(torch.stack([m.weight.detach()[:, 0] for m in models]).mean(0), abs=1e-9)


def test_inputs_that_repeat_one_another_still_keep_all_outputs():
    """With one input twice the solution is not unique: it has to stay near the mean, and its outputs are the best."""
    models, rows = linear_models(5)
    for x in rows:
        x[:, 1] = x[:, 0]
    grams = [gram_matrices(model, [x]) for model, x in zip(models, rows, strict=True)]
    merged = regmean([model.state_dict() for model in models], grams, alpha=1.0)["weight"]
    stacked = torch.cat(rows)
    wanted = torch.cat([x @ model.weight.detach().T for model, x in zip(models, rows, strict=True)])
    best = stacked @ torch.linalg.lstsq(stacked, wanted, driver="gelsd").solution
    assert stacked @ merged.T == pytest.approx(best, abs=1e-9)
    assert merged.abs().max() < 10


def test_gram_matrices_are_of_layer_inputs_summed_over_batches_and_tokens():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x_BSI = torch.randn(4, 5, 3, dtype=torch.float64)
    grams = gram_matrices(model, x_BSI.split(3))
    assert sorted(grams) == ["0.weight", "2.weight"]
    flat = x_BSI.flatten(0, 1)
    assert grams["0.weight"] == pytest.approx(flat.T @ flat / 20, abs=1e-12)
    hidden = model[0](flat).relu().detach()
    assert grams["2.weight"] == pytest.approx(hidden.T @ hidden / 20, abs=1e-12)
    assert not model[0]._forward_pre_hooks


def test_merging_one_model_returns_it():
    models, rows = linear_models(3, count=1)
    grams = [gram_matrices(models[0], [rows[0]])]
    assert regmean([models[0].state_dict()], grams)["weight"] == pytest.approx(models[0].weight.detach(), abs=1e-10)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda m, x: diagonal_fisher(m, []), "no row to measure"),
        (lambda m, x: diagonal_fisher(m, [x]), r"logits of shape \[1, classes\], not \[40, 4\]"),
        (lambda m, x: diagonal_fisher(m, [x[:1] * torch.nan]), "no number"),
        (lambda m, x: fisher_merge([], []), "0 models"),
        (lambda m, x: fisher_merge([m.state_dict()], [{}], [0.0]), "do not fit"),
        (lambda m, x: fisher_merge([m.state_dict(), {}], [{}, {}]), "missing in one of two models"),
        (lambda m, x: gram_matrices(m, []), "No batch reached"),
        (lambda m, x: gram_matrices(m, [x * torch.nan]), "no numbers"),
        (lambda m, x: regmean([m.state_dict()], [{}], alpha=1.1), "alpha 1.1"),
        (lambda m, x: regmean([m.state_dict(), nn.Linear(5, 3).state_dict()], [{}, {}]), "has shape"),
    ],
)
def test_what_cannot_be_merged_is_refused(wrong, what):
    models, rows = linear_models(4)
    with pytest.raises(MultituneError, match=what):
        wrong(copy.deepcopy(models[0]), rows[0])
