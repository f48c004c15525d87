"""The ten invariants of aTLAS's card, each to the digits that it states."""

from __future__ import annotations

import itertools
import weakref

import pytest
import torch
from torch.nn import functional

from multitune.weights.learned.blocks import blocks_of
from multitune.weights.learned.composition import composed
from multitune.weights.learned.config import LearningConfig
from multitune.weights.learned.learning import LearningTask, initial_gradient, learn_coefficients
from multitune.weights.learned.routes import routed
from multitune.weights.learned.selection import blockwise_selection, random_selection, whole_selection
from multitune.weights.learned.vectors import DenseVector, FactoredVector, dense_vector
from tests.weights.learned.conftest import small

ROUTES = ("streamed", "autograd")


def outputs(bench, composition, lam_NC, route="streamed", inputs=None):
    with routed(route, bench.model, composition) as composed_model, torch.no_grad():
        return composed_model.at(lam_NC)(bench.inputs if inputs is None else inputs)


def gradient(bench, composition, lam_NC, route):
    with routed(route, bench.model, composition) as composed_model:
        return composed_model.gradient(lam_NC, [bench.loss])[1]


def some_coefficients(composition):
    return torch.randn(composition.start().shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("route", ROUTES)
def test_1_zero_is_the_base_bit_by_bit_and_a_row_of_ones_is_that_model(route):
    bench = small(torch.float32)
    composition = composed(bench.model, bench.vectors)
    base = bench.model(bench.inputs)
    assert outputs(bench, composition, composition.start(), route).equal(base)
    for number, tuned in enumerate(bench.tuned):
        lam_NC = composition.start()
        lam_NC[number] = 1
        assert outputs(bench, composition, lam_NC, route) == pytest.approx(tuned(bench.inputs).detach(), abs=1e-6)
        for name, tensor in composition.tensors(lam_NC):
            assert tensor == pytest.approx(tuned.state_dict()[name], abs=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_2_the_gradient_is_an_inner_product(bench, route):
    composition = composed(bench.model, bench.vectors)
    lam_NC = some_coefficients(composition)
    theta = {name: tensor.clone().requires_grad_() for name, tensor in composition.tensors(lam_NC)}
    loss = bench.loss(lambda x: torch.func.functional_call(bench.model, theta, (x,)))
    slopes = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
    found_NC = gradient(bench, composition, lam_NC, route)
    for number, vector in enumerate(bench.vectors):
        for column, name in enumerate(composition.blocks.labels):
            direct = (slopes[name] * vector.read(name)).sum()
            assert float(found_NC[number, column]) == pytest.approx(float(direct), abs=1e-10)


@pytest.mark.parametrize("route", ROUTES)
def test_3_tied_coefficients_are_isotropic_and_their_gradient_is_the_row_sum(bench, route):
    anisotropic, isotropic = composed(bench.model, bench.vectors), composed(bench.model, bench.vectors, "all")
    lam_N1 = torch.tensor([[0.4], [-0.3]], dtype=torch.float64)
    tied_NC = lam_N1.expand(2, anisotropic.blocks.columns)
    assert outputs(bench, isotropic, lam_N1) == pytest.approx(outputs(bench, anisotropic, tied_NC), abs=1e-12)
    rows = gradient(bench, anisotropic, tied_NC, route).sum(1, keepdim=True)
    assert gradient(bench, isotropic, lam_N1, route) == pytest.approx(rows, abs=1e-10)


@pytest.mark.parametrize(("by", "partitions", "count"), [("tensor", 1, 20), ("tensor", 3, 60), ("all", 1, 2)])
@pytest.mark.parametrize("route", ROUTES)
def test_4_the_coefficients_are_counted_and_nothing_else_gets_a_gradient(bench, by, partitions, count, route):
    composition = composed(bench.model, bench.vectors, by, partitions)
    assert composition.parameters == count  # 10 tensors that the vectors change; the head is none of them
    assert composition.start().numel() == count
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    with routed(route, bench.model, composition) as composed_model:
        composed_model.gradient(some_coefficients(composition), [bench.loss])
        assert all(parameter.grad is None for parameter in bench.model.parameters())
        assert not bench.model.head.weight.requires_grad
    assert all(tensor.equal(before[name]) for name, tensor in bench.model.state_dict().items())
    assert not any(composition.base[name].requires_grad for name in composition.base)
    assert not any(vector.read(name).requires_grad for vector in bench.vectors for name in vector.shapes)


def test_5_partitions_are_a_dealing_out_of_every_tensor(bench):
    shapes = {"a": (5, 7), "b": (5, 7), "c": (3,)}
    blocks, again, other = (blocks_of(shapes, "tensor", 4, seed=seed) for seed in (0, 0, 1))
    for name, count in (("a", 35), ("b", 35), ("c", 3)):
        sizes = blocks.partition_of(name).long().bincount(minlength=4)
        assert sizes.sum() == count  # each entry has one partition: disjoint, and all are covered
        assert sizes.max() - sizes.min() <= 1
        assert blocks.partition_of(name).equal(again.partition_of(name))
    assert not blocks.partition_of("a").equal(other.partition_of("a"))
    assert not blocks.partition_of("a").equal(blocks.partition_of("b"))  # of equal shape, yet independent
    plain = composed(bench.model, bench.vectors)
    lam_NC = some_coefficients(plain)
    for partitions in (1, 5):
        dealt = composed(bench.model, bench.vectors, "tensor", partitions)
        equal_NC = lam_NC.repeat_interleave(partitions, dim=1)
        assert outputs(bench, dealt, equal_NC) == pytest.approx(outputs(bench, plain, lam_NC), abs=1e-12)
        summed = gradient(bench, dealt, equal_NC, "streamed").view(2, -1, partitions).sum(-1)
        assert summed == pytest.approx(gradient(bench, plain, lam_NC, "autograd"), abs=1e-10)
        apart = gradient(bench, dealt, equal_NC, "autograd")
        assert gradient(bench, dealt, equal_NC, "streamed") == pytest.approx(apart, abs=1e-10)


def test_6_folded_weights_are_the_wrapped_model_and_unused_vectors_change_nothing(bench):
    data = [(bench.inputs, bench.labels)]
    task = LearningTask("rows", lambda epoch, forward: data, lambda forward, batch: bench.loss(forward))
    learned = learn_coefficients(bench.model, bench.vectors, [task], LearningConfig(learning_rate=0.1, epochs=5))
    assert learned.lam_NC.abs().min() > 0
    inputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wrapped = outputs(bench, learned.composition, learned.lam_NC, "autograd", inputs)
    only_first = learned.lam_NC * torch.tensor([[1.0], [0.0]])
    alone = composed(bench.model, bench.vectors[:1])
    assert all(
        one[1].equal(other[1])
        for one, other in zip(alone.tensors(only_first[:1]), learned.composition.tensors(only_first), strict=True)
    )
    learned.fold_into(bench.model)
    with torch.no_grad():
        assert bench.model(inputs) == pytest.approx(wrapped, abs=1e-12)


@pytest.mark.parametrize("partitions", [1, 3])
def test_7_factors_are_the_dense_path(bench, partitions):
    generator = torch.Generator().manual_seed(3)
    factors = {
        name: (torch.randn(6, 2, generator=generator), torch.randn(2, 6, generator=generator), 0.5)
        for name in ("layers.0.1.weight", "layers.1.1.weight")
    }
    multiplied = {name: scale * left.double() @ right.double() for name, (left, right, scale) in factors.items()}
    thin = composed(bench.model, [FactoredVector(factors)], "tensor", partitions)
    dense = composed(bench.model, [dense_vector(multiplied)], "tensor", partitions)
    lam_NC = some_coefficients(dense)
    assert outputs(bench, thin, lam_NC) == pytest.approx(outputs(bench, dense, lam_NC), abs=1e-12)
    found_NC = gradient(bench, thin, lam_NC, "streamed")
    assert found_NC == pytest.approx(gradient(bench, dense, lam_NC, "autograd"), abs=1e-10)
    if partitions == 1:
        theta = {name: tensor.clone().requires_grad_() for name, tensor in thin.tensors(lam_NC)}
        loss = bench.loss(lambda x: torch.func.functional_call(bench.model, theta, (x,)))
        for column, (name, slope) in enumerate(zip(theta, torch.autograd.grad(loss, [*theta.values()]), strict=True)):
            left, right, scale = factors[name]
            assert float(found_NC[0, column]) == pytest.approx(
                scale * float((left.double().T @ slope * right.double()).sum()), abs=1e-10
            )


# torch 2.13 compiles its own forward derivatives by torch.jit.script, at their first use
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_8_the_linearised_model_is_affine_in_the_coefficients(bench):
    composition = composed(bench.model, bench.vectors)
    direction = some_coefficients(composition)
    start = composition.start(0.2)
    low, middle, high = (outputs(bench, composition, start + step * direction, "linearised") for step in (-1, 0, 1))
    assert (low - 2 * middle + high).abs().max() < 1e-8
    assert (high - low).abs().max() > 1e-2
    bent = [outputs(bench, composition, start + step * direction) for step in (-1, 0, 1)]
    assert (bent[0] - 2 * bent[1] + bent[2]).abs().max() > 1e-2  # the model itself is not affine
    base = bench.model(bench.inputs)
    assert outputs(bench, composition, composition.start(), "linearised").equal(base)
    at_base = gradient(bench, composition, composition.start(), "streamed")
    assert gradient(bench, composition, composition.start(), "linearised") == pytest.approx(at_base, abs=1e-10)


def test_9_task_arithmetic_and_scaling_by_depth_are_special_cases(bench):
    arithmetic = composed(bench.model, bench.vectors, "all")
    base, tuned = bench.model.state_dict(), [one.state_dict() for one in bench.tuned]
    for name, tensor in arithmetic.tensors(arithmetic.start(0.3)):
        expected = base[name] + 0.3 * sum(one[name] - base[name] for one in tuned)
        assert tensor == pytest.approx(expected, abs=1e-12)
    by_depth = composed(bench.model, bench.vectors, "layer")
    factors = {"layers.0": 0.5, "layers.1": 1.0, "outside": 0.5}  # alpha 0.5, beta 0.5 over two layers
    lam_NC = torch.tensor([[factors[label] for label in by_depth.blocks.labels]] * 2, dtype=torch.float64)
    for name, tensor in by_depth.tensors(lam_NC):
        factor = factors[".".join(name.split(".")[:2]) if name.startswith("layers") else "outside"]
        expected = base[name] + factor * sum(one[name] - base[name] for one in tuned)
        assert tensor == pytest.approx(expected, abs=1e-12)


def test_10_selecting_all_is_all_and_blockwise_takes_the_steeper_vector_of_every_block(bench):
    composition = composed(bench.model, bench.vectors)
    slope_NC = initial_gradient(bench.model, composition, [bench.loss])
    for chosen_NC in (
        blockwise_selection(slope_NC, 2),
        whole_selection(slope_NC, 2),
        random_selection(2, 10, 2, seed=0),
    ):
        assert chosen_NC.all()
    one_NC = blockwise_selection(slope_NC, 1)
    for column, (first, second) in enumerate(slope_NC.T.abs().tolist()):
        assert one_NC[:, column].tolist() == [first >= second, second > first]
    assert 0 < one_NC[0].sum() < 10  # both vectors are taken somewhere: the test can tell blocks from whole vectors
    chosen = composed(bench.model, bench.vectors, chosen_NC=one_NC)
    assert chosen.parameters == 10
    task = LearningTask("rows", lambda epoch, forward: [0, 0], lambda forward, batch: bench.loss(forward))
    for route in ROUTES:
        learned = learn_coefficients(bench.model, chosen, [task], LearningConfig(epochs=2, route=route))
        assert learned.lam_NC.ne(0).equal(one_NC)


def test_both_routes_learn_the_same_coefficients(bench):
    """The memory-light way is the same mathematics: after 30 steps in double precision the paths have not parted."""
    data = list(zip(bench.inputs.split(5), bench.labels.split(5), strict=True))
    task = LearningTask(
        "rows",
        lambda epoch, forward: data,
        lambda forward, batch: functional.cross_entropy(forward(batch[0]), batch[1]),
    )
    found = {}
    for route, partitions in itertools.product(ROUTES, (1, 3)):
        composition = composed(bench.model, bench.vectors, "tensor", partitions)
        config = LearningConfig(learning_rate=0.05, epochs=8, route=route, regularise=2, schedule="cosine")
        found[route, partitions] = learn_coefficients(bench.model, composition, [task], config)
    for partitions in (1, 3):
        one, other = found["streamed", partitions], found["autograd", partitions]
        assert one.lam_NC == pytest.approx(other.lam_NC, abs=1e-9)
        assert one.losses == pytest.approx(other.losses, abs=1e-9)
        assert one.losses[-1] < one.losses[0]


def test_the_streamed_route_never_holds_two_vectors_and_reads_only_what_is_chosen(bench):
    """However many vectors there are, one tensor of one of them is alive; a selection reads no other."""
    alive, most, reads = set(), [0], []

    def counted(number, vector):
        def read(name):
            tensor = vector.read(name).clone()
            alive.add(id(tensor))
            weakref.finalize(tensor, alive.discard, id(tensor))
            most[0] = max(most[0], len(alive))
            reads.append((number, name))
            return tensor

        return DenseVector(vector.shapes, read)

    many = [counted(number, bench.vectors[number % 2]) for number in range(6)]
    one_NC = torch.zeros(6, 10, dtype=torch.bool)
    one_NC[torch.arange(10) % 6, torch.arange(10)] = True
    for chosen_NC, expected in ((None, 6 * 10), (one_NC, 10)):
        composition = composed(bench.model, many, chosen_NC=chosen_NC)
        with routed("streamed", bench.model, composition) as route:
            route.gradient(composition.start(), [bench.loss])
            assert len(reads) == len(set(reads)) == expected
            reads.clear()
            route.at(some_coefficients(composition))
            assert len(reads) == len(set(reads)) == expected
            reads.clear()
    assert most == [1]
