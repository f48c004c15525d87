"""RegMean (arXiv 2212.09849): linear layers merged so that the outputs of all models are kept in the least squares.

W* = (sum_i G_i)^-1 sum_i G_i W_i, where G_i = X_i^T X_i are the inner products of the inputs of model i's layer, with
off-diagonal entries times alpha. All that is no weight of a linear layer is averaged.

Shape legend: ``M`` models, ``I`` inputs and ``O`` outputs of a layer, ``R`` rows (tokens) that reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multitune.errors import MultituneError
from multitune.weights.learned.vectors import exact, require_same_tensors

State = Mapping[str, Tensor]


def gram_matrices(
    model: nn.Module,
    batches: Iterable[Any],
    call: Callable[[nn.Module, Any], Any] = lambda model, inputs: model(inputs),
) -> dict[str, Tensor]:
    """Return X^T X [I, I] of the inputs of every linear layer, by the name of its weight.

    In float32 (float64 for float64 layers), divided by the number of rows, so that models measured on more rows do not
    count for more. A layer that no batch reaches is left out, and so is what is linear under another class (GPT-2's
    Conv1D).

    Args:
        batches: a few hundred rows are enough; without padding, whose positions would count as rows.
        call: (model, batch) runs the model.

    Raises:
        MultituneError: no batches, no linear layer, inputs that are no numbers.
    """
    grams: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def measure(weight: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_RI = inputs[0].detach().flatten(0, -2)
        x_RI = x_RI.to(exact(x_RI.dtype))
        grams[weight] = x_RI.T @ x_RI + grams.get(weight, 0.0)
        rows[weight] = rows.get(weight, 0) + len(x_RI)

    layers = {
        f"{name}.weight" if name else "weight": m for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    handles = [layer.register_forward_pre_hook(partial(measure, weight)) for weight, layer in layers.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            for inputs in batches:
                call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    if not grams:
        raise MultituneError(
            "No batch reached a linear layer.", "regmean", "Give batches, and a model with linear layers."
        )
    if odd := [name for name, gram in grams.items() if not torch.isfinite(gram).all()]:
        raise MultituneError("The inputs of a layer are no numbers.", odd[0], "Look for NaN in the weights and rows.")
    return {name: gram / rows[name] for name, gram in grams.items()}


def regmean(states: Sequence[State], grams: Sequence[State], alpha: float = 0.9) -> dict[str, Tensor]:
    """Return the merged weights.

    Args:
        states: the models' weights, under the same names.
        grams: X^T X of each, see ``gram_matrices``; a weight is merged by them where all models have it.
        alpha: what off-diagonal entries are scaled by, 0 to 1. Below 1 the solution exists whatever the data: the paper
            takes 0.9, and 0.1 for T5. 0 weighs each input alone.

    Raises:
        MultituneError: no models, other names or shapes, counts that differ, alpha out of range.
    """
    if not states or len(states) != len(grams) or not 0 <= alpha <= 1:
        raise MultituneError(
            f"{len(states)} models, {len(grams)} measurements and alpha {alpha:g} do not fit.",
            "regmean",
            "Give one measurement per model, and alpha from 0 to 1.",
        )
    for state in states[1:]:
        require_same_tensors(states[0], state)
    return {name: _merged(name, [state[name] for state in states], grams, alpha) for name in states[0]}


def _merged(name: str, tensors: list[Tensor], grams: Sequence[State], alpha: float) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    if not all(name in one for one in grams):
        return torch.stack([tensor.to(exact(first.dtype)) for tensor in tensors]).mean(0).to(first.dtype)
    # in float64: the sum of the matrices is often nearly singular
    shrunk_MII = torch.stack([_shrunk(one[name].double(), alpha) for one in grams])
    weight_MIO = torch.stack([tensor.double().T for tensor in tensors])
    mean_IO = weight_MIO.mean(0)
    # relative to the mean, which then stays wherever the inputs of all models say nothing
    pulled_IO = (shrunk_MII @ (weight_MIO - mean_IO)).sum(0)
    merged_IO = mean_IO + _solved(shrunk_MII.sum(0), pulled_IO)
    return merged_IO.T.contiguous().to(first.dtype)


def _solved(gram_II: Tensor, pulled_IO: Tensor) -> Tensor:
    """Return gram^-1 pulled, and the smallest least-squares solution where inputs are silent or repeat one another."""
    lower_II, failed = torch.linalg.cholesky_ex(gram_II)
    pivot_I = lower_II.diagonal().square()
    if not failed and bool(pivot_I.min() > 1e-10 * pivot_I.max()):
        return torch.cholesky_solve(pulled_IO, lower_II)
    # by singular values, which take minutes for a few thousand inputs; on the CPU, as GPUs have no such solver
    return torch.linalg.lstsq(gram_II.cpu(), pulled_IO.cpu(), driver="gelsd").solution.to(gram_II)


def _shrunk(gram_II: Tensor, alpha: float) -> Tensor:
    return alpha * gram_II + (1 - alpha) * torch.diag(gram_II.diagonal())
