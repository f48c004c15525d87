"""What cannot be learned is refused in one sentence, and a model comes back as it was whatever happens."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from multitune.errors import MultituneError
from multitune.weights.learned.blocks import blocks_of
from multitune.weights.learned.composition import composed
from multitune.weights.learned.config import LearningConfig
from multitune.weights.learned.disentanglement import disentanglement_error
from multitune.weights.learned.learning import Learned, LearningTask, learn_coefficients
from multitune.weights.learned.routes import routed
from multitune.weights.learned.selection import (
    blockwise_selection,
    feature_selection,
    random_selection,
    whole_selection,
)
from multitune.weights.learned.tasks import Labelled, labelled_task
from multitune.weights.learned.vectors import dense_vector, difference, vector_of_file
from tests.weights.learned.conftest import small


def task_of(loss, batches=1):
    return LearningTask("rows", lambda epoch, forward: range(batches), lambda forward, batch: loss(forward))


def learn(bench, loss=None, **more):
    return learn_coefficients(bench.model, bench.vectors, [task_of(loss or bench.loss)], LearningConfig(), **more)


NAN = torch.full((1, 4), torch.nan, dtype=torch.float64)
SLOPE = torch.zeros(3, 4)

WRONG = {
    "There is no task vector": lambda b: composed(b.model, []),
    "The model has no tensor 'inlet.wight'. Did you mean 'inlet.weight'": lambda b: composed(
        b.model, [dense_vector({"inlet.wight": torch.zeros(6, 4)})]
    ),
    r"'inlet.weight' has shape \[4, 6\], in the model \[6, 4\]": lambda b: composed(
        b.model, [dense_vector({"inlet.weight": torch.zeros(4, 6)})]
    ),
    "'head.bias' is not in the second": lambda b: difference(
        b.model.state_dict(), {k: v for k, v in b.model.state_dict().items() if k != "head.bias"}
    ),
    "in one model and": lambda b: difference({"a": torch.zeros(2)}, {"a": torch.zeros(3)}),
    "There is no tensor to scale": lambda b: composed(b.model, [dense_vector({"calls": torch.zeros(1)})]),
    "cannot be dealt into 0 partitions": lambda b: composed(b.model, b.vectors, partitions=0),
    "no grouping 'tensors'. Did you mean 'tensor'": lambda b: blocks_of({"a": (2,)}, "tensors"),
    r"The selection has shape \[3, 4\]": lambda b: composed(b.model, b.vectors, chosen_NC=SLOPE.bool()),
    "The base has no tensor 'inlet.weight'": lambda b: composed(b.model, b.vectors, base={}),
    "0 of 3 task vectors": lambda b: blockwise_selection(SLOPE, 0),
    "4 of 3 task vectors": lambda b: blockwise_selection(SLOPE, 4),
    "5 of 3 task vectors": lambda b: whole_selection(SLOPE, 5),
    "6 of 3 task vectors": lambda b: random_selection(3, 4, 6, seed=0),
    "7 of 3 task vectors": lambda b: feature_selection(SLOPE[0], SLOPE, 4, 7),
    "The model's 'inlet.weight' is not that of the base": lambda b: learn_coefficients(
        b.tuned[0], composed(b.model, b.vectors), [task_of(b.loss)]
    ),
    "There is no task to learn": lambda b: learn_coefficients(b.model, b.vectors, []),
    "Epoch 1 has no batch of 'rows'": lambda b: learn_coefficients(b.model, b.vectors, [task_of(b.loss, 0)]),
    "0 rows cannot be drawn": lambda b: labelled_task("rows", Labelled(0, lambda drawn: (drawn, drawn))),
    "The loss of the composed model is nan": partial(learn, loss=lambda forward: forward(NAN).sum()),
    "The score of the composed model is nan": partial(learn, evaluate=lambda forward: math.nan),
    r"A loss of shape \[20, 3\]": lambda b: learn(b, lambda forward: forward(b.inputs)),
    "does not depend on composed tensors": lambda b: learn(b, lambda forward: torch.tensor(1.0)),
    "Task vectors 0 and 2 of 2": lambda b: disentanglement_error(
        b.model, Learned(torch.zeros(2, 10), composed(b.model, b.vectors), 0), b.inputs, 0, 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_it_is_refused(bench, what):
    before = copy.deepcopy(bench.model.state_dict())
    bench.model.train()
    with pytest.raises(MultituneError, match=what):
        WRONG[what](bench)
    assert all(tensor.equal(before[name]) for name, tensor in bench.model.state_dict().items())
    assert bench.model.training and all(parameter.requires_grad for parameter in bench.model.parameters())


@pytest.mark.parametrize("route", ["streamed", "autograd"])
def test_a_vector_that_holds_nan_is_told_before_it_reaches_the_weights(bench, route):
    """At 0 the autograd route meets 0 * NaN in its first loss, the streamed one in its first gradient."""
    bad = {"inlet.bias": torch.full((6,), torch.nan, dtype=torch.float64)}
    with pytest.raises(MultituneError, match=r"(gradient of the coefficients|loss of the composed model) is"):
        learn_coefficients(bench.model, [dense_vector(bad)], [task_of(bench.loss)], LearningConfig(route=route))
    assert all(tensor.isfinite().all() for tensor in bench.model.state_dict().values())


def test_partial_vectors_count_as_zero_elsewhere_and_buffers_are_left_out(bench):
    vector = dense_vector({"inlet.bias": torch.ones(6), "calls": torch.ones(1)})
    composition = composed(bench.model, [vector, bench.vectors[0]])
    assert "calls" not in composition.base
    lam_NC = composition.start()
    lam_NC[0] = 1
    theta = dict(composition.tensors(lam_NC))
    assert theta["inlet.bias"].equal(bench.model.inlet.bias + 1)
    assert theta["inlet.weight"].equal(bench.model.inlet.weight)


def test_a_mapped_base_spares_a_copy_and_the_model_still_comes_back(bench, tmp_path):
    """With a base of its own the streamed route moves the model's tensors where they lie, and puts the base back."""
    base = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    deltas = [{name: vector.read(name).clone() for name in vector.shapes} for vector in bench.vectors]
    for number, delta in enumerate(deltas):
        save_file(delta, tmp_path / f"{number}.safetensors")
    vectors = [vector_of_file(tmp_path / f"{number}.safetensors") for number in range(2)]
    places = [parameter.data_ptr() for parameter in bench.model.parameters()]
    found = []
    for composition in (composed(bench.model, vectors, base=base), composed(bench.model, bench.vectors)):
        found.append(learn_coefficients(bench.model, composition, [task_of(bench.loss, 3)], LearningConfig(epochs=3)))
        assert all(tensor.equal(base[name]) for name, tensor in bench.model.state_dict().items())
        assert [parameter.data_ptr() for parameter in bench.model.parameters()] == places
    assert found[0].lam_NC == pytest.approx(found[1].lam_NC, abs=1e-12)
    with routed("streamed", bench.model, composed(bench.model, vectors, base=base)) as route:
        route.at(torch.ones(2, 10, dtype=torch.float64))
        assert [parameter.data_ptr() for parameter in bench.model.parameters()] == places
    with pytest.raises(MultituneError, match="cannot be read"):
        vector_of_file(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes()[:100])
    with pytest.raises(MultituneError, match="cannot be read"):
        vector_of_file(tmp_path / "cut.safetensors")


def test_many_moves_drift_by_no_more_than_rounding():
    bench = small(torch.float32)
    composition = composed(bench.model, bench.vectors)
    generator = torch.Generator().manual_seed(0)
    with routed("streamed", bench.model, composition) as route:
        for _ in range(500):
            route.at(torch.randn(2, 10, generator=generator, dtype=torch.float64))
        lam_NC = composition.start(0.5)
        route.at(lam_NC)
        moved = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    for name, tensor in composition.tensors(lam_NC):
        assert moved[name] == pytest.approx(tensor, abs=1e-5)


def test_weights_of_sixteen_bits_are_composed_anew_and_rounded_once():
    bench = small(torch.bfloat16)
    composition = composed(bench.model, bench.vectors)
    with routed("streamed", bench.model, composition) as route:
        for step in range(50):  # each move alone is below bfloat16's rounding
            route.at(composition.start((step + 1) / 5000))
        moved = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    for name, tensor in composition.tensors(composition.start(0.01)):
        assert moved[name].dtype == tensor.dtype == torch.bfloat16
        assert moved[name].equal(tensor)
    task = task_of(lambda forward: functional.cross_entropy(forward(bench.inputs).float(), bench.labels))
    learned = learn_coefficients(bench.model, composition, [task], LearningConfig(learning_rate=0.05, epochs=5))
    assert learned.losses[-1] < learned.losses[0]


@pytest.mark.parametrize("route", ["streamed", "autograd"])
def test_a_base_file_of_sixteen_bits_serves_a_model_that_was_loaded_in_more(route):
    half = small(torch.bfloat16)
    model = copy.deepcopy(half.model).float()
    composition = composed(model, half.vectors, base=half.model.state_dict())
    loss = partial(lambda rows, forward: functional.cross_entropy(forward(rows), half.labels), half.inputs.float())
    config = LearningConfig(learning_rate=0.05, epochs=5, route=route)
    learned = learn_coefficients(model, composition, [task_of(loss)], config)
    assert learned.losses[-1] < learned.losses[0]
    assert {tensor.dtype for _, tensor in learned.tensors()} == {torch.bfloat16}  # what a checkpoint is written from
    learned.fold_into(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_frozen_tensor_in_the_head_stays_out_of_reach_even_when_the_loss_asks_for_it(bench):
    """A loss that adds the head's own norm gets no gradient there; flags come back when the loss raises."""
    bench.model.head.weight.requires_grad_(False)

    def failing(forward):
        assert not bench.model.head.bias.requires_grad
        raise KeyError("batch")

    with pytest.raises(KeyError):
        learn(bench, failing)
    assert not bench.model.head.weight.requires_grad
    assert bench.model.head.bias.requires_grad


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="extra"):
        LearningConfig(learnin_rate=1.0)
    for wrong in ({"learning_rate": 0.0}, {"epochs": 0}, {"clip": 0.0}, {"regularise": 3}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="Input should be"):
            LearningConfig(**wrong)
    with pytest.raises(ValueError, match="the lowest value first"):
        LearningConfig(clamp=(1.0, 0.0))


def test_a_model_without_layers_has_one_block_of_what_is_outside():
    model = nn.Linear(2, 2)
    assert composed(model, [dense_vector({"weight": torch.ones(2, 2)})], "layer").blocks.labels == ("outside",)
